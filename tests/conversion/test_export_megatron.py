"""The weights of a checkpoint alone, in its own format."""

import json

import pytest
from safetensors.torch import load_file

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.export import export_checkpoint
from megatron_music.engine.integrity import require_whole
from megatron_music.errors import InputError
from megatron_music.training.run_folder import has_optimizer, read_network, read_state


def test_the_weights_alone_are_those_of_the_checkpoint(trained_run, tmp_path):
    whole, alone = trained_run / "run" / "checkpoints" / "step_000007", tmp_path / "alone"
    export_checkpoint(trained_run / "run", alone, form="megatron")
    require_whole(alone)
    before, after = CheckpointReader(whole), CheckpointReader(alone)
    weights = [
        name for name in before._metadata.state_dict_metadata if name in before and not name.startswith("optimizer.")
    ]
    assert sorted(after._metadata.state_dict_metadata) == sorted(weights) and len(weights) >= 8
    for name in weights:
        assert after.read(name).equal(before.read(name)), name
    assert read_network(alone) == read_network(whole) and not has_optimizer(alone) and read_state(alone).step == 0
    # The weights once, of four times (FP32) as many numbers.
    sizes = [sum(file.stat().st_size for file in folder.glob("*.distcp")) for folder in (alone, whole)]
    assert sizes[0] < 0.35 * sizes[1]

    # On to Hugging Face: the same as at once, and megatron-core computes with it what transformers does.
    export_checkpoint(whole, tmp_path / "at_once", "float32")
    export_checkpoint(alone, tmp_path / "on", "float32", verify=True)
    at_once, on = (load_file(tmp_path / name / "model.safetensors") for name in ("at_once", "on"))
    assert at_once.keys() == on.keys() and all(at_once[name].equal(on[name]) for name in on)
    documents = [json.loads((tmp_path / name / "documents.json").read_text()) for name in ("at_once", "on", "alone")]
    assert documents[0] == documents[1] == documents[2]
    assert (tmp_path / "on" / "codec" / "codebooks.bin").read_bytes() == b"codebooks"


def test_forms_that_there_are_not_are_named(trained_run, tmp_path):
    with pytest.raises(InputError, match="format: gguf can't be exported; choose from huggingface, megatron"):
        export_checkpoint(trained_run / "run", tmp_path / "out", form="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [{"verify": True}, {"dtype": "float32"}, {"rows": 0}, {"base": "base"}, {"adapters": "peft"}]
)
def test_what_belongs_to_a_hugging_face_folder_is_refused(trained_run, tmp_path, option):
    with pytest.raises(InputError, match=f"^--{next(iter(option))}: is of a Hugging Face folder, .*; leave it out"):
        export_checkpoint(trained_run / "run", tmp_path / "out", form="megatron", **option)
    assert not (tmp_path / "out").exists()
