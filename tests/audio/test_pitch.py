"""The pitch track, on sounds whose pitch is known."""

import numpy as np
import pytest

from megatron_music.audio.pitch import fundamental_hz


def voice(pitch_hz, harmonics, seconds=0.5, rate=16000):
    time = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * number * pitch_hz * time) / number for number in harmonics).astype(np.float32) * 0.3


def cents(found_hz, expected_hz):
    return 1200 * np.abs(np.log2(found_hz / expected_hz))


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("pitch_hz", [65.4, 110.0, 261.63, 440.0, 1046.5])
@pytest.mark.parametrize("harmonics", [(1,), (1, 2, 3, 4, 5), (2, 3, 4, 5)], ids=["sine", "voice", "no fundamental"])
def test_steady_sounds_have_their_pitch(pitch_hz, harmonics, rate):
    found = fundamental_hz(voice(pitch_hz, harmonics, rate=rate), rate)
    assert found.shape == (50,)
    assert cents(found[5:-5], pitch_hz).max() < 10


def test_a_glide_is_followed_in_time():
    rate, seconds = 16000, 2.0
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 * 2 ** (time / seconds)  # one octave
    sound = np.sin(2 * np.pi * np.cumsum(pitch) / rate).astype(np.float32)
    middles = (np.arange(200) + 0.5) * 0.01
    found = fundamental_hz(sound, rate)
    assert cents(found[5:-5], 200 * 2 ** (middles[5:-5] / seconds)).max() < 10


def test_a_pause_has_no_pitch():
    sound = np.concatenate([voice(220, (1, 2, 3)), np.zeros(8000, np.float32), voice(330, (1, 2, 3))])
    found = fundamental_hz(sound, 16000)
    assert np.isnan(found[55:95]).all()
    assert cents(found[5:45], 220).max() < 10 and cents(found[105:145], 330).max() < 10


def test_noise_and_silence_have_none():
    noise = np.random.default_rng(0).normal(size=32000).astype(np.float32) * 0.2
    assert np.isnan(fundamental_hz(noise, 16000)).mean() > 0.97
    assert np.isnan(fundamental_hz(np.zeros(4000, np.float32), 16000)).all()
    assert np.isnan(fundamental_hz(voice(220, (1,)) * 1e-3, 16000)).all()
    assert fundamental_hz(np.zeros(0, np.float32), 16000).shape == (0,)
    assert fundamental_hz(np.zeros(1, np.float32), 16000).shape == (1,)
