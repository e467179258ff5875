"""Layers of our own where Transformer Engine is absent: attention, norm, and the specification that uses them."""

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules


class RMSNorm(torch.nn.RMSNorm):
    """RMS norm whose gain is known to be shared along the sequence, so that its gradient is summed over that group."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_kwargs):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class CausalAttention(torch.nn.Module):
    """Core attention on ``scaled_dot_product_attention``: flash kernels on CPU and GPU, no score matrix kept."""

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, **_kwargs):
        super().__init__()
        if attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"attention mask {attn_mask_type} at layer {layer_number} is not causal")
        self.grouped = config.num_query_groups != config.num_attention_heads

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> torch.Tensor:
        """Attends causally.

        Args:
            query: (sequence, batch, heads, head size).
            key: (sequence, batch, key-value heads, head size).
            value: like ``key``.
            attention_mask: must be None, as must the two that follow: the mask is the causal one.

        Returns:
            (sequence, batch, heads x head size).
        """
        assert attention_mask is None and attention_bias is None and packed_seq_params is None
        sequence, batch = query.shape[:2]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.grouped
        )
        return context.permute(2, 0, 1, 3).reshape(sequence, batch, -1)


def local_block_spec(layers: int) -> TransformerBlockSubmodules:
    """A stack of ``layers`` Llama layers from megatron-core's parallel linears and the layers above."""
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear, core_attention=CausalAttention, linear_proj=RowParallelLinear
    )
    layer = TransformerLayerSubmodules(
        input_layernorm=RMSNorm,
        self_attention=ModuleSpec(SelfAttention, {"attn_mask_type": AttnMaskType.causal}, attention),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=RMSNorm,
        mlp=ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)),
        mlp_bda=get_bias_dropout_add,
        # Checkpoints carry the names of Transformer Engine's fused layers, so that either kind reads the other's.
        sharded_state_dict_keys_map={
            "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
            "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
        },
    )
    return TransformerBlockSubmodules([ModuleSpec(TransformerLayer, submodules=layer)] * layers, RMSNorm)
