"""Share of ids that may not stand where the model puts them: the earliest sign of whether it learns to make sound."""

from typing import TYPE_CHECKING

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import sample_freely
from megatron_music.recipe.recipe import InvalidTokens
from megatron_music.training.callbacks.metrics import MetricsLog
from megatron_music.training.loop import StepReport
from megatron_music.vocabulary.grammar import AudioGrammar

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer

_SPANS = 8
"""Spans sampled side by side."""


class InvalidTokenShare:
    """Continues the openings of documents without any constraint and counts the ids that the grammar forbids."""

    def __init__(self, log: MetricsLog, options: InvalidTokens):
        self.log, self.options = log, options

    def at_start(self, trainer: "Trainer") -> None:
        """An untrained network's share says nothing."""

    def at_end(self, trainer: "Trainer", failed: bool) -> None:
        """Nothing is left to do."""

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Samples where the step is due."""
        done = report.step.index + 1
        if done % self.options.every_steps:
            return
        grammar = AudioGrammar(trainer.vocabulary, tracks=2)
        length = -(-self.options.positions // _SPANS)
        prompts = self._prompts(trainer, grammar, report.step.span.phase.context_tokens - length)
        sampled = sample_freely(trainer.engine, prompts, length, seed=trainer.recipe.seed + done)
        invalid = positions = 0
        for ids in sampled:
            for position, id in enumerate(ids):
                positions += 1
                if not grammar.is_allowed(int(id), position):
                    invalid += 1
                    break
                if id == grammar.end:
                    break
        share = invalid / positions
        self.log.write(done, {"invalid_token_share": share, "invalid_token_positions": positions})
        self.log.say(f"step {done}/{trainer.last_step}  invalid tokens: {share:.1%} of {positions} sampled freely")

    def _prompts(self, trainer: "Trainer", grammar: AudioGrammar, longest: int) -> list[np.ndarray]:
        """Openings of documents up to their first audio id, cut from the front where they are too long."""
        source = IndexedSource(trainer.recipe.corpus / self.options.source)
        prompts = []
        for index in range(_SPANS):
            ids, _ = source.document(index % len(source))
            opening = _first(ids, grammar.opening)
            prompts.append(ids[:opening][-longest:].astype(np.int64))
        return prompts


def _first(ids: np.ndarray, pattern: list[int]) -> int:
    """Number of ids up to the end of the first ``pattern``; all of them where it does not occur."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(pattern))
    hits = np.flatnonzero((windows == pattern).all(axis=1))
    return int(hits[0]) + len(pattern) if len(hits) else len(ids)
