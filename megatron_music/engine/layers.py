"""Layers of our own where Transformer Engine is absent: attention, norm, and the specification that uses them."""

import functools
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules, apply_swiglu_sharded_factory
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_music.engine import context
from megatron_music.engine.kernels import RMSNormalize, RotaryHeads, SwiGLU
from megatron_music.engine.linear import ColumnLinear, RowLinear


class RMSNorm(torch.nn.RMSNorm):
    """RMS norm whose gain is known to be shared along the sequence, so that its gradient is summed over that group."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_kwargs):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalizes the last dimension; on a GPU by torch's fused kernel."""
        return super().forward(x) if x.is_cuda else RMSNormalize.apply(x, self.weight, self.eps)


@dataclass
class PackedDocuments(PackedSeqParams):
    """What tells ``CausalSelfAttention`` where documents end: ``lengths`` in tokens of those in each sequence."""

    lengths: tuple[tuple[int, ...], ...] = ()


def packed_documents(lengths: tuple[tuple[int, ...], ...] | None) -> PackedDocuments | None:
    """The lengths of documents on their way through megatron-core's network."""
    if lengths is None:
        return None
    tokens = sum(lengths[0])
    return PackedDocuments(qkv_format="sbhd", max_seqlen_q=tokens, max_seqlen_kv=tokens, lengths=lengths)


class CausalSelfAttention(SelfAttention):
    """Self-attention with RoPE on ``scaled_dot_product_attention``: flash kernels on CPU and GPU, no score matrix."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: PackedDocuments | None = None,
        **unused: object,
    ) -> tuple[torch.Tensor, None]:
        """Attends causally, and within documents where ``packed_seq_params`` says where they end.

        Positions count from the start of the sequence in any case: RoPE turns queries and keys by their distance, so
        that a document's attention is the same wherever it stands.

        Args:
            hidden_states: (sequence, batch, hidden).
            attention_mask: must be None: the mask is the causal one.
            rotary_pos_emb: (sequence, 1, 1, head size) angles, the second half of the channels repeating the first.
            unused: what megatron-core passes to other kinds of attention; all None.

        Returns:
            (sequence, batch, hidden) and no bias.
        """
        assert attention_mask is None and rotary_pos_emb is not None
        assert all(value is None for value in unused.values()), unused
        mixed, _ = self.linear_qkv(hidden_states)
        # Kept on the CPU alone: a CUDA graph of a layer may not read what another has made.
        rotation = _rotation.__wrapped__ if mixed.is_cuda else _rotation
        cosine, sine = rotation(rotary_pos_emb, mixed.dtype)
        query, key, value = RotaryHeads.apply(mixed, cosine, sine, self.num_query_groups_per_partition)
        if packed_seq_params is not None:
            attended = _attend_within(query, key, value, packed_seq_params.lengths)
        elif self.pg_collection.cp.size() > 1:
            attended = context.attention(query, key, value, self.pg_collection.cp)
        else:
            attended = _attend(query, key, value)
        return self.linear_proj(attended.permute(2, 0, 1, 3).flatten(2))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention, (batch, heads, sequence, head size)."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def _attend_within(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[tuple[int, ...], ...]
) -> torch.Tensor:
    """Causal attention within documents of ``lengths``, which sum to the sequence, for each of the batch.

    Each document is attended on its own: flash kernels take no mask of blocks, and this computes no score outside them.
    """
    rows = []
    for row, documents in enumerate(lengths):
        parts = (tensor[row : row + 1].split(documents, dim=2) for tensor in (query, key, value))
        rows.append(torch.cat([_attend(*document) for document in zip(*parts, strict=True)], dim=2))
    return torch.cat(rows)


@functools.lru_cache(maxsize=8)
def _rotation(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, (sequence, head size / 2), for all layers: megatron-core keeps the tensor of angles."""
    half = angles[:, 0, 0, : angles.shape[-1] // 2]
    return half.cos().to(dtype), half.sin().to(dtype)


class GatedMLP(MLP):
    """Megatron-core's feed-forward layer with SwiGLU in few passes."""

    def __init__(self, config: TransformerConfig, **_kwargs: object):
        super().__init__(
            config,
            MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear),
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )

    def forward(self, hidden_states: torch.Tensor, **_kwargs: object) -> tuple[torch.Tensor, None]:
        """Maps (sequence, batch, hidden) to the same shape and no bias."""
        gate_and_up, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(SwiGLU.apply(gate_and_up))

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Megatron-core's, with the rows of an adapter's B laid out as those of the matrix: gate, then up."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        name = f"{prefix}linear_fc1.lora_B"
        if name in state:
            is_single = metadata.get("singleton_local_shards", False)
            state[name] = apply_swiglu_sharded_factory(state[name], sharded_offsets, is_single)
        return state


class NoCoreAttention(torch.nn.Module):
    """What megatron-core's attention is given where ``CausalSelfAttention`` does its work."""

    def __init__(self, **_kwargs: object):
        super().__init__()


def local_block_spec(layers: int) -> TransformerBlockSubmodules:
    """A stack of ``layers`` Llama layers from megatron-core's parallel linears and the layers above."""
    attention = SelfAttentionSubmodules(linear_qkv=ColumnLinear, core_attention=NoCoreAttention, linear_proj=RowLinear)
    layer = TransformerLayerSubmodules(
        input_layernorm=RMSNorm,
        self_attention=ModuleSpec(CausalSelfAttention, {"attn_mask_type": AttnMaskType.causal}, attention),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=RMSNorm,
        mlp=GatedMLP,
        mlp_bda=get_bias_dropout_add,
        # Checkpoints carry the names of Transformer Engine's fused layers, so that either kind reads the other's.
        sharded_state_dict_keys_map={
            "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
            "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
        },
    )
    return TransformerBlockSubmodules([ModuleSpec(TransformerLayer, submodules=layer)] * layers, RMSNorm)
