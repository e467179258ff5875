import json
import os
import shutil

import pytest

from megatron_music.errors import InputError
from megatron_music.evaluation.songs.inputs import Labelled, read_prompt, songs_in
from megatron_music.evaluation.songs.scores import read_scores
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.songbook import render_songbook


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("440\n")
    return folder


def found(folder, **options):
    return {
        song.name: {track: path.name for track, path in song.tracks.items()} for song in songs_in(folder, **options)
    }


def test_the_names_that_generate_and_people_give(tmp_path):
    touch(tmp_path, "01/mix.wav", "01/vocals.wav", "01/accompaniment.wav", "01/song.json")
    touch(
        tmp_path, "a.mp3", "a.vocals.mp3", "a.instrumental.mp3", "a.txt", "b/c.flac", "b/c.f0", "d.f0.txt", "e/f0.txt"
    )
    touch(tmp_path, ".hidden/x.wav", "notes.txt", "a.drums.mp3", "rejects.parquet")
    assert found(tmp_path) == {
        "01": {"mix": "mix.wav", "vocals": "vocals.wav", "accompaniment": "accompaniment.wav"},
        "a": {"mix": "a.mp3", "vocals": "a.vocals.mp3", "accompaniment": "a.instrumental.mp3"},
        "b/c": {"mix": "c.flac", "f0": "c.f0"},
        "d": {"f0": "d.f0.txt"},
        "e": {"f0": "f0.txt"},
    }
    songs = {song.name: song for song in songs_in(tmp_path)}
    assert songs["01"].sidecars.keys() == {".json"} and songs["a"].sidecars.keys() == {".txt"}
    assert songs["b/c"].file == "b/c.flac" and songs["b/c"].heard.name == "c.flac" and songs["d"].heard is None


def test_one_song_folders_of_f0_files_and_of_vocals(tmp_path):
    song = touch(tmp_path / "song", "mix.wav", "vocals.wav", "song.json")
    assert found(song) == {"song": {"mix": "mix.wav", "vocals": "vocals.wav"}}
    assert songs_in(song)[0].sidecars.keys() == {".json"}
    values = touch(tmp_path / "f0", "a.txt", "b/c.csv")
    assert found(values) == {"a": {"f0": "a.txt"}, "b/c": {"f0": "c.csv"}}
    vocals = touch(tmp_path / "vocals", "a.wav", "b.mix.wav")
    assert found(vocals, plain="vocals") == {"a": {"vocals": "a.wav"}, "b": {"mix": "b.mix.wav"}}


def test_a_second_file_of_a_track_is_passed_over_and_told(tmp_path):
    (song,) = songs_in(touch(tmp_path, "a.mp3", "a.wav"))
    assert song.tracks["mix"].name == "a.wav"
    assert song.problems == ("a.mp3 is passed over: a.wav is the mix too",)


def test_names_are_paired_as_manifest_pairs_them(tmp_path):
    touch(
        tmp_path,
        "E\u0301te\u0301.MP3",
        "\u00e9t\u00e9.Vocals.mp3",
        "\u00c9T\u00c9.f0",
        "\u00c9t\u00e9.TXT",
        "a.wav",
        "A.wav",
        "A.LRC",
    )
    songs = {song.name: song for song in songs_in(tmp_path)}
    assert songs.keys() == {"E\u0301te\u0301", "a", "A"}
    summer = songs["E\u0301te\u0301"]
    assert summer.tracks.keys() == {"mix", "vocals", "f0"} and summer.sidecars.keys() == {".txt"}
    assert songs["A"].sidecars.keys() == {".lrc"} and not songs["a"].sidecars
    assert songs["a"].problems == ("is another song than A; texts are taken if they are spelled like it",)


def test_folders_without_songs_are_told(tmp_path):
    for name, message in (("nowhere", "no such folder"), ("a.wav", "is a file"), ("empty", "holds no songs")):
        touch(tmp_path, "a.wav", "empty/readme.md")
        with pytest.raises(InputError, match=message):
            songs_in(tmp_path / name)


def test_what_generate_says_of_a_song(tmp_path):
    record = {
        "request": {
            "tags": "folk  piano",
            "lyrics": ["[verse]\nla la\n\n", "[chorus]\nlo\n\n", "[outro]\nnot sung\n\n"],
        },
        "frames": 200,
        "segments": [
            {"text": "[verse]\nla la\n\n", "start_frame": 0, "end_frame": 150},
            {"text": "[Chorus 1]\nlo\n\n", "start_frame": 150, "end_frame": 200},
        ],
    }
    touch(tmp_path, "s/mix.wav")
    (tmp_path / "s" / "song.json").write_text(json.dumps(record))
    (song,) = songs_in(tmp_path)
    prompt, problems = read_prompt(song, 4.0)
    assert (prompt.lyrics, prompt.tags, prompt.language, problems) == ("la la\nlo", "folk piano", None, [])
    assert prompt.sections == (Labelled("verse", 0.0, 3.0), Labelled("chorus", 3.0, 4.0))


def test_what_texts_and_a_manifests_fields_say(tmp_path):
    touch(tmp_path, "a.wav")
    (tmp_path / "a.lrc").write_text("[00:01.00]one\n[00:02.00]two\n")
    (tmp_path / "a.tags.txt").write_text("rock\n")
    msa = [{"start": 0, "end": 9, "label": "Verse 1"}, {"start": 9, "end": 99, "label": "chorus"}, {"label": 3}, 4]
    (tmp_path / "a.json").write_text(json.dumps({"language": "en", "genres": "folk", "msa": msa}))
    (song,) = songs_in(tmp_path)
    prompt, problems = read_prompt(song, 20.0)
    assert (prompt.lyrics, prompt.tags, prompt.language, problems) == ("one\ntwo", "rock", "en", [])
    assert prompt.sections == (Labelled("verse", 0.0, 9.0), Labelled("chorus", 9.0, 20.0))


def test_odd_texts_of_segments_have_no_label(tmp_path):
    touch(tmp_path, "a.wav")
    texts = ["[00:01.00]", "", None, "la", "[chorus]\nlo"]
    segments = [{"text": text, "start_frame": at, "end_frame": at + 1} for at, text in enumerate(texts)]
    (tmp_path / "a.json").write_text(json.dumps({"frames": 5, "segments": segments}))
    prompt, problems = read_prompt(songs_in(tmp_path)[0], 5.0)
    assert (prompt.lyrics, prompt.sections, problems) == ("la\nlo", (Labelled("chorus", 4.0, 5.0),), [])
    (tmp_path / "a.json").write_text(json.dumps({"request": {"lyrics": "[verse]\nla la"}}))
    assert read_prompt(songs_in(tmp_path)[0], 5.0)[0].lyrics == "la la"


def test_names_in_any_script_are_songs_and_those_in_none_are_told(tmp_path):
    assert found(touch(tmp_path, "茉莉花/mix.wav", "é\u0301 🎵.mp3")).keys() == {"茉莉花", "é\u0301 🎵"}
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    with pytest.raises(InputError, match="caf\ufffd.txt: has a name that is not UTF-8; rename it") as refused:
        songs_in(tmp_path)
    str(refused.value).encode()


@pytest.mark.parametrize("content", ["{", "[1]", '{"segments": 3, "request": [], "msa": 1, "frames": "x"}', "\udcff"])
def test_fields_that_can_not_be_used_stop_nothing(tmp_path, content):
    touch(tmp_path, "a.wav")
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    prompt, problems = read_prompt(songs_in(tmp_path)[0], 20.0)
    assert prompt.sections == () and len(problems) == (0 if "segments" in content else 1)


def test_scores_of_other_programs(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("system,song,PQ,clamp3,other\nours,a/b,7.5,,x\nours,c,,0.25,\n")
    assert read_scores(path) == {("ours", "a/b"): {"audiobox_quality": 7.5}, ("ours", "c"): {"clamp3_score": 0.25}}
    for text, message in (
        (
            "song,PQ\na,1\n",
            "has the columns song, PQ; give the columns system, song and some of CE, CU, PC, PQ, clamp3",
        ),
        ("system,song,PQ\nours,a,high\n", "line 2: PQ: 'high' is no number"),
        ("system,song,PQ\nours,a,1\nours,a,2\n", "line 3: names ours/a a second time"),
        ("", "has the columns of none"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_scores(path)


def test_songs_of_the_songbook_come_with_their_words(repository, tmp_path):
    (tmp_path / "book").mkdir()
    shutil.copy(repository / "examples" / "songbook" / "row_your_boat.abc", tmp_path / "book")
    render_songbook(tmp_path / "book", tmp_path / "songs", processes=1)
    [written] = read_manifest(tmp_path / "songs" / "manifest.jsonl")
    [song] = songs_in(tmp_path / "songs")
    prompt, problems = read_prompt(song, written.duration_s)
    assert problems == []
    assert prompt.lyrics.splitlines() == [line["text"] for line in written.extra["lines"]]
    assert (prompt.tags, prompt.language) == (written.genres, "en")
    assert [(one.label, one.start_s, one.end_s) for one in prompt.sections] == [
        (one["label"], one["start"], one["end"]) for one in written.structure
    ]
