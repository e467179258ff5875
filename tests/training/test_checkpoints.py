"""Checkpoints of whole runs: damaged ones, a full disk, which are kept, and what an unreadable shard leaves."""

import json
import shutil
import subprocess

import checkpoint_workers
import pytest
from metric_lines import measured

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.engine.integrity import require_whole, size_fault
from megatron_music.engine.processes import free_port, launch
from megatron_music.errors import InputError
from megatron_music.training.run import check, train
from megatron_music.training.run_folder import RunFolder, read_state

QUIET = {"log_every_steps": 1}


@pytest.fixture
def short(make_recipe):
    """A recipe of two phases of two steps; keywords replace its fields."""
    phases = [phase.model_dump(mode="json") | {"tokens": 256} for phase in make_recipe().phases[:2]]
    return lambda **fields: make_recipe(**{"phases": phases, "watch": QUIET, **fields})


def metrics_of(run):
    return measured(run / "metrics.jsonl")


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def steps(*numbers):
    return [f"step_{number:06d}" for number in numbers]


def test_damaged_checkpoints_are_passed_over(short, capfd):
    recipe = short()
    last, before = "step_000004", "step_000003"
    damages = {
        "truncated": {last: "truncated"},
        "bit-flipped": {last: "bit-flipped"},
        "empty": {last: "empty"},
        "listless": dict.fromkeys(steps(1, 2, 3, 4), "listless"),
        "two": {last: "empty", before: "bit-flipped"},
        "all": dict.fromkeys(steps(1, 2, 3, 4), "truncated"),
    }
    train(recipe, 2)
    launch(checkpoint_workers.run_damaged, 2, recipe, damages, [free_port() for _ in damages])
    told = capfd.readouterr().err
    uninterrupted, files = metrics_of(recipe.run), names(recipe.run)
    assert [line["step"] for line in uninterrupted] == [1, 2, 3, 4] and files == steps(1, 2, 3, 4)
    # Checkpoints without lists, of before there were any, are read.
    listless = recipe.run.with_name("listless")
    assert names(listless) == files and metrics_of(listless) == uninterrupted
    for name in ("truncated", "bit-flipped", "empty", "two"):
        damaged, copy = damages[name], recipe.run.with_name(name)
        # The damaged are still there, their steps were done again, and came out the same.
        assert names(copy) == sorted([*files, *(f"damaged_{step}" for step in damaged)])
        assert metrics_of(copy) == uninterrupted
        assert size_fault(copy / "checkpoints" / last) is None
    checkpoints = recipe.run.with_name("truncated") / "checkpoints"
    size = (recipe.run / "checkpoints" / last / "__0_0.distcp").stat().st_size
    fault = f"__0_0.distcp has {size // 2:,} bytes where {size:,} were written"
    assert f"{checkpoints / last} is damaged and passed over: {fault}; it is kept as damaged_{last}" in told
    assert "__0_0.distcp holds other bytes than were written; it is kept" in told
    assert "passed over: it is empty; it is kept" in told
    error = (recipe.run.with_name("all") / "error.txt").read_text()
    aside = ", ".join(f"damaged_{step}" for step in files)
    what = f"{recipe.run.with_name('all')}/checkpoints: no checkpoint of this run is whole ({aside})"
    assert error == f"{what}; restore one as step_N, or choose another run folder (--set run=...)"


def test_asynchronous_and_synchronous_saves_are_equal_and_milestones_are_kept(short, tmp_path):
    """Phases end after steps 2 and 4, and step 3 is the first after 300 tokens."""
    kept = {
        "latest": ({"keep": 1}, [2, 4]),
        "tokens": ({"keep": 1, "milestones_every_tokens": 300}, [2, 3, 4]),
        "steps": ({"keep": 1, "every_steps": 100, "milestones_every_steps": 1, "asynchronous": False}, [1, 2, 3, 4]),
    }
    recipes = [
        short(run=str(tmp_path / name), checkpoints={"every_steps": 1, **options})
        for name, (options, _) in kept.items()
    ]
    launch(checkpoint_workers.run_all, 1, recipes)
    for name, (_, expected) in kept.items():
        assert names(tmp_path / name) == steps(*expected)
    states = [read_state(tmp_path / "tokens" / "checkpoints" / name) for name in steps(2, 3, 4)]
    assert [(state.is_milestone, state.ends_phase) for state in states] == [(False, True), (True, False), (False, True)]
    for step in steps(2, 4):
        beside, waited = (CheckpointReader(tmp_path / name / "checkpoints" / step) for name in ("latest", "steps"))
        assert sorted(beside._metadata.state_dict_metadata) == sorted(waited._metadata.state_dict_metadata)
        for name in beside._metadata.state_dict_metadata:
            if name in beside:
                assert beside.read(name).equal(waited.read(name)), name
    assert metrics_of(tmp_path / "latest") == metrics_of(tmp_path / "steps")

    # A damaged checkpoint that is named is refused, and stays as it is.
    branch, checkpoint = short(run=str(tmp_path / "branch")), tmp_path / "steps" / "checkpoints" / "step_000003"
    checkpoint_workers.spoil(checkpoint, "bit-flipped")
    with pytest.raises(InputError, match="is damaged: __0_0.distcp holds other bytes than were written; choose ano"):
        train(branch, 1, checkpoint)
    checkpoint_workers.spoil(checkpoint, "truncated")
    with pytest.raises(InputError, match="is damaged: __0_0.distcp has .* bytes where .* were written; choose another"):
        check(branch, 1, checkpoint)
    assert names(tmp_path / "steps") == steps(1, 2, 3, 4)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few checkpoints' size, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_ends_no_run_but_at_its_end_and_leaves_whole_checkpoints(short, small_disk, asynchronous, capfd):
    disk, enlarge = small_disk
    recipe = short(checkpoints={"every_steps": 1, "keep": 100, "asynchronous": asynchronous})
    recipe.run.mkdir()
    (recipe.run / "checkpoints").symlink_to(disk)
    with pytest.raises(InputError, match=r"the last one can't be written: .*: No space left on device; make room"):
        train(recipe, 1)
    told = capfd.readouterr().err
    whole = names(recipe.run)
    assert 0 < len(whole) < 4 and whole == steps(*range(1, len(whole) + 1))
    for name in whole:
        require_whole(recipe.run / "checkpoints" / name)
    lines = [json.loads(line) for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]
    failed = [line for line in lines if line.get("event") == "checkpoint_failed"]
    assert [line["step"] for line in failed] == list(range(len(whole) + 1, 5))
    assert f"WARNING: the checkpoint after step {len(whole) + 1} can't be written: " in told
    trained = [line for line in metrics_of(recipe.run) if "loss" in line]
    enlarge()
    train(recipe, 1)
    assert metrics_of(recipe.run) == trained and [line["step"] for line in trained] == [1, 2, 3, 4]
    assert names(recipe.run) == steps(1, 2, 3, 4)


def test_an_unreadable_shard_ends_the_run_with_its_name(short, corpus, tmp_path):
    recipe = short(corpus=str(shutil.copytree(corpus, tmp_path / "own")))
    with pytest.raises(InputError, match=r"own/songs.bin: ends before byte \d+; it shrank while it was read"):
        launch(checkpoint_workers.run_with_a_failing_shard, 2, recipe)
    # What was being written is whole, or is not there.
    found = RunFolder(recipe.run).complete_checkpoints()
    assert [state.step for _, state in found] in ([1], [1, 2], [1, 2, 3])
    for path, _ in found:
        require_whole(path)
