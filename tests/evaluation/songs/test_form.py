"""Songs of made sections: A B A B comes back, A B C D does not."""

import numpy as np
import pytest

from megatron_music.evaluation.songs.form import chorus_return, repetition
from megatron_music.evaluation.songs.inputs import Labelled
from megatron_music.songs.annotators.structure import block_features

RATE, SECTION_S = 16_000, 12.0


def section(name: str, take: int) -> np.ndarray:
    """Twelve seconds of a chord sequence of its own, on an instrument of its own; takes differ in their noise."""
    chance = np.random.default_rng(ord(name))
    time_s = np.arange(round(RATE * SECTION_S / 8)) / RATE
    slope, bright = chance.uniform(0.3, 2.0), chance.integers(3, 12)
    chords = []
    for root in chance.integers(0, 12, 8):
        pitches_hz = [220 * 2 ** ((root + step) / 12) for step in (0, chance.integers(3, 5), 7)]
        partials = [
            order**-slope * np.sin(2 * np.pi * order * hz * time_s) for hz in pitches_hz for order in range(1, bright)
        ]
        chords.append(0.05 * np.sum(partials, axis=0) * np.exp(-time_s))
    samples = np.concatenate(chords)
    return samples + np.random.default_rng(take).normal(0, 0.001, len(samples))


def song(form: str) -> np.ndarray:
    return np.concatenate([section(name, take) for take, name in enumerate(form)]).astype(np.float32)


def labelled(form: str, names: dict[str, str]) -> tuple[Labelled, ...]:
    return tuple(Labelled(names[one], at * SECTION_S, (at + 1) * SECTION_S) for at, one in enumerate(form))


def test_what_comes_back_is_found():
    measures, sections = repetition(block_features(song("ABAB")))
    assert measures["repetition"] == 100.0
    parts = [one["part"] for one in sections]
    assert parts == [parts[0], parts[1]] * 2 and parts[0] != parts[1]
    assert [one["start"] for one in sections] == pytest.approx([0, 12, 24, 36], abs=1.0)
    assert repetition(block_features(song("ABCD")))[0] == {"repetition": 0.0}
    half = repetition(block_features(song("ABCA")))[0]["repetition"]
    assert half == pytest.approx(50.0, abs=3.0)
    assert repetition(block_features(song("A")))[0] == {}


def test_choruses_are_compared_with_each_other_and_with_the_rest():
    names = {"A": "verse", "B": "chorus", "C": "verse", "D": "chorus"}
    returns = chorus_return(block_features(song("ABAB")), labelled("ABAB", names))
    differs = chorus_return(block_features(song("ABCD")), labelled("ABCD", names))
    assert returns > 0.7 and differs < 0.3
    features = block_features(song("ABAB"))
    assert chorus_return(features, labelled("AB", names)) is None
    assert chorus_return(features, labelled("BB", names)) is None
    short = (Labelled("chorus", 0, 0.5), Labelled("chorus", 12, 24), Labelled("verse", 24, 36))
    assert chorus_return(features, short) is None
