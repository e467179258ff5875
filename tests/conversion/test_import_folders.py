"""Folders as other programs leave them come in as the network that they hold, or are told to hold none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.export import export_checkpoint
from megatron_music.conversion.import_llama import import_llama
from megatron_music.conversion.imports import import_network
from megatron_music.conversion.verify import verify
from megatron_music.errors import InputError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, weights):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def whole_bin(folder, weights):
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}, folder / "pytorch_model.bin")


def bin_before_1_6(folder, weights):
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def in_two(folder, weights, suffix, save, index=None):
    names = sorted(weights)
    files = [f"part-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    parts = dict(zip(files, (names[:7], names[7:]), strict=True))
    for file, members in parts.items():
        save({name: weights[name] for name in members}, folder / file)
    if index:
        places = {name: file for file, members in parts.items() for name in members}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def two_bins(folder, weights):
    in_two(folder, weights, "bin", torch.save, "pytorch_model.bin.index.json")


def two_bins_without_index(folder, weights):
    in_two(folder, weights, "bin", torch.save)


def two_safetensors_without_index(folder, weights):
    in_two(folder, weights, "safetensors", save_file)


def another_name(folder, weights):
    save_file(weights, folder / "weights.safetensors")


def index_that_lacks_some(folder, weights):
    in_two(folder, weights, "safetensors", save_file, "model.safetensors.index.json")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FORMS = [
    (whole_bin, []),
    (bin_before_1_6, []),
    (two_bins, []),
    (two_bins_without_index, ["there is no index; read are part-00001-of-00002.bin, part-00002-of-00002.bin"]),
    (two_safetensors_without_index, ["there is no index; read are part-00001-of-00002.safetensors, part-00002"]),
    (another_name, ["there is no index; read are weights.safetensors"]),
    (index_that_lacks_some, ["1 tensors that the index lacks are read too, model.norm.weight first"]),
]


@pytest.mark.parametrize("form, notes", FORMS, ids=[form.__name__ for form, _ in FORMS])
def test_every_form_is_the_same_network(make_model, tmp_path, form, notes):
    folder, said = make_model("hf"), []
    weights = weights_of(folder)
    import_llama(folder, tmp_path / "expected")
    (folder / "model.safetensors").unlink()
    form(folder, weights)
    import_llama(folder, tmp_path / "in", say=said.append)
    assert len(said) == len(notes) and all(words in line for words, line in zip(notes, said, strict=True))
    expected, found = CheckpointReader(tmp_path / "expected"), CheckpointReader(tmp_path / "in")
    for name in expected._metadata.state_dict_metadata:
        if name in expected:
            assert torch.equal(found.read(name), expected.read(name)), name
    if form in (two_bins, another_name):
        # megatron-core and transformers compute the same with it, whatever its files are called.
        assert verify(tmp_path / "in", folder).tensors == 3 + 2 * 9


def test_of_two_forms_the_one_that_is_taken_is_told(make_model, tmp_path):
    folder, said = make_model("hf"), []
    whole_bin(folder, {name: tensor + 1 for name, tensor in weights_of(folder).items()})
    import_llama(folder, tmp_path / "in", say=said.append)
    assert said == [f"{folder}: not read beside model.safetensors: pytorch_model.bin"]
    assert torch.equal(CheckpointReader(tmp_path / "in").read("output_layer.weight"), weights_of(folder)[HEAD])


def test_a_model_in_the_hubs_cache(make_model, tmp_path):
    folder, said = make_model("models--owner--song/snapshots/0a1b"), []
    import_network(tmp_path / "models--owner--song", tmp_path / "in", say=said.append)
    assert said == [f"{tmp_path / 'models--owner--song'}: its snapshot 0a1b is read"]
    export_checkpoint(tmp_path / "in", tmp_path / "hf")
    assert "From `owner/song` through" in (tmp_path / "hf" / "README.md").read_text()
    assert json.loads((tmp_path / "in" / "network.json").read_text())["imported_from"] == str(folder)


def named_in_the_wrong_file(folder, weights):
    (folder / "model.safetensors").unlink()
    two_bins(folder, weights)
    path = folder / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][HEAD] = "part-00002-of-00002.bin"
    path.write_text(json.dumps(index))


def in_two_files(folder, weights):
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "a.safetensors")
    save_file({HEAD: weights[HEAD]}, folder / "b.safetensors")


def in_a_narrower_type(folder, weights):
    rewrite(folder, weights | {HEAD: weights[HEAD].to(torch.float8_e4m3fn)})


def other_things(folder, weights):
    (folder / "model.safetensors").unlink()
    torch.save({"step": 3, "model": weights}, folder / "pytorch_model.bin")


def sparse(folder, weights):
    (folder / "model.safetensors").unlink()
    torch.save(weights | {HEAD: weights[HEAD].to_sparse()}, folder / "pytorch_model.bin")


def layers_of_two_types(folder, weights):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, weights | {name: weights[name].bfloat16()})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (named_in_the_wrong_file, "part-00002-of-00002.bin has no lm_head.weight, which the index puts there"),
        (in_two_files, "lm_head.weight lies in a.safetensors and b.safetensors"),
        (in_a_narrower_type, "lm_head.weight is of type F8_E4M3; import weights that are not quantised"),
        (other_things, "pytorch_model.bin: holds other things than tensors by name"),
        (sparse, "lm_head.weight is of type torch.sparse_coo"),
        (layers_of_two_types, "up_proj.weight is of type torch.bfloat16, its kin of torch.float32"),
        (
            lambda folder, weights: rewrite(folder, weights | {HEAD: weights[HEAD][:380].clone()}),
            "embed_tokens.weight has 384 rows, lm_head.weight has 380",
        ),
        (
            lambda folder, weights: rewrite(folder, weights | {name: weights[name][:369].clone() for name in
                                                               (EMBEDDING, HEAD)}),
            "has 369 rows, where vocabulary tiny has 370 ids and room for 384",
        ),
        (
            lambda folder, weights: rewrite(
                folder, weights | {"model.layers.2.input_layernorm.weight": torch.ones(32)}
            ),
            "has 1 weights that config.json's network has not, model.layers.2.input_layernorm.weight first",
        ),
        (
            lambda folder, weights: rewrite(folder, {f"module.{name}": tensor for name, tensor in weights.items()}),
            "the weights have no lm_head.weight",
        ),
        (
            lambda folder, weights: (folder / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
            ),
            "git-lfs' pointer to a file, not the file; run `git lfs pull`",
        ),
        (
            lambda folder, weights: (folder / "tokenizer.model").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
            ),
            "tokenizer.model: is git-lfs' pointer",
        ),
    ],
)  # fmt: skip
def test_weights_that_contradict_each_other_are_told(make_model, tmp_path, spoil, message):
    folder = make_model("hf")
    spoil(folder, weights_of(folder))
    refused(folder, tmp_path / "in", message)


def refused(folder, out, message):
    with pytest.raises(InputError, match=message) as caught:
        import_llama(folder, out)
    assert "\n" not in str(caught.value) and not out.exists()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', and only networks of Llama's kind are read"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantised .gptq."),
        ({"quantization_config": {"load_in_8bit": True}}, "the weights are quantised .quantization_config."),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "type is 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn', which this network does not"),
        ({"rope_scaling": ["linear"]}, "the RoPE is .'linear'., where fields are expected"),
        ({"rope_theta": 5e5}, "rope_theta is 10000.0 in one place and 500000.0 in another"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 16}, "head_dim is 16, which this network does not have"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, and lm_head.weight is another matrix"),
    ],
)
def test_configurations_of_other_networks_are_told(make_model, tmp_path, fields, message):
    folder = make_model("hf")
    change(folder, **fields)
    refused(folder, tmp_path / "in", f"config.json: {message}")


def test_a_configuration_that_is_none(make_model, tmp_path):
    folder = make_model("hf")
    for content, message in (("[]", "it holds"), ("", "it is empty"), ("{", "line 1: is not JSON")):
        (folder / "config.json").write_text(content)
        refused(folder, tmp_path / "in", f"config.json: .*{message}")


def test_older_spellings_are_the_same_network(make_model, tmp_path):
    folder = make_model("hf")
    network = import_llama(folder, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    older = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype", "head_dim")}
    older |= {"torch_dtype": "float32", "rope_theta": 10000.0, "rope_scaling": None, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(older))
    said = []
    assert import_llama(folder, tmp_path / "older", say=said.append) == network and not said
    # Without a number of key-value heads there is one a head: the weights are then of another shape.
    del older["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps(older))
    refused(folder, tmp_path / "none", r"k_proj.weight has shape \(16, 32\), where config.json needs \(32, 32\)")


def test_what_does_not_matter_is_told(make_model, tmp_path):
    folder, said = make_model("hf"), []
    weights = {name: tensor.half() for name, tensor in weights_of(folder).items()}
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(folder, weights | inverse | {"v_head.summary.weight": torch.ones(1)})
    change(folder, vocab_size=390)
    import_llama(folder, tmp_path / "in", say=said.append)
    assert [line.removeprefix(f"{folder}: ") for line in said] == [
        "1 weights are no part of the network and are left, v_head.summary.weight first",
        "config.json says vocab_size 390, taken are the weights' 384 rows",
        "config.json says float32, the weights are float16 and stay so",
        "weights are float16; training takes them as bfloat16 or float32, as its recipe says",
    ]
    assert verify(tmp_path / "in", folder).tensors == 3 + 2 * 9


def tied(make_model, *, head):
    folder = make_model("hf")
    weights = weights_of(folder)
    del weights[HEAD]
    rewrite(folder, weights | ({HEAD: weights[EMBEDDING].clone()} if head else {}))
    change(folder, tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize("head", [False, True])
def test_tied_embeddings_go_out_as_they_came(make_model, tmp_path, head):
    folder = tied(make_model, head=head)
    import_llama(folder, tmp_path / "in")
    reader = CheckpointReader(tmp_path / "in")
    assert torch.equal(reader.read("output_layer.weight"), weights_of(folder)[EMBEDDING])
    export_checkpoint(tmp_path / "in", tmp_path / "out", verify=True)
    assert (HEAD in weights_of(tmp_path / "out")) == head
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("said", [False, None])
def test_a_head_that_is_missing_is_not_made_of_the_embedding_without_a_word(make_model, tmp_path, said):
    folder = tied(make_model, head=False)
    change(folder, tie_word_embeddings=said)
    refused(folder, tmp_path / "in", f"tie_word_embeddings is {said}, and the weights have no lm_head.weight; .*write")


def test_a_head_equal_to_the_embedding_stays_a_head(make_model, tmp_path):
    folder = tied(make_model, head=True)
    change(folder, tie_word_embeddings=False)
    import_llama(folder, tmp_path / "in")
    export_checkpoint(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert HEAD in weights_of(tmp_path / "out")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_told(make_model, tmp_path, number):
    folder = make_model("model")
    weights = weights_of(folder)
    weights["model.layers.1.mlp.down_proj.weight"][3, 2] = number
    rewrite(folder, weights)
    message = "layer 1 of decoder.layers.mlp.linear_fc2.weight: holds numbers that are not finite; get these weights"
    with pytest.raises(InputError, match=message):
        import_llama(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(make_model, tmp_path):
    folder = make_model("hf")
    with pytest.raises(InputError, match="is a file, and one of several that make a model"):
        import_network(folder / "model.safetensors", tmp_path / "in")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no such folder"):
        import_network(folder, tmp_path / "in")
