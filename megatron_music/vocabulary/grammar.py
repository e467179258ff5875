"""Which ids may follow where, inside an audio span.

Generation samples among these ids only, and the share of unconstrained samples that fall outside them is the
invalid-token probability of training and evaluation.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary


class _SpanGrammar:
    """What both grammars share: a span of audio ids that repeats every ``period`` positions until it is closed."""

    def __init__(self, vocabulary: Vocabulary, codec: CodecRange | str | None, codebooks: list[int], end: str):
        self.vocabulary = vocabulary
        self.codec = codec if isinstance(codec, CodecRange) else vocabulary.codec(codec)
        self.period = len(codebooks)
        self.end = vocabulary.special(end)
        self._ranges = [self.codec.codebook_ids(codebook) for codebook in codebooks]

    def allowed(self, position: int) -> list[range]:
        """Id ranges that may stand at ``position``, the number of audio ids already written in the span."""
        if position < 0:
            raise ValueError(f"position {position} is before the span")
        here = [self._ranges[position % self.period]]
        if position > 0 and position % self.period == 0:
            here.append(range(self.end, self.end + 1))
        return here

    def mask(self, position: int) -> np.ndarray:
        """``allowed`` as a read-only bool array (padded_size,)."""
        if position < 0:
            raise ValueError(f"position {position} is before the span")
        return self._masks[position if position < self.period else self.period + position % self.period]

    def is_allowed(self, id: int, position: int) -> bool:
        """Whether ``id`` may stand at ``position``."""
        return any(id in ids for ids in self.allowed(position))

    @cached_property
    def _masks(self) -> list[np.ndarray]:
        """Masks of the first two periods, which hold all there are: the first position of a span can't close it."""
        masks = []
        for position in range(2 * self.period):
            mask = np.zeros(self.vocabulary.padded_size, dtype=bool)
            for ids in self.allowed(position):
                mask[ids.start : ids.stop] = True
            mask.setflags(write=False)
            masks.append(mask)
        return masks


class AudioGrammar(_SpanGrammar):
    """Stage 1: codebook-0 ids inside ``<SOA><codec> ... <EOA>``.

    Args:
        codec: a codec of the vocabulary, or its name, or None for the default one.
        tracks: 1 for a mix, 2 for interleaved vocals and accompaniment; ``<EOA>`` may only stand behind whole frames,
            and not behind ``<SOA><codec>`` itself.
    """

    def __init__(self, vocabulary: Vocabulary, codec: CodecRange | str | None = None, tracks: int = 2):
        if tracks not in (1, 2):
            raise ValueError(f"a span has 1 or 2 tracks, not {tracks}")
        super().__init__(vocabulary, codec, [0] * tracks, "<EOA>")
        self.opening = [vocabulary.special("<SOA>"), *vocabulary.marker_ids(self.codec)]

    def position(self, ids: np.ndarray) -> int | None:
        """Audio ids written since the last ``<SOA><codec>``, or None where ``ids`` end outside such a span."""
        ids = np.asarray(ids)
        starts = np.flatnonzero(ids == self.opening[0])
        if not len(starts):
            return None
        inside = ids[starts[-1] :]
        if list(inside[: len(self.opening)]) != self.opening or (inside == self.end).any():
            return None
        return len(inside) - len(self.opening)

    def tracks(self, ids: Sequence[int] | np.ndarray) -> dict[Kind, np.ndarray]:
        """Codes, int16 (T,), of each track of a span's ids; what stands behind the last whole frame is left out."""
        codes = self.codec.codes(np.asarray(ids[: len(ids) // self.period * self.period], np.int32))
        kinds = (Kind.VOCAL, Kind.ACCOMPANIMENT) if self.period == 2 else (Kind.MIX,)
        return {kind: codes[at :: self.period] for at, kind in enumerate(kinds)}


class ResidualGrammar(_SpanGrammar):
    """Stage 2: the ids behind ``<stage_2>``, frame by frame codebooks ``first_codebook`` to ``codebooks - 1``.

    Args:
        codebooks: number of codebooks, codebook 0 included, of the stage-2 documents.
        first_codebook: 0, or 1 for the variant whose second part leaves codebook 0 out.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        codec: CodecRange | str | None = None,
        codebooks: int = 8,
        first_codebook: int = 0,
    ):
        if first_codebook not in (0, 1) or codebooks <= first_codebook:
            raise ValueError(f"codebooks {first_codebook} to {codebooks - 1} are not the second part of a window")
        super().__init__(vocabulary, codec, list(range(first_codebook, codebooks)), "<EOA>")
