import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.songs.folder import manifest_of_folder
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.rejects import read_rejects
from megatron_music.songs.song import Song


def _audio(path: Path, seconds: float = 2.0, sample_rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    times_s = np.arange(round(seconds * sample_rate)) / sample_rate
    write_audio(path, 0.1 * np.sin(2 * np.pi * 220 * times_s).astype(np.float32), sample_rate)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _songs(out: Path) -> dict[str, Song]:
    songs = list(read_manifest(out / "manifest.jsonl"))
    assert all(isinstance(song, Song) for song in songs)
    return {song.id: song for song in songs}


def _rules(out: Path) -> list[tuple[str, str]]:
    return [(reject.id, reject.rule) for reject in read_rejects(out / "rejects.parquet")]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "recordings"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "made" / "songs"


def test_songs_are_paired_with_stems_lyrics_and_tags_by_name(folder, out):
    _audio(folder / "album" / "one.mp3", 2.0)
    _audio(folder / "album" / "one.Vocals.wav")
    _audio(folder / "album" / "one.Instrumental.wav")
    _text(folder / "album" / "one.txt", "\ufeff[Verse 1]\r\nFirst line\r\nSecond line\r\n")
    _text(folder / "album" / "one.tags.txt", "folk, female\nguitar\n")
    _audio(folder / "two" / "mix.flac", 3.0)
    _audio(folder / "two" / "vocals.flac", 3.0)
    _audio(folder / "two" / "no_vocals.flac", 3.0)
    _audio(folder / "two" / "drums.flac", 3.0)
    _text(folder / "two" / "lyrics.lrc", "[00:00.50]One\n[00:01.50]Two\n")
    _text(folder / "two" / "song.json", json.dumps({"tags": ["rock", "male"], "language": "de", "isrc": "X1"}))
    _audio(folder / "vocals.wav")
    _audio(folder / ".hidden" / "three.wav")
    summary = manifest_of_folder(folder, out, language="en", source="home", licence="CC0")
    songs = _songs(out)
    assert list(songs) == ["album/one", "two", "vocals"]
    one, two, three = songs.values()
    recordings = os.path.join("..", "..", "recordings")
    assert one.audio == {
        "mix": f"{recordings}/album/one.mp3",
        "vocals": f"{recordings}/album/one.Vocals.wav",
        "accompaniment": f"{recordings}/album/one.Instrumental.wav",
    }
    assert one.audio_path("mix").is_file()
    assert (one.genres, one.language, one.segments) == ("folk, female, guitar", "en", [])
    assert one.extra == {"source": "home", "licence": "CC0", "lyrics": "[Verse 1]\nFirst line\nSecond line"}
    assert set(two.audio) == {"mix", "vocals", "accompaniment"}
    assert (two.genres, two.language, two.duration_s) == ("rock, male", "de", 3.0)
    assert [(one.text, one.start_frame, one.end_frame) for one in two.segments] == [("One\nTwo\n\n", 0, 150)]
    assert two.extra == {
        "source": "home",
        "licence": "CC0",
        "isrc": "X1",
        "lines": [{"text": "One", "start": 0.5, "end": 1.5}, {"text": "Two", "start": 1.5, "end": 3.0}],
    }
    assert three.audio == {"mix": f"{recordings}/vocals.wav"}
    assert _rules(out) == []
    assert str(summary) == (
        "songs        3\nhours        0.00\nwith lyrics  2 (1 with times)\nwith stems   2\nwith tags    2\n"
        "rejected     0\npassed over  1 stems other than vocals"
    )


def test_names_and_texts_of_other_systems(folder, out):
    """Of a Mac (accents as two signs, ``._`` files, ``.DS_Store``) and of Windows (capitals, marks, UTF-16)."""
    _audio(folder / "Noe\u0308l.WAV")
    _text(folder / "NO\u00cbL.lrc", "\ufeff[00:00.50]Il est n\u00e9\r\n[00:01.50]\r\n")
    (folder / "no\u00ebl.Tags.TXT").write_bytes("folk\r\nfran\u00e7ais".encode("utf-16"))
    _audio(folder / "noe\u0308l.Vocals.wav")
    _text(folder / "._Noe\u0308l.WAV", "Mac OS X")
    _text(folder / ".DS_Store", "Bud1")
    _text(folder / "Thumbs.db", "")
    _audio(folder / "one" / "Go.wav")
    _audio(folder / "one" / "go.flac")
    _text(folder / "one" / "GO.txt", "[verse]\nla\n")
    _text(folder / "one" / "Go.txt", "[verse]\nlo\n")
    _text(folder / "one" / "Go" / "lyrics.txt", "[verse]\nli\n")
    summary = manifest_of_folder(folder, out)
    noel, first, second = _songs(out).values()
    assert (noel.id, set(noel.audio), noel.genres) == ("Noe\u0308l", {"mix", "vocals"}, "folk, fran\u00e7ais")
    assert [segment.lines for segment in noel.segments] == [["Il est n\u00e9"]]
    assert (first.id, first.extra, second.id, second.extra) == ("one/Go", {"lyrics": "[verse]\nli"}, "one/go", {})
    assert _rules(out) == [("one/GO", "ambiguous_name"), ("one/Go.txt", "duplicate_text")]
    assert str(summary).endswith(
        "kept apart   2 songs whose names differ by case or accents' form alone: one/Go, one/go"
    )


def test_lengths_are_those_of_the_headers(folder, out):
    _audio(folder / "a.wav", 1.25)
    _audio(folder / "b.vocals.wav", 1.5)
    _audio(folder / "b.accompaniment.wav", 1.75)
    _audio(folder / "c.mp3", 2.5)
    _audio(folder / "d.OGG", 2.0)
    summary = manifest_of_folder(folder, out)
    lengths = {song.id: song.duration_s for song in _songs(out).values()}
    assert lengths == {"a": 1.25, "b": 1.75, "c": pytest.approx(2.5, abs=0.15), "d": 2.0}
    assert summary.seconds == pytest.approx(sum(lengths.values()))


def test_metadata_of_the_audio_file_where_no_sidecar_says_more(folder, out):
    for name in ("a", "b"):
        _audio(folder / f"{name}.flac")
        with soundfile.SoundFile(folder / f"{name}.flac", "w", 8000, 1) as file:
            file.title, file.artist, file.license, file.genre = "Song", "Anna", "CC BY", "folk"
            file.write(np.zeros(8000))
    _text(folder / "b.json", json.dumps({"title": "Another", "genres": "rock"}))
    manifest_of_folder(folder, out, licence="unknown")
    a, b = _songs(out).values()
    assert (a.genres, a.extra) == ("folk", {"licence": "CC BY", "title": "Song", "artist": "Anna"})
    assert (b.genres, b.extra["title"]) == ("rock", "Another")


def test_lyrics_in_the_sections_of_a_known_structure_become_segments(folder, out):
    _audio(folder / "a.wav", 10.0)
    structure = [
        {"start": 0.0, "end": 2.0, "label": "intro"},
        {"start": 2.0, "end": 6.0, "label": "verse"},
        {"start": 6.0, "end": 10.0, "label": "chorus"},
    ]
    _text(folder / "a.json", json.dumps({"msa": structure}))
    _text(folder / "a.txt", "[Intro]\n\n[Verse 1]\nOne\n\n[Chorus]\nTwo\n")
    manifest_of_folder(folder, out)
    (song,) = _songs(out).values()
    assert [(one.text, one.start_frame, one.end_frame) for one in song.segments] == [
        ("[intro]\n\n", 0, 100),
        ("[verse]\nOne\n\n", 100, 300),
        ("[chorus]\nTwo\n\n", 300, 500),
    ]


def test_clips_of_speech(folder, out):
    _audio(folder / "speaker" / "1.wav")
    _text(folder / "speaker" / "1.txt", "Good morning.\nHow are you?\n")
    _audio(folder / "speaker" / "2.wav")
    _audio(folder / "speaker" / "3.wav")
    _text(folder / "speaker" / "3.txt", " \n")
    manifest_of_folder(folder, out, speech=True)
    assert {song.id: song.text for song in _songs(out).values()} == {
        "speaker/1": "Good morning. How are you?",
        "speaker/2": "",
    }
    assert _rules(out) == [("speaker/3", "text_empty")]


def _damage(folder: Path) -> None:
    """Files that can't be used, and between them ``good.wav``."""
    for name in ("good", "json", "latin", "list", "nolyrics", "oneid", "otherid", "typed"):
        _audio(folder / f"{name}.wav")
    _text(folder / "empty.wav", "")
    _text(folder / "junk.mp3", "no audio at all")
    _text(folder / "video.m4a", "ftyp")
    soundfile.write(folder / "silent.wav", np.zeros(0), 8000)
    (folder / "latin.txt").write_bytes("[verse]\nÜber\n".encode("latin-1"))
    _text(folder / "nolyrics.lrc", "[ti:Nothing]\n")
    _text(folder / "json.json", "{")
    _text(folder / "list.json", "[1]")
    _text(folder / "typed.json", '{"msa": "verse"}')
    _text(folder / "oneid.json", '{"id": "x"}')
    _text(folder / "otherid.json", '{"id": "x"}')
    _text(folder / "lonely.txt", "[verse]\nOne\n")
    _text(folder / "settings.json", "{}")
    _audio(folder / "twice.flac")
    _audio(folder / "twice.ogg")


def test_what_cannot_be_used_is_named_and_stops_nothing(folder, out):
    _audio(folder / "good.wav")
    _damage(folder)
    os.mkfifo(folder / "pipe.wav")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    os.link(folder / "good.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    summary = manifest_of_folder(folder, out)
    assert list(_songs(out)) == ["good", "x", "twice"]
    assert _rules(out) == [
        ("caf\\udce9", "not_utf8"),
        ("empty", "audio_unreadable"),
        ("gone", "audio_missing"),
        ("json", "not_json"),
        ("junk", "audio_unreadable"),
        ("latin", "not_utf8"),
        ("list", "not_json"),
        ("lonely", "audio_missing"),
        ("nolyrics", "text_empty"),
        ("x", "duplicate_id"),
        ("pipe", "audio_missing"),
        ("silent", "audio_empty"),
        ("twice.ogg", "duplicate_track"),
        ("typed", "wrong_type"),
        ("video", "audio_unreadable"),
    ]
    assert summary.rejected.total() == 15
    for reject in read_rejects(out / "rejects.parquet"):
        assert "\n" not in reject.detail


def test_the_manifest_is_the_same_whatever_the_order_on_disk(folder, out, tmp_path):
    names = [f"{index % 7}/{index}" for index in range(40)]
    for name in names:
        _audio(folder / f"{name}.wav", 0.1)
        _audio(tmp_path / "other" / f"{names[-1 - names.index(name)]}.wav", 0.1)
    manifest_of_folder(folder, out)
    first = (out / "manifest.jsonl").read_bytes()
    manifest_of_folder(folder, out)
    assert (out / "manifest.jsonl").read_bytes() == first
    manifest_of_folder(tmp_path / "other", out)
    assert (out / "manifest.jsonl").read_bytes() == first.replace(b"/recordings/", b"/other/")
    assert list(_songs(out)) == sorted(names)


def test_what_lies_in_the_output_folder_is_no_song(folder):
    _audio(folder / "a.wav")
    _audio(folder / "made" / "stems" / "a.wav")
    manifest_of_folder(folder, folder / "made")
    assert list(_songs(folder / "made")) == ["a"]


def test_a_folder_without_songs_is_told_in_one_line(folder, out):
    with pytest.raises(InputError, match="is no folder"):
        manifest_of_folder(folder, out)
    folder.mkdir()
    with pytest.raises(InputError, match="there is no song for a manifest; name a folder"):
        manifest_of_folder(folder, out)
    _text(folder / "junk.wav", "junk")
    with pytest.raises(InputError, match=r"the first of 1 rejects: .*junk.wav: can't be read as audio"):
        manifest_of_folder(folder, out)
    assert _rules(out) == [("junk", "audio_unreadable")]
    assert not (out / "manifest.jsonl").exists()
    with pytest.raises(InputError, match="junk.wav: is a file or lies below one; name a folder"):
        manifest_of_folder(folder, folder / "junk.wav")


def test_the_verb_prints_a_summary(folder, out):
    _audio(folder / "a.wav", 36.0)
    _text(folder / "a.txt", "[verse]\nOne\n")
    _text(folder / "junk.wav", "junk")
    ran = CliRunner().invoke(cli.app, ["manifest", str(folder), str(out)])
    assert ran.exit_code == 0
    assert ran.stdout == (
        "songs        1\nhours        0.01\nwith lyrics  1 (0 with times)\nwith stems   0\nwith tags    0\n"
        f"rejected     1\n  audio_unreadable   1\n  each with its reason: megatron-music rejects {out}\n"
        f"written      {out}/manifest.jsonl\n"
    )
    ran = CliRunner().invoke(cli.app, ["manifest", str(folder), str(out), "--max-rejected", "0.4"])
    assert "1 of 2 songs were rejected, a larger share than --max-rejected 0.4" in str(ran.exception)
    shown = CliRunner().invoke(cli.app, ["manifest", "--help"], terminal_width=120)
    assert "[verse]" in shown.stdout and "song.vocals.wav" in shown.stdout


def test_what_is_not_sung_stands_in_the_remarks(folder, out):
    for name in ("a", "b", "c", "quiet"):
        _audio(folder / f"{name}.wav", 8.0)
    _text(folder / "a.lrc", "[00:00.00]作词 : X\n[00:01.00][Verse 1]la (x2)\n[00:09.00]le\n[Outro]\n")
    _text(folder / "b.lrc", "[00:01.00]ichi\n[00:01.00]one\n[00:02.00]ni\n[00:02.00]two")
    _text(folder / "c.txt", "[Chorus]\nla [2]\n")
    summary = manifest_of_folder(folder, out)
    songs = _songs(out)
    assert [segment.text for song in songs.values() for segment in song.segments] == [
        "[verse]\nla\n\n", "ichi\nni\n\n",
    ]  # fmt: skip
    lines = [line.removeprefix(f"{folder}/") for line in (out / "remarks.txt").read_text().splitlines()]
    assert [line.split(" ", 3)[:3] for line in lines] == [
        ["a.lrc:", "line", "1:"], ["a.lrc:", "line", "2:"], ["a.lrc:", "line", "3:"], ["a.lrc:", "line", "4:"],
        ["b.lrc:", "line", "2:"], ["b.lrc:", "line", "4:"], ["c.txt:", "line", "2:"],
    ]  # fmt: skip
    assert lines[2] == "a.lrc: line 3: 'le' starts after the end of the audio, and is left out of the segments"
    assert lines[3].startswith("a.lrc: line 4: '[outro]' starts a section that has no time of its own")
    rules = {"credit": 1, "repeat": 1, "after_end": 1, "no_room": 1, "translation": 2, "digits": 1}
    assert summary.remarked == rules
    assert "remarks      7 on lyrics, in remarks.txt\n  after_end          1\n" in str(summary)
    assert [segment.text for segment in _read_again(folder, out, "second")["b"].segments] == ["one\ntwo\n\n"]
    with pytest.raises(InputError, match="--translation: 'all' is not known; choose first, second, both"):
        manifest_of_folder(folder, out, translation="all")


def _read_again(folder: Path, out: Path, translation: str) -> dict[str, Song]:
    ran = CliRunner().invoke(cli.app, ["manifest", str(folder), str(out), "--translation", translation])
    assert ran.exit_code == 0
    return _songs(out)


def test_labels_of_a_structure_are_read_like_those_of_lyrics(folder, out):
    _audio(folder / "a.wav", 8.0)
    parts = [{"start": 0.0, "end": 4.0, "label": "Verse 1"}, {"start": 4.0, "end": 8.0, "label": "Solo: Anna"}]
    _text(folder / "a.json", json.dumps({"msa": parts}))
    _text(folder / "a.txt", "[VERSE]\nla\n[Solo]\n")
    manifest_of_folder(folder, out)
    assert [segment.text for segment in _songs(out)["a"].segments] == ["[verse]\nla\n\n", "[solo]\n\n"]


def test_lyrics_of_credits_alone_leave_a_song_without_lyrics(folder, out):
    _audio(folder / "a.wav")
    _text(folder / "a.lrc", "[00:01.00]Lyrics by Anna\n")
    summary = manifest_of_folder(folder, out)
    assert (summary.songs, summary.with_lyrics, summary.rejected) == (1, 0, {})
    assert _songs(out)["a"].segments == []
    assert (out / "remarks.txt").read_text() == (
        f"{folder}/a.lrc: line 1: 'Lyrics by Anna' is a credit or a notice, and left out\n"
    )


def test_lyrics_behind_the_audio_are_told(folder, out):
    _audio(folder / "a.wav")
    _text(folder / "a.lrc", "[00:30.00]la\n[00:40.00]le\n")
    summary = manifest_of_folder(folder, out)
    assert (summary.with_lyrics, summary.remarked) == (0, {"after_end": 2})


def test_files_that_are_passed_over_are_counted(folder, out):
    _audio(folder / "a.wav")
    for name in ("film.mkv", "other.MKV", "cover.jpg", "README", ".hidden.mkv"):
        _text(folder / name, "la")
    (folder / "album").symlink_to(out.parent)
    summary = manifest_of_folder(folder, out)
    assert summary.others == {".mkv": 2, ".jpg": 1, "without a suffix": 1, "links to folders": 1}
    assert "passed over  5 that are neither audio nor text: 2 .mkv, " in str(summary)
