"""When each section of the lyrics is sung: from a transcript with times, from timed lines, and from the structure.

Half of what is hard about a song corpus is lyrics that are another song's, another version's or in another order. So
lyrics are matched word by word with what was heard, and the share that matches is kept for a filter to judge.
"""

import re
import statistics
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_music.songs.labels import plain_label
from megatron_music.songs.lyrics import Line, Section, segment_text
from megatron_music.songs.song import Rejected, Segment

FRAMES_PER_SECOND = 50
"""Of ``codec_frame_start`` and ``codec_frame_end`` in a manifest of audio, as in YuE's data."""
INTRO_S, PART_S = 4.0, 1.0
"""What is played before the first word is a segment of its own from ``INTRO_S`` on; any other part without words from
``PART_S`` on."""
SLACK_S = 0.5
"""A part of the structure may overlap sung words by so much and still count as a part without words."""
NEAR_WORDS = 2
"""A matched word counts where another one lies within so many words on both sides: one alone is chance."""
LEAST_WORD_S, USUAL_WORD_S = 0.1, 0.4
"""Nobody sings a word faster than ``LEAST_WORD_S``; ``USUAL_WORD_S`` is the pace where a transcript gives none."""
LINE_PAUSE_S, LINE_WORDS = 0.7, 12
"""Words of a transcript are broken into lines at such pauses, and before lines get longer than ``LINE_WORDS``."""
MOST_PAIRS = 64_000_000
"""Pairs of a word of the lyrics and a word heard that are looked at: an opera's, and half a gigabyte."""
_SIGN = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGN}]|(?:(?![{_SIGN}])\w)+")


@dataclass(frozen=True)
class TimedSection:
    """A section with the span, in seconds, from its first sound to its last; without lines, of what is played."""

    label: str
    lines: tuple[str, ...]
    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Anchor:
    """Where some words of a section were heard, in seconds, and how many words stand before and after them."""

    start_s: float
    end_s: float
    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class _Heard:
    """Words of a transcript, normalised, with their times in seconds."""

    words: list[str]
    starts_s: list[float]
    ends_s: list[float]

    @property
    def pace_s(self) -> float:
        """Usual seconds from one word to the next."""
        steps = [after - before for before, after in zip(self.starts_s[:-1], self.starts_s[1:], strict=True)]
        steps = [step for step in steps if 0.05 <= step <= 2.0]
        return statistics.median(steps) if steps else USUAL_WORD_S


def normalised_words(text: str) -> list[str]:
    """Words for comparing: folded case, no accents or punctuation, ``don't`` as ``dont``.

    Scripts that write no spaces (Chinese, Japanese, Thai, Lao), and Korean, whose spaces are free, go sign by sign.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold().replace("'", "").replace("’", ""))
    # Only the marks of European scripts: Korean and Japanese signs also decompose, and are put together again.
    plain = "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
    return _WORD.findall(unicodedata.normalize("NFC", plain))


def match_words(lyrics: Sequence[str], heard: Sequence[str]) -> list[int]:
    """For each word of the lyrics, the index of the word heard that it is, or -1; indices increase.

    Words of ``align_words`` without a neighbour in the match (``NEAR_WORDS``) are left out: any two English songs
    share some dozens of words in the same order.
    """
    matches = align_words(lyrics, heard)
    return [match if _has_neighbour(matches, index) else -1 for index, match in enumerate(matches)]


def align_words(lyrics: Sequence[str], heard: Sequence[str]) -> list[int]:
    """The alignment with the most equal words, one that directly follows another counting twice; -1 for no word.

    So a line is found in one piece. Takes len(lyrics) * len(heard) steps and 8 bytes for each.
    """
    numbers: dict[str, int] = {}
    lyrics_N = np.array([numbers.setdefault(word, len(numbers)) for word in lyrics], np.int32)
    heard_M = np.array([numbers.setdefault(word, len(numbers)) for word in heard], np.int32)
    # best[i, j]: score of the first i and j words; paired[i, j]: the same where the last two are a pair.
    best = np.zeros((len(lyrics_N) + 1, len(heard_M) + 1), np.int32)
    paired = np.full(best.shape, -1, np.int32)
    for row, word in enumerate(lyrics_N):
        grown = 1 + np.maximum(best[row, :-1], paired[row, :-1] + (paired[row, :-1] > 0))
        paired[row + 1, 1:] = np.where(heard_M == word, grown, -1)
        best[row + 1] = np.maximum.accumulate(np.maximum(best[row], paired[row + 1]))
    return _trace(best, paired)


def _trace(best: np.ndarray, paired: np.ndarray) -> list[int]:
    row, column = best.shape[0] - 1, best.shape[1] - 1
    matches = [-1] * row
    in_run = False
    while row and column:
        if in_run or paired[row, column] == best[row, column]:
            matches[row - 1] = column - 1
            before = paired[row - 1, column - 1]
            in_run = before > 0 and before + 1 > best[row - 1, column - 1]
            row, column = row - 1, column - 1
        elif best[row - 1, column] == best[row, column]:
            row -= 1
        else:
            column -= 1
    return matches


def _has_neighbour(matches: list[int], index: int) -> bool:
    near = range(max(0, index - NEAR_WORDS), min(len(matches), index + NEAR_WORDS + 1))
    return matches[index] >= 0 and any(
        other != index and matches[other] >= 0 and abs(matches[other] - matches[index]) <= NEAR_WORDS for other in near
    )


def time_sections(
    sections: Sequence[Section], transcript: Sequence[Sequence], duration_s: float
) -> tuple[list[TimedSection], float]:
    """Times of sections from a transcript, ``[start, end, word]``; and the share of their words heard in place.

    Words that were not heard take the transcript's usual pace before and after the ones that were, or less where there
    is no room. Sections of which nothing was heard share the time between their neighbours, by their number of words;
    those that do not fit in there are not sung in this recording, and fall away. A section without lines is what is
    played between its neighbours. Raises Rejected where there are too many words.
    """
    heard = _heard(transcript)
    words = [[word for line in section.lines for word in normalised_words(line.text)] for section in sections]
    count = sum(map(len, words))
    if count * len(heard.words) > MOST_PAIRS:
        raise Rejected("lyrics_long", f"{count} words of lyrics and {len(heard.words)} heard are no song's", count)
    matches = match_words([word for section in words for word in section], heard.words)
    anchors: list[_Anchor | None] = []
    first = 0
    for count in map(len, words):
        anchors.append(_anchor(matches[first : first + count], heard))
        first += count
    timed = _timed(sections, _place(anchors, [len(one) for one in words], heard.pace_s, duration_s))
    return timed, sum(match >= 0 for match in matches) / max(1, len(matches))


def timed_sections(sections: Sequence[Section], duration_s: float) -> list[TimedSection]:
    """Sections whose lines have times, with their spans; sections without lines get what lies between the others.

    Lines that start after the end of the audio fall away.
    """
    kept = [
        replace(section, lines=tuple(line for line in section.lines if line.start_s < duration_s))
        for section in sections
    ]
    kept = [section for section, whole in zip(kept, sections, strict=True) if section.lines or not whole.lines]
    anchors = [
        _Anchor(section.lines[0].start_s, min(section.lines[-1].end_s or duration_s, duration_s))
        if section.lines
        else None
        for section in kept
    ]
    return _timed(kept, _place(anchors, [0] * len(kept), USUAL_WORD_S, duration_s))


def _heard(transcript: Sequence[Sequence]) -> _Heard:
    heard = _Heard([], [], [])
    for start_s, end_s, text in transcript:
        parts = normalised_words(text)
        for index, part in enumerate(parts):
            heard.words.append(part)
            heard.starts_s.append(start_s + (end_s - start_s) * index / len(parts))
            heard.ends_s.append(start_s + (end_s - start_s) * (index + 1) / len(parts))
    return heard


def _anchor(matches: list[int], heard: _Heard) -> _Anchor | None:
    """Where the words of a section were heard; None where none of them was."""
    found = [index for index, match in enumerate(matches) if match >= 0]
    if not found:
        return None
    start_s, end_s = heard.starts_s[matches[found[0]]], heard.ends_s[matches[found[-1]]]
    return _Anchor(start_s, end_s, found[0], len(matches) - 1 - found[-1])


def _place(
    anchors: Sequence[_Anchor | None], counts: Sequence[int], pace_s: float, duration_s: float
) -> list[tuple[float, float] | None]:
    """Spans of all sections from the anchors of some and the numbers of words of all; None for those without room."""
    spans: list[tuple[float, float] | None] = [None] * len(anchors)
    known = [index for index, anchor in enumerate(anchors) if anchor]
    pause_s, after = 0.0, 0
    for first, last in zip([-1, *known], [*known, len(anchors)], strict=True):
        anchor = anchors[last] if last < len(anchors) else _Anchor(duration_s, duration_s)
        # Voices that overlap meet where the later one starts.
        start_s = min(max(anchor.start_s, spans[first][0] if first >= 0 else 0.0), duration_s)
        pause_s = min(pause_s, start_s)
        words = after + sum(counts[first + 1 : last]) + anchor.before
        word_s = min(pace_s, (start_s - pause_s) / max(1, words))
        if first >= 0:
            pause_s += after * word_s
            spans[first] = (spans[first][0], pause_s)
        start_s -= anchor.before * word_s
        _share(spans, counts, range(first + 1, last), (pause_s, start_s))
        if last < len(anchors):
            spans[last] = (start_s, start_s)
            pause_s, after = min(max(anchor.end_s, start_s), duration_s), anchor.after
    return spans


def _share(
    spans: list[tuple[float, float] | None], counts: Sequence[int], sections: range, gap_s: tuple[float, float]
) -> None:
    """Divides a gap among the sections that lie in it, by their words; those that get too little stay None."""
    length_s = gap_s[1] - gap_s[0]
    fitting = [one for one in sections if counts[one] * LEAST_WORD_S <= length_s]
    # A part without words is as long as one of eight words where it has to share.
    weights = [counts[one] or 8 for one in fitting]
    done = 0
    for one, weight in zip(fitting, weights, strict=True):
        start_s, end_s = (gap_s[0] + length_s * share / sum(weights) for share in (done, done + weight))
        if end_s - start_s >= (counts[one] * LEAST_WORD_S or PART_S):
            spans[one] = (start_s, end_s)
        done += weight


def _timed(sections: Sequence[Section], spans: Sequence[tuple[float, float] | None]) -> list[TimedSection]:
    return [
        TimedSection(section.label, tuple(line.text for line in section.lines), *span)
        for section, span in zip(sections, spans, strict=True)
        if span is not None
    ]


def sections_of_lines(
    lines: Sequence[Line], structure: Sequence[dict[str, Any]], duration_s: float
) -> list[TimedSection]:
    """Lines with both times in the sections of a structure: each goes where its middle lies; some may get none."""
    structure = ordered(structure, duration_s)
    lines = sorted(lines, key=lambda line: line.start_s)
    spans_s = [(line.start_s, line.end_s) for line in lines]
    starts_s = [part["start"] for part in structure]
    parts = [max(0, bisect_right(starts_s, (start_s + end_s) / 2) - 1) for start_s, end_s in spans_s]
    timed: list[TimedSection] = []
    for number, part in enumerate(structure):
        inside = [index for index, found in enumerate(parts) if found == number]
        span_s = (spans_s[inside[0]][0], spans_s[inside[-1]][1]) if inside else (part["start"], part["end"])
        # The last line of one part may reach into the next.
        start_s = max(span_s[0], timed[-1].end_s if timed else 0.0)
        end_s = min(max(span_s[1], start_s), duration_s)
        timed.append(TimedSection(part["label"], tuple(lines[index].text for index in inside), start_s, end_s))
    return timed


def ordered(structure: Sequence[dict[str, Any]], duration_s: float) -> list[dict[str, Any]]:
    """Parts in the order of time, without those that lie outside of the audio, each after the end of the one before;
    their labels in the plain form that those of lyrics have."""
    parts: list[dict[str, Any]] = []
    for part in sorted(structure, key=lambda part: (part["start"], part["end"])):
        start_s = max(part["start"], parts[-1]["end"] if parts else 0.0)
        end_s = min(part["end"], duration_s)
        if start_s < end_s:
            parts.append({"start": start_s, "end": end_s, "label": plain_label(part["label"])})
    return parts


def lines_of_transcript(transcript: Sequence[Sequence]) -> list[Line]:
    """Words of a transcript in lines, broken at pauses and before a line has more than ``LINE_WORDS`` words."""
    groups: list[list[Sequence]] = []
    count = 0
    for word in transcript:
        words = len(normalised_words(word[2]))
        if not groups or word[0] - groups[-1][-1][1] >= LINE_PAUSE_S or count + words > LINE_WORDS:
            groups.append([])
            count = 0
        groups[-1].append(word)
        count += words
    return [Line("".join(word[2] for word in group).strip(), group[0][0], group[-1][1]) for group in groups]


def tile(timed: Sequence[TimedSection], structure: Sequence[dict[str, Any]], duration_s: float) -> list[Segment]:
    """Segments that cover a song from its first to its last frame without a gap.

    A section starts with its first sound, or, where the structure has a boundary in the pause before it, at the last
    one there; and lasts until the next. Parts of the structure that lie in a pause are segments without lyrics. What
    comes before the first section is an ``intro`` where it is long enough, and else the first section's.
    """
    if not timed:
        return []
    structure = ordered(structure, duration_s)
    parts: list[TimedSection] = []
    pause_s = 0.0
    for section in timed:
        parts += _played(structure, pause_s, section.start_s)
        parts.append(section)
        pause_s = section.end_s
    parts += _played(structure, pause_s, duration_s)
    if parts[0].start_s >= INTRO_S:
        parts.insert(0, TimedSection("intro", (), 0.0, parts[0].start_s))
    edges_s = [0.0]
    for before, after in zip(parts[:-1], parts[1:], strict=True):
        inside = [part["start"] for part in structure if before.end_s <= part["start"] <= after.start_s]
        edges_s.append(before.end_s if not before.lines else inside[-1] if inside else after.start_s)
    return _segments(parts, [*edges_s, duration_s])


def _played(structure: Sequence[dict[str, Any]], start_s: float, end_s: float) -> list[TimedSection]:
    """Parts of the structure that lie within a pause."""
    played = []
    for part in structure:
        length_s = min(part["end"], end_s) - max(part["start"], start_s)
        inside = part["start"] >= start_s - SLACK_S and part["end"] <= end_s + SLACK_S
        if inside and length_s >= PART_S:
            played.append(TimedSection(part["label"], (), max(part["start"], start_s), min(part["end"], end_s)))
    return played


def _segments(parts: Sequence[TimedSection], edges_s: Sequence[float]) -> list[Segment]:
    segments = []
    for part, start_s, end_s in zip(parts, edges_s[:-1], edges_s[1:], strict=True):
        start, end = round(start_s * FRAMES_PER_SECOND), round(end_s * FRAMES_PER_SECOND)
        if end > start:
            times = {"offset": round(start_s, 2), "duration": round(end_s - start_s, 2)}
            segments.append(Segment(segment_text(part.label, part.lines), start, end, times))
    return segments
