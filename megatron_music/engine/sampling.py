"""Sampling freely from a model, exported or in training, and the share of invalid tokens in what it writes.

Inside audio spans ids are sampled at temperature 1 from the logits over the whole vocabulary, without top-k, top-p or
any constraint. An id that the grammar does not allow at its position counts as invalid, and one drawn from those that
it allows takes its place, so that the span goes on. `<EOA>`, where it is allowed, ends the span and another one begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.errors import InputError
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_music.engine.engine import Engine

POSITION_EDGES = (0, 16, 64, 256, 1024, 4096)
"""Positions in a span, in audio ids, at which the buckets of ``Validity`` begin."""


@dataclass
class Span:
    """A sampled span.

    Attributes:
        prompt: number of the prompt that it continues.
        ids: what the model went on with, all of it valid, without the span's end.
        valid: for each id that was sampled, an end included, whether the first draw was valid.
    """

    prompt: int
    ids: list[int] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)


@dataclass
class Validity:
    """Spans that were sampled, and the codes among their first draws that were valid."""

    spans: list[Span] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)

    @property
    def share(self) -> float:
        """Invalid ids over sampled ids; raises ZeroDivisionError where nothing was sampled."""
        return sum(span.valid.count(False) for span in self.spans) / self.positions

    @property
    def positions(self) -> int:
        """Ids sampled."""
        return sum(len(span.valid) for span in self.spans)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Sampled and invalid ids, int64 (spans, buckets), by span and by bucket of their position in it."""
        sampled, invalid = np.zeros((2, len(self.spans), len(POSITION_EDGES)), dtype=np.int64)
        for number, span in enumerate(self.spans):
            buckets = np.searchsorted(POSITION_EDGES, np.arange(len(span.valid)), side="right") - 1
            np.add.at(sampled[number], buckets, 1)
            np.add.at(invalid[number], buckets, ~np.array(span.valid, dtype=bool))
        return sampled, invalid


class SpanReader(Protocol):
    """A model that reads rows of tokens: what sampling needs of it.

    Attributes:
        rows: spans read side by side.
        positions: tokens that a row can hold.
    """

    rows: int
    positions: int

    def open(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Starts a row anew with ``ids``; logits (vocabulary,) of what follows."""
        ...

    def extend(self, ids: Sequence[int]) -> torch.Tensor:
        """Appends one id to every row; logits (rows, vocabulary) of what follows."""
        ...


class RereadingReader:
    """Any function of whole rows: ``next_logits(rows)`` gives logits (rows, vocabulary) behind rows of ids."""

    def __init__(self, next_logits: Callable[[list[list[int]]], torch.Tensor], rows: int, positions: int):
        self._next_logits, self.rows, self.positions = next_logits, rows, positions
        self._ids: list[list[int]] = [[] for _ in range(rows)]

    def open(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """See ``SpanReader``."""
        self._ids[row] = list(ids)
        return self._next_logits([self._ids[row]])[0]

    def extend(self, ids: Sequence[int]) -> torch.Tensor:
        """See ``SpanReader``."""
        for row, id in zip(self._ids, ids, strict=True):
            row.append(id)
        return self._next_logits(self._ids)


def reader_of_engine(engine: "Engine", rows: int, positions: int) -> RereadingReader:
    """A model in training, which keeps no cache: meant for short samples. All processes read the same rows."""

    def next_logits(ids: list[list[int]]) -> torch.Tensor:
        lengths = np.array([len(row) for row in ids])
        # Causal attention does not look at the padding on the right; 64 lets every tensor-parallel size cut it.
        padded = np.zeros((len(ids), -(-int(lengths.max()) // 64) * 64), dtype=np.int64)
        for row, of_row in enumerate(ids):
            padded[row, : len(of_row)] = of_row
        return engine.logits(padded)[np.arange(len(ids)), lengths - 1].cpu()

    return RereadingReader(next_logits, rows, positions)


def draw(
    logits_RV: torch.Tensor, positions_R: Sequence[int], grammar: AudioGrammar, generator: torch.Generator
) -> tuple[list[int], list[bool]]:
    """Samples an id for each row without any constraint.

    Args:
        logits_RV: over the whole padded vocabulary.
        positions_R: audio ids already written in each row's span.

    Returns:
        The ids to go on with, and whether each row's first draw was valid: where not, the id is a second draw, from
        those that are allowed.
    """
    probabilities_RV = torch.softmax(logits_RV.float().cpu(), dim=-1)
    ids_R = torch.multinomial(probabilities_RV, 1, generator=generator)[:, 0].tolist()
    valid_R = [grammar.is_allowed(id, position) for id, position in zip(ids_R, positions_R, strict=True)]
    for row, valid in enumerate(valid_R):
        if not valid:
            allowed = torch.from_numpy(grammar.mask(positions_R[row]).copy())
            kept = torch.where(allowed, logits_RV[row].float().cpu(), -torch.inf)
            ids_R[row] = int(torch.multinomial(torch.softmax(kept, dim=-1), 1, generator=generator))
    return ids_R, valid_R


@torch.no_grad()  # and not inference_mode: a model in training keeps what it makes here, such as its RoPE's angles
def sample_spans(
    reader: SpanReader,
    prompts: Sequence[Sequence[int]],
    grammar: AudioGrammar,
    positions: int,
    seed: int = 0,
    longest: int | None = None,
) -> Validity:
    """Samples spans behind ``prompts`` until at least ``positions`` ids are counted.

    Prompts end with the opening of a span and are used in turn, each as often as needed. A span ends at its ``<EOA>``,
    after ``longest`` ids where that is given, or where the reader's positions are used up. Prompts that are too long
    lose their beginning: half of the positions is left for audio.

    Raises ValueError where there is no prompt.
    """
    if not prompts:
        raise ValueError("there are no prompts to sample behind")
    longest_prompt = max(len(grammar.opening), reader.positions // 2)
    generator = torch.Generator().manual_seed(seed)
    found = Validity()
    prompt_lengths = [0] * reader.rows
    span_of_row: list[Span] = [Span(0)] * reader.rows

    def open_span(row: int) -> torch.Tensor:
        number = len(found.spans) % len(prompts)
        prompt = list(prompts[number])[-longest_prompt:]
        prompt_lengths[row], span_of_row[row] = len(prompt), Span(number)
        found.spans.append(span_of_row[row])
        return reader.open(row, prompt)

    logits_RV = torch.stack([open_span(row) for row in range(reader.rows)])
    for _ in range(-(-positions // reader.rows)):
        ids, valid = draw(logits_RV, [len(span.valid) for span in span_of_row], grammar, generator)
        for row, span in enumerate(span_of_row):
            span.valid.append(valid[row])
            if ids[row] != grammar.end:
                span.ids.append(ids[row])
            if valid[row] and ids[row] != grammar.end:
                found.codes.add(int(grammar.codec.codes(np.array([ids[row]]))[0]))
        logits_RV = reader.extend(ids).clone()  # rows are replaced below
        for row, span in enumerate(span_of_row):
            written = len(span.valid)
            if ids[row] == grammar.end or written == longest or prompt_lengths[row] + written == reader.positions:
                logits_RV[row] = open_span(row)
    return found


def grammar_of(source: IndexedSource, vocabulary: Vocabulary) -> AudioGrammar:
    """The grammar of a source's spans: of two tracks where vocals and accompaniment take turns, of one in any other."""
    return AudioGrammar(vocabulary, tracks=2 if "accompaniment" in source.sidecar.get("tokens_by_kind", {}) else 1)


def span_prompts(source: IndexedSource, grammar: AudioGrammar, most: int | None = None) -> list[list[int]]:
    """The documents of an indexed source up to the opening of their first span: header and first segment's text.

    Documents without such a span are left out. Raises InputError where none has one.
    """
    prompts = []
    for index in range(len(source)):
        if most is not None and len(prompts) == most:
            break
        ids, _ = source.document(index)
        spans = spans_of(ids, grammar)
        if spans:
            prompts.append(ids[: spans[0].start].tolist())
    if not prompts:
        raise InputError(
            source.prefix, f"no document has a span of {grammar.codec.name}", "name a source with such songs"
        )
    return prompts


def spans_of(ids: np.ndarray, grammar: AudioGrammar) -> list[slice]:
    """Where the audio of each span of the grammar's codec stands in a document, opening and end left out."""
    spans = []
    for start in np.flatnonzero(ids == grammar.opening[0]):
        first = int(start) + len(grammar.opening)
        if ids[start:first].tolist() == grammar.opening:
            ends = np.flatnonzero(ids[first:] == grammar.end)
            spans.append(slice(first, first + int(ends[0]) if len(ends) else len(ids)))
    return spans
