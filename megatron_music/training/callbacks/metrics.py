"""Metrics: to ``metrics.jsonl``, to TensorBoard, and in words to the terminal."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_music.engine.engine import COUNTED
from megatron_music.progress import console
from megatron_music.training.loop import StepReport
from megatron_music.vocabulary.kinds import LOSS_GROUPS, Kind

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


def losses_by_group(table: torch.Tensor) -> dict[str, float]:
    """Mean nats a token, in all (``loss``) and by group (``loss/vocal``, ...), of every process' table together.

    A group without a token is left out. Where some tokens do not count, ``loss/counted`` is the mean of those that do.
    All processes call it.
    """
    total = table.clone()
    torch.distributed.all_reduce(total)
    nats, counts = total.tolist()
    losses = {"loss": sum(nats[kind] for kind in Kind) / sum(counts[kind] for kind in Kind)}
    if counts[COUNTED]:
        losses["loss/counted"] = nats[COUNTED] / counts[COUNTED]
    for group, kinds in LOSS_GROUPS.items():
        count = sum(counts[kind] for kind in kinds)
        if count:
            losses[f"loss/{group}"] = sum(nats[kind] for kind in kinds) / count
    return losses


class MetricsLog:
    """Where the first process writes what was measured; the others' calls do nothing."""

    def __init__(self, metrics: Path, tensorboard: Path, first_step: int):
        self._file = self._board = None
        if torch.distributed.get_rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            self._file = metrics.open("a", encoding="utf-8")
            self._board: SummaryWriter | None = SummaryWriter(str(tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, object]) -> None:
        """One line of ``metrics.jsonl``; numbers also go to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        if self._file is not None:
            console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Ends both files."""
        if self._file is not None:
            self._file.close()
            self._board.close()


class StepMetrics:
    """Loss in all and by kind of token, speed, gradient norm and data by source, every few steps."""

    def __init__(self, log: MetricsLog, every_steps: int):
        self.log, self.every_steps = log, every_steps
        self._tokens, self._since = 0, time.perf_counter()

    def at_start(self, trainer: "Trainer") -> None:
        """Nothing has happened yet."""

    def at_end(self, trainer: "Trainer", failed: bool) -> None:
        """Nothing is left to do."""

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Writes the step's metrics where its number is due, and at the end of a phase."""
        step, phase = report.step, report.step.span.phase
        done = step.index + 1
        self._tokens += step.tokens
        if done % self.every_steps and done != step.span.last_step:
            return
        losses, gradient_norm = losses_by_group(report.loss_table), float(report.gradient_norm)
        now = time.perf_counter()
        speed = self._tokens / (now - self._since)
        self._tokens, self._since = 0, now
        sources = trainer.stream.consumed(step.first_sequence + step.batch_sequences)
        self.log.write(
            done,
            {
                "phase": phase.name,
                "tokens": step.tokens_after,
                "learning_rate": step.learning_rate,
                **losses,
                "gradient_norm": gradient_norm,
                "tokens_per_second": speed,
                **{f"tokens/{source}": count for source, count in sources.items()},
            },
        )
        left = (trainer.spans[-1].last_token - step.tokens_after) / speed
        groups = "  ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in losses.items())
        self.log.say(
            f"step {done}/{trainer.last_step}  {phase.name}  {groups}  lr {step.learning_rate:.2e}  "
            f"norm {gradient_norm:.2f}  {speed:,.0f} tokens/s  {_duration(left)} left"
        )

    def restart_clock(self) -> None:
        """Leaves the time since the last metrics, which was not spent on steps, out of the speed."""
        self._tokens, self._since = 0, time.perf_counter()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds:02d}s"
