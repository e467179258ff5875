"""What the tests of the scaling room run in processes of their own."""

from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run import run_process


def train_all(recipes: list[Recipe]) -> None:
    """Trains recipes one after another."""
    for recipe in recipes:
        run_process(recipe, None)
