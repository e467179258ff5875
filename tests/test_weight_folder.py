"""Files of weights are found by their names and the index; what they lack is told with its mend."""

import json

import pytest

from megatron_music.errors import InputError
from megatron_music.weight_folder import WeightFolder, known_as, snapshot


def make(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"weights")
    return folder


def index(folder, content, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "names, taken, is_standard, notes",
    [
        (["model.safetensors"], ["model.safetensors"], True, []),
        (["model.safetensors", "training_args.bin", "adapter_model.safetensors"], ["model.safetensors"], True, []),
        (["pytorch_model.bin", "optimizer.bin"], ["pytorch_model.bin"], True, []),
        (
            ["pytorch_model.bin", "model.safetensors"],
            ["model.safetensors"],
            True,
            ["not read beside model.safetensors: pytorch_model.bin"],
        ),
        (["net.safetensors"], ["net.safetensors"], False, ["there is no index; read are net.safetensors"]),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "old.bin"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            False,
            ["there is no index; read are model-00001-of-00002.safetensors, model-00002", ": old.bin"],
        ),
        (["pytorch_model-1-of-1.bin"], ["pytorch_model-1-of-1.bin"], False, ["read are pytorch_model-1-of-1.bin"]),
    ],
)
def test_files_without_an_index(tmp_path, names, taken, is_standard, notes):
    found = WeightFolder.find(make(tmp_path, *names))
    assert list(found.names) == taken and found.is_standard == is_standard and found.places is None
    assert len(found.notes) == len(notes)
    assert all(words in note for words, note in zip(notes, found.notes, strict=True))


@pytest.mark.parametrize(
    "name, files",
    [
        ("model.safetensors.index.json", ["a.safetensors", "b.safetensors"]),
        ("pytorch_model.bin.index.json", ["a.bin", "b.bin"]),
    ],
)
def test_files_of_an_index(tmp_path, name, files):
    make(tmp_path, *files)
    index(tmp_path, {"weight_map": {"x": files[1], "y": files[0], "z": files[1]}}, name)
    found = WeightFolder.find(tmp_path)
    assert list(found.names) == files and found.places["z"] == files[1] and found.is_standard and not found.notes


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not say which tensor lies in which file"),
        ([], "does not say"),
        ({}, "does not say"),
        ({"weight_map": None}, "does not say"),
        ({"weight_map": {}}, "does not say"),
        ({"weight_map": {"x": 3}}, "does not say"),
        ({"weight_map": {"x": "a.safetensors", "y": "c.safetensors"}}, "names c.safetensors, which is not there"),
        ({"weight_map": {"x": "../a.safetensors"}}, "names ../a.safetensors, which is not in the folder"),
        ({"weight_map": {"x": "/a.safetensors"}}, "names /a.safetensors, which is not in the folder"),
        ({"weight_map": {"x": "b/../../a.safetensors"}}, "which is not in the folder"),
        ({"weight_map": {"x": ""}}, "which is not there"),
    ],
)
def test_indexes_that_are_none_are_told(tmp_path, content, message):
    make(tmp_path, "a.safetensors")
    index(tmp_path, content)
    with pytest.raises(InputError, match=f"index.json: .*{message}.*; copy the folder again"):
        WeightFolder.find(tmp_path)


@pytest.mark.parametrize(
    "names, message",
    [
        (["config.json"], "model.safetensors: no such file, nor pytorch_model.bin"),
        (["training_args.bin", "optimizer.bin"], "no such file, nor pytorch_model.bin"),
        (["consolidated.00.pth", "params.json"], "Meta's own form alone .consolidated.00.pth.; convert"),
        (["consolidated.safetensors"], "Meta's own form"),
        (["adapter_model.safetensors"], "adapters without a network.*; merge them"),
        (["yue.Q4_K_M.gguf"], "llama.cpp"),
        (["flax_model.msgpack"], "Flax"),
        (["model.pth"], "a form without a fixed meaning alone .model.pth.; convert them to model.safetensors"),
        (
            ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
            "has model-00001-of-00003.safetensors and no model-00002-of-00003.safetensors; copy",
        ),
    ],
)
def test_what_a_folder_holds_instead_is_told(tmp_path, names, message):
    make(tmp_path, *names)
    with pytest.raises(InputError, match=message):
        WeightFolder.find(tmp_path)


def test_a_file_that_is_none_is_told_where_it_is_needed_alone(tmp_path):
    make(tmp_path, "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert WeightFolder.find(tmp_path).names == ("model.safetensors",)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(InputError, match="model.safetensors: .*; run `git lfs pull`"):
        WeightFolder.find(tmp_path)


def test_the_hubs_cache(tmp_path):
    cache = tmp_path / "models--m-a-p--YuE-s1"
    blob = make(cache / "blobs", "4d7a") / "4d7a"
    for commit in ("aaa", "bbb"):
        place = make(cache / "snapshots" / commit)
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").symlink_to(blob)
    with pytest.raises(InputError, match="2 snapshots, none of them main; name one of them, such as .*aaa"):
        snapshot(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb")
    for named in (cache, cache / "snapshots", cache / "snapshots" / "bbb"):
        found = WeightFolder.find(named)
        assert found.folder == cache / "snapshots" / "bbb" and len(found.notes) == (named.name != "bbb")
    assert known_as(found.folder) == "m-a-p/YuE-s1" and known_as(tmp_path / "mine") == "mine"
    blob.unlink()
    with pytest.raises(InputError, match="model.safetensors: is a link to .*4d7a, which is not there"):
        WeightFolder.find(cache)


def test_transformers_is_given_what_it_finds_alone(tmp_path):
    assert WeightFolder.find(make(tmp_path / "a", "model.safetensors")).for_transformers() == tmp_path / "a"
    with pytest.raises(InputError, match="net.safetensors; rename it to model.safetensors"):
        WeightFolder.find(make(tmp_path / "b", "net.safetensors")).for_transformers()
