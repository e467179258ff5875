import numpy as np
import pytest

from megatron_music.errors import InputError
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.filters import (
    SongFilters,
    check_song,
    count_lines,
    distinct_codes,
    equal_share,
    held_frames,
    without_irrelevant_text,
)
from megatron_music.songs.song import Rejected, Segment, Song

TRACKS = ("mix", "vocals", "accompaniment")
HELD_50_OF_250 = np.r_[np.zeros(50), np.arange(1, 201)]


def song(**changes) -> Song:
    fields = {
        "codes": {track: f"{track}.npy" for track in TRACKS},
        "duration_s": 180.0,
        "genres": "Folk, airy vocal, female",
        "language": "en",
        "segments": [Segment("[verse]\nRow your boat\nGently\n\n", 0, 9), Segment("[chorus]\nGently\n\n", 9, 20)],
        "extra": {"lyrics_match": 0.8, "scores": {"quality": 3.5}, "source": "radio", "count": 10**400},
    }
    return Song("song", **fields | changes)


def codes_of(**tracks: np.ndarray):
    """A reader of codes that has these tracks' codebook 0, and random codes for the others."""
    random = np.random.default_rng(0)
    codes_KT = {track: random.integers(0, 1024, (8, 3000)).astype(np.int16) for track in TRACKS}
    for track, codes_T in tracks.items():
        codes_KT[track] = np.stack([codes_T] * 8).astype(np.int16)
    return lambda of, track: codes_KT[track]


def verdict(filters: dict, song: Song, codes=None) -> tuple[str, str] | None:
    """Rule and value by which a song is rejected; None where it passes."""
    try:
        check_song(song, SongFilters(**filters), codes or codes_of())
    except Rejected as rejected:
        return rejected.rule, rejected.value
    return None


@pytest.mark.parametrize(
    "filters,changes,expected",
    [
        ({}, {}, None),
        ({}, {"segments": [], "duration_s": None, "language": None, "genres": ""}, None),
        ({"min_duration_s": 180, "max_duration_s": 180}, {}, None),
        ({"min_duration_s": 180.5}, {}, ("min_duration_s", "180.0")),
        ({"max_duration_s": 179.5}, {}, ("max_duration_s", "180.0")),
        ({"max_duration_s": 300}, {"duration_s": None}, ("max_duration_s", "")),
        ({"languages": ["zh", "en"]}, {}, None),
        ({"languages": ["en"]}, {"language": "EN_us"}, None),
        ({"languages": ["zh"]}, {}, ("languages", "en")),
        ({"languages": ["zh"]}, {"language": None}, ("languages", "")),
        ({"languages": ["zh"], "unknown_language": "keep"}, {"language": None}, None),
        ({"required_tags": ["folk", "Airy Vocal"]}, {}, None),
        ({"required_tags": ["airy"]}, {}, ("required_tags", "airy")),
        ({"required_tags": ["airy vocal"]}, {"genres": "folk airy vocal female"}, None),
        ({"forbidden_tags": ["vocal folk"]}, {"genres": "folk airy vocal female"}, None),
        ({"forbidden_tags": ["spoken word", "airy vocal"]}, {}, ("forbidden_tags", "airy vocal")),
        ({"forbidden_tags": ["spoken word"]}, {"genres": "male spoken word"}, ("forbidden_tags", "spoken word")),
        ({"fields": {"scores.quality": {"min": 3.5, "max": 3.5}}}, {}, None),
        ({"fields": {"scores.quality": {"min": 4}}}, {}, ("fields.scores.quality", "3.5")),
        ({"fields": {"scores.quality": {"max": 3}}}, {}, ("fields.scores.quality", "3.5")),
        ({"fields": {"scores.noise": {"max": 3}}}, {}, ("fields.scores.noise", "")),
        ({"fields": {"scores.noise": {"max": 3, "missing": "keep"}}}, {}, None),
        ({"fields": {"source": {"one_of": ["radio", "web"]}}}, {}, None),
        ({"fields": {"source": {"one_of": ["web"]}}}, {}, ("fields.source", "radio")),
        ({"fields": {"source": {"min": 1}}}, {}, ("fields.source", "radio")),
        ({"fields": {"count": {"max": 3}}}, {}, ("fields.count", "1" + 36 * "0" + "...")),
        ({"fields": {"nan": {"max": 3}}}, {"extra": {"nan": float("nan")}}, ("fields.nan", "nan")),
        ({"fields": {"audio_length_in_sec": {"min": 200}}}, {}, ("fields.audio_length_in_sec", "180.0")),
        ({"min_lyric_characters": 23}, {}, None),
        ({"min_lyric_characters": 24}, {}, ("min_lyric_characters", "23")),
        ({"min_lyric_characters": 1}, {"segments": []}, ("min_lyric_characters", "0")),
        ({"max_lyric_characters_per_s": 2.3}, {"duration_s": 10.0}, None),
        ({"max_lyric_characters_per_s": 2.2}, {"duration_s": 10.0}, ("max_lyric_characters_per_s", "2.3")),
        ({"max_lyric_characters_per_s": 2.2}, {"duration_s": None, "segments": []}, None),
        ({"max_repeated_lines": 0.34}, {}, None),
        ({"max_repeated_lines": 0.33}, {}, ("max_repeated_lines", "0.333")),
        ({"min_lyrics_match": 0.8}, {}, None),
        ({"min_lyrics_match": 0.9}, {}, ("min_lyrics_match", "0.8")),
        ({"min_lyrics_match": 0.1}, {"extra": {}}, ("min_lyrics_match", "")),
        ({"min_lyrics_match": 0.1}, {"extra": {"lyrics_match": True}}, ("min_lyrics_match", "True")),
        ({"min_lyrics_match": 0.1}, {"extra": {}, "segments": []}, None),
        ({"min_script_share": 0.9}, {}, None),
        ({"min_script_share": 0.1}, {"language": "zh"}, ("min_script_share", "0.000")),
        ({"min_script_share": 0.5}, {"language": "zh", "segments": [Segment("[verse]\n小船 la\n", 0, 9)]}, None),
        ({"min_script_share": 0.5}, {"language": "ja", "segments": [Segment("うみ、ウミー 海\n", 0, 9)]}, None),
        ({"min_script_share": 0.5}, {"language": None}, None),
    ],
)
def test_rules_on_fields_and_lyrics(filters, changes, expected):
    assert verdict(filters, song(**changes)) == expected


@pytest.mark.parametrize(
    "filters,codes,expected",
    [
        ({"max_held_share": {"mix": 0.0}}, {}, None),
        ({"max_held_share": {"vocals": 0.2}}, {"vocals": HELD_50_OF_250}, None),
        ({"max_held_share": {"vocals": 0.1}}, {"vocals": HELD_50_OF_250}, ("max_held_share", "0.200")),
        ({"max_held_share": {"mix": 0.1}, "held_frames": 51}, {"mix": HELD_50_OF_250}, None),
        ({"min_distinct_codes": {"mix": 2}}, {"mix": np.arange(900) % 2}, None),
        ({"min_distinct_codes": {"mix": 25}}, {"mix": np.arange(900) % 24}, ("min_distinct_codes", "24.0")),
        ({"min_distinct_codes": {"mix": 25, "vocals": 1}}, {"mix": np.arange(20)}, ("min_distinct_codes", "20.0")),
        ({"max_equal_share": 0.1}, {}, None),
        (
            {"max_equal_share": 0.9},
            {"vocals": np.arange(99), "accompaniment": np.arange(90)},
            ("max_equal_share", "1.000"),
        ),
        ({"max_equal_share": 0.1}, {"vocals": np.zeros(500), "accompaniment": np.zeros(500)}, None),
        (
            {"max_equal_share": 0.4},
            {"vocals": np.r_[np.zeros(500), 1, 2], "accompaniment": np.r_[np.zeros(500), 1, 3]},
            ("max_equal_share", "0.500"),
        ),
    ],
)
def test_rules_on_codes(filters, codes, expected):
    assert verdict(filters, song(), codes_of(**codes)) == expected


def test_tracks_that_a_song_does_not_name_are_not_looked_at():
    filters = {"max_held_share": {"vocals": 0.0}, "min_distinct_codes": {"vocals": 99}, "max_equal_share": 0.0}
    silent = codes_of(vocals=np.zeros(500), accompaniment=np.zeros(500))
    assert verdict(filters, song(), silent) == ("max_held_share", "1.000")
    assert verdict(filters, song(codes={"mix": "mix.npy"}), silent) is None

    def unreadable(of: Song, track: str) -> np.ndarray:
        raise Rejected("codes_unreadable", track)

    assert verdict(filters, song(), unreadable) == ("codes_unreadable", "")
    assert verdict({"min_duration_s": 1}, song(), unreadable) is None


def test_what_is_measured_on_codes_against_plain_counting():
    random = np.random.default_rng(1)
    for frames in (1, 7, 299, 300, 301, 1000):
        first_T, second_T = (np.repeat(random.integers(0, 3, frames), random.integers(1, 5, frames)) for _ in range(2))
        runs, start = [], 0
        for stop in range(1, len(first_T) + 1):
            if stop == len(first_T) or first_T[stop] != first_T[start]:
                runs += [stop - start >= 4] * (stop - start)
                start = stop
        assert held_frames(first_T.astype(np.int16), 4).tolist() == runs
        size = min(300, len(first_T))
        windows = [first_T[at : at + size] for at in range(0, len(first_T) - size + 1, size)]
        assert distinct_codes(first_T) == np.mean([len(set(window.tolist())) for window in windows])
        moving = [a == b for a, b in zip(first_T, second_T, strict=False)]
        assert equal_share(first_T, second_T, 10**6) == np.mean(moving)


@pytest.mark.parametrize(
    "filters,words",
    [
        ({"min_duration": 1}, "spec.yaml: min_duration: unknown field; did you mean min_duration_s"),
        ({"fields": {"quality": {"minn": 1}}}, "spec.yaml: fields.quality.minn: unknown field; did you mean min"),
        ({"fields": {"quality": {}}}, "fields.quality: asks for nothing"),
        ({"fields": {"quality": {"min": 2, "max": 1}}}, "fields.quality: min 2 is above max 1"),
        ({"max_held_share": {"drums": 0.5}}, "max_held_share.drums"),
        ({"languages": "en"}, "languages: .*list"),
        ({"max_repeated_lines": 1.5}, "max_repeated_lines"),
        ({"max_held_share": {"mix": 30}}, "max_held_share.mix"),
    ],
)
def test_wrong_filters_are_one_line_errors(filters, words):
    with pytest.raises(InputError, match=words) as raised:
        parse_strict(SongFilters, filters, "spec.yaml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "Lyrics by: A. Nonymous",
        "Written by A. Nonymous",
        "Composer: A. Nonymous",
        "Words and Music by A. Nonymous",
        "作词 : 李四",
        "编曲：张三",
        "https://example.org/lyrics",
        "Visit www.example.org",
        "© 1999 A Label",
        "12Embed",
        "You might also like",
        "(x2)",
        "2x",
    ],
)
def test_lines_that_nobody_sings_are_removed(line):
    assert without_irrelevant_text(f"[verse]\nRow your boat\n{line}\n\n") == "[verse]\nRow your boat\n\n"


@pytest.mark.parametrize(
    "line",
    [
        "Music, when soft voices die",
        "Words are all I have",
        "By the rivers of Babylon",
        "Two by two",
        "The bass drum is calling",
        "词不达意的夜",
        "(Oh, oh)",
        "",
    ],
)
def test_sung_lines_stay(line):
    text = f"[verse]\n{line}\nRow your boat\n\n"
    assert without_irrelevant_text(text) == text


def test_time_stamps_are_taken_off():
    assert without_irrelevant_text("[00:12.34]Row your boat\n[01:02] [01:30.5]Gently\n") == "Row your boat\nGently\n"


def test_lines_are_counted_without_labels_and_empty_ones():
    assert (
        count_lines([Segment("[verse]\nOne\n\nTwo\n\n", 0, 1), Segment("Three", 1, 2), Segment("[outro]\n\n", 2, 3)])
        == 3
    )
