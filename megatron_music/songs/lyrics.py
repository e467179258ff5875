"""Lyrics as people write them, read in one way for training and for singing: plain text in sections, or LRC.

``lyric_rows`` reads the lines, ``stamps`` their times, ``labels`` and ``credits`` what in them is not sung.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import inf

from megatron_music.errors import InputError
from megatron_music.songs.lyric_rows import Label, Remark, Row, Rows
from megatron_music.songs.song import Song
from megatron_music.songs.stamps import Time, have_hours

PAUSE_S = 10.0
"""Lyrics without labels are split where a line starts so long after the one before it."""
BILINGUAL_SHARE = 1 / 3
"""Lines that share their times are original and translation where so many of a file's times have more than one."""
TRANSLATIONS = ("first", "second", "both")
"""Which of the lines under one time are taken, where they are original and translation."""


@dataclass(frozen=True)
class Line:
    """A sung line; its times in seconds where they are known, and its number in the file."""

    text: str
    start_s: float | None = None
    end_s: float | None = None
    number: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Section:
    """Lines under one label (``verse``), which is empty where the lyrics have none; and its line in the file."""

    label: str
    lines: tuple[Line, ...]
    number: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        return segment_text(self.label, [line.text for line in self.lines])


@dataclass(frozen=True)
class Lyrics:
    """What was read of a text: its sections, and what was left out or guessed, by line."""

    sections: list[Section]
    remarks: list[Remark]

    @property
    def texts(self) -> list[str]:
        """The texts of all sections, as documents hold them."""
        return [section.text for section in self.sections]

    @property
    def lines(self) -> list[Line]:
        return [line for section in self.sections for line in section.lines]

    @property
    def are_timed(self) -> bool:
        """Whether every line has a time (and there is one)."""
        return bool(self.lines) and all(line.start_s is not None for line in self.lines)


def segment_text(label: str, lines: Sequence[str]) -> str:
    """A segment's text as documents hold it: ``"[verse]\\nline\\nline\\n\\n"``, without label where it is empty."""
    return (f"[{label}]\n" if label else "") + "".join(f"{line}\n" for line in lines) + "\n"


def parse_lyrics(text: str, translation: str = "first", duration_s: float | None = None) -> Lyrics:
    """Reads a text in either form; a text with one time before a line is read as LRC.

    Plain text: a section starts with a label; where a text has no labels, with a blank line. LRC: times before a line
    (several before a line that is repeated), labels with or without a time, ``[offset:ms]`` (positive: earlier). A line
    ends where the next one or an empty timed line starts, or where it says itself; LRC without labels is split at blank
    lines and where a line starts ``PAUSE_S`` after the one before it. A line without a time belongs to the one before
    it: what stands under one time shares the span. Lines under the same time are original and translation where at
    least ``BILINGUAL_SHARE`` of all times have several; ``translation`` says which are taken. Sections with neither
    label nor lines fall away.

    Args:
        translation: one of ``TRANSLATIONS``; others raise InputError.
        duration_s: of the song, which ends its last line; times alone depend on it.
    """
    check_translation(translation)
    rows = Rows(text)
    sections = _Sections()
    if any(row.stamps for row in rows.rows):
        _read_timed(rows, sections, translation, duration_s)
    else:
        _read_plain(rows, sections)
    remarks = sorted(dict.fromkeys(rows.remarks), key=lambda remark: remark.line)
    return Lyrics([section for section in sections.made if section.label or section.lines], remarks)


def check_translation(name: str) -> None:
    """Raises InputError where ``name`` is none of ``TRANSLATIONS``."""
    if name not in TRANSLATIONS:
        raise InputError("--translation", f"{name!r} is not known", f"choose {', '.join(TRANSLATIONS)}")


def lyrics_text(song: Song) -> str:
    """All sung lines of a song, from its segments or else from its untimed ``lyrics``; the text of a speech clip."""
    lines = [line for segment in song.segments for line in segment.lines]
    if not lines and isinstance(song.extra.get("lyrics"), str):
        lines = [line.text for line in parse_lyrics(song.extra["lyrics"]).lines]
    return "\n".join(lines) or song.text


class _Sections:
    """Sections while they are made."""

    def __init__(self):
        self._parts: list[tuple[str, list[Line], int]] = [("", [], 1)]

    @property
    def made(self) -> list[Section]:
        return [Section(label, tuple(lines), number) for label, lines, number in self._parts]

    def start(self, label: str, number: int) -> None:
        self._parts.append((label, [], number))

    def add(self, line: Line) -> None:
        self._parts[-1][1].append(line)


def _read_plain(rows: Rows, sections: _Sections) -> None:
    labelled = rows.have_labels
    for row in rows.rows:
        if row.is_blank and not labelled:
            sections.start("", row.number)
        for part in row.parts:
            if isinstance(part, Label):
                sections.start(part.name, row.number)
            else:
                sections.add(Line(part, number=row.number))


@dataclass
class _Event:
    """What an LRC file says of one moment: rows with that time, each with rows without a time that follow it."""

    time_s: float
    rows: list[Row]
    end_s: float | None = None


def _read_timed(rows: Rows, sections: _Sections, translation: str, duration_s: float | None) -> None:
    labelled = rows.have_labels
    moments = [list(group) for _, group in groupby(_events(rows), key=lambda event: round(event.time_s, 3))]
    _choose(moments, rows, translation)
    # Those that the offset puts before the start of the song become one there, so that their lines share its span.
    early = [events for events in moments if events[0].time_s <= rows.offset_s]
    moments = [[event for events in early for event in events], *moments[len(early) :]] if early else moments
    starts_s = [max(0.0, events[0].time_s - rows.offset_s) for events in moments]
    sung_s = inf
    for events, start_s, next_s in zip(moments, starts_s, [*starts_s[1:], inf], strict=True):
        ends_s = [event.end_s - rows.offset_s for event in events if event.end_s is not None]
        end_s = min([next_s, *(end_s for end_s in [*ends_s, duration_s or inf] if end_s > start_s)])
        parts = [(event, row.number, part) for event in events for row in event.rows for part in row.parts]
        spans = _shares(start_s, None if end_s == inf else end_s, sum(isinstance(part, str) for *_, part in parts))
        if not labelled and start_s - sung_s >= PAUSE_S:
            sections.start("", events[0].rows[0].number)
        for event, number, part in parts:
            if isinstance(part, Label):
                sections.start(part.name, number)
                continue
            if event.time_s < rows.offset_s:
                rows.remark(number, "before_start", part)
            sections.add(Line(part, *next(spans), number))
            sung_s = start_s


def _events(rows: Rows) -> list[_Event]:
    """In order of time; a row without a time belongs to the time before it, one below a first label to the start."""
    with_hours = have_hours([row.stamps[0].start for row in rows.rows if row.stamps])
    for row in rows.rows:
        if with_hours and any(stamp.start.is_ambiguous for stamp in row.stamps):
            rows.remark(row.number, "time_hours", " ".join(row.words))
    events: list[_Event] = []
    latest: list[_Event] = []
    waiting: list[Row] = []  # labels without a time
    for row in rows.rows:
        if row.stamps:
            latest = [
                _Event(start.seconds(with_hours), [*waiting, row], end and end.seconds(with_hours))
                for start, end in _spans(row)
            ]
            events += latest
            waiting = []
        elif row.words:
            if not latest and (waiting or isinstance(row.parts[0], Label)):
                latest = [_Event(0.0, [])]
                events += latest
            for event in latest:
                event.rows += [*waiting, row]
            waiting = []
            for words in row.words:
                rows.remark(row.number, "no_time" if latest else "before_times", words)
        elif row.parts:
            waiting.append(row)
        elif events and not rows.have_labels:
            waiting.append(Row(row.number, parts=[Label("")]))
    for event in latest:
        event.rows += waiting
    return sorted(events, key=lambda event: event.time_s)


def _spans(row: Row) -> list[tuple[Time, Time | None]]:
    """Start and end of a row for each of its stamps; where it has several, no stamp behind it is the end of all."""
    behind = row.end.start if row.end and len(row.stamps) == 1 else None
    return [(stamp.start, stamp.end or behind) for stamp in row.stamps]


def _choose(moments: list[list[_Event]], rows: Rows, translation: str) -> None:
    """Leaves, of original and translation, the one that is asked for."""
    sung = [[event for event in events if any(row.stamps and row.words for row in event.rows)] for events in moments]
    several = [events for events in sung if len(events) > 1]
    bilingual = len(several) >= BILINGUAL_SHARE * sum(map(bool, sung))
    if bilingual and translation == "both":
        return
    for events in several:
        taken = events[1] if bilingual and translation == "second" else events[0]
        for event in events:
            if event is taken:
                continue
            for row in event.rows:
                for words in row.words:
                    rows.remark(row.number, "translation" if bilingual else "same_time", words)
            if bilingual:
                event.rows = [row.without_words() for row in event.rows]


def _shares(start_s: float, end_s: float | None, count: int) -> Iterator[tuple[float, float | None]]:
    """A span in ``count`` equal ones; all of it for each where its end is not known."""
    for index in range(count):
        if end_s is None:
            yield start_s, None
            continue
        length_s = (end_s - start_s) / count
        yield start_s + index * length_s, end_s if index == count - 1 else start_s + (index + 1) * length_s
