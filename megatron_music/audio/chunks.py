"""Files whose header counts their audio in bytes (WAV, RF64, BW64, Wave64, AIFF, CAF, AU), and what is really there.

Where the count is wrong, the audio gets a head with the right one, so that libsndfile reads it like any other file.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_music.audio.parts import FileBytes, Part, behind_id3


@dataclass(frozen=True)
class _Form:
    """How chunks are laid out: where the first is, the struct of their names and lengths, and where they may start.

    ``to_end`` is the length by which libsndfile reads to the end of the file, for what 32 bits can't hold.
    """

    first: int
    header: struct.Struct
    align: int
    data: bytes = b"data"
    counts_header: bool = False
    to_end: int = 0xFFFFFFFF

    @property
    def length(self) -> struct.Struct:
        """The length that a chunk's header ends with."""
        return struct.Struct(self.header.format[0] + self.header.format[-1])

    @property
    def most(self) -> int:
        return (1 << 8 * self.length.size) - 1


_WAV = _Form(12, struct.Struct("<4sI"), 2)
_AU = _Form(0, struct.Struct(">4s4xI"), 1)
_FORMS = {
    b"RIFF": _WAV,
    b"RF64": _WAV,
    b"BW64": _WAV,
    b"RIFX": _Form(12, struct.Struct(">4sI"), 2),
    b"FORM": _Form(12, struct.Struct(">4sI"), 2, b"SSND", to_end=0),
    b"caff": _Form(8, struct.Struct(">4sQ"), 1),
    b"riff": _Form(40, struct.Struct("<4s12xQ"), 8, counts_header=True),
    b".snd": _AU,
}
MAGICS = frozenset(_FORMS)
_OPEN, _NEAR = (0x7F000000, 1 << 31, 1 << 32, 1 << 63, 1 << 64), 1 << 16
"""Lengths that programs write while they do not know them (the first is SoX's), less the bytes of some header."""
_NAME = re.compile(rb"[A-Za-z0-9(_][A-Za-z0-9)_ ]{3}")
_TAGS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"JUNK")
_MOST_CHUNKS, _FILLING_BYTES = 10_000, 1 << 20


def chunked_part(path: Path, content: FileBytes, first: int) -> Part:
    """The audio of a file that has one of ``MAGICS`` at ``first``, behind tags or at its start."""
    content = content.behind(first)
    magic = content[:4]
    form = _FORMS[magic]
    found = _find_au(content) if form is _AU else _find_data(form, content)
    if found is None or found[0] > content.size:
        return Part(path, first)  # the decoder says what it misses
    start, told, before = found
    announced = _announced(form, content, start, told)
    here = max(min(announced, content.size - start), 0)
    sizes = {
        "data_bytes": here,
        "missing_bytes": announced - here,
        "unknown_bytes": _unknown_bytes(form, content, start + here) if here == announced else 0,
    }
    if here == told and magic != b"BW64":
        return Part(path, first, **sizes)
    if form is _WAV:
        head = _rf64_head(b"".join(content[span] for span in before), here)
    else:
        head = bytearray(content[:start])
        length = here + form.counts_header * form.header.size
        length_at = 8 if form is _AU else start - form.length.size
        form.length.pack_into(head, length_at, length if length <= form.most else form.to_end)
    return Part(path, first + start, first + start + here, bytes(head), **sizes)


def _rf64_head(chunks: bytes, data_bytes: int) -> bytes:
    """What stands before the audio of a WAV file of 64 bits, whose other chunks are ``chunks``."""
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, 4 + 36 + len(chunks) + 8 + data_bytes, data_bytes, 0, 0)
    unused = (1 << 32) - 1
    return struct.pack("<4sI4s", b"RF64", unused, b"WAVE") + sizes + chunks + struct.pack("<4sI", b"data", unused)


def _announced(form: _Form, content: FileBytes, start: int, told: int) -> int:
    """The bytes of audio that a header means by the length it tells: it may have wrapped, or be none."""
    there = content.size - start
    if any(abs(told - value) <= _NEAR for value in _OPEN):
        return told if told <= there and not _unknown_bytes(form, content, start + told) else there
    if told <= 0:
        return 0 if _end_of_chunks(form, content, start) == content.size else there
    wraps = form.most + 1
    return told + max(there - told, 0) // wraps * wraps


def _chunks(form: _Form, content: FileBytes, at: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, place, place of the content, and length of each chunk, until there is none."""
    for _ in range(_MOST_CHUNKS):
        header = content[at : at + form.header.size]
        if len(header) < form.header.size or not _NAME.match(header) or header[:4] in _FORMS:
            return
        name, length = form.header.unpack(header)
        start = at + form.header.size
        length -= form.counts_header * form.header.size
        yield name, at, start, length
        at = start + max(length, 0)
        at += -at % form.align


def _find_data(form: _Form, content: FileBytes) -> tuple[int, int, list[slice]] | None:
    """Where the audio is, the length that is told for it, and where the chunks before it are."""
    before, long_length = [], None
    for name, at, start, told in _chunks(form, content, form.first):
        if name == form.data:
            return start, long_length if long_length is not None and told == 0xFFFFFFFF else told, before
        if name == b"ds64":
            (long_length,) = struct.unpack("<Q", content[start + 8 : start + 16].ljust(8, b"\0"))
        else:
            before.append(slice(at, start + told + told % 2))
    return None


def _find_au(content: FileBytes) -> tuple[int, int, list[slice]] | None:
    start, told = struct.unpack(">II", content[4:12].ljust(8, b"\0"))
    return (start, told, []) if start >= 12 else None


def _unknown_bytes(form: _Form, content: FileBytes, at: int) -> int:
    """How much lies behind the end of the audio that is neither chunks nor tags nor a filling of zeros."""
    end = behind_id3(content, _end_of_chunks(form, content, at))
    rest = max(content.size - end, 0)
    return 0 if rest <= _FILLING_BYTES and not content[end:].strip(b"\0") else rest


def _end_of_chunks(form: _Form, content: FileBytes, at: int) -> int:
    """Where the chunks behind the audio end; writers may forget to align the first."""
    ends = [at]
    for place in () if form is _AU else {at, at + -at % form.align}:
        for name, _, start, length in _chunks(form, content, place):
            if start + length > content.size and name not in _TAGS:
                break
            ends.append(min(start + length + -(start + length) % form.align, content.size))
    return max(ends)
