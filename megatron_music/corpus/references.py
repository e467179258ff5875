"""Where the references of in-context-learning documents lie in the samples, wherever packing has cut the documents.

Nothing is stored: of a source whose task is ``reference``, the reference is the first audio span of every document,
``<SOA>`` and ``<EOA>`` included, whether it stands before or behind the header.
"""

from functools import lru_cache

import numpy as np

from megatron_music.corpus.stream import SampleStream
from megatron_music.vocabulary.vocabulary import Vocabulary

_READ_TOKENS = 8192
"""Read of a document at first: about what header and reference come to."""
_DOCUMENTS_KEPT = 4096


class References:
    """The references in the samples of a stream."""

    def __init__(self, stream: SampleStream, vocabulary: Vocabulary):
        self.stream = stream
        self._opening, self._closing = vocabulary.special("<SOA>"), vocabulary.special("<EOA>")
        self._sources = {
            name for name, source in stream.sources.items() if source.source.sidecar.get("task") == "reference"
        }
        self._span = lru_cache(_DOCUMENTS_KEPT)(self._find)

    def __bool__(self) -> bool:
        """Whether any source has references."""
        return bool(self._sources)

    def mask(self, index: int) -> np.ndarray:
        """Which tokens of sample ``index`` belong to a reference, bool (context + 1,)."""
        name, position, count = self.stream.place(index)
        mask = np.zeros(count, bool)
        if name in self._sources:
            for document, offset, place in self.stream.sources[name].documents(position, count):
                start, stop = (edge - offset + place.start for edge in self._span(name, document))
                mask[max(start, place.start) : max(0, min(stop, place.stop))] = True
        return mask

    def _find(self, name: str, document: int) -> tuple[int, int]:
        """First token of a document's reference, and the one behind its last; equal where it has none."""
        source = self.stream.sources[name].source
        length, read = int(source.lengths[document]), _READ_TOKENS
        while True:
            ids, _ = source.read(document, 0, min(read, length))
            start = _first(ids, self._opening)
            stop = start + 1 + _first(ids[start:], self._closing)
            if stop <= len(ids) or len(ids) == length:
                return start, min(stop, length)
            read *= 2


def _first(ids: np.ndarray, id: int) -> int:
    """Place of the first ``id``; the length where it does not occur."""
    places = np.flatnonzero(ids == id)
    return int(places[0]) if len(places) else len(ids)
