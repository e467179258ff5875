"""Which n-grams of samples stand anywhere in the training corpus.

The samples' n-grams are in memory and the codes of the index are read once, whatever their number: nothing is sampled
and nothing estimated. An n-gram can only stand where its first n - 1 codes do, so that of the corpus nearly all is
passed over at n = 2, by one look into a table. Hashes of 64 bits stand for n-grams: among 10^5 of samples and 10^11 of
a corpus the chance that any two of different codes meet is below 0.1%.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from megatron_music.corpus.duplicates import scattered
from megatron_music.evaluation.memorisation.fingerprints import FACTOR
from megatron_music.progress import track

SHORTEST, LONGEST = 2, 8
_TABLE_BITS = 20
_CHUNK_TOKENS = 1 << 16


def ngram_overlap(
    corpus_T: np.ndarray, samples: Mapping[str, Sequence[np.ndarray]], longest: int = LONGEST
) -> dict[str, dict[int, float]]:
    """Share of each group of samples' n-grams that stand in a corpus, for n = 2 to ``longest``.

    Args:
        corpus_T: codes, int16, of sequences with negative separators around them.
        samples: codes (T,) of each sample, by the group's name.

    Returns:
        Shares by group and n; an n that no sample of the group is long enough for is absent.
    """
    hashes = {name: {n: _hashes(group, n) for n in range(SHORTEST, longest + 1)} for name, group in samples.items()}
    wanted = {n: np.unique(np.concatenate([of[n] for of in hashes.values()])) for n in range(SHORTEST, longest + 1)}
    found = _found(corpus_T, wanted)
    shares: dict[str, dict[int, float]] = {}
    for name, of in hashes.items():
        shares[name] = {
            n: float(found[n][np.searchsorted(wanted[n], those)].mean()) for n, those in of.items() if len(those)
        }
    return shares


def _found(corpus_T: np.ndarray, wanted: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """For each n, which of its hashes, sorted, an n-gram of the corpus has."""
    found = {n: np.zeros(len(those), bool) for n, those in wanted.items()}
    tables = {n: _table(those) for n, those in wanted.items()}
    longest = max(wanted)
    for begin in track(range(0, len(corpus_T), _CHUNK_TOKENS), "n-grams of the corpus"):
        chunk = np.asarray(corpus_T[begin : begin + _CHUNK_TOKENS + longest - 1])
        starts = np.arange(min(_CHUNK_TOKENS, len(chunk) - 1))
        hashes = chunk[: len(starts)].astype(np.uint64) + np.uint64(1)
        for n in range(SHORTEST, longest + 1):
            inside = starts + n <= len(chunk)
            if not inside.all():
                starts, hashes = starts[inside], hashes[inside]
            hashes = _extended(hashes, chunk[starts + n - 1])
            likely = tables[n][_cell(hashes)]
            starts, hashes = starts[likely], hashes[likely]
            if not len(starts):
                break
            at = np.minimum(np.searchsorted(wanted[n], hashes), len(wanted[n]) - 1)
            there = wanted[n][at] == hashes
            found[n][at[there]] = True
            starts, hashes = starts[there], hashes[there]
    return found


def _hashes(samples: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Of all n-grams of all samples, repeated ones included."""
    parts = [np.zeros(0, np.uint64)]
    for codes_T in samples:
        count = len(codes_T) - n + 1
        if count > 0:
            hashes = codes_T[:count].astype(np.uint64) + np.uint64(1)
            for at in range(1, n):
                hashes = _extended(hashes, codes_T[at : at + count])
            parts.append(hashes)
    return np.concatenate(parts)


def _extended(hashes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Hashes of n-grams and the code behind each; a separator, -1, counts as 0, which no code does."""
    return hashes * FACTOR + (codes.astype(np.uint64) + np.uint64(1))


def _cell(hashes: np.ndarray) -> np.ndarray:
    return (scattered(hashes) >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def _table(hashes: np.ndarray) -> np.ndarray:
    """Which cells any of the hashes falls into, bool."""
    table = np.zeros(2**_TABLE_BITS, bool)
    table[_cell(hashes)] = True
    return table
