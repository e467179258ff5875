"""Model folders that can't be used end in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_music.errors import InputError
from megatron_music.generation.models import ModelFolder, check_pair


def refused(action, message):
    with pytest.raises(InputError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("name", ["config.json", "vocabulary.yaml", "model.safetensors"])
def test_missing_files_are_named(make_model, name):
    folder = make_model("stage1")
    (folder / name).unlink()
    refused(lambda: ModelFolder.open(folder), name.split(".")[-1])


def test_marks_of_windows_change_nothing(make_model):
    plain, marked = make_model("plain"), make_model("marked")
    for name in ("config.json", "vocabulary.yaml"):
        (marked / name).write_bytes(b"\xef\xbb\xbf" + (marked / name).read_bytes().replace(b"\n", b"\r\n"))
    folder = ModelFolder.open(marked)
    assert folder.vocabulary == ModelFolder.open(plain).vocabulary
    theirs = folder.network().state_dict()
    for name, tensor in ModelFolder.open(plain).network().state_dict().items():
        assert tensor.equal(theirs[name])


def test_a_missing_folder_and_a_missing_tokenizer(make_model, tmp_path):
    refused(lambda: ModelFolder.open(tmp_path / "nowhere"), "no such model folder")
    folder = make_model("stage1")
    (folder / "tokenizer.model").unlink()
    refused(ModelFolder.open(folder).tokenizer, "has no tokenizer.model")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "gpt2"}, "model_type is not llama"),
        ({"vocab_size": 512}, r"vocab_size 512 is not that of .*vocabulary.yaml \(370 to 384\)"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
    ],
)
def test_configs_that_do_not_fit(make_model, fields, message):
    folder = make_model("stage1")
    change_config(folder, **fields)
    refused(lambda: ModelFolder.open(folder), message)


def test_weights_that_do_not_load(make_model):
    folder = make_model("stage1")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    refused(ModelFolder.open(folder).network, "can't be loaded")
    other = make_model("other")
    change_config(other, hidden_size=64)
    refused(ModelFolder.open(other).network, "can't be loaded")


def test_weights_of_pytorchs_own_form_and_folders_of_the_hubs_cache(make_model, tmp_path):
    place = make_model("models--owner--song/snapshots/0a1b")
    expected = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    refused(lambda: ModelFolder.open(place), "model.safetensors: no such file, nor pytorch_model.bin")
    torch.save(expected, place / "pytorch_model.bin")
    folder = ModelFolder.open(tmp_path / "models--owner--song")
    assert folder.path == place
    found = folder.network().state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    (place / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(lambda: ModelFolder.open(place), "git-lfs' pointer")
    (place / "pytorch_model.bin").rename(place / "net.bin")
    torch.save(expected, place / "net.bin")
    refused(lambda: ModelFolder.open(place), "under no name that transformers knows: net.bin")


def test_weights_that_are_not_all_there(make_model):
    folder = make_model("stage1")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(ModelFolder.open(folder).network, "lacks 1 tensors, model.layers.1.mlp.up_proj.weight among them")


def test_rotary_embeddings_that_depend_on_the_length_are_refused(make_model):
    folder = make_model("stage1")
    change_config(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    refused(ModelFolder.open(folder).network, "rope_type dynamic can't be decoded")


def test_models_of_two_vocabularies_or_codecs_do_not_pair(make_model):
    one, other = make_model("one"), make_model("other", seed=1)
    check_pair(ModelFolder.open(one), ModelFolder.open(other))
    for folder, content in ((one, b"a"), (other, b"b")):
        (folder / "codec").mkdir()
        (folder / "codec" / "codebooks.npz").write_bytes(content)
    refused(lambda: check_pair(ModelFolder.open(one), ModelFolder.open(other)), "other/codec: is not the codec of")
    third = make_model("third", name="another")
    refused(lambda: check_pair(ModelFolder.open(one), ModelFolder.open(third)), "third: its vocabulary is not that of")


def test_models_are_used_for_what_they_were_trained_on(make_model):
    one, other = make_model("one"), make_model("other")
    for folder, task in ((one, "lyrics_to_song"), (other, "residual")):
        sources = {"songs": {"task": task, "options": {}, "shares": {}}}
        (folder / "documents.json").write_text(
            json.dumps({"codec": "embedded", "context_tokens": 512, "sources": sources})
        )
    stages = ModelFolder.open(one), ModelFolder.open(other)
    check_pair(*stages)
    refused(lambda: check_pair(*reversed(stages)), "other: was not trained on songs \\(residual\\)")
    refused(lambda: check_pair(stages[0], stages[0]), "one: was not trained on residual codes")
    (one / "documents.json").write_text("{}")
    refused(lambda: ModelFolder.open(one), "does not tell what the model was trained on")


def test_positions_that_were_never_trained_are_not_used(make_model):
    folder = make_model("stage1", positions=512)
    assert ModelFolder.open(folder).positions == 512
    for context, expected in ((128, 128), (1024, 512)):
        documents = {"codec": "embedded", "context_tokens": context, "sources": {}}
        (folder / "documents.json").write_text(json.dumps(documents))
        assert ModelFolder.open(folder).positions == expected


def test_fingerprints_tell_exports_apart(make_model):
    one, same, other = make_model("one"), make_model("same"), make_model("other", seed=1)
    prints = [ModelFolder.open(folder).fingerprint() for folder in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
