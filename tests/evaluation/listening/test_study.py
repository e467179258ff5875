"""A listening test's folder: what raters hear, in which order, and what becomes of their answers."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from megatron_music.audio.files import write_audio
from megatron_music.audio.loudness import integrated_loudness
from megatron_music.cli import app
from megatron_music.errors import InputError
from megatron_music.evaluation.listening.answers import (
    AlreadyAnswered,
    AnswerLine,
    answers_of,
    append_answer,
    read_answers,
)
from megatron_music.evaluation.listening.study import Clip, Pair, Study, open_study, turns
from megatron_music.evaluation.result import Evaluation
from megatron_music.parallel import Workers


def tone(path, gain, seconds=1.0, rate=16000, pitch=440, channels=1):
    samples = gain * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate).astype(np.float32)
    write_audio(path, np.stack([samples] * channels), rate)


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """Three systems: ``ours`` and ``theirs`` share songs, ``others`` has one of another name; one song is broken."""
    root = tmp_path_factory.mktemp("systems")
    for n in range(3):
        tone(root / "ours" / f"{n}" / "mix.wav", 0.9, rate=44100, channels=2)
        tone(root / "ours" / f"{n}" / "vocals.wav", 0.5)
        tone(root / "theirs" / f"{n}.mp3", 0.02 * (n + 1), rate=16000 + 8000 * n)
    (root / "ours" / "0" / "song.json").write_text(
        json.dumps({"request": {"lyrics": ["[verse]\nla\n\n", "[chorus]\nsi"]}})
    )
    (root / "theirs" / "1.lrc").write_bytes(b"\xef\xbb\xbf[00:01.50]first line\r\n[00:02.00]second")
    (root / "theirs" / "2.txt").write_bytes(b"[verse]\ncaf\xe9")
    (root / "theirs" / "9.mp3").write_text("junk")
    tone(root / "ours" / "9.wav", 0.1)
    (root / "others").mkdir()
    write_audio(root / "others" / "else.ogg", np.zeros(8000, np.float32), 16000)
    return root


@pytest.fixture(scope="module")
def made(systems, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("made") / "test", []
    study = open_study(folder, [systems / name for name in ("ours", "theirs", "others")], say=said.append)
    return folder, study, said


def test_songs_of_one_name_are_paired_and_the_broken_one_is_told(made, systems):
    folder, study, said = made
    clips = {clip.token: (clip.system, clip.song) for clip in study.clips}
    pairs = [(clips[pair.first], clips[pair.second]) for pair in study.pairs]
    assert [pair for pair in pairs if "others" not in (pair[0][0], pair[1][0])] == [
        (("ours", str(n)), ("theirs", str(n))) for n in range(3)
    ]
    assert len(pairs) == 5  # the two with the one song of the third system, drawn at random
    assert {pair[1] for pair in pairs[3:]} == {("others", "else")}
    assert said[:2] == [
        f"{one} and others have no song of one name; theirs are paired at random" for one in ("ours", "theirs")
    ]
    assert said[2].startswith(f"left out: {systems / 'theirs' / '9.mp3'}: can't be read as audio")
    assert "2.txt: is not UTF-8 text (byte 11)" in said[3] and "no lyrics of it" in said[3] and len(said) == 4
    assert json.loads((folder / "study.json").read_text())["systems"] == {
        name: str(systems / name) for name in ("ours", "theirs", "others")
    }


def test_clips_are_alike_in_all_but_their_sound(made):
    folder, study, _ = made
    assert {path.name for path in (folder / "clips").iterdir()} == {f"{clip.token}.flac" for clip in study.clips}
    loudness = {}
    for clip in study.clips:
        path = folder / "clips" / f"{clip.token}.flac"
        about = soundfile.info(path)
        assert (about.samplerate, about.channels, about.subtype, about.format) == (44100, 2, "PCM_16", "FLAC")
        samples, rate = soundfile.read(path)
        loudness[clip.system, clip.song] = integrated_loudness(samples.T, rate)
        assert b"ours" not in path.read_bytes() and b"theirs" not in path.read_bytes()
    assert loudness.pop(("others", "else")) == -np.inf
    assert study.lufs == -16 and all(abs(found + 16) < 0.1 for found in loudness.values())


def test_lyrics_come_from_beside_the_song(made):
    lyrics = {(clip.system, clip.song): clip.lyrics for clip in made[1].clips}
    assert lyrics["ours", "0"] == "[verse]\nla\n\n[chorus]\nsi" and lyrics["theirs", "1"] == "first line\nsecond"
    asked = {turn.a.song: turn for turn in turns(made[1], "ann") if "others" not in (turn.a.system, turn.b.system)}
    assert asked["0"].lyrics == [lyrics["ours", "0"]] and "lyrics following" in asked["0"].aspects
    assert asked["2"].lyrics == [] and "lyrics following" not in asked["2"].aspects


def test_loudness_can_be_left_as_it_is_and_goes_down_for_what_would_clip(systems, tmp_path):
    study = open_study(tmp_path / "left", [systems / "ours", systems / "theirs"], match_loudness=False, say=str)
    clips = {(clip.system, clip.song): tmp_path / "left" / "clips" / f"{clip.token}.flac" for clip in study.clips}
    assert study.lufs is None
    assert np.abs(soundfile.read(clips["ours", "0"])[0]).max() == pytest.approx(0.9, abs=0.01)
    assert np.abs(soundfile.read(clips["theirs", "0"])[0]).max() == pytest.approx(0.02, abs=0.005)
    # A click is loud at its peak alone: all songs go down for it, as far as that goes.
    click = np.zeros(44100, np.float32)
    click[5000:5100] = 0.9
    write_audio(tmp_path / "clicks" / "0.wav", click, 44100)
    study = open_study(tmp_path / "lower", [systems / "ours", tmp_path / "clicks"], say=pytest.fail)
    assert -23 < study.lufs < -16
    for clip in study.clips:
        samples, rate = soundfile.read(tmp_path / "lower" / "clips" / f"{clip.token}.flac")
        assert integrated_loudness(samples.T, rate) == pytest.approx(study.lufs, abs=0.1)
    click[5020:] = 0
    write_audio(tmp_path / "clicks" / "0.wav", click, 44100)
    said = []
    study = open_study(tmp_path / "clicking", [systems / "ours", tmp_path / "clicks"], say=said.append)
    assert study.lufs == -23 and len(said) == 1 and " dB below the others: it would clip" in said[0]
    with pytest.raises(InputError, match="holds a test with loudness matched; ask for the same, or name a new folder"):
        open_study(tmp_path / "clicking", match_loudness=False)


def test_a_test_goes_on_and_is_not_mixed_with_another(made, systems, tmp_path):
    folder, study, _ = made
    assert open_study(folder) == open_study(folder, [systems / name for name in study.systems], seed=5) == study
    with pytest.raises(InputError, match="holds a test of .*ours, .*theirs, .*others; name these, or a new folder"):
        open_study(folder, [systems / "ours", systems / "theirs"])
    for names, line in (
        ([], "holds no listening test, and a new one needs two systems"),
        (["ours"], "holds no listening test, and a new one needs two systems"),
        (["ours", "ours"], "is named like .*ours, and systems go by their folders' names; rename one"),
        (["ours", "nowhere"], "nowhere: no such folder; name a folder of songs"),
    ):
        with pytest.raises(InputError, match=line):
            open_study(tmp_path / "new", [systems / name for name in names])
        assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="test: lies in .*theirs, whose songs are heard; name another folder with"):
        open_study(systems / "theirs" / "test", [systems / "ours", systems / "theirs"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all of it")
    with pytest.raises(InputError, match="thesis: holds no study.json but chapter.txt; name a new folder"):
        open_study(tmp_path / "thesis", [systems / "ours", systems / "theirs"])
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_test_whose_making_was_killed_is_made_anew(systems, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0.flac").write_text("half")
    litter = tmp_path / ".study.json.abcd1234"
    litter.mkdir()
    (litter / "study.json").write_text("{")
    study = open_study(tmp_path, [systems / "ours", systems / "theirs"], say=str)
    assert {path.stem for path in (tmp_path / "clips").iterdir()} == {clip.token for clip in study.clips}
    assert not litter.exists()


def planned(counts):
    """A study with so many pairs of every two systems."""
    clips, pairs = {}, []
    for (one, other), count in counts.items():
        for n in range(count):
            for name in (one, other):
                clips.setdefault((name, n), Clip(token=f"{name}{n}", system=name, song=str(n), lyrics=""))
            pairs.append(Pair(token=f"{one}{other}{n}", first=f"{one}{n}", second=f"{other}{n}"))
    return Study(seed=0, lufs=None, systems={}, clips=list(clips.values()), pairs=pairs)


def test_every_beginning_is_balanced_over_systems_and_sides():
    study = planned({("x", "y"): 8, ("x", "z"): 8, ("y", "z"): 8})
    for rater in ("ann", "bob", "cho"):
        order = turns(study, rater)
        assert Counter(turn.pair.token for turn in order) == Counter(pair.token for pair in study.pairs)
        for end in range(1, 25):
            met = Counter(frozenset((turn.a.system, turn.b.system)) for turn in order[:end])
            counts = [met[frozenset(pair)] for pair in ("xy", "xz", "yz")]
            assert max(counts) - min(counts) <= 1
        assert {(one, other): sum((t.a.system, t.b.system) == (one, other) for t in order)
                for one in "xyz" for other in "xyz" if one != other} == dict.fromkeys(
                    [("x", "y"), ("x", "z"), ("y", "x"), ("y", "z"), ("z", "x"), ("z", "y")], 4)  # fmt: skip


def test_the_order_is_the_raters_own_and_always_the_same():
    study = planned({("x", "y"): 10, ("x", "z"): 3})
    order = [(turn.pair.token, turn.a.token) for turn in turns(study, "ann")]
    assert order == [(turn.pair.token, turn.a.token) for turn in turns(study, "ann")]
    assert order != [(turn.pair.token, turn.a.token) for turn in turns(study, "bob")]
    assert len({turn.pair.token for turn in turns(study, "ann")}) == 13


def line(study, rater, number, a_first=True, **choices):
    pair = study.pairs[number]
    a, b = (pair.first, pair.second) if a_first else (pair.second, pair.first)
    return AnswerLine(rater=rater, pair=pair.token, a=a, b=b, choices=choices, heard_s={"a": 2.0, "b": 1.5},
                      time="2026-01-01T00:00:00+00:00")  # fmt: skip


def test_the_side_of_a_song_does_not_matter_to_what_was_said(tmp_path):
    study = planned({("x", "y"): 2})
    append_answer(tmp_path, line(study, "ann", 0, True, overall="a", musicality="tie"))
    append_answer(tmp_path, line(study, "ann", 1, False, overall="a", musicality="b"))
    first, second = answers_of(study, read_answers(tmp_path))
    assert (first.first, first.second, first.preferences) == ("x", "y", {"overall": 1, "musicality": 0})
    assert (second.first, second.second_song, second.preferences) == ("x", "1", {"overall": -1, "musicality": 1})
    other = planned({("x", "z"): 2})
    with pytest.raises(InputError, match="ann judged a pair that is not in this test; take the line out"):
        answers_of(other, read_answers(tmp_path))


def test_half_an_answer_is_cut_off_and_the_first_counts(tmp_path):
    study = planned({("x", "y"): 3})
    append_answer(tmp_path, line(study, "ann", 0, overall="a"))
    whole = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(whole + whole[:40])
    assert len(read_answers(tmp_path)) == 1
    append_answer(tmp_path, line(study, "ann", 1, overall="b"))
    assert [answer.pair for answer in read_answers(tmp_path)] == ["xy0", "xy1"]
    with pytest.raises(AlreadyAnswered):
        append_answer(tmp_path, line(study, "ann", 1, overall="a"))
    assert read_answers(tmp_path)[1].choices == {"overall": "b"}
    (tmp_path / "answers.jsonl").write_bytes(b"junk\n" + whole)
    with pytest.raises(InputError, match="answers.jsonl: line 1: is not JSON; take the line out"):
        read_answers(tmp_path)
    changed = json.loads(whole) | {"choices": {"overall": "c"}}
    (tmp_path / "answers.jsonl").write_text(json.dumps(changed) + "\n")
    with pytest.raises(InputError, match="line 1: choices.overall: found 'c'; choose 'a', 'b' or 'tie'"):
        read_answers(tmp_path)


def test_processes_that_answer_at_a_time_lose_nothing(tmp_path):
    study = planned({("x", "y"): 30})
    lines = [line(study, rater, number, overall="tie") for number in range(30) for rater in ("ann", "bob")]
    with Workers(2) as workers:
        assert list(workers.map(partial(append_answer, tmp_path), lines)) == [None] * 60
    found = Counter((answer.rater, answer.pair) for answer in read_answers(tmp_path))
    assert found == Counter((rater, f"xy{n}") for rater in ("ann", "bob") for n in range(30))


def test_results_are_printed_and_written_for_the_report(made, tmp_path):
    folder, study, _ = made
    empty = CliRunner().invoke(app, ["evaluate", "listen", "--results", str(folder)])
    assert isinstance(empty.exception, InputError) and "holds no answers yet; listen first" in str(empty.exception)
    for rater in ("ann", "bob"):
        for number in range(3):
            append_answer(folder, line(study, rater, number, rater == "ann", overall="a" if rater == "ann" else "b"))
    done = CliRunner().invoke(app, ["evaluate", "listen", "--results", str(folder)])
    assert done.exit_code == 0
    assert "6 answers by 2 raters: too few raters to say much about others" in done.output
    row = next(words.split() for words in done.output.splitlines() if words.startswith("ours"))
    assert row[:6] == ["ours", "theirs", "6", "0", "0", "100.0%"]
    assert "agreement unknown" in done.output  # nobody ever said anything else
    listening = Evaluation.read(folder).listening
    assert listening.scores["overall"] == {"ours": 1.0, "theirs": 0.0} and listening.aspects == ["overall"]
    both = CliRunner().invoke(app, ["evaluate", "listen"])
    assert isinstance(both.exception, InputError) and "needs --out or --results" in str(both.exception)
