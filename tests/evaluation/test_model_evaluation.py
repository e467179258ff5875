"""`evaluate model` as a whole: what is copied of the training songs, probes, and the file that the report reads."""

import json
import shutil

import numpy as np
import pytest
from planted_copies import SMALL, random_songs
from typer.testing import CliRunner

from megatron_music.cli import app
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.errors import InputError
from megatron_music.evaluation.bigram import BIGRAM_TOKENS
from megatron_music.evaluation.memorisation import samples
from megatron_music.evaluation.model import evaluate_model
from megatron_music.evaluation.model_evaluation import ModelRequest, model_evaluation
from megatron_music.evaluation.report.tables import measure_rows
from megatron_music.evaluation.result import Evaluation
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import Kind

SOA, EOA, EOD, MARKER = 301, 302, 300, 305


def write_documents(prefix, songs):
    """Lyrics-to-song documents of one segment each, every one with words of its own."""
    with IndexedWriter(prefix) as writer:
        for number, tracks_2T in enumerate(songs):
            audio = SMALL.ids(tracks_2T.T.ravel()[None])[0]
            text = [10 + number, 20 + number, 5]
            ids = np.concatenate([text, [SOA, MARKER], audio, [EOA, EOD]]).astype(np.int32)
            kinds = [Kind.TEXT] * 3 + [Kind.SPECIAL] * 2 + [Kind.VOCAL, Kind.ACCOMPANIMENT] * (len(audio) // 2)
            writer.add(ids, np.array([*kinds, Kind.SPECIAL, Kind.SPECIAL], np.uint8))
    return prefix


def write_song(folder, tracks, codec="embedded"):
    folder.mkdir(parents=True)
    codes = {name: [codes_T.tolist(), codes_T.tolist()] for name, codes_T in tracks.items()}
    (folder / "song.json").write_text(json.dumps({"codec": codec, "codes": codes}))


@pytest.fixture(scope="module")
def scene(write_model, tmp_path_factory):
    """A random model, two sources of songs, generated songs of which one copies, and labelled clips."""
    folder = tmp_path_factory.mktemp("scene")
    write_model(folder / "runs" / "hf", positions=256)
    trained = random_songs(6, 300, SMALL)
    write_documents(folder / "train", trained)
    write_documents(folder / "held_out", random_songs(4, 100, SMALL, seed=1))
    copied, fresh = trained[4][0][20:290], random_songs(1, 270, SMALL, seed=2)[0]
    write_song(folder / "songs" / "copied", {"vocals": copied, "accompaniment": fresh[0]})
    write_song(folder / "songs" / "fresh", {"mix": fresh[1]})
    write_song(folder / "songs" / "other", {"mix": fresh[1]}, codec="xcodec")
    write_song(folder / "songs" / "broken", {"mix": np.array([16, 3])})
    (folder / "songs" / "cut").mkdir()
    (folder / "songs" / "cut" / "song.json").write_text('{"codes"')
    lines = ["path,split,genre"]
    for number in range(40):
        high = number % 2
        np.save(folder / f"{number}.npy", np.random.default_rng(number).integers(8 * high, 8 + 8 * high, (1, 30)))
        lines.append(f"{number}.npy,{('train', 'valid', 'test', 'train')[number // 10]},{('low', 'high')[high]}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def found(scene):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "LEAST_TOKENS", 12)  # a random model ends its spans soon
        request = ModelRequest(
            scene / "train", scene / "held_out", songs=[scene / "songs"], probes=scene / "clips.csv", positions=600
        )
        evaluation = model_evaluation(scene / "runs" / "hf", request)
    evaluation.write(scene / "evaluation.json")
    return Evaluation.read(scene / "evaluation.json")


def test_generated_songs_that_copy_are_found_and_those_that_can_not_be_read_are_named(found):
    (system,) = found.systems
    songs = system.model["memorised_songs"]
    assert songs["samples"]["tracks"] == songs["samples"]["judged"] == 3
    assert songs["samples"]["exact"] == songs["samples"]["near"] == pytest.approx(1 / 3)
    assert songs["samples"]["near_tokens"] == pytest.approx(270 / 810)
    copy = {"sample": "copied", "sample_kind": "vocal", "source": "train", "document": 4, "kind": "vocal"}
    assert songs["samples"]["longest"] == 270
    assert songs["samples"]["longest_copy"] == copy | {"first_frame": 20, "distinct": 16}
    # Held-out songs have vocals and accompaniment, and no mix; they are shorter.
    assert songs["held_out"]["tracks"] == 2 and songs["held_out"]["tokens"] == 200 and songs["held_out"]["near"] == 0
    assert songs["samples"]["ngrams"]["8"] > 0.3 and songs["held_out"]["ngrams"]["8"] == 0
    assert len(songs["problems"]) == 3
    for name in ("broken/song.json", "cut/song.json: line 1", "other/song.json: codes: are xcodec's"):
        assert sum(name in problem for problem in songs["problems"]) == 1
    assert system.measures["songs_memorised_near"] == pytest.approx(1 / 3)
    assert system.measures["songs_memorised_longest"] == 270


def test_the_file_has_all_that_was_measured_and_the_report_shows_it(found):
    (system,) = found.systems
    assert system.name == "runs/hf"
    for key in ("audio_loss", "bigram_loss", "distinct_codes", "distinct_codes_sampled", "invalid_token_share"):
        assert isinstance(system.model[key], float | int)  # tools/quickstart.py reads them
    assert system.model["audio_positions_sampled"] >= 600 and set(system.model["losses"]) >= {"vocal", "accompaniment"}
    free = system.model["memorisation"]
    assert free["samples"]["tracks"] > 0 and free["samples"]["near"] == 0 and free["samples"]["longest"] < 12
    assert system.model["probes"]["tasks"]["genre"]["test"]["accuracy"] >= 0.8
    shown = {row.name for row in measure_rows(found)}
    assert shown >= {"audio_loss", "invalid_token_share", "memorised_near", "songs_memorised_exact"}
    assert "probe_genre_accuracy" in shown and {one.measure for one in found.missing} >= {"copying"}


def test_samples_that_are_too_short_are_missing_with_the_way_to_get_them(scene):
    request = ModelRequest(scene / "train", scene / "held_out", codec_weights=str(scene / "gone"), positions=60)
    evaluation = model_evaluation(scene / "runs" / "hf", request)
    (told,) = [one for one in evaluation.missing if one.measure == "memorisation"]
    assert told.why == "samples: none has 50 tokens a track" and "--positions" in told.how
    # The codec's weights that were named are looked at, and why they can't be used is told.
    (told,) = [one for one in evaluation.missing if one.measure == "silence"]
    assert str(scene / "gone") in told.why
    assert "memorised_near" not in evaluation.systems[0].measures


def test_the_bigram_is_not_fitted_on_more_than_memory_holds(scene, monkeypatch):
    fitted = []
    monkeypatch.setattr("megatron_music.evaluation.model.fit_bigram", lambda *given: fitted.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate_model(scene / "runs" / "hf", scene / "train", scene / "held_out", seed=3)
    assert [given[2:] for given in fitted] == [(BIGRAM_TOKENS, 3)]


def test_spans_are_taken_apart_into_tracks(scene):
    from megatron_music.generation.models import ModelFolder

    grammar = AudioGrammar(ModelFolder.open(scene / "runs" / "hf").vocabulary)
    both = np.random.default_rng(0).integers(0, 16, (2, 60))
    span = SMALL.ids(both.T.ravel()[None])[0].tolist()
    tracks = samples.tracks_of_spans([span[:-1], span[:90]], grammar)
    assert [(one.name, one.kind) for one in tracks] == [("sample 0", Kind.VOCAL), ("sample 0", Kind.ACCOMPANIMENT)]
    assert [one.codes_T.tolist() for one in tracks] == both[:, :59].tolist()


@pytest.mark.parametrize(
    "options, told",
    [
        (["--reference", "gone"], "no such file; build the source again"),
        (["--trained-on", "gone"], "no such file; build the source again"),
        (["--songs", "held_out.idx"], "held_out.idx: holds no song.json; name a folder of songs"),
        (["--songs", "songs/other"], "no song can be used"),
        (["--probes", "gone.csv"], "gone.csv: no such file"),
        (["--probes", "held_out.json"], "line 2: has"),
        (["--index", "evaluation.json"], "evaluation.json: is no index of a training corpus"),
        (["--index", "train.copies", "--trained-on", "held_out"], "is the index of train as it was then, not of"),
        (["--device", "foo"], "--device: foo is not there; choose cpu, or cuda on a machine with a GPU"),
    ],
)
def test_wrong_files_are_told_in_one_line_before_the_network_is_read(scene, found, monkeypatch, options, told):
    monkeypatch.setattr("megatron_music.generation.models.ModelFolder.network", lambda *_: 1 / 0)
    monkeypatch.chdir(scene)
    result = CliRunner().invoke(app, ["evaluate", "model", "runs/hf", "train", "held_out", *options])
    assert isinstance(result.exception, InputError) and told in str(result.exception)


@pytest.mark.parametrize(("tasks", "is_refused"), [(["residual"], True), (["residual", "lyrics_to_song"], False)])
def test_a_model_of_stage_2_is_refused(scene, tmp_path, tasks, is_refused):
    """It knows all ids of stage 1, and would be measured without a word."""
    model = tmp_path / "hf"
    shutil.copytree(scene / "runs" / "hf", model)
    sources = {task: {"task": task, "options": {}, "shares": {}} for task in tasks}
    (model / "documents.json").write_text(json.dumps({"context_tokens": 256, "sources": sources}))
    # The next thing that is looked at is a source that is not there.
    told = "hf: is of stage 2: it learned residual alone" if is_refused else "gone.bin: no such file"
    with pytest.raises(InputError, match=told):
        model_evaluation(model, ModelRequest(scene / "gone", scene / "held_out"))
