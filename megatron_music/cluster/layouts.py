"""Layouts: what has to divide what, and which of all layouts fit a number of GPUs and their memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_music.cluster.memory import RECOMPUTE, memory_by_rank
from megatron_music.recipe.gpus import Gpu
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.recipe import FP8_MULTIPLE, Recipe

NODE_GPUS = 8
"""GPUs that NVLink joins; tensor parallelism communicates in every layer and stays inside."""
USABLE = 0.95
"""Share of a GPU's memory that a plan may fill: the allocator leaves gaps."""
RULE = """Least recomputation first, then least model parallelism;
of equal ones tensor (inside a node of 8) before context before pipeline."""
"""How proposals are ranked, in words."""


@dataclass(frozen=True)
class Division:
    """A number that has to be a multiple of another."""

    what: str
    number: int
    by: str
    divisor: int

    @property
    def holds(self) -> bool:
        """Whether it divides."""
        return self.number % self.divisor == 0


@dataclass(frozen=True)
class Proposal:
    """A layout that starts and fits.

    Attributes:
        copies: data-parallel copies of the model.
        micro_batches: of one step on one process, by phase.
        peak_bytes: memory of the fullest process.
    """

    layout: Layout
    copies: int
    micro_batches: tuple[int, ...]
    peak_bytes: int


def divisions(recipe: Recipe, vocabulary_size: int, gpus: int) -> list[Division]:
    """Everything that has to divide for the recipe's layout to start on ``gpus`` GPUs."""
    network, layout = recipe.network, recipe.layout
    tensor, stages = ("tensor", layout.tensor), layout.pipeline * layout.interleave
    found = [
        Division("GPUs", gpus, "tensor x pipeline x context", layout.model_processes),
        Division("attention heads", network.attention_heads, *tensor),
        Division("key-value heads", network.key_value_heads, *tensor),
        Division("feed-forward channels", network.ffn_hidden_size, *tensor),
        Division("padded vocabulary", vocabulary_size, *tensor),
        Division("layers", network.layers, "pipeline x interleave", stages),
    ]
    if recipe.fp8_scaling is not None:
        found += _fp8_divisions(recipe)
    for context in sorted({phase.context_tokens for phase in recipe.phases}):
        if layout.sequence:
            found.append(Division("context", context, "tensor x context", layout.tensor * layout.context))
        if layout.context > 1:
            found.append(Division("context", context, "2 x context", 2 * layout.context))
    copies = max(1, gpus // layout.model_processes)
    for phase in recipe.phases:
        for batch in phase.batch_sizes:
            size = copies * phase.micro_batch_sequences
            found.append(Division(f"batch of {phase.name}", batch, "copies x micro-batch", size))
            if layout.interleave > 1:
                found.append(Division(f"micro-batches of {phase.name}", batch // size, "pipeline", layout.pipeline))
    return found


def _fp8_divisions(recipe: Recipe) -> list[Division]:
    """All sides of a matrix product."""
    layout, network = recipe.layout, recipe.network
    share = f"{FP8_MULTIPLE} x tensor (FP8)", FP8_MULTIPLE * layout.tensor
    cut = layout.context * (layout.tensor if layout.sequence else 1)
    by = f"{FP8_MULTIPLE} x processes of a sequence (FP8)"
    tokens = sorted({phase.micro_batch_sequences * phase.context_tokens for phase in recipe.phases})
    return [
        Division("hidden size", network.hidden_size, *share),
        Division("feed-forward channels", network.ffn_hidden_size, *share),
        *(Division("tokens of a micro-batch", count, by, FP8_MULTIPLE * cut) for count in tokens),
    ]


def fits(peak_bytes: int, gpu: Gpu) -> bool:
    """Whether a process of this peak runs on the GPU."""
    return peak_bytes <= USABLE * gpu.memory_bytes


def peak_bytes(recipe: Recipe, vocabulary_size: int, gpus: int) -> int:
    """Memory of the fullest process."""
    return max(memory.total for memory in memory_by_rank(recipe, vocabulary_size, gpus).values())


def proposals(recipe: Recipe, vocabulary_size: int, gpus: int, gpu: Gpu) -> list[Proposal]:
    """Layouts that start on ``gpus`` GPUs and fit their memory, the best first by ``RULE``.

    Batches and micro-batches stay as the recipe has them. Of one way to spread the model only the least recomputation
    that fits is told.
    """
    found = []
    for tensor, context, pipeline in _spreads(recipe, gpus):
        for recompute in RECOMPUTE:
            layout = recipe.layout.model_copy(
                update=dict(
                    tensor=tensor, context=context, pipeline=pipeline, interleave=1, sequence=tensor > 1,
                    recompute=recompute, recompute_layers=None, tensor_overlap=False, cuda_graphs=False,
                )
            )  # fmt: skip
            proposed = recipe.model_copy(update={"layout": layout})
            if not all(division.holds for division in divisions(proposed, vocabulary_size, gpus)):
                break
            peak = peak_bytes(proposed, vocabulary_size, gpus)
            if fits(peak, gpu):
                found.append(Proposal(layout, *_shares(proposed, gpus), peak))
                break
    return sorted(found, key=_rank)


def _spreads(recipe: Recipe, gpus: int) -> Iterator[tuple[int, int, int]]:
    """Tensor, context and pipeline sizes."""
    powers = [2**power for power in range(gpus.bit_length())]
    for tensor in (size for size in powers if size <= NODE_GPUS):
        for context in powers:
            for pipeline in range(1, recipe.network.layers + 1):
                if gpus % (tensor * context * pipeline) == 0:
                    yield tensor, context, pipeline


def _shares(recipe: Recipe, gpus: int) -> tuple[int, tuple[int, ...]]:
    copies = gpus // recipe.layout.model_processes
    return copies, tuple(phase.batch_sequences // (copies * phase.micro_batch_sequences) for phase in recipe.phases)


def _rank(proposal: Proposal) -> tuple:
    layout = proposal.layout
    return RECOMPUTE.index(layout.recompute), layout.model_processes, layout.pipeline, layout.context
