"""Labels of sections, and what looks like one."""

import pytest

from megatron_music.songs.labels import (
    is_like_a_label,
    is_repeat,
    is_section_name,
    is_tag,
    label_without_brackets,
    plain_label,
    repeat_count,
    split_repeat,
)


@pytest.mark.parametrize(
    ("label", "plain"),
    [
        ("Verse 2: Anna & Ben", "verse"),
        ("Pre-Chorus", "pre-chorus"),
        ("CHORUS x2", "chorus"),
        ("Chorus 2x", "chorus"),
        ("2x Chorus", "chorus"),
        ("Chorus (x2)", "chorus"),
        ("Chorus ×3: both", "chorus"),
        ("Bridge (Anna)", "bridge"),
        ("Bridge – Anna & Tom", "bridge"),
        ("verse #3", "verse"),
        ("Verse No. 3", "verse"),
        ("Verse 1a", "verse"),
        ("Verse II", "verse"),
        ("Verse Two", "verse"),
        ("2nd Verse", "verse"),
        ("1. Strophe", "strophe"),
        ("Verse1", "verse"),
        ("Verse - Anna", "verse"),
        ("Verse, Anna", "verse"),
        ("Verse feat. Anna", "verse"),
        ("副歌：", "副歌"),
        ("主歌二", "主歌"),
        ("Ａメロ２", "aメロ"),
        ("ｻﾋﾞ", "サビ"),
        ("  Guitar   Solo ", "guitar solo"),
        ("Exit", "exit"),
        ("Part One", "part one"),
        ("verse xylophone", "verse xylophone"),
        ("1", ""),
        ("", ""),
    ],
)
def test_labels_lose_numbers_singers_and_counts(label, plain):
    assert plain_label(label) == plain
    assert plain_label(plain) == plain


def test_names_that_are_surely_labels():
    names = [
        "Chorus",
        "Verse 2: Anna",
        "Final Chorus",
        "Guitar Solo",
        "Pre Chorus 2",
        "Припев",
        "サビ",
        "मुखड़ा",
        "Refrão",
    ]
    assert all(map(is_section_name, names))
    assert not any(map(is_section_name, ["Anna", "hey", "la la", "over the bridge", "x2", ""]))


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("(Chorus)", "chorus"),
        ("（副歌）", "副歌"),
        ("(Verse 2: Anna)", "verse"),
        ("Chorus:", "chorus"),
        ("Verse 1", "verse"),
        ("Verse 1:", "verse"),
        ("(Chorus):", "chorus"),
        ("**Verse 1:**", "verse"),
        ("## Bridge", "bridge"),
        ("--- Outro ---", "outro"),
        ("Chorus x2", "chorus"),
        ("Chorus", None),
        ("- solo", None),
        ("Verse 1: la le", None),
        ("(over the bridge)", None),
        ("(hey)", None),
        ("Anna:", None),
        ("7 nights", None),
    ],
)
def test_labels_without_brackets(line, label):
    assert label_without_brackets(line) == label


def test_lines_that_read_like_labels():
    like = ["Chorus", "Verse 1: la le", "Hook: hey", "{Verse 1}", "Chorus (Anna)", "[verse 1"]
    assert all(map(is_like_a_label, like))
    assert not any(map(is_like_a_label, ["chorus of the birds", "Anna: la", "la"]))


def test_what_asks_for_a_repeat():
    assert all(
        map(
            is_repeat,
            ["x2", "2x", "X 3", "×2", "2 times", "Repeat", "repeat x2", "Repeat Chorus", "bis", "REPEAT THE HOOK"],
        )
    )
    assert not any(map(is_repeat, ["repeat after me", "hey", "2", "Chorus", ""]))
    split = {
        "la (x2)": ("la", "(x2)"),
        "la x2": ("la", "x2"),
        "la （Repeat）": ("la", "（Repeat）"),
        "x3": ("", "x3"),
        "la (oh) (2x)": ("la (oh)", "(2x)"),
        "la (oh)": ("la (oh)", ""),
        "2x4": ("2x4", ""),
    }
    assert {line: split_repeat(line) for line in split} == split
    assert [repeat_count(label) for label in ("Chorus x2", "2x Chorus", "Chorus (x2): Anna", "Verse 2")] == [
        "x2", "2x", "x2", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "at_head", "below"),
    [
        ("kana:1", True, True),
        ("Title: A", True, False),
        ("lrc version:2", True, False),
        ("Teil 2: Anna", False, False),
        ("Anna: solo", True, False),
        ("Anna", False, False),
    ],
)
def test_header_tags_stand_at_the_head_or_are_small_words(content, at_head, below):
    assert (is_tag(content, at_head=True), is_tag(content, at_head=False)) == (at_head, below)
