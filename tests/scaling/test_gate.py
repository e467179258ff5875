"""The gate on runs that were really trained: one that learned, one of shuffled codes, and runs that lack something."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gate_songs
import numpy as np
import pytest
import scaling_workers
import yaml
from scipy import stats
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.model import Effort
from megatron_music.recipe.flops import parameter_count
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling import newest
from megatron_music.scaling.curve import LossCurve, loss_curves
from megatron_music.scaling.gate import Sources, gate, sources_of
from megatron_music.scaling.newest import newest_exported
from megatron_music.scaling.thresholds import SHIPPED, Limit, Thresholds
from megatron_music.scaling.verdict import EXITS, Report, decide, report_text
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary

TOKENS = 120_000
EFFORT = Effort(positions=800, documents=24, references=8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository, text_tokenizer_file) -> Path:
    """A folder with ``learned`` and ``shuffled``, both trained for 120,000 tokens, with their corpora."""
    folder = tmp_path_factory.mktemp("gate")
    recipes = []
    for name in ("learned", "shuffled"):
        corpus = gate_songs.write_corpus(folder / f"{name}_corpus", repository, text_tokenizer_file, name == "shuffled")
        recipes.append(gate_songs.recipe_of(corpus, folder / name, TOKENS))
    launch(scaling_workers.train_all, 1, recipes)
    return folder


def content(run):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(run.rglob("*"))}


@pytest.fixture(scope="module")
def learned(runs):
    """The report of the run that learned, at its own budget; its folder is left as it was."""
    before = content(runs)
    report = gate(runs / "learned", Thresholds.load(), EFFORT, budget_tokens=TOKENS)
    assert content(runs) == before
    return report


def judgements(report):
    return {line.measure: line.judgement for line in report.lines if line.judgement is not None}


def test_a_run_that_learned_is_a_go(learned):
    assert learned.verdict == "go", report_text(learned)
    assert set(judgements(learned)) == {
        "loss/vocal", "loss/accompaniment", "gain_over_bigram", "order", "invalid", "following", "copying",
        "repetition", "hold",
    }  # fmt: skip
    assert set(judgements(learned).values()) == {"good"}
    assert {lack["measure"] for lack in learned.missing} == {"silence", "following far", "copying of unseen songs"}
    assert (learned.checkpoint, learned.tokens) == ("step_000118", 118 * 1024)
    # What the songs are made of: a climb by the word or one more, half a bit of chance in each; words tell the climb.
    lines = {line.measure: line.found for line in learned.lines}
    assert lines["following/vocal"].low > 0.2 and lines["order"].low > 1
    assert lines["slope/vocal"].value < -0.1


@pytest.fixture(scope="module")
def shuffled(runs):
    """The report of the run of shuffled codes, at its own budget."""
    return gate(runs / "shuffled", Thresholds.load(), EFFORT, budget_tokens=TOKENS)


def test_a_run_of_shuffled_codes_is_a_no_go(shuffled):
    assert shuffled.verdict == "no-go", report_text(shuffled)
    # It writes codes where codes belong; that they come in an order is what it could not learn.
    assert judgements(shuffled)["invalid"] == "good" and judgements(shuffled)["order"] == "bad"
    assert any(reason.startswith("loss with frames in another order is bad") for reason in shuffled.reasons)


def test_text_and_json_tell_the_same(learned, runs):
    told = json.loads(json.dumps(learned.as_dict()))
    assert (told["format"], told["version"], told["verdict"]) == ("megatron-music gate", 1, "go")
    text = report_text(learned)
    assert "necessary, not sufficient" in text and "necessary, not sufficient" in told["caveat"]
    for line in told["lines"]:
        assert line["title"] in text and (line.get("judgement") is None or line["source"])
    for lack in told["missing"]:
        assert f"{lack['measure']}: {lack['why']}; {lack['how']}" in text
    # A run that was copied reads the corpus of the first: it is named.
    assert text.splitlines()[1] == f"corpus: {told['corpus']}"
    assert told["corpus"] == str(runs / "learned_corpus") and told["held_out"] == "held_out"
    assert text.splitlines()[2] == "measured on held_out: 24 documents of 6 songs and 800 sampled ids"
    # Two segments of three words; the same two in another order are the same song.
    assert told["model"]["following"]["songs"] == 6


def test_a_run_can_be_hopeless_before_its_budget(shuffled):
    """From half of its budget on, what is required and bad is no-go."""

    def judged(budget_tokens):
        return decide(replace(shuffled, budget_tokens=budget_tokens, reasons=[]), Thresholds.load())

    assert [judged(factor * TOKENS).verdict for factor in (3, 2, 1)] == ["not-yet", "no-go", "no-go"]
    assert judged(2 * TOKENS).reasons[0] == "it has 120.8k tokens of a budget of 240k"


@pytest.mark.parametrize(
    ("tokens", "reach", "verdict"),
    [(40, 4.1, "not-yet"), (60, None, "not-yet"), (60, 3.9, "not-yet"), (60, 4.1, "no-go")],
)
def test_a_loss_is_hopeless_where_even_a_straight_line_stays_above(tokens, reach, verdict):
    limit = Thresholds.load().loss.classes["semantic"]
    report = Report("run", "recipe", tokens=tokens, budget_tokens=100)
    report.add("loss/vocal", "loss", Interval(value=4.5), "nats", limit).reach = reach
    assert decide(report, Thresholds.load()).verdict == verdict


def unmeasured(report, measure):
    (found,) = [lack for lack in report.missing if lack["measure"] == measure]
    return found["why"]


@pytest.fixture
def own_run(runs, tmp_path):
    """A copy of the run that learned, to spoil."""
    return Path(shutil.copytree(runs / "learned", tmp_path / "run"))


def test_the_verb_prints_writes_and_tells_by_its_status(own_run, tmp_path):
    """By its 123,200 parameters the budget is 16M tokens; the run has seen a hundredth of them."""
    shutil.rmtree(own_run / "checkpoints")
    arguments = ["predict", "gate", str(own_run), "--out", str(tmp_path / "gate.json")]
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "verdict: not yet\n  it has 120.8k tokens of a budget of 16.02M" in shown.stdout
    checked = CliRunner().invoke(cli.app, [*arguments, "--json", "--check"])
    assert (checked.exit_code, EXITS["no-go"]) == (5, 4)
    assert json.loads(checked.stdout) == json.loads((tmp_path / "gate.json").read_text())


def test_without_a_checkpoint_the_losses_alone_are_judged(own_run):
    shutil.rmtree(own_run / "checkpoints")
    report = gate(own_run, Thresholds.load(), EFFORT, budget_tokens=TOKENS)
    assert (report.verdict, report.checkpoint, report.tokens) == ("not-yet", None, 118 * 1024)
    assert set(judgements(report)) == {"loss/vocal", "loss/accompaniment"}
    assert unmeasured(report, "all measures of the model") == f"{own_run}: has no complete checkpoint yet"
    assert report.reasons == [f"{name} is required and was not measured" for name in
                              ("gain over bigram", "order", "invalid")]  # fmt: skip


def test_a_corpus_that_moved_is_named(own_run, runs):
    settings = yaml.safe_load((own_run / "recipe.yaml").read_text()) | {"corpus": str(own_run / "gone")}
    (own_run / "recipe.yaml").write_text(yaml.safe_dump(settings))
    report = gate(own_run, Thresholds.load(), EFFORT)
    assert "the corpus has moved" in unmeasured(report, "all measures of the model")
    assert (report.verdict, report.budget_tokens, report.tokens) == ("not-yet", 130 * report.parameters, 118 * 1024)
    with pytest.raises(InputError, match="has no source speech; choose from held_out, lyrics_to_song, reference"):
        gate(own_run, Thresholds.load(), EFFORT, corpus=runs / "learned_corpus", held_out="speech")


def test_a_run_of_stage_2_is_refused(runs, own_run, tmp_path):
    """Its corpus has stage 1's sources too, which would be measured. Where it has moved, the losses tell the task."""
    corpus = Path(shutil.copytree(runs / "learned_corpus", tmp_path / "corpus"))
    about = json.loads((corpus / "reference.json").read_text())
    (corpus / "reference.json").write_text(json.dumps(about | {"task": "residual"}))
    settings = yaml.safe_load((own_run / "recipe.yaml").read_text())
    line = f"{own_run}: is of stage 2: it learned residual alone, where models of stage 1 are measured; name one of sta"

    def judged(mixture: dict, corpus: Path) -> Report:
        settings["phases"][0]["mixture"] = mixture
        (own_run / "recipe.yaml").write_text(yaml.safe_dump(settings | {"corpus": str(corpus)}))
        return gate(own_run, Thresholds.load(), EFFORT)

    with pytest.raises(InputError, match=line):
        judged({"reference": 1}, corpus)
    lines = (own_run / "metrics.jsonl").read_text()
    (own_run / "metrics.jsonl").write_text(lines.replace('"task/lyrics_to_song"', '"task/residual"'))
    shutil.rmtree(own_run / "checkpoints")
    # Of both stages, as far as its losses tell.
    assert judged({"reference": 1}, tmp_path / "gone").verdict == "not-yet"
    lines = (own_run / "metrics.jsonl").read_text()
    (own_run / "metrics.jsonl").write_text(lines.replace('"task/reference"', '"task/residual"'))
    with pytest.raises(InputError, match=line):
        judged({"reference": 1}, tmp_path / "gone")
    # A corpus of both, and a run that reads both, is one of stage 1.
    assert judged({"reference": 1, "lyrics_to_song": 1}, corpus).verdict == "not-yet"


def test_sources_are_found_by_task_and_by_what_the_run_reads(runs, tmp_path):
    recipe = Recipe.load(runs / "learned" / "recipe.yaml")
    corpus = runs / "learned_corpus"
    assert sources_of(recipe, corpus) == Sources(*(corpus / n for n in ("lyrics_to_song", "held_out", "reference")))
    unwatched = recipe.model_copy(update={"watch": recipe.watch.model_copy(update={"validation": None})})
    assert sources_of(unwatched, corpus).held_out == corpus / "held_out"
    # Nothing but what it trains on: a source of another task is no held-out one.
    alone = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    for file in alone.glob("held_out.*"):
        file.unlink()
    assert sources_of(unwatched, alone).held_out is None
    for suffix in (".bin", ".idx", ".kind", ".json"):
        shutil.copy(alone / f"reference{suffix}", alone / f"reference_held_out{suffix}")
    assert sources_of(unwatched, alone).reference == alone / "reference_held_out"
    report = gate(runs / "learned", Thresholds.load(), EFFORT, corpus=alone)
    assert "no source with songs that the run does not train on" in unmeasured(report, "all measures of the model")


def test_training_losses_stand_in_where_none_are_held_out(own_run):
    lines = (own_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if "validation/" not in line)
    (own_run / "metrics.jsonl").write_text(kept + '{"step": 200, "loss/vocal": 9, "learning_rate": 1')
    recipe = Recipe.load(own_run / "recipe.yaml")
    (vocal, accompaniment), unread = loss_curves(own_run, recipe)
    losses = [line["loss/vocal"] for line in map(json.loads, kept.splitlines()) if "loss/vocal" in line]
    assert (vocal.kind, accompaniment.kind, vocal.held_out, unread) == ("vocal", "accompaniment", False, "")
    assert vocal.loss_N.tolist() == losses and vocal.tokens_N[-1] == 118 * 1024
    mean, half = np.mean(losses[-20:]), stats.t.ppf(0.975, len(losses[-20:]) - 1) * stats.sem(losses[-20:])
    last = vocal.last
    assert (last.value, last.low, last.high) == pytest.approx((mean, mean - half, mean + half), rel=1e-12)
    assert replace(vocal, loss_N=np.array([3.0])).last == Interval(value=3.0)
    shutil.rmtree(own_run / "checkpoints")
    assert "its own training data" in unmeasured(gate(own_run, Thresholds.load(), EFFORT), "held-out loss")
    (own_run / "metrics.jsonl").write_text("")
    assert unmeasured(gate(own_run, Thresholds.load(), EFFORT), "loss") == "has no loss of audio tokens yet"


def test_lines_that_can_not_be_read_are_told(own_run):
    shutil.rmtree(own_run / "checkpoints")
    metrics = own_run / "metrics.jsonl"
    whole = gate(own_run, Thresholds.load(), EFFORT)
    first, *lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(
        "".join([first, '{"step": 5, "learning_rate": 0.1, "lo\n', *lines, "\n", "\x00\x00\x00\n", '{"st'])
    )
    report = gate(own_run, Thresholds.load(), EFFORT)
    assert unmeasured(report, "a part of the losses") == "metrics.jsonl: line 2 and 1 more can't be read"
    assert [line.as_dict() for line in report.lines] == [line.as_dict() for line in whole.lines]
    metrics.write_text("all is\nlost\n")
    assert unmeasured(gate(own_run, Thresholds.load(), EFFORT), "loss") == (
        "line 1 and 1 more can't be read, and no other has a loss of audio tokens")  # fmt: skip


def test_a_run_that_has_diverged_is_told_as_it_is(own_run):
    """Bad, whatever its losses were before; and no-go from half of its budget on."""
    shutil.rmtree(own_run / "checkpoints")
    lines = [json.loads(line) for line in (own_run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] > 80 and "validation/loss" in line:
            line |= {"validation/loss": None, "validation/loss/vocal": None}
    (own_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reports = [gate(own_run, Thresholds.load(), EFFORT, budget_tokens=factor * TOKENS) for factor in (3, 2)]
    assert [report.verdict for report in reports] == ["not-yet", "no-go"]
    assert judgements(reports[0]) == {"loss/vocal": "bad", "loss/accompaniment": "good"}
    why = "its losses are not finite (the last finite one after 81.92k tokens)"
    assert unmeasured(reports[0], "slope/vocal") == why
    told = {line["measure"]: line for line in json.loads(json.dumps(reports[1].as_dict(), allow_nan=False))["lines"]}
    assert (told["loss/vocal"]["value"], told["loss/vocal"]["judgement"]) == (None, "bad")
    assert reports[1].reasons[1].startswith("loss, vocal, held out is bad: not finite (go below")


@pytest.mark.parametrize(
    ("held_out", "finite", "last"),
    [
        (True, [True] * 29 + [False], np.nan),
        (True, [True] * 28 + [False, True], 29.0),
        (False, [True] * 10 + [False] * 20, np.nan),
        # An update that was skipped is no loss, and hides none.
        (False, [True] * 29 + [False], np.mean(range(10, 29))),
    ],
)
def test_the_loss_now_is_finite_where_the_latest_are(held_out, finite, last):
    losses = np.where(finite, np.arange(30.0), np.nan)
    curve = LossCurve("vocal", held_out, np.arange(1, 31) * 1000.0, losses, np.full(30, 8192))
    assert curve.last.value == pytest.approx(last, nan_ok=True)
    assert (curve.slope() is None) == np.isnan(last)


def test_the_slope_is_that_of_a_planted_line():
    """0.2 nats a doubling, with errors of 0.01; what came before the last doubling, or at another context, is other."""
    tokens = np.arange(1, 201) * 1000.0
    loss = 5 - 0.2 * np.log2(tokens) + np.random.default_rng(0).normal(0, 0.01, 200)
    loss[:99] += 3
    curve = LossCurve("vocal", True, tokens, loss, np.full(200, 8192))
    slope = curve.slope()
    expected = stats.linregress(np.log2(tokens[99:]), loss[99:])
    half = stats.t.ppf(0.975, 99) * expected.stderr
    assert (slope.value, slope.low, slope.high) == pytest.approx(
        (expected.slope, expected.slope - half, expected.slope + half)
    )
    assert slope.low < -0.2 < slope.high
    context = np.where(np.arange(200) < 196, 8192, 16384)
    assert replace(curve, context_N=context).slope() is not None
    assert replace(curve, context_N=np.where(np.arange(200) < 197, 8192, 16384)).slope() is None


def test_a_checkpoint_that_goes_while_it_is_read_gives_way_to_the_next(own_run, monkeypatch):
    recipe = Recipe.load(own_run / "recipe.yaml")
    export, taken = newest.export_checkpoint, []

    def removed_meanwhile(checkpoint, *arguments, **options):
        taken.append(checkpoint.name)
        if len(taken) == 1:
            shutil.rmtree(checkpoint)
        return export(checkpoint, *arguments, **options)

    monkeypatch.setattr(newest, "export_checkpoint", removed_meanwhile)
    with newest_exported(own_run, recipe) as exported:
        assert (exported.checkpoint, exported.state.step) == ("step_000100", 100)
        assert (exported.folder / "model.safetensors").is_file()
    assert taken == ["step_000118", "step_000100"] and not exported.folder.exists()
    for file in (own_run / "checkpoints" / "step_000100").glob("*.distcp"):
        file.write_bytes(b"short")
    with pytest.raises(InputError, match="has no complete checkpoint yet"), newest_exported(own_run, recipe):
        pass


def test_a_checkpoint_with_a_fault_that_stays_is_told(own_run, runs, tmp_path):
    """Not that of a checkpoint that was removed: here the corpus lacks its tokenizer."""
    corpus = Path(shutil.copytree(runs / "learned_corpus", tmp_path / "corpus"))
    (corpus / "tokenizer.model").unlink()
    report = gate(own_run, Thresholds.load(), EFFORT, corpus=corpus)
    assert unmeasured(report, "all measures of the model") == f"{corpus}: has no tokenizer.model"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"budgets": {}}, "budgets: unknown field; did you mean budget?"),
        ({"budget": {"tokens_per_parameter": 0, "source": "ours"}}, "budget.tokens_per_parameter: found 0"),
        ({"budget": {"tokens_per_parameter": 20}}, "budget.source: missing field"),
        ({"measures": {"invalid": {"go_below": 0.1, "source": ""}}}, "measures.invalid.source: found ''"),
        ({"measures": {"invalid": {"source": "ours"}}}, "measures.invalid: write go_below and"),
        ({"measures": {"invalid": {"go_below": 0.5, "no_go_above": 0.1, "source": "ours"}}}, "is below go_below 0.5"),
        ({"measures": {"taste": {"go_above": 1, "source": "ours"}}}, "measures: taste is not measured; choose from"),
        ({"required": ["lyrics"]}, "required: lyrics is not measured"),
        ({"codecs": {"dac": {"class": "spectral", "source": "ours"}}}, "codecs: dac: class spectral is none of"),
    ],
)  # fmt: skip
def test_a_file_of_limits_is_read_strictly(tmp_path, change, line):
    path = tmp_path / "limits.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SHIPPED.read_text()) | change))
    with pytest.raises(InputError) as error:
        Thresholds.load(path)
    assert str(error.value).startswith(str(path)) and line in str(error.value)


def test_limits_of_losses_scale_with_the_codebook():
    limits = Thresholds.load()
    xcodec = CodecRange("xcodec", "<xcodec>", 0, 12, 1024)
    assert (limits.loss_limit(xcodec).go_below, limits.loss_limit(xcodec).no_go_above) == (3.0, 4.0)
    embedded = CodecRange("embedded", "<embedded>", 0, 4, 256)
    assert limits.loss_limit(embedded).go_below == pytest.approx(4 * 8 / 10)  # ln 256 / ln 1024
    with pytest.raises(InputError, match="codec mine: has no class in the thresholds; add it to `codecs`"):
        limits.class_of(replace(xcodec, name="mine"))


def test_the_shipped_predictor_reaches_its_budget(repository):
    """70B tokens for the 0.5B of the examples."""
    recipe = Recipe.load(repository / "examples" / "yue_0.5b.yaml")
    parameters = parameter_count(recipe.network, Vocabulary.load(recipe.vocabulary).padded_size)
    budget = Thresholds.load().budget.tokens_per_parameter * parameters
    assert 0.99 < budget / phase_spans(recipe)[-1].last_token <= 1


def intervals(*numbers):
    return [Interval(value=value, low=low, high=high) for value, low, high in numbers]


def test_limits_judge_whole_intervals():
    below = Limit(go_below=0.1, no_go_above=0.5, source="test")
    found = intervals((0.05, 0.01, 0.09), (0.05, 0.01, 0.11), (0.6, 0.51, 0.7), (0.6, 0.4, 0.8))
    assert [below.judge(interval) for interval in found] == ["good", "open", "bad", "open"]
    assert [below.judge(Interval(value=value)) for value in (0.05, 0.3, 0.7)] == ["good", "open", "bad"]
    above = Limit(go_above=0.0, no_go_below=0.002, source="test")
    found = intervals((0.01, 0.001, 0.02), (0.01, -0.001, 0.02), (0, -0.001, 0.001))
    assert [above.judge(interval) for interval in found] == ["good", "open", "bad"]
    assert above.judge(Interval(value=0.0004, low=0.0002, high=0.0005)) == "bad"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "error: nowhere: is not a run: no recipe.yaml"),
        (["nowhere", "--thresholds", "none.yaml"], "error: none.yaml: no such file"),
        (["nowhere", "--budget", "70 billion"], "error: --budget: '70 billion' is not a count"),
        (["nowhere", "--device", "tpu"], "error: --device: tpu is not there"),
        (["nowhere", "--budget", "0"], "error: --budget: 0 is no budget"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["megatron-music", "predict", "gate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith(line) and error.count("\n") == 1
