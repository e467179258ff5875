"""Share of ids that may not stand where the model puts them: the earliest sign of whether it learns to make sound."""

from typing import TYPE_CHECKING

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import grammar_of, reader_of_engine, sample_spans, span_prompts
from megatron_music.recipe.recipe import InvalidTokens
from megatron_music.training.loop import Callback, StepReport
from megatron_music.training.metrics_log import MetricsLog

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer

_SPANS = 8
"""Spans sampled side by side."""


class InvalidTokenShare(Callback):
    """Continues the openings of documents without any constraint and counts the ids that their grammar forbids."""

    def __init__(self, log: MetricsLog, options: InvalidTokens):
        self.log, self.options = log, options

    def at_begin(self, trainer: "Trainer", first_step: int) -> None:
        """Reads the openings."""
        source = IndexedSource(trainer.recipe.corpus / self.options.source)
        self._grammar = grammar_of(source, trainer.vocabulary)
        self._prompts = span_prompts(source, self._grammar, most=_SPANS)

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Samples where the step is due."""
        done = report.step.index + 1
        if done % self.options.every_steps:
            return
        reader = reader_of_engine(trainer.engine, _SPANS, report.step.span.phase.context_tokens)
        seed = trainer.recipe.seed + done
        found = sample_spans(reader, self._prompts, self._grammar, self.options.positions, seed)
        self.log.write(done, {"invalid_token_share": found.share, "invalid_token_positions": found.positions})
        told = f"invalid tokens: {found.share:.1%} of {found.positions} sampled freely"
        self.log.say(f"step {done}/{trainer.last_step}  {told}")
