"""Lyrics and tags files."""

import pytest

from megatron_music.errors import InputError
from megatron_music.generation.prompt import read_lyrics, read_tags


def written(tmp_path, text):
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_become_segment_texts(tmp_path):
    path = written(
        tmp_path, "\n[Verse]\n Staring at the sunset \n\nThoughts of you\n\n[chorus]\r\nHey [hey]\n[outro]\n"
    )
    assert read_lyrics(path) == [
        "[verse]\nStaring at the sunset\nThoughts of you\n\n",
        "[chorus]\nHey [hey]\n\n",
        "[outro]\n\n",
    ]


def test_published_example_has_six_sections(yue_data):
    segments = read_lyrics(yue_data / "lyrics.txt")
    assert [text.split("\n")[0] for text in segments] == [
        "[verse]", "[chorus]", "[verse]", "[chorus]", "[bridge]", "[outro]",
    ]  # fmt: skip
    assert all(text.endswith("\n\n") and not text.endswith("\n\n\n") for text in segments)
    assert (
        read_tags(yue_data / "genre.txt") == "inspiring female uplifting pop airy vocal electronic bright vocal vocal"
    )


@pytest.mark.parametrize(
    "text, message",
    [("", "is empty"), (" \n\n", "is empty"), ("la la\n[verse]\nla\n", "line 1: stands before any section label")],
)
def test_lyrics_without_sections_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_lyrics(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", [("\n", "is empty"), ("pop\nrock\n", "line 2")])
def test_tags_are_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_tags(written(tmp_path, text))


def test_missing_prompt_files_are_named(tmp_path):
    for read in (read_lyrics, read_tags):
        with pytest.raises(InputError, match="nowhere.txt: no such file"):
            read(tmp_path / "nowhere.txt")
