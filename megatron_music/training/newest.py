"""Which checkpoint a run goes on from: the newest that holds the bytes that were written."""

from pathlib import Path

import torch

from megatron_music.engine.integrity import damaged, size_fault, sum_fault
from megatron_music.engine.processes import from_first
from megatron_music.errors import InputError
from megatron_music.progress import console
from megatron_music.training.run_folder import CheckpointState, RunFolder, read_state


def newest_whole(folder: RunFolder, before: int | None = None) -> tuple[Path, CheckpointState] | None:
    """The newest whole checkpoint of a run, from before a step where one is named; None where it has never had one.

    All processes call it. Damaged ones are passed over, said, and renamed, so that they are not in the way when their
    step comes again.

    Raises:
        InputError: all that there are or were are damaged.
    """
    for checkpoint in reversed(from_first(lambda: folder.step_folders(before))):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint, from_first(lambda path=checkpoint: read_state(path))
        from_first(lambda path=checkpoint, what=fault: _pass_over(folder, path, what))
    aside = from_first(folder.damaged_checkpoints)
    if aside:
        what = f"no checkpoint of this run is whole ({', '.join(path.name for path in aside)})"
        raise InputError(
            folder.checkpoints, what, "restore one as step_N, or choose another run folder (--set run=...)"
        )
    return None


def check_whole(checkpoint: Path) -> None:
    """Raises InputError where a checkpoint that was named is damaged. All processes call it."""
    fault = fault_of(checkpoint)
    if fault is not None:
        raise damaged(checkpoint, fault)


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: sizes first, then sums, of which every process reads a share."""
    fault = from_first(lambda: size_fault(checkpoint))
    if fault is None:
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        faults = [None] * processes
        torch.distributed.all_gather_object(faults, sum_fault(checkpoint, rank, processes))
        fault = next(filter(None, faults), None)
    return fault


def _pass_over(folder: RunFolder, checkpoint: Path, fault: str) -> None:
    aside = folder.set_aside(checkpoint)
    console.print(f"{checkpoint} is damaged and passed over: {fault}; it is kept as {aside.name}", soft_wrap=True)
