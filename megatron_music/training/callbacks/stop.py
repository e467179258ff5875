"""Stopping when asked to: all processes after the same step, with a checkpoint of it."""

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Self

import torch

from megatron_music.engine.processes import STOP_SIGNALS
from megatron_music.exits import ExitCode
from megatron_music.training.loop import Callback, StepReport

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer

_SAME_SECONDS = 1.0
"""A second Ctrl-C within this is the first one, passed on by the launcher."""


class StopWhenAsked(Callback):
    """Lets the run end after a step once any process has got one of ``STOP_SIGNALS``; a context, of the main thread.

    All processes must choose the same step, and a step may not wait for a GPU. So each step sums the processes' flags
    over gloo in the background, and the next step reads the sum, which has long been there: the run ends after the
    first or second step that begins after the signal. The same signal again changes nothing, but a second Ctrl-C.
    """

    def __init__(self):
        self.asked_at: float | None = None
        self._group = torch.distributed.new_group(backend="gloo")
        self._sum: tuple[torch.Tensor, torch.distributed.Work] | None = None
        self._handlers: dict[signal.Signals, object] = {}
        self._left = threading.Event()

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        # SLURM signals every process of a step, also those that help to write checkpoints: they are started with USR1
        # blocked, as it is in the thread that starts them. Another thread here lets it in.
        self._left.clear()
        threading.Thread(target=self._let_in, name="signals", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        return self

    def _let_in(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        self._left.wait()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None and self._sum is not None:
            self._sum[1].wait()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        self._left.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
        elif number == signal.SIGINT and now - self.asked_at > _SAME_SECONDS:
            os._exit(ExitCode.INTERRUPTED)

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Reads what the processes knew a step ago, and tells what this one knows."""
        if self._sum is not None:
            asked, work = self._sum
            work.wait()
            trainer.is_stopping = bool(asked)
        asked = torch.tensor([self.asked_at is not None], dtype=torch.int32)
        self._sum = asked, torch.distributed.all_reduce(asked, group=self._group, async_op=True)
