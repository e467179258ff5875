"""What this machine can run: whether there is a GPU and Transformer Engine, and what a recipe needs of them."""

from importlib.util import find_spec

import torch

from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe


def transformer_engine_present() -> bool:
    """Whether Transformer Engine's layers can be used: it is installed and there is a GPU."""
    return torch.cuda.is_available() and find_spec("transformer_engine") is not None


def check_fp8(recipe: Recipe) -> None:
    """Raises InputError where this process' GPU can't compute in the recipe's FP8; of use once it has a GPU."""
    if recipe.fp8_scaling is None or not transformer_engine_present():
        return
    from transformer_engine.pytorch import is_fp8_available, is_fp8_block_scaling_available

    is_blockwise = recipe.fp8_scaling == "blockwise"
    available, reason = (is_fp8_block_scaling_available if is_blockwise else is_fp8_available)(return_reason=True)
    if not available:
        raise InputError("precision", f"{recipe.precision} does not work on this GPU: {reason}", "set precision: bf16")


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
