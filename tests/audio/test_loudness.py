"""Loudness against the standard's table, its known tone, and another program where there is one."""

import numpy as np
import pytest

from megatron_music.audio.loudness import PEAK, integrated_loudness, k_weighting, levelling_gain, true_peak


def sine(frequency, seconds, rate, amplitude=1.0, phase=0.0):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate + phase)


def test_filters_are_the_standards_table_at_48_khz():
    (shelf_b, shelf_a), (high_b, high_a) = k_weighting(48000)
    np.testing.assert_allclose(shelf_b, [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-9)
    np.testing.assert_allclose(shelf_a, [1, -1.69065929318241, 0.73248077421585], atol=1e-9)
    np.testing.assert_allclose(high_b, [1, -2, 1])
    np.testing.assert_allclose(high_a, [1, -1.99004745483398, 0.99007225036621], atol=1e-9)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_full_scale_tone_of_997_hz_has_the_known_loudness(rate):
    # ITU-R BS.1770-4: -3.01 LKFS in one channel; two channels double the power; loudness follows the gain.
    tone = sine(997, 5, rate)
    assert integrated_loudness(tone, rate) == pytest.approx(-3.01, abs=0.05)
    assert integrated_loudness(np.stack([tone, tone]), rate) == pytest.approx(0.0, abs=0.05)
    assert integrated_loudness(tone * 0.1, rate) == pytest.approx(-23.01, abs=0.05)


def test_silence_and_quiet_stretches_do_not_count():
    rate = 16000
    tone = sine(997, 10, rate, 0.1)
    alone = integrated_loudness(tone, rate)
    assert integrated_loudness(np.concatenate([tone, np.zeros(30 * rate)]), rate) == pytest.approx(alone, abs=0.1)
    assert integrated_loudness(np.concatenate([tone, tone * 0.1]), rate) == pytest.approx(alone, abs=0.15)
    # 6 dB below is above the relative gate, and counts.
    half = integrated_loudness(np.concatenate([tone, tone * 0.5]), rate)
    assert half == pytest.approx(alone + 10 * np.log10((1 + 0.25) / 2), abs=0.1)
    assert integrated_loudness(np.zeros(rate), rate) == -np.inf
    assert integrated_loudness(np.zeros(0), rate) == -np.inf
    assert integrated_loudness(sine(997, 0.3, rate, 0.1), rate) == pytest.approx(alone, abs=0.2)


def test_loudness_equals_pyloudnorm():
    pyloudnorm = pytest.importorskip("pyloudnorm")
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.normal(size=(2, 44100 * 8)), axis=1)
    noise = np.diff(noise, axis=1) * np.repeat(rng.uniform(0.001, 0.1, 8), 44100)[:-1]
    expected = pyloudnorm.Meter(44100, filter_class="DeMan").integrated_loudness(noise.T)
    assert integrated_loudness(noise, 44100) == pytest.approx(expected, abs=0.05)


def test_the_peak_between_samples_counts():
    # A quarter of the sample rate at 45 degrees: all samples are at 0.707 of the peak.
    tone = sine(4000, 1, 16000, phase=np.pi / 4)
    assert np.abs(tone).max() == pytest.approx(0.7071, abs=1e-4)
    assert true_peak(tone[800:-800], 16000) == pytest.approx(1.0, abs=0.05)
    assert true_peak(np.zeros(0), 16000) == 0.0


def test_the_gain_reaches_the_target_where_nothing_clips():
    tone = sine(997, 3, 16000, 0.05).astype(np.float32)
    gain = levelling_gain(tone, [tone / 2], 16000, -16.0)
    assert integrated_loudness(tone * gain, 16000) == pytest.approx(-16.0, abs=1e-3)
    loud = levelling_gain(tone, [tone * 3], 16000, 0.0)
    assert true_peak(3 * tone * loud, 16000) == pytest.approx(PEAK, abs=1e-3)
    assert levelling_gain(tone, [], 16000, None) == 1.0
    assert levelling_gain(tone * 40, [], 16000, None) == pytest.approx(PEAK / 2, rel=0.02)
    assert levelling_gain(np.zeros(16000), [], 16000, -14.0) == 1.0
    click = np.zeros(16000)
    click[8000] = 2.0
    # Silence has no loudness to bring anywhere, but what sounds with it must not clip.
    assert levelling_gain(np.zeros(16000), [click], 16000, -14.0) == pytest.approx(PEAK / 2, rel=0.02)
