"""Choosing among the checkpoints of a run, which another process may be writing and removing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_music.engine.integrity import names_of_files, synced_marks, write_list
from megatron_music.errors import InputError
from megatron_music.training import run_folder
from megatron_music.training.run_folder import CheckpointState, RunFolder, write_state


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Complete checkpoints of steps 2, 4, 6 and 10, of a file of weights each; the last has more digits than others."""
    run = RunFolder(tmp_path / "run")
    for step in (2, 4, 6, 10):
        folder = run.checkpoint(step) if step < 10 else run.checkpoints / "step_10"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(step))
        write_state(folder, CheckpointState(step, 100 * step, "all", ends_phase=False))
        write_list(folder, synced_marks(folder, names_of_files(folder)))
    return run


def step_of(newest: tuple[Path, CheckpointState] | None) -> int | None:
    return None if newest is None else newest[1].step


def going(monkeypatch, gone: list[str]) -> Callable[[Path], None]:
    """Makes checkpoints go, as those that a run removes, when they are looked at."""
    look = run_folder.size_fault

    def look_late(checkpoint: Path) -> str | None:
        if checkpoint.name in gone:
            shutil.rmtree(checkpoint)
        return look(checkpoint)

    monkeypatch.setattr(run_folder, "size_fault", look_late)


def test_the_newest_is_that_of_the_most_steps(run):
    assert [step_of(run.newest_checkpoint(before)) for before in (None, 11, 10, 5, 2)] == [10, 10, 6, 4, None]
    assert run.newest_checkpoint() == run.complete_checkpoints()[-1]
    assert RunFolder(run.path / "none").newest_checkpoint() is None


def test_damaged_ones_are_passed_over_and_told(run):
    (run.checkpoints / "step_10" / "weights").write_bytes(b"short")
    (run.checkpoint(4) / "weights").unlink()
    told = []
    newest = run.newest_checkpoint(pass_over=lambda checkpoint, fault: told.append((checkpoint.name, fault)))
    assert step_of(newest) == 6
    # Those behind it are not looked at.
    assert told == [("step_10", "weights has 5 bytes where 10 were written")]
    assert [state.step for _, state in run.complete_checkpoints()] == [2, 6]


def test_those_that_go_while_they_are_looked_at_are_none(run, monkeypatch):
    going(monkeypatch, ["step_10", "step_000002"])
    assert step_of(run.newest_checkpoint(pass_over=lambda *told: pytest.fail(str(told)))) == 6
    assert [state.step for _, state in run.complete_checkpoints()] == [4, 6]


def test_a_fault_of_one_that_is_there_is_told(run):
    (run.checkpoints / "step_10" / "state.json").write_text("{}{}")
    write_list(run.checkpoints / "step_10", synced_marks(run.checkpoints / "step_10", ["state.json"]))
    with pytest.raises(InputError, match="state.json: line 1: is not JSON"):
        run.newest_checkpoint()


def test_what_reads_the_newest_goes_on_with_the_next_where_it_goes(run):
    tried = []

    def read(checkpoint: Path, state: CheckpointState) -> bytes:
        tried.append(state.step)
        if len(tried) < 3:
            shutil.rmtree(checkpoint)
        return (checkpoint / "weights").read_bytes()

    assert run.on_newest(read) == bytes(4) and tried == [10, 6, 4]
    with pytest.raises(FileNotFoundError, match="other"):
        run.on_newest(lambda checkpoint, _: (checkpoint / "other").read_bytes())


def test_a_run_without_a_checkpoint_that_stays_is_told(run, monkeypatch):
    with pytest.raises(InputError, match="none: has no complete checkpoint yet; wait for its first"):
        RunFolder(run.path / "none").on_newest(lambda *_: None)

    def read(checkpoint: Path, state: CheckpointState) -> None:
        """The run writes another while this one goes."""
        checkpoint.rename(run.checkpoint(state.step + 2))
        write_state(run.checkpoint(state.step + 2), CheckpointState(state.step + 2, 0, "all", ends_phase=False))
        files = names_of_files(run.checkpoint(state.step + 2))
        write_list(run.checkpoint(state.step + 2), synced_marks(run.checkpoint(state.step + 2), files))
        raise FileNotFoundError(checkpoint)

    with pytest.raises(InputError, match="run: 5 checkpoints were removed while they were read; raise checkpoints.ke"):
        run.on_newest(read)


@pytest.mark.parametrize("content", ["[]", "{}", '{"network": {"layers": 0}, "imported_from": "x"}'])
def test_a_record_of_no_import_is_told(tmp_path, content):
    (tmp_path / "network.json").write_text(content)
    with pytest.raises(InputError, match="network.json: does not tell of an imported network; import it again"):
        run_folder.read_imported(tmp_path)
