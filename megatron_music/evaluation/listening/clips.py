"""What raters hear of a song: one format, no metadata, one loudness."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_music.audio.files import read_audio, write_audio
from megatron_music.audio.loudness import gain_to, integrated_loudness, true_peak
from megatron_music.errors import InputError
from megatron_music.parallel import Workers
from megatron_music.progress import track

SAMPLE_RATE = 44_100
TARGET_LUFS, LOWEST_LUFS = -16.0, -23.0
"""Loudness of the clips, and how far all of them go down for one that would clip."""
_FEW = 8
"""Songs for which starting processes takes longer than they save; a song of three minutes takes 6 s."""

Height = tuple[float, float]
"""Loudness in LUFS and true peak."""


def write_clips(
    jobs: Sequence[tuple[Path, Path]], match_loudness: bool, say: Callable[[str], None]
) -> tuple[float | None, list[bool]]:
    """Writes songs as clips.

    Args:
        jobs: a song's file and its clip's.
        match_loudness: brings all to one loudness; otherwise a clip is only kept from clipping.
        say: is told what is left out, and what stays below the others.

    Returns:
        The common loudness in LUFS, None where it was left alone, and whether each clip is there.
    """
    with Workers(1 if len(jobs) <= _FEW else None) as workers:
        songs = [song for song, _ in jobs]
        found = list(track(workers.map(_measure, songs), "measuring loudness", len(jobs)))
        heights: list[Height | None] = []
        for height in found:
            if isinstance(height, InputError):
                say(f"left out: {height}")
            heights.append(None if isinstance(height, InputError) else height)
        lufs = _common_loudness([height for height in heights if height]) if match_loudness else None
        writing = [(*job, gain_to(lufs, *height)) for job, height in zip(jobs, heights, strict=True) if height]
        for _ in track(workers.map(_write, writing), "writing clips", len(writing)):
            pass
    for song, height in zip(songs, heights, strict=True):
        if lufs is not None and height and (short := lufs - _reached(*height, lufs)) > 0.1:
            say(f"{song} stays {short:.1f} dB below the others: it would clip")
    return lufs, [height is not None for height in heights]


def _read(song: Path) -> np.ndarray:
    """Float32 (2, samples); other numbers of channels are averaged."""
    samples_CS = read_audio(song, SAMPLE_RATE, mono=False)
    return samples_CS if len(samples_CS) == 2 else np.repeat(samples_CS.mean(axis=0, keepdims=True), 2, axis=0)


def _measure(song: Path) -> Height | InputError:
    try:
        samples_CS = _read(song)
    except InputError as error:
        return error
    return integrated_loudness(samples_CS, SAMPLE_RATE), true_peak(samples_CS, SAMPLE_RATE)


def _write(job: tuple[Path, Path, float]) -> None:
    song, clip, gain = job
    write_audio(clip, _read(song) * gain, SAMPLE_RATE)


def _common_loudness(heights: Sequence[Height]) -> float:
    """The target, or as far below as the clip that would clip first needs, but not below the lowest."""
    reached = [_reached(loudness, peak, TARGET_LUFS) for loudness, peak in heights if math.isfinite(loudness)]
    return max(LOWEST_LUFS, min([TARGET_LUFS, *reached]))


def _reached(loudness: float, peak: float, lufs: float) -> float:
    """Loudness of a clip that is brought to ``lufs`` as far as it does not clip."""
    return loudness + 20 * math.log10(gain_to(lufs, loudness, peak)) if math.isfinite(loudness) else lufs
