"""What the voice sings: vocal range and note statistics, from f0 values or from audio through librosa's pyin.

A note counts once four f0 values in a row, 10 ms apart, are the same semitone (rounded to the nearest, A4 = 440 Hz);
the vocal range is the highest such note less the lowest.
"""

import fcntl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from megatron_music.audio.files import resample
from megatron_music.errors import InputError
from megatron_music.files import read_text

FRAMES_PER_S = 100
LEAST_FRAMES = 4
SAMPLE_RATE, FRAME_SAMPLES = 16_000, 768
"""A frame of 48 ms: of a note of 100 ms at least five lie wholly within it, and two periods of the lowest tone fit."""
LOWEST_HZ, HIGHEST_HZ = 55.0, 1320.0
"""A1 to a little above E6."""
RESOLUTION = 0.2
"""Semitones between candidates. librosa's 0.1 takes four times as long; a semitone is five steps either way."""
OCTAVES_PER_S = 70.0
"""How fast the pitch may move: 4 semitones in 10 ms. With librosa's 36 a note of 100 ms an octave below its neighbours
is passed over; without any limit consonants become notes."""
LEAST_VOICED = 0.1
"""Probability of a voice below which a value of pyin's path is dropped: noise between notes has such values."""
MULTIPLES, OTHER_PARTIALS = (2, 3, 4), 0.01
"""Where pyin stays on a note through a short one an octave, a twelfth or two octaves above, which repeats in the same
period too, partials that are no multiples of the higher note hold less of the power; a sung vowel's hold more."""
PIECE_S, MARGIN_S = 20.0, 0.5
"""Long songs are heard in pieces that overlap, for memory's sake: pyin keeps some kilobytes for every frame."""
SILENT_DBFS = -60.0


@dataclass(frozen=True)
class Note:
    """Frames (of 10 ms) from ``start`` to ``end`` on one semitone, a MIDI number."""

    start: int
    end: int
    semitone: int


def read_f0(path: str | Path) -> np.ndarray:
    """Values in Hz of a text file, one a line, float64 (T,); NaN where a line holds 0, a negative number or nan.

    Raises:
        InputError: the file can't be read, is empty, or a line is not a number.
    """
    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise InputError(path, "holds no f0 values", "write one value in Hz a line, 100 a second")
    values = np.empty(len(lines))
    for index, line in enumerate(lines):
        try:
            values[index] = float(line)
        except ValueError:
            found = f"{line.strip()[:40]!r} is not one number"
            raise InputError(f"{path}: line {index + 1}", found, "write one value in Hz a line, 100 a second") from None
    if np.isinf(values).any():
        where = f"{path}: line {int(np.isinf(values).argmax()) + 1}"
        raise InputError(where, "is infinite", "write 0 or nan where nothing is sung")
    return np.where(values > 0, values, np.nan)


def f0_of_audio(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """f0 by pyin (Mauch and Dixon 2014) of one voice without accompaniment.

    Args:
        samples: float32 (S,), full scale = 1.

    Returns:
        float64, 100 a second: Hz, NaN where nothing is sung. Pieces below -60 dBFS throughout are not looked at.

    Raises:
        InputError: librosa is not installed.
    """
    librosa = load_librosa()
    samples = resample(samples, sample_rate, SAMPLE_RATE)
    hop, piece, margin = (round(seconds * SAMPLE_RATE) for seconds in (1 / FRAMES_PER_S, PIECE_S, MARGIN_S))
    pieces = []
    for start in range(0, len(samples), piece):
        before = min(margin, start)
        heard = samples[start - before : start + piece + margin]
        frames = -(-min(piece, len(samples) - start) // hop)
        if np.abs(heard).max() < 10 ** (SILENT_DBFS / 20):
            pieces.append(np.full(frames, np.nan))
            continue
        f0_hz, _, voiced_T = librosa.pyin(
            heard,
            fmin=LOWEST_HZ,
            fmax=HIGHEST_HZ,
            sr=SAMPLE_RATE,
            frame_length=FRAME_SAMPLES,
            hop_length=hop,
            resolution=RESOLUTION,
            max_transition_rate=OCTAVES_PER_S,
        )
        f0_hz = _not_too_low(heard, np.where(voiced_T < LEAST_VOICED, np.nan, f0_hz))
        pieces.append(f0_hz[before // hop :][:frames])
    return np.concatenate(pieces) if pieces else np.zeros(0)


def load_librosa() -> ModuleType:
    """librosa, with the functions that numba compiles, or has compiled before, when they are imported.

    One process at a time: numba's cache of them crashes its readers where two have filled it at once
    (https://github.com/numba/numba/issues/10128). Raises InputError where librosa is not installed.
    """
    try:
        import librosa
    except ImportError as error:
        mend = "pip install 'megatron-music[evaluation]'"
        raise InputError("vocal range", f"needs librosa ({error})", mend) from None
    with open(librosa.__file__) as file:
        with suppress(OSError):  # Some cluster file systems have no locks.
            fcntl.flock(file, fcntl.LOCK_EX)
        import librosa.core.audio
        import librosa.core.pitch
    return librosa


def _not_too_low(samples: np.ndarray, f0_hz: np.ndarray) -> np.ndarray:
    """f0 (T,) with values doubled or tripled where the sound has no partials in between."""
    hop = SAMPLE_RATE // FRAMES_PER_S
    padded = np.pad(samples, FRAME_SAMPLES // 2 + 1)
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded, FRAME_SAMPLES)[1::hop][: len(f0_hz)]
    power_TF = np.abs(np.fft.rfft(frames_TN * np.hanning(FRAME_SAMPLES).astype(np.float32), axis=1)) ** 2
    bins_hz = np.fft.rfftfreq(FRAME_SAMPLES, 1 / SAMPLE_RATE)
    with np.errstate(invalid="ignore"):
        order_TF = bins_hz / f0_hz[:, None]
        partial_TF = np.rint(order_TF)
        power_TF = np.where((np.abs(order_TF - partial_TF) < 0.25) & (partial_TF > 0), power_TF, 0.0)
        total_T = power_TF.sum(axis=1)
        raised_hz = f0_hz
        for multiple in MULTIPLES:
            other_T = np.where(partial_TF % multiple, power_TF, 0.0).sum(axis=1)
            raised_hz = np.where(other_T < OTHER_PARTIALS * total_T, multiple * f0_hz, raised_hz)
    return np.where(raised_hz <= HIGHEST_HZ, raised_hz, f0_hz)


def notes(f0_hz: np.ndarray) -> list[Note]:
    """Stretches of at least four values (NaN or 0 = unvoiced) on one semitone, the nearest: f0 (T,), 100 a second."""
    voiced = np.isfinite(f0_hz) & (f0_hz > 0)
    semitones_T = np.floor(69 + 12 * np.log2(np.where(voiced, f0_hz, 440.0) / 440.0) + 0.5).astype(int)
    changes = np.flatnonzero((np.diff(semitones_T) != 0) | (np.diff(voiced) != 0)) + 1
    edges = [0, *changes.tolist(), len(f0_hz)]
    return [
        Note(start, end, int(semitones_T[start]))
        for start, end in zip(edges[:-1], edges[1:], strict=True)
        if end - start >= LEAST_FRAMES and voiced[start]
    ]


def voice_measures(f0_hz: np.ndarray) -> dict[str, float]:
    """Vocal range (semitones), lowest and highest note (MIDI numbers), notes a second, median length of a note (s),
    distinct semitones and share of the time with a voice (%); without a note the last alone."""
    if not len(f0_hz):
        return {}
    measures = {"voiced_share": float(100 * np.mean(np.isfinite(f0_hz) & (f0_hz > 0)))}
    found = notes(f0_hz)
    if found:
        semitones = [note.semitone for note in found]
        lengths_s = [(note.end - note.start) / FRAMES_PER_S for note in found]
        measures |= {
            "vocal_range": float(max(semitones) - min(semitones)),
            "lowest_note": float(min(semitones)),
            "highest_note": float(max(semitones)),
            "distinct_notes": float(len(set(semitones))),
            "notes_per_second": len(found) * FRAMES_PER_S / len(f0_hz),
            "note_length": float(np.median(lengths_s)),
        }
    return measures
