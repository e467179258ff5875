"""Processes: joining the group that torchrun, SLURM or ``launch`` started, and starting them on one machine."""

import datetime
import errno
import os
import random
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from megatron_music.errors import InputError
from megatron_music.recipe.layout import Layout

_PORTS = 20_000, 32_000
"""Below those that Linux gives to connections (net.ipv4.ip_local_port_range)."""


def started_by_a_launcher() -> bool:
    """Whether torchrun or srun has started this process as one of several."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def world_size() -> int:
    """Processes of the launcher that started this one, or 1."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) if started_by_a_launcher() else 1


def join(layout: Layout) -> None:
    """Joins the process group (NCCL on GPUs, gloo on CPUs) and makes megatron-core's groups for ``layout``.

    Reads torchrun's variables, or SLURM's where those are missing; a process started alone is a group of one.
    """
    environment = os.environ
    if "RANK" not in environment and started_by_a_launcher():
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        if "MASTER_ADDR" not in environment:
            raise InputError("MASTER_ADDR", "is not set", "export MASTER_ADDR and MASTER_PORT in the sbatch file")
    if "RANK" not in environment:
        environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    environment.setdefault("MASTER_PORT", "29500")
    # One queue for kernels keeps the order of communication and computation that tensor parallelism relies on. CUDA
    # reads it when it starts on a device.
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    else:
        from megatron_music.engine import cpu

        cpu.install()
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(minutes=10))
    form_groups(layout)


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


def launch(function: Callable[..., Any], processes: int, *arguments: Any) -> None:
    """Runs ``function(*arguments)`` in ``processes`` new processes of this machine, as torchrun would.

    ``function`` must be importable. Raises InputError as the first failing process raised it, or RuntimeError with that
    process' traceback; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    port, errors = free_port(), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(function, rank, processes, port, errors, arguments))
        for rank in range(processes)
    ]
    threads = os.environ.get("OMP_NUM_THREADS")
    # Read by the workers' arithmetic libraries when they load, so it has to stand before they start.
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        for worker in workers:
            worker.start()
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
    try:
        _wait(workers, errors)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()


def _wait(workers: list, errors: Any) -> None:
    waiting = {worker.sentinel: (rank, worker) for rank, worker in enumerate(workers)}
    while waiting:
        for sentinel in connection.wait(list(waiting)):
            rank, worker = waiting.pop(sentinel)
            worker.join()
            if worker.exitcode == 0:
                continue
            if errors.empty():
                raise RuntimeError(f"process {rank} of {len(workers)} ended with code {worker.exitcode}")
            error, trace = errors.get()
            raise error if error is not None else RuntimeError(f"process {rank} of {len(workers)} failed:\n{trace}")


def _work(function: Callable, rank: int, processes: int, port: str, errors: Any, arguments: tuple) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    try:
        function(*arguments)
    except InputError as error:
        errors.put((error, ""))
        sys.exit(1)
    except BaseException:
        errors.put((None, traceback.format_exc()))
        sys.exit(1)


def free_port() -> str:
    """A TCP port of the loopback interface that nobody uses now, nor will soon: no port that connections are given.

    Processes take seconds to start, in which one of the system's choice would go to any connection of the machine.
    """
    with socket.socket() as probe:
        while True:
            port = random.SystemRandom().randrange(*_PORTS)
            try:
                probe.bind(("127.0.0.1", port))
                return str(port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
