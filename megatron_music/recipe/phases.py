"""The arithmetic of phases: which step belongs where, in tokens.

A phase ends with the first step at which the tokens consumed reach the sum of the budgets up to and including it;
learning rate and mixture are functions of the tokens consumed before a step.
"""

import math
from dataclasses import dataclass

from megatron_music.recipe.recipe import LearningRate, Phase, Recipe


@dataclass(frozen=True)
class PhaseSpan:
    """Where a phase lies in a run: steps ``[first_step, last_step)``, tokens and sequences from its actual start."""

    index: int
    phase: Phase
    first_step: int
    last_step: int
    first_token: int
    first_sequence: int
    nominal_first_token: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.last_step - self.first_step

    @property
    def last_token(self) -> int:
        """Tokens consumed when the phase has ended."""
        return self.first_token + self.steps * self.phase.step_tokens


@dataclass(frozen=True)
class Step:
    """What one optimizer step does; ``tokens_before`` and ``first_sequence`` count from the start of the run."""

    index: int
    span: PhaseSpan
    tokens_before: int
    first_sequence: int
    learning_rate: float


def phase_spans(recipe: Recipe) -> list[PhaseSpan]:
    """Spans of all phases, in order; a phase whose budget the one before has used up has no step."""
    spans: list[PhaseSpan] = []
    step = token = sequence = nominal = 0
    for index, phase in enumerate(recipe.phases):
        steps = max(0, math.ceil((nominal + phase.tokens - token) / phase.step_tokens))
        spans.append(PhaseSpan(index, phase, step, step + steps, token, sequence, nominal))
        step += steps
        token += steps * phase.step_tokens
        sequence += steps * phase.batch_sequences
        nominal += phase.tokens
    return spans


def step_at(spans: list[PhaseSpan], index: int) -> Step:
    """The step number ``index`` of the run, counted from 0; raises IndexError past the end."""
    for span in spans:
        if span.first_step <= index < span.last_step:
            done = index - span.first_step
            tokens_before = span.first_token + done * span.phase.step_tokens
            return Step(
                index,
                span,
                tokens_before,
                span.first_sequence + done * span.phase.batch_sequences,
                learning_rate_at(
                    span.phase.learning_rate, (tokens_before - span.nominal_first_token) / span.phase.tokens
                ),
            )
    raise IndexError(f"step {index} is not one of the run's {spans[-1].last_step} steps")


def learning_rate_at(rate: LearningRate, progress: float) -> float:
    """Learning rate at a share ``progress`` in [0, 1] of its phase's tokens."""
    progress = min(1.0, max(0.0, progress))
    if rate.shape == "cosine":
        return rate.end + (rate.start - rate.end) * 0.5 * (1 + math.cos(math.pi * progress))
    return rate.start + (rate.end - rate.start) * progress
