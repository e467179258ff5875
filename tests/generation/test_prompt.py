"""Lyrics and tags files."""

import json

import numpy as np
import pytest
from lyric_corpus import PLAIN, TIMED

from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.generation.prompt import read_lyrics, read_tags
from megatron_music.songs.folder import manifest_of_folder
from megatron_music.songs.manifest import read_manifest


def written(tmp_path, text):
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_become_segment_texts(tmp_path):
    path = written(
        tmp_path, "\n[Verse]\n Staring at the sunset \n\nThoughts of you\n\n[chorus]\r\nHey [hey]\n[outro]\n"
    )
    assert read_lyrics(path).texts == [
        "[verse]\nStaring at the sunset\nThoughts of you\n\n",
        "[chorus]\nHey [hey]\n\n",
        "[outro]\n\n",
    ]


def test_published_example_has_six_sections(yue_data):
    lyrics = read_lyrics(yue_data / "lyrics.txt")
    assert [text.split("\n")[0] for text in lyrics.texts] == [
        "[verse]", "[chorus]", "[verse]", "[chorus]", "[bridge]", "[outro]",
    ]  # fmt: skip
    assert all(text.endswith("\n\n") and not text.endswith("\n\n\n") for text in lyrics.texts)
    assert lyrics.remarks == []
    assert (
        read_tags(yue_data / "genre.txt") == "inspiring female uplifting pop airy vocal electronic bright vocal vocal"
    )


def sung_and_trained(folder, suffix, files, **options):
    """Texts of the sections of each file as `generate` sings them, and as `manifest` gives them to training."""
    folder.mkdir()
    for number, text in enumerate(files):
        (folder / f"{number:02d}{suffix}").write_bytes(text.encode())
    sung = [read_lyrics(folder / f"{number:02d}{suffix}", **options) for number in range(len(files))]
    for number, lyrics in enumerate(sung):
        write_audio(folder / f"{number:02d}.wav", np.zeros(90_000, np.float32), 1000)
        if suffix == ".txt":
            # Without times, segments are made only where the labels are those of the structure.
            labels = [section.label for section in lyrics.sections]
            parts = [{"start": 2.0 * n, "end": 2.0 * n + 2.0, "label": label} for n, label in enumerate(labels)]
            (folder / f"{number:02d}.json").write_text(json.dumps({"msa": parts}))
    manifest_of_folder(folder, folder / "songs", **options)
    songs = read_manifest(folder / "songs" / "manifest.jsonl")
    return [lyrics.texts for lyrics in sung], [[segment.text for segment in song.segments] for song in songs]


@pytest.mark.parametrize("translation", ["first", "second", "both"])
def test_lyrics_with_times_are_sung_as_they_are_trained_on(tmp_path, translation):
    sung, trained = sung_and_trained(tmp_path / "songs", ".lrc", list(TIMED.values()), translation=translation)
    assert dict(zip(TIMED, sung, strict=True)) == dict(zip(TIMED, trained, strict=True))


def test_plain_lyrics_are_sung_as_they_are_trained_on(tmp_path):
    sung, trained = sung_and_trained(tmp_path / "songs", ".txt", list(PLAIN.values()))
    assert dict(zip(PLAIN, sung, strict=True)) == dict(zip(PLAIN, trained, strict=True))


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("labels", ["[verse]\nla le\n\n", "[chorus]\nma me\n\n", "[verse]\nlu li\n\n"]),
        ("glued", ["[verse]\nla le\nlu\n\n", "[chorus]\nma me\n\n"]),
        ("byte order mark, CRLF", ["[verse]\nla\n\n", "[chorus]\nle\n\n"]),
        ("before the first label", ["la le\n\n", "[chorus]\nma me\n\n"]),
    ],
)
def test_known_texts(tmp_path, name, texts):
    assert read_lyrics(written(tmp_path, PLAIN[name])).texts == texts


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[ti:A]\n", "holds no lyrics; write sections such as"),
        (
            "[00:01.00]作词 : X\n",
            "holds no lyrics; line 1: '作词 : X' is a credit or a notice, and left out; write sections",
        ),
    ],
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
