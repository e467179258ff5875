"""What this machine can run: whether there is a GPU and Transformer Engine, and what a recipe needs of them."""

from importlib.util import find_spec

import torch

from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe


def transformer_engine_present() -> bool:
    """Whether Transformer Engine's layers can be used: it is installed and there is a GPU."""
    return torch.cuda.is_available() and find_spec("transformer_engine") is not None


def check_hardware(recipe: Recipe) -> None:
    """Raises InputError where the recipe asks for what this machine does not have; starts nothing."""
    field = recipe.needs_transformer_engine or ("layout.cuda_graphs: true" if recipe.layout.cuda_graphs else None)
    if field is None:
        return
    name, _, value = field.partition(": ")
    if not torch.cuda.is_available():
        raise InputError(
            name, f"{value} needs a GPU, and there is none here", "train on a GPU, or leave this field out"
        )
    if recipe.needs_transformer_engine and not transformer_engine_present():
        mend = "pip install 'megatron-music[gpu]', or leave this field out"
        raise InputError(name, f"{value} needs Transformer Engine, which is not installed", mend)
