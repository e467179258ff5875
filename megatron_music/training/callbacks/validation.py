"""Held-out loss by kind of token."""

from typing import TYPE_CHECKING

from megatron_music.corpus.stream import PhaseData, SampleStream
from megatron_music.recipe.recipe import Validation
from megatron_music.training.callbacks.metrics import MetricsLog, losses_by_group
from megatron_music.training.data import batches_of
from megatron_music.training.loop import StepReport
from megatron_music.training.marks import Marks

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


class HeldOutLoss:
    """Loss on the first sequences of a held-out source: before training, every few steps, and at the end of a phase.

    The source is cut at the phase's context length, always the same way, so that the values of a phase compare.
    """

    def __init__(self, log: MetricsLog, options: Validation):
        self.log, self.options = log, options

    def at_start(self, trainer: "Trainer") -> None:
        """Measures the untrained network."""
        self._measure(trainer, trainer.spans[0].phase.context_tokens, done=0)

    def at_end(self, trainer: "Trainer", failed: bool) -> None:
        """Nothing is left to do."""

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Measures where the step is due."""
        done, span = report.step.index + 1, report.step.span
        if done % self.options.every_steps == 0 or done == span.last_step:
            self._measure(trainer, span.phase.context_tokens, done)

    def _measure(self, trainer: "Trainer", context_tokens: int, done: int) -> None:
        copies = trainer.engine.data_processes
        # An interleaved pipeline takes micro-batches by the number of its stages.
        multiple = copies * (trainer.recipe.layout.pipeline if trainer.recipe.layout.interleave > 1 else 1)
        sequences = max(multiple, self.options.sequences // multiple * multiple)
        phase = PhaseData(context_tokens, sequences, {self.options.source: 1.0})
        stream = SampleStream(trainer.recipe.corpus, [phase], seed=0)
        # All kinds are measured; attention reaches as far as in training.
        marks = Marks(end_of_document=trainer.marks[0].end_of_document)
        batches = batches_of(stream, 0, sequences, 1, trainer.engine.data_rank, copies, marks)
        losses = losses_by_group(trainer.engine.forward_backward(batches, train=False))
        self.log.write(done, {f"validation/{name}": value for name, value in losses.items()})
        groups = "  ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in losses.items())
        self.log.say(f"step {done}/{trainer.last_step}  held out: {groups}")
