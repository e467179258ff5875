"""Where processes meet before their group is made: a store that all reach, and lines that say who is waited for."""

import datetime
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megatron_music.engine.launchers import Start
from megatron_music.errors import InputError
from megatron_music.exits import Lost
from megatron_music.progress import console
from megatron_music.tables import numbers_in_words

_FIRST_LINE_SECONDS, _LINE_SECONDS = 10.0, 60.0
"""A wait is told of after so long, and then again and again."""

MEETING_SECONDS = 1800.0
"""Nodes of one job come minutes apart, where images and environments are loaded; who is not there then won't come."""

_CONNECT_SECONDS, _STORE_SECONDS = 5.0, 60.0
"""For an attempt whether anybody answers, and for what answers to be a store: thousands may come to it at once."""

_NAME_SECONDS, _NAME_PAUSE_SECONDS = 30.0, 1.0
"""For a name that can't be resolved just now, which is asked for again."""


def meet(start: Start, timeout: datetime.timedelta) -> torch.distributed.Store:
    """The store of all processes of ``start``, once all of them are there; ``timeout`` is that of its later use.

    Raises:
        InputError: MASTER_ADDR is not known, or two processes have the same rank.
        Lost: processes did not come, process 0 went away, or something else listens where they should meet.
    """
    check_address(start)
    place, address = f"{start.address}:{start.port}", (start.address, start.port)
    speaks = start.local_rank == 0  # one line a machine is enough
    if start.rank == 0 and not start.agent_store:
        store = _host(start, place)
        what = f"process 0, on {socket.gethostname()}, does not reach itself at {place}: is MASTER_ADDR its address?"
        _wait(lambda: _answers(address), lambda: what)
    else:
        # torch's own attempts print a stack for each that fails.
        what = f"waiting for process 0 at {place}, where nobody answers yet"
        _wait(lambda: _answers(address), lambda: what, speaks)
        store = _store(start, start.address, place, speaks)
    store.set_timeout(timeout)
    if start.restart is not None:
        store = torch.distributed.PrefixStore(f"restart_{start.restart}", store)
    try:
        _gather(torch.distributed.PrefixStore("meeting", store), start, place)
    except torch.distributed.DistError:
        raise Lost(f"process 0 at {place} went away while others were waited for") from None
    return store


def check_loopback() -> None:
    """Raises InputError where processes of this machine can't reach each other, as in a container without a network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if not _answers(server.getsockname()):
            raise InputError("127.0.0.1", "can't be reached: this machine has no loopback interface that is up, over "
                             "which processes meet", "`ip link set lo up`, or a container with a network")  # fmt: skip


def check_address(start: Start) -> None:
    """Raises InputError where nobody knows the name or address in MASTER_ADDR."""
    until = time.monotonic() + _NAME_SECONDS
    while (fault := _name_fault(start)) is not None:
        if getattr(fault, "errno", None) != socket.EAI_AGAIN or time.monotonic() > until:
            reason = getattr(fault, "strerror", None) or fault
            raise InputError("MASTER_ADDR", f"{start.address!r} can't be resolved ({reason})",
                             "export the name or address of the machine of process 0")  # fmt: skip
        time.sleep(_NAME_PAUSE_SECONDS)


def _name_fault(start: Start) -> Exception | None:
    try:
        socket.getaddrinfo(start.address, start.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error
    return None


@contextmanager
def telling(what: str, is_done: Callable[[], bool]) -> Iterator[None]:
    """Says what the block waits for, as ``meet`` does, until ``is_done`` or its end."""
    ended = threading.Event()
    wait = {"is_done": lambda: ended.is_set() or is_done(), "what": lambda: what, "most_seconds": math.inf}
    threading.Thread(target=_wait, kwargs=wait, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _host(start: Start, place: str) -> torch.distributed.Store:
    check_loopback()
    try:
        socket.create_server(("", start.port)).close()
    except OSError as error:
        what = f"process 0 can't listen at {place} on {socket.gethostname()} ({os.strerror(error.errno)})"
        raise Lost(f"MASTER_PORT: {what}; export another, or end what listens there") from None
    return _store(start, "127.0.0.1", place, is_master=True)


def _store(
    start: Start, host: str, place: str, speaks: bool = True, is_master: bool = False
) -> torch.distributed.Store:
    made: list[torch.distributed.Store | RuntimeError] = []

    def connect() -> None:
        timeout = datetime.timedelta(seconds=_STORE_SECONDS)
        options = {"is_master": is_master, "wait_for_workers": False, "timeout": timeout}
        try:
            made.append(torch.distributed.TCPStore(host, start.port, start.size, **options))
        except RuntimeError as error:
            made.append(error)

    # In a thread: torch waits for ever for the first word of what has taken the connection.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    _wait(lambda: bool(made), lambda: f"{place} has answered, and not as the store of process 0", speaks)
    if isinstance(made[0], RuntimeError):
        raise Lost(f"process {start.rank} can't join at {place}: {str(made[0]).splitlines()[0]}")
    return made[0]


def _gather(store: torch.distributed.Store, start: Start, place: str) -> None:
    """Waits for all; the one that came first tells of it."""
    same = store.add(f"rank_{start.rank}", 1)
    if same > 1 and not start.agent_store:  # whose store may be that of the start before
        raise InputError("RANK", f"{start.rank} is that of two processes at {place}",
                         "set it in each task, not before srun starts them")  # fmt: skip
    is_first = store.add("come", 1) == 1

    def waited_for() -> str:
        absent = [rank for rank in range(start.size) if not store.check([f"rank_{rank}"])]
        ranks = f"rank{'s' * (len(absent) > 1)} {numbers_in_words(absent)}"
        return f"waiting at {place} for {len(absent)} of {start.size} processes to come: {ranks}"

    _wait(lambda: store.add("come", 0) >= start.size, waited_for, is_first)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _wait(
    is_done: Callable[[], bool],
    what: Callable[[], str],
    tells: bool = True,
    most_seconds: float | None = None,
) -> None:
    """Returns once ``is_done``; raises Lost, with ``what`` is waited for, where it takes too long."""
    most_seconds = MEETING_SECONDS if most_seconds is None else most_seconds
    begin, pause, told = time.monotonic(), 0.01, 0
    while not is_done():
        waited = time.monotonic() - begin
        if waited >= most_seconds:
            raise Lost(f"{what()}; given up after {most_seconds / 60:g} minutes")
        if tells and waited >= _FIRST_LINE_SECONDS + told * _LINE_SECONDS:
            console.print(f"{what()} ({waited:.0f} s so far)")
            told += 1
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)
