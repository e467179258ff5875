"""Copies of a sample in an index: the longest exact run, and windows of which at least 80% of the tokens match.

Exact runs grow from the groups of codes that sample and corpus share. A run of at least ``GUARANTEE`` = 11 tokens that
is not one held code is found for certain, shorter ones from 6 tokens on sometimes.

A window matches by Hamming distance against a stretch of the corpus of its length: nothing inserted, nothing left out,
as codes of one recording at one frame rate lie. It is looked at where it holds a shared group, so that one with an
exact run of 11 tokens is found for certain. The most even spread of mismatches leaves runs of 4 in a window of 250 of
which 80% match, and such a window is never found; mismatches at random leave runs of 11 to nearly all of them
(docs/evaluation.md has the recall that was measured).

Windows with few distinct codes, silence and held notes, are not judged: see ``LEAST_DISTINCT``.
"""

from dataclasses import dataclass

import numpy as np

from megatron_music.evaluation.memorisation.fingerprints import GRAM
from megatron_music.evaluation.memorisation.index import CopyIndex

WINDOW_FRAMES = 250
"""Tokens of a window: 5 s of X-Codec, as in MusicGen's study of memorisation (Copet et al. 2023)."""
NEAR = 0.8
"""Share of a window's tokens that make it a near copy."""
LEAST_DISTINCT = 0.1
"""Least distinct codes in a window that is judged, as a share of its tokens, or of the codebook where that is smaller;
ICL references have the same limit (documents/reference.py)."""
_BLOCK = 32
_ROWS_AT_ONCE = 2048
_OUTSIDE = -2


@dataclass(frozen=True)
class Copies:
    """What of one sample stands in the corpus.

    Attributes:
        tokens: its length; ``window`` = WINDOW_FRAMES, or the length where that is shorter.
        longest: tokens of the longest exact run, of which ``longest_distinct`` different codes.
        longest_at: that run's first token in the index's codes; None where there is none.
        judged: tokens in windows that are judged; 0 where no window is.
        exact, near: tokens in judged windows all of whose tokens match, or at least 80%.
        closest: largest share of a judged window that matches, among those that were looked at.
        cut: see ``Seeds``.
    """

    tokens: int
    window: int
    longest: int
    longest_distinct: int
    longest_at: int | None
    judged: int
    exact: int
    near: int
    closest: float
    cut: int


def find_copies(index: CopyIndex, codes_T: np.ndarray, window: int = WINDOW_FRAMES) -> Copies:
    """Looks for a track of codes, int (T,), in an index."""
    codes_T = np.asarray(codes_T, np.int16)
    window = min(window, len(codes_T))
    seeds = index.seeds(codes_T)
    # In order along each diagonal (the stretches of the corpus that the sample can be laid against).
    diagonal_S = seeds.corpus_S - seeds.sample_S
    order = np.lexsort((seeds.sample_S, diagonal_S))
    sample_S, diagonal_S = seeds.sample_S[order], diagonal_S[order]
    begin, length, diagonal = _longest_run(index, codes_T, sample_S, diagonal_S)
    judged_W = _distinct(codes_T, window) >= LEAST_DISTINCT * min(window, index.codec["codebook_size"])
    matches_W = _most_matches(index, codes_T, sample_S, diagonal_S, window)
    matches_W[~judged_W] = 0
    return Copies(
        tokens=len(codes_T),
        window=window,
        longest=length,
        longest_distinct=len(np.unique(codes_T[begin : begin + length])),
        longest_at=begin + diagonal if length else None,
        judged=_covered(judged_W, window),
        exact=_covered((matches_W == window) & judged_W, window),
        near=_covered((matches_W >= NEAR * window) & judged_W, window),
        closest=float(matches_W.max(initial=0) / window) if window else 0.0,
        cut=seeds.cut,
    )


def _longest_run(
    index: CopyIndex, codes_T: np.ndarray, sample_S: np.ndarray, diagonal_S: np.ndarray
) -> tuple[int, int, int]:
    """First token, length and diagonal of the longest run of equal tokens around a seed."""
    if not len(sample_S):
        return 0, 0, 0
    # A seed that touches the one before it on its diagonal is part of the same run.
    leads = np.ones(len(sample_S), bool)
    leads[1:] = (diagonal_S[1:] != diagonal_S[:-1]) | (sample_S[1:] > sample_S[:-1] + GRAM)
    sample_R, diagonal_R = sample_S[leads], diagonal_S[leads]
    before_R = _equal_tokens(index, codes_T, sample_R - 1, diagonal_R, -1)
    after_R = _equal_tokens(index, codes_T, sample_R, diagonal_R, 1)
    best = int(np.argmax(before_R + after_R))
    return int(sample_R[best] - before_R[best]), int(before_R[best] + after_R[best]), int(diagonal_R[best])


def _equal_tokens(
    index: CopyIndex, codes_T: np.ndarray, sample_R: np.ndarray, diagonal_R: np.ndarray, step: int
) -> np.ndarray:
    """How many tokens from ``sample_R`` on, forwards or backwards, equal those of the corpus on the diagonal."""
    lengths_R = np.zeros(len(sample_R), np.int64)
    going = np.arange(len(sample_R))
    steps_B = step * np.arange(_BLOCK)
    while len(going):
        still = []
        for rows in np.array_split(going, -(-len(going) // _ROWS_AT_ONCE)):
            at_RB = (sample_R[rows] + step * lengths_R[rows])[:, None] + steps_B
            equal_RB = _tokens(codes_T, at_RB) == _corpus(index, at_RB + diagonal_R[rows, None])
            whole_R = equal_RB.all(axis=1)
            lengths_R[rows] += np.where(whole_R, _BLOCK, np.argmin(equal_RB, axis=1))
            still.append(rows[whole_R])
        going = np.concatenate(still)
    return lengths_R


def _most_matches(
    index: CopyIndex, codes_T: np.ndarray, sample_S: np.ndarray, diagonal_S: np.ndarray, window: int
) -> np.ndarray:
    """For each window of the sample, int64 (T - window + 1,), the most tokens that match on a diagonal with a seed."""
    best_W = np.zeros(max(0, len(codes_T) - window + 1), np.int64)
    if not len(sample_S):
        return best_W
    # All windows with a seed of one tile of the sample lie within the tile and a window to each side of it.
    cells = np.unique(np.stack([diagonal_S, sample_S // window]), axis=1).T
    reach_B = np.arange(-window, 2 * window + GRAM)
    for rows in np.array_split(cells, -(-len(cells) // _ROWS_AT_ONCE)):
        first_R = rows[:, 1] * window
        at_RB = first_R[:, None] + reach_B
        equal_RB = _tokens(codes_T, at_RB) == _corpus(index, at_RB + rows[:, 0, None])
        sums_RB = np.concatenate([np.zeros((len(rows), 1), np.int32), np.cumsum(equal_RB, axis=1, dtype=np.int32)], 1)
        matches_RB = sums_RB[:, window:] - sums_RB[:, :-window]
        for tile in np.unique(first_R):
            most_B = matches_RB[first_R == tile].max(axis=0)
            begin = tile - window
            kept = slice(max(0, begin), max(0, min(len(best_W), begin + len(most_B))))
            best_W[kept] = np.maximum(best_W[kept], most_B[kept.start - begin : kept.stop - begin])
    return best_W


def _tokens(codes_T: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Tokens of the sample, and what equals nothing outside it."""
    return np.where((at >= 0) & (at < len(codes_T)), codes_T[np.clip(at, 0, len(codes_T) - 1)], _OUTSIDE)


def _corpus(index: CopyIndex, at: np.ndarray) -> np.ndarray:
    """Tokens of the corpus; it begins and ends with a separator, which equals no code."""
    return index.codes[np.clip(at, 0, len(index.codes) - 1)]


def _distinct(codes_T: np.ndarray, window: int) -> np.ndarray:
    """Distinct codes of each window, int64 (T - window + 1,)."""
    if not window:
        return np.zeros(0, np.int64)
    before_T = np.full(len(codes_T), -1)
    order = np.argsort(codes_T, kind="stable")
    same = codes_T[order[1:]] == codes_T[order[:-1]]
    before_T[order[1:][same]] = order[:-1][same]
    # A token is the first of its code in a window where the one before it stands outside.
    windows_WN = np.lib.stride_tricks.sliding_window_view(before_T, window)
    return (windows_WN < np.arange(len(windows_WN))[:, None]).sum(axis=1)


def _covered(windows_W: np.ndarray, window: int) -> int:
    """Tokens that lie in any of the windows that are true."""
    if not window:
        return 0
    edges = np.zeros(len(windows_W) + window, np.int64)
    first = np.flatnonzero(windows_W)
    edges[first] += 1
    edges[first + window] -= 1
    return int((np.cumsum(edges) > 0).sum())
