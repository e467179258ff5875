"""Alignment on transcripts whose times are known: every word takes half a second, every section starts where we say."""

import random

import pytest

from megatron_music.songs.alignment import (
    TimedSection,
    align_words,
    lines_of_transcript,
    match_words,
    normalised_words,
    ordered,
    sections_of_lines,
    tile,
    time_sections,
    timed_sections,
)
from megatron_music.songs.lyrics import Line, parse_lyrics
from megatron_music.songs.song import Rejected

LYRICS = """[verse]
Staring at the evening from a window by the sea
Nobody remembers what the morning used to be

[chorus]
Sing it to the mountain, sing it to the rain
Sing until the summer brings the river home again

[verse]
Letters in a drawer that I never learned to send
Lanterns on the water going out around the bend

[chorus]
Sing it to the mountain, sing it to the rain
Sing until the summer brings the river home again
"""
OTHER_LYRICS = """[verse]
Should auld acquaintance be forgot, and never brought to mind?
Should auld acquaintance be forgot, and days of auld lang syne?

[chorus]
For auld lang syne, my dear, for auld lang syne
We'll take a cup of kindness yet, for the sake of auld lang syne
And there's a hand, my trusty friend, and give me a hand of thine
"""
STARTS_S = [6.0, 20.0, 40.0, 55.0]
DURATION_S = 80.0
WORD_S = 0.5


def sung(lyrics: str, starts_s: list[float]) -> list[list]:
    """A transcript that has every word of the lyrics, each section from its start on."""
    return [
        [start_s + index * WORD_S, start_s + (index + 1) * WORD_S, f" {word}"]
        for section, start_s in zip(parse_lyrics(lyrics).sections, starts_s, strict=True)
        for index, word in enumerate(" ".join(line.text for line in section.lines).split())
    ]


def misheard(transcript: list[list], share: float) -> list[list]:
    """Every so-manieth word, at random, is another one, is missing, or has another one behind it."""
    chance, heard = random.Random(0), []
    for start_s, end_s, word in transcript:
        fault = chance.choice(["other", "missing", "more"]) if chance.random() < share else ""
        if fault != "missing":
            heard.append([start_s, end_s, " mumble" if fault == "other" else word])
        if fault == "more":
            heard.append([end_s, end_s, " hey"])
    return heard


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don’t STOP, don't!", ["dont", "stop", "dont"]),
        ("Ça été à Überall", ["ca", "ete", "a", "uberall"]),
        ("我爱你 baby 99", ["我", "爱", "你", "baby", "99"]),
        ("がんばれ", ["が", "ん", "ば", "れ"]),
        ("사랑해", ["사", "랑", "해"]),
        ("... ♪", []),
    ],
)
def test_words_are_compared_in_a_plain_form(text, words):
    assert normalised_words(text) == words


def test_words_are_matched_in_order_and_in_runs():
    assert match_words("a b c d".split(), "x a b y c d".split()) == [1, 2, 4, 5]
    assert match_words("a b a b".split(), "a b a b".split()) == [0, 1, 2, 3]
    # The first `a` of what was heard stands alone; the pair is found in one piece.
    assert match_words("a b".split(), "a x x x a b".split()) == [4, 5]
    assert match_words("a b c".split(), "c x x x a".split()) == [-1, -1, -1]
    assert match_words([], ["a"]) == [] and match_words(["a", "b"], []) == [-1, -1]


def test_the_alignment_has_the_highest_score_of_all():
    """Against every alignment of short random texts: one point for each match, one more for each that follows one."""

    def score(matches: list[int]) -> int:
        pairs = zip(matches[:-1], matches[1:], strict=True)
        return sum(match >= 0 for match in matches) + sum(a >= 0 and b == a + 1 for a, b in pairs)

    def alignments(lyrics: str, heard: str, first: int = 0):
        if not lyrics:
            yield []
            return
        for rest in alignments(lyrics[1:], heard, first):
            yield [-1, *rest]
        for index in range(first, len(heard)):
            if heard[index] == lyrics[0]:
                for rest in alignments(lyrics[1:], heard, index + 1):
                    yield [index, *rest]

    chance = random.Random(0)
    for _ in range(200):
        lyrics, heard = ("".join(chance.choices("abc", k=chance.randint(0, 6))) for _ in range(2))
        found = align_words(lyrics, heard)
        assert score(found) == max(map(score, alignments(lyrics, heard)))
        used = [match for match in found if match >= 0]
        assert used == sorted(set(used)) and all(heard[m] == lyrics[i] for i, m in enumerate(found) if m >= 0)


def test_a_perfect_transcript_gives_every_section_its_time():
    timed, match = time_sections(parse_lyrics(LYRICS).sections, sung(LYRICS, STARTS_S), DURATION_S)
    assert match == 1.0
    assert [section.start_s for section in timed] == STARTS_S
    assert [section.end_s for section in timed] == [6.0 + 18 / 2, 20.0 + 19 / 2, 40.0 + 19 / 2, 55.0 + 19 / 2]
    segments = tile(timed, [], DURATION_S)
    assert [(one.start_frame, one.end_frame) for one in segments] == [
        (0, 300), (300, 1000), (1000, 2000), (2000, 2750), (2750, 4000),
    ]  # fmt: skip
    assert [one.label for one in segments] == ["intro", "verse", "chorus", "verse", "chorus"]
    assert segments[0].text == "[intro]\n\n"
    assert segments[2].text == (
        "[chorus]\nSing it to the mountain, sing it to the rain\nSing until the summer brings the river home again\n\n"
    )
    assert segments[1].extra == {"offset": 6.0, "duration": 14.0}


def test_errors_of_a_transcript_move_no_section_far():
    transcript = misheard(sung(LYRICS, STARTS_S), 0.3)
    timed, match = time_sections(parse_lyrics(LYRICS).sections, transcript, DURATION_S)
    assert 0.55 < match < 0.95
    for section, start_s in zip(timed, STARTS_S, strict=True):
        assert abs(section.start_s - start_s) <= 2 * WORD_S


def test_another_songs_lyrics_do_not_match():
    _, match = time_sections(parse_lyrics(OTHER_LYRICS).sections, sung(LYRICS, STARTS_S), DURATION_S)
    assert match < 0.05
    assert time_sections(parse_lyrics(LYRICS).sections, [], DURATION_S)[1] == 0.0


def test_one_chorus_that_was_not_heard_lies_between_its_neighbours():
    transcript = [word for word in sung(LYRICS, STARTS_S) if not 20.0 <= word[0] < 40.0]
    timed, match = time_sections(parse_lyrics(LYRICS).sections, transcript, DURATION_S)
    assert [section.label for section in timed] == ["verse", "chorus", "verse", "chorus"]
    assert (timed[1].start_s, timed[1].end_s) == (15.0, 40.0)
    assert match == pytest.approx(56 / 75)


def test_a_section_that_is_not_sung_in_this_recording_falls_away():
    lyrics = LYRICS.replace(
        "[chorus]", "[bridge]\n" + "Not a word of this was ever sung here at all\n" * 4 + "[chorus]", 1
    )
    timed, _ = time_sections(parse_lyrics(lyrics).sections, sung(LYRICS, [6.0, 15.0, 40.0, 55.0]), DURATION_S)
    assert [section.label for section in timed] == ["verse", "chorus", "verse", "chorus"]


def test_sections_without_lines_are_what_is_played_between():
    lyrics = "[intro]\n" + LYRICS.replace("[verse]\nLetters", "[solo]\n\n[verse]\nLetters") + "\n[outro]\n"
    timed, _ = time_sections(parse_lyrics(lyrics).sections, sung(LYRICS, STARTS_S), DURATION_S)
    spans = {section.label: (section.start_s, section.end_s) for section in timed if not section.lines}
    assert spans == {"intro": (0.0, 6.0), "solo": (29.5, 40.0), "outro": (64.5, 80.0)}


def test_lyrics_as_long_as_a_library_are_rejected():
    words = " ".join(["la"] * 8001)
    with pytest.raises(Rejected, match="lyrics_long: 8001 words of lyrics and 8000 heard"):
        time_sections(parse_lyrics(words).sections, [[0.0, 60.0, words[:-3]]], DURATION_S)


def test_chinese_is_matched_sign_by_sign_whatever_the_words():
    lyrics = "[verse]\n好一朵美丽的茉莉花\n芬芳美丽满枝桠\n"
    transcript = [[2.0, 4.0, "好一朵"], [4.0, 6.0, "美丽的"], [6.0, 8.0, "茉莉花"], [9.0, 16.0, "芬芳美丽满枝丫"]]
    timed, match = time_sections(parse_lyrics(lyrics).sections, transcript, 20.0)
    assert match == pytest.approx(15 / 16)
    assert timed[0].start_s == 2.0


def test_parts_of_a_structure_in_a_pause_are_segments_without_lyrics():
    structure = [
        {"start": 0.0, "end": 5.8, "label": "intro"},
        {"start": 5.8, "end": 19.5, "label": "verse"},
        {"start": 19.5, "end": 30.0, "label": "chorus"},
        {"start": 30.0, "end": 39.0, "label": "inst"},
        {"start": 39.0, "end": 54.0, "label": "verse"},
        {"start": 54.0, "end": 66.0, "label": "chorus"},
        {"start": 66.0, "end": 90.0, "label": "outro"},
    ]
    timed, _ = time_sections(parse_lyrics(LYRICS).sections, sung(LYRICS, STARTS_S), DURATION_S)
    segments = tile(timed, structure, DURATION_S)
    # The structure's boundaries are taken where they cut no word.
    assert [(one.label, one.start_frame) for one in segments] == [
        ("intro", 0), ("verse", 290), ("chorus", 975), ("inst", 1500), ("verse", 1950), ("chorus", 2700),
        ("outro", 3300),
    ]  # fmt: skip
    assert segments[-1].end_frame == 4000
    assert [bool(one.lines) for one in segments] == [False, True, True, False, True, True, False]


def test_segments_tile_a_song_whatever_the_spans():
    chance = random.Random(1)
    for _ in range(200):
        edges = sorted(chance.uniform(0, 60) for _ in range(8))
        timed = [TimedSection("verse", ("x",) * chance.randint(0, 1), *edges[i : i + 2]) for i in (0, 2, 4, 6)]
        starts = [chance.uniform(-5, 70) for _ in range(5)]
        structure = [{"start": start, "end": start + chance.uniform(0, 30), "label": "inst"} for start in starts]
        segments = tile(timed, structure, 60.0)
        assert segments[0].start_frame == 0 and segments[-1].end_frame == 3000
        assert all(a.end_frame == b.start_frame for a, b in zip(segments[:-1], segments[1:], strict=True))
        assert all(one.start_frame < one.end_frame for one in segments)


def test_timed_lines_give_sections_without_a_transcript():
    text = (
        "[00:05.00][verse]\n[00:05.00]One\n[00:08.00]Two\n[solo]\n[00:10.00]\n[chorus]\n[00:20.00]Three\n[09:00.00]Late"
    )
    segments = tile(timed_sections(parse_lyrics(text).sections, 30.0), [], 30.0)
    assert [(one.label, one.start_frame, one.end_frame) for one in segments] == [
        ("intro", 0, 250), ("verse", 250, 500), ("solo", 500, 1000), ("chorus", 1000, 1500),
    ]  # fmt: skip
    assert segments[3].lines == ["Three"]
    assert tile([], [], 30.0) == []


def test_lines_go_where_their_middle_lies_in_the_structure():
    structure = [
        {"start": start, "end": start + 10.0, "label": label} for start, label in [(0, "a"), (10, "b"), (20, "c")]
    ]
    lines = [Line("One", 1.0, 5.0), Line("Two", 9.0, 14.0), Line("Three", 14.0, 22.0), Line("Four", 26.0, 40.0)]
    timed = sections_of_lines(lines, structure, 30.0)
    assert [(one.label, one.lines, one.start_s, one.end_s) for one in timed] == [
        ("a", ("One",), 1.0, 5.0),
        ("b", ("Two", "Three"), 9.0, 22.0),
        ("c", ("Four",), 26.0, 30.0),
    ]


def test_a_structure_is_put_in_order():
    structure = [
        {"start": 5.0, "end": 12.0, "label": "b"},
        {"start": 0, "end": 6, "label": "a"},
        {"start": 40.0, "end": 50.0, "label": "d"},
        {"start": 7.0, "end": 9.0, "label": "c"},
    ]
    assert ordered(structure, 10.0) == [
        {"start": 0.0, "end": 6, "label": "a"},
        {"start": 6, "end": 10.0, "label": "b"},
    ]


def test_a_transcript_is_broken_into_lines_at_pauses_and_length():
    words = [[index * 0.5, index * 0.5 + 0.4, f" w{index}"] for index in range(14)]
    words += [[9.0, 9.3, "我"], [9.3, 9.6, "爱你"]]
    first, second, third = lines_of_transcript(words)
    assert first == Line("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11", 0.0, 5.9)
    assert second == Line("w12 w13", 6.0, 6.9)
    assert third == Line("我爱你", 9.0, 9.6)
