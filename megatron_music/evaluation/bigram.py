"""The baseline that a model of audio tokens has to beat: an interpolated bigram over each track's own previous code.

    p(code | previous) = w2 n(previous, code) / n(previous) + w1 n(code) / n + w0 / codebook size

Counts are kept for vocals, accompaniment, mix and speech apart. The weights depend on the track and on how often the
previous code was seen (one set for each power of two), and are found by deleted interpolation (Jelinek and Mercer
1980): expectation maximisation on the training tokens themselves, each scored with the counts of all other songs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.errors import InputError
from megatron_music.vocabulary.kinds import COARSE_KINDS, Kind
from megatron_music.vocabulary.vocabulary import CodecRange

BIGRAM_TOKENS = 4_000_000
"""Training tokens that the bigram is fitted on, drawn by document: 4 for each pair of 1,024 codes, and a minute or two
of one core. With more it would guess a little better, so that what a model saves against it is told too high."""
MOST_FOLDS = 8
_BUCKETS = 48
_TOLERANCE = 1e-10
_MOST_ROUNDS = 1000

TokenDocument = tuple[np.ndarray, np.ndarray]
"""Ids int32 (N,) and kinds uint8 (N,)."""


@dataclass(frozen=True)
class BigramLoss:
    """Nats and numbers of audio tokens by kind."""

    nats: dict[str, float]
    tokens: dict[str, int]

    @property
    def per_token(self) -> float:
        """Mean nats of all audio tokens; raises ValueError where there was none."""
        if not self.tokens:
            raise ValueError("there are no audio tokens to take a mean of")
        return sum(self.nats.values()) / sum(self.tokens.values())


@dataclass(frozen=True)
class _TrackModel:
    """Counts and weights of one kind; row ``size`` of the pair counts is the start of a document."""

    pairs_PC: np.ndarray
    codes_C: np.ndarray
    weights_B3: np.ndarray

    def probabilities(self, previous: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """p(code | previous) of each pair, float64 (N,)."""
        seen = self.pairs_PC.sum(axis=1)[previous]
        estimates_N3 = _estimates(
            self.pairs_PC[previous, codes], seen, self.codes_C[codes], self.codes_C.sum(), len(self.codes_C)
        )
        return (self.weights_B3[_bucket(seen)] * estimates_N3).sum(axis=1)


class InterpolatedBigram:
    """A fitted baseline; ``fit`` makes one."""

    def __init__(self, codec: CodecRange, tracks: dict[Kind, _TrackModel]):
        self.codec, self._tracks = codec, tracks

    @classmethod
    def fit(
        cls, documents: Sequence[TokenDocument], codec: CodecRange, songs: Sequence[object] | None = None
    ) -> "InterpolatedBigram":
        """Counts all of ``documents`` and finds the weights.

        Args:
            documents: training documents; their codebook-0 audio tokens are used, in memory.
            codec: whose ids they are.
            songs: which song each document is of; all documents of a song are left out together. None leaves out
                neighbouring documents together, in at most ``MOST_FOLDS`` parts of equal size: takes of one song
                stand side by side in a corpus.

        Raises:
            ValueError: there is no audio token, or ``songs`` has another length.
        """
        if songs is None:
            parts = min(MOST_FOLDS, len(documents))
            songs = [index * parts // len(documents) for index in range(len(documents))]
        if len(songs) != len(documents):
            raise ValueError(f"{len(songs)} songs are named for {len(documents)} documents")
        number = {song: index for index, song in enumerate(dict.fromkeys(songs))}
        collected: dict[Kind, list[np.ndarray]] = {}
        for (ids, kinds), song in zip(documents, songs, strict=True):
            for kind, previous, codes in _pairs(ids, kinds, codec):
                rows = np.stack([np.full(len(codes), number[song]), previous, codes])
                collected.setdefault(kind, []).append(rows)
        if not collected:
            raise ValueError("there are no audio tokens to fit a bigram on")
        tracks = {kind: _fit_track(np.concatenate(rows, axis=1), codec) for kind, rows in collected.items()}
        return cls(codec, tracks)

    def loss(self, documents: Iterable[TokenDocument]) -> BigramLoss:
        """Loss on the codebook-0 audio tokens; a track that training lacked costs log(codebook size) a token."""
        nats: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for ids, kinds in documents:
            for kind, previous, codes in _pairs(ids, kinds, self.codec):
                name = kind.name.lower()
                if kind in self._tracks:
                    cost = -np.log(self._tracks[kind].probabilities(previous, codes)).sum()
                else:
                    cost = len(codes) * np.log(self.codec.codebook_size)
                nats[name] = nats.get(name, 0.0) + float(cost)
                tokens[name] = tokens.get(name, 0) + len(codes)
        return BigramLoss(nats, tokens)

    def weights(self, kind: Kind) -> np.ndarray:
        """Weights (buckets, 3) of the bigram, the unigram and the uniform estimate.

        Row b is for previous codes that were seen 2**(b-1) to 2**b - 1 times, row 0 for those that never were.
        """
        return self._tracks[kind].weights_B3


def bigram_loss(bigram: InterpolatedBigram, held_out: Sequence[str | Path]) -> BigramLoss:
    """Measures a bigram on the documents of indexed sources; raises InputError where they hold no audio tokens."""
    loss = bigram.loss(_documents(held_out))
    if not loss.tokens:
        raise InputError(", ".join(map(str, held_out)), "holds no audio tokens", "name sources with songs")
    return loss


def fit_bigram(
    train: Sequence[str | Path],
    codec: CodecRange,
    most_tokens: int | None = None,
    seed: int = 0,
) -> InterpolatedBigram:
    """Fits a bigram on the documents of some indexed sources.

    Args:
        most_tokens: where the sources hold more, documents are drawn by ``seed`` until there are as many.

    Raises InputError where they hold no audio tokens.
    """
    try:
        return InterpolatedBigram.fit(list(_documents(train, most_tokens, seed)), codec)
    except ValueError as error:
        raise InputError(", ".join(map(str, train)), str(error), "name sources with songs") from None


def _documents(
    prefixes: Sequence[str | Path], most_tokens: int | None = None, seed: int = 0
) -> Iterable[TokenDocument]:
    for prefix in prefixes:
        source = IndexedSource(prefix)
        chosen = range(len(source))
        if most_tokens is not None and source.total_tokens * len(prefixes) > most_tokens:
            drawn = np.random.default_rng(seed).permutation(len(source))
            enough = np.searchsorted(np.cumsum(source.lengths[drawn], dtype=np.int64), most_tokens // len(prefixes)) + 1
            chosen = np.sort(drawn[:enough]).tolist()
        for index in chosen:
            yield source.document(index)


def _pairs(ids: np.ndarray, kinds: np.ndarray, codec: CodecRange) -> Iterable[tuple[Kind, np.ndarray, np.ndarray]]:
    """Each track's previous codes and codes; the first one's previous code is ``codebook_size``, the start."""
    for kind in COARSE_KINDS:
        codes = codec.codes(ids[kinds == kind]).astype(np.int64)
        if len(codes):
            yield kind, np.concatenate([[codec.codebook_size], codes[:-1]]), codes


def _fit_track(song_previous_code_3N: np.ndarray, codec: CodecRange) -> _TrackModel:
    """Counts of all songs, and weights from tokens that are scored without their own song's counts."""
    size = codec.codebook_size
    # One row for each different (song, previous, code): the row's count is also what its song adds to the pair.
    events_3E, count_E = np.unique(song_previous_code_3N, axis=1, return_counts=True)
    song_E, previous_E, code_E = events_3E
    pairs_PC = np.zeros((size + 1, size), dtype=np.int64)
    np.add.at(pairs_PC, (previous_E, code_E), count_E)
    codes_C = pairs_PC.sum(axis=0)
    others_E = pairs_PC[previous_E, code_E] - count_E
    seen_E = pairs_PC.sum(axis=1)[previous_E] - _own(song_E, previous_E, count_E)
    code_others_E = codes_C[code_E] - _own(song_E, code_E, count_E)
    total_others_E = codes_C.sum() - _own(song_E, np.zeros_like(song_E), count_E)
    estimates_E3 = _estimates(others_E, seen_E, code_others_E, total_others_E, size)
    return _TrackModel(pairs_PC, codes_C, _deleted_interpolation(estimates_E3, _bucket(seen_E), count_E))


def _own(song_E: np.ndarray, key_E: np.ndarray, count_E: np.ndarray) -> np.ndarray:
    """For each event, how many tokens its song has with its key."""
    _, group_E = np.unique(np.stack([song_E, key_E]), axis=1, return_inverse=True)
    return np.bincount(group_E.ravel(), weights=count_E).astype(np.int64)[group_E.ravel()]


def _estimates(pair, previous, code, total, size: int) -> np.ndarray:
    """Bigram, unigram and uniform estimate of each event, float64 (N, 3); an estimate from no count is 0."""
    bigram = np.divide(pair, previous, out=np.zeros(len(pair)), where=previous > 0)
    total = np.broadcast_to(total, np.shape(code))
    unigram = np.divide(code, total, out=np.zeros(len(pair)), where=total > 0)
    return np.stack([bigram, unigram, np.full(len(pair), 1 / size)], axis=1)


def _bucket(seen: np.ndarray) -> np.ndarray:
    """0 for never, otherwise the number of binary digits of the count."""
    return np.minimum(np.frexp(seen.astype(np.float64))[1] * (seen > 0), _BUCKETS - 1)


def _deleted_interpolation(estimates_E3: np.ndarray, bucket_E: np.ndarray, count_E: np.ndarray) -> np.ndarray:
    """Weights (buckets, 3) that make the events most probable; buckets without events take their neighbour's."""
    weights_B3 = np.full((_BUCKETS, 3), 1 / 3)
    # Where nothing was seen there is no bigram estimate to give weight to, in training or later.
    weights_B3[0] = 0, 0.5, 0.5
    before = -np.inf
    for _ in range(_MOST_ROUNDS):
        shares_E3 = weights_B3[bucket_E] * estimates_E3
        probability_E = shares_E3.sum(axis=1)
        likelihood = float(count_E @ np.log(probability_E))
        if likelihood - before <= _TOLERANCE * abs(likelihood):
            break
        before = likelihood
        expected_B3 = np.zeros((_BUCKETS, 3))
        np.add.at(expected_B3, bucket_E, shares_E3 * (count_E / probability_E)[:, None])
        total_B = expected_B3.sum(axis=1)
        weights_B3[total_B > 0] = expected_B3[total_B > 0] / total_B[total_B > 0, None]
    trained = np.unique(bucket_E)
    for bucket in range(1, _BUCKETS):
        nearest = trained[trained > 0][np.abs(trained[trained > 0] - bucket).argmin()] if trained.max() > 0 else 0
        if bucket not in trained:
            weights_B3[bucket] = weights_B3[nearest]
    return weights_B3
