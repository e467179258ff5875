"""Songs that are nearly the same, found on their codes: MinHash over code n-grams, so that re-uploads and re-encodings
of one recording meet.

What is compared is the set of n-grams of a track's codebook-0 codes with runs of one code collapsed, so that held notes
count once. Two songs are as similar as their sets (Jaccard: shared n-grams over all of both). MinHash estimates this
from signatures of P minima (Broder 1997), with a standard deviation of sqrt(s (1 - s) / P), and locality-sensitive
hashing finds the pairs worth comparing: those that agree in all rows of one of P / r bands of r rows, which a pair of
similarity s does with probability 1 - (1 - s^r)^(P / r) (Leskovec et al., Mining of Massive Datasets, chapter 3).

Signatures lie on disk with a row for each permutation, and rows are read one at a time: memory is a few numbers a song,
whatever P.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from pydantic import Field

from megatron_music.corpus.shuffle import seeded_bits
from megatron_music.progress import track
from megatron_music.recipe.fields import Strict
from megatron_music.songs.filters import Track

RECALL = 0.9
"""Least share of the pairs just at the threshold that the bands have to find; of more similar ones it is more."""
_NEIGHBOURS = 32
_PAIRS_AT_ONCE = 1 << 22
_PACK = np.uint64(1 << 32)
_ROWS_BETWEEN_DROPS, _HOPELESS_SIGMAS = 64, 4.0
_SIGNATURE_TYPE = np.dtype("<u2")


class NearDuplicateOptions(Strict):
    """Options of ``near_duplicates``.

    Attributes:
        similarity: songs of at least this Jaccard similarity are near-duplicates. What re-encoding leaves of it, and
            what unrelated songs share, depends on the codec: docs/experiments.md has figures.
        ngram: codes an n-gram.
        track: the track that is compared; songs that do not name it are not compared.
        permutations: P, which costs 4 bytes of disk a song each while songs are compared, and time.
        min_ngrams: tracks with fewer distinct n-grams, mostly silent ones, are not compared.
        prefer: a field of the manifest that holds numbers: of songs that as many sources can use, the one with the
            largest number is kept, not the first.
    """

    similarity: float = Field(0.1, gt=0, le=1)
    ngram: int = Field(3, ge=1, le=16)
    track: Track = "mix"
    permutations: int = Field(512, ge=16, le=4096)
    min_ngrams: int = Field(50, ge=1)
    prefer: str | None = None


def distinct_ngrams(codes_T: np.ndarray, ngram: int) -> np.ndarray:
    """Hashes, uint32 (U,), of the distinct n-grams of codes with runs collapsed."""
    codes_T = codes_T[np.flatnonzero(np.diff(codes_T, prepend=-1))].astype(np.uint64)
    count = len(codes_T) - ngram + 1
    if count < 1:
        return np.zeros(0, np.uint32)
    hashes_T = np.zeros(count, np.uint64)
    for start in range(ngram):
        hashes_T = scattered(hashes_T + codes_T[start : start + count] + np.uint64(1))
    return np.unique(hashes_T.astype(np.uint32))


def signature(ngrams_U: np.ndarray, permutations: int) -> np.ndarray:
    """MinHash signature, uint16 (P,), of at least one n-gram.

    The permutations are seeded affine maps of the uint32 numbers. Of a minimum the low 16 bits stay, by which one in
    65,536 unequal ones looks equal.
    """
    factors_P, terms_P = seeded_bits(2 * permutations, "minhash").astype(np.uint32).reshape(2, permutations)
    minima_P = [
        (ngrams_U * factor + term).min() for factor, term in zip(factors_P | np.uint32(1), terms_P, strict=True)
    ]
    return np.array(minima_P).astype(_SIGNATURE_TYPE)


def scattered(values: np.ndarray) -> np.ndarray:
    """Scatters uint64 so that near values are far apart (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class SignatureFile:
    """Signatures of N songs on disk, uint16 (P, N), written in blocks of songs and read row by row."""

    def __init__(self, path: str | Path, permutations: int, songs: int):
        self.permutations, self.songs = permutations, songs
        self._stream = open(path, "w+b")
        self._written = 0
        self._order_N: np.ndarray | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, signatures_NP: np.ndarray) -> None:
        """Writes the signatures of the next songs."""
        for row, block in enumerate(np.ascontiguousarray(signatures_NP.T, _SIGNATURE_TYPE)):
            self._stream.seek((row * self.songs + self._written) * _SIGNATURE_TYPE.itemsize)
            self._stream.write(block.tobytes())
        self._written += len(signatures_NP)

    def reorder(self, order_N: np.ndarray) -> None:
        """From now on song ``order_N[0]`` is read as the first one, and so on."""
        self._order_N = order_N

    def row(self, permutation: int) -> np.ndarray:
        """The minima of one permutation, uint16 (N,)."""
        self._stream.seek(permutation * self.songs * _SIGNATURE_TYPE.itemsize)
        row_N = np.fromfile(self._stream, _SIGNATURE_TYPE, self.songs)
        return row_N if self._order_N is None else row_N[self._order_N]


def band_rows(permutations: int, similarity: float) -> int:
    """Rows a band: as many as still find ``RECALL`` of the pairs at the threshold, and at least 2."""
    rows = 2
    while found_share(similarity, permutations, rows + 1) >= RECALL:
        rows += 1
    return rows


def found_share(similarity: float, permutations: int, rows: int) -> float:
    """Share of the pairs of a similarity that agree in at least one band."""
    return 1 - (1 - similarity**rows) ** (permutations // rows)


@dataclass(frozen=True)
class Pairs:
    """Pairs of songs, ``first_M`` below ``second_M``, both int64 (M,), and their similarities, float32 (M,)."""

    first_M: np.ndarray
    second_M: np.ndarray
    similarity_M: np.ndarray


def near_pairs(signatures: SignatureFile, similarity: float) -> Pairs:
    """The pairs of songs whose signatures agree in at least this share of their rows, sorted by the second song.

    In a bucket of many songs each is compared with the first one and with the 32 behind it, so that time stays in
    proportion to the number of songs.
    """
    rows = band_rows(signatures.permutations, similarity)
    keys, similarities = np.zeros(0, np.uint64), np.zeros(0, np.float32)
    waiting: list[np.ndarray] = []

    def verify_waiting() -> None:
        nonlocal keys, similarities
        candidates = np.setdiff1d(np.concatenate(waiting), keys)
        found, how_similar = _verified(signatures, candidates, similarity)
        keys, similarities = np.concatenate([keys, found]), np.concatenate([similarities, how_similar])
        waiting.clear()

    for band in track(range(signatures.permutations // rows), "comparing songs"):
        hashes_N = np.zeros(signatures.songs, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            hashes_N = scattered(hashes_N + signatures.row(row).astype(np.uint64) + np.uint64(1))
        for candidates in _pairs_of_equal(hashes_N):
            waiting.append(candidates)
            if sum(map(len, waiting)) >= _PAIRS_AT_ONCE:
                verify_waiting()
    if waiting:
        verify_waiting()
    order_M = np.argsort(keys)
    second_M, first_M = np.divmod(keys[order_M], _PACK)
    return Pairs(first_M.astype(np.int64), second_M.astype(np.int64), similarities[order_M])


def _pairs_of_equal(hashes_N: np.ndarray) -> Iterator[np.ndarray]:
    """Packed pairs, uint64, of the songs whose hashes are equal; not all of those in large buckets."""
    order_N = np.argsort(hashes_N, kind="stable")
    hashes_N = hashes_N[order_N]
    equal = hashes_N[1:] == hashes_N[:-1]
    shared = np.append(equal, False) | np.append(False, equal)
    songs, hashes = order_N[shared].astype(np.uint64), hashes_N[shared]
    for distance in range(1, _NEIGHBOURS + 1):
        same = hashes[distance:] == hashes[:-distance]
        if not same.any():
            return
        yield songs[distance:][same] * _PACK + songs[:-distance][same]
    places = np.arange(len(songs))
    starts = np.maximum.accumulate(np.where(np.diff(hashes, prepend=~hashes[:1]) != 0, places, 0))
    far = places - starts > _NEIGHBOURS
    yield songs[far] * _PACK + songs[starts[far]]


def _verified(signatures: SignatureFile, pairs: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Those packed pairs that are similar enough, and how similar they are.

    Most candidates are far from it: a pair is dropped once the rows seen so far make the rest hopeless.
    """
    equal = np.zeros(len(pairs), np.int32)
    for row in range(signatures.permutations):
        row_N = signatures.row(row)
        second, first = np.divmod(pairs, _PACK)
        equal += row_N[first.astype(np.int64)] == row_N[second.astype(np.int64)]
        seen = row + 1
        if seen % _ROWS_BETWEEN_DROPS == 0 or seen == signatures.permutations:
            spread = math.sqrt(seen * similarity * (1 - similarity)) if seen < signatures.permutations else 0
            hopeful = equal >= seen * similarity - _HOPELESS_SIGMAS * spread
            pairs, equal = pairs[hopeful], equal[hopeful]
    return pairs, (equal / signatures.permutations).astype(np.float32)


def typical_similarity(signatures: SignatureFile, pairs: int = 1000) -> float:
    """The median of the estimated similarities of random pairs of songs."""
    songs = (seeded_bits(2 * pairs, "typical similarity") % np.uint64(signatures.songs)).reshape(2, pairs)
    first, second = songs[:, songs[0] != songs[1]].astype(np.int64)
    equal = np.zeros(len(first), np.int32)
    for row in range(signatures.permutations):
        row_N = signatures.row(row)
        equal += row_N[first] == row_N[second]
    return float(np.median(equal)) / signatures.permutations


def greedy_choice(pairs: Pairs, counts: Callable[[int, int], bool]) -> dict[int, tuple[int, float]]:
    """Leaves songs out until no two of those kept are near: by song, the one that is kept for it and their similarity.

    The first song is kept, and each further one if and only if it is near none that is kept. So chains of songs that
    are each a little like the next do not fall together. Pairs for which ``counts(first, second)`` is false do not
    count.
    """
    out: dict[int, tuple[int, float]] = {}
    for first, second, similarity in zip(
        pairs.first_M.tolist(), pairs.second_M.tolist(), pairs.similarity_M.tolist(), strict=True
    ):
        if second not in out and first not in out and counts(first, second):
            out[second] = first, similarity
    return out
