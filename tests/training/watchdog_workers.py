"""Processes of which some hang."""

import ctypes
import os
import threading
from pathlib import Path

import torch

from megatron_music.engine.processes import join_world
from megatron_music.training.watchdog import Watchdog


def hang(folder: Path) -> None:
    """Of three, one hangs in Python, one in a call that lets no Python run, and one waits for both."""
    join_world()
    with Watchdog(folder, hang_seconds=2) as watchdog:
        watchdog.beat("after step 7: the next one")
        {"0": _wait_for_others, "1": _hang_in_python, "2": _hang_outside_of_python}[os.environ["RANK"]]()


def _wait_for_others() -> None:
    torch.distributed.all_reduce(torch.ones(1))


def _hang_in_python() -> None:
    threading.Event().wait()


def _hang_outside_of_python() -> None:
    ctypes.PyDLL(None).pause()
