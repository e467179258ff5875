"""An accompaniment from chord symbols: who plays what on which beat, and the sum of all notes.

Times of the song are in quarter notes from the first bar line; everything sounds on the grid of 20 ms frames.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from megatron_music.errors import InputError
from megatron_music.songs.abc import SEMITONES
from megatron_music.songs.instruments import INSTRUMENTS, note, stroke, sustains
from megatron_music.songs.phones import FRAME_S
from megatron_music.songs.singing import SAMPLE_RATE

FRAME_SAMPLES = round(FRAME_S * SAMPLE_RATE)
QUALITIES = {
    "": (0, 4, 7), "m": (0, 3, 7), "7": (0, 4, 7, 10), "m7": (0, 3, 7, 10), "maj7": (0, 4, 7, 11),
    "dim": (0, 3, 6), "sus4": (0, 5, 7), "6": (0, 4, 7, 9),
}  # fmt: skip
PATTERNS = ("strum", "oompah", "arpeggio", "block")
PATTERN_OF_INSTRUMENT = {
    "acoustic guitar": "arpeggio", "banjo": "oompah", "harp": "arpeggio", "piano": "oompah", "music box": "arpeggio",
    "strings": "block", "organ": "block", "accordion": "oompah", "flute": "arpeggio", "bass": "bass", "drums": "drums",
}  # fmt: skip
LOWEST_OF_INSTRUMENT = {"music box": 72, "flute": 69, "banjo": 55, "strings": 55, "organ": 53}
LOWEST_BASS, LOWEST_CHORD = 33, 52
STRING_DELAY = SAMPLE_RATE // 125  # between the strings of a strum
ACCENT, OFF_BEAT = 1.0, 0.75


@dataclass(frozen=True)
class Chord:
    """A chord with pitch classes: root, tones from the root upwards, and the note in the bass."""

    root: int
    tones: tuple[int, ...]
    bass: int

    def transposed(self, semitones: int) -> "Chord":
        return Chord(
            (self.root + semitones) % 12,
            tuple((tone + semitones) % 12 for tone in self.tones),
            (self.bass + semitones) % 12,
        )


def parse_chord(name: str, where: object) -> Chord:
    """Reads ``G``, ``F#m7`` or ``C/E``; raises InputError naming ``where``."""
    match = re.fullmatch(r"([A-G])([b#]?)(maj7|m7|dim|sus4|m|7|6|)(?:/([A-G])([b#]?))?", name)
    if not match:
        known = " ".join(f"C{quality}" for quality in QUALITIES)
        raise InputError(where, f"chord {name!r} is not known", f"write one such as {known} or C/E")
    sign = {"": 0, "#": 1, "b": -1}
    root = (SEMITONES[match[1]] + sign[match[2]]) % 12
    bass = (SEMITONES[match[4]] + sign[match[5]]) % 12 if match[4] else root
    return Chord(root, tuple((root + step) % 12 for step in QUALITIES[match[3]]), bass)


@dataclass(frozen=True)
class Timeline:
    """How quarter notes, counted from the first bar line, become frames.

    The audio begins at ``start`` (below 0 where an upbeat or an introduction comes first) and its music ends at
    ``end``, a chord that is held from ``last_bar`` on.
    """

    quarters_per_minute: float
    bar: Fraction
    compound: bool
    start: Fraction
    last_bar: Fraction
    end: Fraction

    def frame(self, quarter: Fraction) -> int:
        return round(float(quarter - self.start) * 60 / self.quarters_per_minute / FRAME_S)


@dataclass(frozen=True)
class Stroke:
    """One note to play: start and length in quarter notes, pitch or drum, loudness, place in a strum."""

    start: Fraction
    length: Fraction
    what: int | str
    loudness: float = ACCENT
    string: int = 0


def play(
    chords: Sequence[tuple[Fraction, Chord]], instruments: dict[str, str], timeline: Timeline, frames: int
) -> np.ndarray:
    """Plays chords (each from its time until the next) with instruments and their patterns.

    Returns float32 samples at 16 kHz, ``frames * 320`` of them.
    """
    samples = np.zeros(frames * FRAME_SAMPLES, dtype=np.float32)
    for name, pattern in instruments.items():
        for one in _strokes(chords, name, pattern, timeline):
            start = timeline.frame(one.start)
            if isinstance(one.what, str):
                wave = stroke(one.what)
            else:
                length = max(1, timeline.frame(one.start + one.length) - start)
                wave = note(name, one.what, length)
            first = start * FRAME_SAMPLES + one.string * STRING_DELAY
            if first >= 0:
                samples[first : first + len(wave)] += one.loudness * wave[: max(0, len(samples) - first)]
    return samples


def _strokes(chords: Sequence[tuple[Fraction, Chord]], name: str, pattern: str, timeline: Timeline) -> list[Stroke]:
    """All notes of one instrument, bar by bar, up to the last chord, which is held to the end."""

    def chord_at(time: Fraction) -> Chord:
        return max((entry for entry in chords if entry[0] <= time), key=lambda entry: entry[0], default=chords[0])[1]

    bar = chords[0][0] // timeline.bar * timeline.bar
    hold = max(timeline.last_bar, chords[-1][0])
    strokes: list[Stroke] = []
    while bar < hold:
        strokes += [one for one in BARS[pattern](chord_at, name, bar, timeline) if chords[0][0] <= one.start < hold]
        bar += timeline.bar
    return strokes + _held(chord_at(hold), name, hold, timeline.end - hold)


def _above(pitch_class: int, lowest: int) -> int:
    """The lowest note of a pitch class that is not below ``lowest``."""
    return lowest + (pitch_class - lowest) % 12


def _voicing(chord: Chord, name: str, count: int) -> list[int]:
    """``count`` chord notes from the instrument's lowest upwards."""
    lowest = LOWEST_OF_INSTRUMENT.get(name, LOWEST_CHORD)
    notes = sorted(_above(tone, lowest) for tone in chord.tones)
    while len(notes) < count:
        notes.append(notes[-len(chord.tones)] + 12)
    return notes[:count]


def _beats(timeline: Timeline) -> list[tuple[Fraction, Fraction]]:
    """(time in the bar, length) of its beats: dotted quarters in compound meters, quarters otherwise."""
    beat = Fraction(3, 2) if timeline.compound else Fraction(1)
    return [(index * beat, beat) for index in range(int(timeline.bar / beat))]


ChordAt = Callable[[Fraction], Chord]


def _strum(chord_at: ChordAt, name: str, bar: Fraction, timeline: Timeline) -> list[Stroke]:
    strokes = []
    for index, (at, length) in enumerate(_beats(timeline)):
        for string, pitch in enumerate(_voicing(chord_at(bar + at), name, 4)):
            strokes.append(Stroke(bar + at, length, pitch, OFF_BEAT if index else ACCENT, string))
    return strokes


def _oompah(chord_at: ChordAt, name: str, bar: Fraction, timeline: Timeline) -> list[Stroke]:
    """A low note, then chords: on two and three in 3/4, on even beats in 2/4 and 4/4, late in each beat of 6/8."""
    strokes = []
    beats = _beats(timeline)
    for index, (at, length) in enumerate(beats):
        low = [Stroke(bar + at, length, _above(chord_at(bar + at).bass, 43))]
        if timeline.compound:
            late = bar + at + 1
            strokes += low + _chord_strokes(chord_at(late), name, late, Fraction(1, 2))
        elif (index == 0) if len(beats) == 3 else (index % 2 == 0):
            strokes += low
        else:
            strokes += _chord_strokes(chord_at(bar + at), name, bar + at, length)
    return strokes


def _chord_strokes(chord: Chord, name: str, at: Fraction, length: Fraction) -> list[Stroke]:
    return [Stroke(at, length, pitch, OFF_BEAT) for pitch in _voicing(chord, name, 3)]


def _arpeggio(chord_at: ChordAt, name: str, bar: Fraction, timeline: Timeline) -> list[Stroke]:
    order = (0, 1, 2, 3, 2, 1) if timeline.bar == 3 else (0, 2, 1, 2)
    half = Fraction(1, 2)
    strokes = []
    for index in range(int(timeline.bar / half)):
        at = bar + index * half
        pitch = _voicing(chord_at(at), name, 4)[order[index % len(order)]]
        # The notes ring into each other, as on strings; held instruments play them one after the other.
        length = half if sustains(name) else 3 * half
        strokes.append(Stroke(at, length, pitch, ACCENT if index == 0 else OFF_BEAT))
    return strokes


def _block(chord_at: ChordAt, name: str, bar: Fraction, timeline: Timeline) -> list[Stroke]:
    """Long chords, struck again where the chord changes and at every bar line."""
    changes = [at for at, _ in _beats(timeline) if at == 0 or chord_at(bar + at) != chord_at(bar + at - Fraction(1, 2))]
    ends = [*changes[1:], timeline.bar]
    return [
        Stroke(bar + at, end - at, pitch)
        for at, end in zip(changes, ends, strict=True)
        for pitch in _voicing(chord_at(bar + at), name, 3)
    ]


def _bass(chord_at: ChordAt, name: str, bar: Fraction, timeline: Timeline) -> list[Stroke]:
    """The root on one; in even meters the fifth, or a new chord's root, in the middle of the bar."""
    first = chord_at(bar)
    if timeline.bar == 3 and not timeline.compound:
        return [Stroke(bar, timeline.bar, _above(first.bass, LOWEST_BASS))]
    middle = timeline.bar / 2
    later = chord_at(bar + middle)
    pitch_class = later.bass if later != first else first.tones[2]
    return [
        Stroke(bar, middle, _above(first.bass, LOWEST_BASS)),
        Stroke(bar + middle, middle, _above(pitch_class, LOWEST_BASS)),
    ]


def _drums(chord_at: ChordAt, name: str, bar: Fraction, timeline: Timeline) -> list[Stroke]:
    strokes = []
    beats = _beats(timeline)
    for index, (at, length) in enumerate(beats):
        back = index > 0 if len(beats) == 3 else index % 2 == 1
        strokes.append(Stroke(bar + at, length, ("hat" if len(beats) == 3 else "snare") if back else "kick"))
        if len(beats) != 3:
            strokes.append(Stroke(bar + at + length / (3 if timeline.compound else 2), length, "hat"))
    return strokes


def _held(chord: Chord, name: str, start: Fraction, length: Fraction) -> list[Stroke]:
    """The final chord."""
    if name == "drums":
        return [Stroke(start, length, "kick")]
    if name == "bass":
        return [Stroke(start, length, _above(chord.bass, LOWEST_BASS))]
    return [Stroke(start, length, pitch, ACCENT, string) for string, pitch in enumerate(_voicing(chord, name, 4))]


BARS: dict[str, Callable[[ChordAt, str, Fraction, Timeline], list[Stroke]]] = {
    "strum": _strum,
    "oompah": _oompah,
    "arpeggio": _arpeggio,
    "block": _block,
    "bass": _bass,
    "drums": _drums,
}


def check_instruments(names: Sequence[str], where: object) -> list[str]:
    """The names, in order; raises InputError for one that nobody plays."""
    known = [*INSTRUMENTS, "drums"]
    for name in names:
        if name not in known:
            raise InputError(where, f"instrument {name!r} is not known", f"use some of {', '.join(known)}")
    return list(names)
