"""Repetition and silence: what a track of codes repeats, how long it holds one code, and how much of it is silence.

A model that has collapsed repeats a few codes without an invalid one among them. Real music repeats too, so that every
measure of free samples stands beside the same measure of the song's own audio behind the same opening, cut to the same
length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.evaluation.intervals import mean_interval

NGRAM = 4
"""Frames of a repeated group of codes."""
_SILENCE_S = 2.0


def windows_of_codes(codes_T: np.ndarray, length: int) -> np.ndarray:
    """All groups of ``length`` codes in a row, (T - length + 1, length); none where there are fewer codes."""
    codes_T = np.asarray(codes_T)
    if len(codes_T) < length:
        return np.empty((0, length), dtype=codes_T.dtype)
    return np.lib.stride_tricks.sliding_window_view(codes_T, length)


def repeated_ngrams(codes_T: np.ndarray, length: int = NGRAM) -> tuple[int, int]:
    """Groups of ``length`` codes that stood before in the track, and all groups."""
    groups = windows_of_codes(codes_T, length)
    return len(groups) - len(np.unique(groups, axis=0)), len(groups)


def longest_hold(codes_T: np.ndarray) -> int:
    """Frames of the longest stretch of one code."""
    codes_T = np.asarray(codes_T)
    if not len(codes_T):
        return 0
    edges = np.flatnonzero(np.diff(codes_T)) + 1
    return int(np.diff(np.concatenate([[0], edges, [len(codes_T)]])).max())


def variety(
    sampled: Sequence[np.ndarray], true: Sequence[np.ndarray], silent: frozenset[int] | None = None
) -> dict[str, Any]:
    """Compares sampled tracks with true ones.

    Args:
        sampled, true: codes (T,) of tracks, in pairs of one length.
        silent: the codes of silence, where they are known.

    Returns:
        ``repeated``, ``repeated_true`` (shares of groups of 4 frames), ``longest_hold``, ``longest_hold_true`` (frames,
        the median over tracks), ``distinct``, ``distinct_true`` (codes in all tracks), ``tracks``, with ``silent``
        also ``silent`` and ``silent_true`` (shares of frames); ``repeated_excess``, ``silent_excess`` (sampled less
        true) and ``hold_ratio`` (sampled to true hold), each with its interval over tracks.

    Raises:
        ValueError: no track has as many frames as a group.
    """
    pairs = [(ours, theirs) for ours, theirs in zip(sampled, true, strict=True) if len(ours) >= NGRAM]
    if not pairs:
        raise ValueError(f"no sample has {NGRAM} frames")
    repeats_P22 = np.array([[repeated_ngrams(codes) for codes in pair] for pair in pairs], dtype=np.float64)
    holds_P2 = np.array([[longest_hold(codes) for codes in pair] for pair in pairs], dtype=np.float64)
    found = _both("repeated", repeats_P22) | {
        "longest_hold": float(np.median(holds_P2[:, 0])),
        "longest_hold_true": float(np.median(holds_P2[:, 1])),
        "hold_ratio": mean_interval(holds_P2[:, 0], holds_P2[:, 1]).as_dict(),
        "distinct": len(np.unique(np.concatenate([ours for ours, _ in pairs]))),
        "distinct_true": len(np.unique(np.concatenate([theirs for _, theirs in pairs]))),
        "tracks": len(pairs),
    }
    if silent is None:
        return found
    counted = [[(int(np.isin(codes, list(silent)).sum()), len(codes)) for codes in pair] for pair in pairs]
    return found | _both("silent", np.array(counted, dtype=np.float64))


def _both(name: str, counts_P22: np.ndarray) -> dict[str, Any]:
    """Shares of sampled and true tracks, and the difference, of (hits, all) by pair."""
    (ours, theirs), all_P = counts_P22[:, :, 0].T, counts_P22[:, 0, 1]
    return {
        name: float(ours.sum() / all_P.sum()),
        f"{name}_true": float(theirs.sum() / all_P.sum()),
        f"{name}_excess": mean_interval(ours - theirs, all_P).as_dict(),
    }


def silent_codes(codec: str, weights: str | Path | None) -> frozenset[int] | None:
    """Codes of codebook 0 that a codec gives digital silence; None without weights, InputError where they are wrong."""
    from megatron_music.audio.codec import load_codec

    if weights is None:
        return None
    loaded = load_codec(codec, weights, codebooks=1)
    codes_KT = loaded.encode(np.zeros(round(_SILENCE_S * loaded.sample_rate), dtype=np.float32))
    return frozenset(np.unique(codes_KT[0]).tolist())
