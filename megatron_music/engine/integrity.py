"""Whether the files of a checkpoint are those that were written: sizes and CRC-32 sums, listed in its ``files.json``.

A checkpoint that was imported, or written before there were lists, has none: then only what it can't do without is
looked for.
"""

import io
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from megatron_music.errors import InputError
from megatron_music.files import read_json, sync, write_json

LIST = "files.json"
BEFORE = ".before"
"""At the end of the name of a checkpoint in whose place another is being put."""
_NEEDED = (".metadata", "common.pt", "metadata.json", "state.json")
_BLOCK_BYTES, _READERS = 2**24, 4


class Mark(NamedTuple):
    """What a file was when it was written."""

    size_bytes: int
    crc32: int


class SummedFile(io.FileIO):
    """A new file that sums what is written to it, from front to back, so that nothing has to be read again."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, "w")
        self._sum, self._bytes = 0, 0
        self.error: OSError | None = None

    def write(self, data) -> int:
        """Writes all of ``data``; an OSError names the file."""
        view = memoryview(data).cast("B")
        written = 0
        try:
            while written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            error.filename = os.fspath(self.name)
            self.error = error
            raise
        self._sum, self._bytes = zlib.crc32(view, self._sum), self._bytes + written
        return written

    @property
    def mark(self) -> Mark:
        """Of what has been written so far."""
        return Mark(self._bytes, self._sum)


def names_of_files(folder: Path) -> set[str]:
    """All files below a folder but its list, by their paths in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != LIST}


def synced_marks(folder: Path, names: Iterable[str]) -> dict[str, Mark]:
    """Marks of files that were not summed when they were written, and brings them to disk."""

    def mark(name: str) -> tuple[str, Mark]:
        path = folder / name
        found = Mark(path.stat().st_size, _sum(path))
        sync(path)
        return name, found

    with ThreadPoolExecutor(_READERS) as readers:
        return dict(readers.map(mark, names))


def write_list(folder: Path, marks: dict[str, Mark]) -> None:
    """Writes ``files.json`` into a checkpoint folder."""
    files = {name: {"bytes": mark.size_bytes, "crc32": f"{mark.crc32:08x}"} for name, mark in sorted(marks.items())}
    write_json(folder / LIST, {"files": files})


def size_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint as far as its list and its files' sizes tell, which reads next to nothing."""
    checkpoint = Path(checkpoint)
    if not any(checkpoint.iterdir()):
        return "it is empty"
    if not (checkpoint / LIST).exists():
        lacking = (name for name in _NEEDED if not _size(checkpoint / name))
        return next((f"{name} is missing or empty" for name in lacking), None)
    try:
        marks = _marks(checkpoint)
    except InputError as error:
        return f"{LIST} {error.what}"
    for name, mark in marks.items():
        size = _size(checkpoint / name)
        if size is None:
            return f"{name} is missing"
        if size != mark.size_bytes:
            return f"{name} has {size:,} bytes where {mark.size_bytes:,} were written"
    return None


def sum_fault(checkpoint: Path, share: int = 0, shares: int = 1) -> str | None:
    """The first file in one of equal shares of a checkpoint's bytes that is not what was written.

    All shares together read everything once. None also where there is no list.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / LIST).exists():
        return None
    # The largest first, dealt out in turn.
    marks = sorted(_marks(checkpoint).items(), key=lambda item: (-item[1].size_bytes, item[0]))[share::shares]

    def fault(name: str, mark: Mark) -> str | None:
        try:
            return None if _sum(checkpoint / name) == mark.crc32 else f"{name} holds other bytes than were written"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"

    with ThreadPoolExecutor(_READERS) as readers:
        return next(filter(None, readers.map(lambda item: fault(*item), marks)), None)


def require_whole(checkpoint: Path) -> None:
    """Reads all of a checkpoint once; raises InputError where it is damaged."""
    fault = size_fault(checkpoint) or sum_fault(checkpoint)
    if fault is not None:
        raise damaged(checkpoint, fault)


def damaged(checkpoint: Path, fault: str) -> InputError:
    """The error about a checkpoint that was asked for by name."""
    return InputError(checkpoint, f"is damaged: {fault}", "choose another checkpoint, or copy this one again")


def _marks(checkpoint: Path) -> dict[str, Mark]:
    content = read_json(checkpoint / LIST)
    try:
        return {name: Mark(int(file["bytes"]), int(file["crc32"], 16)) for name, file in content["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(checkpoint / LIST, "is no list of files", "copy the checkpoint again") from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _sum(path: Path) -> int:
    total, block = 0, bytearray(_BLOCK_BYTES)
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(block):
            total = zlib.crc32(memoryview(block)[:count], total)
    return total
