"""Which checkpoint a run goes on from: the newest that holds the bytes that were written."""

import functools
from pathlib import Path

import torch

from megatron_music.engine.integrity import damaged, size_fault, sum_fault
from megatron_music.engine.processes import from_first
from megatron_music.errors import InputError
from megatron_music.progress import console
from megatron_music.training.run_folder import CheckpointState, RunFolder


def newest_whole(folder: RunFolder, before: int | None = None) -> tuple[Path, CheckpointState] | None:
    """The newest whole checkpoint of a run, from before a step where one is named; None where it has never had one.

    All processes call it. Damaged ones are passed over, said, and renamed, so that they are not in the way when their
    step comes again.

    Raises:
        InputError: all that there are or were are damaged.
    """
    pass_over = functools.partial(_pass_over, folder)
    while (newest := from_first(lambda: folder.newest_checkpoint(before, pass_over))) is not None:
        fault = _sum_fault(newest[0])
        if fault is None:
            return newest
        from_first(functools.partial(pass_over, newest[0], fault))
    aside = from_first(folder.damaged_checkpoints)
    if aside:
        what = f"no checkpoint of this run is whole ({', '.join(path.name for path in aside)})"
        raise InputError(
            folder.checkpoints, what, "restore one as step_N, or choose another run folder (--set run=...)"
        )
    return None


def check_whole(checkpoint: Path) -> None:
    """Raises InputError where a checkpoint that was named is damaged. All processes call it."""
    fault = from_first(lambda: size_fault(checkpoint)) or _sum_fault(checkpoint)
    if fault is not None:
        raise damaged(checkpoint, fault)


def _sum_fault(checkpoint: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, of which every process reads a share."""
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    faults = [None] * processes
    torch.distributed.all_gather_object(faults, sum_fault(checkpoint, rank, processes))
    return next(filter(None, faults), None)


def _pass_over(folder: RunFolder, checkpoint: Path, fault: str) -> None:
    aside = folder.set_aside(checkpoint)
    console.print(f"{checkpoint} is damaged and passed over: {fault}; it is kept as {aside.name}")
