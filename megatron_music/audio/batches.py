"""Codes of many tracks with few calls of a codec: tracks of one length, or windows of many songs, go in together.

Whole tracks are the default, since a network that looks at all of a track (X-Codec: group norm and attention over
time) gives other codes where it is padded or cut. ``window_seconds`` gives that up for batches of one shape. What it
costs, as the share of codes that are those of the whole track (synthetic songs of 115 s): the embedded codec 99.7% at
10 s, 99.9% at 30 s, where only frames beside a seam differ; a tiny X-Codec of random weights 85%, 94% at 30 s and 96%
at 60 s. Trained weights are less easily moved; ``tools/measure_windows.py`` tells of yours.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from megatron_music.audio.codec import Codec
from megatron_music.errors import InputError


@dataclass
class _Track:
    """A track on its way: the pieces that it was cut into, and what came of those that were encoded."""

    pieces: int
    results: list[np.ndarray | Exception] = field(default_factory=list)

    def result(self) -> np.ndarray | Exception:
        failed = [result for result in self.results if isinstance(result, Exception)]
        return failed[0] if failed else np.concatenate(self.results, axis=1)


def encode_tracks(
    codec: Codec, tracks: Iterable[np.ndarray], batch_seconds: float = 0.0, window_seconds: float | None = None
) -> Iterator[np.ndarray | Exception]:
    """Codes of every track, int16 (codebooks, T), in the order of ``tracks``; an exception where the codec raised one.

    Args:
        codec: the codec; it is given equal lengths together.
        tracks: float32 (S,) each, at the codec's sample rate; taken as batches need them.
        batch_seconds: a batch holds at most so much audio, but at least one piece; 0 encodes each alone.
        window_seconds: cuts every track into windows of this length, which give ``ceil(S / hop)`` frames in all; the
            last one overlaps its neighbour, and a shorter track is padded with zeros. None keeps tracks whole.

    Raises:
        InputError: a window that is not a whole number of the codec's frames.
    """
    window = None if window_seconds is None else window_samples(codec, window_seconds)
    waiting: list[_Track] = []
    batch: list[tuple[_Track, np.ndarray, slice]] = []
    for samples in tracks:
        pieces = list(_pieces(codec, np.asarray(samples, np.float32), window))
        track = _Track(len(pieces))
        waiting.append(track)
        for piece, kept in pieces:
            seconds = (sum(len(other) for _, other, _ in batch) + len(piece)) / codec.sample_rate
            if batch and seconds > batch_seconds:
                _encode(codec, batch)
                batch = []
            batch.append((track, piece, kept))
        while waiting and len(waiting[0].results) == waiting[0].pieces:
            yield waiting.pop(0).result()
    _encode(codec, batch)
    yield from (track.result() for track in waiting)


def window_samples(codec: Codec, window_seconds: float) -> int:
    """Samples of a window; InputError where the codec's frames do not fill it."""
    frames = window_seconds * codec.frames_per_second
    if not math.isfinite(frames) or round(frames) < 1 or abs(frames - round(frames)) > 1e-6:
        what = f"{window_seconds:g} s are {frames:g} frames of {codec.name}"
        raise InputError("--window-seconds", what, "name a length of whole frames, such as 30")
    return round(frames) * round(codec.sample_rate / codec.frames_per_second)


def _pieces(codec: Codec, samples: np.ndarray, window: int | None) -> Iterator[tuple[np.ndarray, slice]]:
    """(piece, frames to keep of its codes) of a track.

    The last window reaches back into the one before it, since silence after its end would change all of its codes;
    only a track shorter than a window is padded.
    """
    if window is None:
        yield samples, slice(None)
        return
    hop = round(codec.sample_rate / codec.frames_per_second)
    frames, window_frames = -(-len(samples) // hop), window // hop
    for start in range(0, max(frames, 1), window_frames):
        begin = max(0, min(start, frames - window_frames))
        piece = samples[begin * hop : begin * hop + window]
        kept = slice(start - begin, min(frames, start + window_frames) - begin)
        yield np.pad(piece, (0, window - len(piece))), kept


def _encode(codec: Codec, batch: list[tuple[_Track, np.ndarray, slice]]) -> None:
    """Gives every track of a batch its codes; where the batch fails, each piece is tried alone."""
    if not batch:
        return
    pieces = [piece for _, piece, _ in batch]
    try:
        results: list[np.ndarray | Exception] = list(codec.encode_batch(pieces))
    except Exception:  # one file that a network can't take, or too large a batch
        results = [_encode_alone(codec, piece) for piece in pieces]
    for (track, _, kept), result in zip(batch, results, strict=True):
        track.results.append(result if isinstance(result, Exception) else result[:, kept])


def _encode_alone(codec: Codec, piece: np.ndarray) -> np.ndarray | Exception:
    try:
        return codec.encode(piece)
    except Exception as error:
        return error
