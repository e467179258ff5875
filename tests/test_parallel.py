"""Work over processes: results in order, errors passed on, killed workers told."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.parallel import Workers


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 3:
        raise InputError("song 3", "is bad", "mend it")
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes):
    with Workers(processes) as workers:
        assert list(workers.map(square, iter(range(20)))) == [number * number for number in range(20)]
        assert list(workers.map(square, [])) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_workers_error_is_the_callers(processes):
    with Workers(processes) as workers, pytest.raises(InputError, match="song 3: is bad; mend it"):
        list(workers.map(refuse, range(9)))


def test_a_killed_worker_is_one_line():
    with Workers(2) as workers, pytest.raises(InputError, match="a worker process was killed"):
        list(workers.map(die, range(2)))


def wait_for_ever(path: Path) -> None:
    (path / str(os.getpid())).touch()
    threading.Event().wait()


def refuse_once_the_other_waits(path: Path) -> None:
    while not list(path.iterdir()):
        pass
    raise InputError("song 3", "is bad", "mend it")


def call(job: tuple[Callable[[Path], None], Path]) -> None:
    job[0](job[1])


def test_an_error_ends_workers_that_are_still_at_work(tmp_path):
    jobs = [(wait_for_ever, tmp_path), (refuse_once_the_other_waits, tmp_path)]
    with pytest.raises(InputError, match="song 3: is bad"), Workers(2) as workers:
        list(workers.map(call, reversed(jobs)))
    (waiting,) = tmp_path.iterdir()
    assert not psutil.pid_exists(int(waiting.name))


def test_no_process_is_refused():
    with pytest.raises(InputError, match="processes: 0 is too few"):
        Workers(0)


def test_a_workplace_is_for_one_at_a_time_and_cleared_of_litter(tmp_path):
    litter = tmp_path / "out" / ".codes-00001.parquet.x_7abcde"
    kept = [tmp_path / "out" / name for name in (".git", ".own.12345678")]
    for folder in (litter, *kept):
        folder.mkdir(parents=True)
        (folder / ("codes-00001.parquet" if folder == litter else "file")).write_text("half")
    with workplace(tmp_path / "out") as folder:
        assert not litter.exists() and all(folder.exists() for folder in kept)
        with pytest.raises(InputError, match="another run is filling this folder"), workplace(folder):
            pass
    with workplace(tmp_path / "out"):
        pass
    with pytest.raises(InputError, match="is a file"), workplace(kept[0] / "file"):
        pass


def test_those_who_share_a_workplace_keep_out_those_who_do_not(tmp_path):
    with workplace(tmp_path, shared=True), workplace(tmp_path, shared=True):
        with pytest.raises(InputError, match="another run is filling this folder"), workplace(tmp_path):
            pass
    with workplace(tmp_path):
        with pytest.raises(InputError, match="another run is filling this folder"), workplace(tmp_path, shared=True):
            pass
