"""A token document and the pieces it is put together from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from megatron_music.songs.codes import load_codes
from megatron_music.songs.song import Song
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary


@dataclass(frozen=True)
class Document:
    """Ids, int32 (N,), and the Kind of each, uint8 (N,), that one task makes of one song.

    Attributes:
        seconds: the audio in it; two tracks side by side, or all codebooks of one, count once.
        left_out: what of the song the task did not take, and how often: ``{"segments shorter than 1 s": 2}``.
    """

    song_id: str
    ids: np.ndarray
    kinds: np.ndarray
    seconds: float = 0.0
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DocumentContext:
    """What every task needs beside the song.

    Attributes:
        codec: the codec whose codes the songs name.
        load_codes: how the codes (K, T) of a song's track are read; raises Rejected.
    """

    vocabulary: Vocabulary
    tokenizer: TextTokenizer
    codec: CodecRange
    load_codes: Callable[[Song, str, CodecRange], np.ndarray] = load_codes
    _marks: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def codes(self, song: Song, track: str) -> np.ndarray:
        """Codes, int16 (K, T), of one track; raises Rejected."""
        return self.load_codes(song, track, self.codec)

    def text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 (N,), and kinds, uint8 (N,), of a text."""
        ids = np.array(self.tokenizer.encode(text), dtype=np.int32)
        return ids, self.vocabulary.text_kinds(ids)

    def mark(self, mark: str) -> tuple[np.ndarray, np.ndarray]:
        """The same of a text that stands in many documents; encoded once, not to be written to."""
        if mark not in self._marks:
            self._marks[mark] = self.text(mark)
        return self._marks[mark]


class DocumentBuilder:
    """Puts a document together from left to right."""

    def __init__(self, context: DocumentContext):
        self._context = context
        self._ids: list[np.ndarray] = []
        self._kinds: list[np.ndarray] = []
        vocabulary = context.vocabulary
        self._opening = _specials([vocabulary.special("<SOA>"), *vocabulary.marker_ids(context.codec)])
        self._closing = _specials([vocabulary.special("<EOA>")])

    def text(self, text: str) -> None:
        """A text, encoded on its own."""
        self._append(*self._context.text(text))

    def mark(self, mark: str) -> None:
        """A text that stands in many documents, such as ``[start_of_segment]``."""
        self._append(*self._context.mark(mark))

    def special(self, *tokens: str) -> None:
        """Special tokens by name."""
        self._append(*_specials([self._context.vocabulary.special(token) for token in tokens]))

    def audio(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        """``<SOA>``, the codec's marker, audio ids, ``<EOA>``."""
        self._append(*self._opening)
        self._append(ids, kinds)
        self._append(*self._closing)

    def extend(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        """Ids with their kinds as they are."""
        self._append(ids, kinds)

    def build(self, song_id: str, seconds: float, left_out: Mapping[str, int] | None = None) -> Document:
        """The document, closed by ``<EOD>``, with the seconds of audio in it and what it lacks."""
        self.special("<EOD>")
        return Document(song_id, np.concatenate(self._ids), np.concatenate(self._kinds), seconds, left_out or {})

    def _append(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        self._ids.append(ids)
        self._kinds.append(kinds)


def _specials(ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, dtype=np.int32), np.full(len(ids), int(Kind.SPECIAL), dtype=np.uint8)


def interleave(first_T: np.ndarray, second_T: np.ndarray) -> np.ndarray:
    """``a0 b0 a1 b1 ...`` of two arrays of one length and type."""
    both = np.empty(2 * len(first_T), dtype=first_T.dtype)
    both[0::2], both[1::2] = first_T, second_T
    return both


def dual_track(vocals_T: np.ndarray, accompaniment_T: np.ndarray, codec: CodecRange) -> tuple[np.ndarray, np.ndarray]:
    """Ids and kinds of interleaved codebook-0 codes: vocal first, and both of one id range."""
    ids = interleave(codec.ids(vocals_T[None])[0], codec.ids(accompaniment_T[None])[0])
    kinds = np.empty(len(ids), dtype=np.uint8)
    kinds[0::2], kinds[1::2] = int(Kind.VOCAL), int(Kind.ACCOMPANIMENT)
    return ids, kinds


def single_track(codes_T: np.ndarray, kind: Kind, codec: CodecRange) -> tuple[np.ndarray, np.ndarray]:
    """Ids and kinds of the codebook-0 codes of one track."""
    return codec.ids(codes_T[None])[0], np.full(len(codes_T), int(kind), dtype=np.uint8)
