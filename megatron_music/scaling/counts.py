"""Which parameters a scaling law counts, and the operations of a run."""

from typing import Literal, get_args

from megatron_music.errors import InputError
from megatron_music.recipe.flops import flops_per_token, multiplying_parameters, parameter_count
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Network, Recipe

Counted = Literal["layers", "multiplying", "all"]
COUNTED: dict[Counted, str] = {
    "layers": "parameters without both embeddings",
    "multiplying": "parameters without the input embedding",
    "all": "all parameters",
}
"""What is counted, in words. ``layers`` is the default: of the released vocabulary's 83,968 rows a corpus of one codec
uses about 33,000, and below 0.1B both embeddings would be most of what is counted. Losses lie on one curve over that
count (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, figure 6)."""


def check_counted(counted: str) -> Counted:
    """Raises InputError for a count that is not known."""
    if counted not in get_args(Counted):
        raise InputError("--count", f"{counted!r} is not known", f"choose one of {', '.join(COUNTED)}")
    return counted


def parameters_of(network: Network, vocabulary_size: int, counted: Counted = "layers") -> int:
    """Parameters of a network, as ``counted``; with ``layers`` the vocabulary's size does not matter."""
    if counted == "layers":
        return multiplying_parameters(network, 0)
    if counted == "multiplying":
        return multiplying_parameters(network, vocabulary_size)
    return parameter_count(network, vocabulary_size)


def run_flops(recipe: Recipe, vocabulary_size: int) -> float:
    """Operations of a whole run by the convention of ``recipe.flops``: every phase's attention at its context.

    With ``vocabulary_size`` 0 the output matrix is left out.
    """
    return sum(
        flops_per_token(recipe.network, vocabulary_size, span.phase.context_tokens)
        * (span.last_token - span.first_token)
        for span in phase_spans(recipe)
    )
