"""Structure on signals whose sections are known: each part has its own chords, loudness and timbre."""

import numpy as np
import pytest

from megatron_music.songs.annotators import load_annotator, structure
from megatron_music.songs.annotators.structure import (
    SAMPLE_RATE,
    block_features,
    boundaries,
    label_parts,
    novelty,
    recurrence_change,
)

TOLERANCE_S = 1.0
CHORDS = {  # MIDI pitches of four chords, amplitudes of the first overtones
    "A": ([(57, 60, 64), (53, 57, 60), (48, 52, 55), (55, 59, 62)], (1.0, 0.3, 0.1)),
    "B": ([(53, 57, 60), (55, 59, 62), (52, 56, 59), (57, 60, 64)], (1.0, 0.9, 0.8, 0.7, 0.6)),
    "C": ([(50, 54, 57), (46, 50, 53), (51, 55, 58), (44, 48, 51)], (1.0, 0.0, 0.9, 0.0, 0.8)),
    "I": ([(57, 64, 69)] * 4, (1.0,)),
}
LOUDNESS = {"A": 0.1, "B": 0.25, "C": 0.12, "I": 0.03}


def _part(name: str, seconds: float, seed: int) -> np.ndarray:
    """Chords of a second each, with a little noise so that no two renderings are equal."""
    chords, overtones = CHORDS[name]
    times_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    beats = []
    for beat in range(int(seconds)):
        tones = [
            amplitude * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * (number + 1) * times_s)
            for pitch in chords[beat % 4]
            for number, amplitude in enumerate(overtones)
        ]
        beats.append(np.sum(tones, axis=0) * np.exp(-times_s))
    samples = np.concatenate(beats)
    samples *= LOUDNESS[name] / np.abs(samples).max()
    return samples + np.random.default_rng(seed).normal(0, 1e-3, len(samples))


def _song(form: str, lengths_s: list[int]) -> tuple[np.ndarray, list[float]]:
    parts = [_part(name, seconds, seed) for seed, (name, seconds) in enumerate(zip(form, lengths_s, strict=True))]
    return np.concatenate(parts).astype(np.float32), list(np.cumsum(lengths_s)[:-1])


@pytest.mark.parametrize(
    ("form", "lengths_s", "labels"),
    [
        ("ABABCB", [20, 20, 20, 20, 20, 20], ["verse", "chorus", "verse", "chorus", "bridge", "chorus"]),
        ("ABABCB", [24, 16, 22, 16, 13, 17], ["verse", "chorus", "verse", "chorus", "bridge", "chorus"]),
        ("IABABI", [10, 20, 16, 20, 16, 12], ["verse", "verse", "chorus", "verse", "chorus", "verse"]),
        ("IABABC", [10, 20, 16, 20, 16, 12], ["intro", "verse", "chorus", "verse", "chorus", "outro"]),
    ],
)
def test_boundaries_and_labels_of_made_songs(form, lengths_s, labels):
    samples, boundaries_s = _song(form, lengths_s)
    sections = load_annotator("structure").sections(samples)
    assert [section["label"] for section in sections] == labels
    starts_s = [section["start"] for section in sections]
    assert starts_s[0] == 0.0 and sections[-1]["end"] == sum(lengths_s)
    assert [section["end"] for section in sections[:-1]] == starts_s[1:]
    assert starts_s[1:] == pytest.approx(boundaries_s, abs=TOLERANCE_S)
    assert load_annotator("structure").sections(samples) == sections


def test_novelty_is_the_checkerboard_kernel_along_the_diagonal():
    """Against Foote's formula on the whole self-similarity matrix."""
    sound_TD = np.random.default_rng(0).normal(size=(40, 5))
    half = 6
    offsets = np.arange(-half, half) + 0.5
    taper = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2) / (0.5 * half) ** 2)
    kernel = taper * np.sign(offsets[:, None] * offsets[None])
    similarity = sound_TD @ sound_TD.T
    whole = [(kernel * similarity[t - half : t + half, t - half : t + half]).sum() for t in range(half, 40 - half + 1)]
    assert novelty(sound_TD, half)[half : 40 - half + 1] == pytest.approx(np.array(whole))


def test_a_voice_decides_what_is_sung():
    parts, lengths_s, levels = np.array([3, 1, 2, 1, 2, 4]), np.full(6, 20.0), np.array([0.1, 1, 2, 1, 2, 1])
    voice = np.array([True, True, True, False, True, True])
    assert label_parts(parts, lengths_s, levels, voice) == ["verse", "verse", "chorus", "inst", "chorus", "bridge"]


@pytest.mark.parametrize("most_blocks", [2400, 240])
def test_what_recurs_changes_at_the_boundaries(monkeypatch, most_blocks):
    """Three parts that never stand still, in the form ABABCB; and the same in longer blocks, as of a long song."""
    generator = np.random.default_rng(0)
    parts = np.cumsum(generator.normal(size=(3, 100, 8)), axis=1)
    sound_TD = np.concatenate([parts[part] for part in (0, 1, 0, 1, 2, 1)])
    sound_TD += generator.normal(0, 0.1, sound_TD.shape)
    monkeypatch.setattr(structure, "MOST_BLOCKS", most_blocks)
    change = recurrence_change(sound_TD)
    assert change.shape == (600,)
    # B follows A both times: only where something else follows does the set of repetitions change.
    for boundary in (200, 400, 500):
        assert change[boundary - 8 : boundary + 8].max() > 3 * np.median(change)
    assert abs(int(np.argmax(change[350:450])) + 350 - 400) <= 8


def test_sections_are_at_least_as_long_as_asked():
    samples, _ = _song("ABABABAB", [4] * 8)
    features = block_features(samples)
    assert np.diff(boundaries(features, 40)).min() >= 40
    assert len(boundaries(features, 12)) > len(boundaries(features, 40))


def test_sections_without_voice_are_not_sung():
    samples, _ = _song("ABABCB", [20] * 6)
    vocals = np.zeros_like(samples)
    for start in (20, 60):
        vocals[start * SAMPLE_RATE : (start + 20) * SAMPLE_RATE] = 0.1
    labels = [section["label"] for section in load_annotator("structure").sections(samples, vocals)]
    assert labels == ["intro", "verse", "inst", "verse", "inst", "outro"]


def test_silence_and_short_sounds_are_one_section():
    annotator = load_annotator("structure")
    assert annotator.sections(np.zeros(48000, np.float32)) == [{"start": 0.0, "end": 3.0, "label": "inst"}]
    assert annotator.sections(np.ones(1, np.float32)) == [{"start": 0.0, "end": 0.0, "label": "verse"}]
    samples, _ = _song("A", [6])
    assert annotator.sections(samples) == [{"start": 0.0, "end": 6.0, "label": "verse"}]


@pytest.mark.parametrize(
    ("parts", "levels", "labels"),
    [
        ([1, 2, 1, 2], [1, 2, 1, 2], "verse chorus verse chorus"),
        ([1, 2, 1, 2], [2, 1, 2, 1], "chorus verse chorus verse"),
        ([3, 1, 2, 1, 2, 4], [0.1, 1, 2, 1, 2, 1], "intro verse chorus verse chorus outro"),
        ([3, 1, 2, 1, 2, 4, 2], [3, 1, 2, 1, 2, 1, 2], "verse verse chorus verse chorus bridge chorus"),
        ([1, 2, 3], [1, 1, 1], "verse verse verse"),
        ([3, 1, 1, 1, 4], [0.1, 1, 1, 1, 1], "intro verse verse verse outro"),
        ([1], [1], "verse"),
    ],
)
def test_labels_follow_from_repetition_and_loudness(parts, levels, labels):
    count = len(parts)
    found = label_parts(np.array(parts), np.full(count, 20.0), np.array(levels, float), None)
    assert " ".join(found) == labels
