"""A token document and the pieces it is put together from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron_music.songs.codes import load_codes
from megatron_music.songs.song import Song
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary


@dataclass(frozen=True)
class Document:
    """Ids, int32 (N,), and the Kind of each, uint8 (N,), that one task makes of one song.

    ``seconds`` is the audio in it; two tracks side by side, or all codebooks of one, count once.
    """

    song_id: str
    ids: np.ndarray
    kinds: np.ndarray
    seconds: float = 0.0


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

    def codes(self, song: Song, track: str) -> np.ndarray:
        """Codes, int16 (K, T), of one track; raises Rejected."""
        return self.load_codes(song, track, self.codec)


class DocumentBuilder:
    """Puts a document together from left to right."""

    def __init__(self, context: DocumentContext):
        self._context = context
        self._ids: list[np.ndarray] = []
        self._kinds: list[np.ndarray] = []
        vocabulary = context.vocabulary
        self._opening = [vocabulary.special("<SOA>"), *vocabulary.marker_ids(context.codec)]
        self._closing = [vocabulary.special("<EOA>")]

    def text(self, text: str) -> None:
        """A text, encoded on its own."""
        self._append_text(self._context.tokenizer.encode(text))

    def mark(self, mark: str) -> None:
        """A text that stands in many documents, such as ``[start_of_segment]``."""
        self._append_text(self._context.tokenizer.encode_mark(mark))

    def special(self, *tokens: str) -> None:
        """Special tokens by name."""
        self._append_special([self._context.vocabulary.special(token) for token in tokens])

    def audio(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        """``<SOA>``, the codec's marker, audio ids, ``<EOA>``."""
        self._append_special(self._opening)
        self._append(ids, kinds)
        self._append_special(self._closing)

    def extend(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        """Ids with their kinds as they are."""
        self._append(ids, kinds)

    def build(self, song_id: str, seconds: float) -> Document:
        """The document, closed by ``<EOD>``, with the seconds of audio in it."""
        self.special("<EOD>")
        return Document(song_id, np.concatenate(self._ids), np.concatenate(self._kinds), seconds)

    def _append_text(self, ids: list[int]) -> None:
        ids_N = np.array(ids, dtype=np.int32)
        self._append(ids_N, self._context.vocabulary.text_kinds(ids_N))

    def _append(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        self._ids.append(ids)
        self._kinds.append(kinds)

    def _append_special(self, ids: list[int]) -> None:
        self._append(np.array(ids, dtype=np.int32), np.full(len(ids), int(Kind.SPECIAL), dtype=np.uint8))


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
