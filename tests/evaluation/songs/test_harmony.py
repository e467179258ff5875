"""Tempo and key of made clicks and chords."""

import mir_eval
import numpy as np
import pytest

from megatron_music.evaluation.songs.harmony import KEY_NAMES, key_measures, key_of, tempo_measures
from megatron_music.songs.annotators.structure import block_features

RATE = 16_000
MAJOR, MINOR = (0, 4, 7), (0, 3, 7)


def clicks(bpm: float, seconds: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    samples = np.zeros(round(seconds * RATE))
    burst = generator.normal(0, 0.2, 800) * np.exp(-np.arange(800) / 200)
    for beat in range(int(seconds * bpm / 60)):
        piece = samples[round(beat * 60 / bpm * RATE) :][:800]
        piece += burst[: len(piece)]
    return samples.astype(np.float32)


def chord(root: int, kind: tuple[int, ...], seconds: float) -> np.ndarray:
    """A chord on a root (semitones above C4), four harmonics each."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    hz = [261.63 * 2 ** ((root + step) / 12) for step in kind]
    return sum(0.03 / order * np.sin(2 * np.pi * order * one * time_s) for one in hz for order in (1, 2, 3, 4))


def cadence(tonic: int, kind: tuple[int, ...], seconds: float) -> np.ndarray:
    """I IV V I, of a second each."""
    four = [(0, kind), (5, kind), (7, MAJOR), (0, kind)]
    return np.concatenate([chord((tonic + four[at % 4][0]) % 12, four[at % 4][1], 1.0) for at in range(round(seconds))])


def test_a_tempo_that_is_kept_and_one_that_is_not():
    steady = tempo_measures(clicks(100, 60))
    assert steady["tempo"] == pytest.approx(100, abs=0.5) and steady["tempo_stability"] == 100.0
    tempi, weights = np.array([60.0, steady["tempo"]]), 0.0
    assert mir_eval.tempo.detection(np.array([60.0, 100.0]), weights, tempi, tol=0.04)[1]
    # Three windows of 15 s at one tempo, one at another.
    changed = tempo_measures(np.concatenate([clicks(100, 45), clicks(137, 15)]))
    assert changed["tempo"] == pytest.approx(100, abs=1) and changed["tempo_stability"] == 75.0
    # Twice as fast is the same pulse.
    assert tempo_measures(np.concatenate([clicks(70, 45), clicks(140, 15)]))["tempo_stability"] == 100.0
    assert tempo_measures(np.zeros(30 * RATE, np.float32)) == {} and tempo_measures(clicks(100, 3)) == {}
    assert set(tempo_measures(clicks(100, 20))) == {"tempo"}


@pytest.mark.parametrize(("kind", "name"), [(MAJOR, "major"), (MINOR, "minor")])
@pytest.mark.parametrize("tonic", [0, 3, 8])
def test_the_key_of_a_cadence(tonic, kind, name):
    features = block_features(cadence(tonic, kind, 16).astype(np.float32))
    key = key_of(features.chroma_TC.mean(axis=0))
    assert mir_eval.key.weighted_score(f"{KEY_NAMES[tonic]} {name}", key) == 1.0


def test_a_key_that_is_kept_and_one_that_is_not():
    kept = key_measures(block_features(cadence(2, MAJOR, 48).astype(np.float32)))
    assert kept == ({"key_stability": 100.0}, "D major")
    moved = np.concatenate([cadence(2, MAJOR, 30), cadence(8, MAJOR, 16)]).astype(np.float32)
    measures, key = key_measures(block_features(moved))
    assert key == "D major" and measures["key_stability"] == pytest.approx(200 / 3)
    assert key_measures(block_features(cadence(2, MAJOR, 12).astype(np.float32))) == ({}, "D major")
    assert key_measures(block_features(np.zeros(40 * RATE, np.float32))) == ({}, None)
