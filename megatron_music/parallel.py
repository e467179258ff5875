"""Work spread over processes, with results in the order of the jobs whatever the number of processes.

Nothing heavy is imported here: a worker sets its thread count before the libraries that read it are loaded.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TypeVar

from megatron_music.errors import InputError
from megatron_music.shared_memory import shared_memory

Job = TypeVar("Job")
Result = TypeVar("Result")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """Processor cores that this process may use, which a SLURM job or a container may have limited."""
    return len(os.sched_getaffinity(0))


class Workers:
    """``processes`` workers (this process alone where it is 1), started when the first job is there.

    Workers are spawned, not forked, since the parent may hold threads and a GPU. They end with their parent, even where
    that is killed, so that a restarted run never meets its predecessor's; and at once where the block that uses them
    ends with an error or Ctrl-C.
    """

    def __init__(self, processes: int | None = None):
        self.processes = usable_cores() if processes is None else processes
        if self.processes < 1:
            raise InputError("--processes", f"{self.processes} is too few", "name 1 or more")
        self._pool: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            if kind is not None:
                self._alive.close()
            self._pool.shutdown(cancel_futures=True)
            self._alive.close()

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yields ``function(job)`` in the order of ``jobs``; a few jobs for each worker are taken ahead, no more.

        Raises what ``function`` raises, and InputError where a worker was killed or /dev/shm can't be used.
        """
        if self.processes == 1:
            yield from map(function, jobs)
            return
        pending: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                pending.append(self._executor().submit(function, job))
                if len(pending) >= 2 * self.processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            mend = (
                "it may have run out of memory: name fewer --processes (--workers of `encode`) and run again, finished "
                "parts are kept"
            )
            raise InputError("worker", "a worker process was killed", mend) from None

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            threads = max(1, usable_cores() // self.processes)
            context = multiprocessing.get_context("spawn")
            # This process alone holds the end for writing: workers see it closed when it is, or when the process ends.
            watched, self._alive = context.Pipe(duplex=False)
            with shared_memory():
                self._pool = ProcessPoolExecutor(self.processes, context, _start_worker, (threads, watched))
        return self._pool


def limit_threads(threads: int) -> None:
    """Sets how many threads the libraries take that are loaded from now on, where the user has not."""
    for variable in _THREAD_VARIABLES:
        os.environ.setdefault(variable, str(threads))


def _start_worker(threads: int, watched: Connection) -> None:
    limit_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()


def _end_with_parent(watched: Connection) -> None:
    watched.poll(None)
    os._exit(1)
