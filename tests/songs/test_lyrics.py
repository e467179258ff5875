import pytest
from lyric_corpus import PLAIN, TIMED

from megatron_music.errors import InputError
from megatron_music.songs.lyrics import Line, Section, lyrics_text, parse_lyrics, segment_text
from megatron_music.songs.song import Segment, Song


def _texts(text: str) -> list[tuple[str, list[str]]]:
    return [(section.label, [line.text for line in section.lines]) for section in parse_lyrics(text).sections]


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
    first, second = parse_lyrics(text).sections
    assert first == Section("", (Line("One", 1.5, 4.0), Line("Two words", 4.0, 6.0)))
    assert second == Section("", (Line("Three", 60.25, None),))
    assert parse_lyrics(text).are_timed and not parse_lyrics("One").are_timed and not parse_lyrics("").are_timed


def test_lrc_lines_with_several_times_stand_at_each_of_them():
    sections = parse_lyrics("[00:03.00]Two\n[00:01.00][00:05.00]One\n").sections
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
    assert parse_lyrics(f"[offset:{offset}]\n[00:02.00]One").sections[0].lines[0].start_s == start_s


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


def _remarks(text: str) -> list[tuple[int, str, str]]:
    return [(remark.line, remark.rule, remark.words) for remark in parse_lyrics(text).remarks]


def _lines(text: str, **options) -> list[tuple[str, float, float | None]]:
    return [(line.text, line.start_s, line.end_s) for line in parse_lyrics(text, **options).lines]


def test_label_and_words_on_one_line():
    assert _texts("[Verse 1] la le\nlu\n[Chorus]ma [me] ma [Outro]") == [
        ("verse", ["la le", "lu"]), ("chorus", ["ma [me] ma"]), ("outro", []),
    ]  # fmt: skip
    assert _lines("[00:01.00]la [Chorus] le\n[00:05.00]") == [("la", 1.0, 3.0), ("le", 3.0, 5.0)]
    assert _texts("[00:01.00][Verse] la\n[Hook: x2][00:02.00]le") == [("verse", ["la"]), ("hook", ["le"])]


def test_brackets_that_are_no_label_are_sung_and_told():
    text = "[Verse]\n[Anna] la\nle [2]\n(1:20) lu\n[00:05 li\n[hey] lo [Chorus]"
    assert _texts(text) == [("verse", ["[Anna] la", "le [2]", "(1:20) lu", "[00:05 li", "[hey] lo"]), ("chorus", [])]
    assert _remarks(text) == [
        (2, "no_label", "[Anna]"), (3, "digits", "[2]"), (4, "digits", "(1:20) lu"), (5, "digits", "[00:05 li"),
        (6, "no_label", "[hey]"),
    ]  # fmt: skip


def test_header_tags_are_no_labels_and_labels_with_a_colon_are():
    text = "[ti:A]\n[kana:1]\n[mood:sad]\n[My Tag:x]\n[Säkeistö 1: Anna]\nla\n[Anna: solo]\nle\n[mood:glad]\nlu"
    assert _texts(text) == [("säkeistö", ["la"]), ("anna", ["le", "lu"])]
    assert _remarks(text) == [
        (3, "header_tag", "[mood:sad]"), (4, "header_tag", "[My Tag:x]"),
        (7, "new_label", "[Anna: solo]"), (9, "header_tag", "[mood:glad]"),
    ]  # fmt: skip


def test_what_nobody_sings_is_left_out_and_told():
    text = (
        "[00:00.00]作词 : X\n[00:01.00]♪\n[00:02.00]M: la (x2)\n[00:03.00]written by the moonlight\n"
        "[Repeat Chorus]\n[00:04.00][Chorus x2]\n[00:05.00]Verse 1: le\n[00:09.00]Music: Tom"
    )
    assert _texts(text) == [("", ["la", "written by the moonlight"]), ("chorus", ["Verse 1: le"])]
    assert _remarks(text) == [
        (1, "credit", "作词 : X"), (2, "no_words", "♪"), (3, "singer", "M:"), (3, "repeat", "(x2)"),
        (4, "like_credit", "written by the moonlight"), (5, "repeat", "[Repeat Chorus]"), (6, "repeat", "x2"),
        (7, "like_label", "Verse 1: le"), (8, "credit", "Music: Tom"),
    ]  # fmt: skip


def test_the_title_that_players_put_at_the_start_is_left_out():
    header = "[ti:A Song]\n[ar:Anna]\n"
    for title in ("A Song - Anna", "anna – a song"):
        assert _texts(f"{header}[00:00.00]{title}\n[00:05.00]la\n") == [("", ["la"])]
        assert _remarks(f"{header}[00:00.00]{title}\n[00:05.00]la\n") == [(3, "title", title)]
    assert _texts(f"{header}[00:00.00]A Song\n[00:05.00]a song - la\n") == [("", ["A Song", "a song - la"])]
    assert _texts("[ti:]\n[00:00.00]A Song - Anna\n") == [("", ["A Song - Anna"])]


def test_times_that_cannot_be_read_are_left_out_and_their_words_used():
    text = "[00:01.00]la\n[12:xx]le\n[00.15.20]lu\n[00:61.00]li\n[offset:soon]"
    assert _lines(text) == [("la", 1.0, 21.0), ("le", 21.0, 41.0), ("lu", 41.0, 61.0), ("li", 61.0, None)]
    assert _remarks(text) == [
        (2, "time_unknown", "[12:xx]"), (2, "no_time", "le"), (3, "time_unknown", "[00.15.20]"), (3, "no_time", "lu"),
        (4, "time_range", "[00:61.00]li"), (5, "offset", "[offset:soon]"),
    ]  # fmt: skip


def test_lines_without_a_time_share_that_of_the_line_before_them():
    text = "Song\n[Mood: sad]\n[00:10.00]la\nle\n[Chorus]\nlu\n[Verse]\n[00:22.00]li\nlo"
    assert _lines(text) == [
        ("la", 10.0, 14.0), ("le", 14.0, 18.0), ("lu", 18.0, 22.0), ("li", 22.0, None), ("lo", 22.0, None),
    ]  # fmt: skip
    assert _lines(text, duration_s=30.0)[3:] == [("li", 22.0, 26.0), ("lo", 26.0, 30.0)]
    assert _texts(text) == [("", ["la", "le"]), ("chorus", ["lu"]), ("verse", ["li", "lo"])]
    assert [(line, rule) for line, rule, _ in _remarks(text)] == [
        (1, "before_times"), (2, "header_tag"), (4, "no_time"), (6, "no_time"), (9, "no_time"),
    ]  # fmt: skip
    assert _lines("[Verse] la\n[Chorus]\n[00:03.00]le") == [("la", 0.0, 3.0), ("le", 3.0, None)]


def test_times_of_words_and_ends_of_lines():
    assert _lines("[00:01.00][00:01.00]ka[00:01.50]ra[00:02.00]\n[00:04.00]o\n[00:09.00]") == [
        ("kara", 1.0, 2.0), ("o", 4.0, 9.0),
    ]  # fmt: skip
    assert _lines("[00:01.00]<00:01.00>la <00:02.00>le<00:03.00>\n<00:05.00>lu <00:06.00>li") == [
        ("la le", 1.0, 3.0), ("lu li", 5.0, None),
    ]  # fmt: skip
    assert _lines("[00:01.00 --> 00:03.00] la\n[00:04.00-00:99.00]le\n[00:06.00]") == [
        ("la", 1.0, 3.0),
        ("le", 4.0, 6.0),
    ]
    assert _lines("[00:01.00][00:09.00]la <00:01.50>le<00:02.00>") == [("la le", 1.0, 9.0), ("la le", 9.0, None)]


@pytest.mark.parametrize(
    ("translation", "lines", "left_out"),
    [
        ("first", [("ichi", 1.0, 5.0), ("ni", 5.0, 9.0), ("la", 9.0, None)], ["one", "two"]),
        ("second", [("one", 1.0, 5.0), ("two", 5.0, 9.0), ("la", 9.0, None)], ["ichi", "ni"]),
        (
            "both",
            [("ichi", 1.0, 3.0), ("one", 3.0, 5.0), ("ni", 5.0, 7.0), ("two", 7.0, 9.0), ("la", 9.0, None)],
            [],
        ),
    ],
)
def test_original_and_translation_under_one_time(translation, lines, left_out):
    for name in ("translation", "translation below"):
        lyrics = parse_lyrics(TIMED[name] if name == "translation" else TIMED[name] + "[00:09.00]la", translation)
        assert [(line.text, line.start_s, line.end_s) for line in lyrics.lines] == lines
        assert [(remark.rule, remark.words) for remark in lyrics.remarks] == [("translation", one) for one in left_out]


def test_a_time_that_is_shared_once_is_two_voices():
    lyrics = parse_lyrics(TIMED["two voices"])
    assert [line.text for line in lyrics.lines] == ["la", "le", "lu", "ooh", "li", "lo"]
    assert [(remark.line, remark.rule) for remark in lyrics.remarks] == [(4, "same_time")]
    with pytest.raises(InputError, match="--translation: 'third' is not known; choose first, second, both"):
        parse_lyrics("la", "third")


def test_times_before_the_start_are_told():
    assert _remarks("[offset:1500]\n[00:01.00]la\n[00:02.00]le") == [(2, "before_start", "la")]
    assert _lines("[offset:1500]\n[00:01.00]la\n[00:02.00]le") == [("la", 0.0, 0.5), ("le", 0.5, None)]


def test_lines_before_the_start_share_what_is_left_of_their_time():
    text = "[offset:5000]\n[00:01.00][Verse]la\n[00:02.00][Chorus]le\n[00:05.00]lu\n[00:08.00]li"
    assert _lines(text) == [("la", 0.0, 1.0), ("le", 1.0, 2.0), ("lu", 2.0, 3.0), ("li", 3.0, None)]
    assert [(line, rule) for line, rule, _ in _remarks(text)] == [(2, "before_start"), (3, "before_start")]


def test_times_of_words_in_lines_without_a_time_are_told():
    text = "[00:01.00]la\nat [3:00] we <3:01>go\nle[00:09.00]"
    assert [line for line, *_ in _lines(text)] == ["la", "at we go", "le"]
    assert [remark for remark in _remarks(text) if remark[1] != "no_time"] == [
        (2, "time_within", "[3:00] <3:01>"), (3, "time_within", "[00:09.00]"),
    ]  # fmt: skip


def test_hours_that_were_guessed_are_told():
    text = "[00:00:01]la\n[00:00:05]le"
    assert (_lines(text)[1], _remarks(text)) == (("le", 5.0, None), [(1, "time_hours", "la"), (2, "time_hours", "le")])


@pytest.mark.parametrize("text", [*TIMED.values(), *PLAIN.values()], ids=[*TIMED, *(f"plain {name}" for name in PLAIN)])
def test_what_was_read_reads_the_same_again(text):
    """Segments of a manifest and of a ``song.json`` are read once more by `evaluate` and `align`."""
    for section in parse_lyrics(text).sections:
        (again,) = parse_lyrics(section.text).sections
        assert (again.label, again.text) == (section.label, section.text)


def test_every_remark_says_its_line_and_words():
    remarks = [remark for text in [*TIMED.values(), *PLAIN.values()] for remark in parse_lyrics(text).remarks]
    assert len({remark.rule for remark in remarks}) > 12
    assert all(str(remark).startswith(f"line {remark.line}: {remark.words!r} ") for remark in remarks)
    (long,) = parse_lyrics("Lyrics by " + "Anna " * 99).remarks
    assert str(long) == f"line 1: {('Lyrics by ' + 'Anna ' * 10)[:57] + '...'!r} is a credit or a notice, and left out"


def test_long_lines_take_no_longer_than_they_are():
    """Patterns that go back over what they have read would take hours."""
    for piece in ("-", "#", ".", "1", "[", "(1", "x2 ", "<1", "[00:", "by ", "词/", "a.", "[-", "and lyrics "):
        for line in ("la " + piece * 10_000 + "!", "[" + piece * 10_000 + "]", "[00:01.00]" + piece * 10_000 + "("):
            parse_lyrics(line)


@pytest.mark.parametrize("text", TIMED.values(), ids=TIMED)
@pytest.mark.parametrize("duration_s", [2.0, 30.0])
def test_the_length_of_the_audio_changes_times_alone(text, duration_s):
    known, unknown = parse_lyrics(text, duration_s=duration_s), parse_lyrics(text)
    assert (known.texts, known.remarks) == (unknown.texts, unknown.remarks)
    assert all(line.end_s is not None for line in known.lines if line.start_s < duration_s)
