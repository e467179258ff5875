"""One run folder, one job: on this machine, from another one, and after the holder's death."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from megatron_music.errors import InputError
from megatron_music.training.run import train
from megatron_music.training.run_lock import RunLock, refuse_if_held

HOLD = """
import sys
from pathlib import Path
from megatron_music.training.run_lock import RunLock

RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""
BEAT_SECONDS = 0.01


@pytest.fixture
def holder(tmp_path):
    """Another process of this machine that holds the folder ``run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_until_the_first_is_dead(holder, make_recipe, tmp_path):
    recipe = make_recipe()
    line = (f"{tmp_path}/run: is being trained by process {holder.pid} on {socket.gethostname()}; end that job first, "
            "or choose another run folder")  # fmt: skip
    for attempt in (RunLock(recipe.run).take, lambda: refuse_if_held(recipe.run), lambda: train(recipe, 1)):
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value) == line
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    refuse_if_held(recipe.run)
    lock = RunLock(recipe.run)
    lock.take()
    assert json.loads((recipe.run / "run.lock").read_text())["pid"] == os.getpid()
    lock.give_back()
    assert (recipe.run / "run.lock").read_text() == ""
    refuse_if_held(tmp_path / "nowhere")


def write_holder(run, **fields):
    run.mkdir(exist_ok=True)
    about = {"host": "node7", "pid": 4, "slurm_job": None, "slurm_restarts": 0, "beats": 8}
    (run / "run.lock").write_text(json.dumps(about | fields))


def test_a_holder_on_another_machine_is_watched(tmp_path, monkeypatch):
    """Its lock does not hold here: what it writes tells whether it lives."""
    run = tmp_path / "run"
    write_holder(run)
    lock = RunLock(run, BEAT_SECONDS)
    lock.take()
    lock.give_back()

    ended = threading.Event()

    def beat():
        beats = 8
        while not ended.is_set():
            beats += 1
            replacement = tmp_path / "beat"
            replacement.write_text(json.dumps({"host": "node7", "pid": 4, "slurm_job": "12", "beats": beats}))
            replacement.replace(run / "run.lock")

    write_holder(run)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="is being trained by process 4 on node7, SLURM job 12; end that job"):
            RunLock(run, 1.0).take()
    finally:
        ended.set()
        thread.join()


def test_a_requeued_job_is_not_refused_by_itself(tmp_path, monkeypatch):
    """It does not even watch: with a beat of an hour it would be waited for."""
    run = tmp_path / "run"
    write_holder(run, slurm_job="12", slurm_restarts=1)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    lock = RunLock(run, 3600.0)
    lock.take()
    assert json.loads((run / "run.lock").read_text())["slurm_restarts"] == 2
    lock.give_back()


def test_a_lock_of_somebody_else_is_told_in_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    lock = RunLock(tmp_path / "run")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"run.lock: can't be written \(Permission denied\); ask for the right"):
        lock.take()
