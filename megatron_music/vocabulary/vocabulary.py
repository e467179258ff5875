"""The id ranges of a vocabulary, read from a YAML file: text first, then special tokens, then codec codes.

A file looks like ``tokenizers/yue.yaml``. Ids between ``size`` and ``padded_size`` exist only so that the
tensor-parallel size divides the embedding table; no document holds them.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from pydantic import Field

from megatron_music.errors import InputError
from megatron_music.files import read_yaml, write_text
from megatron_music.recipe.fields import Strict
from megatron_music.recipe.recipe import parse_strict
from megatron_music.vocabulary.kinds import Kind

if TYPE_CHECKING:
    from megatron_music.vocabulary.text import TextTokenizer


@dataclass(frozen=True)
class CodecRange:
    """The ids of one codec: code ``c`` of codebook ``k`` is ``first + k * codebook_size + c``.

    ``marker`` is the special token, or several written one after the other, that announces the codec after ``<SOA>``.
    """

    name: str
    marker: str
    first: int
    codebooks: int
    codebook_size: int

    @property
    def end(self) -> int:
        """The first id behind the range."""
        return self.first + self.codebooks * self.codebook_size

    def codebook_ids(self, codebook: int) -> range:
        """All ids of one codebook; raises ValueError where the codec has no such codebook."""
        if not 0 <= codebook < self.codebooks:
            raise ValueError(f"{self.name} has codebooks 0 to {self.codebooks - 1}, not {codebook}")
        start = self.first + codebook * self.codebook_size
        return range(start, start + self.codebook_size)

    def ids(self, codes_KT: np.ndarray, first_codebook: int = 0) -> np.ndarray:
        """Ids, int32 of the same shape, of codes (codebooks, ...) whose row 0 is codebook ``first_codebook``.

        Raises ValueError where a code is outside the codebook or there are more rows than codebooks.
        """
        codes_KT = np.asarray(codes_KT)
        rows = codes_KT.shape[0]
        if first_codebook < 0 or first_codebook + rows > self.codebooks:
            raise ValueError(
                f"{rows} codebooks from {first_codebook} do not fit {self.name}, which has {self.codebooks}"
            )
        if codes_KT.size and not 0 <= int(codes_KT.min()) <= int(codes_KT.max()) < self.codebook_size:
            raise ValueError(
                f"codes from {codes_KT.min()} to {codes_KT.max()} are not all below {self.name}'s {self.codebook_size}"
            )
        offsets_K = self.first + self.codebook_size * np.arange(first_codebook, first_codebook + rows, dtype=np.int32)
        return codes_KT.astype(np.int32) + offsets_K.reshape(rows, *[1] * (codes_KT.ndim - 1))

    def codes(self, ids: np.ndarray, codebook: int = 0) -> np.ndarray:
        """Codes, int16 of the same shape, of ids that all belong to ``codebook``; raises ValueError otherwise."""
        ids = np.asarray(ids)
        valid = self.codebook_ids(codebook)
        if ids.size and not valid.start <= int(ids.min()) <= int(ids.max()) < valid.stop:
            raise ValueError(
                f"ids from {ids.min()} to {ids.max()} are not all codes of {self.name} codebook {codebook}"
            )
        return (ids - valid.start).astype(np.int16)


class _TextSection(Strict):
    size: int = Field(gt=0)


class _SpecialsSection(Strict):
    first: int = Field(ge=0)
    tokens: list[str] = Field(min_length=1)
    plain_in_text: list[str] = []


class _CodecSection(Strict):
    name: str
    marker: str
    first: int = Field(ge=0)
    codebooks: int = Field(gt=0)
    codebook_size: int = Field(gt=0, le=32768, description="codes are stored as int16")


class _VocabularyFile(Strict):
    name: str
    text: _TextSection
    specials: _SpecialsSection
    codecs: list[_CodecSection] = Field(min_length=1)
    size: int = Field(gt=0)
    padded_size: int = Field(gt=0)
    default_codec: str


@dataclass(frozen=True)
class Vocabulary:
    """Which id means what.

    Attributes:
        text_size: ids ``[0, text_size)`` are SentencePiece pieces.
        specials: id of each special token.
        codecs: id range of each codec.
        size: number of ids that can stand in a document, unused ones between the ranges included.
        padded_size: rows of the embedding table.
        default_codec: the codec that a task uses where it names none.
        plain_in_text: special tokens that, written in a text, are read as ordinary characters.
    """

    name: str
    text_size: int
    specials: dict[str, int]
    codecs: dict[str, CodecRange]
    size: int
    padded_size: int
    default_codec: str
    plain_in_text: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Reads a vocabulary file; raises InputError where fields are missing or unknown or where ranges overlap."""
        file: _VocabularyFile = parse_strict(_VocabularyFile, read_yaml(path), path)
        tokens, first = file.specials.tokens, file.specials.first
        vocabulary = cls(
            name=file.name,
            text_size=file.text.size,
            specials={token: first + index for index, token in enumerate(tokens)},
            codecs={section.name: CodecRange(**section.model_dump()) for section in file.codecs},
            size=file.size,
            padded_size=file.padded_size,
            default_codec=file.default_codec,
            plain_in_text=tuple(file.specials.plain_in_text),
        )
        _check_specials(vocabulary, tokens, path)
        if len(vocabulary.codecs) != len(file.codecs):
            raise InputError(f"{path}: codecs", "two codecs have the same name", "name them apart")
        _check_ranges(vocabulary, path)
        return vocabulary

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary as a file that ``load`` reads back equal."""
        specials = sorted(self.specials, key=self.specials.__getitem__)
        content = {
            "name": self.name,
            "text": {"size": self.text_size},
            "specials": {
                "first": self.specials[specials[0]],
                "tokens": specials,
                "plain_in_text": list(self.plain_in_text),
            },
            "codecs": [vars(codec) for codec in self.codecs.values()],
            "size": self.size,
            "padded_size": self.padded_size,
            "default_codec": self.default_codec,
        }
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def special(self, token: str) -> int:
        """Id of a special token such as ``<EOA>``; raises InputError where the vocabulary lacks it."""
        if token not in self.specials:
            near = difflib.get_close_matches(token, self.specials, n=1)
            mend = f"did you mean {near[0]}?" if near else "add it to the vocabulary file's specials.tokens"
            raise InputError(f"vocabulary {self.name}", f"has no special token {token}", mend)
        return self.specials[token]

    def codec(self, name: str | None = None) -> CodecRange:
        """The id range of a codec, the default one without a name; raises InputError where there is none."""
        name = self.default_codec if name is None else name
        if name not in self.codecs:
            raise InputError(f"vocabulary {self.name}", f"has no codec {name}", f"choose from {', '.join(self.codecs)}")
        return self.codecs[name]

    def marker_ids(self, codec: CodecRange) -> list[int]:
        """Ids of the special tokens that announce ``codec`` after ``<SOA>``."""
        return [self.specials[token] for token in _tokens(codec.marker)]

    def describe(self, id: int, tokenizer: "TextTokenizer | None" = None) -> str:
        """One id in words: ``<xcodec> codebook 0 code 17``, ``<EOA>``, ``text 'la'``, ``unused id 1023``.

        Without a tokenizer a text id is told by its number. Raises ValueError outside ``[0, padded_size)``.
        """
        if not 0 <= id < self.padded_size:
            raise ValueError(f"id {id} is outside vocabulary {self.name}'s 0 to {self.padded_size - 1}")
        if id < self.text_size:
            return f"text {id}" if tokenizer is None else f"text {tokenizer.piece(id)!r}"
        if id in self._special_names:
            return self._special_names[id]
        for codec in self.codecs.values():
            if codec.first <= id < codec.end:
                codebook, code = divmod(id - codec.first, codec.codebook_size)
                return f"{codec.marker} codebook {codebook} code {code}"
        return f"unused id {id}" if id < self.size else f"padding id {id}"

    def text_kinds(self, ids: np.ndarray) -> np.ndarray:
        """Kinds, uint8, of ids that came from a text: TEXT or, for special tokens that stood in it, SPECIAL."""
        return np.where(np.asarray(ids) < self.text_size, np.uint8(Kind.TEXT), np.uint8(Kind.SPECIAL))

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {id: token for token, id in self.specials.items()}


def _tokens(marker: str) -> list[str]:
    return re.findall(r"<[^<>]+>", marker)


def _check_specials(vocabulary: Vocabulary, tokens: list[str], path: str | Path) -> None:
    """Special tokens are written ``<name>``, once each, and markers and ``plain_in_text`` name existing ones."""
    where = f"{path}: specials"
    for token in tokens:
        if not re.fullmatch(r"<[^<>\s]+>", token):
            raise InputError(f"{where}.tokens", f"{token!r} is not a special token", "write it as <name>")
    if len(vocabulary.specials) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise InputError(f"{where}.tokens", f"{twice} stands there twice", "take one out")
    for token in vocabulary.plain_in_text:
        if token not in vocabulary.specials:
            raise InputError(f"{where}.plain_in_text", f"{token} is not in specials.tokens", "add it or take it out")
    for token in ("<EOD>", "<SOA>", "<EOA>"):
        if token not in vocabulary.specials:
            raise InputError(f"{where}.tokens", f"{token} is missing, which every document needs", "add it")
    for codec in vocabulary.codecs.values():
        parts = _tokens(codec.marker)
        if not parts or "".join(parts) != codec.marker or any(part not in vocabulary.specials for part in parts):
            raise InputError(
                f"{path}: codecs {codec.name}", f"marker {codec.marker!r} is not in specials.tokens", "add it there"
            )
    if vocabulary.default_codec not in vocabulary.codecs:
        raise InputError(
            f"{path}: default_codec",
            f"{vocabulary.default_codec} is not one of the codecs",
            f"choose from {', '.join(vocabulary.codecs)}",
        )


def _check_ranges(vocabulary: Vocabulary, path: str | Path) -> None:
    """Ranges may leave gaps but must not overlap, and all lie below ``size``, which lies within ``padded_size``."""
    special_ids = vocabulary.specials.values()
    ranges = [("text", 0, vocabulary.text_size), ("specials", min(special_ids), max(special_ids) + 1)]
    ranges += [(f"codecs {codec.name}", codec.first, codec.end) for codec in vocabulary.codecs.values()]
    ranges.sort(key=lambda item: item[1])
    for (name, first, end), (next_name, next_first, next_end) in zip(ranges, ranges[1:], strict=False):
        if next_first < end:
            raise InputError(
                f"{path}: {next_name}",
                f"ids {next_first} to {next_end - 1} overlap {name}, which has {first} to {end - 1}",
                f"let it start at {end} or later",
            )
    if ranges[-1][2] > vocabulary.size:
        raise InputError(
            f"{path}: size", f"{vocabulary.size} is below the last range's end {ranges[-1][2]}", "raise it"
        )
    if vocabulary.padded_size < vocabulary.size:
        raise InputError(
            f"{path}: padded_size", f"{vocabulary.padded_size} is below size {vocabulary.size}", "raise it"
        )
