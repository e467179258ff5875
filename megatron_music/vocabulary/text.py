"""Text to ids and back: SentencePiece without a beginning-of-sequence id, special tokens cut out of the text first.

The cutting is that of the released YuE tokenizer: each stretch of text between two special tokens is encoded on its
own, and ``<s>`` and ``</s>`` written in a text become the model's own control ids. (It also cuts out ``<CLS>``,
``<SEP>``, ``<MASK>`` and ``<PAD>``, to which it gives ids behind the vocabulary's end; here they are plain text.)
Newlines stay in the text: YuE's model spells one as a byte, a model trained here has a piece for it.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from megatron_music.errors import InputError
from megatron_music.files import atomic_path
from megatron_music.vocabulary.vocabulary import Vocabulary
from megatron_music.weights import require_content

NEWLINE = "\n"
SPACE_PIECE = "\u2581"
"""The character by which SentencePiece writes a space."""
FIXED_PIECES = 3 + 256 + 2
"""Pieces that a model trained here always has: the three control pieces, every byte, newline and space."""


class TextTokenizer:
    """The text side of a vocabulary.

    Raises InputError where the file is not a SentencePiece model or does not belong to the vocabulary.
    """

    def __init__(self, model_path: str | Path, vocabulary: Vocabulary):
        self.model_path, self.vocabulary = Path(model_path), vocabulary
        require_content(self.model_path, "name the SentencePiece model that belongs to the vocabulary")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
        except (RuntimeError, OSError):
            raise InputError(model_path, "is not a SentencePiece model", "check the file") from None
        self._check_against_vocabulary()
        cut = {token: id for token, id in vocabulary.specials.items() if token not in vocabulary.plain_in_text}
        for id in (self._model.bos_id(), self._model.eos_id()):
            if id >= 0:
                cut.setdefault(self._model.id_to_piece(id), id)
        self._cut_ids = cut
        self._cut_pattern = re.compile("(" + "|".join(map(re.escape, sorted(cut, key=len, reverse=True))) + ")")

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; the empty text has none."""
        if "<" not in text:
            return self._model.encode(text)
        ids: list[int] = []
        for index, part in enumerate(self._cut_pattern.split(text)):
            if index % 2:
                ids.append(self._cut_ids[part])
            elif part:
                ids.extend(self._model.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens stand as written, codec ids as ``<codec/codebook/code>``.

        Of a model trained here, ``decode(encode(text)) == text`` for every text without U+2581, which SentencePiece
        itself uses for the space.
        """
        parts: list[str] = []
        run: list[int] = []
        for id in map(int, ids):
            if id < self._text_pieces and id not in self._controls:
                run.append(id)
                continue
            parts += [self._model.decode(run), self._piece_beyond_text(id)]
            run = []
        return "".join([*parts, self._model.decode(run)])

    def piece(self, id: int) -> str:
        """One text id as it reads (``' la'``, ``'\\n'``); a byte as ``<0xE4>``, an id without a piece as ``''``."""
        if id >= self._text_pieces:
            return ""
        if self._model.is_byte(id):
            byte = int(self._model.id_to_piece(id)[3:5], 16)
            return chr(byte) if byte < 128 else self._model.id_to_piece(id)
        return self._model.id_to_piece(id).replace(SPACE_PIECE, " ")

    @property
    def _text_pieces(self) -> int:
        return min(self._model.get_piece_size(), self.vocabulary.text_size)

    @property
    def _controls(self) -> tuple[int, int]:
        return (self._model.bos_id(), self._model.eos_id())

    def _piece_beyond_text(self, id: int) -> str:
        if id in self._controls:
            return self._model.id_to_piece(id)
        for codec in self.vocabulary.codecs.values():
            if codec.first <= id < codec.end:
                codebook, code = divmod(id - codec.first, codec.codebook_size)
                return f"<{codec.name}/{codebook}/{code}>"
        return "" if id < self.vocabulary.text_size else self.vocabulary.describe(id)

    def _check_against_vocabulary(self) -> None:
        """A model may have fewer pieces than the vocabulary has text ids; further ones must be its special tokens."""
        pieces, text_size = self._model.get_piece_size(), self.vocabulary.text_size
        if pieces <= text_size:
            return
        named = all(
            id < pieces and self._model.id_to_piece(id) == token for token, id in self.vocabulary.specials.items()
        )
        if not named:
            raise InputError(
                self.model_path,
                f"has {pieces} pieces, vocabulary {self.vocabulary.name} has {text_size} text ids",
                "name the SentencePiece model that belongs to the vocabulary",
            )


def train_text_tokenizer(texts: Iterable[str], out: Path, size: int) -> str:
    """Trains a byte-pair SentencePiece model of at most ``size`` pieces on ``texts`` and writes it to ``out``.

    Returns in a line what it has become.

    The same texts in the same order give the same file. Nothing is normalised and characters that are too rare for a
    piece are spelled in bytes, so that every text can be encoded and comes back as it was. Where the texts do not
    support ``size`` pieces the model has fewer, and the ids behind them stay unused.

    Raises InputError where there is no text or where ``size`` leaves no room beside the fixed pieces.
    """
    lines = [line for text in texts for line in text.split(NEWLINE) if line.strip()]
    if not lines:
        raise InputError(out, "there is no text to train a tokenizer on", "give it songs with lyrics or tags")
    if size < FIXED_PIECES + 8:
        raise InputError(out, f"{size} text ids are too few", f"ask for at least {FIXED_PIECES + 8} (--size)")
    count, rare = len(lines), _rare_characters(lines, (size - FIXED_PIECES) // 2)
    lines = _without(rare, lines)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=SPACE_PIECE,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=[NEWLINE],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        max_sentence_length=10 * max(len(line.encode()) for line in lines),
        num_threads=1,
        minloglevel=2,
    )
    with atomic_path(out) as temporary:
        temporary.write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    spelled = f"; spelled in bytes, {len(rare):,} rare characters: {''.join(rare[:20])}" if rare else ""
    return f"{out}: {pieces:,} pieces of at most {size:,}, learned from {count:,} lines{spelled}"


def _rare_characters(lines: list[str], most: int) -> list[str]:
    """The characters that are not among the ``most`` frequent ones, the more frequent first."""
    return [character for character, _ in Counter(character for line in lines for character in line).most_common()][
        most:
    ]


def _without(rare: list[str], lines: list[str]) -> list[str]:
    """The lines, cut at every character that is to be spelled in bytes."""
    if not rare:
        return lines
    blanks = str.maketrans(dict.fromkeys(rare, NEWLINE))
    return [part for line in lines for part in line.translate(blanks).split(NEWLINE) if part.strip()]
