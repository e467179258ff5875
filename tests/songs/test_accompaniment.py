from fractions import Fraction

import numpy as np
import pytest

from megatron_music.errors import InputError
from megatron_music.songs.accompaniment import PATTERN_OF_INSTRUMENT, Timeline, parse_chord, play
from megatron_music.songs.instruments import INSTRUMENTS, note, sustains

CHORDS = [(Fraction(0), parse_chord("C", "x")), (Fraction(4), parse_chord("G7", "x"))]
TIMELINE = Timeline(120.0, Fraction(4), False, Fraction(0), Fraction(8), Fraction(12))


def strongest_hz(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 17))
    return np.argmax(spectrum) * 16000 / (1 << 17)


def test_chord_symbols():
    assert parse_chord("C", "x").tones == (0, 4, 7)
    assert parse_chord("F#m7", "x").tones == (6, 9, 1, 4)
    assert (parse_chord("Bb/D", "x").root, parse_chord("Bb/D", "x").bass) == (10, 2)
    assert parse_chord("D7", "x").transposed(-2) == parse_chord("C7", "x")
    with pytest.raises(InputError, match="song.abc: chord 'H' is not known"):
        parse_chord("H", "song.abc")


@pytest.mark.parametrize("name", sorted(INSTRUMENTS))
def test_every_instrument_plays_in_tune_and_at_its_level(name):
    samples = note(name, 60, 40)
    assert samples.dtype == np.float32 and abs(samples[-1]) < 1e-3 and np.abs(samples).max() < 1
    level = np.sqrt(np.mean(samples[:3200].astype(float) ** 2))
    assert level == pytest.approx(INSTRUMENTS[name].level, rel=0.01)
    f0_hz = 440 * 2 ** ((60 - 69) / 12)
    ratio = strongest_hz(samples[1600:8000]) / f0_hz
    assert abs(1200 * np.log2(ratio / round(ratio))) < 20
    late = np.sqrt(np.mean(samples[9600:12000].astype(float) ** 2))
    assert (late > 0.8 * level) == sustains(name)


@pytest.mark.parametrize("name", sorted(PATTERN_OF_INSTRUMENT))
@pytest.mark.parametrize("meter", ["2/4", "3/4", "4/4", "6/8"])
def test_every_instrument_accompanies_every_meter(name, meter):
    bar = Fraction(meter) * 4
    timeline = Timeline(100.0, bar, meter == "6/8", -bar, 3 * bar, 4 * bar + 1)
    chords = [(-bar, parse_chord("C", "x")), (bar, parse_chord("F", "x")), (bar * 3, parse_chord("C", "x"))]
    frames = timeline.frame(timeline.end) + 5
    samples = play(chords, {name: PATTERN_OF_INSTRUMENT[name]}, timeline, frames)
    assert len(samples) == frames * 320
    for index in range(-1, 4):
        start = timeline.frame(index * bar) * 320
        assert np.abs(samples[start : start + 1600]).max() > 0.002, index
    assert np.array_equal(samples, play(chords, {name: PATTERN_OF_INSTRUMENT[name]}, timeline, frames))


def test_the_chords_tones_are_heard_and_no_others():
    samples = play(CHORDS, {"organ": "block"}, TIMELINE, TIMELINE.frame(TIMELINE.end) + 5)
    for quarter, tones in ((0, {0, 4, 7}), (4, {7, 11, 2, 5})):
        first = TIMELINE.frame(Fraction(quarter)) * 320
        spectrum = np.abs(np.fft.rfft(samples[first + 800 : first + 24000] * np.hanning(23200), 1 << 17))
        strength = {}
        for pitch in range(53, 72):
            at = round(440 * 2 ** ((pitch - 69) / 12) * (1 << 17) / 16000)
            strength[pitch] = spectrum[at - 6 : at + 7].max()
        loud = {pitch % 12 for pitch, value in strength.items() if value > 0.3 * max(strength.values())}
        assert loud <= tones and len(loud) == 3
