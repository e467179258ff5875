"""Sampled fingerprints of token sequences: winnowing (Schleimer, Wilkerson and Aiken 2003, "Winnowing: local algorithms
for document fingerprinting").

Every group of ``GRAM`` tokens in a row has a hash, and of every ``WINDOW`` groups in a row the one with the least hash
is kept: about 2 / (WINDOW + 1) of all. Two sequences that share ``GUARANTEE`` = WINDOW + GRAM - 1 tokens in a row share
a whole window of groups, and so its least one. Groups of one held code are never kept: of silence and held notes there
is more than of anything else, and a stretch of nothing else is no copy.
"""

from collections.abc import Callable

import numpy as np

from megatron_music.corpus.duplicates import scattered

GRAM = 6
WINDOW = 6
GUARANTEE = WINDOW + GRAM - 1
SEPARATOR = -1
"""Stands between sequences; no group reaches across it."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
_NEVER = np.uint64(2**64 - 1)


def gram_hashes(codes_T: np.ndarray) -> np.ndarray:
    """Hashes, uint64 (T - GRAM + 1,), of all groups; the largest number for those that hold a separator or one code."""
    count = len(codes_T) - GRAM + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    plain_T = codes_T.astype(np.uint64)
    hashes = plain_T[:count].copy()
    for at in range(1, GRAM):
        hashes *= FACTOR
        hashes += plain_T[at : at + count]
    hashes = scattered(hashes)
    changes = _sliding(np.logical_or, codes_T[1:] != codes_T[:-1], GRAM - 1)
    separated = _sliding(np.logical_or, codes_T == SEPARATOR, GRAM)
    hashes[~changes | separated] = _NEVER
    return hashes


def usable(hashes: np.ndarray) -> np.ndarray:
    """Which groups may be kept at all."""
    return hashes != _NEVER


def kept_grams(codes_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First tokens, int64 (F,), and hashes, uint64 (F,), of the groups that are kept."""
    hashes = gram_hashes(codes_T)
    if not len(hashes):
        return np.zeros(0, np.int64), hashes
    # A window may reach over the ends: there it keeps a group more than it must.
    ends = np.full(WINDOW - 1, _NEVER)
    least = _sliding(np.minimum, np.concatenate([ends, hashes, ends]), WINDOW)
    # Each of the windows that a group is in has at most its hash as the least; one has it where their largest is equal.
    kept = np.flatnonzero((_sliding(np.maximum, least, WINDOW) == hashes) & usable(hashes))
    return kept, hashes[kept]


def _sliding(operation: Callable, values: np.ndarray, width: int) -> np.ndarray:
    """Of every ``width`` values in a row the minimum, maximum or any, (T - width + 1,)."""
    span = 1
    while 2 * span <= width:
        values = operation(values[:-span], values[span:])
        span *= 2
    return operation(values[: -(width - span)], values[width - span :]) if span < width else values
