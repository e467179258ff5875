"""Processes over the nodes of a SLURM job through torch elastic, which starts all of them again when one is lost."""

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from megatron_music.engine.launchers import Start, read_start
from megatron_music.engine.meeting import MEETING_SECONDS, check_address, telling
from megatron_music.engine.processes import STOP_SIGNALS, launch
from megatron_music.errors import InputError
from megatron_music.exits import ExitCode, Hung, Lost, RunEnded, Stopped

_SHUTDOWN_SECONDS = 5
"""Given to the processes beside one that was lost; they wait for it and can't end well."""


def start(function: Callable[..., Any], processes: int, *arguments: Any, restarts: int = 0) -> None:
    """Runs ``function(*arguments)`` in ``processes`` new processes of this machine.

    Where srun has started one task on each of several nodes, of which this is one, it does so on all of them, and
    starts them again up to ``restarts`` times when one is lost. Raises what ``launch`` raises.
    """
    task = read_start(os.environ)
    if task.nodes > 1:
        _launch_over_nodes(task, function, processes, arguments, restarts)
    else:
        launch(function, processes, *arguments)


def _launch_over_nodes(task: Start, function: Callable, processes: int, arguments: tuple, restarts: int) -> None:
    environment, place = os.environ, f"{task.address}:{task.port}"
    check_address(task)
    options = {
        "min_nodes": task.nodes,
        "max_nodes": task.nodes,
        "nproc_per_node": processes,
        # A job that is requeued keeps its number.
        "run_id": f"{environment['SLURM_JOB_ID']}-{environment.get('SLURM_RESTART_COUNT', '0')}",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": place,
        "rdzv_configs": dict.fromkeys(["join_timeout", "read_timeout"], int(MEETING_SECONDS)),
        "local_addr": environment.get("SLURMD_NODENAME"),
        "max_restarts": restarts,
        # Its own way with signals is to end the processes; here they are passed on.
        "signals_to_handle": "SIGQUIT",
        "shutdown_timeout": _SHUTDOWN_SECONDS,
    }
    # A new store for each start: in one for all, processes find the addresses of those that have died.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # by the version of PyTorch
    environment["TORCHELASTIC_SIGNALS_TO_HANDLE"] = options["signals_to_handle"]
    config = LaunchConfig(**{name: value for name, value in options.items() if name in known})
    with _passing_signals_on(), telling(f"waiting at {place} for the tasks of {task.nodes} nodes", _has_processes):
        try:
            ends = elastic_launch(config, _work)(function, arguments)
        except ChildFailedError as error:
            rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            raise _end_of(rank, failure.exitcode) from None
        except (RendezvousConnectionError, RendezvousTimeoutError) as error:
            what = str(error).splitlines()[0] if str(error) else "given up"
            raise Lost(f"the tasks of {task.nodes} nodes did not meet at {place}: {what}") from None
    stopped = next((end for end in ends.values() if end is not None), None)
    if stopped is not None:
        raise Stopped(stopped)


def _has_processes() -> bool:
    return bool(multiprocessing.active_children())


def _work(function: Callable, arguments: tuple) -> str | None:
    try:
        function(*arguments)
    except Stopped as stopped:
        # No failure, after which all would be started again.
        return str(stopped)
    except InputError as error:
        if not error.told_by_another:
            print(f"error: {error}", flush=True)
        raise SystemExit(ExitCode.BAD_INPUT) from None
    except RunEnded as error:
        raise SystemExit(error.code) from None
    return None


def _end_of(rank: int, code: int) -> BaseException:
    if code == ExitCode.HUNG:
        return Hung("no step was done for too long, more often than it may be started again")
    if code < 0:
        return Lost(f"process {rank} was killed by {signal.Signals(-code).name}, as others before it")
    if code in (ExitCode.BAD_INPUT, ExitCode.BAD_MACHINE):
        return SystemExit(code)  # it has said why
    return RuntimeError(f"process {rank} failed with code {code}, as before it; its traceback stands above")


@contextmanager
def _passing_signals_on() -> Iterator[None]:
    def pass_on(number: int, _frame: object) -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)

    handlers = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
