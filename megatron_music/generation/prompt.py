"""Lyrics and tags files in YuE's form, and the segment texts that they become."""

import re
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_text

SECTION_LABEL = re.compile(r"^\s*\[([^\[\]\n]+)\]\s*$")


def read_lyrics(path: Path) -> list[str]:
    """The sections of a lyrics file; see ``sections_of``."""
    return sections_of(read_text(path), path)


def sections_of(text: str, where: object = "lyrics") -> list[str]:
    """Cuts lyrics into sections that each start with a line ``[label]``.

    Args:
        where: names the lyrics in errors.

    Returns:
        One text a section, as training has them: ``"[verse]\\nline\\nline\\n\\n"``; a section without lines is
        ``"[intro]\\n\\n"``. Labels are lower-cased, lines are stripped, blank lines fall away.

    Raises:
        InputError: the text is empty, holds no label, or has text before the first label.
    """
    if not text.strip():
        raise InputError(where, "is empty", "write sections such as [verse] followed by lines of lyrics")
    sections: list[tuple[str, list[str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        label = SECTION_LABEL.match(line)
        if label:
            sections.append((label[1].strip().lower(), []))
        elif line.strip() and not sections:
            raise InputError(
                f"{where}: line {number}", "stands before any section label", "start with a line such as [verse]"
            )
        elif line.strip():
            sections[-1][1].append(line.strip())
    return [f"[{label}]\n" + "".join(f"{line}\n" for line in lines) + "\n" for label, lines in sections]


def read_tags(path: Path) -> str:
    """Reads the tags, one line; raises InputError where there is none or more than one."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(path, "is empty", "write one line of tags: genre, instruments, mood, vocal gender, timbre")
    if len(lines) > 1:
        raise InputError(f"{path}: line 2", "there is more than one line of tags", "write all tags on one line")
    return lines[0]
