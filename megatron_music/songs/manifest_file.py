"""A manifest as a file: its lines, the folder that its paths are relative to, and what is no manifest.

Paths are relative to the manifest. Programs that write manifests of their own may have paths relative to the folder
that they start in, as YuE's scripts do: ``example/jsonl/a.jsonl`` names ``example/npy/1.npy``. So where no file of the
first songs lies beside the manifest, the folders above it and the current folder are looked through.
"""

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from megatron_music.errors import InputError
from megatron_music.files import as_on_disk
from megatron_music.progress import console
from megatron_music.songs import values
from megatron_music.songs.song import Rejected, split_reference

_HEAD_BYTES = 1 << 12
_SONGS_LOOKED_AT, _FOLDERS_ABOVE = 50, 3
_BLANKS = b" \t\r\n" + codecs.BOM_UTF8
_WRITE = "write JSON lines, with pandas: to_json(PATH, orient='records', lines=True)"
_OTHERS = (
    (rb"PAR1", "is a Parquet table", _WRITE),
    (rb"ARROW1|\xff{4}", "is an Arrow table", _WRITE),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|PK\x03\x04", "is compressed", "unpack it"),
    (rb"\xff\xfe|\xfe\xff", "is UTF-16 text", "save it as UTF-8, or `iconv -f UTF-16 -t UTF-8`"),
    (rb"\s*\[\s*(\{|$)", "is one JSON list", _WRITE),
    (rb"\s*\{[ \t]*\r?\n\s*[\"}]", "is JSON over several lines", "write each song on one line"),
    (rb"[^\n]*\}[ \t]*\r[ \t]*\{", "ends its lines with CR alone", r"`tr '\r' '\n'`"),
)
"""What other files begin with."""


@dataclass(frozen=True)
class Place:
    """The folder to which a manifest's paths are relative.

    Attributes:
        example: the first relative path where no file of the first songs was found in any folder.
    """

    folder: Path
    looked_in: tuple[Path, ...]
    example: str | None = None

    def tell(self, manifest: Path) -> None:
        """Says it where it is not the manifest's own folder, or where nothing was found."""
        if self.example:
            folders = ", ".join(str(folder) for folder in self.looked_in)
            console.print(
                f"{manifest}: {self.example} and other files that it names are in none of {folders}; "
                "start in the folder that its paths are relative to, or move it there",
            )
        elif self.folder != self.looked_in[0]:
            console.print(
                f"{manifest}: its paths are taken relative to {self.folder}, where its files are; "
                "none of the first songs' lie beside it",
            )


def open_manifest(path: str | Path) -> BinaryIO:
    """Opens a manifest; raises InputError where it can't be read, or begins like a file of another kind."""
    try:
        file = Path(path).open("rb")
    except FileNotFoundError:
        raise InputError(path, "no such file", "name a manifest of JSON lines") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "name a manifest of JSON lines") from None
    head = file.peek(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    found = next(((what, mend) for beginning, what, mend in _OTHERS if re.match(beginning, head)), None)
    if _is_table(head):
        found = "is a table of separated cells", _WRITE
    if found:
        file.close()
        raise InputError(path, f"{found[0]}, not JSON lines", found[1])
    return file


def _is_table(head: bytes) -> bool:
    """Whether a file begins with a line of headings, ``id`` among them, and not with a song whose tags say ``id``."""
    first = head.split(b"\n", 1)[0].strip()
    cells = [cell.strip(b" \"'\r") for cell in re.split(rb"[,;\t|]", first)]
    return not first.startswith(b"{") and len(cells) > 1 and b"id" in cells


def song_lines(file: BinaryIO, first_line: int = 1) -> Iterator[tuple[int, int, bytes]]:
    """The lines that are not empty, from where ``file`` stands: number, first byte counted from there, and content."""
    byte = 0
    for number, line in enumerate(file, first_line):
        if line.strip(_BLANKS):
            yield number, byte, line
        byte += len(line)


def find_place(path: str | Path, fields: Iterable[str]) -> Place:
    """Where the files are that the first songs of a manifest name in ``fields``.

    The manifest's own folder is it where any of them lies there; another where most of them do, so that one name that
    fits by chance moves nothing.
    """
    path = Path(path)
    if not path.is_file():  # a pipe can be read once
        return Place(path.parent, (path.parent,))
    named = list(_relative_names(path, list(fields)))
    above = path.absolute().parents[1 : 1 + _FOLDERS_ABOVE]
    looked_in = tuple(dict.fromkeys([path.parent, *above, Path.cwd()]))
    if any(os.path.isfile(as_on_disk(path.parent, name)) for name in named):
        return Place(path.parent, looked_in)
    for folder in looked_in[1:]:
        if 2 * sum(os.path.isfile(as_on_disk(folder, name)) for name in named) > len(named):
            return Place(folder, looked_in)
    return Place(path.parent, looked_in, named[0] if named else None)


def _relative_names(path: Path, fields: list[str]) -> Iterator[str]:
    with open_manifest(path) as file:
        for _, _, line in islice(song_lines(file), _SONGS_LOOKED_AT):
            try:
                content = values.parse_line(line)
            except Rejected:
                continue
            for field in fields:
                reference = content.get(field)
                if isinstance(reference, str) and reference:
                    name = split_reference(reference)[0]
                    if not Path(name).is_absolute():
                        yield name
