"""Updates that are left out, and the way back: over two real processes, one of which has a NaN in its gradient."""

import json
import math
import shutil
from pathlib import Path

import pytest
import recovery_workers
import torch

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.engine.guard import StepGuard
from megatron_music.engine.processes import free_port, launch
from megatron_music.errors import InputError
from megatron_music.exits import Lost
from megatron_music.recipe.recipe import Skip
from megatron_music.training.run import check
from megatron_music.training.run_folder import RunFolder
from megatron_music.training.troubles import Rollback, Troubles

WATCH = {"log_every_steps": 1}


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights, master weights and moments."""
    reader = CheckpointReader(checkpoint)
    return {name: reader.read(name) for name in reader._metadata.state_dict_metadata if name in reader}


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events_of(run: Path, name: str) -> list[dict]:
    return [line for line in lines_of(run) if line.get("event") == name]


def last_checkpoint(run: Path) -> Path:
    return RunFolder(run).complete_checkpoints()[-1][0]


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = tensors_of(last_checkpoint(one)), tensors_of(last_checkpoint(other))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def runs(make_module_recipe, tmp_path_factory):
    """One run skips step 6, one is told to pass it; one skips 6 and 7 and goes back, one is told to pass them."""
    folder = tmp_path_factory.mktemp("runs")
    rules = {"skipped": Skip(roll_back_after=3), "back": Skip(roll_back_after=2)}
    names = {"skipped": [6], "passed": [], "back": [6, 7], "both_passed": []}
    recipes = {
        name: make_module_recipe(
            run=str(folder / name),
            watch=WATCH,
            skip=rules.get(name, Skip()).model_dump(),
            checkpoints={"every_steps": 2},
        )
        for name in names
    }
    for name, last in (("passed", 6), ("both_passed", 7)):
        (folder / name).mkdir()
        Troubles(rollbacks=[Rollback(last, 0, 6, last)]).write(folder / name)
    launch(recovery_workers.run_all_with_nan, 2, [(recipes[name], names[name], free_port()) for name in names])
    return recipes


def test_a_nan_in_one_process_leaves_the_update_out_on_all(runs):
    run = runs["skipped"].run
    assert_same_end(run, runs["passed"].run)
    assert [(line["step"], line["gradient_norm"]) for line in events_of(run, "skipped")] == [(6, None)]
    assert Troubles.read(last_checkpoint(run)).skipped == [6]


def test_several_bring_the_run_back_and_their_data_is_passed(runs):
    """Step 6 is in no checkpoint but that after 6 steps: the run goes back to the one after 4."""
    run = runs["back"].run
    assert_same_end(run, runs["both_passed"].run)
    expected = Rollback(at=7, to=4, first=6, last=7)
    assert Troubles.read(run).rollbacks == Troubles.read(last_checkpoint(run)).rollbacks == [expected]
    assert [line["step"] for line in events_of(run, "skipped")] == [6, 7]
    (told,) = events_of(run, "rolled_back")
    assert (told["to"], told["first"], told["last"]) == (4, 6, 7)
    steps = [line["step"] for line in lines_of(run) if "loss" in line and "event" not in line]
    assert steps == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    whole = [line for line in lines_of(runs["both_passed"].run) if "loss" in line]
    ours = [line for line in lines_of(run) if "loss" in line and "event" not in line]
    for one, other in zip(ours, whole, strict=True):
        assert (one["loss"], one["tokens"], one["learning_rate"]) == (
            other["loss"], other["tokens"], other["learning_rate"])  # fmt: skip


def test_a_run_killed_on_its_way_back_goes_the_same_way(runs, make_recipe, tmp_path):
    back = runs["back"]
    recipe = make_recipe(**back.model_dump(mode="json") | {"run": str(tmp_path / "killed")})
    with pytest.raises(Lost):
        launch(recovery_workers.run_with_nan_and_die, 2, recipe, [6, 7])
    # What it had learned after the checkpoint to which it was going back is still there.
    assert last_checkpoint(recipe.run).name == "step_000006"
    launch(recovery_workers.run_with_nan, 2, recipe, [6, 7])
    assert_same_end(recipe.run, back.run)
    assert Troubles.read(recipe.run) == Troubles.read(back.run)
    assert [line.get("event") for line in lines_of(recipe.run) if line.get("event") in ("skipped", "rolled_back")] == [
        "skipped", "skipped", "rolled_back"]  # fmt: skip


def test_a_run_without_a_checkpoint_from_before_stops_with_the_reason(runs, make_recipe, tmp_path):
    """And one that has gone back too often does not start again."""
    fields = runs["back"].model_dump(mode="json") | {"checkpoints": {"every_steps": 100}}
    recipe = make_recipe(**fields | {"run": str(tmp_path / "early")})
    with pytest.raises(InputError, match="steps 2 to 3 were skipped, and no checkpoint is from before them"):
        launch(recovery_workers.run_with_nan, 2, recipe, [2, 3])
    shutil.copytree(runs["back"].run, tmp_path / "often")
    often = make_recipe(**runs["back"].model_dump(mode="json") | {
        "run": str(tmp_path / "often"), "skip": {"most_rollbacks": 0}})  # fmt: skip
    with pytest.raises(InputError, match="has gone back 1 times, the last time for steps 6 to 7, and finds no way on"):
        check(often, 2)


def judge_all(guard: StepGuard, losses: list[float], norm: float = 1.0) -> list[bool]:
    verdicts = [guard.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm)) for loss in losses]
    return [bool(skipped) for skipped, _ in verdicts]


def test_a_spike_is_measured_by_the_losses_before_it():
    """Median 3.05, deviation 1.4826 x 0.05; ten of them are 0.74 nats. With two of them, half a nat is the least."""
    guard = StepGuard(Skip(window_steps=8), torch.device("cpu"))
    assert judge_all(guard, [9.0, 3.0, 50.0, 3.0]) == [False] * 4  # not yet half of the window
    guard.forget()
    assert judge_all(guard, [3.1, 3.0, 3.1, 3.0, 3.05]) == [False] * 5
    before = guard.recent_losses
    assert judge_all(guard, [3.8, 3.79]) == [True, False]
    assert judge_all(guard, [3.1], norm=math.inf) == judge_all(guard, [math.nan]) == [True]
    resumed = StepGuard(Skip(window_steps=8, deviations=2), torch.device("cpu"))
    resumed.recent_losses = before
    assert resumed.recent_losses == before
    assert judge_all(resumed, [3.56, 3.54]) == [True, False]
