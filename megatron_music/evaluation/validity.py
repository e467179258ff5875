"""The invalid-token share of an exported model: see ``engine/sampling.py`` for how it is counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import POSITION_EDGES, Validity, sample_spans, spans_of
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval, share_interval
from megatron_music.generation.models import ModelFolder
from megatron_music.progress import watch
from megatron_music.vocabulary.grammar import AudioGrammar

if TYPE_CHECKING:
    from megatron_music.generation.decoder import LlamaDecoder

SPANS_AT_ONCE = 8


class CachedReader:
    """An exported model, each token read once."""

    def __init__(self, decoder: "LlamaDecoder"):
        self._decoder = decoder
        self.rows, self.positions = len(decoder.lengths), decoder.positions
        self.extended = 0  # ids that were appended, for a bar of progress

    def open(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """See ``SpanReader``."""
        self._decoder.forget(row)
        return self._decoder.score(self._decoder.read([list(ids)], [row]))[0]

    def extend(self, ids: Sequence[int]) -> torch.Tensor:
        """See ``SpanReader``."""
        self.extended += len(ids)
        return self._decoder.score(self._decoder.read([[id] for id in ids]))


def invalid_token_share(
    model: str | Path,
    prompts: Sequence[Sequence[int]],
    positions: int = 2000,
    seed: int = 0,
    *,
    tracks: int = 2,
    codec: str | None = None,
    longest: int | None = None,
    spans_at_once: int = SPANS_AT_ONCE,
    device: str = "cpu",
    dtype: str = "float32",
) -> Validity:
    """Samples at least ``positions`` audio ids of an exported model, see ``sample_spans``.

    Args:
        prompts: ids that end with the opening of a span, see ``span_prompts``.
        tracks: 2 where the spans interleave vocals and accompaniment, 1 for a mix.
        longest: ids after which a span ends; None lets it go on to its own end, or the model's.

    Raises:
        InputError: the folder is no exported model.
    """
    from megatron_music.generation.decoder import LlamaDecoder

    folder = ModelFolder.open(model)
    grammar = AudioGrammar(folder.vocabulary, codec, tracks)
    decoder = LlamaDecoder(folder.network(device, dtype), spans_at_once, folder.positions)
    reader = CachedReader(decoder)
    with watch(lambda: reader.extended, "free samples", positions):
        return sample_spans(reader, prompts, grammar, positions, seed, longest)


def openings(
    source: IndexedSource, grammar: AudioGrammar, most: int | None = None, seed: int = 0
) -> list[tuple[list[int], np.ndarray]]:
    """Documents, drawn by ``seed``, up to the opening of their first span, and the ids of its audio.

    Documents without a span are left out. Raises InputError where none has one.
    """
    found = []
    for number in np.random.default_rng(seed).permutation(len(source))[:most].tolist():
        ids, _ = source.document(number)
        spans = spans_of(ids, grammar)
        if spans:
            found.append((ids[: spans[0].start].tolist(), ids[spans[0]]))
    if not found:
        raise InputError(source.prefix, f"no document has a span of {grammar.codec.name}", "name a source of songs")
    return found


def invalid_share(found: Validity) -> Interval:
    """Share of invalid ids, with an interval over spans."""
    sampled_SB, invalid_SB = found.counts()
    return share_interval(invalid_SB.sum(axis=1), sampled_SB.sum(axis=1))


def invalid_by_position(found: Validity) -> dict[str, dict[str, Any]]:
    """The same by range of positions in the span, with what was ``sampled`` and ``invalid``, and in how many ``spans``.

    Ranges without samples are left out.
    """
    sampled_SB, invalid_SB = found.counts()
    table = {}
    for name, sampled_S, invalid_S in zip(names_of_ranges(POSITION_EDGES), sampled_SB.T, invalid_SB.T, strict=True):
        if sampled_S.any():
            counts = {"sampled": int(sampled_S.sum()), "invalid": int(invalid_S.sum())}
            share = share_interval(invalid_S, sampled_S).as_dict()
            table[name] = counts | {"spans": int((sampled_S > 0).sum())} | share
    return table


def names_of_ranges(edges: Sequence[int]) -> list[str]:
    """``0-15``, ``16-63``, ..., ``4096-`` of the numbers at which ranges begin."""
    ends = [*(str(edge - 1) for edge in edges[1:]), ""]
    return [f"{first}-{end}" for first, end in zip(edges, ends, strict=True)]
