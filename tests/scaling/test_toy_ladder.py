"""A ladder from its recipe to finished runs, their fit and their comparison, on this machine."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import scaling_workers
from metric_lines import measured
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.scaling.compare import compare
from megatron_music.scaling.ladder import write_ladder
from megatron_music.scaling.side_by_side import read_runs, runs_table


@pytest.fixture(scope="module")
def toy_ladder(toy_recipe, tmp_path_factory) -> Path:
    """A ladder's folder: two sizes and two ratios, all runs trained to their end, in half a minute."""
    folder = tmp_path_factory.mktemp("ladder")
    rungs = write_ladder(toy_recipe, folder, sizes="6k,24k", tokens_per_parameter="0.5,1", gpus=1)
    launch(scaling_workers.train_all, 1, [rung.recipe for rung in rungs])
    return folder


def test_its_runs_are_what_the_ladder_says(toy_ladder):
    rungs = json.loads((toy_ladder / "ladder.json").read_text())["rungs"]
    assert [rung["name"] for rung in rungs] == ["6k_0.5x", "6k_1x", "24k_0.5x", "24k_1x"]
    for rung in rungs:
        lines = measured(toy_ladder / "runs" / rung["name"] / "metrics.jsonl")
        steps = [line for line in lines if "learning_rate" in line]
        assert steps[-1]["tokens"] == rung["tokens"] and steps[-1]["phase"] == "annealing"
        held_out = [line["validation/loss"] for line in lines if "validation/loss" in line]
        assert held_out[-1] < held_out[0] - 0.5


def test_fit_reads_it_and_says_that_it_can_not_tell(toy_ladder, tmp_path):
    call = ["predict", "fit", str(toy_ladder), "--target", "1M@10M", "--out", str(tmp_path / "fit")]
    shown = CliRunner().invoke(cli.app, call)
    assert shown.exit_code == 0, shown.output
    whole = (
        "loss: the data can't tell: too few points: a law of 5 numbers and the noise around it need 7 or more, there "
    )
    assert f"{whole}are 4; 2 sizes alone" in shown.output
    content = json.loads((tmp_path / "fit" / "fit.json").read_text())
    rungs = json.loads((toy_ladder / "ladder.json").read_text())["rungs"]
    assert set(content["losses"]) == {"loss", "text", "special", "vocal", "accompaniment"}
    for name, law in content["losses"].items():
        assert not law["told"] and "predictions" not in law
        label = "validation/loss" if name == "loss" else f"validation/loss/{name}"
        for rung, point in zip(rungs, law["points"], strict=True):
            last = [line for line in measured(toy_ladder / "runs" / rung["name"] / "metrics.jsonl") if label in line][
                -1
            ]
            told = {field: rung[field] for field in ("name", "parameters", "tokens", "flops")}
            assert point == told | {"loss": last[label]}
    assert content["warnings"][0].startswith("1M@10M lies outside the measured range")
    assert (tmp_path / "fit" / "loss_loss.png").stat().st_size > 10_000
    (tmp_path / "file").write_text("")
    refused = CliRunner().invoke(cli.app, [*call[:-1], str(tmp_path / "file")])
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception) == f"{tmp_path / 'file'}: is a file or lies below one; name a folder"


def test_its_runs_side_by_side_are_those_of_its_files(toy_ladder):
    runs = read_runs([toy_ladder])
    rungs = json.loads((toy_ladder / "ladder.json").read_text())["rungs"]
    assert [run.name for run in runs] == [rung["name"] for rung in rungs]
    for run, rung in zip(runs, rungs, strict=True):
        assert (run.state, run.parameters, run.tokens) == ("done", rung["parameters"], rung["tokens"])
        lines = measured(toy_ladder / "runs" / rung["name"] / "metrics.jsonl")
        held_out = [line for line in lines if "validation/loss" in line][-1]
        expected = {name.split("/")[-1]: value for name, value in held_out.items() if name.startswith("validation/l")}
        assert run.losses == {"all" if kind == "loss" else kind: value for kind, value in expected.items()}
        assert set(run.losses) == {"all", "text", "special", "vocal", "accompaniment"}
    shown = runs_table(runs).splitlines()
    assert len(shown) == 7 and not any("not done" in line for line in shown)
    assert shown[1].split()[:2] == [rungs[0]["name"], "done"]
    assert f"{runs[0].losses['vocal']:.3f}" in shown[1]
    sampled = [line for line in lines if "invalid_token_share" in line][-1]
    assert (runs[-1].invalid_token_share, runs[-1].invalid_token_step) == (
        sampled["invalid_token_share"],
        sampled["step"],
    )
    assert f"{sampled['invalid_token_share']:.1%} at step {sampled['step']}" in shown[4]
    # The runs themselves, and their folder, are the same runs; each is shown once.
    several = read_runs([toy_ladder, toy_ladder / "runs", toy_ladder / "runs" / runs[0].name])
    assert [run.as_dict() for run in several] == [run.as_dict() for run in runs]


def test_the_page_of_its_runs(toy_ladder, tmp_path):
    text = compare([toy_ladder], tmp_path / "out")
    runs = read_runs([toy_ladder])
    assert text == f"{runs_table(runs)}\nwritten: {tmp_path / 'out' / 'comparison.html'}"
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["runs"] == [run.as_dict() for run in runs] == json.loads(compare([toy_ladder], None, as_json=True))
    page = (tmp_path / "out" / "comparison.html").read_text()
    # A picture for each kind of audio, and a row for each run.
    assert page.count("data:image/png;base64,") == 2
    assert all(f"<bdi>{run.losses['vocal']:.3f}</bdi>" in page for run in runs)


def test_the_script_submits_every_rung(toy_recipe, tmp_path):
    """With a stand-in that prints what it is given; what it prints is then given to the verb."""
    out, tools = tmp_path / "out", tmp_path / "bin"
    write_ladder(toy_recipe, out, "6k,24k", "1", gpus=1)
    tools.mkdir()
    (tools / "megatron-music").write_text('#!/bin/sh\necho "$@"\n')
    (tools / "megatron-music").chmod(0o755)
    call = ["sh", str(out / "submit.sh"), "--dry-run", "--partition", "gpu"]
    path = f"{tools}:{os.environ['PATH']}"
    lines = subprocess.run(call, capture_output=True, text=True, check=True, env={"PATH": path}).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["submit", str(out / f"{name}_1x.yaml")] for name in ("6k", "24k")]
    for line in lines:
        shown = CliRunner().invoke(cli.app, line.split())
        assert shown.exit_code == 0 and "#SBATCH --partition=gpu" in shown.output
    assert not (out / "runs").exists()
