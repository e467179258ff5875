"""Lyrics as people write them: plain text in sections, or LRC with a time before every line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_music.songs.song import Song

PAUSE_S = 10.0
"""Lyrics without labels are split where a line starts so long after the one before it."""
_STAMP = r"\[(\d{1,3}):(\d{1,2}(?:[.:]\d{1,3})?)\]"
_LEADING_STAMPS = re.compile(rf"\s*(?:{_STAMP}\s*)+")
_WORD_STAMP = re.compile(r"<\d{1,3}:\d{1,2}(?:[.:]\d{1,3})?>")
_METADATA = re.compile(
    r"\s*\[(?:ti|ar|al|au|by|re|ve|la|lr|tool|length|offset|id|#)\s*:\s*([^\]]*)\]\s*", re.IGNORECASE
)
_OFFSET = re.compile(r"\s*\[offset\s*:\s*([+-]?\d+)\s*\]\s*", re.IGNORECASE)
_LABEL = re.compile(r"\s*\[([^\[\]\n]*)\]\s*")


@dataclass(frozen=True)
class Line:
    """A sung line; its times in seconds where they are known."""

    text: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Section:
    """Lines under one label (``verse``), which is empty where the lyrics have none."""

    label: str
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        return segment_text(self.label, [line.text for line in self.lines])


def segment_text(label: str, lines: Sequence[str]) -> str:
    """A segment's text as documents hold it: ``"[verse]\\nline\\nline\\n\\n"``, without label where it is empty."""
    return (f"[{label}]\n" if label else "") + "".join(f"{line}\n" for line in lines) + "\n"


def plain_label(label: str) -> str:
    """``verse`` of ``Verse 2: Anna``: lower case, without number, singer and repeat count."""
    return re.sub(r"[\s\d.#]+$", "", re.split(r"[:：(]| [-–—x×] ?", label.strip().lower())[0]).strip()


def read_sections(text: str) -> list[Section]:
    """Sections of a text in either form; a text with one LRC time is read as LRC.

    Plain text: a section starts with a line ``[label]``; where a text has no labels, with a blank line. LRC: times
    ``[mm:ss.xx]`` before a line (several before a line that is repeated), labels on lines of their own with or without
    a time, ``[offset:ms]`` (positive: earlier); other ``[key:value]`` lines, times within a line and lines without a
    time are left out. A line ends where the next one or an empty timed line starts; LRC without labels is split at
    blank lines and where a line starts ``PAUSE_S`` after the one before it. Sections with neither label nor lines
    fall away.
    """
    text = text.removeprefix("\ufeff")
    is_lrc = any(_LEADING_STAMPS.match(line) for line in text.splitlines())
    sections = _lrc_sections(text) if is_lrc else _plain_sections(text)
    return [section for section in sections if section.label or section.lines]


def is_timed(sections: Sequence[Section]) -> bool:
    """Whether every line has a time (and there is one)."""
    lines = [line for section in sections for line in section.lines]
    return bool(lines) and all(line.start_s is not None for line in lines)


def lyrics_text(song: Song) -> str:
    """All sung lines of a song, from its segments or else from its untimed ``lyrics``; the text of a speech clip."""
    lines = [line for segment in song.segments for line in segment.lines]
    if not lines and isinstance(song.extra.get("lyrics"), str):
        lines = [line.text for section in read_sections(song.extra["lyrics"]) for line in section.lines]
    return "\n".join(lines) or song.text


def _plain_sections(text: str) -> list[Section]:
    sections = [Section("", ())]
    lines = [line for line in text.splitlines() if not _METADATA.fullmatch(line)]
    labelled = any(_LABEL.fullmatch(line) for line in lines)
    for line in lines:
        label = _LABEL.fullmatch(line)
        if label:
            sections.append(Section(plain_label(label[1]), ()))
        elif line.strip():
            sections[-1] = replace(sections[-1], lines=(*sections[-1].lines, Line(line.strip())))
        elif not labelled:
            sections.append(Section("", ()))
    return sections


@dataclass(frozen=True)
class _Event:
    """What an LRC file says of one moment; ``label`` is None inside a section, ``text`` empty where singing stops."""

    time_s: float
    label: str | None
    text: str


def _lrc_sections(text: str) -> list[Section]:
    events = sorted(_events(text), key=lambda event: event.time_s)
    labelled = any(event.label for event in events)
    sections = [Section("", ())]
    for index, event in enumerate(events):
        end_s = events[index + 1].time_s if index + 1 < len(events) else None
        before = sections[-1].lines[-1:]
        pause = not labelled and before and event.time_s - before[0].start_s >= PAUSE_S
        if event.label is not None or pause:
            sections.append(Section(event.label or "", ()))
        if event.text:
            sections[-1] = replace(sections[-1], lines=(*sections[-1].lines, Line(event.text, event.time_s, end_s)))
    return sections


def _events(text: str) -> list[_Event]:
    offset_s, events = 0.0, []
    labelled = any(
        _LABEL.fullmatch(_without_stamps(line)) and not _METADATA.fullmatch(line) for line in text.splitlines()
    )
    pending: str | None = None
    for line in text.splitlines():
        if _METADATA.fullmatch(line):
            offset = _OFFSET.fullmatch(line)
            offset_s = int(offset[1]) / 1000 if offset else offset_s
            continue
        stamps = _LEADING_STAMPS.match(line)
        words = _without_stamps(line)
        label = _LABEL.fullmatch(words)
        if label:
            pending = plain_label(label[1])
        elif not words and not stamps and not labelled and events:
            pending = ""
        if stamps and not label:
            for minutes, seconds in re.findall(_STAMP, stamps[0]):
                events.append((int(minutes) * 60 + float(seconds.replace(":", ".")), pending, words))
            pending = None if words else pending
    return [_Event(max(0.0, time_s - offset_s), label, words) for time_s, label, words in events]


def _without_stamps(line: str) -> str:
    return " ".join(_WORD_STAMP.sub("", _LEADING_STAMPS.sub("", line, count=1)).split())
