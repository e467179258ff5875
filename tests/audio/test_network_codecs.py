import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, EncodecModel

from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.huggingface import Dac, EnCodec, XCodec
from megatron_music.errors import InputError


@pytest.fixture(scope="module", params=["xcodec", "encodec", "dac"])
def codec_and_folder(request, xcodec_model, encodec_model, dac_model, tmp_path_factory):
    model = {"xcodec": xcodec_model, "encodec": encodec_model, "dac": dac_model}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    codec_class = {"xcodec": XCodec, "encodec": EnCodec, "dac": Dac}[request.param]
    return codec_class(model), folder


EXPECTED = {
    "xcodec": {"sample_rate": 16_000, "frames_per_second": 50, "codebooks": 8, "codebook_size": 1024},
    "encodec24k": {"sample_rate": 24_000, "frames_per_second": 75, "codebooks": 6, "codebook_size": 64},
    "dac16k": {"sample_rate": 16_000, "frames_per_second": 50, "codebooks": 4, "codebook_size": 64},
}


def test_round_trip(codec_and_folder, sing):
    codec, _ = codec_and_folder
    assert isinstance(codec, Codec)
    assert {field: getattr(codec, field) for field in EXPECTED[codec.name]} == EXPECTED[codec.name]
    samples = sing(2, 0)
    codes_KT = codec.encode(samples)
    assert codes_KT.dtype == np.int16
    assert codes_KT.shape == (codec.codebooks, len(samples) / codec.sample_rate * codec.frames_per_second)
    assert 0 <= codes_KT.min() and codes_KT.max() < codec.codebook_size
    assert len(np.unique(codes_KT)) > 10
    for kept in (1, codec.codebooks):
        decoded = codec.decode(codes_KT[:kept])
        assert decoded.dtype == np.float32 and decoded.shape == (len(samples),)
        assert np.isfinite(decoded).all() and decoded.std() > 0
    assert (codec.decode(codes_KT) != codec.decode(codes_KT[:1])).any()


def test_a_saved_folder_gives_the_same_codes_and_sound(codec_and_folder, sing):
    codec, folder = codec_and_folder
    loaded = load_codec(codec.name, folder)
    samples = sing(1, 1)
    codes_KT = codec.encode(samples)
    np.testing.assert_array_equal(loaded.encode(samples), codes_KT)
    np.testing.assert_array_equal(loaded.decode(codes_KT), codec.decode(codes_KT))
    np.testing.assert_array_equal(load_codec(codec.name, str(folder), codebooks=2).encode(samples), codes_KT[:2])


def test_a_name_without_its_rate_finds_the_codec_and_a_wrong_rate_does_not(dac_model, tmp_path):
    dac_model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_codec("dac", tmp_path).name == "dac16k"
    with pytest.raises(InputError, match="is dac16k, not dac44k"):
        load_codec("dac44k", tmp_path)
    with pytest.raises(InputError, match="codec 'xcodec16k': is not known"):
        load_codec("xcodec16k", tmp_path)


@pytest.mark.parametrize("samples", [0, 1, 2, 321, 8_080])
def test_any_length(codec_and_folder, samples):
    codec, _ = codec_and_folder
    codes_KT = codec.encode(np.full(samples, 0.1, np.float32))
    hops = samples / codec.hop_samples
    assert int(hops) <= codes_KT.shape[1] <= int(np.ceil(hops)) + 1
    assert codec.decode(codes_KT).shape == (codes_KT.shape[1] * codec.hop_samples,)


@pytest.mark.parametrize("shape_and_value", [((99, 4), 0), ((4,), 0), ((1, 4), -1), ((1, 4), 99_999), ((0, 4), 0)])
def test_other_codes_are_refused(codec_and_folder, shape_and_value):
    with pytest.raises(ValueError, match="codes"):
        codec_and_folder[0].decode(np.full(*shape_and_value))


def test_silence_is_encoded(codec_and_folder):
    codec, _ = codec_and_folder
    assert np.isfinite(codec.decode(codec.encode(np.zeros(codec.sample_rate, np.float32)))).all()


def test_long_audio_in_pieces_equals_the_whole(dac_model, sing):
    whole, in_pieces = Dac(dac_model), Dac(dac_model)
    in_pieces.longest_piece_seconds, in_pieces.context_seconds = 1.0, 0.5
    samples = sing(3.4, 0)[:-100]
    codes_KT = whole.encode(samples)
    np.testing.assert_array_equal(in_pieces.encode(samples), codes_KT)
    np.testing.assert_allclose(in_pieces.decode(codes_KT), whole.decode(codes_KT), atol=1e-5)


def test_pieces_of_x_codec_fit_together(xcodec_model, sing):
    codec = XCodec(xcodec_model)
    codec.longest_piece_seconds = 1.0
    samples = sing(5, 0)
    codes_KT = codec.encode(samples)
    assert codes_KT.shape == (8, 250)
    assert codec.decode(codes_KT).shape == samples.shape


def test_x_codec_codes_are_the_models_own(xcodec_model, sing):
    samples = sing(1, 0)
    expected = xcodec_model.encode(torch.from_numpy(samples)[None, None], bandwidth=6).audio_codes[0]
    np.testing.assert_array_equal(XCodec(xcodec_model, codebooks=12).encode(samples), expected.numpy())


def test_weights_with_holes_are_refused(codec_and_folder, tmp_path):
    codec, folder = codec_and_folder
    tensors = load_file(folder / "model.safetensors")
    del tensors[max(tensors)]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match="lacks 1 tensors"):
        load_codec(codec.name, tmp_path)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def other_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


@pytest.mark.parametrize(
    "damage",
    [truncate, other_model, lambda f: (f / "model.safetensors").unlink(), lambda f: (f / "config.json").unlink()],
)
def test_damaged_folders_are_told_in_one_line(dac_model, tmp_path, damage):
    dac_model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        load_codec("dac", tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_neither_a_file_nor_a_hub_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        load_codec("xcodec", tmp_path / "nowhere")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        load_codec("dac", tmp_path / "weights.pth")


def test_codecs_whose_codes_are_not_everything_are_refused():
    model = EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, audio_channels=2))
    with pytest.raises(InputError, match="encodec_24khz"):
        EnCodec(model)


def test_more_codebooks_than_there_are_is_refused(dac_model):
    with pytest.raises(InputError, match="has 4 codebooks and 5 were asked for"):
        Dac(dac_model, codebooks=5)
