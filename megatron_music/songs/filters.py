"""Which songs are good enough for a source: rules on their fields, lyrics and codes, each off until it is asked for.

The rule that a song is rejected by is named like its option, and the value is what it found. What the codes tell is
told by the codes of codebook 0 alone, whatever the codec: a code that is held for long is digital silence in X-Codec
(whose codes change in nearly every frame of music) and silence or a very long note in the embedded codec.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from megatron_music.recipe.fields import Strict
from megatron_music.songs.credits import is_credit
from megatron_music.songs.manifest import manifest_field
from megatron_music.songs.song import Rejected, Segment, Song, split_tags
from megatron_music.songs.stamps import without_stamps

Track = Literal["mix", "vocals", "accompaniment"]
Share = Annotated[float, Field(ge=0, le=1)]
Codes = Callable[[Song, str], np.ndarray]
"""Reads the codes, int16 (K, T), of a song's track; raises Rejected."""

LYRICS_MATCH = "lyrics_match"
"""Field of the manifest in which an aligner leaves the share of the lyrics that were heard in their place."""
WINDOW_FRAMES = 300
"""6 s of X-Codec: the window of stage-2 documents, whose published rule asks for 25 distinct codes."""
_SCRIPTS = {
    "zh": ("CJK",), "yue": ("CJK",), "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "ko": ("HANGUL",),
    "ru": ("CYRILLIC",), "uk": ("CYRILLIC",), "bg": ("CYRILLIC",), "sr": ("CYRILLIC", "LATIN"), "el": ("GREEK",),
    "ar": ("ARABIC",), "fa": ("ARABIC",), "ur": ("ARABIC",), "he": ("HEBREW",), "th": ("THAI",),
    "hi": ("DEVANAGARI",), "mr": ("DEVANAGARI",), "ne": ("DEVANAGARI",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "bn": ("BENGALI",), "ka": ("GEORGIAN",), "hy": ("ARMENIAN",), "am": ("ETHIOPIC",),
}  # fmt: skip
"""First words of the Unicode names of the letters that a language is written in; Latin where it is not listed."""
_IRRELEVANT = re.compile(
    "|".join(
        [
            r"https?://|www\.|\w@\w+\.\w",
            r"©|\bcopyright\b|\ball rights reserved\b",
            r"^\s*\d*\s*embed\s*$|^\s*you might also like\s*$|^\s*\d+ contributors?\b|^\s*see .* live\b.*\btickets\b",
            r"^\s*[(\[]?\s*[x×]\s*\d+\s*[)\]]?\s*$|^\s*[(\[]?\s*\d+\s*[x×]\s*[)\]]?\s*$",
            r"^\s*(?:lyrics|instrumental|music video|repeat chorus)\s*$",
        ]
    ),
    re.IGNORECASE,
)


class FieldFilter(Strict):
    """What a field of the manifest must be.

    Attributes:
        min, max: of a number, both included.
        one_of: the values that it may have.
        missing: what becomes of a song without the field.
    """

    min: float | None = None
    max: float | None = None
    one_of: list[str | int | float | bool] | None = None
    missing: Literal["keep", "reject"] = "reject"

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.min is None and self.max is None and self.one_of is None:
            raise ValueError("asks for nothing; give min, max or one_of")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; swap them")
        return self


class SongFilters(Strict):
    """Options of ``filters``; a rule that is not given lets every song pass.

    Of songs without lyrics no rule on lyrics but ``min_lyric_characters`` says anything, and a rule on codes says
    nothing of a track that the song does not name.

    Attributes:
        min_duration_s, max_duration_s: of ``audio_length_in_sec``; a song that does not state it is rejected.
        languages: the song's language must be one of these, its region left aside (``zh`` takes ``zh-TW``).
        unknown_language: what ``languages`` does with songs that state none.
        required_tags: tags that must all be there; case does not matter.
        forbidden_tags: tags none of which may be there.
        fields: by the field's name, ``scores.quality`` for one within another.
        min_lyric_characters: fewest characters of the sung lines, white space not counted.
        max_lyric_characters_per_s: the same over the song's duration; more can't be sung, so they are another song's.
        max_repeated_lines: largest share of sung lines that stood there before, word for word.
        min_lyrics_match: of the manifest's ``lyrics_match``; a song that has lyrics and does not state it is rejected.
        min_script_share: smallest share of the lyrics' letters that are in a script of the song's language; songs
            without a language pass.
        max_held_share: by track, the largest share of frames in runs of one code of at least ``held_frames``.
        held_frames: see there; 50 are 1 s of X-Codec.
        min_distinct_codes: by track, the fewest distinct codes in a window of 300 frames, as a mean over the track.
        max_equal_share: largest share of frames in which vocals and accompaniment have the same code; frames that
            either of them holds do not count, since both may well be silent.
    """

    min_duration_s: float | None = Field(None, ge=0)
    max_duration_s: float | None = Field(None, gt=0)
    languages: list[str] | None = Field(None, min_length=1)
    unknown_language: Literal["keep", "reject"] = "reject"
    required_tags: list[str] = []
    forbidden_tags: list[str] = []
    fields: dict[str, FieldFilter] = {}
    min_lyric_characters: int | None = Field(None, ge=1)
    max_lyric_characters_per_s: float | None = Field(None, gt=0)
    max_repeated_lines: Share | None = None
    min_lyrics_match: Share | None = None
    min_script_share: Share | None = None
    max_held_share: dict[Track, Share] = {}
    held_frames: int = Field(50, ge=2)
    min_distinct_codes: dict[Track, float] = {}
    max_equal_share: Share | None = None


def check_song(song: Song, filters: SongFilters, codes: Codes) -> None:
    """Raises Rejected, by the name of an option, where a song is not what ``filters`` ask for.

    Codes are read only where a rule needs them, and last.
    """
    _check_duration(song, filters)
    _check_language(song, filters)
    _check_tags(song, filters)
    for name, wanted in filters.fields.items():
        _check_field(song, name, wanted)
    _check_lyrics(song, filters)
    _check_codes(song, filters, codes)


def _check_duration(song: Song, filters: SongFilters) -> None:
    least, most = filters.min_duration_s, filters.max_duration_s
    if least is not None and (duration_s := _known_duration(song, "min_duration_s")) < least:
        raise Rejected("min_duration_s", f"the song lasts {duration_s:g} s, less than {least:g}", duration_s)
    if most is not None and (duration_s := _known_duration(song, "max_duration_s")) > most:
        raise Rejected("max_duration_s", f"the song lasts {duration_s:g} s, more than {most:g}", duration_s)


def _known_duration(song: Song, rule: str) -> float:
    if song.duration_s is None:
        raise Rejected(rule, "the song has no audio_length_in_sec to check")
    return song.duration_s


def _check_language(song: Song, filters: SongFilters) -> None:
    if filters.languages is None:
        return
    if not song.language:
        if filters.unknown_language == "reject":
            raise Rejected("languages", "the song states no language")
    elif _base_language(song.language) not in map(_base_language, filters.languages):
        wanted = ", ".join(filters.languages)
        raise Rejected("languages", f"the song is in {song.language}, not in one of {wanted}", song.language)


def _base_language(language: str) -> str:
    return re.split("[-_]", language.strip().lower())[0]


def _check_tags(song: Song, filters: SongFilters) -> None:
    if not (filters.required_tags or filters.forbidden_tags):
        return
    tags = [tag.casefold() for tag in split_tags(song.genres)]
    for tag in filters.required_tags:
        if not _has_tag(tags, tag):
            raise Rejected("required_tags", f"{tag!r} is not among the song's tags", tag)
    for tag in filters.forbidden_tags:
        if _has_tag(tags, tag):
            raise Rejected("forbidden_tags", f"{tag!r} is among the song's tags", tag)


def _has_tag(tags: list[str], tag: str) -> bool:
    """Whether a tag is there, or its words in a row, since spaces alone do not tell where tags of several words end."""
    words = tag.casefold().split()
    return " ".join(words) in tags or any(tags[at : at + len(words)] == words for at in range(len(tags)))


def _check_field(song: Song, name: str, wanted: FieldFilter) -> None:
    value, rule = manifest_field(song, name), f"fields.{name}"
    if value is None:
        if wanted.missing == "reject":
            raise Rejected(rule, f"the song has no {name}")
        return
    if wanted.one_of is not None and value not in wanted.one_of:
        choices = ", ".join(map(str, wanted.one_of))
        raise Rejected(rule, f"{name} is {_shown(value)}, not one of {choices}", _shown(value))
    if wanted.min is not None or wanted.max is not None:
        _check_number(rule, name, value, wanted.min, wanted.max)


def _check_number(rule: str, name: str, value: Any, least: float | None, most: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Rejected(rule, f"{name} is {_shown(value)}, not a number", _shown(value))
    # Written so that NaN, which JSON can spell, fails.
    if least is not None and not value >= least:
        raise Rejected(rule, f"{name} is {_shown(value)}, less than {least:g}", _shown(value))
    if most is not None and not value <= most:
        raise Rejected(rule, f"{name} is {_shown(value)}, more than {most:g}", _shown(value))


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_lyrics(song: Song, filters: SongFilters) -> None:
    lines = ["".join(line.split()) for segment in song.segments for line in segment.lines]
    characters = sum(map(len, lines))
    least = filters.min_lyric_characters
    if least is not None and characters < least:
        raise Rejected("min_lyric_characters", f"the lyrics have {characters} characters of {least}", characters)
    if not lines:
        return
    if (most := filters.max_lyric_characters_per_s) is not None:
        rule = "max_lyric_characters_per_s"
        rate = characters / _known_duration(song, rule)
        if rate > most:
            raise Rejected(rule, f"{characters} characters of lyrics are {rate:.1f} a second", f"{rate:.1f}")
    if (most := filters.max_repeated_lines) is not None:
        repeated = 1 - len({line.casefold() for line in lines}) / len(lines)
        if repeated > most:
            detail = f"{repeated:.0%} of the {len(lines)} lines of lyrics repeat an earlier one"
            raise Rejected("max_repeated_lines", detail, f"{repeated:.3f}")
    if filters.min_lyrics_match is not None:
        match = manifest_field(song, LYRICS_MATCH)
        if match is None:
            raise Rejected("min_lyrics_match", f"the song has lyrics and no {LYRICS_MATCH}")
        _check_number("min_lyrics_match", LYRICS_MATCH, match, filters.min_lyrics_match, None)
    if filters.min_script_share is not None and song.language:
        share = _script_share("".join(lines), _base_language(song.language))
        if share < filters.min_script_share:
            detail = f"{share:.0%} of the lyrics' letters are in a script of {song.language}"
            raise Rejected("min_script_share", detail, f"{share:.3f}")


def _script_share(text: str, language: str) -> float:
    """Share of the letters that the language is written in; 1 where there is no letter."""
    scripts = _SCRIPTS.get(language, ("LATIN",))
    letters = [unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()]
    return sum(script in scripts for script in letters) / len(letters) if letters else 1.0


def _check_codes(song: Song, filters: SongFilters, codes: Codes) -> None:
    tracks = {*filters.max_held_share, *filters.min_distinct_codes} & set(song.codes)
    pair = ("vocals", "accompaniment")
    compared = filters.max_equal_share is not None and set(pair) <= set(song.codes)
    codes_T = {track: codes(song, track)[0] for track in sorted(tracks.union(pair if compared else ()))}
    for track, most in filters.max_held_share.items():
        if track in codes_T and (share := float(held_frames(codes_T[track], filters.held_frames).mean())) > most:
            detail = f"{share:.0%} of {track} is one code for {filters.held_frames} frames or longer"
            raise Rejected("max_held_share", detail, f"{share:.3f}")
    for track, least in filters.min_distinct_codes.items():
        if track in codes_T and (distinct := distinct_codes(codes_T[track])) < least:
            detail = f"{track} has {distinct:.1f} distinct codes in {WINDOW_FRAMES} frames, fewer than {least:g}"
            raise Rejected("min_distinct_codes", detail, f"{distinct:.1f}")
    if compared and (share := equal_share(*(codes_T[track] for track in pair), filters.held_frames)) > (
        filters.max_equal_share
    ):
        detail = f"vocals and accompaniment have the same code in {share:.0%} of the frames"
        raise Rejected("max_equal_share", detail, f"{share:.3f}")


def held_frames(codes_T: np.ndarray, frames: int) -> np.ndarray:
    """Which frames, bool (T,), lie in a run of one code of at least so many frames."""
    starts = np.flatnonzero(np.diff(codes_T, prepend=-1))
    lengths = np.diff(starts, append=len(codes_T))
    return np.repeat(lengths >= frames, lengths)


def distinct_codes(codes_T: np.ndarray, window_frames: int = WINDOW_FRAMES) -> float:
    """Distinct codes in a window, as a mean over a track's whole windows; a shorter track is one window."""
    window_frames = min(window_frames, len(codes_T))
    count = len(codes_T) // window_frames
    sorted_NT = np.sort(codes_T[: count * window_frames].reshape(count, window_frames), axis=1)
    return float(1 + (np.diff(sorted_NT, axis=1) != 0).sum(axis=1).mean())


def equal_share(first_T: np.ndarray, second_T: np.ndarray, held: int) -> float:
    """Share of frames in which two tracks have the same code, of those that neither of them holds; 0 of none."""
    frames = min(len(first_T), len(second_T))
    first_T, second_T = first_T[:frames], second_T[:frames]
    moving_T = ~(held_frames(first_T, held) | held_frames(second_T, held))
    return float((first_T == second_T)[moving_T].mean()) if moving_T.any() else 0.0


def without_irrelevant_text(text: str) -> str:
    """A segment's text without time stamps and without lines that nobody sings.

    Such lines are credits, links, copyright notices, repeat counts, and what lyrics sites put around a text. The label
    line and empty lines stay.
    """
    lines = [without_stamps(line) for line in text.split("\n")]
    return "\n".join(line for line in lines if not is_credit(line) and not _IRRELEVANT.search(line))


def count_lines(segments: list[Segment]) -> int:
    """Lines that are sung, over all segments."""
    return sum(len(segment.lines) for segment in segments)
