"""Metrics: to ``metrics.jsonl``, to TensorBoard, and in words to the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from megatron_music.engine.engine import COUNTED, KINDS
from megatron_music.recipe.flops import flops_per_token
from megatron_music.recipe.gpus import gpu_of_device
from megatron_music.recipe.phases import Step
from megatron_music.tables import duration
from megatron_music.training.loop import Callback, StepReport
from megatron_music.training.metrics_log import MetricsLog
from megatron_music.training.started import plan_of
from megatron_music.vocabulary.kinds import LOSS_GROUPS, Kind

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer

_GIB = 2**30


def mean_losses(table: torch.Tensor, tasks: Iterable[str]) -> dict[str, float]:
    """Mean nats a token of a table of all processes: in all, by group of kinds (``loss/vocal``) and by task.

    A group or task without a token is left out. Where some tokens do not count, ``loss/counted`` is the mean of those
    that do.
    """
    nats, counts = table.tolist()
    losses = {"loss": sum(nats[kind] for kind in Kind) / sum(counts[kind] for kind in Kind)}
    if counts[COUNTED]:
        losses["loss/counted"] = nats[COUNTED] / counts[COUNTED]
    for group, kinds in LOSS_GROUPS.items():
        count = sum(counts[kind] for kind in kinds)
        if count:
            losses[f"loss/{group}"] = sum(nats[kind] for kind in kinds) / count
    for column, task in enumerate(tasks, KINDS):
        if counts[column]:
            losses[f"task/{task}"] = nats[column] / counts[column]
    return losses


def in_words(losses: dict[str, float]) -> str:
    """Losses by kind for a line of the terminal."""
    named = {name.removeprefix("loss/"): loss for name, loss in losses.items() if not name.startswith("task/")}
    return "  ".join(f"{name} {loss:.3f}" for name, loss in named.items())


class StepMetrics(Callback):
    """Losses, gradient norm, speed, where the time goes, memory and data by source, every few steps.

    The losses, the norm and its parts are of that step; speed and seconds of all steps since the last such line.
    """

    def __init__(self, log: MetricsLog, every_steps: int):
        self.log, self.every_steps = log, every_steps
        self._tokens, self._peak_flops = 0, None

    def at_begin(self, trainer: "Trainer", first_step: int) -> None:
        """Tells what the run is, and of the phase that it is in."""
        plan = plan_of(trainer)
        self.log.event(first_step, "started", **plan)
        gpu = gpu_of_device(plan["device"])
        self._peak_flops = gpu.bf16_flops * plan["processes"] if gpu is not None else None

    def wants_norms(self, step: Step) -> bool:
        """Whether the step's metrics are written: its number says so, or it ends a phase."""
        done = step.index + 1
        return done % self.every_steps == 0 or done == step.span.last_step

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Writes where the step is due."""
        step, phase = report.step, report.step.span.phase
        done = step.index + 1
        if step.index == step.span.first_step:
            self.log.event(done, "phase", phase=phase.name)
        if report.update is not None:
            self._tokens += step.tokens
        if not self.wants_norms(step):
            return
        consumed = trainer.stream.consumed(step.first_sequence + step.batch_sequences)
        values = {"phase": phase.name, "tokens": step.tokens_after, "learning_rate": step.learning_rate}
        if report.update is not None:
            values |= self._measured(trainer, report)
        self.log.write(done, values | {f"tokens/{source}": count for source, count in consumed.items()})
        if report.update is None:
            self.log.say(f"step {done}/{trainer.last_step}  {phase.name}  passed")
            return
        speed = values["tokens_per_second"]
        left = (trainer.spans[-1].last_token - step.tokens_after) / speed
        losses = {name: value for name, value in values.items() if name.split("/")[0] == "loss"}
        self.log.say(
            f"step {done}/{trainer.last_step}  {phase.name}  {in_words(losses)}  lr {step.learning_rate:.2e}  "
            f"norm {values['gradient_norm']:.2f}  {speed:,.0f} tokens/s  {duration(left)} left"
        )

    def _measured(self, trainer: "Trainer", report: StepReport) -> dict[str, object]:
        update = report.update
        values = mean_losses(update.loss_table, trainer.tasks) | {"gradient_norm": float(update.gradient_norm)}
        if update.norms_by_part is not None:
            values |= {f"gradient_norm/{part}": float(norm) for part, norm in update.norms_by_part.items()}
        seconds, elapsed = trainer.stopwatch.read()
        values["tokens_per_second"] = self._tokens / elapsed
        self._tokens = 0
        network, context_tokens = trainer.recipe.network, report.step.span.phase.context_tokens
        flops = flops_per_token(network, trainer.engine.vocabulary_size, context_tokens)
        if self._peak_flops is not None:
            values["mfu"] = values["tokens_per_second"] * flops / self._peak_flops
        values |= {f"seconds/{part}": spent for part, spent in seconds.items()}
        return values | _over_processes(trainer.engine.device, seconds["data"] + seconds["forward_backward"])

    def restart_clock(self, trainer: "Trainer") -> None:
        """Leaves the time since the last metrics, which was not spent on steps, out of the speed."""
        self._tokens = 0
        trainer.stopwatch.restart()


def _over_processes(device: torch.device, own_seconds: float) -> dict[str, object]:
    """The process that computes longest before it waits for the others, by how much, and the most memory of any."""
    if device.type == "cuda":
        memory = {"allocated": torch.cuda.memory_allocated() / _GIB, "peak": torch.cuda.max_memory_allocated() / _GIB}
    else:
        import psutil

        memory = {"resident": psutil.Process().memory_info().rss / _GIB}
    own = torch.tensor([own_seconds, *memory.values()], dtype=torch.float64, device=device)
    each = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(each, own)
    rows = torch.stack(each).cpu()
    slowest = int(rows[:, 0].argmax())
    found = {"slowest_rank": slowest, "slowest_over_median": float(rows[slowest, 0] / rows[:, 0].median().clamp(1e-9))}
    return found | {f"memory/{name}_gib": float(rows[:, 1 + at].max()) for at, name in enumerate(memory)}
