"""One run folder, one job: the first process holds ``RUN/run.lock`` while it trains.

On one machine the kernel's lock tells: it goes with the process that holds it, however that ends. Over a file system
that several machines share such locks may hold on each machine by itself, so the holder also writes who it is, and
counts on in the file every few seconds; a job that finds another machine's name there watches whether it still does.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from megatron_music.errors import InputError
from megatron_music.files import make_folder, read_json
from megatron_music.progress import console

BEAT_SECONDS = 10.0
_SILENT_BEATS = 4
"""Beats that a living holder may be late, on a slow file system."""
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def refuse_if_held(run: Path) -> None:
    """Raises InputError where another job on this machine trains in a folder; takes nothing."""
    try:
        descriptor = os.open(run / "run.lock", os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise _refusal(run, _read(run / "run.lock")) from None
    finally:
        os.close(descriptor)


class RunLock:
    """The lock of one run folder; one process of a job takes it, and gives it back or dies."""

    def __init__(self, run: Path, beat_seconds: float = BEAT_SECONDS):
        self.run, self.path, self._beat_seconds = run, run / "run.lock", beat_seconds
        self._ended = threading.Event()
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises InputError that names the host and process of another job that holds the folder."""
        make_folder(self.path.parent)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as error:
            what = f"can't be written ({error.strerror})"
            raise InputError(self.path, what, "ask for the right to write in the run folder, or name another") from None
        try:
            self._wait_for_another_machine(self._lock(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._about = _about_this_process()
        self._write(0)
        self._heart = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._heart.start()

    def give_back(self) -> None:
        """Lets others in; nothing happens in a process that does not hold it."""
        if self._descriptor is None:
            return
        self._ended.set()
        self._heart.join()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _lock(self, descriptor: int) -> bool:
        """Whether the file system has locks; refuses where another process of this machine holds this one."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            if error.errno not in _HELD:
                raise
            raise _refusal(self.run, _read(self.path)) from None
        return True

    def _wait_for_another_machine(self, is_locked: bool) -> None:
        """Returns once the last holder that the file names is known to be dead."""
        holder = _read(self.path)
        if not holder or (is_locked and holder.get("host") == socket.gethostname()) or _is_own_predecessor(holder):
            return
        seconds = _SILENT_BEATS * self._beat_seconds
        console.print(
            f"{self.run}: {_in_words(holder)} held this run last and did not end it; watching for {seconds:.0f} s "
            "whether it lives",
        )
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, self._beat_seconds))
            now = _read(self.path)
            if not now:
                return
            if now != holder:
                raise _refusal(self.run, now)

    def _write(self, beats: int) -> None:
        content = json.dumps({**self._about, "beats": beats}).encode()
        # The numbers only grow, so that the new content covers the old.
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))
        os.fsync(self._descriptor)

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(self._beat_seconds):
            beats += 1
            try:
                self._write(beats)
            except OSError:
                # A full disk or a server that is away for a while does not end the run.
                continue


def _read(path: Path) -> dict[str, Any]:
    """What the holder wrote; empty where there is none. Opened anew, since shared file systems look only then."""
    try:
        return read_json(path)
    except InputError:
        return {}


def _refusal(run: Path, holder: dict[str, Any]) -> InputError:
    return InputError(
        run, f"is being trained by {_in_words(holder)}", "end that job first, or choose another run folder"
    )


def _about_this_process() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": job, "slurm_restarts": restarts}


def _is_own_predecessor(holder: dict[str, Any]) -> bool:
    """Whether the holder belongs to this SLURM job before it was requeued: SLURM has ended it."""
    own = _about_this_process()
    return (
        own["slurm_job"] is not None
        and holder.get("slurm_job") == own["slurm_job"]
        and holder.get("slurm_restarts", 0) < own["slurm_restarts"]
    )


def _in_words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    job = f", SLURM job {holder['slurm_job']}" if holder.get("slurm_job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}"
