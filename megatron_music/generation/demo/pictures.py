"""A song to look at: the notes of its voice, and its spectrum."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_music.audio.pitch import HOP_S, fundamental_hz
from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters
from megatron_music.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
BLACK_KEYS = (1, 3, 6, 8, 10)
SHORTEST_NOTE_S = 0.04
LONGEST_LABEL = 24
MEL_BANDS = 96
RANGE_DB = 70.0
INK, NOTE = "#24292e", "#c8553d"
SIZE_INCHES, DOTS_PER_INCH = (9.0, 3.2), 110


@dataclass(frozen=True)
class Note:
    """A pitch held from ``start_s`` to ``end_s``; ``key`` is its MIDI number, 69 being A at 440 Hz."""

    key: int
    start_s: float
    end_s: float


def sung_notes(hz_T: np.ndarray) -> list[Note]:
    """The runs of a pitch track (``fundamental_hz``) that stay within one semitone for at least 40 ms."""
    keys_T = np.full(len(hz_T), -1)
    voiced = ~np.isnan(hz_T)
    keys_T[voiced] = np.round(69 + 12 * np.log2(hz_T[voiced] / 440))
    edges = np.flatnonzero(np.diff(keys_T, prepend=-2, append=-2))
    runs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [
        Note(int(keys_T[start]), start * HOP_S, end * HOP_S)
        for start, end in runs
        if keys_T[start] >= 0 and end - start >= round(SHORTEST_NOTE_S / HOP_S)
    ]


def section_starts(record: dict[str, Any]) -> list[tuple[float, str]]:
    """Start in seconds of every section that a ``song.json`` tells, and its label in brackets, or nothing where it has
    none; none of a song without lyrics."""
    seconds_each = record["duration_s"] / max(record["frames"], 1)
    return [
        (segment["start_frame"] * seconds_each, segment["text"].partition("\n")[0] if segment["text"][0] == "[" else "")
        for segment in record["segments"]
        if segment["text"]
    ]


def draw_piano_roll(
    path: str | Path, samples: np.ndarray, sample_rate: int, sections: Sequence[tuple[float, str]] = ()
) -> bool:
    """Draws the notes of one voice, by YIN, as a piano-roll PNG; False, and no file, where no note is held."""
    hz_T = fundamental_hz(samples, sample_rate)
    notes = sung_notes(hz_T)
    if not notes:
        return False
    low, high = min(note.key for note in notes) - 2, max(note.key for note in notes) + 2
    with _axes(path, "notes of the vocals, by YIN", len(samples) / sample_rate, sections) as axes:
        for key in range(low, high + 1):
            if key % 12 in BLACK_KEYS:
                axes.axhspan(key - 0.5, key + 0.5, color="#f0eee9", linewidth=0)
        for note in notes:
            axes.broken_barh([(note.start_s, note.end_s - note.start_s)], (note.key - 0.4, 0.8), color=NOTE)
        ticks = [key for key in range(low, high + 1) if key % 12 in ((0, 7) if high - low < 30 else (0,))]
        axes.set_yticks(ticks, [f"{NOTE_NAMES[key % 12]}{key // 12 - 1}" for key in ticks])
        axes.set_ylim(low - 0.5, high + 0.5)
    return True


def draw_spectrogram(
    path: str | Path, samples: np.ndarray, sample_rate: int, sections: Sequence[tuple[float, str]] = ()
) -> None:
    """Draws a mel spectrogram as a PNG, in decibels below its loudest point."""
    window = 2 ** round(np.log2(0.064 * sample_rate))
    filters_BF = mel_filters(MEL_BANDS, window, sample_rate)
    amplitudes_TF = np.abs(ShortTimeSpectrum(window, window // 4)(samples))
    decibels_TB = 20 * np.log10(np.maximum(amplitudes_TF @ filters_BF.T, 1e-6))
    top = decibels_TB.max()
    edges_hz = [hz for hz in (100, 500, 1000, 2000, 4000, 8000, 16000) if hz < sample_rate / 2]
    places = [float(np.argmax(filters_BF[:, round(hz * window / sample_rate)])) for hz in edges_hz]
    seconds = len(samples) / sample_rate
    with _axes(path, "mel spectrogram of the mix", seconds, sections) as axes:
        extent = (0.0, seconds, -0.5, MEL_BANDS - 0.5)
        axes.imshow(
            decibels_TB.T, origin="lower", aspect="auto", extent=extent, vmin=top - RANGE_DB, vmax=top, cmap="magma"
        )
        axes.set_yticks(places, [f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz" for hz in edges_hz])


@contextmanager
def _axes(path: str | Path, title: str, seconds: float, sections: Sequence[tuple[float, str]]) -> Iterator["Axes"]:
    """Yields axes over the song's time, with a line where a section starts, and writes them to ``path``."""
    from matplotlib.figure import Figure  # and not pyplot, whose figures belong to one thread

    figure = Figure(SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize=9, color=INK, x=0.01, ha="left")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK, labelsize=8, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    yield axes
    for start_s, label in sections:
        axes.axvline(start_s, color="#9aa3ab", linewidth=0.8)
        above = {"xycoords": ("data", "axes fraction"), "xytext": (2, 2), "textcoords": "offset points"}
        # A visitor wrote the label: a dollar sign in it is no formula.
        axes.annotate(label[:LONGEST_LABEL], (start_s, 1), fontsize=7, color=INK, parse_math=False, **above)
    axes.set_xlim(0, seconds)
    axes.set_xlabel("seconds", fontsize=8, color=INK)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
