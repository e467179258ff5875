"""The ordered sample stream: what a run trains on, as a function of (phases, seed, global sample index).

A source is one endless stream of tokens: in each epoch its documents in a seeded order, one after another, cut at the
context length. The pieces come in a seeded order too, within blocks of about an epoch: neighbours are mostly the same
song, and a batch of neighbours pulls the network from song to song. Where a source stands carries over from phase to
phase, whatever their context lengths. Nothing depends on the number of processes, and nothing has to be read up to
where a run resumes. The function can be turned round: ``samples_with`` says where a stretch of a source comes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.shuffle import EpochOrder, Mixture, Recent, seeded_earlier, seeded_permutation
from megatron_music.errors import InputError

SMALLEST_SHARE = 1e-6
_EPOCHS_KEPT = 3
_MOST_SHUFFLED = 1 << 16
"""Samples of the longest block that is shuffled: enough for any batch, and its order is a small array."""


@dataclass(frozen=True)
class PhaseData:
    """One phase as the data sees it: samples of ``context_tokens`` (+ 1), from sources by weight in tokens."""

    context_tokens: int
    samples: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """``ids`` int32 (context + 1,) and ``kinds`` uint8 (context + 1,); inputs are [:-1], labels [1:]."""

    ids: np.ndarray
    kinds: np.ndarray
    source: str


@dataclass(frozen=True)
class Piece:
    """Tokens of a source's stream in a sample: ``[start, stop)`` of its inputs, from token ``position`` of the stream.

    ``sample`` counts over all phases, ``phase`` is the number of its phase.
    """

    sample: int
    phase: int
    start: int
    stop: int
    position: int


class SourceStream:
    """A source as one endless stream of tokens, epoch after epoch, each in its own seeded order."""

    def __init__(self, source: IndexedSource, name: str, seed: int):
        self.source, self.name, self.seed = source, name, seed
        self._orders: Recent[EpochOrder] = Recent(_EPOCHS_KEPT)

    def tokens(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 (count,) and kinds uint8 (count,) from ``position`` of the stream on."""
        ids, kinds = np.empty(count, np.int32), np.empty(count, np.uint8)
        for document, offset, span in self.documents(position, count):
            ids[span], kinds[span] = self.source.read(document, offset, offset + span.stop - span.start)
        return ids, kinds

    def documents(self, position: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """The documents in ``count`` tokens from ``position`` on: number, offset of the first of its tokens, place."""
        filled = 0
        while filled < count:
            epoch, within = divmod(position + filled, self.source.total_tokens)
            document, offset, left = self.order(epoch).from_token(within)
            taken = min(left, count - filled)
            yield document, offset, slice(filled, filled + taken)
            filled += taken

    def order(self, epoch: int) -> EpochOrder:
        """The order of the documents in ``epoch`` (0, 1, ...)."""
        key = ("documents", self.seed, self.name, epoch)
        return self._orders.get_or_make(epoch, lambda: EpochOrder(self.source.lengths, key))


class SampleStream:
    """All samples of a run, by global index; any process may ask for any sample at any time.

    Raises InputError where a source that a phase names is missing, empty or of another vocabulary than its neighbours,
    or where a weight can't be used.
    """

    def __init__(self, corpus_folder: str | Path, phases: Sequence[PhaseData], seed: int):
        self.folder, self.phases, self.seed = Path(corpus_folder), tuple(phases), seed
        self._shares = [_shares(phase, f"phases[{number}]") for number, phase in enumerate(phases)]
        names = sorted({name for shares in self._shares for name in shares})
        self.sources = {name: SourceStream(self._open(name), name, seed) for name in names}
        self._check_vocabularies()
        self._mixtures = [
            Mixture(list(shares.values()), phase.samples, ("mixture", seed, number))
            for number, (shares, phase) in enumerate(zip(self._shares, self.phases, strict=True))
        ]
        self._slots: Recent[np.ndarray] = Recent(2 * len(names))
        self._first_samples = np.cumsum([0] + [phase.samples for phase in phases], dtype=np.int64)
        self._first_tokens = self._tokens_at_phases()

    def __len__(self) -> int:
        return int(self._first_samples[-1])

    def sample(self, index: int) -> Sample:
        """Sample ``index`` of the run, counted over all phases."""
        name, position, count = self.place(index)
        return Sample(*self.sources[name].tokens(position, count), name)

    def place(self, index: int) -> tuple[str, int, int]:
        """Where sample ``index`` comes from: its source, the first token in the source's stream, and their number."""
        if not 0 <= index < len(self):
            raise IndexError(f"the run has {len(self)} samples, {index} is not one of them")
        number, within = self._phase(index)
        context = self.phases[number].context_tokens
        source, before = self._mixtures[number].draw(within)
        name = list(self._shares[number])[source]
        return name, self._first_tokens[number][name] + self._slot(number, source, before) * context, context + 1

    def samples_with(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        """Where tokens ``[start, stop)`` of a source's stream come as inputs, in the order of the stream.

        Every token of the stream is an input once. (A sample holds one token more than its context, the label of its
        last input; that token is an input of the piece that follows in the stream.)
        """
        for number, phase in enumerate(self.phases):
            if name not in self._shares[number]:
                continue
            length = phase.context_tokens
            first, last = (self._first_tokens[at][name] for at in (number, number + 1))
            at = max(start, first)
            while at < min(stop, last):
                slot, within = divmod(at - first, length)
                end = min(stop, last, first + (slot + 1) * length)
                sample = int(self._first_samples[number]) + self._sample_of(number, name, slot)
                yield Piece(sample, number, within, within + end - at, at)
                at = end

    def _slot(self, number: int, source: int, drawn: int) -> int:
        """Which of its pieces a source gives as its ``drawn``-th sample of a phase."""
        block, within = divmod(drawn, self._block_samples(number, source))

        def order() -> np.ndarray:
            count, key = self._block_key(number, source, block)
            return seeded_permutation(count, *key)

        return drawn - within + int(self._slots.get_or_make((number, source, block), order)[within])

    def _sample_of(self, number: int, name: str, slot: int) -> int:
        """The sample of a phase that is piece ``slot`` of a source: the other way round from ``_slot``."""
        source = list(self._shares[number]).index(name)
        block, within = divmod(slot, self._block_samples(number, source))
        count, key = self._block_key(number, source, block)
        drawn = slot - within + int(np.count_nonzero(seeded_earlier(count, within, *key)))
        return self._mixtures[number].sample_of(source, drawn)

    def _block_samples(self, number: int, source: int) -> int:
        """Samples of a source that are shuffled among themselves: about an epoch, or as many as a small array holds."""
        name = list(self._shares[number])[source]
        epoch_samples = self.sources[name].source.total_tokens // self.phases[number].context_tokens
        return max(1, min(epoch_samples, _MOST_SHUFFLED))

    def _block_key(self, number: int, source: int, block: int) -> tuple[int, tuple[int | str, ...]]:
        """Samples of a block of a source, and the key of their order."""
        name, size = list(self._shares[number])[source], self._block_samples(number, source)
        samples = int(self._mixtures[number].counts(self.phases[number].samples)[source])
        return min(size, samples - block * size), ("samples", self.seed, number, name, block)

    def consumed(self, index: int) -> dict[str, int]:
        """Tokens that each source has given before global sample ``index`` (0 to ``len``, inclusive).

        They are the first of its stream at the end of a block or phase; within a block it has given them out of order.
        """
        if not 0 <= index <= len(self):
            raise IndexError(f"the run has {len(self)} samples, {index} is past its end")
        number, within = self._phase(index)
        tokens = dict(self._first_tokens[number])
        if number < len(self.phases):
            self._add(tokens, number, within)
        return tokens

    def _open(self, name: str) -> IndexedSource:
        if not (self.folder / f"{name}.json").is_file():
            raise missing_source(self.folder, name)
        source = IndexedSource(self.folder / name)
        if not source.total_tokens:
            raise InputError(self.folder / f"{name}.bin", "holds no tokens", "build it or leave it out of the weights")
        return source

    def _phase(self, index: int) -> tuple[int, int]:
        """Phase of a global index, and the index within it; past the last phase for ``len``."""
        number = int(np.searchsorted(self._first_samples, index, side="right")) - 1
        return number, index - int(self._first_samples[number])

    def _check_vocabularies(self) -> None:
        first = next(iter(self.sources), None)
        for name in self.sources:
            ours, theirs = (self.sources[key].source.sidecar.get("vocabulary") for key in (name, first))
            if ours != theirs:
                what = f"was built with the vocabulary {ours}, {first} with {theirs}"
                raise InputError(self.folder / f"{name}.json", what, "build both with the same vocabulary file")

    def _tokens_at_phases(self) -> list[dict[str, int]]:
        """Where each source stands at the start of each phase, and at the end of the run."""
        standing = [dict.fromkeys(self.sources, 0)]
        for number, phase in enumerate(self.phases):
            standing.append(dict(standing[-1]))
            self._add(standing[-1], number, phase.samples)
        return standing

    def _add(self, tokens: dict[str, int], number: int, samples: int) -> None:
        """Adds what each source gives in the first ``samples`` of a phase."""
        for name, count in zip(self._shares[number], self._mixtures[number].counts(samples), strict=True):
            tokens[name] += int(count) * self.phases[number].context_tokens


def missing_source(corpus: Path, name: str) -> InputError:
    """What to tell where a corpus lacks a source that something names."""
    there = ", ".join(sorted(path.stem for path in corpus.glob("*.bin"))) or "none"
    return InputError(corpus, f"has no source {name} (there: {there})", "build it or mend the mixture")


def _shares(phase: PhaseData, where: str) -> dict[str, float]:
    """Shares of the sources that a phase draws from, by name; a weight of 0 leaves its source out."""
    total = math.fsum(phase.weights.values())
    if phase.context_tokens < 1 or phase.samples < 0:
        raise InputError(where, f"has {phase.samples} samples of {phase.context_tokens} tokens", "use positive numbers")
    if not (math.isfinite(total) and total > 0) or min(phase.weights.values()) < 0:
        raise InputError(f"{where}.weights", f"{phase.weights} can't be shares", "use positive weights")
    shares = {name: weight / total for name, weight in sorted(phase.weights.items()) if weight > 0}
    for name, share in shares.items():
        if share < SMALLEST_SHARE:
            what = f"gives {name} a share of {share:.1e}, less than one sample in a million"
            raise InputError(f"{where}.weights", what, "raise it or set it to 0")
    return shares
