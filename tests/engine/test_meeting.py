"""Processes that wait for each other say for whom, and where; and what keeps them from meeting is told."""

import datetime
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_music.engine import meeting
from megatron_music.engine.launchers import Start
from megatron_music.engine.processes import free_port
from megatron_music.errors import InputError
from megatron_music.exits import Lost

HOUR = datetime.timedelta(hours=1)


def place_of(rank, size, **more):
    return Start("srun", rank, size, rank, "127.0.0.1", int(free_port()), **more)


@pytest.fixture
def impatient(monkeypatch):
    """A wait is told of at once, and given up at once."""
    monkeypatch.setattr(meeting, "_FIRST_LINE_SECONDS", 0)
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0)


def test_who_does_not_come_is_named_with_the_place(impatient):
    start = place_of(0, 4)
    with pytest.raises(Lost) as caught:
        meeting.meet(start, HOUR)
    assert str(caught.value) == (f"waiting at 127.0.0.1:{start.port} for 3 of 4 processes to come: ranks 1, 2, 3; "
                                 "given up after 0 minutes")  # fmt: skip


def test_the_first_process_is_waited_for_by_the_others(impatient):
    start = place_of(1, 2)
    with pytest.raises(Lost, match=f"waiting for process 0 at 127.0.0.1:{start.port}, where nobody answers yet"):
        meeting.meet(start, HOUR)


def test_a_line_is_said_while_others_are_waited_for_and_they_may_come_yet(monkeypatch):
    """The second process comes once the first has said that it is missing."""
    first = place_of(0, 2)
    second = Start("srun", 1, 2, 1, first.address, first.port)
    said, came = [], []

    def say(line, **_):
        said.append(line)
        if not came:
            came.append(threading.Thread(target=meeting.meet, args=(second, HOUR)))
            came[0].start()

    monkeypatch.setattr(meeting, "_FIRST_LINE_SECONDS", 0)
    monkeypatch.setattr(meeting, "_LINE_SECONDS", 3600)
    monkeypatch.setattr(meeting.console, "print", say)
    store = meeting.meet(first, HOUR)
    came[0].join()
    assert said[0] == f"waiting at 127.0.0.1:{first.port} for 1 of 2 processes to come: rank 1 (0 s so far)"
    store.set("key", "value")
    assert store.timeout == HOUR


def test_two_processes_of_one_rank_are_told_apart():
    host = place_of(0, 3)
    others = [Start("srun", rank, 3, rank, host.address, host.port) for rank in (1, 1, 2)]
    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(meeting.meet, start, HOUR) for start in (host, *others)]
    faults = [str(end.exception()) for end in ends if end.exception() is not None]
    assert faults == [f"RANK: 1 is that of two processes at 127.0.0.1:{host.port}; set it in each task, not before "
                      "srun starts them"]  # fmt: skip


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Lost) as caught:
            meeting.meet(Start("srun", 0, 2, 0, "127.0.0.1", port), HOUR)
    assert str(caught.value) == (f"MASTER_PORT: process 0 can't listen at 127.0.0.1:{port} on {socket.gethostname()} "
                                 "(Address already in use); export another, or end what listens there")  # fmt: skip


def test_an_address_that_nobody_has_is_told():
    with pytest.raises(InputError, match=r"MASTER_ADDR: 'no\.\.name' can't be resolved \(.*\); export the name"):
        meeting.meet(Start("srun", 1, 2, 1, "no..name", 29500), HOUR)


def test_a_machine_without_loopback_is_told_at_once():
    alone = [shutil.which("unshare") or "unshare", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a network namespace")
    code = "from megatron_music.engine.processes import free_port\ntry: free_port()\nexcept ValueError as e: print(e)"
    done = subprocess.run([*alone, sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout == ("127.0.0.1: can't be reached: this machine has no loopback interface that is up, over which "
                           "processes meet; `ip link set lo up`, or a container with a network\n")  # fmt: skip


def test_something_else_that_listens_and_says_nothing_is_told(impatient, monkeypatch):
    monkeypatch.setattr(meeting, "_CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(meeting, "_STORE_SECONDS", 0.1)
    before = threading.enumerate()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(Lost) as caught:
            meeting.meet(Start("srun", 1, 2, 1, "127.0.0.1", port), HOUR)
    assert str(caught.value) == (f"127.0.0.1:{port} has answered, and not as the store of process 0; given up after 0 "
                                 "minutes")  # fmt: skip
    for thread in set(threading.enumerate()).difference(before):  # whose end torch tells on standard error
        thread.join()


def test_process_0_that_goes_away_is_told():
    """Once the second process has come, while the third is waited for."""
    start = place_of(1, 3)
    code = (
        "import datetime, os\n"
        "from megatron_music.engine import launchers, meeting\n"
        "meeting._gather = lambda store, *_: (store.wait(['rank_1']), os._exit(0))\n"
        f"meeting.meet(launchers.Start('srun', 0, 3, 0, '127.0.0.1', {start.port}), datetime.timedelta(hours=1))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]):
        with pytest.raises(Lost) as caught:
            meeting.meet(start, HOUR)
    assert str(caught.value) == f"process 0 at 127.0.0.1:{start.port} went away while others were waited for"


def test_a_name_that_can_not_be_resolved_just_now_is_asked_for_again(monkeypatch):
    answers = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), None]
    monkeypatch.setattr(meeting, "_NAME_PAUSE_SECONDS", 0)
    monkeypatch.setattr(meeting, "_name_fault", lambda _: answers.pop(0))
    meeting.check_address(Start("srun", 0, 2, 0, "node7"))
    assert not answers
