"""Lyrics line by line: which stamps stand before a line, which labels and words are in it, and what is no part of both.

What is left out, or guessed, becomes a ``Remark``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_music.songs.credits import is_credit, is_like_a_credit
from megatron_music.songs.labels import (
    is_known_tag,
    is_like_a_label,
    is_repeat,
    is_section_name,
    is_tag,
    label_without_brackets,
    plain_label,
    repeat_count,
    split_repeat,
    split_tag,
)
from megatron_music.songs.stamps import BRACKET, Stamp, is_like_a_time, read_stamp

RULES = {
    "credit": "is a credit or a notice, and left out",
    "like_credit": "reads like a credit, and is sung",
    "title": "is the title and the artist that the header names, and left out",
    "header_tag": "is taken for a header's tag, and left out",
    "offset": "is no offset in milliseconds, and left out",
    "repeat": "is left out; write what is sung again once more",
    "singer": "says who sings, and is left out",
    "no_words": "holds no words, and is left out",
    "new_label": "is taken for a label, though none that is known",
    "no_label": "is no label that is known, and is sung",
    "like_label": "reads like a label, and is sung; write [verse] on a line of its own",
    "digits": "has digits in brackets, or reads like a time, and is kept",
    "time_unknown": "is no time that can be read, and is left out; write [mm:ss.xx]",
    "time_within": "is a time within or behind a line that has none in front, and is left out",
    "time_range": "has minutes or seconds above 59, and is taken as it is",
    "time_hours": "is read as hours, minutes and seconds",
    "before_start": "lies before the start of the song by the file's offset, and is put there",
    "before_times": "stands before the first time, and is left out",
    "no_time": "has no time, and is put between the lines beside it",
    "same_time": "has the time of another line; both are sung",
    "translation": "has the time of another line, as a translation has, and is left out; see --translation",
    "after_end": "starts after the end of the audio, and is left out of the segments",
    "no_room": "starts a section that has no time of its own, and is left out of the segments",
}
"""What a remark says of the words that it shows."""
_MOST_SHOWN = 60
_NOTHING = "\ufeff\u200b\u200e\u200f\u2060"
"""Marks of bytes, of widths and of directions: players and web pages leave them at the ends of lines."""
_DECORATION = re.compile(r"[\W_]*")
_OFFSET = re.compile(r"[+-]?\s*\d+(?:[.,]\d+)?(?=\s*(?:ms)?$)")
_SINGER = re.compile(r"(?:[MFD]|[vV]\d|男女|女男|[男女合])\s*[:：]\s*|[(（](?:[MFD]|男女?|女|合)[)）]\s*")
_DASH = re.compile(r"\s+[-–—]\s+")
_DIGITS = re.compile(
    r"[(（{]\s*\d[\d\s:.,：]*[)）}]|[(（{]\s*\d+\s*[:：]\s*\d|^\d{1,3}[:：]\d{2}\b|[\[【<]\s*\d+\s*[:：.,]"
)


@dataclass(frozen=True)
class Remark:
    """What was left out or guessed: the number of the line, a rule of ``RULES``, and the words."""

    line: int
    rule: str
    words: str

    def __str__(self) -> str:
        words = self.words if len(self.words) <= _MOST_SHOWN else self.words[: _MOST_SHOWN - 3] + "..."
        return f"line {self.line}: {words!r} {RULES[self.rule]}"


@dataclass(frozen=True)
class Label:
    """A label in its plain form; empty where a section starts without one."""

    name: str


@dataclass
class Row:
    """A line of the file.

    Attributes:
        stamps: before its words, one for each time that it is sung.
        end: where its last word ends, as a stamp behind it says.
        parts: labels and sung words in their order.
        is_blank: whether nothing at all stands there.
    """

    number: int
    stamps: list[Stamp] = field(default_factory=list)
    end: Stamp | None = None
    parts: list[Label | str] = field(default_factory=list)
    is_blank: bool = False

    @property
    def words(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    def without_words(self) -> "Row":
        return Row(self.number, parts=[part for part in self.parts if isinstance(part, Label)])


class Rows:
    """All lines of a text.

    Attributes:
        rows: those that say something, and blank ones.
        offset_s: by which all times are to be earlier.
    """

    def __init__(self, text: str):
        self.rows: list[Row] = []
        self.remarks: list[Remark] = []
        self.offset_s = 0.0
        self._header: dict[str, str] = {}
        self._at_head = True
        self._has_times = any(match[1] and read_stamp(match[1]) for match in BRACKET.finditer(text))
        for number, line in enumerate(text.splitlines(), start=1):
            self._read(number, line.strip().strip(_NOTHING).strip())

    @property
    def have_labels(self) -> bool:
        return any(isinstance(part, Label) for row in self.rows for part in row.parts)

    def remark(self, line: int, rule: str, words: str) -> None:
        self.remarks.append(Remark(line, rule, words))

    def _read(self, number: int, line: str) -> None:
        row = Row(number, is_blank=not line)
        is_alone = not BRACKET.sub("", line).strip("*_#:：-–—=~> ")
        words = ""
        word_stamps: list[re.Match] = []
        for text, match in _pieces(line):
            words += text
            row.end = None if text.strip() else row.end
            if match is None:
                continue
            is_leading = not row.words and _is_nothing(words)
            content = match[1] if match[1] is not None else match[2]
            stamp = read_stamp(content)
            if stamp is None:
                label, kept = self._bracket(row, match, content, is_alone, is_leading)
                if label is not None:
                    self._add_words(row, words)
                    row.parts.append(label)
                    words = ""
                words += kept
            elif not is_leading:
                row.end = stamp
                word_stamps.append(match)
            elif match[1] is not None or not row.stamps:
                row.stamps.append(stamp)
        self._add_words(row, words)
        if word_stamps and not row.stamps:
            self.remark(number, "time_within", " ".join(match[0] for match in word_stamps))
        if any(match[1] is not None for match in word_stamps):  # the second of the leading ones is the first word's
            del row.stamps[1:]
        for stamp in row.stamps:
            if not stamp.start.is_in_range:
                self.remark(number, "time_range", line)
        if row.is_blank or row.stamps or row.parts:
            self.rows.append(row)

    def _bracket(
        self, row: Row, match: re.Match, content: str, is_alone: bool, is_leading: bool
    ) -> tuple[Label | None, str]:
        """The label that brackets hold, if they do; and what of them is sung."""
        tag = split_tag(content)
        if is_like_a_time(content):
            return self._left_out(row, "time_unknown", match[0])
        if match[1] is None:
            return None, match[0]
        if is_repeat(content):
            return self._left_out(row, "repeat", match[0])
        if tag and is_known_tag(tag[0]):
            if tag[0] == "offset":
                self._set_offset(row, match[0], tag[1])
            self._header[tag[0]] = tag[1].casefold()
            return None, ""
        if is_section_name(content):
            if count := repeat_count(content):
                self.remark(row.number, "repeat", count)
            return Label(plain_label(content)), ""
        if is_leading and is_tag(content, self._at_head):
            return self._left_out(row, "header_tag", match[0])
        if is_alone and row.parts:
            return self._left_out(row, "singer", match[0])
        if any(letter.isdigit() for letter in content) and not (is_alone and plain_label(content)):
            self.remark(row.number, "digits", match[0])
        elif is_alone and plain_label(content):
            self.remark(row.number, "new_label", match[0])
        elif is_leading:
            self.remark(row.number, "no_label", match[0])
        return (Label(plain_label(content)), "") if is_alone else (None, match[0])

    def _left_out(self, row: Row, rule: str, words: str) -> tuple[None, str]:
        self.remark(row.number, rule, words)
        return None, ""

    def _set_offset(self, row: Row, shown: str, value: str) -> None:
        match = _OFFSET.match(value)
        if match:
            self.offset_s = float("".join(match[0].split()).replace(",", ".")) / 1000
        elif value:
            self.remark(row.number, "offset", shown)

    def _add_words(self, row: Row, words: str) -> None:
        """Adds what is sung of ``words``; they may be a label as well, where nothing else stands in the line."""
        words = " ".join(words.split())
        if _is_nothing(words):
            if words and not row.parts:
                self.remark(row.number, "no_words", words)
            return
        if is_credit(words):
            self.remark(row.number, "credit", words)
            return
        if self._is_title(words):
            self.remark(row.number, "title", words)
            return
        label = label_without_brackets(words) if not row.parts else None
        if label is not None:
            if count := repeat_count(words):
                self.remark(row.number, "repeat", count)
            row.parts.append(Label(label))
            return
        if singer := _SINGER.match(words):
            self.remark(row.number, "singer", singer[0].strip())
            words = words[singer.end() :]
        words, repeat = split_repeat(words)
        if repeat:
            self.remark(row.number, "repeat", repeat)
        if not words:
            return
        for rule, fits in (
            ("like_credit", is_like_a_credit),
            ("like_label", is_like_a_label),
            ("digits", _DIGITS.search),
        ):
            if fits(words):
                self.remark(row.number, rule, words)
        row.parts.append(words)
        # What stands before the first time is a title, and header tags may follow it.
        self._at_head &= self._has_times and not row.stamps

    def _is_title(self, words: str) -> bool:
        """Whether words are ``Title - Artist`` of the header, in either order, as players put them at the start."""
        named = {self._header.get("ti"), self._header.get("ar")}
        return len(named - {None, ""}) == 2 and named == set(_DASH.split(words.casefold()))


def _pieces(line: str) -> Iterator[tuple[str, re.Match | None]]:
    """The texts of a line, each with the brackets behind it."""
    start = 0
    for match in BRACKET.finditer(line):
        yield line[start : match.start()], match
        start = match.end()
    yield line[start:], None


def _is_nothing(words: str) -> bool:
    """Whether a text has neither letter nor digit: nobody sings it."""
    return bool(_DECORATION.fullmatch(words))
