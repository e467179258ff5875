"""Distributed checkpoints of other programs on megatron-core come in, whatever their padding and layer names."""

import shutil

import pytest
import torch

from megatron_music.conversion.checkpoint import CheckpointReader, Row, write_checkpoint
from megatron_music.conversion.export import export_checkpoint
from megatron_music.conversion.imports import import_network
from megatron_music.conversion.verify import verify
from megatron_music.errors import InputError

STEP = "run/checkpoints/step_000007"


def weights_of(checkpoint) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(checkpoint)
    names = reader._metadata.state_dict_metadata
    return {name: reader.read(name) for name in names if name.endswith("weight") and not name.startswith("optimizer")}


def write_other(folder, weights: dict[str, torch.Tensor], split: bool):
    """A checkpoint with each layer under its own name (``split``) or all layers as rows of one tensor."""
    folder.mkdir(parents=True)
    rows = []
    for name, tensor in weights.items():
        if not name.startswith("decoder.layers."):
            rows.append(Row(name, None, 0, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor))
            continue
        for layer, row in enumerate(tensor):
            own = name.replace("layers.", f"layers.{layer}.", 1) if split else name
            place = None if split else layer
            rows.append(Row(own, place, len(tensor), tuple(row.shape), row.dtype, lambda row=row: row))
    write_checkpoint(folder, rows)
    return folder


def options(run):
    return {"recipe": run / STEP / "recipe.yaml", "tokenizer": run / "corpus" / "tokenizer.model"}


def test_a_checkpoint_of_megatron_core_itself(trained_run, tmp_path):
    import_network(trained_run / STEP, tmp_path / "in", **options(trained_run))
    before, after = weights_of(trained_run / STEP), weights_of(tmp_path / "in")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    export_checkpoint(trained_run / STEP, tmp_path / "hf", dtype="float32")
    assert verify(tmp_path / "in", tmp_path / "hf").tensors == 39


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rows", [370, 512])
def test_other_padding_and_layers_of_their_own(trained_run, tmp_path, split, rows):
    weights = weights_of(trained_run / STEP)
    other = dict(weights)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        other[name] = torch.ones(rows, 32)
        other[name][:370] = weights[name][:370]
    folder = write_other(tmp_path / "runs" / "iter_0000042", other, split)
    (tmp_path / "runs" / "latest_checkpointed_iteration.txt").write_text("42\n")
    import_network(tmp_path / "runs", tmp_path / "in", **options(trained_run))
    found = weights_of(tmp_path / "in")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name][:370], tensor[:370])
    assert found["output_layer.weight"].shape == (384, 32)
    assert torch.equal(found["output_layer.weight"][370:], torch.full((14, 32), float(rows == 512)))
    assert folder.is_dir()


def test_what_does_not_fit_is_named_in_one_line(trained_run, tmp_path):
    checkpoint = trained_run / STEP
    with pytest.raises(InputError, match="--recipe"):
        import_network(checkpoint, tmp_path / "in")
    wrong = tmp_path / "wrong.yaml"
    text = (checkpoint / "recipe.yaml").read_text()
    for old, new, message in (
        ("ffn_hidden_size: 48", "ffn_hidden_size: 64", r"linear_fc1.weight has shape \(96, 32\)"),
        ("layers: 4", "layers: 2", "has 4 layers, where the recipe has 2"),
    ):
        assert old in text
        wrong.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=message):
            import_network(checkpoint, tmp_path / "in", **options(trained_run) | {"recipe": wrong})
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(InputError, match="names '7', which is not there"):
        import_network(tmp_path, tmp_path / "in", **options(trained_run))
    with pytest.raises(InputError, match="no such folder"):
        import_network(tmp_path / "nowhere", tmp_path / "in")
    incomplete = shutil.copytree(checkpoint, tmp_path / "incomplete")
    (incomplete / ".metadata").write_bytes(b"")
    with pytest.raises(InputError, match="incomplete"):
        import_network(incomplete, tmp_path / "in", **options(trained_run))
    assert not (tmp_path / "in").exists()
