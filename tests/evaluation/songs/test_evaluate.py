"""Folders of songs from end to end, broken ones among them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import soundfile
from audio_networks import write_clap, write_classifier
from deadly_songs import measure as deadly
from tiny_whisper import write_whisper

from megatron_music.errors import InputError
from megatron_music.evaluation.result import Evaluation
from megatron_music.evaluation.songs import song as one_song
from megatron_music.evaluation.songs.evaluate import Options, evaluate_songs, refuse_unreadable, summary
from megatron_music.evaluation.songs.inputs import songs_in
from megatron_music.evaluation.songs.networks import Named

RATE = 16_000


def noise(seconds, channels=1, level=0.1):
    return np.random.default_rng(0).normal(0, level, (round(seconds * RATE), channels)).astype(np.float32)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """Broken, cut, silent, empty, of two samples, mono, of eight channels, of ten minutes; and two f0 files."""
    folder = tmp_path_factory.mktemp("troubled")
    (folder / "broken.wav").write_bytes(b"RIFF, or so it says")
    soundfile.write(folder / "cut.flac", noise(5), RATE)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:20_000])
    soundfile.write(folder / "silent.wav", np.zeros((RATE * 20, 2)), RATE)
    soundfile.write(folder / "empty.wav", np.zeros((0, 1)), RATE)
    soundfile.write(folder / "two.wav", np.array([0.5, -0.5]), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "mono.wav", noise(5), RATE)
    soundfile.write(folder / "eight.wav", noise(5, 8), RATE)
    with soundfile.SoundFile(folder / "long.wav", "w", 8_000, 2) as file:
        for _ in range(60):
            file.write(noise(5, 2))
    (folder / "film.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    stems = folder / "stems"
    stems.mkdir()
    soundfile.write(stems / "vocals.wav", 0 * noise(5), RATE)
    soundfile.write(stems / "accompaniment.wav", noise(8), RATE)
    (stems / "song.json").write_text("{")
    (folder / "sung.f0").write_text("220\n" * 4 + "0\n" + "440\n" * 4)
    (folder / "words.f0").write_text("la\n")
    return folder


@pytest.fixture(scope="module")
def evaluated(troubled, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return out, evaluate_songs([troubled], out, Options(processes=2))


def test_each_problem_is_named_and_nothing_is_lost(evaluated, troubled):
    out, evaluation = evaluated
    (system,) = evaluation.systems
    songs = {song.name: song for song in system.songs}
    assert set(songs) == {
        "broken", "cut", "silent", "empty", "two", "nan", "mono", "eight", "long", "film", "stems", "sung", "words"
    }  # fmt: skip
    problems = {name: " | ".join(song.problems) for name, song in songs.items()}
    for name, words in {
        "broken": "mix: can't be read as audio",
        "cut": "mix: ends after 0.51 of the 5.00 s that it announces",
        "silent": "is silent: it has no loudness",
        "empty": "mix: holds no samples",
        "two": "is shorter than 16 s: its structure is not looked at",
        "nan": "mix: holds samples that are not finite numbers",
        "mono": "is shorter than 16 s: its structure is not looked at",
        "eight": "is shorter than 16 s: its structure is not looked at",
        "film": "mix: can't be read as audio",
        "words": "f0: 'la' is not one number",
    }.items():
        assert words in problems[name], name
    for words in ("are silent", "vocals last 5.0 s and the accompaniment 8.0 s", "no note is held", "is not JSON"):
        assert words in problems["stems"]
    assert songs["sung"].measures["vocal_range"] == 12.0 and problems["sung"] == ""
    assert songs["silent"].measures == {"duration": 20.0, "clipped": 0.0, "silence": 100.0}
    assert songs["long"].measures["duration"] == pytest.approx(600.0) and "loudness" in songs["long"].measures
    assert songs["two"].measures["duration"] == 2 / RATE
    mono, eight = songs["mono"].measures, songs["eight"].measures
    assert eight["loudness"] - mono["loudness"] == pytest.approx(10 * np.log10(8), abs=0.2)
    assert Evaluation.read(out).systems[0].songs == system.songs
    assert (out / "report" / "report.html").is_file() and (out / "report" / "songs.csv").is_file()
    refuse_unreadable(evaluation)


def test_what_is_missing_is_told_with_the_way_to_get_it(evaluated):
    missing = {one.measure: one for one in evaluated[1].missing}
    networks = {"word_error", "clap_score", "frechet_distance", "kl_divergence"}
    assert networks | {"audiobox_enjoyment", "clamp3_score"} <= set(missing)
    assert "--recogniser" in missing["word_error"].how and "--embedding" in missing["clap_score"].how
    name = evaluated[1].systems[0].name
    assert missing["vocal_range"].why == f"10 of 13 songs of {name} have neither vocals nor an f0 file"
    shown = summary(evaluated[1])
    assert "missing: word error rate: no speech recogniser was named; --recogniser FOLDER" in shown
    assert "do not follow listeners" in shown and "problems: " in shown


def test_finished_songs_are_kept_and_changed_ones_measured_again(troubled, evaluated, monkeypatch):
    out, before = evaluated
    measured = []
    original = one_song.measured
    monkeypatch.setattr(one_song, "measured", lambda song, pyin: measured.append(song.name) or original(song, pyin))
    (troubled / "words.f0").write_text("220\n" * 4)
    after = evaluate_songs([troubled], out, Options(processes=1))
    assert measured == ["words"]
    songs, earlier = ({song.name: song for song in one.systems[0].songs} for one in (after, before))
    assert songs.pop("words").measures["vocal_range"] == 0.0 and earlier.pop("words").measures == {}
    assert songs == earlier


def test_a_damaged_note_of_a_song_is_made_again(tmp_path):
    (tmp_path / "a.f0").write_text("220\n" * 4)
    job = one_song.Job.of(songs_in(tmp_path)[0], tmp_path)
    found = one_song.measure(job)
    job.kept.write_text("{")
    assert one_song.measure(job) == found == one_song.Found(**json.loads(job.kept.read_text()))


def test_a_song_that_kills_its_worker_is_told_and_tried_again_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_music.evaluation.songs.evaluate.measure", deadly)
    monkeypatch.setattr("megatron_music.evaluation.songs.evaluate.write_report", lambda *_: None)  # not what is tested
    (tmp_path / "songs").mkdir()
    for name in ("a", "deadly"):
        (tmp_path / "songs" / f"{name}.f0").write_text("220\n" * 4)

    def evaluate():
        (system,) = evaluate_songs([tmp_path / "songs"], tmp_path / "out", Options(processes=2)).systems
        return {song.name: (song.measures.get("vocal_range"), song.problems) for song in system.songs}

    told = "a worker process was killed while it measured this song; it may have run out of memory"
    assert evaluate() == {"a": (0.0, []), "deadly": (None, [told])}
    (tmp_path / "songs" / "spared").touch()
    assert evaluate() == {"a": (0.0, []), "deadly": (0.0, [])}


def test_what_is_no_number_is_a_problem_and_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_music.evaluation.songs.evaluate.write_report", lambda *_: None)  # not what is tested
    monkeypatch.setattr(one_song, "voice_measures", lambda _: {"vocal_range": float("nan"), "lowest_note": 57.0})
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "a.f0").write_text("220\n")
    (system,) = evaluate_songs([tmp_path / "songs"], tmp_path / "out", Options(processes=1)).systems
    assert system.songs[0].measures == {"lowest_note": 57.0}
    assert system.songs[0].problems == ["vocal_range is nan: that is no result"]


def test_songs_are_measured_again_once_librosa_is_installed(tmp_path, monkeypatch):
    def kept(version):
        one_song._programs.cache_clear()
        monkeypatch.setattr(one_song, "version", version)
        return one_song.Job.of(songs_in(tmp_path)[0], tmp_path).kept

    def missing(name):
        raise PackageNotFoundError(name)

    (tmp_path / "a.f0").write_text("220\n" * 4)
    names = [kept(version) for version in (missing, lambda _: "0.10", lambda _: "0.11", missing)]
    one_song._programs.cache_clear()
    assert len(set(names[:3])) == 3 and names[0] == names[3]


def test_a_killed_run_goes_on(tmp_path):
    songs = tmp_path / "songs"
    songs.mkdir()
    for number in range(12):
        (songs / f"{number:02d}.f0").write_text("220\n" * 4)
        soundfile.write(songs / f"{number:02d}.wav", noise(3), RATE)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "megatron_music", "evaluate", "songs", str(songs), "--out", str(out)]
    process = subprocess.Popen([*command, "--processes", "1"], stderr=subprocess.PIPE)
    while process.poll() is None and len(list(out.glob(".songs/*.json"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob(".songs/*.json")}
    assert 3 <= len(kept) < 12 and not (out / "evaluation.json").exists()
    evaluation = evaluate_songs([songs], out, Options(processes=1))
    assert len(evaluation.systems[0].values("vocal_range")) == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_several_systems_with_networks_and_other_programs_scores(tmp_path, capsys):
    for system in ("a", "b"):
        folder = tmp_path / system / "songs" / "0"
        folder.mkdir(parents=True)
        soundfile.write(folder / "mix.wav", noise(25) * (1 if system == "a" else 0.1), RATE)
        record = {"request": {"tags": "folk piano", "lyrics": ["[verse]\nla la\n\n"]}}
        (folder / "song.json").write_text(json.dumps(record))
    (tmp_path / "scores.csv").write_text("system,song,CE,clamp3\na/songs,0,6.5,0.25\n")
    named = Named(
        recogniser=write_whisper(tmp_path / "whisper"),
        embedding=write_clap(tmp_path / "clap"),
        classifier=write_classifier(tmp_path / "classifier"),
        reference=tmp_path / "reference",
    )
    shutil.copytree(tmp_path / "a" / "songs", tmp_path / "reference")
    (tmp_path / "reference" / "1").mkdir()
    (tmp_path / "reference" / "1" / "mix.wav").write_bytes(b"junk")
    folders = [tmp_path / "a" / "songs", tmp_path / "b" / "songs"]
    options = Options(named=named, processes=1, scores=tmp_path / "scores.csv")
    evaluation = evaluate_songs(folders, tmp_path / "out", options)
    told = f"left out of the reference set: {tmp_path}/reference/1/mix.wav: can't be read as audio"
    assert [line.startswith(told) for line in capsys.readouterr().err.splitlines()].count(True) == 1
    a, b = evaluation.systems
    assert (a.name, b.name) == ("a/songs", "b/songs")
    assert a.measures["frechet_distance"] == pytest.approx(0, abs=1e-6) and a.measures["kl_divergence"] == 0
    assert b.measures["frechet_distance"] > 1e-6 and b.measures["kl_divergence"] > 0
    assert (a.songs[0].measures["audiobox_enjoyment"], a.songs[0].measures["clamp3_score"]) == (6.5, 0.25)
    for song in [*a.songs, *b.songs]:
        assert song.problems == [] and abs(song.measures["clap_score"]) <= 1
        assert song.measures["word_error"] >= 0 and len(song.details["lyrics"]) == 1
    assert {one.measure for one in evaluation.missing} == {"vocal_range", "vocal_to_accompaniment", "chorus_return"}


def test_bad_input_is_told_before_anything_is_measured(tmp_path, troubled, evaluated):
    out = tmp_path / "out"
    for folders, to, options, message in (
        ([tmp_path / "nowhere"], out, Options(), "no such folder"),
        ([troubled, troubled], out, Options(), "is named twice"),
        ([troubled], troubled / "out", Options(), "lies in .* whose songs are measured"),
        (
            [evaluated[0] / "report"],
            troubled / "out",
            Options(named=Named(reference=troubled)),
            "lies in .* whose songs are measured",
        ),
        ([troubled], out, Options(plain="drums"), "'drums' is no track"),
        ([troubled], out, Options(named=Named(recogniser=str(tmp_path / "x"))), "no such file or folder"),
        ([troubled], out, Options(named=Named(reference=tmp_path / "x")), "no such folder"),
        ([troubled], out, Options(named=Named(embedding="x", device="foo")), "--device: foo is not there"),
        ([troubled], tmp_path, Options(), "exists and is no evaluation"),
    ):
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match=message):
            evaluate_songs(folders, to, options)
    (tmp_path / "scores.csv").write_text("system,song,PQ\nours,a,1\n")
    with pytest.raises(InputError, match="has a song 'a' of 'ours', which there is not"):
        evaluate_songs([troubled], out, Options(scores=tmp_path / "scores.csv"))


def test_a_system_of_which_nothing_can_be_read_is_an_error(tmp_path):
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "a.wav").write_bytes(b"x")
    evaluation = evaluate_songs([tmp_path / "songs"], tmp_path / "out", Options(processes=1))
    with pytest.raises(InputError, match=r"songs: no song of it can be read \(mix: can't be read as audio"):
        refuse_unreadable(evaluation)
    assert Evaluation.read(tmp_path / "out").systems[0].songs[0].problems
