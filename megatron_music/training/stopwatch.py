"""Where the time of steps goes: marks between their parts, read when metrics are written."""

import time

import torch

PARTS = ("data", "forward_backward", "reduction", "optimizer", "callbacks")
"""The parts of a step: waiting for batches; own computation, to the end of the last backward pass; waiting for the
others, and what of the reduction of gradients is not hidden; clipping, update and gathering; all else."""


class Stopwatch:
    """Seconds by part, by the clock of whoever computes: on a GPU its own queue, so that nothing waits for it."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forgets all, and starts from now."""
        self._marks, self._steps, self._since = [("", self._mark())], 0, time.perf_counter()

    def lap(self, part: str) -> None:
        """The time since the last mark was spent on ``part``."""
        self._marks.append((part, self._mark()))
        self._steps += part == "optimizer"

    def read(self) -> tuple[dict[str, float], float]:
        """Mean seconds a step by part, and the seconds by the host's clock of all steps, since the last reading.

        Waits for the GPU, and starts over.
        """
        marks, steps = self._marks, max(1, self._steps)
        if self._on_gpu:
            marks[-1][1].synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (part, end) in zip(marks, marks[1:], strict=False):
            seconds[part] += (begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin) / steps
        elapsed = time.perf_counter() - self._since
        self.restart()
        return seconds, elapsed

    def _mark(self) -> "torch.cuda.Event | float":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
