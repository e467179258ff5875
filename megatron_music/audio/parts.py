"""A stretch of a file that a decoder takes for a file of its own."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


class FileBytes:
    """The bytes of a file from ``first`` on as slices, each read when it is asked for.

    A slice ends with the file at the latest.
    """

    def __init__(self, file: BinaryIO, first: int = 0):
        self._file, self._first = file, first
        self.size = os.fstat(file.fileno()).st_size - first

    def __getitem__(self, span: slice) -> bytes:
        start = min(max(span.start or 0, 0), self.size)
        self._file.seek(self._first + start)
        return self._file.read(max(min(self.size if span.stop is None else span.stop, self.size) - start, 0))

    def behind(self, first: int) -> "FileBytes":
        """The bytes from ``first`` on, counted from there."""
        return FileBytes(self._file, self._first + first)


def behind_id3(content: FileBytes, start: int) -> int:
    """Where the ID3v2 tags that begin at ``start`` end; ``start`` where there are none."""
    while (head := content[start : start + 10])[:3] == b"ID3" and len(head) == 10:
        length = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        start += 10 + length + (10 if head[5] & 16 else 0)
    return start


@dataclass(frozen=True)
class Part:
    """Bytes ``start`` to ``end`` of a file, behind a ``head`` which is not in the file.

    Attributes:
        end: None for the end of the file.
        trusted: whether the length that the header tells is the one that decoding gives.
        announces: whether the header of a part that is not trusted tells a length at all.
        tags_outside: whether the file has tags which the part lacks.
        data_bytes: the audio data that is there, of a format whose header counts them; else 0.
        missing_bytes: the audio data that is announced but not there.
        unknown_bytes: what lies behind the audio data that is announced, and is no chunk; it may be audio.
    """

    path: Path
    start: int = 0
    end: int | None = None
    head: bytes = b""
    trusted: bool = True
    announces: bool = True
    tags_outside: bool = False
    data_bytes: int = 0
    missing_bytes: int = 0
    unknown_bytes: int = 0

    @property
    def is_whole_file(self) -> bool:
        return not (self.start or self.head) and self.end is None

    def open(self) -> io.BufferedIOBase:
        """The part as a file; raises OSError."""
        return io.BufferedReader(_PartFile(self))


class _PartFile(io.RawIOBase):
    def __init__(self, part: Part):
        self._file = open(part.path, "rb", buffering=0)
        self._head, self._start = part.head, part.start
        end = os.fstat(self._file.fileno()).st_size if part.end is None else part.end
        self._size = len(part.head) + max(end - part.start, 0)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # Damaged files send FFmpeg before the start; it would write an error to the terminal.
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer) -> int:
        wanted = max(min(len(buffer), self._size - self._at), 0)
        found = self._head[self._at : self._at + wanted]
        if not found and wanted:
            self._file.seek(self._start + self._at - len(self._head))
            found = self._file.read(wanted)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
