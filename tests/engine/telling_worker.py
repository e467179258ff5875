"""Processes that tell what they were given."""

import json
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import torch

from megatron_music.engine import processes

NAMES = "RANK", "WORLD_SIZE", "LOCAL_RANK", "COLOUR", "OMP_NUM_THREADS"


def tell(folder: Path) -> None:
    """Writes this process' variables and threads to a file, and its rank to both outputs."""
    told = {name: os.environ.get(name) for name in NAMES} | {"threads": torch.get_num_threads()}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(told))
    print(f"out of {os.environ['RANK']}")
    print(f"error of {os.environ['RANK']}", file=sys.stderr)


def sum_ranks(folder: Path) -> None:
    """Joins the others, and writes the sum of all ranks to a file."""
    processes.join_world()
    total = torch.tensor(torch.distributed.get_rank())
    torch.distributed.all_reduce(total)
    (folder / os.environ["RANK"]).write_text(str(int(total)))
    torch.distributed.destroy_process_group()


class AsksToStop:
    """Sends SIGTERM to the process that pickles it."""

    def __reduce__(self) -> tuple:
        os.kill(os.getpid(), signal.SIGTERM)
        return AsksToStop, ()


def wait(_: AsksToStop) -> None:
    """Waits without end."""
    threading.Event().wait()


def show_helpers() -> None:
    """Prints which signals the tracker of semaphores and the server of forks block, ignore and catch."""
    processes.launch(os.getpid, 1)
    for pid in (resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        print(*(status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt")))


if __name__ == "__main__":
    show_helpers()
