"""One of two nodes, as srun starts it: ``elastic_worker.py FOLDER``."""

import os
import signal
import sys
from pathlib import Path

import torch

from megatron_music.engine.elastic import start
from megatron_music.engine.processes import join_world
from megatron_music.exits import RunEnded, Stopped


def lose_one(folder: Path) -> None:
    """The process of the second node is killed the first time; then both sum, and stop as if they were asked to."""
    join_world()
    rank = torch.distributed.get_rank()
    if rank == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.tensor([rank + 1])
    torch.distributed.all_reduce(total)
    (folder / str(rank)).write_text(f"{int(total)} of {torch.distributed.get_world_size()}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    raise Stopped("as asked")


if __name__ == "__main__":
    # Importable under its own name, by which the processes find the function.
    from elastic_worker import lose_one as function

    try:
        start(function, 1, Path(sys.argv[1]), restarts=1)
    except RunEnded as ended:
        print(ended)
        sys.exit(ended.code)
