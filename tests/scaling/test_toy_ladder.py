"""A ladder from its recipe to finished runs, on this machine."""

import json
import os
import subprocess

from metric_lines import measured
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.scaling.ladder import write_ladder


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
