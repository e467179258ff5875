"""Sounds and tiny networks that the audio tests share."""

from collections.abc import Callable

import numpy as np
import pytest
from tiny_codecs import tiny_dac, tiny_encodec, tiny_xcodec
from transformers import DacModel, EncodecModel, XcodecModel

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
    return tiny_xcodec()


@pytest.fixture(scope="session")
def encodec_model() -> EncodecModel:
    """A tiny EnCodec with random weights and codebooks that tell its frames apart."""
    return tiny_encodec()


@pytest.fixture(scope="session")
def dac_model() -> DacModel:
    """A tiny DAC with random weights."""
    return tiny_dac()
