"""What the tests of checkpoints run in processes of their own."""

import os
import shutil
from pathlib import Path

import torch

from megatron_music.engine import processes
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.callbacks.checkpoints import CheckpointWriter
from megatron_music.training.run import run_process


def run_all(recipes: list[Recipe]) -> None:
    """Trains recipes one after another."""
    for recipe in recipes:
        run_process(recipe, None)


def run_damaged(recipe: Recipe, damages: dict[str, dict[str, str]], ports: list[str]) -> None:
    """Goes on in copies of a run whose checkpoints are ``damaged``; an error is left in the copy.

    Every run meets at a port of its own.
    """
    for (name, damaged), port in zip(damages.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        copy = recipe.run.with_name(name)
        if os.environ["RANK"] == "0":
            shutil.copytree(recipe.run, copy)
            for step, damage in damaged.items():
                spoil(copy / "checkpoints" / step, damage)
        try:
            run_process(recipe.model_copy(update={"run": copy}), None)
        except InputError as error:
            if os.environ["RANK"] == "0":
                (copy / "error.txt").write_text(str(error))
            processes.leave()


def spoil(checkpoint: Path, damage: str) -> None:
    """Damages the largest file of a checkpoint, or takes its list, or all of its files."""
    file = max(checkpoint.iterdir(), key=lambda path: (path.stat().st_size, path.name))
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "bit-flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "listless":
        (checkpoint / "files.json").unlink()
    else:
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()


def run_with_a_failing_shard(recipe: Recipe) -> None:
    """A source's tokens go after the first step, when those of the second may have been read."""
    after_step = CheckpointWriter.after_step

    def and_cut(self: CheckpointWriter, trainer, report) -> None:
        after_step(self, trainer, report)
        if report.step.index == 0 and torch.distributed.get_rank() == 0:
            os.truncate(recipe.corpus / "songs.bin", 0)

    CheckpointWriter.after_step = and_cut
    run_process(recipe, None)
