"""What the training tests run in processes of their own."""

import shutil
from pathlib import Path

from megatron_music.recipe.recipe import Checkpoints, Recipe
from megatron_music.training.run import run_process


def run_then_resume(recipe: Recipe, steps: list[int]) -> None:
    """Trains ``recipe`` to its end, then on from each of the checkpoints after ``steps``, each in a copy of the run."""
    run_process(recipe, None)
    for step in steps:
        copy = recipe.run.with_name(f"resumed_{step}")
        kept = copy / "checkpoints" / f"step_{step:06d}"
        shutil.copytree(recipe.run / "checkpoints" / kept.name, kept)
        shutil.copy(recipe.run / "metrics.jsonl", copy / "metrics.jsonl")
        seldom = Checkpoints(every_steps=100)
        run_process(recipe.model_copy(update={"run": copy, "checkpoints": seldom}), None)


def run_and_branch(runs: list[tuple[Recipe, Path | None, bool]], forgotten: Path) -> None:
    """Trains recipes one after another, each from a checkpoint of one before; then the last again from its start.

    That one is found as if it had been killed before its first checkpoint, and is not told again where it began; what
    it had measured is left in ``forgotten``.
    """
    for recipe, branch_from, fresh_optimizer in runs:
        run_process(recipe, branch_from, fresh_optimizer)
    recipe = runs[-1][0]
    shutil.rmtree(recipe.run / "checkpoints")
    shutil.copy(recipe.run / "metrics.jsonl", forgotten)
    run_process(recipe, None)
