import json
import multiprocessing
import subprocess
import sys
import tempfile

import failing_worker
import pytest
import telling_worker

from megatron_music.engine import processes
from megatron_music.engine.launchers import AGENT_STORE
from megatron_music.errors import InputError
from megatron_music.exits import Stopped


def test_bad_input_in_one_process_ends_all_with_its_line():
    with pytest.raises(InputError) as caught:
        processes.launch(failing_worker.fail_on_rank_1, 2, "input")
    assert str(caught.value) == "recipe.yaml: seed: is odd; make it even"


def test_an_error_in_one_process_ends_all_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)process 1 of 2 failed.*fail_on_rank_1.*KeyError: 'lost'"):
        processes.launch(failing_worker.fail_on_rank_1, 2, "other")


def launch_and_hear(folder, count, capfd):
    """What the processes of ``telling_worker`` were given and, in order, what they wrote to both outputs."""
    folder.mkdir()
    processes.launch(telling_worker.tell, count, folder)
    said = capfd.readouterr()
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    return told, sorted(said.out.splitlines()), sorted(said.err.splitlines())


def expected(count, colour, threads):
    ranks = [str(rank) for rank in range(count)]
    told = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "COLOUR": colour, "OMP_NUM_THREADS": threads,
             "threads": int(threads[0])} for rank in ranks]  # fmt: skip
    return told, [f"out of {rank}" for rank in ranks], [f"error of {rank}" for rank in ranks]


def test_every_launch_has_the_environment_the_threads_and_the_output_of_its_moment(tmp_path, monkeypatch, capfd):
    """Though all its processes are forked from one that was started before."""
    for colour, count, threads in (("red", 2, "1"), (None, 1, "3"), ("blue", 1, "2,1")):
        if colour:
            monkeypatch.setenv("COLOUR", colour)
        else:
            monkeypatch.delenv("COLOUR")
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert launch_and_hear(tmp_path / str(colour), count, capfd) == expected(count, colour, threads)


def test_processes_that_are_spawned_as_with_a_gpu_have_the_same(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processes, "_context", lambda: multiprocessing.get_context("spawn"))
    monkeypatch.setenv("COLOUR", "green")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch_and_hear(tmp_path / "spawned", 1, capfd) == expected(1, "green", "3")


@pytest.mark.parametrize("folder", ["t" * 90, "nowhere"])
def test_a_folder_for_temporary_files_that_holds_no_socket_is_no_hindrance(tmp_path, monkeypatch, capfd, folder):
    """Its path is too long for one, or it can't be written: processes are then spawned."""
    place = tmp_path / folder
    if folder != "nowhere":
        place.mkdir()
    monkeypatch.delenv("COLOUR", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with monkeypatch.context() as context:
        context.setattr(tempfile, "tempdir", str(place))
        context.setitem(multiprocessing.current_process()._config, "tempdir", None)
        told = launch_and_hear(tmp_path / "told", 1, capfd)
    assert told == expected(1, None, "1")


def test_what_does_not_fit_into_shared_memory_is_told_with_the_mend():
    with pytest.raises(InputError) as caught:
        processes.launch(failing_worker.fail_on_rank_1, 2, "shared memory")
    assert str(caught.value).startswith("/dev/shm: can't be used by processes (No space left on device); give it 1 GB")


def test_who_is_asked_to_stop_while_processes_start_stops_them():
    with pytest.raises(Stopped, match="stopped before anything was done"):
        processes.launch(telling_worker.wait, 1, telling_worker.AsksToStop())


def test_helpers_live_through_what_stops_a_run():
    """SLURM signals every process of a step; who holds or ignores a signal shows it in /proc. In a fresh process."""
    helpers = subprocess.run([sys.executable, telling_worker.__file__], capture_output=True, text=True, check=True)
    for line in helpers.stdout.splitlines():
        blocked, ignored, caught = (int(mask, 16) for mask in line.split())
        assert all((blocked | ignored | caught) >> number - 1 & 1 for number in processes.STOP_SIGNALS)
    assert len(helpers.stdout.splitlines()) == 2


def test_what_a_torchrun_around_it_has_set_is_not_for_new_processes(tmp_path, monkeypatch, capfd):
    around = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "gone.invalid", "MASTER_PORT": "1", AGENT_STORE: "True"}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    processes.launch(telling_worker.sum_ranks, 2, tmp_path)
    assert [(tmp_path / name).read_text() for name in "01"] == ["1", "1"]
    assert capfd.readouterr().err == ""
