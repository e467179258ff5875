"""Whether a song keeps its tempo and its key."""

from collections import Counter

import numpy as np

from megatron_music.songs.annotators.structure import BLOCK_S, SILENT_DB, Features
from megatron_music.songs.annotators.tempo import SAMPLE_RATE, tempo_bpm

TEMPO_WINDOW_S, KEY_WINDOW_S = 15.0, 15.0
TEMPO_TOLERANCE = 0.04
TEMPO_FACTORS = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)
"""A window agrees with the song within 4%, also at half, double, a third or three times its tempo: "accuracy 2" of
Gouyon et al. 2006, An experimental comparison of audio tempo induction algorithms."""
KEY_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
"""How well each tone fits a key on C (Krumhansl and Kessler 1982, as in Krumhansl 1990, table 2.1)."""


def tempo_measures(samples: np.ndarray) -> dict[str, float]:
    """Tempo (beats a minute) of float32 (S,) at 16 kHz, and the share (%) of windows of 15 s that keep it.

    Windows that have no beat do not count; without a beat, nothing.
    """
    whole = tempo_bpm(samples)
    if whole is None:
        return {}
    size = round(TEMPO_WINDOW_S * SAMPLE_RATE)
    pieces = (samples[start : start + size] for start in range(0, len(samples) - size + 1, size))
    found = [bpm for bpm in map(tempo_bpm, pieces) if bpm is not None]
    measures = {"tempo": whole}
    if len(found) > 1:
        measures["tempo_stability"] = 100 * float(np.mean([_agrees(bpm, whole) for bpm in found]))
    return measures


def _agrees(bpm: float, whole_bpm: float) -> bool:
    return any(abs(bpm / (factor * whole_bpm) - 1) <= TEMPO_TOLERANCE for factor in TEMPO_FACTORS)


def key_measures(features: Features) -> tuple[dict[str, float], str | None]:
    """Share (%) of windows of 15 s whose key is the one that most of them have, and that key, "C major".

    A window's key is the one whose Krumhansl profile correlates best with the mean chroma. Silent windows do not count;
    a song with fewer than two others has a key and no share.
    """
    size = round(KEY_WINDOW_S / BLOCK_S)
    whole = max(1, len(features.level_T) // size)
    keys = []
    for start in range(0, whole * size, size):
        if features.level_T[start : start + size].mean() > 10 ** (SILENT_DB / 10):
            keys.append(key_of(features.chroma_TC[start : start + size].mean(axis=0)))
    if not keys:
        return {}, None
    key, count = Counter(keys).most_common(1)[0]
    return ({"key_stability": 100 * count / len(keys)} if len(keys) > 1 else {}), key


def key_of(chroma_C: np.ndarray) -> str:
    """The key of a chroma, (12,) from C on: the profile with the highest Pearson correlation, of 24."""
    profiles = [np.roll(profile, tonic) for profile in (_MAJOR, _MINOR) for tonic in range(12)]
    centred_C = chroma_C - chroma_C.mean()
    fits = [centred_C @ (profile - profile.mean()) / np.linalg.norm(profile - profile.mean()) for profile in profiles]
    best = int(np.argmax(fits))
    return f"{KEY_NAMES[best % 12]} {'major' if best < 12 else 'minor'}"
