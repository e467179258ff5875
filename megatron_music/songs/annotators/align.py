"""Lyrics in time: segments of a song from what its lyrics, its transcript and its structure know together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_music.songs.alignment import lines_of_transcript, sections_of_lines, tile, time_sections
from megatron_music.songs.annotators import common
from megatron_music.songs.lyrics import Line, Section, parse_lyrics
from megatron_music.songs.song import Rejected, Song


class Align:
    """Fills ``Song.segments`` and sets ``lyrics_match``, from the first of these that a song has:

    1. segments already: they stay; with a transcript, ``lyrics_match`` is measured.
    2. timed lines (``lines``, as ``manifest`` makes of an LRC file) and a structure: the lines in its sections. Where
       the lines' own segments have labels, these stay.
    3. lyrics (``lyrics``, with section labels) and a transcript: each section where its words were heard.
    4. a structure alone, or with a transcript: its sections, with the words that were heard in each.

    ``lyrics_match`` is the share of the lyrics' words that were heard in their place, for a filter to judge. Below
    ``match`` the times would be guesses: the song then gets no segments. With ``overwrite``, segments that a song has
    are timed again by its transcript.
    """

    name = "align"

    class Options(common.Options):
        """Options of ``align``.

        Attributes:
            match: least share of words heard with which lyrics are put in time.
        """

        match: float = Field(0.25, ge=0, le=1)

    def __init__(self, options: "Align.Options", device: str):
        self.options = options

    def annotate(self, song: Song, out: Path) -> Song:
        """Raises Rejected where lyrics have no times and no transcript, or fields are not what they should be."""
        transcript, lines = _transcript(song), _lines(song)
        labelled = any(segment.label for segment in song.segments)
        if lines and song.structure and (not labelled or self.options.overwrite):
            song = self._in_structure(song, lines)
        if song.segments:
            lyrics = [Section(segment.label, tuple(map(Line, segment.lines))) for segment in song.segments]
        else:
            lyrics = _lyrics(song)
        if any(section.lines for section in lyrics):
            return self._with_lyrics(song, lyrics, transcript, retimed=self.options.overwrite and not lines)
        if song.segments or not song.structure:
            return song
        return self._in_structure(song, lines_of_transcript(transcript or []))

    def _in_structure(self, song: Song, lines: list[Line]) -> Song:
        timed = sections_of_lines(lines, song.structure, _duration_s(song))
        return replace(song, segments=tile(timed, song.structure, _duration_s(song)))

    def _with_lyrics(self, song: Song, lyrics: list[Section], transcript: list[Sequence] | None, retimed: bool) -> Song:
        if transcript is None:
            if song.segments:
                return song
            raise Rejected("transcript_missing", "the lyrics have no times and the song no transcript to find them in")
        timed, match = time_sections(lyrics, transcript, _duration_s(song))
        song = replace(song, extra={**song.extra, "lyrics_match": round(match, 3)})
        if song.segments and not retimed:
            return song
        segments = tile(timed, song.structure, _duration_s(song)) if match >= self.options.match else []
        return replace(song, segments=segments)


def _duration_s(song: Song) -> float:
    if song.duration_s is None:
        raise Rejected("duration", "the song has no audio_length_in_sec, which its segments end with")
    return song.duration_s


def _transcript(song: Song) -> list[Sequence] | None:
    words = song.extra.get("transcript")
    if words is None:
        return None
    if not isinstance(words, list) or not all(map(_is_timed_word, words)):
        raise Rejected("wrong_type", "transcript is not a list of [start, end, word]")
    return words


def _is_timed_word(word: Any) -> bool:
    return isinstance(word, list | tuple) and len(word) == 3 and _are_times(word[:2]) and isinstance(word[2], str)


def _are_times(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and 0 <= value < math.inf for value in values)


def _lines(song: Song) -> list[Line]:
    lines = song.extra.get("lines") or []
    if not isinstance(lines, list) or not all(map(_is_timed_line, lines)):
        raise Rejected("wrong_type", "lines is not a list of objects with text, start and end")
    return [Line(line["text"], line["start"], line["end"]) for line in lines]


def _is_timed_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("text"), str):
        return False
    return _are_times([line.get("start"), line.get("end")])


def _lyrics(song: Song) -> list[Section]:
    lyrics = song.extra.get("lyrics") or ""
    if not isinstance(lyrics, str):
        raise Rejected("wrong_type", "lyrics is not a text")
    return parse_lyrics(lyrics).sections
