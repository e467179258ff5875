import pytest

from megatron_music.songs.filters import count_lines, without_irrelevant_text
from megatron_music.songs.song import Segment


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
