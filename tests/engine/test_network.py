"""Megatron-core's configuration of recipes, where it can be made without what they need."""

import pytest
import torch
from engine_workers import recipe
from megatron.core.models.common.embeddings import rope_utils

from megatron_music.engine import network


@pytest.mark.parametrize(
    ("scaling", "format"), [("delayed", "hybrid"), ("tensorwise", "hybrid"), ("blockwise", "e4m3")]
)
def test_fp8_scales_the_products_of_a_bf16_network(monkeypatch, scaling, format):
    what = recipe({"tensor": 2, "sequence": True, "tensor_overlap": True}, f"fp8-{scaling}")
    without = network.transformer_config(what)
    assert (without.fp8, without.tp_comm_overlap, without.bf16) == (None, False, True)
    monkeypatch.setattr(network, "transformer_engine_present", lambda: True)
    # Megatron-core looks whether Transformer Engine has brought this.
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    config = network.transformer_config(what)
    assert (config.fp8, config.fp8_recipe, config.fp8_amax_history_len) == (format, scaling, 1024)
    assert (config.fp8_param, config.tp_comm_overlap, config.params_dtype) == (False, True, torch.bfloat16)
    plain = network.transformer_config(recipe({}, "bf16"))
    assert (plain.fp8, plain.bf16, plain.apply_rope_fusion) == (None, True, True)


def test_layers_count_by_runs_of_layers():
    config = network.transformer_config(recipe({"pipeline": 2, "recompute": "full"}))
    assert (config.recompute_method, config.recompute_num_layers) == ("block", 2)
    config = network.transformer_config(recipe({"pipeline": 2, "interleave": 2, "recompute": "full"}))
    assert config.recompute_num_layers == 1
