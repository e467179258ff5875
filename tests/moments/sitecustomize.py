"""Does deeds to a training process at chosen moments: with this folder in ``PYTHONPATH``, in every Python process.

``MOMENTS`` is JSON: ``marks``, a folder in which each moment leaves a file so that it comes once, and ``moments``,
which come one after another, in whichever processes a run is started again with. Each has a ``place`` (``step``:
gradients are there, the update is not; ``save`` and ``load``: a file of a checkpoint is opened), a ``rank``, a
``count`` (the how manieth of its place since that process started) and a ``deed``: ``kill``; ``hang``; ``ask`` and
``preempt``, which have the launcher or SLURM tell the run to stop, and let it go on once it knows.
"""

import collections
import functools
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ENGINE, STOP = "megatron_music.engine.engine", "megatron_music.training.callbacks.stop"
_told = threading.Event()
_counts: collections.Counter = collections.Counter()


def _reach(place: str) -> None:
    plan = json.loads(os.environ["MOMENTS"])
    if "RANK" not in os.environ:
        return
    _counts[place] += 1
    for number, moment in enumerate(plan["moments"]):
        mark = Path(plan["marks"]) / str(number)
        if mark.exists():
            continue
        if (moment["place"], moment["rank"], moment["count"]) == (place, int(os.environ["RANK"]), _counts[place]):
            mark.touch()
            _do(moment["deed"])
        return


def _do(deed: str) -> None:
    if deed == "kill":
        os.kill(int(os.environ.get("TRAINER", os.getpid())), signal.SIGKILL)
    elif deed == "ask":
        os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)
    elif deed == "preempt":
        subprocess.run(["scancel", "--signal=USR1", "--batch", os.environ["SLURM_JOB_ID"]], check=True)
    # A handler runs when the main thread has a turn.
    while deed in ("kill", "hang") or not _told.wait(0.05):
        threading.Event().wait(0.05)


def _audit(event: str, arguments: tuple) -> None:
    if event != "open" or isinstance(arguments[0], int):
        return
    (path, mode, flags), place = arguments, "load"
    if "/checkpoints/" in os.fsdecode(path):
        if not _is_reading(mode, flags):
            place = "save"
        if place == "save" or os.fsdecode(path).endswith(".distcp"):
            _reach(place)


def _is_reading(mode: str | None, flags: int) -> bool:
    return "r" in mode and "+" not in mode if mode else flags & (os.O_WRONLY | os.O_RDWR) == 0


class _Finder:
    """Wraps what is called at the moments once its module is there."""

    def find_spec(self, name, path=None, target=None):
        if name not in (ENGINE, STOP):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _wrap_engine(module.Engine) if name == ENGINE else _wrap_stop(module.StopWhenAsked)

        spec.loader.exec_module = exec_module
        return spec


def _wrap_engine(engine: type) -> None:
    start, step = engine.__init__, engine.step

    @functools.wraps(start)
    def started(self, *arguments, **options):
        os.environ["TRAINER"] = str(os.getpid())  # for what it starts to write checkpoints
        start(self, *arguments, **options)

    @functools.wraps(step)
    def step_reached(self, *arguments, **options):
        _reach("step")
        return step(self, *arguments, **options)

    engine.__init__, engine.step = started, step_reached


def _wrap_stop(stop: type) -> None:
    ask = stop._ask

    def asked(self, number, frame):
        ask(self, number, frame)
        _told.set()

    stop._ask = asked


if "MOMENTS" in os.environ:
    sys.meta_path.insert(0, _Finder())
    sys.addaudithook(_audit)
