import pickle
import sys
import types

import numpy as np
import pytest
import torch

from megatron_music.audio.codec import load_codec
from megatron_music.audio.huggingface import XCodec
from megatron_music.audio.xcodec_checkpoint import load_yue_checkpoint, match_weight_norm, transformers_name, yue_config
from megatron_music.errors import InputError


def magnitude_and_direction(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight norm over all axes but the first, with a direction of another length than the weight's."""
    return torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True), weight * 3


def yue_layout(model) -> dict[str, torch.Tensor]:
    """The state dict that YuE's SoundStream class would have for this network, written down module by module."""
    state = {}

    def put(name, module, normalised=False):
        for parameter, tensor in module.state_dict().items():
            if normalised and parameter == "weight":
                state[f"{name}.weight_g"], state[f"{name}.weight_v"] = magnitude_and_direction(tensor)
            else:
                state[f"{name}.{parameter}"] = tensor

    def put_residual_unit(name, unit):
        put(f"{name}.block.0", unit.snake1)
        put(f"{name}.block.1", unit.conv1, normalised=True)
        put(f"{name}.block.2", unit.snake2)
        put(f"{name}.block.3", unit.conv2, normalised=True)

    encoder, decoder = model.acoustic_encoder, model.acoustic_decoder
    put("encoder.block.0", encoder.conv1, normalised=True)
    for index, block in enumerate(encoder.block, 1):
        for unit in range(3):
            put_residual_unit(f"encoder.block.{index}.block.{unit}", getattr(block, f"res_unit{unit + 1}"))
        put(f"encoder.block.{index}.block.3", block.snake1)
        put(f"encoder.block.{index}.block.4", block.conv1, normalised=True)
    put("encoder.block.5", encoder.snake1)
    put("encoder.block.6", encoder.conv2, normalised=True)
    put("decoder_2.model.0", decoder.conv1, normalised=True)
    for index, block in enumerate(decoder.block, 1):
        put(f"decoder_2.model.{index}.block.0", block.snake1)
        put(f"decoder_2.model.{index}.block.1", block.conv_t1, normalised=True)
        for unit in range(3):
            put_residual_unit(f"decoder_2.model.{index}.block.{unit + 2}", getattr(block, f"res_unit{unit + 1}"))
    put("decoder_2.model.5", decoder.snake1)
    put("decoder_2.model.6", decoder.conv2, normalised=True)

    for side in ("encoder_semantic", "decoder_semantic"):
        semantic = getattr(model, side)
        for conv in ("conv",) if side == "encoder_semantic" else ("conv1", "conv2"):
            put(f"{side}.{conv}.conv", getattr(semantic, conv))
        for index, block in enumerate(semantic.conv_blocks):
            put(f"{side}.conv_blocks.{index}.conv.conv", block.conv)
            for unit_index, unit in enumerate(block.res_units):
                put(f"{side}.conv_blocks.{index}.res_units.{unit_index}.conv1.conv", unit.conv1)
                put(f"{side}.conv_blocks.{index}.res_units.{unit_index}.conv2", unit.conv2)
    for index, quantizer in enumerate(model.quantizer.quantizers):
        put(f"quantizer.vq.layers.{index}._codebook", quantizer.codebook)
    put("fc_prior", model.fc)
    put("fc_post1", model.fc1)
    put("fc_post2", model.fc2)
    put("semantic_model", model.semantic_model)
    return state


@pytest.fixture(scope="module")
def yue_state(xcodec_model) -> dict[str, torch.Tensor]:
    return yue_layout(xcodec_model)


def save(path, state):
    torch.save({"codec_model": state, "optimizer_g": {"step": 360_000}}, path)
    return path


def test_every_tensor_and_the_codes_come_back(xcodec_model, yue_state, tmp_path, sing):
    model = load_yue_checkpoint(save(tmp_path / "a.pth", yue_state), xcodec_model.config)
    expected, found = xcodec_model.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
    samples = sing(2, 0)
    codes_KT = XCodec(xcodec_model).encode(samples)
    np.testing.assert_array_equal(XCodec(model).encode(samples), codes_KT)
    np.testing.assert_allclose(XCodec(model).decode(codes_KT), XCodec(xcodec_model).decode(codes_KT), atol=1e-5)


def test_names_are_mapped_one_to_one(xcodec_model, yue_state):
    assert len({transformers_name(name) for name in yue_state}) == len(yue_state)
    assert transformers_name("encoder.block.2.block.1.block.3.weight_v") == (
        "acoustic_encoder.block.1.res_unit2.conv2.weight_v"
    )
    assert transformers_name("decoder_2.model.4.block.1.bias") == "acoustic_decoder.block.3.conv_t1.bias"
    assert transformers_name("quantizer.vq.layers.11._codebook.embed") == "quantizer.quantizers.11.codebook.embed"
    assert transformers_name("semantic_model.encoder.layers.0.final_layer_norm.bias") == (
        "semantic_model.encoder.layers.0.final_layer_norm.bias"
    )


def spelled_as_parametrizations(state):
    spellings = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))
    for old, new in spellings:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def spelled_as_weight_g(state):
    spellings = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))
    for new, old in spellings:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def spelled_as_product(state):
    products = {}
    for name, tensor in spelled_as_weight_g(state).items():
        if name.endswith("weight_g"):
            # HuBERT's positional convolution is normalised over its first two axes, all others but over the last two.
            axes = (0, 1) if tensor.shape[:2] == (1, 1) and "pos_conv" in name else (1, 2)
            direction = spelled_as_weight_g(state)[name[:-1] + "v"]
            products[name[:-2]] = tensor * direction / torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
        elif not name.endswith("weight_v"):
            products[name] = tensor
    return products


@pytest.mark.parametrize("spelling", [spelled_as_parametrizations, spelled_as_weight_g, spelled_as_product])
def test_every_spelling_of_weight_norm(xcodec_model, yue_state, tmp_path, sing, spelling):
    model = load_yue_checkpoint(save(tmp_path / "a.pth", spelling(yue_state)), xcodec_model.config)
    samples = sing(1, 0)
    np.testing.assert_array_equal(XCodec(model).encode(samples), XCodec(xcodec_model).encode(samples))


def test_a_magnitude_without_its_direction_is_missing():
    expected = {"a.weight": torch.ones(2, 3, 4)}
    assert match_weight_norm({"a.weight_g": torch.ones(2, 1, 1)}, expected).keys() == {
        "a.parametrizations.weight.original0"
    }


def test_a_bare_state_dict_is_read_too(xcodec_model, yue_state, tmp_path):
    torch.save(yue_state, tmp_path / "a.pth")
    load_yue_checkpoint(tmp_path / "a.pth", xcodec_model.config)


def test_objects_of_other_programs_are_neither_imported_nor_run(xcodec_model, yue_state, tmp_path):
    class ListConfig(list):
        pass

    class Dangerous:
        def __reduce__(self):
            return print, ("this must not be run",)

    module = types.ModuleType("omegaconf_gone")
    ListConfig.__module__, ListConfig.__qualname__ = module.__name__, "ListConfig"
    module.ListConfig = ListConfig
    sys.modules[module.__name__] = module
    content = {"codec_model": yue_state, "config": ListConfig([1, 2]), "more": [Dangerous(), {1, 2}]}
    torch.save(content, tmp_path / "a.pth")
    del sys.modules[module.__name__]
    with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):
        torch.load(tmp_path / "a.pth", weights_only=False)
    load_yue_checkpoint(tmp_path / "a.pth", xcodec_model.config)


def test_nothing_of_a_hostile_file_is_run(tmp_path, capsys):
    class Dangerous:
        def __reduce__(self):
            return print, ("this must not be run",)

    torch.save({"codec_model": Dangerous()}, tmp_path / "a.pth")
    with pytest.raises(InputError):
        load_yue_checkpoint(tmp_path / "a.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc_prior.bias"), "lacks"),
        (lambda s: s.pop("encoder.block.0.weight_v"), "lacks"),
        (lambda s: s.update({"fc_prior.extra": torch.ones(1)}), "has tensors that X-Codec has not"),
        (lambda s: s.update({"fc_prior.bias": torch.ones(3)}), "another shape"),
    ],
)
def test_other_tensors_are_refused(xcodec_model, yue_state, tmp_path, change, message):
    state = dict(yue_state)
    change(state)
    with pytest.raises(InputError, match=message):
        load_yue_checkpoint(save(tmp_path / "a.pth", state), xcodec_model.config)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_damaged_files_are_told_in_one_line(tmp_path, content):
    path = tmp_path / "ckpt_00360000.pth"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_codec("xcodec", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_told(yue_state, tmp_path):
    path = save(tmp_path / "a.pth", yue_state)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError):
        load_yue_checkpoint(path)


def test_yue_config_is_the_published_network():
    config = yue_config()
    assert (config.sample_rate, config.frame_rate, config.num_quantizers, config.codebook_size) == (
        16_000,
        50,
        12,
        1024,
    )
    assert (config.hidden_size, config.semantic_model_config.num_hidden_layers) == (1024, 12)
