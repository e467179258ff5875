"""The invalid-token share of an exported model: see ``engine/sampling.py`` for how it is counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_music.engine.sampling import Validity, sample_spans
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar

if TYPE_CHECKING:
    from megatron_music.generation.decoder import LlamaDecoder

SPANS_AT_ONCE = 8


class CachedReader:
    """An exported model, each token read once."""

    def __init__(self, decoder: "LlamaDecoder"):
        self._decoder = decoder
        self.rows, self.positions = len(decoder.lengths), decoder.positions

    def open(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """See ``SpanReader``."""
        self._decoder.forget(row)
        return self._decoder.score(self._decoder.read([list(ids)], [row]))[0]

    def extend(self, ids: Sequence[int]) -> torch.Tensor:
        """See ``SpanReader``."""
        return self._decoder.score(self._decoder.read([[id] for id in ids]))


def invalid_token_share(
    model: str | Path,
    prompts: Sequence[Sequence[int]],
    positions: int = 2000,
    seed: int = 0,
    *,
    tracks: int = 2,
    codec: str | None = None,
    spans_at_once: int = SPANS_AT_ONCE,
    device: str = "cpu",
    dtype: str = "float32",
) -> Validity:
    """Samples at least ``positions`` audio ids of an exported model, see ``sample_spans``.

    Args:
        prompts: ids that end with the opening of a span, see ``span_prompts``.
        tracks: 2 where the spans interleave vocals and accompaniment, 1 for a mix.

    Raises:
        InputError: the folder is no exported model.
    """
    from megatron_music.generation.decoder import LlamaDecoder

    folder = ModelFolder.open(model)
    grammar = AudioGrammar(folder.vocabulary, codec, tracks)
    decoder = LlamaDecoder(folder.network(device, dtype), spans_at_once, folder.positions)
    return sample_spans(CachedReader(decoder), prompts, grammar, positions, seed)
