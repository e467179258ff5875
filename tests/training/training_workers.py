"""What the training tests run in processes of their own."""

import shutil

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
