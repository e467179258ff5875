"""Verification passes on what was converted and names the first tensor that was changed since."""

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    if dtype == "float32":
        assert verify(trained_run / STEP, tmp_path / "hf").tensors == found.tensors


def change_one_number(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.self_attn.k_proj.weight"][3, 5] *= 1.0078125
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def turn_a_zeros_sign(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.copysign(weights["model.norm.weight"][0], torch.tensor(-1.0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (change_one_number, "model.layers.2.self_attn.k_proj.weight is not what"),
        (turn_a_zeros_sign, "model.norm.weight is not what"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace("5000.0", "100.0")
            ),
            "logits up to .* differ by",
        ),
    ],
)
def test_a_difference_is_named(trained_run, tmp_path, spoil, message):
    export_checkpoint(trained_run / STEP, tmp_path / "hf", dtype="float32")
    spoil(tmp_path / "hf")
    with pytest.raises(InputError, match=message):
        verify(trained_run / STEP, tmp_path / "hf")
