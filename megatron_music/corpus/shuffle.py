"""Seeded orders in closed form: the documents of an epoch and the sources of a phase, without an array over either.

Both can be asked from either side: what stands at a place, and at which place something stands.
"""

import bisect
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

V = TypeVar("V")
_SCAN_DOCUMENTS = 1 << 13


def seeded_bits(count: int, *key: int | str) -> np.ndarray:
    """``count`` random uint64 that depend on ``key`` alone.

    Raw PCG64 output: numpy promises its stream for all versions, and makes no such promise for ``Generator`` methods.
    """
    return _bit_generator(key).random_raw(count)


def seeded_generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on ``key`` alone."""
    return np.random.Generator(_bit_generator(key))


def _bit_generator(key: tuple[int | str, ...]) -> np.random.PCG64:
    return np.random.PCG64(int.from_bytes(hashlib.sha256(repr(key).encode()).digest(), "little"))


def seeded_permutation(count: int, *key: int | str) -> np.ndarray:
    """A uniformly random permutation of ``range(count)``, int64 (count,), that depends on ``key`` alone."""
    return np.argsort(seeded_bits(count, *key), kind="stable")


def seeded_earlier(count: int, item: int, *key: int | str) -> np.ndarray:
    """Which items ``seeded_permutation`` of the same key puts before ``item``, bool (count,); a pass, without the sort.

    Their number is the item's place.
    """
    bits = seeded_bits(count, *key)
    earlier = bits < bits[item]
    earlier[:item] |= bits[:item] == bits[item]
    return earlier


class Recent(OrderedDict[object, V]):
    """A small cache that forgets what was not used for longest."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def get_or_make(self, key: object, make: Callable[[], V]) -> V:
        """The value under ``key``, made and kept where it is missing."""
        if key not in self:
            self[key] = make()
            if len(self) > self.size:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return Recent, (self.size,)


class EpochOrder:
    """The order of one source's documents in one epoch, with the token position at which each begins.

    A seeded affine map spreads the documents over blocks of ``block_documents``, so that each block takes documents
    from all over the source; within a block they stand in a uniformly random order. A source of one block is thus
    shuffled uniformly. Kept in memory are one number a block and the few blocks in use: 100 million documents cost a
    scan of the index (seconds) and a few MB, where a permutation with its positions would cost 1.6 GB.
    """

    def __init__(self, lengths: np.ndarray, key: Sequence[int | str], block_documents: int = 1 << 16):
        self._lengths, self._key, self._size = np.asarray(lengths), tuple(key), block_documents
        self._count = len(lengths)
        multiplier, self._shift = (int(bits) % self._count for bits in seeded_bits(2, *key, "spread"))
        while math.gcd(multiplier, self._count) != 1:
            multiplier = (multiplier + 1) % self._count
        self._multiplier = multiplier
        self._inverse = pow(multiplier, -1, self._count)
        self._ends = np.cumsum(self._tokens_of_blocks())
        self._blocks: Recent[tuple[np.ndarray, np.ndarray]] = Recent(2)

    def from_token(self, position: int) -> tuple[int, int, int]:
        """The document at token ``position`` of the epoch: its index, the offset within it, the tokens left in it."""
        block = int(np.searchsorted(self._ends, position, side="right"))
        documents, ends = self._blocks.get_or_make(block, lambda: self._load(block))
        within = position - (int(self._ends[block - 1]) if block else 0)
        place = int(np.searchsorted(ends, within, side="right"))
        document, left = int(documents[place]), int(ends[place]) - within
        return document, int(self._lengths[document]) - left, left

    def first_token(self, document: int) -> int:
        """The token position of the epoch at which a document begins: the other way round from ``from_token``."""
        if not 0 <= document < self._count:
            raise IndexError(f"there are {self._count} documents, {document} is not one of them")
        spread = (document - self._shift) * self._inverse % self._count
        block, item = divmod(spread, self._size)
        members = self._members(block)
        earlier = members[seeded_earlier(len(members), item, *self._key, block)]
        before = int(self._ends[block - 1]) if block else 0
        return before + int(self._lengths.take(earlier).sum(dtype=np.int64))

    def documents(self) -> np.ndarray:
        """All documents in their order, int64 (documents,); for tests, at 8 bytes a document."""
        return np.concatenate([self._load(block)[0] for block in range(len(self._ends))])

    def _tokens_of_blocks(self) -> np.ndarray:
        """Tokens of every block, int64 (blocks,), from one pass over the lengths as they lie in the index.

        The map turned round says which block a document is in. (Block by block, each would gather its documents from
        all over the index, and a large one is then paged in many times.)
        """
        tokens = np.zeros(-(-self._count // self._size), np.int64)
        steps = np.arange(min(_SCAN_DOCUMENTS, self._count), dtype=np.int64) * self._inverse % self._count
        for first in range(0, self._count, _SCAN_DOCUMENTS):
            lengths = self._lengths[first : first + _SCAN_DOCUMENTS]
            # The place of each document in the map's order; an addition, where the map itself takes a division.
            places = steps[: len(lengths)] + (first - self._shift) * self._inverse % self._count
            np.subtract(places, self._count, out=places, where=places >= self._count)
            # Sums of float64 are exact here: far below 2 ** 53.
            tokens += np.bincount(places // self._size, lengths, len(tokens)).astype(np.int64)
        return tokens

    def _members(self, block: int) -> np.ndarray:
        """Documents of a block, in the affine map's order."""
        first, last = block * self._size, min((block + 1) * self._size, self._count)
        # Below 3 billion documents the product stays within int64.
        return (np.arange(first, last, dtype=np.int64) * self._multiplier + self._shift) % self._count

    def _load(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents of a block in order, and the token position within the block at which each ends."""
        members = self._members(block)
        documents = members[seeded_permutation(len(members), *self._key, block)]
        return documents, np.cumsum(self._lengths[documents], dtype=np.int64)


class Mixture:
    """Which source each sample of a phase comes from: shares kept to a sample, order seeded, all in closed form.

    After n samples source s has given ``floor(n c_s) - floor(n c_(s-1))``, c being the cumulative shares: less than one
    sample from its share. That holds at the end of each block of samples and of the phase; within a block the sources
    stand in a seeded random order. A block is long enough that every source's quota in it is at least 0.
    """

    def __init__(self, shares: Sequence[float], samples: int, key: Sequence[int | str], block_samples: int = 1024):
        total = math.fsum(shares)
        self._cumulative = [math.fsum(shares[:end]) / total for end in range(len(shares))] + [1.0]
        self._samples, self._key = samples, tuple(key)
        self._size = max(block_samples, math.ceil(2 * total / min(shares)))
        # The last block takes the remainder of the phase with it, which could be too short for quotas of its own.
        self._last = max(samples // self._size - 1, 0)
        self._blocks: Recent[tuple[np.ndarray, np.ndarray]] = Recent(2)

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the phase's first ``samples``, int64 (sources,)."""
        block, within = self._place(samples)
        counts = self._quota(block * self._size)
        if within:
            counts = counts + np.bincount(self._block(block)[0][:within], minlength=len(counts))
        return counts

    def draw(self, sample: int) -> tuple[int, int]:
        """Source of a sample of the phase, and how many samples that source has given in the phase before it."""
        block, within = self._place(sample)
        sources, before = self._block(block)
        source = int(sources[within])
        return source, int(self._quota(block * self._size)[source]) + int(before[within])

    def sample_of(self, source: int, drawn: int) -> int:
        """The sample of the phase that is the source's number ``drawn``: the other way round from ``draw``."""
        starts = range(0, (self._last + 1) * self._size, self._size)
        block = bisect.bisect_right(starts, drawn, key=lambda start: int(self._quota(start)[source])) - 1
        within = drawn - int(self._quota(starts[block])[source])
        return starts[block] + int(np.flatnonzero(self._block(block)[0] == source)[within])

    def _place(self, sample: int) -> tuple[int, int]:
        block = min(sample // self._size, self._last)
        return block, sample - block * self._size

    def _quota(self, samples: int) -> np.ndarray:
        return np.diff([math.floor(samples * share) for share in self._cumulative])

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each sample of a block, and how many of the block's samples before it have the same source."""
        return self._blocks.get_or_make(block, lambda: self._make_block(block))

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        start = block * self._size
        stop = self._samples if block == self._last else start + self._size
        quotas = self._quota(stop) - self._quota(start)
        order = seeded_permutation(stop - start, *self._key, block)
        sources = np.repeat(np.arange(len(quotas)), quotas)[order]
        before = np.zeros(stop - start, np.int64)
        for source, quota in enumerate(quotas):
            before[sources == source] = np.arange(quota)
        return sources, before
