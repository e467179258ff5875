"""`status` on files that are written out here, and once through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_music.cli import app
from megatron_music.cluster import status
from megatron_music.cluster.run_lines import RunLines, has_ended, runs_in
from megatron_music.cluster.status import one_run, status_of, status_text
from megatron_music.errors import InputError
from megatron_music.training.events import ENDED, STOPPED

PHASES = [
    {"name": "warm-up", "last_step": 10, "last_token": 1000, "sources": {"songs": 750, "speech": 250}},
    {"name": "constant", "last_step": 40, "last_token": 4000, "sources": {"songs": 3000}},
]
STARTED = {"step": 0, "time": 1000.0, "event": "started", "recipe": "small", "steps": 40, "total_tokens": 4000}


def step_line(step: int, **values) -> dict:
    return {
        "step": step,
        "time": 1000.0 + step,
        "phase": "warm-up" if step <= 10 else "constant",
        "tokens": 100 * step,
        "learning_rate": 0.001,
        "loss": 9.0 - step / 10,
        "loss/vocal": 8.0,
        "task/lyrics_to_song": 7.0,
        "tokens_per_second": 50.0,
        "mfu": 0.25,
        "tokens/songs": 80 * step,
        "tokens/speech": 20 * step,
        **values,
    }


def write(run: Path, lines: list[dict], tail: str = "") -> Path:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    """20 of 40 steps, one of them skipped, and a line that is being written."""
    events = [
        {"step": 12, "time": 1012.0, "event": "skipped", "loss": None, "limit": 8.5, "gradient_norm": None},
        {"step": 14, "time": 1014.0, "event": "rolled_back", "at": 14, "to": 10, "first": 12, "last": 14},
        {"step": 20, "time": 1020.0, "event": "checkpoint", "path": "there"},
        {"step": 20, "time": 1020.0, "validation/loss": 7.5, "validation/loss/vocal": 7.25},
    ]
    steps = [step_line(step) for step in range(1, 21)]
    return write(tmp_path / "run", [{**STARTED, "phases": PHASES}, *steps, *events], '{"step": 21, "lo')


def test_a_run_is_told_from_its_metrics(run):
    now = status_of(RunLines(run), now=1030.0)
    assert (now.state, now.silent_seconds, now.phase) == ("moves", 10.0, "constant")
    assert (now.step, now.steps, now.tokens, now.total_tokens, now.left_seconds) == (20, 40, 2000, 4000, 40.0)
    assert now.losses == {"loss": 7.0, "loss/vocal": 8.0, "task/lyrics_to_song": 7.0}
    assert now.held_out == {"loss": 7.5, "loss/vocal": 7.25}
    assert (now.tokens_per_second, now.mfu, now.checkpoint["step"]) == (50.0, 0.25, 20)
    assert now.consumed == {"songs": 1600, "speech": 400}
    # All of the first phase, and a third of the second.
    assert now.planned == {"songs": 750 + 1000, "speech": 250}
    assert (now.counts["skipped"], now.counts["rolled_back"]) == (1, 1)
    text = " ".join(one_run(now).split())
    for told in ("50.0%: 2k of 4k tokens, 0m 40s left", "MFU 25.0%", "last checkpoint: step 20",
                 "step 12: skipped: loss not finite", "went back to step 10; steps 12 to 14 are passed",
                 "songs 1.6k 80.0% 1.75k 87.5%"):  # fmt: skip
        assert told in text, told
    assert status_of(RunLines(run), now=1020.0 + 3600).state == "silent"


def test_reading_goes_on_and_begins_again_where_the_file_was_written_anew(run):
    lines = RunLines(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            'ss": 1}\n' + json.dumps(step_line(22)) + "\n" + json.dumps(STARTED | {"event": "ended", "step": 40})
        )
    lines.read()
    assert [line["step"] for line in lines.steps][-3:] == [19, 20, 22]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    lines.read()
    assert status_of(lines, now=2000.0).state == "done"
    (run / "new").write_text(json.dumps(step_line(3)) + "\n")
    os.replace(run / "new", run / "metrics.jsonl")
    lines.read()
    assert [line["step"] for line in lines.steps] == [3] and not lines.counts


def test_empty_damaged_and_old_files(tmp_path):
    empty = write(tmp_path / "empty", [])
    assert status_of(RunLines(empty), now=0.0).state == "empty"
    assert "nothing is measured yet" in one_run(status_of(RunLines(empty), now=0.0))
    damaged = write(tmp_path / "damaged", [], '{"step": 1, "learning_rate": \n[1, 2]\n\x00\x00\n"event": \n')
    now = status_of(RunLines(damaged), now=0.0)
    assert (now.step, now.unread) == (0, "line 1 and 3 more can't be read")
    assert "nothing is measured yet; metrics.jsonl: line 1 and 3 more can't be read" in one_run(now)
    old = step_line(7)
    del old["time"], old["mfu"], old["task/lyrics_to_song"]
    old = status_of(RunLines(write(tmp_path / "old", [old])), now=5000.0)
    assert (old.step, old.total_tokens, old.left_seconds, old.planned) == (7, 0, None, {})
    assert "phase warm-up, step 7" in one_run(old)
    table = status_text([status_of(lines, now=0.0) for lines in runs_in([tmp_path])])
    assert [line.split()[0] for line in table.splitlines()] == ["run", "damaged", "empty", "old"]


def test_a_loss_that_is_not_finite_is_told_as_it_is(tmp_path):
    """And not as the last that was: of the last step, and held out. A step that was passed has none."""
    lost = step_line(11, **{"loss": None, "loss/vocal": None})
    passed = {name: value for name, value in step_line(12).items() if "loss" not in name}
    held_out = {"step": 12, "time": 1012.0, "validation/loss": None, "validation/loss/vocal": None}
    sampled = {"step": 10, "time": 1010.5, "invalid_token_share": 0.125}
    run = write(tmp_path / "run", [step_line(10), sampled, lost, passed, held_out])
    now = status_of(RunLines(run), now=1012.0)
    assert now.losses == {"loss": None, "loss/vocal": None, "task/lyrics_to_song": 7.0}
    assert now.held_out == {"loss": None, "loss/vocal": None} and now.trends["loss"] == [8.0]
    rows = [line.split() for line in one_run(now).splitlines()]
    assert ["all", "▁", "not", "finite", "not", "finite"] in rows
    assert "invalid tokens: 12.5%, after step 10" in one_run(now)
    assert status_text([now, now]).splitlines()[1].count("not finite") == 2


def test_a_run_has_ended_where_its_last_line_says_so(tmp_path):
    ended, stopped = ({**STARTED, "event": name} for name in (ENDED, STOPPED))
    for name, lines, end in (("done", [step_line(1), ended], ENDED), ("asked", [step_line(1), stopped], STOPPED),
                             ("again", [ended, STARTED, step_line(2)], None), ("empty", [], None)):  # fmt: skip
        run = write(tmp_path / name, lines)
        assert (RunLines(run).end, has_ended(run)) == (end, end == ENDED)
    assert not has_ended(tmp_path / "nowhere")


def test_a_long_file_is_not_held_and_not_parsed(tmp_path, monkeypatch):
    line = json.dumps(step_line(1)) + "\n"
    run = write(tmp_path / "long", [{**STARTED, "phases": PHASES}])
    with (run / "metrics.jsonl").open("a") as file:
        for _ in range(100):
            file.write(line * 1000)
        file.write(json.dumps(step_line(40)) + "\n")
    parsed = []
    loads = json.loads
    monkeypatch.setattr(status.json, "loads", lambda text: parsed.append(text) or loads(text))
    now = status_of(RunLines(run), now=2000.0)
    assert (now.step, now.total_tokens, len(now.trends["loss"])) == (40, 4000, 200)
    assert len(parsed) < 300


def test_the_command_line(run, tmp_path):
    told = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert told.exit_code == 0 and json.loads(told.stdout)[0]["tokens"] == 2000
    write(tmp_path / "done", [step_line(1), {**STARTED, "event": "ended"}])
    lived = CliRunner().invoke(app, ["status", str(tmp_path / "done"), "--live"])
    assert lived.exit_code == 0 and "done" in lived.stdout
    assert CliRunner().invoke(app, ["status", str(tmp_path)]).exit_code == 0
    (tmp_path / "nothing").mkdir()
    for folder, what in (("nowhere", "no such folder; name a run"), ("nothing", "is not a run: no metrics.jsonl")):
        found = CliRunner().invoke(app, ["status", str(tmp_path / folder)])
        assert isinstance(found.exception, InputError) and what in str(found.exception)


def test_status_is_there_without_torch(run):
    code = f"import sys; from megatron_music.cli import app; app(['status', {str(run)!r}], standalone_mode=False); "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
