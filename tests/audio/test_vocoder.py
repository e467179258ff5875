"""The vocoder against a plain reading of its definition, its file format, and the crossover's properties."""

import numpy as np
import pytest
import torch
from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

from megatron_music.audio import vocoder as vocoder_module
from megatron_music.audio.huggingface import XCodec
from megatron_music.audio.vocoder import (
    VOCODER_FILES,
    check_vocoders,
    cross_over,
    load_vocoders,
    overlap_add,
    vocode,
)
from megatron_music.errors import InputError

LATENTS, CHANNELS, HIDDEN, BLOCKS, WINDOW = 24, 16, 40, 2, 64
HOP = WINDOW // 4


def random_state(seed, latents=LATENTS):
    rng = np.random.default_rng(seed)
    shapes = {
        "backbone.embed.weight": (CHANNELS, latents, 7),
        "backbone.embed.bias": (CHANNELS,),
        "head.out.weight": (WINDOW + 2, CHANNELS),
        "head.out.bias": (WINDOW + 2,),
    }
    for name in ("norm", "final_layer_norm"):
        shapes |= {f"backbone.{name}.weight": (CHANNELS,), f"backbone.{name}.bias": (CHANNELS,)}
    for block in range(BLOCKS):
        stem = f"backbone.convnext.{block}"
        shapes |= {
            f"{stem}.gamma": (CHANNELS,),
            f"{stem}.dwconv.weight": (CHANNELS, 1, 7),
            f"{stem}.dwconv.bias": (CHANNELS,),
            f"{stem}.norm.weight": (CHANNELS,),
            f"{stem}.norm.bias": (CHANNELS,),
            f"{stem}.pwconv1.weight": (HIDDEN, CHANNELS),
            f"{stem}.pwconv1.bias": (HIDDEN,),
            f"{stem}.pwconv2.weight": (CHANNELS, HIDDEN),
            f"{stem}.pwconv2.bias": (CHANNELS,),
        }
    state = {name: rng.normal(size=shape).astype(np.float32) * 0.4 for name, shape in shapes.items()}
    return state | {"head.istft.window": np.hanning(WINDOW + 1)[:-1].astype(np.float32)}


def write_folder(folder, latents=LATENTS):
    folder.mkdir(parents=True)
    for seed, file in enumerate(VOCODER_FILES.values()):
        state = {name: torch.from_numpy(array) for name, array in random_state(seed, latents).items()}
        torch.save(state, folder / file)
    return folder


def layer_norm(x_TC, weight, bias):
    centred = x_TC - x_TC.mean(1, keepdims=True)
    return centred / np.sqrt(x_TC.var(1, keepdims=True) + 1e-6) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy())


def by_definition(state, latents_LT):
    """Sample by sample and tap by tap, in float64, from the papers: Vocos' ConvNeXt backbone and Fourier head."""
    state = {name: array.astype(np.float64) for name, array in state.items()}

    def part(stem):
        return state[f"{stem}.weight"], state[f"{stem}.bias"]

    def convolve(x_CT, weight, bias):
        T, padded = x_CT.shape[1], np.pad(x_CT, ((0, 0), (3, 3)))
        out = np.tile(bias[:, None], (1, T))
        for t in range(T):
            for tap in range(7):
                column = padded[:, t + tap]
                out[:, t] += weight[:, 0, tap] * column if weight.shape[1] == 1 else weight[:, :, tap] @ column
        return out

    x = layer_norm(convolve(latents_LT, *part("backbone.embed")).T, *part("backbone.norm")).T
    for block in range(BLOCKS):
        stem = f"backbone.convnext.{block}"
        h = layer_norm(convolve(x, *part(f"{stem}.dwconv")).T, *part(f"{stem}.norm"))
        (up, up_bias), (down, down_bias) = part(f"{stem}.pwconv1"), part(f"{stem}.pwconv2")
        x = x + (state[f"{stem}.gamma"] * (gelu(h @ up.T + up_bias) @ down.T + down_bias)).T
    weight, bias = part("head.out")
    out_TF = layer_norm(x.T, *part("backbone.final_layer_norm")) @ weight.T + bias
    bins = WINDOW // 2 + 1
    window = state["head.istft.window"]
    T = len(out_TF)
    summed, weights = np.zeros((T - 1) * HOP + WINDOW), np.zeros((T - 1) * HOP + WINDOW)
    for t, row in enumerate(out_TF):
        spectrum = np.minimum(np.exp(row[:bins]), 100) * np.exp(1j * row[bins:])
        summed[t * HOP : t * HOP + WINDOW] += np.fft.irfft(spectrum, WINDOW) * window
        weights[t * HOP : t * HOP + WINDOW] += window**2
    cut = (WINDOW - HOP) // 2
    return (summed[cut:-cut] / weights[cut:-cut])[: T * HOP]


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    config = XcodecConfig(
        target_bandwidths=(0.5, 1),
        acoustic_model_config=DacConfig(
            encoder_hidden_size=4, downsampling_ratios=[8, 5, 4, 2], decoder_hidden_size=16,
            upsampling_ratios=[8, 5, 4, 2], hidden_size=8,
        ),
        semantic_model_config=HubertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            conv_dim=(4,) * 7, num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=8,
        ),
    )  # fmt: skip
    codec = XCodec(XcodecModel(config))
    for quantizer in codec.model.quantizer.quantizers:
        quantizer.codebook.embed.normal_()
    return codec


def test_sound_equals_the_definition(tmp_path):
    vocoders = load_vocoders(write_folder(tmp_path / "vocoder"))
    latents_LT = np.random.default_rng(5).normal(size=(LATENTS, 9))
    for seed, name in enumerate(VOCODER_FILES):
        found = vocoders[name](torch.from_numpy(latents_LT).float()[None])[0].detach().numpy()
        assert found.shape == (9 * HOP,)
        np.testing.assert_allclose(found, by_definition(random_state(seed), latents_LT), atol=2e-3, rtol=1e-3)


def test_overlap_add_undoes_the_transform_away_from_the_ends():
    samples, window = torch.randn(1, 40 * HOP), torch.hann_window(WINDOW)
    cut = (WINDOW - HOP) // 2
    frames = torch.nn.functional.pad(samples, (cut, cut)).unfold(1, WINDOW, HOP) * window
    back = overlap_add(torch.fft.rfft(frames, dim=2).transpose(1, 2), window, HOP)
    torch.testing.assert_close(back[:, 2 * HOP : -2 * HOP], samples[:, 2 * HOP : -2 * HOP], atol=1e-5, rtol=1e-5)


def test_codes_go_through_the_codecs_latents_and_pieces_are_the_whole(tmp_path, codec, monkeypatch):
    size = codec.model.quantizer.quantizers[0].codebook.embed.shape[1]
    vocoder = load_vocoders(write_folder(tmp_path / "xcodec_mini_infer" / "decoders", size).parent)["vocals"]
    codes_KT = np.random.default_rng(1).integers(0, 1024, (codec.codebooks, 90)).astype(np.int16)
    embeds = [quantizer.codebook.embed.numpy() for quantizer in codec.model.quantizer.quantizers]
    latents_LT = sum(embed[codes_T] for embed, codes_T in zip(embeds, codes_KT, strict=False)).T
    whole = vocode(vocoder, codec, codes_KT)
    np.testing.assert_allclose(
        whole[: 9 * HOP], by_definition(random_state(0, size), latents_LT)[: 9 * HOP], atol=2e-3, rtol=1e-3
    )
    monkeypatch.setattr(vocoder_module, "_PIECE_FRAMES", 32)
    np.testing.assert_allclose(vocode(vocoder, codec, codes_KT), whole, atol=1e-4)
    assert vocode(vocoder, codec, codes_KT[:, :0]).shape == (0,)


def test_vocoders_of_other_codecs_are_refused(tmp_path, codec):
    class Embedded:
        name = "embedded"

    vocoders = load_vocoders(write_folder(tmp_path / "small", 30))
    with pytest.raises(InputError, match="not for embedded"):
        check_vocoders(vocoders, Embedded(), "small")
    with pytest.raises(InputError, match="takes latents of 30 numbers, the codec has"):
        check_vocoders(vocoders, codec, "small")


def test_files_that_are_no_vocoder_end_in_one_line(tmp_path):
    folder = write_folder(tmp_path / "vocoder")
    file = folder / VOCODER_FILES["accompaniment"]
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_vocoders(tmp_path / "nowhere")
    whole = file.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[100:]):
        file.write_bytes(content)
        with pytest.raises(InputError, match="decoder_151000.pth: can't be read") as caught:
            load_vocoders(folder)
        assert "\n" not in str(caught.value)
    state = {name: torch.from_numpy(array) for name, array in random_state(0).items()}
    for change in ({"backbone.norm.weight": None}, {"another": torch.zeros(3)}, {"head.out.bias": torch.zeros(3)}):
        torch.save({name: tensor for name, tensor in (state | change).items() if tensor is not None}, file)
        with pytest.raises(InputError, match="is no vocoder of this kind") as caught:
            load_vocoders(folder)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match="decoder_151000.pth: no such file"):
        load_vocoders(folder)


def test_the_crossover_keeps_one_signal_below_and_the_other_above():
    rate, time = 44100, np.arange(44100) / 44100
    noise = np.random.default_rng(0).normal(size=rate).astype(np.float32) * 0.1
    np.testing.assert_allclose(cross_over(noise, rate, noise, rate), noise, atol=1e-6)
    low = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    high = np.sin(2 * np.pi * 1000 * time + 1) + 0.25 * np.sin(2 * np.pi * 9000 * time)
    for level in (1.0, 0.5):
        joined = cross_over(low, 16000, (high * level).astype(np.float32), rate)
        assert len(joined) == rate and joined.dtype == np.float32
        spectrum = np.abs(np.fft.rfft(joined[4410:-4410] * np.hanning(rate - 8820)))
        bins = np.fft.rfftfreq(rate - 8820, 1 / rate)
        ratio = spectrum[np.argmin(abs(bins - 9000))] / spectrum[np.argmin(abs(bins - 1000))]
        assert ratio == pytest.approx(0.25, rel=0.02)
        expected = np.sin(2 * np.pi * 1000 * time) + 0.25 * np.sin(2 * np.pi * 9000 * time)
        np.testing.assert_allclose(joined[4410:-4410], expected[4410:-4410], atol=0.02)
    silent = cross_over(np.zeros(16000, np.float32), 16000, noise, rate)
    assert np.isfinite(silent).all()
    assert cross_over(low[:0], 16000, noise, rate).shape == (0,)
