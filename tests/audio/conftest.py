"""Sounds and tiny networks that the audio tests share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    HubertConfig,
    XcodecConfig,
    XcodecModel,
)

SAMPLE_RATE = 16_000


def _sing(seconds: float, seed: int) -> np.ndarray:
    """Harmonic notes with formants, some vibrato, rests and a noisy beat: float32 at 16 kHz."""
    generator = np.random.default_rng(seed)
    samples = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    note_samples = SAMPLE_RATE // 3
    times = np.arange(note_samples) / SAMPLE_RATE
    for start in range(0, len(samples) - note_samples + 1, note_samples):
        beat = generator.standard_normal(800) * np.exp(-np.arange(800) / 150)
        samples[start : start + 800] += (0.05 * beat).astype(np.float32)
        if generator.random() < 0.15:
            continue
        pitch_hz = 220 * 2 ** (generator.integers(-7, 12) / 12)
        formants_hz = generator.choice([[800, 1200], [300, 2300], [450, 850], [500, 1900]])
        phase = 2 * np.pi * pitch_hz * (times + 0.0002 * np.sin(2 * np.pi * 5 * times))
        envelope = np.minimum(1, np.minimum(times, times[::-1]) / 0.03)
        for harmonic in range(1, int(7500 / pitch_hz)):
            gain = 0.01 + sum(np.exp(-(((harmonic * pitch_hz - f) / 150) ** 2)) for f in formants_hz)
            samples[start : start + note_samples] += (0.15 * gain * envelope * np.sin(harmonic * phase)).astype("f4")
    return samples


@pytest.fixture(scope="session")
def sing() -> Callable[[float, int], np.ndarray]:
    """``sing(seconds, seed)`` gives a synthetic song, float32 at 16 kHz."""
    return _sing


@pytest.fixture(scope="session")
def xcodec_model() -> XcodecModel:
    """A tiny X-Codec of YuE's structure with random weights and random codebooks."""
    ratios = [8, 5, 4, 2]
    config = XcodecConfig(
        target_bandwidths=(0.5, 1, 1.5, 2, 4, 6),
        acoustic_model_config=DacConfig(
            encoder_hidden_size=4,
            downsampling_ratios=ratios,
            decoder_hidden_size=32,
            upsampling_ratios=ratios,
            hidden_size=16,
        ),
        semantic_model_config=HubertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
    )
    torch.manual_seed(0)
    model = XcodecModel(config).eval()
    # transformers initialises codebooks to zeros, with which every code is 0.
    for quantizer in model.quantizer.quantizers:
        quantizer.codebook.embed.normal_(std=0.02)
    return model


@pytest.fixture(scope="session")
def encodec_model() -> EncodecModel:
    """A tiny EnCodec with random weights and codebooks that tell its frames apart."""
    config = EncodecConfig(
        target_bandwidths=[1.5, 3.0], num_filters=4, hidden_size=16, codebook_size=64, num_lstm_layers=1
    )
    torch.manual_seed(0)
    model = EncodecModel(config).eval()
    # An untrained encoder's frames differ little: only codes that are such frames tell them apart.
    with torch.no_grad():
        frames_TD = model.encoder(torch.randn(1, 1, 64 * config.hop_length))[0].T
    for index, layer in enumerate(model.quantizer.layers):
        layer.codebook.embed.copy_(frames_TD if index == 0 else (frames_TD - frames_TD.mean(0)) / 2**index)
    return model


@pytest.fixture(scope="session")
def dac_model() -> DacModel:
    """A tiny DAC with random weights."""
    config = DacConfig(
        sampling_rate=16_000,
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 5, 8],
        decoder_hidden_size=32,
        upsampling_ratios=[8, 5, 4, 2],
        hidden_size=16,
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
    )
    torch.manual_seed(0)
    return DacModel(config)
