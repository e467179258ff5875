import pytest

from megatron_music.songs.lyrics import Line, Section, is_timed, lyrics_text, plain_label, read_sections, segment_text
from megatron_music.songs.song import Segment, Song


def _texts(text: str) -> list[tuple[str, list[str]]]:
    return [(section.label, [line.text for line in section.lines]) for section in read_sections(text)]


def test_plain_text_in_labelled_sections():
    text = "\ufeffBefore\n\n[Verse 1]\n One \n\nTwo\n[CHORUS x2]\nThree\n[Instrumental]\n"
    assert _texts(text) == [
        ("", ["Before"]),
        ("verse", ["One", "Two"]),
        ("chorus", ["Three"]),
        ("instrumental", []),
    ]


def test_plain_text_without_labels_is_split_at_blank_lines():
    assert _texts("One\nTwo\n\n\nThree\r\n") == [("", ["One", "Two"]), ("", ["Three"])]
    assert _texts(" \n\n[ti:Nothing]\n") == []


def test_lrc_lines_have_times_and_end_where_the_next_begins():
    text = "[ti:A song]\n[ar: Anna]\n[00:01.50]One\n[00:04.00]Two <00:05.00>words\n[00:06.00]\n[01:00:250]Three\n"
    first, second = read_sections(text)
    assert first == Section("", (Line("One", 1.5, 4.0), Line("Two words", 4.0, 6.0)))
    assert second == Section("", (Line("Three", 60.25, None),))
    assert is_timed([first, second]) and not is_timed(read_sections("One")) and not is_timed([])


def test_lrc_lines_with_several_times_stand_at_each_of_them():
    sections = read_sections("[00:03.00]Two\n[00:01.00][00:05.00]One\n")
    assert [(line.text, line.start_s) for line in sections[0].lines] == [("One", 1.0), ("Two", 3.0), ("One", 5.0)]


@pytest.mark.parametrize("label", ["[Verse 1]\n", "[00:01.00][Verse 1]\n", "[00:01.00]\n[Verse 1]\n"])
def test_lrc_labels_stand_with_or_without_a_time(label):
    text = label + "[00:01.00]One\n\n[00:03.00]Two\n[Chorus: both]\n[00:05.00]Three\n[00:30.00]Four"
    assert _texts(text) == [("verse", ["One", "Two"]), ("chorus", ["Three", "Four"])]


def test_lrc_without_labels_is_split_at_blank_lines_and_long_pauses():
    text = "[00:01.00]One\n[00:03.00]Two\n\n[00:05.00]Three\n[00:16.00]Four\n"
    assert _texts(text) == [("", ["One", "Two"]), ("", ["Three"]), ("", ["Four"])]


@pytest.mark.parametrize(("offset", "start_s"), [("+500", 1.5), ("-500", 2.5), ("9000", 0.0)])
def test_a_positive_lrc_offset_is_earlier(offset, start_s):
    assert read_sections(f"[offset:{offset}]\n[00:02.00]One")[0].lines[0].start_s == start_s


@pytest.mark.parametrize(
    ("label", "plain"),
    [
        ("Verse 2: Anna & Ben", "verse"),
        ("Pre-Chorus", "pre-chorus"),
        ("CHORUS x2", "chorus"),
        ("Bridge (Anna)", "bridge"),
        ("verse #3", "verse"),
        ("Verse - Anna", "verse"),
        ("副歌：", "副歌"),
        ("Exit", "exit"),
        ("", ""),
    ],
)
def test_labels_lose_numbers_and_singers(label, plain):
    assert plain_label(label) == plain


def test_segment_texts():
    assert segment_text("verse", ["One", "Two"]) == "[verse]\nOne\nTwo\n\n"
    assert segment_text("intro", []) == "[intro]\n\n"
    assert segment_text("", ["One"]) == "One\n\n"
    assert Section("verse", (Line("One"),)).text == "[verse]\nOne\n\n"


def test_the_lyrics_of_a_song_wherever_they_stand():
    lyrics = {"lyrics": "[verse]\nThree\n"}
    assert lyrics_text(Song("1", segments=[Segment("[verse]\nOne\nTwo\n\n", 0, 1)], extra=lyrics)) == "One\nTwo"
    assert lyrics_text(Song("1", segments=[Segment("[intro]\n\n", 0, 1)], extra=lyrics)) == "Three"
    assert lyrics_text(Song("1", text="Spoken")) == "Spoken"
    assert lyrics_text(Song("1", extra={"lyrics": 3})) == ""
