"""The watchdog: finds a run that hangs, writes every process' stacks, says who hangs and where, and ends it."""

import collections
import contextlib
import datetime
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from megatron_music.exits import ExitCode
from megatron_music.tables import numbers_in_words
from megatron_music.training.loop import Callback, StepReport

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer

SLOW_TIMES = 3
"""How much longer than a step starting, the first step, saving and validation may take."""
_POLL_SECONDS, _ANSWER_SECONDS = 5.0, 10.0


class Watchdog:
    """A thread that ends the process, with ``ExitCode.HUNG``, once it or another has not gone on for long; a context.

    Processes tell each other through the store of the process group, on connections of their own. The stacks go to
    ``folder/rank_N.txt``; those of a process that is stuck in a call which keeps Python from running are written by
    faulthandler's timer, which does without. All processes make one, at the same time.

    Args:
        hang_seconds: how long a step may take.
    """

    def __init__(self, folder: Path, hang_seconds: float):
        self.folder, self.hang_seconds = folder, hang_seconds
        self.rank, self.processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        run = [uuid.uuid4().hex]
        torch.distributed.broadcast_object_list(run, src=0)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        answer = datetime.timedelta(seconds=_ANSWER_SECONDS)
        store = torch.distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=answer)
        self._store = torch.distributed.PrefixStore(f"watchdog/{run[0]}", store)
        self._poll_seconds = min(_POLL_SECONDS, hang_seconds / 20)
        self._ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._unanswered = self._timer_file(self.rank).open("w")
        self.beat("starting", SLOW_TIMES)

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        self._unanswered.close()
        self._timer_file(self.rank).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds the stacks of an earlier hang, or others' files
            self.folder.rmdir()

    def beat(self, doing: str, times: float = 1) -> None:
        """Tells that this process goes on: what it does now may take ``times`` the seconds of a step."""
        seconds = times * self.hang_seconds
        self._doing, self._deadline = doing, time.monotonic() + seconds
        faulthandler.dump_traceback_later(seconds, file=self._unanswered)

    def _timer_file(self, rank: int) -> Path:
        return self.folder / f".rank_{rank}.txt"

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._poll_seconds):
            now = time.monotonic()
            # A whole job may have been stood still (SIGSTOP, `scontrol suspend`): that is no hang.
            self._deadline += max(0.0, now - before - 2 * self._poll_seconds)
            before = now
            if now > self._deadline or self._is_told():
                self._end()

    def _is_told(self) -> bool:
        try:
            return self._store.check(["hang"])
        except RuntimeError:
            # The process that holds the store is gone: whoever started this one will end it.
            return False

    def _end(self) -> None:
        place = self._write_stacks()
        try:
            self._store.set("hang", "")
            self._store.set(f"place/{self.rank}", json.dumps([self._doing, place]))
            if self._store.add("tellers", 1) == 1:
                print(self._tell(), file=sys.stderr, flush=True)
                self._store.set("told", "")
            else:
                self._store.wait(["told"], datetime.timedelta(seconds=2 * _ANSWER_SECONDS))
        except RuntimeError:
            print(f"hang: process {self.rank}, {self._doing}: {place}", file=sys.stderr, flush=True)
        os._exit(ExitCode.HUNG)

    def _write_stacks(self) -> str:
        """Writes this process' stacks; returns where its main thread stands."""
        stack = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])
        with (self.folder / f"rank_{self.rank}.txt").open("w", encoding="utf-8") as file:
            file.write(f"{socket.gethostname()}, process id {os.getpid()}, {self._doing}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        ours = [frame for frame in stack if "megatron_music" in Path(frame.filename).parts] or stack
        return " in ".join(dict.fromkeys(_words(frame) for frame in (stack[-1], ours[-1])))

    def _tell(self) -> str:
        """One line: the places of the processes, those where the fewest stand first."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        ranks_by_place = collections.defaultdict(list)
        for rank in range(self.processes):
            try:
                left = datetime.timedelta(seconds=max(0.1, deadline - time.monotonic()))
                self._store.wait([f"place/{rank}"], left)
                doing, place = json.loads(self._store.get(f"place/{rank}"))
            except RuntimeError:
                doing, place = "", "no answer: stopped, or stuck outside of Python"
                if self._timer_file(rank).is_file() and self._timer_file(rank).stat().st_size:
                    self._timer_file(rank).replace(self.folder / f"rank_{rank}.txt")
            ranks_by_place[doing, place].append(rank)
        places = sorted(ranks_by_place.items(), key=lambda item: len(item[1]))
        parts = [f"rank {numbers_in_words(ranks)}: {', '.join(filter(None, words))}" for words, ranks in places]
        return f"hang: no progress for {self.hang_seconds:g} s and more; {'; '.join(parts)}; stacks: {self.folder}"


class Beat(Callback):
    """A callback that tells the watchdog what comes next, and how much longer than a step it may take."""

    def __init__(self, watchdog: Watchdog, what: str, times: float = 1):
        self.watchdog, self.what, self.times = watchdog, what, times

    def at_start(self, trainer: "Trainer") -> None:
        """The first step, and what comes before it, takes longer."""
        self.watchdog.beat("before the first step", SLOW_TIMES)

    def at_end(self, trainer: "Trainer", failed: bool) -> None:
        """What is being written is waited for."""
        self.watchdog.beat("at the end", SLOW_TIMES)

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """This process goes on."""
        self.watchdog.beat(f"after step {report.step.index + 1}: {self.what}", self.times)


def _words(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
