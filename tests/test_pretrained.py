"""What transformers loads is whole, and of the model that was meant."""

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_music.errors import InputError
from megatron_music.pretrained import load_pretrained, named_weights


@pytest.fixture
def folder(tmp_path):
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **size)).save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return load_pretrained(LlamaForCausalLM, named_weights(folder, "a/b"), "a Llama", "mend it")


def test_a_model_is_loaded_with_the_tensors_of_its_folder(folder):
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    tensors, found = load_file(folder / "model.safetensors"), load(folder).state_dict()
    assert found.keys() >= tensors.keys() and all(tensors[name].equal(found[name]) for name in tensors)


def test_what_is_no_whole_model_of_the_kind_is_told(folder):
    assert named_weights("owner/name", "a/b") == "owner/name"
    for weights in (folder / "nowhere", folder / "config.json", "../name"):
        with pytest.raises(InputError, match="no such file or folder; check the path, or name a model such as a/b"):
            named_weights(weights, "a/b")
    with pytest.raises(InputError, match=r"config.json: model_type is 'llama', not dac; name a model such as a/b"):
        named_weights(folder, "a/b", "dac")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 tensors or .* shape, first model.norm.weight; fetch"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="can't be loaded as a Llama .*; mend it"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="names no model_type"):
        named_weights(folder, "a/b")
