"""Songs whose owners do not want them in: a text file with an id, or a pattern of ids, on every line.

.. code-block:: text

    # asked for by letter, 2026-03-14
    song-0417
    label-x/*

Empty lines say nothing, nor do lines that begin with ``#``, unless that is the id of a song. A list may name songs that
no manifest has.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_music.files import read_text
from megatron_music.songs.ids import names, plain
from megatron_music.songs.song import Reject, Rejected

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class OptOut:
    """The lines of such a file."""

    ids: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "OptOut":
        """Reads a list; raises InputError where the file is missing or not text."""
        lines = [plain(line.strip()) for line in read_text(path).split("\n")]
        patterns = tuple(line for line in lines if _PATTERN.search(line) and not line.startswith("#"))
        # A line with a sign of a pattern, or a #, in it may also be the id of a song as it stands.
        return cls(frozenset(filter(None, lines)), patterns)

    def line_for(self, song_id: str) -> str | None:
        """The line that names a song, or None."""
        id = plain(song_id).strip()
        if id in self.ids:
            return id
        return next((pattern for pattern in self.patterns if names(pattern, song_id)), None)


def opted_out(song_id: str, line: str, where: object) -> Reject:
    """What is written down of a song that a line of the list names."""
    return Rejected("opted_out", f"the opt-out list names {line}", line).reject(song_id, where)
