"""The file of an evaluation: read as it was written, and refused in one line where it is none."""

import json

import numpy as np
import pytest

from megatron_music.errors import InputError
from megatron_music.evaluation import result
from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.listening.statistics import summarise
from megatron_music.evaluation.result import (
    Evaluation,
    Measure,
    Missing,
    Quartiles,
    SongResult,
    SystemResult,
    merge,
)

RANGE = Measure(title="vocal range", unit="semitones", better="higher", note="Of the separated vocal.")
ERROR = Measure(title="word error rate", better="lower")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Two measures, and none that other modules have registered."""
    monkeypatch.setattr(result, "_REGISTERED", {})
    result.register(vocal_range=RANGE, word_error_rate=ERROR)


def system(name="ours", folder="/songs/ours", **values):
    songs = [
        SongResult(name=f"song {n}", file=f"{n}.mp3", measures={"vocal_range": v}) for n, v in enumerate((12, 20.5, 9))
    ]
    return SystemResult(name=name, folder=folder, songs=songs, **values)


def test_what_is_missing_is_told_by_its_title_where_it_has_one():
    found = Evaluation.of([], [Missing(measure="word_error_rate", why="no ears", how="--recogniser")])
    assert found.missing_in_words() == ["missing: word error rate: no ears; --recogniser"]
    unnamed = Evaluation.of([], [Missing(measure="copying", why="no source", how="--reference")])
    assert unnamed.missing_in_words() == ["missing: copying: no source; --reference"]


@pytest.fixture
def evaluation():
    songs = system(
        measures={"word_error_rate": Interval(value=0.25, low=0.2, high=0.3)}, model={"losses": {"vocal": 2.5}}
    )
    return Evaluation.of([songs], [Missing(measure="word_error_rate", why="no recogniser", how="name one")] * 2)


def test_a_file_is_read_as_it_was_written(evaluation, tmp_path):
    evaluation.write(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path) == Evaluation.read(tmp_path / "evaluation.json") == evaluation
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["format"], written["version"]) == ("megatron-music evaluation", 1)
    assert written["systems"][0]["songs"][1]["measures"] == {"vocal_range": 20.5}
    assert written["systems"][0]["measures"] == {"word_error_rate": {"value": 0.25, "low": 0.2, "high": 0.3}}
    assert list(written["measures"]) == ["vocal_range", "word_error_rate"] and len(written["missing"]) == 1


def test_medians_and_quartiles_are_numpys(evaluation):
    ours = evaluation.system("ours")
    assert ours.quartiles("vocal_range") == Quartiles(low=10.5, median=12, high=16.25, count=3)
    assert ours.quartiles("word_error_rate") is None
    assert (ours.value("vocal_range"), ours.value("word_error_rate"), ours.value("else")) == (12, 0.25, None)
    values = np.random.default_rng(0).normal(size=50)
    found = Quartiles.of(values)
    assert [found.low, found.median, found.high] == np.percentile(values, (25, 50, 75)).tolist()


def change(content, *path, to):
    *parents, last = path
    for part in parents:
        content = content[part]
    if to is None:
        del content[last]
    else:
        content[last] = to


SONG = ("systems", 0, "songs", 1)


@pytest.mark.parametrize(
    ("path", "to", "line"),
    [
        (["format"], "other", "{file}: is no evaluation; name an evaluation.json that `evaluate` has written"),
        (["version"], 2, "{file}: has version 2 of the format, and this program reads 1; evaluate again"),
        (["version"], None, "{file}: has version None of the format, and this program reads 1; evaluate again"),
        ([*SONG, "measures", "vocal_range"], "9",
         "systems[0].songs[1].measures.vocal_range: found '9'; write a number"),
        ([*SONG, "measures", "vocal_range"], True, "found True; write a number"),
        ([*SONG, "measures", "vocal_range"], float("nan"), "found nan; write a finite number"),
        ([*SONG, "measures", "vocal_rage"], 3, "ours has 'vocal_rage', which is not among the measures"),
        ([*SONG, "file"], None, "systems[0].songs[1].file: missing field; add it"),
        ([*SONG, "problem"], [], "systems[0].songs[1].problem: unknown field; did you mean problems?"),
        ([*SONG, "problems"], "silent", "systems[0].songs[1].problems: found 'silent'; write a list"),
        ([*SONG, "name"], "song 0", "systems[0]: two songs are named 'song 0'; name them apart"),
        ([*SONG, "details"], {"a": [1, float("inf")]}, "details.a.list[1].float: found inf; write a finite"),
        (["systems", 0, "measures", "word_error_rate", "low"], 0.5, "low 0.5 is above high 0.3"),
        (["systems", 0, "measures", "word_error_rate", "high"], None, "an end is missing: write value, low and high"),
        (["systems", 0, "measures", "word_error_rate", "low"], "0.2", "low: found '0.2'; write a number"),
        (["systems", 0, "measures", "word_error_rate", "value"], float("inf"), "inf, 0.2 to 0.3, is not finite"),
        (["measures", "vocal_range", "better"], "louder", "found 'louder'; choose 'higher' or 'lower'"),
    ],
)  # fmt: skip
def test_what_is_no_evaluation_is_refused_in_one_line(evaluation, tmp_path, path, to, line):
    file = tmp_path / "evaluation.json"
    content = evaluation.model_dump(mode="json")
    change(content, *path, to=to)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        Evaluation.read(file)
    assert str(refused.value).startswith(str(file)) and line.format(file=file) in str(refused.value)


@pytest.mark.parametrize("text", ["[]", "3", "{}", "null"])
def test_other_json_is_no_evaluation(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(InputError, match="is no evaluation"):
        Evaluation.read(tmp_path)


def test_files_merge_and_folders_follow_them(tmp_path):
    for name in ("a", "b"):
        one = Evaluation.of(
            [system(name, folder=f"songs/{name}")], [Missing(measure="word_error_rate", why="w", how="h")]
        )
        one.write(tmp_path / name / "evaluation.json")
    Evaluation.of([system("here", folder="")]).write(tmp_path / "here.json")
    assert Evaluation.read(tmp_path / "here.json").systems[0].folder == str(tmp_path)
    merged = merge([tmp_path / "b", tmp_path / "a" / "evaluation.json"])
    folders = [(system.name, system.folder) for system in merged.systems]
    assert folders == [(name, str(tmp_path / name / "songs" / name)) for name in ("b", "a")]
    assert merged.measures == {"vocal_range": RANGE, "word_error_rate": ERROR} and len(merged.missing) == 1


def test_what_can_not_be_one_evaluation_is_refused_in_one_line(tmp_path, evaluation):
    evaluation.write(tmp_path / "one.json")
    with pytest.raises(InputError, match="two.json: a system 'ours' is in another file too; give one of them another"):
        evaluation.write(tmp_path / "two.json")
        merge([tmp_path / "one.json", tmp_path / "two.json"])
    with pytest.raises(InputError, match="measures.vocal_range: means vocal range .octaves. here and vocal range"):
        other = Measure(title="vocal range", unit="octaves")
        Evaluation(measures={"vocal_range": other}).write(tmp_path / "two.json")
        merge([tmp_path / "one.json", tmp_path / "two.json"])
    with pytest.raises(InputError, match="two.json: holds a listening test, and so does another file"):
        Evaluation(listening=summarise([], ["x", "y"], ["overall"])).write(tmp_path / "two.json")
        merge([tmp_path / "two.json", tmp_path / "two.json"])


def test_a_measure_has_one_meaning():
    result.register(vocal_range=RANGE)
    with pytest.raises(ValueError, match="'vocal_range' is registered with another meaning"):
        result.register(vocal_range=ERROR)
    with pytest.raises(ValueError, match="ours has 'loudness', which is not among the measures"):
        Evaluation.of([system(measures={"loudness": -14.0})])


def test_an_interval_of_no_numbers_gets_into_no_file():
    for value, low, high in ((np.nan, None, None), (0.5, 0.4, np.nan), (np.inf, 0.1, 0.2), (1.0, 2.0, 1.5)):
        found = Interval(value=value, low=low, high=high)
        with pytest.raises(ValueError, match="word_error_rate"):
            system(measures={"word_error_rate": found})
