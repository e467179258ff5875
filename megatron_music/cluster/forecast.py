"""How long a run takes at a stated MFU, and what its checkpoints weigh."""

from dataclasses import dataclass

from megatron_music.cluster.memory import bytes_per_number
from megatron_music.cluster.parameters import whole_parameters
from megatron_music.recipe.flops import flops_per_token
from megatron_music.recipe.gpus import Gpu
from megatron_music.recipe.phase import Phase
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class PhaseTime:
    """One phase on the clock.

    Attributes:
        flops_per_token: forward and backward, attention at the phase's context (``recipe.flops``).
        tokens_per_second: of one GPU.
    """

    phase: str
    tokens: int
    steps: int
    flops_per_token: float
    tokens_per_second: float
    step_seconds: float
    days: float
    gpu_hours: float


@dataclass(frozen=True)
class Checkpoint:
    """Bytes of a checkpoint: with the optimizer, of the weights alone, and of all that a run leaves on the disk."""

    full: int
    weights: int
    kept: int
    on_disk: int


def forecast(recipe: Recipe, vocabulary_size: int, gpus: int, gpu: Gpu, mfu: float) -> list[PhaseTime]:
    """Every phase on ``gpus`` GPUs that reach ``mfu`` of the dense BF16 peak, whatever the precision.

    MFU counts the bubble of a pipeline and whatever is computed again as time lost.
    """
    found = []
    for span in phase_spans(recipe):
        tokens = span.last_token - span.first_token
        flops = flops_per_token(recipe.network, vocabulary_size, span.phase.context_tokens)
        speed = mfu * gpu.bf16_flops / flops
        seconds = tokens / (speed * gpus)
        found.append(PhaseTime(
            phase=span.phase.name, tokens=tokens, steps=span.steps, flops_per_token=flops, tokens_per_second=speed,
            step_seconds=span.phase.step_tokens / (speed * gpus), days=seconds / DAY, gpu_hours=gpus * seconds / HOUR,
        ))  # fmt: skip
    return found


def bubble(recipe: Recipe, copies: int, phase: Phase) -> float:
    """Share of a step that the pipeline's processes wait for each other, as passes of equal length would.

    (stages - 1) / (interleave x micro-batches + stages - 1): Narayanan et al. 2021, https://arxiv.org/abs/2104.04473.
    """
    layout = recipe.layout
    micro_batches = phase.batch_sequences // (copies * phase.micro_batch_sequences)
    return (layout.pipeline - 1) / (layout.interleave * micro_batches + layout.pipeline - 1)


def checkpoint(recipe: Recipe, vocabulary_size: int) -> Checkpoint:
    """What is trained, in the precision of the layers, and FP32 master weights and two moments beside it.

    A run keeps the latest ones and those at the end of every phase.
    """
    trained = whole_parameters(recipe, vocabulary_size).trained
    weights = bytes_per_number(recipe) * trained
    full = weights + 12 * trained
    kept = recipe.checkpoints.keep + len(recipe.phases)
    return Checkpoint(full, weights, kept, kept * full)
