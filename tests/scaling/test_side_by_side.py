"""Runs and ladders side by side."""

import json

import pytest

from megatron_music.errors import InputError
from megatron_music.scaling.side_by_side import held_out_losses, notes, read_runs, runs_table


@pytest.fixture
def ladder(tmp_path, toy_recipe):
    """A ladder of two, of which one has begun."""
    for name in ("small", "large"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    rungs = [{"name": name, "run": str(tmp_path / "runs" / name), "parameters": size, "tokens": 120_000}
             for name, size in (("small", 10), ("large", 20))]  # fmt: skip
    (tmp_path / "ladder.json").write_text(json.dumps({"rungs": rungs}))
    (tmp_path / "runs" / "small" / "recipe.yaml").write_text(toy_recipe.read_text())
    lines = [
        {"step": 0, "time": 1.0, "event": "started", "steps": 2, "total_tokens": 120_000},
        {"step": 0, "time": 2.0, "validation/loss": 6.0, "validation/loss/vocal": 5.0},
        {"step": 1, "time": 3.0, "phase": "constant", "tokens": 60_000, "learning_rate": 0.1, "loss": 4.0,
         "tokens_per_second": 9.0},
        {"step": 1, "time": 4.0, "validation/loss": 3.0, "validation/loss/vocal": None, "validation/task/x": 3.0},
    ]  # fmt: skip
    (tmp_path / "runs" / "small" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_runs_that_are_not_done_are_marked(ladder):
    small, large = read_runs([ladder])
    assert (small.state, small.tokens, small.planned_tokens) == ("silent", 60_000, 120_000)
    assert (large.state, large.tokens, large.losses) == ("not started", 0, {})
    shown = runs_table([small, large])
    assert "not done, so that their losses are not final: small, large" in shown
    assert "not started" in shown and "no held-out loss" not in shown and "invalid tokens:" not in shown


def test_what_was_measured_last_is_told_as_it_is(ladder):
    """A loss that was not finite, the step of the share of invalid tokens, and lines that can't be read."""
    metrics = ladder / "runs" / "small" / "metrics.jsonl"
    sampled = [{"step": 1, "invalid_token_share": 0.25}, {"step": 1, "time": 5.0, "event": "checkpoint"}]
    with metrics.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in sampled) + "\x00\x00\nhello\n" + '{"step": 2, "lo')
    small, large = read_runs([ladder])
    assert small.losses == {"all": 3.0, "vocal": None}
    assert (small.invalid_token_share, small.invalid_token_step) == (0.25, 1)
    assert small.unread == "line 7 and 1 more can't be read" and large.as_dict().keys().isdisjoint(["unread"])
    heading, row, *_ = runs_table([small, large]).splitlines()
    assert heading.split()[5:8] == ["all", "vocal", "invalid"]
    assert row.split("120k")[1].split() == ["3.000", "not", "finite", "25.0%", "at", "step", "1", "9"]
    told = notes([small, large])
    assert f"{metrics}: line 7 and 1 more can't be read" in told
    assert any(line.startswith("invalid tokens: of the few samples") for line in told)


def test_a_ladder_that_was_moved_finds_its_runs(ladder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "ladder"
    ladder.rename(moved)
    assert read_runs([moved])[0].run == str(moved / "runs" / "small")


def test_what_is_no_run(ladder, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_runs([tmp_path / "nowhere"])
    (ladder / "runs" / "small" / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no run has begun"):
        read_runs([ladder])
    with pytest.raises(InputError, match="is not a run"):
        read_runs([ladder / "runs" / "small"])
    (ladder / "ladder.json").write_text('{"rungs": [{"name": "x"}]}')
    with pytest.raises(InputError, match="ladder.json: is not a ladder; write it again"):
        read_runs([ladder])


def test_a_run_without_held_out_losses(ladder):
    from megatron_music.cluster.run_lines import RunLines

    metrics = ladder / "runs" / "small" / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines() if "validation" not in line))
    assert held_out_losses(RunLines(ladder / "runs" / "small")) == {}
    assert "no held-out loss (`watch.validation` in the recipe): small" in runs_table(read_runs([ladder]))
