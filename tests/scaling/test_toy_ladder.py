"""A ladder from its recipe to finished runs, on this machine."""

import json

from metric_lines import measured


def test_its_runs_are_what_the_ladder_says(toy_ladder):
    rungs = json.loads((toy_ladder / "ladder.json").read_text())["rungs"]
    assert [rung["name"] for rung in rungs] == ["6k_0.5x", "6k_1x", "24k_0.5x", "24k_1x"]
    for rung in rungs:
        lines = measured(toy_ladder / "runs" / rung["name"] / "metrics.jsonl")
        steps = [line for line in lines if "learning_rate" in line]
        assert steps[-1]["tokens"] == rung["tokens"] and steps[-1]["phase"] == "annealing"
        held_out = [line["validation/loss"] for line in lines if "validation/loss" in line]
        assert held_out[-1] < held_out[0] - 0.5
