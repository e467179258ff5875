"""Points of a fit from tables and from run folders."""

import json

import pytest

from megatron_music.errors import InputError
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.point import Options
from megatron_music.scaling.points import read_points


@pytest.fixture
def table(tmp_path):
    """Writes a table and reads its points: ``table(text, **options)``."""

    def read(text, **options):
        (tmp_path / "sweep.csv").write_text(text)
        return read_points([tmp_path / "sweep.csv"], Options(**options))

    return read


def test_headings_units_and_separators(table):
    for text in (
        "run,parameters,tokens,loss,loss/vocal\nsmall,20M,1.5e9,3.5,4\n\n",
        "Model;Model Size;Training_Tokens;Loss;loss_vocal\nsmall;2e7;1.5B;3.5;4\n",
        "\ufeffname\tN\tD\tvalidation/loss\tvalidation/loss/vocal\nsmall\t20_000_000\t1500M\t3.5\t4",
    ):
        (point,) = table(text)
        assert (point.name, point.parameters, point.tokens) == ("small", 20e6, 1.5e9)
        assert point.losses == {"loss": 3.5, "vocal": 4.0}


def test_tokens_follow_from_flops_and_empty_losses_are_none(table):
    first, second = table("params,FLOPs,loss,loss/text\n1e8,6e18,3,\n1e8,6e17,3.5,2\n")
    assert (first.name, first.tokens, first.flops, first.losses) == ("line 2", 1e10, 6e18, {"loss": 3.0})
    assert second.tokens == pytest.approx(1e9) and second.losses == {"loss": 3.5, "text": 2.0}


def test_columns_may_be_named(table):
    text = "size,seen,eval_audio,eval_text,loss\n1e8,1e9,4,2,9\n"
    (point,) = table(text, columns={"parameters": "size", "tokens": "seen"}, loss_columns=["eval_audio", "eval_text"])
    assert (point.parameters, point.tokens, point.losses) == (1e8, 1e9, {"eval_audio": 4.0, "eval_text": 2.0})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "sweep.csv: is empty; write a line of headings"),
        ("N,D,loss\n", {}, "sweep.csv: holds no point below its headings"),
        ("size,D,loss\n1,2,3\n", {}, "sweep.csv: has no column for parameters (it has size, D, loss); name it"),
        ("N,loss\n1,3\n", {}, "sweep.csv: has no column for tokens (it has N, loss); name it tokens, or say which"),
        ("N,D,bits\n1,2,3\n", {}, "sweep.csv: has no column for losses (it has N, D, bits); name it loss, or say"),
        ("N,D,loss\n1,2,3\n1,2\n", {}, "sweep.csv: line 3: has 2 cells, the headings are 3; mend the line"),
        ("N,D,loss\n\n1,2,low\n", {}, "sweep.csv: line 3: loss: 'low' is no number above 0"),
        ("N,D,loss\n0,2,3\n", {}, "sweep.csv: line 2: N: '0' is no number above 0; write one such as 125M"),
        ("N,D,loss\n1,nan,3\n", {}, "sweep.csv: line 2: D: 'nan' is no number above 0"),
        ("N,D,loss\n1,2,\n", {}, "sweep.csv: line 2: has no loss; take the line out, or fill it in"),
        ("N,C,loss\n1,,3\n", {}, "sweep.csv: line 2: has neither tokens nor FLOPs; mend the line"),
        ("N,D,loss\n1,2,3\n", {"columns": {"tokens": "seen"}}, "sweep.csv: has no column 'seen' (it has N, D, loss)"),
        ("N,D,loss\n1,2,3\n", {"loss": "test"}, "--loss: 'test' is not known; choose auto, held_out or training"),
    ],
)
def test_malformed_tables_are_one_line(table, text, options, message):
    with pytest.raises(InputError) as caught:
        table(text, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def write_run(recipe_file, folder, ended=True, **fields):
    """A run folder with lines of a step every fifth step up to the end, or to the middle, and held-out losses."""
    content = Recipe.load(recipe_file).model_dump(mode="json") | {"run": str(folder)} | fields
    recipe = Recipe.parse(content, recipe_file)
    spans = phase_spans(recipe)
    folder.mkdir()
    recipe.save(folder / "recipe.yaml")
    lines = []
    last = spans[-1].last_step if ended else spans[-1].last_step // 2
    for span in spans:
        for step in range(span.first_step + 1, min(span.last_step, last) + 1):
            tokens, progress = step * 512, (step - span.first_step) / span.steps
            rate = span.phase.learning_rate
            now = rate.start + (rate.end - rate.start) * progress
            values = {"loss": 5 - step / 1000, "loss/vocal": 4 - step / 1000}
            lines.append({"step": step, "tokens": tokens, "learning_rate": now, **values})
            held_out = {f"validation/{name}": value + 1 for name, value in values.items()}
            if step == span.last_step or step % 20 == 0:
                lines.append({"step": step, **held_out})
    lines += [{"step": last, "event": "ended"}] if ended else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    return recipe


def write_ladder_file(folder, *runs):
    """A ladder of runs at these paths in its folder."""
    rungs = [{"name": run.split("/")[-1], "run": str(folder / run), "parameters": 1, "tokens": 1} for run in runs]
    (folder / "ladder.json").write_text(json.dumps({"rungs": rungs}))
    return folder


def test_a_run_is_a_point_at_its_end(bare_recipe, tmp_path):
    recipe = write_run(bare_recipe, tmp_path / "run")
    last = phase_spans(recipe)[-1]
    (point,) = read_points([tmp_path], Options())
    assert (point.name, point.tokens) == ("run", last.last_token)
    assert point.losses == pytest.approx({"loss": 6 - last.last_step / 1000, "vocal": 5 - last.last_step / 1000})
    assert point.learning_rate_left == pytest.approx(1e-4 / 5e-3, rel=0.02)
    # 32 channels, 2 heads of 16 and 1 key-value head, 96 in the feed-forward layer, 2 layers; 384 ids.
    in_layers = 2 * (32 * 64 + 32 * 32 + 3 * 32 * 96 + 2 * 32)
    assert point.parameters == in_layers
    (whole,) = read_points([tmp_path / "run"], Options(counted="all"))
    assert whole.parameters == in_layers + 32 + 2 * 384 * 32
    (trained,) = read_points([tmp_path / "run"], Options(loss="training"))
    tail = [step for step in range(1, last.last_step + 1) if step * 512 >= 0.95 * last.last_token]
    assert trained.losses["loss"] == pytest.approx(5 - sum(tail) / len(tail) / 1000)


def test_ends_of_phases_count_where_the_rate_had_decayed(bare_recipe, tmp_path):
    write_run(bare_recipe, tmp_path / "constant")
    assert len(read_points([tmp_path / "constant"], Options(phase_ends=True))) == 1
    phases = Recipe.load(bare_recipe).model_dump(mode="json")["phases"]
    phases[0]["learning_rate"] = {"shape": "cosine", "start": 5e-3, "end": 5e-4}
    recipe = write_run(bare_recipe, tmp_path / "decayed", phases=phases)
    first, last = read_points([tmp_path / "decayed"], Options(phase_ends=True))
    spans = phase_spans(recipe)
    assert (first.tokens, last.tokens) == (spans[0].last_token, spans[1].last_token)
    assert first.name.startswith("decayed at ") and last.name == "decayed"
    assert first.losses["loss"] == pytest.approx(6 - spans[0].last_step / 1000)
    assert (first.flops, last.flops > 0) == (None, True)
    # Of a phase without a loss that was a number nothing is known.
    metrics = tmp_path / "decayed" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()[:-1]]
    for line in lines:
        if line["step"] <= spans[0].last_step:
            line |= {name: None for name in line if "loss" in name}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for loss in ("held_out", "training"):
        (point,) = read_points([tmp_path / "decayed"], Options(phase_ends=True, loss=loss))
        assert (point.name, point.tokens) == ("decayed", spans[1].last_token)


def test_a_run_that_has_diverged_is_no_point_at_an_earlier_step(bare_recipe, tmp_path, capsys):
    """While a step without a finite loss among others, as of an update that was skipped, changes nothing else."""
    write_run(bare_recipe, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()[:-1]]
    steps, held_out = ([line for line in lines if name in line] for name in ("loss", "validation/loss"))
    last = steps[-1]["step"]

    def points_where(lost, loss):
        text = [json.dumps(line | {name: None for name in line if "loss" in name and line in lost}) for line in lines]
        metrics.write_text("".join(f"{line}\n" for line in [*text[:3], "no line", *text[3:]]))
        return read_points([tmp_path / "run"], Options(loss=loss))

    for lost, loss, what in ((held_out[-1:], "held_out", "held-out loss"), (steps[-20:], "training", "loss")):
        with pytest.raises(InputError) as caught:
            points_where(lost, loss)
        told = f"{metrics}: the last {what}, after step {last}, is not finite: the run has diverged; leave the run out"
        assert str(caught.value) == told
    (point,) = points_where(steps[-1:], "training")
    tail = [line["loss"] for line in steps[:-1] if line["tokens"] >= 0.95 * steps[-1]["tokens"]]
    assert point.losses["loss"] == pytest.approx(sum(tail) / len(tail)) and point.tokens == steps[-1]["tokens"]
    assert f"{metrics}: line 4 can't be read and is passed over" in "".join(capsys.readouterr().err.split("\n"))


def test_an_unfinished_run_is_named_with_its_tokens_or_taken_as_it_is(bare_recipe, tmp_path):
    recipe = write_run(bare_recipe, tmp_path / "run", ended=False)
    with pytest.raises(InputError) as caught:
        read_points([tmp_path / "run"], Options())
    half = phase_spans(recipe)[-1].last_step // 2
    done = f"{tmp_path / 'run'}: is unfinished: {half * 512 / 1000:.4g}k of 120.3k tokens are done; "
    assert str(caught.value) == f"{done}leave it out until it has ended, or take it as it is: --unfinished"
    (point,) = read_points([tmp_path / "run"], Options(unfinished=True))
    measured = half // 20 * 20
    assert point.tokens == measured * 512 and point.losses["loss"] == pytest.approx(6 - measured / 1000)
    assert point.learning_rate_left == 1.0
    ladder = write_ladder_file(tmp_path, "run", "not_begun")
    assert read_points([ladder], Options(unfinished=True)) == [point]


def test_a_ladder_that_was_moved_finds_its_runs(bare_recipe, tmp_path):
    (tmp_path / "before" / "runs").mkdir(parents=True)
    write_run(bare_recipe, tmp_path / "before" / "runs" / "20M_20x")
    write_ladder_file(tmp_path / "before", "runs/20M_20x").rename(tmp_path / "after")
    (point,) = read_points([tmp_path / "after"], Options())
    assert (point.name, point.learning_rate_left) == ("20M_20x", pytest.approx(1e-4 / 5e-3, rel=0.02))
    (tmp_path / "after" / "ladder.json").write_text('{"rungs": [{"name": "x"}]}')
    with pytest.raises(InputError, match="ladder.json: is not a ladder; write it again"):
        read_points([tmp_path / "after"], Options())


def test_folders_without_runs_are_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no run: no metrics.jsonl in it or right below it"):
        read_points([tmp_path], Options())
    write_ladder_file(tmp_path, "runs/20M_20x")
    with pytest.raises(InputError, match="20M_20x: this rung has not been trained; train it"):
        read_points([tmp_path], Options(unfinished=True))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="recipe.yaml: no such file"):
        read_points([tmp_path / "run"], Options())
