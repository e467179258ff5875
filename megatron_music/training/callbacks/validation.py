"""Held-out loss by kind of token and by task."""

from typing import TYPE_CHECKING

import torch

from megatron_music.corpus.stream import PhaseData, SampleStream
from megatron_music.engine.engine import KINDS
from megatron_music.recipe.recipe import Validation
from megatron_music.training.callbacks.metrics import in_words, mean_losses
from megatron_music.training.data import batches_of, tasks_of
from megatron_music.training.loop import Callback, StepReport
from megatron_music.training.marks import Marks
from megatron_music.training.metrics_log import MetricsLog

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


class HeldOutLoss(Callback):
    """Loss on the first sequences of held-out sources: before training, every few steps, and at the end of a phase.

    A source is cut at the phase's context length, always the same way, so that the values of a phase compare.
    """

    def __init__(self, log: MetricsLog, options: Validation):
        self.log, self.options = log, options
        self._streams: dict[tuple[str, int], SampleStream] = {}

    def at_start(self, trainer: "Trainer") -> None:
        """Measures the untrained network."""
        self._measure(trainer, trainer.spans[0].phase.context_tokens, done=0)

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Measures where the step is due."""
        done, span = report.step.index + 1, report.step.span
        if done % self.options.every_steps == 0 or done == span.last_step:
            self._measure(trainer, span.phase.context_tokens, done)

    def _measure(self, trainer: "Trainer", context_tokens: int, done: int) -> None:
        kinds, tasks = 0, {}
        for source in self.options.source:
            task, table = self._table(trainer, source, context_tokens)
            kinds = kinds + table[:, :KINDS]
            tasks[task] = tasks.get(task, 0) + table[:, KINDS:]
        total = torch.cat([kinds, *tasks.values()], dim=1)
        torch.distributed.all_reduce(total)
        losses = mean_losses(total, tasks)
        self.log.write(done, {f"validation/{name}": value for name, value in losses.items()})
        self.log.say(f"step {done}/{trainer.last_step}  held out: {in_words(losses)}")

    def _table(self, trainer: "Trainer", source: str, context_tokens: int) -> tuple[str, torch.Tensor]:
        """The task of a source, and this process' table of it."""
        copies = trainer.engine.data_processes
        # An interleaved pipeline takes micro-batches by the number of its stages.
        multiple = copies * (trainer.recipe.layout.pipeline if trainer.recipe.layout.interleave > 1 else 1)
        sequences = max(multiple, self.options.sequences // multiple * multiple)
        if (source, context_tokens) not in self._streams:
            phase = PhaseData(context_tokens, sequences, {source: 1.0})
            self._streams[source, context_tokens] = SampleStream(trainer.recipe.corpus, [phase], seed=0)
        stream = self._streams[source, context_tokens]
        # All kinds are measured; attention reaches as far as in training.
        marks = Marks(end_of_document=trainer.marks[0].end_of_document)
        batches = batches_of(stream, 0, sequences, 1, trainer.engine.data_rank, copies, marks)
        (task,) = tasks_of(stream)
        return task, trainer.engine.forward_backward(batches, train=False, tasks=1)
