"""What the tests of skipped updates run in processes of their own."""

import os
import signal
from collections.abc import Sequence

import torch

from megatron_music.engine.engine import Engine
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run import run_process
from megatron_music.training.run_folder import RunFolder


def run_all_with_nan(runs: Sequence[tuple[Recipe, Sequence[int], str]]) -> None:
    """Trains recipes one after another, each with a NaN in one process' gradient at steps numbered from 1.

    Each has a port of its own, since a process that is early would meet those of the run before.
    """
    for recipe, steps, port in runs:
        os.environ["MASTER_PORT"] = port
        run_with_nan(recipe, steps)


def run_with_nan(recipe: Recipe, steps: Sequence[int]) -> None:
    """Trains ``recipe`` with a NaN in the gradient of process 1 at ``steps``."""
    plain = Engine.forward_backward

    def spoilt(engine, batches, train=True, step=0, **more):
        table = plain(engine, batches, train=train, step=step, **more)
        if train and step + 1 in steps and torch.distributed.get_rank() == 1:
            for chunk in engine.chunks:
                for buffer in chunk.buffers:
                    buffer.grad_data.fill_(torch.nan)
        return table

    Engine.forward_backward = spoilt
    try:
        run_process(recipe, None)
    finally:
        Engine.forward_backward = plain


def run_with_nan_and_die(recipe: Recipe, steps: Sequence[int]) -> None:
    """The same, killed in its rollback: the record is written, and nothing else."""
    undo = RunFolder.remove_undone

    def die(folder, troubles):
        if troubles.rollbacks:
            os.kill(os.getpid(), signal.SIGKILL)
        undo(folder, troubles)

    RunFolder.remove_undone = die
    run_with_nan(recipe, steps)
