import numpy as np
import pytest

from megatron_music.songs.phones import PHONES
from megatron_music.songs.singing import (
    SAMPLE_RATE,
    VOICES,
    VOWEL_RMS,
    SungNote,
    SungSyllable,
    lay_out,
    sing,
)


def held(vowel, pitch=45, voice="male"):
    """Half a second from the middle of a held vowel."""
    samples = sing([SungSyllable((vowel,), (SungNote(5, 65, pitch),))], VOICES[voice], 70)
    return samples[20 * 320 : 45 * 320]


def envelope_peaks_hz(samples, f0_hz):
    """Local maxima of the harmonics' strengths below 3 kHz, corrected for the source's slope."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    orders = np.arange(1, int(3000 / f0_hz) + 1)
    bins = np.rint(orders * f0_hz * (1 << 16) / SAMPLE_RATE).astype(int)
    strength = np.array([spectrum[at - 40 : at + 40].max() for at in bins]) * orders
    peaks = [k for k in range(1, len(orders) - 1) if strength[k] > strength[k - 1] and strength[k] >= strength[k + 1]]
    return [orders[k] * f0_hz for k in peaks]


def centroid_hz(samples):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return (power * np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)).sum() / power.sum()


@pytest.mark.parametrize("vowel", ["iy", "eh", "ae", "aa", "uw", "er"])
def test_a_vowels_formants_are_heard(vowel):
    f0_hz = 440 * 2 ** ((45 - 69) / 12)
    peaks = envelope_peaks_hz(held(vowel), f0_hz)
    for formant_hz in PHONES[vowel].formants[:2]:
        # Harmonics lie 110 Hz apart: a peak can be no nearer than half of that, or merges with its neighbour.
        assert min(abs(peak - formant_hz) for peak in [*peaks, f0_hz]) <= f0_hz * 1.5, (vowel, formant_hz, peaks)


def test_ee_and_ah_and_oo_differ():
    bands = {}
    for vowel in ("iy", "aa", "uw"):
        power = np.abs(np.fft.rfft(held(vowel))) ** 2
        frequency_hz = np.fft.rfftfreq(len(held(vowel)), 1 / SAMPLE_RATE)
        bands[vowel] = [
            10 * np.log10(power[(frequency_hz >= low) & (frequency_hz < high)].sum() / power.sum())
            for low, high in ((0, 500), (600, 1400), (1900, 3200))
        ]
    low, middle, high = range(3)
    assert bands["aa"][middle] > bands["iy"][middle] + 15
    assert bands["iy"][high] > bands["uw"][high] + 15
    assert bands["uw"][low] > bands["aa"][low] + 6
    assert centroid_hz(held("aa")) > centroid_hz(held("uw")) + 200


def test_vowels_are_about_equally_loud_for_every_singer():
    for voice, pitch in (("male", 50), ("female", 62), ("child", 65)):
        for vowel in ("iy", "aa", "uw", "ahn"):
            rms = np.sqrt(np.mean(held(vowel, pitch, voice).astype(float) ** 2))
            assert rms == pytest.approx(VOWEL_RMS, rel=0.2), (voice, vowel)


def test_a_diphthong_ends_elsewhere():
    samples = sing([SungSyllable(("ay",), (SungNote(0, 50, 45),))], VOICES["male"], 50)
    first, last = samples[5 * 320 : 20 * 320], samples[47 * 320 : 49 * 320]
    assert 10 * np.log10(_share(last, 1700, 2600) / _share(first, 1700, 2600)) > 10


def _share(samples, low_hz, high_hz):
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequency_hz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    return power[(frequency_hz >= low_hz) & (frequency_hz < high_hz)].sum() / power.sum()


def test_vowels_begin_on_the_beat_and_consonants_before():
    syllables = [
        SungSyllable(("s", "t", "aa", "r"), (SungNote(20, 50, 50),)),
        SungSyllable(("l", "ay", "t"), (SungNote(50, 80, 52), SungNote(80, 100, 54))),
        SungSyllable(("s", "iy"), (SungNote(120, 140, 52),)),
    ]
    assert [(s.phone, s.start, s.end, s.syllable) for s in lay_out(syllables)] == [
        ("s", 13, 17, 0), ("t", 17, 20, 0), ("aa", 20, 44, 0), ("r", 44, 47, 0),
        ("l", 47, 50, 1), ("ay", 50, 97, 1), ("t", 97, 100, 1),
        ("s", 116, 120, 2), ("iy", 120, 140, 2),
    ]  # fmt: skip


def test_consonants_give_way_in_short_notes():
    syllables = [
        SungSyllable(("s", "t", "r", "eh", "ng", "th", "s"), (SungNote(0, 6, 50),)),
        SungSyllable(("s", "p", "r", "ih", "ng"), (SungNote(6, 30, 50),)),
    ]
    sounds = lay_out(syllables)
    assert all(before.end <= after.start for before, after in zip(sounds, sounds[1:], strict=False))
    vowel = next(sound for sound in sounds if sound.phone == "eh")
    assert (vowel.start, vowel.end) == (0, 3)


def test_rests_are_silent_and_words_are_not_humming():
    note = (SungNote(20, 40, 57), SungNote(40, 50, 59))
    words = sing([SungSyllable(("sh", "uw"), note)], VOICES["female"], 80)
    assert not words[: 15 * 320].any()
    assert np.abs(words[54 * 320 :]).max() < 1e-3
    friction = words[16 * 320 : 20 * 320]
    assert _share(friction, 2000, 5000) > 0.8
    assert _share(words[25 * 320 : 40 * 320], 2000, 5000) < 0.02


def test_the_same_sound_is_the_same_samples_wherever_it_is_sung():
    first = sing([SungSyllable(("sh",) + ("iy",), (SungNote(20, 40, 60),))], VOICES["male"], 50)
    later = sing([SungSyllable(("sh",) + ("iy",), (SungNote(30, 50, 60),))], VOICES["male"], 60)
    assert np.array_equal(first[16 * 320 : 19 * 320], later[26 * 320 : 29 * 320])
    assert np.array_equal(first, sing([SungSyllable(("sh", "iy"), (SungNote(20, 40, 60),))], VOICES["male"], 50))


def test_nothing_to_sing_is_silence():
    assert not sing([], VOICES["male"], 10).any()
