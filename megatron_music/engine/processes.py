"""Processes: joining the group that torchrun, SLURM or ``launch`` started, and starting them on one machine."""

import datetime
import errno
import os
import random
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, forkserver, util
from multiprocessing.reduction import DupFd
from typing import Any, TypeVar

import torch
import torch.multiprocessing as multiprocessing

from megatron_music.engine.launchers import AGENT_STORE, Start, read_start
from megatron_music.engine.meeting import check_loopback, meet
from megatron_music.errors import InputError
from megatron_music.exits import ExitCode, Hung, Lost, RunEnded, Stopped
from megatron_music.recipe.layout import Layout
from megatron_music.shared_memory import SHARED_MEMORY, shared_memory, shared_memory_fault

T = TypeVar("T")
_PORTS = 20_000, 32_000
"""Below those that Linux gives to connections (net.ipv4.ip_local_port_range)."""

_COLLECTIVES = datetime.timedelta(hours=2)
"""Timeout of collectives: the watchdog is there before, with stacks; theirs ends a process without."""

_REAP_SECONDS = 1.0
"""For processes that end together to be seen to."""

_SOCKET_PATH_BYTES = 108
"""Of Linux (sockaddr_un), with the zero at its end."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks a run to stop with a checkpoint: the system's, SLURM's and Ctrl-C."""


def join(layout: Layout) -> None:
    """Joins the process group as ``join_world`` does, and makes megatron-core's groups for ``layout``."""
    if not torch.cuda.is_available():
        from megatron_music.engine import cpu

        cpu.install()
    join_world()
    form_groups(layout)


def join_world() -> None:
    """Joins the process group: NCCL on GPUs, gloo on CPUs; a process started alone is a group of one.

    Says whom it waits for where they do not come, and raises what ``read_start`` and ``meet`` raise.
    """
    start, environment = read_start(os.environ), os.environ
    if start.size == 1:
        start = replace(start, address="127.0.0.1", port=int(free_port()))
    environment.update(start.variables())
    # One queue for kernels keeps the order of communication and computation that tensor parallelism relies on. CUDA
    # reads it when it starts on a device.
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = {}
    if torch.cuda.is_available():
        gpu = start.gpu(torch.cuda.device_count())
        torch.cuda.set_device(gpu)
        device = {"device_id": torch.device("cuda", gpu)}
    group = {"store": meet(start, _COLLECTIVES), "rank": start.rank, "world_size": start.size, "timeout": _COLLECTIVES}
    torch.distributed.init_process_group("nccl" if device else "gloo", **group, **device)


def form_groups(layout: Layout, **options: Any) -> None:
    """Makes megatron-core's groups of processes for ``layout``, with further ``options`` of its own."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.interleave if layout.interleave > 1 else None,
        context_parallel_size=layout.context,
        **options,
    )


def leave() -> None:
    """Leaves megatron-core's groups and the process group."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def from_first(function: Callable[[], T]) -> T:
    """What ``function`` gives on the first process, on all of them; all call it, and all raise an InputError of it."""
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = function()
        except InputError as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        outcome[1].told_by_another = torch.distributed.get_rank() > 0
        raise outcome[1]
    return outcome[0]


def launch(function: Callable[..., Any], processes: int, *arguments: Any) -> None:
    """Runs ``function(*arguments)`` in ``processes`` new processes of this machine, as torchrun would.

    ``function`` must be importable. SIGTERM, SIGUSR1 and a first Ctrl-C are passed on to the processes; a second Ctrl-C
    ends them, as the end of this process does.

    Raises:
        InputError, RunEnded: as the first failing process raised it; the others are ended. ``Stopped`` only once all
            have ended. InputError too where /dev/shm can't be used.
        Hung: a process' watchdog has ended it.
        Lost: a process was killed.
        RuntimeError: with the traceback of the first process that raised anything else.
    """
    context = _context()
    port = free_port()
    with _signals_held(), shared_memory():
        errors = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(_Surroundings(), function, rank, processes, port, errors, arguments))
        for rank in range(processes)
    ]
    with _passing_signals_to(workers) as asked:
        with _threads_for(processes):
            _start(workers, context, asked)
        try:
            _wait(workers, errors, asked)
        finally:
            for worker in workers:
                _sweep(worker)


def _context() -> Any:
    """How processes are made: without a GPU they are forked from one that has loaded megatron-core, once for all.

    It takes seconds to load. What it loads with a GPU may start CUDA, which must not be forked; and it is spoken to by
    a socket, for whose file there may be no place.
    """
    if torch.cuda.is_available() or not _sockets_have_place():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megatron_music.engine.engine"])
    return context


def _sockets_have_place() -> bool:
    """Whether the folder for temporary files can be written, and its path is short enough for a socket in it."""
    try:
        folder = util.get_temp_dir()
    except OSError:
        return False
    return len(os.fsencode(os.path.join(folder, "listener-12345678"))) < _SOCKET_PATH_BYTES


@contextmanager
def _signals_held() -> Iterator[None]:
    """Lets what asks to stop wait; helpers that are started meanwhile let it wait for ever.

    SLURM signals every process of a step: the queue's tracker of semaphores and the server of forks have to live on.
    A thread has signals of its own to hold, and its helpers have them from it: any thread may launch.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _threads_for(processes: int) -> Iterator[None]:
    """Sets the threads of each process where the user has not: arithmetic libraries read them when they load."""
    if os.environ.get("OMP_NUM_THREADS"):
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _start(workers: list, context: Any, asked: list[int]) -> None:
    if context.get_start_method() == "forkserver":
        with _signals_held():
            forkserver.ensure_running()
    for worker in workers:
        worker.start()
        for number in asked[-1:]:  # asked while the process had no id
            os.kill(worker.pid, number)


class _Surroundings:
    """Environment, threads, standard output and error of who pickles it, for who unpickles it.

    A process that is forked has those of the server.
    """

    def __reduce__(self) -> tuple:
        return _take_surroundings, (dict(os.environ), DupFd(1), DupFd(2))


def _take_surroundings(environment: dict[str, str], *outputs: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    threads = environment["OMP_NUM_THREADS"].split(",")[0].strip()
    if threads.isdecimal() and int(threads):  # what the arithmetic libraries pass over as well
        torch.set_num_threads(int(threads))
    for number, output in enumerate(outputs, 1):
        descriptor = output.detach()
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)


def _sweep(worker: Any) -> None:
    """Ends a process and those that it has started, which would outlive one that was killed."""
    if worker.is_alive():
        worker.kill()
    worker.join()
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)


@contextmanager
def _passing_signals_to(workers: list) -> Iterator[list[int]]:
    """Yields the list of the signals that this process was sent to stop."""
    asked: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield asked
        return
    handlers = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait(workers: list, errors: Any, asked: list[int]) -> None:
    waiting = {worker.sentinel: (rank, worker) for rank, worker in enumerate(workers)}
    stopped = None
    while waiting:
        ended = [waiting.pop(sentinel) for sentinel in connection.wait(list(waiting))]
        for _, worker in ended:
            worker.join()
        if waiting and any(worker.exitcode for _, worker in ended):
            # Who failed because another was killed can be seen before it.
            late = [waiting.pop(sentinel) for sentinel in connection.wait(list(waiting), _REAP_SECONDS)]
            for _, worker in late:
                worker.join()
            ended += late
        # Those that were killed first: the others fail because of them.
        for rank, worker in sorted(ended, key=lambda item: item[1].exitcode):
            error = _end_of(f"process {rank} of {len(workers)}", worker.exitcode, errors, asked)
            if worker.exitcode == ExitCode.STOPPED:
                stopped = error
            elif error is not None:
                raise error
    if stopped is not None:
        raise stopped


def _end_of(name: str, code: int, errors: Any, asked: list[int]) -> Exception | None:
    """What the end of a process means; None where it ended well."""
    if code == 0:
        return None
    if code < 0:
        if -code in asked:
            return Stopped("stopped before anything was done; run it again to go on")
        return Lost(f"{name} was killed by {signal.Signals(-code).name}")
    if errors.empty():
        if code == ExitCode.HUNG:
            return Hung(f"{name} found that no step was done for too long, and ended the run")
        return Lost(f"{name} ended with code {code} and without a word")
    error, trace = errors.get()
    if error is None and SHARED_MEMORY in trace and os.strerror(errno.ENOSPC) in trace:  # so NCCL says it
        return shared_memory_fault(os.strerror(errno.ENOSPC))
    return error if error is not None else RuntimeError(f"{name} failed:\n{trace}")


def _work(
    _surroundings: None, function: Callable, rank: int, processes: int, port: str, errors: Any, arguments: tuple
) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.pop(AGENT_STORE, None)  # of a torchrun around this
    os.environ.update(Start(None, rank, processes, rank, "127.0.0.1", int(port)).variables())
    try:
        function(*arguments)
    except (InputError, RunEnded) as error:
        errors.put((error, ""))
        sys.exit(getattr(error, "code", 1))
    except BaseException:
        errors.put((None, traceback.format_exc()))
        sys.exit(1)


def _end_with_parent() -> None:
    """Ends this process with the one that started it, however that ended: it would hold GPUs and the run folder."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os.killpg(0, signal.SIGKILL)


def free_port() -> str:
    """A TCP port of the loopback interface that nobody uses now, nor will soon: no port that connections are given.

    Processes take seconds to start, in which one of the system's choice would go to any connection of the machine.
    Raises InputError where there is no loopback interface.
    """
    check_loopback()
    with socket.socket() as probe:
        while True:
            port = random.SystemRandom().randrange(*_PORTS)
            try:
                probe.bind(("127.0.0.1", port))
                return str(port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
