"""Low-rank adapters beside the frozen matrices of megatron-core's layers: y = W x + alpha / rank * B A x.

After Hu et al. 2021 (https://arxiv.org/abs/2106.09685): A starts Kaiming-uniform, B at zero, so that the network starts
as the one that it adapts. Where megatron-core keeps several matrices in one (queries, keys and values; gate and up
projection) they share an A, and B has rows for each.

Of a matrix that tensor parallelism cuts by outputs, B is cut with it and A is whole on every process; of one that is
cut by inputs, A is cut with it and B is whole. So only rank channels a token are communicated. A whole matrix has its
whole gradient on every process or, along a split sequence, a share that megatron-core sums with those of the norms.
"""

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_music.corpus.shuffle import seeded_bits
from megatron_music.engine.linear import ColumnLinear, Product, RowLinear
from megatron_music.recipe.recipe import Lora, Recipe

TARGETS = {
    "attention": ("self_attention.linear_qkv", "self_attention.linear_proj"),
    "mlp": ("mlp.linear_fc1", "mlp.linear_fc2"),
}
"""The layers' matrices that each target of a recipe stands for."""
PARTS = "lora_A", "lora_B"


class _Adapted:
    """A linear layer with an adapter, made of a layer that is there: ``AdaptedColumnLinear.adapt(layer, ...)``.

    Attributes:
        lora_A: (rank, inputs), or this process' share of the inputs.
        lora_B: (outputs, rank), or this process' share of the outputs.
    """

    cut: dict[str, int]
    """The dimension in which tensor parallelism cuts each matrix that it cuts."""

    @classmethod
    def adapt(cls, linear: torch.nn.Module, lora: Lora, *key: int | str) -> None:
        """Makes ``linear`` a layer of this class; ``key`` decides what A starts with, the same on every layout."""
        inputs, outputs, weight = linear.input_size, linear.output_size, linear.weight
        linear.__class__ = cls
        linear.scale, linear.dropout = lora.scale, lora.dropout
        generator = torch.Generator().manual_seed(int(seeded_bits(1, *key)[0] >> 1))
        # torch's bound for a linear layer: Kaiming's for a slope of sqrt(5).
        down = torch.empty(lora.rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        for name, whole in zip(PARTS, (down, torch.zeros(outputs, lora.rank)), strict=True):
            axis = cls.cut.get(name)
            own = whole if axis is None else whole.chunk(linear.tp_group.size(), axis)[linear.tp_group.rank()]
            # A copy: a share must not keep the whole in memory.
            part = torch.nn.Parameter(own.to(weight.device, weight.dtype, copy=True).contiguous())
            if axis is None:
                part.sequence_parallel = linear.sequence_parallel
            else:
                tensor_parallel.set_tensor_model_parallel_attributes(part, True, axis, 1)
            linear.register_parameter(name, part)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """The layer's tensors and how they are cut."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            self.cut,
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )

    def _dropped(self, x: torch.Tensor, is_share: bool) -> torch.Tensor:
        """``x`` with dropout; where the processes hold shares of a tensor, each draws for its own."""
        if not (self.training and self.dropout):
            return x
        if not is_share:
            return torch.nn.functional.dropout(x, self.dropout)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return torch.nn.functional.dropout(x, self.dropout)


class AdaptedColumnLinear(_Adapted, ColumnLinear):
    """A matrix cut by outputs."""

    cut = {"weight": 0, "lora_B": 0}

    def forward(self, input_: torch.Tensor, *arguments, **options) -> tuple[torch.Tensor, None]:
        """The layer's output and the adapter's, (sequence, batch, share of the outputs), and no bias."""
        output, bias = super().forward(input_, *arguments, **options)
        group, sequence_parallel = self.tp_group, self.sequence_parallel
        narrow = Product.apply(self._dropped(input_, sequence_parallel), self.lora_A, group, False, False)
        change = Product.apply(narrow, self.lora_B, group, sequence_parallel, self.allreduce_dgrad)
        return torch.add(output, change, alpha=self.scale), bias


class AdaptedRowLinear(_Adapted, RowLinear):
    """A matrix cut by inputs."""

    cut = {"weight": 1, "lora_A": 1}

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The layer's output and the adapter's, (share of the sequence, batch, outputs), and no bias."""
        output, bias = super().forward(input_)
        group = self.tp_group
        narrow = Product.apply(self._dropped(input_, group.size() > 1), self.lora_A, group, False, False)
        spread = reduce_scatter_to_sequence_parallel_region if self.sequence_parallel else (
            reduce_from_tensor_model_parallel_region)  # fmt: skip
        change = Product.apply(spread(narrow, group=group), self.lora_B, group, False, False)
        return torch.add(output, change, alpha=self.scale), bias


def add_adapters(chunk: torch.nn.Module, recipe: Recipe) -> None:
    """Gives the layers of a run their adapters, and freezes whatever the recipe does not train."""
    lora = recipe.lora
    for layer in chunk.decoder.layers:
        for name in (name for target in lora.targets for name in TARGETS[target]):
            linear = layer.get_submodule(name)
            kind = AdaptedRowLinear if isinstance(linear, RowLinear) else AdaptedColumnLinear
            kind.adapt(linear, lora, "lora", recipe.seed, layer.layer_number, name)
    if chunk.pre_process and recipe.layout.recompute != "none":
        # Layers that are computed again take part in the backward pass only where their input does.
        chunk.embedding.register_forward_hook(lambda _module, _given, output: output.requires_grad_())
    for name, parameter in chunk.named_parameters():
        is_embedding = name in ("embedding.word_embeddings.weight", "output_layer.weight")
        parameter.requires_grad = is_adapter(name) or lora.full_embeddings and is_embedding


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.endswith(PARTS)


def seed_dropout(seed: int, step: int) -> None:
    """Sets the generators from which dropout draws, so that a step that is done again draws the same.

    Copies of the model, parts of a sequence and pipeline stages draw their own numbers.
    """
    copy = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    tensor_parallel.model_parallel_cuda_manual_seed(int(seeded_bits(1, "dropout", seed, step, copy, stage)[0] >> 33))
