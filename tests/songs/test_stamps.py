"""Times in lyrics, in every spelling."""

import pytest

from megatron_music.songs.stamps import have_hours, is_like_a_time, read_stamp, without_stamps


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        ("01:02", 62.0),
        ("1:02.5", 62.5),
        ("01:02.05", 62.05),
        ("01:02.500", 62.5),
        ("01:02.500000", 62.5),
        ("100:02.00", 6002.0),
        ("01:02,50", 62.5),
        ("01:02:50", 62.5),
        ("01:02:5", 62.5),
        ("01:02:250", 62.25),
        ("00:01:02.50", 62.5),
        ("01:00:02,5", 3602.5),
        ("01:00:02:50", 3602.5),
        (" 01 : 02 . 50 ", 62.5),
        ("\u300001：02．50", 62.5),
        ("０１：０２．５０", 62.5),
        ("01:02.50-1", 62.5),
        ("00:75.00", 75.0),
        ("01:02.", 62.0),
    ],
)
def test_known_times(content, seconds):
    stamp = read_stamp(content)
    assert stamp.start.seconds() == seconds and stamp.end is None
    assert stamp.start.is_in_range == (seconds != 75.0)


def test_hours_minutes_and_seconds():
    assert read_stamp("00:01:02").start.seconds(with_hours=True) == 62.0
    assert read_stamp("01:00:02").start.seconds(with_hours=True) == 3602.0
    assert read_stamp("01:02.50").start.seconds(with_hours=True) == 62.5
    assert not read_stamp("00:75:02.50").start.is_in_range


@pytest.mark.parametrize("content", ["00:01.000 --> 00:04.500", "0:01-0:04.5", "00:01.0–00:00:04.5"])
def test_from_and_to(content):
    stamp = read_stamp(content)
    assert (stamp.start.seconds(), stamp.end.seconds()) == (1.0, 4.5)


@pytest.mark.parametrize(
    ("content", "is_time"),
    [("12:xx", True), ("00.15.20", True), ("-00:01.00", True), ("1:2:3:4:5", True), ("--:--", True), ("1234,500", True)]
    + [("x2", False), ("1", False), ("Verse 1", False), ("ti:12", False), ("", False), ("...", False)],
)
def test_what_was_meant_as_a_time(content, is_time):
    assert read_stamp(content) is None
    assert is_like_a_time(content) == is_time


@pytest.mark.parametrize(
    ("contents", "hours"),
    [
        (["00:01:00", "00:05:50"], False),
        (["00:00:01", "00:00:05"], True),
        (["00:00:10", "00:01:05", "00:02:00"], True),
        (["00:00:10", "00:00:75"], False),  # there is no second 75
        (["00:00:55.00", "00:01:05", "00:01:10.00"], True),  # or the second line would be the first
        (["00:03.12", "00:04:50", "00:00:05.50"], False),  # or it would be the last
        (["00:00:01"], False),
        (["00:01.00", "00:01:02.00"], False),
    ],
)
def test_three_fields_are_read_so_that_lines_follow_each_other_as_lines_do(contents, hours):
    assert have_hours([read_stamp(content).start for content in contents]) == hours


def test_a_line_without_its_stamps():
    assert without_stamps("[00:12.34] 【1：02】la <00:13.0>le [la]") == "la le [la]"
    assert without_stamps("  la [x2] <3") == "  la [x2] <3"
