"""Known answers, and independent implementations: librosa's spectra, mir_eval's melody scores, scipy's entropy."""

import mir_eval
import numpy as np
import pytest
import scipy.stats

from megatron_music.evaluation.reconstruction import (
    at_common_rate,
    code_entropy_bits,
    log_spectral_distance_db,
    mel_distance_db,
    pitch_errors,
    si_sdr_db,
    stft_distance,
)
from megatron_music.evaluation.songs.voice import load_librosa

RATE = 16_000


def tone(hz: float = 440.0, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Five harmonics of a note."""
    times = np.arange(round(seconds * rate)) / rate
    return sum(0.2 / k * np.sin(2 * np.pi * k * hz * times) for k in range(1, 6)).astype(np.float32)


def noise(seed: int = 0, samples: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("samples", [tone(), noise(), np.zeros(RATE, np.float32)])
def test_a_codec_that_changes_nothing(samples):
    assert mel_distance_db(samples, samples, RATE) == 0
    assert set(log_spectral_distance_db(samples, samples, RATE).values()) == {0.0}
    silent = not samples.any()
    assert stft_distance(samples, samples, RATE) == (None if silent else 0)
    assert si_sdr_db(samples, samples) == (None if silent else 100)


def test_half_the_level_is_six_decibels_everywhere():
    samples = noise()
    assert mel_distance_db(samples, samples / 2, RATE) == pytest.approx(20 * np.log10(2), rel=1e-4)
    bands = log_spectral_distance_db(samples, samples / 2, RATE)
    assert list(bands) == ["0-500", "500-2000", "2000-4000", "4000-8000"]
    assert list(bands.values()) == pytest.approx([20 * np.log10(2)] * 4, rel=0.02)
    # |S| - |S|/2 over |S| is a half, and the logarithms differ by ln 2, but for what lies below the floor.
    assert stft_distance(samples, samples / 2, RATE) == pytest.approx(0.5 + np.log(2), rel=0.01)
    assert si_sdr_db(samples, samples / 2) == 100


@pytest.mark.parametrize("ratio_db", [-10.0, 0.0, 17.0])
def test_known_noise_is_its_ratio(ratio_db):
    # A cosine of whole periods and a sine: orthogonal, so that the ratio is exact.
    phase = 2 * np.pi * 50 * np.arange(RATE) / RATE
    signal, orthogonal = np.cos(phase), np.sin(phase)
    decoded = 3 * (signal + 10 ** (-ratio_db / 20) * orthogonal)
    assert si_sdr_db(signal, decoded) == pytest.approx(ratio_db, abs=1e-6)
    assert si_sdr_db(signal + 0.5, decoded - 7) == pytest.approx(ratio_db, abs=1e-6)
    assert si_sdr_db(signal, orthogonal) < -90
    assert si_sdr_db(signal, np.zeros(RATE)) == -100


def test_the_mel_distance_against_librosa():
    librosa = load_librosa()
    first, second = tone(), tone() + noise() / 20
    mels = []
    for samples in (first, second):
        # Frame t is centred on the middle of its hop of 160 samples: 240 samples stand before the first one.
        padded = np.pad(samples, (240, 240)).astype(np.float64)
        amplitudes = np.abs(librosa.stft(padded, n_fft=640, hop_length=160, center=False)) / (640 / 4)
        filters = librosa.filters.mel(sr=RATE, n_fft=640, n_mels=80, norm=None)
        mels.append(20 * np.log10(np.maximum(filters / filters.sum(axis=1, keepdims=True) @ amplitudes, 1e-4)))
    assert mels[0].shape == (80, 100)
    expected = np.abs(mels[0] - mels[1]).mean()
    assert mel_distance_db(first, second, RATE) == pytest.approx(expected, rel=1e-3)


def test_a_band_that_is_cut_off():
    samples = noise()
    low = np.fft.irfft(np.fft.rfft(samples) * (np.fft.rfftfreq(RATE, 1 / RATE) < 4000), RATE).astype(np.float32)
    bands = log_spectral_distance_db(samples, low, RATE)
    assert bands["500-2000"] < 1 and bands["4000-8000"] > 25


@pytest.mark.parametrize("cents", [0.0, 30.0, 200.0])
def test_pitch_that_is_off(cents):
    first, second = tone(220), tone(220 * 2 ** (cents / 1200))
    found = pitch_errors(first, second, RATE)
    assert found["pitch_cents"] == pytest.approx(cents, abs=2)
    assert found["pitch_accuracy"] == (1.0 if cents < 50 else 0.0)


def test_pitch_accuracy_against_mir_eval():
    from megatron_music.audio.pitch import fundamental_hz

    first = np.concatenate([tone(220), tone(330), np.zeros(RATE // 2, np.float32)])
    second = np.concatenate([tone(222), tone(360, 0.4), np.zeros(RATE * 6 // 10, np.float32), tone(200, 0.5)])
    frames = [np.nan_to_num(fundamental_hz(samples, RATE)) for samples in (first, second)]
    cents = [mir_eval.melody.hz2cents(hz) for hz in frames]
    expected = mir_eval.melody.raw_pitch_accuracy(frames[0] > 0, cents[0], frames[1] > 0, cents[1])
    assert 0.4 < expected < 0.6
    assert pitch_errors(first, second, RATE)["pitch_accuracy"] == pytest.approx(expected)


def test_silence_has_no_pitch():
    silence = np.zeros(RATE, np.float32)
    assert pitch_errors(silence, tone(), RATE) == {}
    assert pitch_errors(tone(), silence, RATE) == {"pitch_accuracy": 0.0}


def test_entropy_of_codes():
    counts = np.array([[5] * 8, [40, 0, 0, 0, 0, 0, 0, 0], [20, 10, 5, 5, 0, 0, 0, 0], [0] * 8])
    assert code_entropy_bits(counts).tolist() == pytest.approx([3.0, 0.0, 1.75, 0.0])
    random = np.random.default_rng(0).integers(0, 100, (3, 50))
    assert code_entropy_bits(random) == pytest.approx(scipy.stats.entropy(random, base=2, axis=1))


def test_rates_are_brought_to_the_lower_one():
    high = np.concatenate([tone(440, 1.0, 44_100), np.zeros(500, np.float32)])
    reference, decoded = at_common_rate(tone(440, 1.0, 44_100), 44_100, high, 44_100, RATE)
    assert len(reference) == len(decoded) == RATE
    np.testing.assert_allclose(decoded[:-100], reference[:-100], atol=1e-3)
