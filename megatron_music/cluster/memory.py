"""Memory of every process by what fills it, from the recipe alone.

Weights, gradients and optimizer are what megatron-core's buffers hold: weights in the precision of the layers,
gradients in FP32, and the distributed optimizer's share of FP32 master weights (none where the weights are FP32
themselves) and two moments. Reduction and parameter gather work in place in these buffers.

Activations are what the layers' backward passes keep, function by function (``engine.layers``, ``engine.kernels``,
``engine.linear``); Transformer Engine's layers keep the same tensors. The count follows Korthikanti et al. 2022
(https://arxiv.org/abs/2205.05198), section 4, for flash attention, SwiGLU, grouped queries and no dropout. A pipeline
stage keeps those of all micro-batches whose backward pass has not begun (Narayanan et al. 2021,
https://arxiv.org/abs/2104.04473, section 2.2).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from megatron_music.cluster.parameters import parameters_of_stage
from megatron_music.recipe.flops import qkv_channels
from megatron_music.recipe.phase import Phase
from megatron_music.recipe.recipe import Recipe

RECOMPUTE = "none", "selective", "full"
"""Settings of ``layout.recompute``, by what they recompute."""

CUDA_BYTES = 2**30
"""Assumed: CUDA's context, kernels and cuBLAS' workspaces, which torch's allocator does not count."""
NCCL_BYTES_A_GROUP = 2**28
"""Assumed: NCCL's channels and buffers for one group of processes, which torch's allocator does not count."""
CROSS_ENTROPY_BYTES = {"cpu": 2**21, "cuda": 2**28}
"""FP32 logits that the cross entropy works on at once (``engine.kernels``)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the fullest moment of a step.

    Attributes:
        fp8_weights: copies of the layers' matrices in FP8, as they are and transposed.
        activations: kept for the backward pass, by all micro-batches under way.
        logits: of one micro-batch, over which the cross entropy writes their gradient.
        working: tensors that live for a moment: gradients of activations, what is computed again, one matrix' gradient.
        communication: CUDA and NCCL, which ``torch.cuda.max_memory_allocated`` does not see.
    """

    weights: int
    fp8_weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    communication: int

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` should show."""
        return self.total - self.communication

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def stage_of_rank(recipe: Recipe, processes: int, rank: int) -> int:
    """The pipeline stage of a process: megatron-core numbers the processes of a stage in a row."""
    return rank // (processes // recipe.layout.pipeline)


def memory_by_rank(
    recipe: Recipe, vocabulary_size: int, processes: int, ranks: Sequence[int] | None = None, device: str = "cuda"
) -> dict[int, Memory]:
    """Memory of the processes ``ranks``, in the fullest phase; by default of the first one of every pipeline stage.

    The layout must fit: see ``layouts.divisions``. ``device`` is "cuda" or "cpu".
    """
    if ranks is None:
        ranks = range(0, processes, processes // recipe.layout.pipeline)
    stages = {rank: stage_of_rank(recipe, processes, rank) for rank in ranks}
    found = {stage: stage_memory(recipe, vocabulary_size, processes, stage, device) for stage in {*stages.values()}}
    return {rank: found[stage] for rank, stage in stages.items()}


def stage_memory(recipe: Recipe, vocabulary_size: int, processes: int, stage: int, device: str = "cuda") -> Memory:
    """Memory of each process of a pipeline stage, in the phase that fills it most."""
    layout = recipe.layout
    parameters = parameters_of_stage(recipe, vocabulary_size, stage)
    width = bytes_per_number(recipe)
    # The optimizer's state is cut over all processes that hold the same weights.
    copies = processes // (layout.tensor * layout.pipeline)
    states = 3 if recipe.is_bf16 else 2
    peaks = [_peak(recipe, vocabulary_size, processes, stage, phase, device) for phase in recipe.phases]
    activations, logits, working = max(peaks, key=sum)
    return Memory(
        weights=width * parameters.total,
        fp8_weights=2 * parameters.in_layers if recipe.fp8_scaling else 0,
        gradients=4 * parameters.trained,
        optimizer=4 * states * parameters.trained // copies,
        activations=activations,
        logits=logits,
        working=working,
        communication=_communication(recipe, processes) if device == "cuda" else 0,
    )


def bytes_per_number(recipe: Recipe) -> int:
    """Bytes of a weight or an activation."""
    return 2 if recipe.is_bf16 else 4


def _communication(recipe: Recipe, processes: int) -> int:
    layout = recipe.layout
    sizes = layout.tensor, layout.pipeline, layout.context, processes // layout.model_processes
    return CUDA_BYTES + NCCL_BYTES_A_GROUP * sum(size > 1 for size in sizes)


def activations_by_recompute(recipe: Recipe, vocabulary_size: int, processes: int, stage: int) -> dict[str, int]:
    """Activations, in the fullest phase, of a process of the stage under every setting of ``layout.recompute``."""
    found = {}
    for setting in RECOMPUTE:
        same = setting == recipe.layout.recompute
        layout = recipe.layout if same else recipe.layout.model_copy(
            update={"recompute": setting, "recompute_layers": None})  # fmt: skip
        found[setting] = stage_memory(
            recipe.model_copy(update={"layout": layout}), vocabulary_size, processes, stage
        ).activations
    return found


def _peak(
    recipe: Recipe, vocabulary_size: int, processes: int, stage: int, phase: Phase, device: str
) -> tuple[int, int, int]:
    """Activations, logits and working bytes at the fullest moment of a step of ``phase``."""
    layout, is_last = recipe.layout, stage == recipe.layout.pipeline - 1
    tokens = phase.context_tokens // layout.context * phase.micro_batch_sequences
    tensors = _Tensors(recipe, tokens)
    runs = _runs_in_flight(recipe, processes, stage, phase)
    layers = recipe.network.layers // (layout.pipeline * layout.interleave)
    activations = runs * tensors.kept_by_layers(layers)
    in_layer = tensors.while_a_layer_goes_back + tensors.computed_again_on_top(layers)
    if not is_last:
        return activations, 0, in_layer
    width, columns = bytes_per_number(recipe), vocabulary_size // layout.tensor
    activations += tensors.kept_by_final_norm
    logits = width * tokens * columns
    # A block of exponentials, and one of the logits themselves where they have to become FP32.
    in_loss = (2 if recipe.is_bf16 else 1) * min(CROSS_ENTROPY_BYTES[device], 4 * tokens * columns)
    in_output = tensors.while_a_product_goes_back(columns)
    # The logits are gone when the first layer goes back.
    return activations, logits, max(in_loss, in_output, in_layer - logits)


def _runs_in_flight(recipe: Recipe, processes: int, stage: int, phase: Phase) -> int:
    """Forward passes of a run of layers whose backward pass has not begun, at most.

    One forward, one backward: the stages behind this one, and itself. Interleaved: megatron-core's warm-up, twice the
    stages behind it and all runs of layers but the last of as many micro-batches as there are stages, and one more.
    """
    layout = recipe.layout
    copies = processes // layout.model_processes
    micro_batches = phase.batch_sequences // (copies * phase.micro_batch_sequences)
    behind = layout.pipeline - stage - 1
    if layout.interleave == 1:
        return min(micro_batches, behind + 1)
    warm_up = 2 * behind + (layout.interleave - 1) * layout.pipeline
    return min(micro_batches * layout.interleave, warm_up + 1)


class _Tensors:
    """Bytes of what one micro-batch of ``tokens`` tokens, on one process, keeps and makes."""

    def __init__(self, recipe: Recipe, tokens: int):
        self.recipe, self.tokens = recipe, tokens
        self.width = bytes_per_number(recipe)
        network, layout = recipe.network, recipe.layout
        self.hidden = network.hidden_size
        self.ffn = network.ffn_hidden_size // layout.tensor
        self.split = layout.tensor if layout.sequence else 1
        self.residual = self.width * tokens * self.hidden // self.split

    def kept_by_layers(self, layers: int) -> int:
        """By a run of layers until its backward pass."""
        layout = self.recipe.layout
        if layout.recompute == "full":
            again = layers if layout.recompute_layers is None else layout.recompute_layers
            return again * self.residual + (layers - again) * self._layer
        return layers * self._layer

    @property
    def kept_by_final_norm(self) -> int:
        """Its input and output, and a scale a token."""
        return 2 * self.residual + self._scale

    @property
    def _layer(self) -> int:
        return (
            self._norms + self._attention + (0 if self.recipe.layout.recompute == "selective" else self._feed_forward)
        )

    @property
    def _scale(self) -> int:
        return 4 * self.tokens // self.split

    @property
    def _norms(self) -> int:
        """Inputs, which are the residual stream; outputs, for the matrices behind them; and a scale a token."""
        outputs = sum(self._kept_input(self.hidden, target) for target in ("attention", "mlp")) // self.split
        return 2 * self.residual + outputs + 2 * self._scale

    @property
    def _attention(self) -> int:
        """Turned queries and keys, values, the result by heads and side by side.

        And a logarithm of a sum, FP32, for every head and token; and the result once more where FP8 needs a copy.
        """
        network, tensor = self.recipe.network, self.recipe.layout.tensor
        channels = qkv_channels(network) + 2 * self.hidden
        kept = self.tokens * (self.width * channels + 4 * network.attention_heads) // tensor
        return kept + (self._kept_input(self.hidden // tensor, "attention") if self.recipe.fp8_scaling else 0)

    @property
    def _feed_forward(self) -> int:
        """Gate and up projection, and their product."""
        return self.width * self.tokens * 2 * self.ffn + self._kept_input(self.ffn, "mlp")

    def _kept_input(self, channels: int, target: str) -> int:
        """A matrix' input, kept for the gradient of the matrix or of its adapter; in FP8 where the product is."""
        lora = self.recipe.lora
        if lora is not None and target not in lora.targets:
            return 0
        # Dropout keeps its result beside its input, and which channels it left.
        dropped = self.width + 1 if lora is not None and lora.dropout else 0
        return self.tokens * channels * ((1 if self.recipe.fp8_scaling else self.width) + dropped)

    def computed_again_on_top(self, layers: int) -> int:
        """By one layer of a run, just before its backward pass, above what the run keeps.

        megatron-core computes the first layers of a run again. Those behind them go back, and are gone, before.
        """
        recompute, again = self.recipe.layout.recompute, self.recipe.layout.recompute_layers
        if recompute == "none":
            return 0
        if recompute == "selective":
            return self._feed_forward
        gone = 0 if again is None else (layers - again) * self._layer
        return max(0, self._layer - self.residual - gone)

    @property
    def while_a_layer_goes_back(self) -> int:
        """At the feed-forward layer's first product, the widest of a layer."""
        gate_and_up = 2 * self.ffn
        return self.residual + self.width * self.tokens * gate_and_up + self.while_a_product_goes_back(gate_and_up)

    def while_a_product_goes_back(self, outputs: int) -> int:
        """Gradients of input and matrix; the input where it has to be gathered; a place holder like the matrix."""
        whole = self.width * self.tokens * self.hidden
        matrix = self.width * outputs * self.hidden
        return whole * (2 if self.split > 1 else 1) + 2 * matrix
