"""Levels and spectra against pyloudnorm, scipy and known answers."""

import numpy as np
import pyloudnorm
import pytest
import soundfile
from scipy.signal import firwin, lfilter

from megatron_music.audio.files import read_audio
from megatron_music.errors import InputError
from megatron_music.evaluation.songs import sound
from megatron_music.evaluation.songs.sound import hear, sound_measures, vocal_to_accompaniment_db

RATE = 44_100


def written(folder, samples, rate=RATE, name="a.wav"):
    """A file of float samples (samples,) or (samples, channels)."""
    soundfile.write(folder / name, samples, rate, subtype="FLOAT")
    return folder / name


def noise(seconds, level=0.1, channels=1, seed=0):
    return np.random.default_rng(seed).normal(0, level, (round(seconds * RATE), channels)).astype(np.float32)


def sine(hz, seconds, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
def test_loudness_is_pyloudnorms_whatever_the_blocks(tmp_path, monkeypatch, channels):
    music = noise(4.3, channels=channels) * np.repeat([0.05, 1.0, 0.3, 0.7], round(4.3 * RATE) // 4 + 1)[
        : round(4.3 * RATE), None
    ].astype(np.float32)
    path = written(tmp_path, music)
    expected = pyloudnorm.Meter(RATE, filter_class="DeMan").integrated_loudness(music.astype(np.float64))
    whole = hear(path)
    assert whole.loudness_lufs == pytest.approx(expected, abs=0.02)
    monkeypatch.setattr(sound, "_BLOCK_S", 0.55)
    blocks = hear(path)
    assert blocks.loudness_lufs == pytest.approx(whole.loudness_lufs, abs=1e-9)
    assert (blocks.silent_share, blocks.clipped_share, blocks.energy) == pytest.approx(
        (whole.silent_share, whole.clipped_share, whole.energy)
    )
    assert np.array_equal(blocks.samples, whole.samples)
    assert np.array_equal(whole.samples, read_audio(path, 16_000))


@pytest.mark.parametrize("block_s", [10.0, 0.01, 0.001])
def test_clipping_is_counted_in_runs_over_the_edges_of_blocks(tmp_path, monkeypatch, block_s):
    monkeypatch.setattr(sound, "_BLOCK_S", block_s)
    samples = np.zeros((2000, 2), np.float32)
    samples[100:103, 0] = 1.0  # a run of three
    samples[200:202, 0] = 1.0  # too short
    samples[438:450, 1] = -1.0  # over the edge of a block of 10 ms
    samples[600:602, 1], samples[602:604, 1] = 1.0, -1.0  # two runs, too short each
    samples[1996:, 1] = 0.9995
    assert hear(written(tmp_path, samples)).clipped_share == (3 + 12 + 4) / 4000


def test_a_clipped_sine_has_the_clipped_share_of_its_curve(tmp_path):
    overdriven = np.clip(sine(100, 2, level=2.0), -1, 1)
    # |2 sin| >= 0.999 for 1 - 2 asin(0.4995) / pi of the time.
    measures, problems = sound_measures(hear(written(tmp_path, overdriven)))
    assert measures["clipped"] == pytest.approx(100 * (1 - 2 * np.arcsin(0.4995) / np.pi), abs=0.1) and not problems
    assert sound_measures(hear(written(tmp_path, 0.4 * overdriven)))[0]["clipped"] == 0


def test_silence(tmp_path):
    samples = noise(4, level=0.1)
    samples[RATE : 2 * RATE] = 0
    samples[3 * RATE :] *= 10 ** (-70 / 20) / 0.1
    assert hear(written(tmp_path, samples)).silent_share == pytest.approx(0.5, abs=1e-9)
    measures, problems = sound_measures(hear(written(tmp_path, np.zeros(RATE, np.float32))))
    assert measures == {"duration": 1.0, "clipped": 0.0, "silence": 100.0}
    assert problems == ["is silent: it has no loudness"]


def test_bandwidth_of_filtered_noise(tmp_path):
    """White noise up to 5 kHz: 99% of its energy lies below 4.95 kHz, and nothing above the filter's edge."""
    low_pass = firwin(1001, 5000, fs=RATE, window=("kaiser", 12))
    bandwidth_hz, content_end_hz = hear(written(tmp_path, lfilter(low_pass, 1, noise(10)[:, 0]))).bandwidth_hz()
    assert bandwidth_hz == pytest.approx(4950, abs=40) and content_end_hz == pytest.approx(5100, abs=120)
    full = hear(written(tmp_path, noise(5))).bandwidth_hz()
    assert full[0] == pytest.approx(0.99 * RATE / 2, rel=0.01) and full[1] == pytest.approx(RATE / 2, rel=0.001)
    bin_hz = RATE / sound.WINDOW
    assert hear(written(tmp_path, sine(1000, 1))).bandwidth_hz() == pytest.approx((1000, 1000), abs=4 * bin_hz)


def test_vocals_against_accompaniment(tmp_path):
    vocals, accompaniment = noise(2, 0.2), noise(2, 0.05, channels=2, seed=1)
    heard = hear(written(tmp_path, vocals)), hear(written(tmp_path, accompaniment))
    assert vocal_to_accompaniment_db(*heard) == pytest.approx(20 * np.log10(4), abs=0.1)
    longer = hear(written(tmp_path, np.concatenate([accompaniment, 0 * accompaniment])))
    assert vocal_to_accompaniment_db(heard[0], longer) == pytest.approx(vocal_to_accompaniment_db(*heard), abs=1e-6)
    silent = hear(written(tmp_path, np.zeros(100, np.float32)))
    assert vocal_to_accompaniment_db(heard[0], silent) is None


def test_a_file_that_ends_early_or_is_no_audio_is_told(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(12), RATE)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no audio"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="can't be read as audio|ends after"):
            hear(path)
