"""Lyrics and tags files of a song that is asked for."""

from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_text
from megatron_music.songs.lyrics import Lyrics, parse_lyrics


def read_lyrics(path: str | Path, translation: str = "first") -> Lyrics:
    """The lyrics of a file, plain text or LRC; see ``lyrics_of``."""
    return lyrics_of(read_text(path), path, translation)


def lyrics_of(text: str, where: object = "lyrics", translation: str = "first") -> Lyrics:
    """Lyrics as training reads them; their ``texts`` are what a ``SongRequest`` takes.

    Args:
        where: names the lyrics in errors.
        translation: see ``parse_lyrics``.

    Raises:
        InputError: the text is empty, or nothing in it is sung or played.
    """
    mend = "write sections such as [verse] followed by lines of lyrics"
    if not text.strip():
        raise InputError(where, "is empty", mend)
    lyrics = parse_lyrics(text, translation)
    if not lyrics.sections:
        raise InputError(where, f"holds no lyrics; {lyrics.remarks[0]}" if lyrics.remarks else "holds no lyrics", mend)
    return lyrics


def read_tags(path: Path) -> str:
    """Reads the tags, one line; raises InputError where there is none or more than one."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(path, "is empty", "write one line of tags: genre, instruments, mood, vocal gender, timbre")
    if len(lines) > 1:
        raise InputError(f"{path}: line 2", "there is more than one line of tags", "write all tags on one line")
    return lines[0]
