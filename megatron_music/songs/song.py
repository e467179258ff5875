"""A song: where its audio and codes lie, its tags, and its lyrics segment by segment."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_music.files import as_on_disk, as_utf8

TRACKS = ("mix", "vocals", "accompaniment")
SHARD_SUFFIX = ".parquet"
TAG_COMMAS, _SPACES = re.compile("[,;，；、]"), re.compile(r"\s+")


@dataclass
class Segment:
    """One section of a song.

    Attributes:
        text: the section's lyrics as a document holds them: ``"[verse]\\nline\\nline\\n\\n"``; the label or the
            lines may be missing.
        start_frame, end_frame: its half-open span in code frames.
        extra: fields of the manifest that this project does not read (``offset``, ``duration``), written back as they
            were.
    """

    text: str
    start_frame: int
    end_frame: int
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The word in brackets that the text starts with (``verse``), or the empty string."""
        match = re.match(r"\s*\[([^\]\n]*)\]", self.text)
        return match[1].strip() if match else ""

    @property
    def lines(self) -> list[str]:
        """The lines that are sung: not empty and not the label."""
        text = re.sub(r"\A\s*\[[^\]\n]*\]", "", self.text)
        return [line.strip() for line in text.splitlines() if line.strip()]


@dataclass
class Song:
    """One line of a manifest.

    Attributes:
        codes: by track, the name of an ``.npy`` file or ``shard.parquet#ID/TRACK``; relative to ``folder``.
        audio: by track, the path of an audio file; relative to ``folder``.
        duration_s: length of the audio in seconds, where the manifest knows it.
        genres: the tags as the manifest has them, in its order and with its separators.
        text: what is said in a clip of speech, or a plain text; lyrics stand in ``segments``.
        structure: music structure, a list of mappings with ``start`` and ``end`` in seconds and ``label``.
        folder: to which paths are relative: the manifest's, unless its files lie elsewhere.
        extra: fields that this project does not read, written back as they were.
    """

    id: str
    codes: dict[str, str] = field(default_factory=dict)
    audio: dict[str, str] = field(default_factory=dict)
    duration_s: float | None = None
    genres: str = ""
    segments: list[Segment] = field(default_factory=list)
    structure: list[dict[str, Any]] = field(default_factory=list)
    language: str | None = None
    text: str = ""
    folder: Path = field(default_factory=Path)
    extra: dict[str, Any] = field(default_factory=dict)

    def audio_path(self, track: str) -> Path:
        """Path of a track's audio; raises Rejected where the song names none."""
        if track not in self.audio:
            raise Rejected("audio_missing", f"the song names no {track} audio", track)
        return as_on_disk(self.folder, self.audio[track])

    def codes_path(self, track: str) -> tuple[Path, str | None]:
        """Path of a track's codes and, in a shard, ``ID/TRACK``; raises Rejected where the song names none."""
        if track not in self.codes:
            raise Rejected("codes_missing", f"the song names no {track} codes", track)
        name, member = split_reference(self.codes[track])
        return as_on_disk(self.folder, name), member


class Rejected(Exception):
    """Raised while one song is used, by what finds that it can't be: the song is left out and the run goes on.

    ``value`` is what the rule measured or found (``7`` lines, ``de``), where it is one number or word. Both become one
    line that every file can hold.
    """

    def __init__(self, rule: str, detail: str, value: object = ""):
        self.rule, self.detail, self.value = rule, _one_line(detail), _one_line(str(value))
        super().__init__(f"{rule}: {self.detail}")

    def __reduce__(self) -> tuple:
        return Rejected, (self.rule, self.detail, self.value)

    def reject(self, id: str, where: object) -> "Reject":
        """What is written down of the song ``id`` that stands at ``where``."""
        return Reject(id, self.rule, self.detail, str(where), self.value)


def _one_line(text: str) -> str:
    """A text without line breaks, that UTF-8 can hold."""
    return as_utf8(" ".join(text.split()))


@dataclass(frozen=True)
class Reject:
    """A song that was left out: which (an empty id where it has none), by which rule, why, where it stands, and the
    value that the rule found."""

    id: str
    rule: str
    detail: str
    where: str
    value: str = ""


def split_tags(genres: str) -> list[str]:
    """The single tags in a manifest's ``genres``: told apart at commas where there are any, and at spaces otherwise."""
    separator = TAG_COMMAS if TAG_COMMAS.search(genres) else _SPACES
    return [tag.strip() for tag in separator.split(genres) if tag.strip()]


def split_reference(reference: str) -> tuple[str, str | None]:
    """``("shard.parquet", "ID/TRACK")`` of a shard's member, ``(path, None)`` of any other file."""
    name, separator, member = reference.partition(f"{SHARD_SUFFIX}#")
    return (name + SHARD_SUFFIX, member) if separator else (reference, None)


def rebase_reference(reference: str, old_folder: Path, new_folder: Path) -> str:
    """A reference relative to ``old_folder`` made relative to ``new_folder``; absolute ones stay as they are."""
    name, member = split_reference(reference)
    if os.path.isabs(name):
        return reference
    old, new = old_folder.resolve(), new_folder.resolve()
    if old == new:
        return reference
    name = os.path.relpath(old / name, new)
    return name if member is None else f"{name}#{member}"
