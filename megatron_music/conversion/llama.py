"""megatron-core's weights and transformers' Llama weights: the same numbers under other names and in other order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_music.recipe.recipe import Network

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The two matrices with a row for every id."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a Hugging Face Llama folder and where it comes from.

    Attributes:
        name: transformers' name.
        shape: its shape there.
        source: the checkpoint's tensor.
        layer: which row of that tensor, None for all of it.
        view: the part of that row that holds the weight, sharing its memory; its shape may differ from ``shape``, the
            order of its numbers does not. It cuts between rows alone, so that it serves anything with as many of them.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    layer: int | None
    view: Callable[[torch.Tensor], torch.Tensor]

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return torch.Size(self.shape).numel()


def llama_weights(network: Network, rows: int) -> Iterator[Weight]:
    """All weights of the network, in the order in which they are used; of embedding and head the first ``rows`` rows.

    megatron-core keeps queries, keys and values of a layer in one matrix, grouped by key-value head: the queries of the
    group, its key, its value; and gate and up projection in one, gate first. Both use the half-split rotary layout.
    """
    hidden, head, ffn = network.hidden_size, network.head_size, network.ffn_hidden_size
    groups, per_group = network.key_value_heads, network.attention_heads // network.key_value_heads

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def of_group(first: int, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda qkv: qkv.view(groups, per_group + 2, head, -1)[:, first : first + count]

    def of_ids(matrix: torch.Tensor) -> torch.Tensor:
        return matrix[:rows]

    yield Weight(EMBEDDING, (rows, hidden), "embedding.word_embeddings.weight", None, of_ids)
    for layer in range(network.layers):
        here, there = f"model.layers.{layer}.", "decoder.layers."
        norms = {
            "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
            "post_attention_layernorm": "mlp.linear_fc1.layer_norm_weight",
        }
        yield Weight(f"{here}input_layernorm.weight", (hidden,), there + norms["input_layernorm"], layer, whole)
        for name, first, count in (("q", 0, per_group), ("k", per_group, 1), ("v", per_group + 1, 1)):
            shape = (groups * count * head, hidden)
            source = f"{there}self_attention.linear_qkv.weight"
            yield Weight(f"{here}self_attn.{name}_proj.weight", shape, source, layer, of_group(first, count))
        source = f"{there}self_attention.linear_proj.weight"
        yield Weight(f"{here}self_attn.o_proj.weight", (hidden, hidden), source, layer, whole)
        source = there + norms["post_attention_layernorm"]
        yield Weight(f"{here}post_attention_layernorm.weight", (hidden,), source, layer, whole)
        source = f"{there}mlp.linear_fc1.weight"
        yield Weight(f"{here}mlp.gate_proj.weight", (ffn, hidden), source, layer, lambda both: both[:ffn])
        yield Weight(f"{here}mlp.up_proj.weight", (ffn, hidden), source, layer, lambda both: both[ffn:])
        yield Weight(f"{here}mlp.down_proj.weight", (hidden, ffn), f"{there}mlp.linear_fc2.weight", layer, whole)
    yield Weight("model.norm.weight", (hidden,), "decoder.final_layernorm.weight", None, whole)
    yield Weight(HEAD, (rows, hidden), "output_layer.weight", None, of_ids)


def llama_config(network: Network, rows: int, dtype: str, end_id: int) -> dict:
    """The content of `config.json`, for transformers 5 and, with the older names beside the new, 4.45 and vLLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": network.hidden_size,
        "intermediate_size": network.ffn_hidden_size,
        "num_hidden_layers": network.layers,
        "num_attention_heads": network.attention_heads,
        "num_key_value_heads": network.key_value_heads,
        "head_dim": network.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": network.position_limit,
        "initializer_range": network.init_std,
        "rms_norm_eps": network.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": network.rope_base},
        "rope_theta": network.rope_base,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
