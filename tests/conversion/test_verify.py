"""Verification passes on what was converted and names the first tensor that was changed since."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_music.conversion.checkpoint import MASTER_PREFIX, CheckpointReader
from megatron_music.conversion.export import export_checkpoint
from megatron_music.conversion.import_llama import import_llama
from megatron_music.conversion.verify import verify
from megatron_music.errors import InputError

STEP = "run/checkpoints/step_000007"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_and_its_import_are_the_checkpoint(trained_run, tmp_path, dtype):
    export_checkpoint(trained_run / STEP, tmp_path / "hf", dtype=dtype)
    for name in ("config.json", "vocabulary.yaml", "documents.json"):  # as Windows would save them
        path = tmp_path / "hf" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    import_llama(tmp_path / "hf", tmp_path / "in")
    found = verify(tmp_path / "in", tmp_path / "hf")
    assert found.tensors == 3 + 4 * 9
    assert 0 < found.largest_difference <= 1e-4 * found.largest_logit
    assert "39 tensors equal bit for bit" in str(found)


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"rows": 371}, {"shard_bytes": 20_000}])
def test_every_export_of_an_fp32_run_is_what_it_should_be(trained_run, tmp_path, options):
    found = export_checkpoint(trained_run / STEP, tmp_path / "hf", verify=True, **options)
    assert found.tensors == 3 + 4 * 9 and 0 < found.largest_difference <= 1e-4 * found.largest_logit


def test_a_bf16_run_is_compared_in_what_it_computes_with(own_run, tmp_path, monkeypatch):
    """Its master weights, which an FP32 export holds, are finer than the weights that megatron-core computes with."""
    plain = CheckpointReader.read

    def read(self, name, layer=None):
        tensor = plain(self, name, layer)
        return tensor if name.startswith(MASTER_PREFIX) else tensor.bfloat16()

    monkeypatch.setattr(CheckpointReader, "read", read)
    monkeypatch.setattr(CheckpointReader, "dtype", lambda self, name: torch.bfloat16)
    for dtype in ("float32", "bfloat16"):
        assert export_checkpoint(own_run / STEP, tmp_path / dtype, dtype, verify=True).tensors == 39


def spoil(folder, name, change):
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_one_number(tensor):
    tensor[3, 5] *= 1.0078125
    return tensor


def turn_a_zeros_sign(tensor):
    tensor[0] = torch.copysign(tensor[0], torch.tensor(-1.0))
    return tensor


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name, change",
    [
        ("model.layers.2.self_attn.k_proj.weight", change_one_number),
        ("model.norm.weight", turn_a_zeros_sign),
        ("model.layers.0.self_attn.o_proj.weight", torch.t),
        ("model.layers.1.self_attn.q_proj.weight", lambda tensor: tensor.roll(8, 0)),  # heads in another order
        ("model.layers.3.mlp.down_proj.weight", lambda tensor: tensor.flip(1)),
        ("lm_head.weight", lambda tensor: tensor.roll(1, 0)),
    ],
    ids=["changed", "a sign", "transposed", "heads permuted", "channels permuted", "ids permuted"],
)
def test_a_tensor_that_is_another_is_named(trained_run, tmp_path, dtype, name, change):
    export_checkpoint(trained_run / STEP, tmp_path / "hf", dtype=dtype)
    spoil(tmp_path / "hf", name, change)
    with pytest.raises(InputError, match=f"hf: {name} is not what"):
        verify(trained_run / STEP, tmp_path / "hf")


def test_a_configuration_that_is_another_changes_the_logits(trained_run, tmp_path):
    export_checkpoint(trained_run / STEP, tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace("5000.0", "100.0"))
    with pytest.raises(InputError, match="logits up to .* differ by"):
        verify(trained_run / STEP, tmp_path / "hf")


def test_a_configuration_that_transformers_does_not_take_is_told(trained_run, tmp_path):
    export_checkpoint(trained_run / STEP, tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 64'))
    with pytest.raises(InputError, match="hf: transformers can't load it") as caught:
        verify(trained_run / STEP, tmp_path / "hf")
    assert "\n" not in str(caught.value)


def test_rows_of_ids_that_are_cut_off_are_told(trained_run, tmp_path):
    export_checkpoint(trained_run / STEP, tmp_path / "hf")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        spoil(tmp_path / "hf", name, lambda tensor: tensor[:369])
    with pytest.raises(InputError, match="has 369 rows of embedding and head, where the vocabulary has 370 ids"):
        verify(trained_run / STEP, tmp_path / "hf")
