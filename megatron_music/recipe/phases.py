"""The arithmetic of phases: which step belongs where, in tokens.

A phase ends with the first step at which the tokens consumed reach the sum of the budgets up to and including it;
learning rate, mixture and batch are functions of the tokens consumed before a step.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter

from megatron_music.recipe.phase import LearningRate, Phase
from megatron_music.recipe.recipe import Recipe


@dataclass(frozen=True)
class Stretch:
    """Steps of a phase with one batch: steps ``[first_step, last_step)``, tokens and sequences from their start."""

    first_step: int
    last_step: int
    first_token: int
    first_sequence: int
    batch_sequences: int
    context_tokens: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the stretch."""
        return self.last_step - self.first_step

    @property
    def last_token(self) -> int:
        """Tokens consumed when the stretch has ended."""
        return self.first_token + self.steps * self.batch_sequences * self.context_tokens

    @property
    def last_sequence(self) -> int:
        """Sequences consumed when the stretch has ended."""
        return self.first_sequence + self.steps * self.batch_sequences


@dataclass(frozen=True)
class PhaseSpan:
    """Where a phase lies in a run.

    Attributes:
        nominal_first_token: the sum of the budgets before it, from which its learning rate and its ramp count; the
            phase begins up to a step later.
        stretches: one for each level of its batch that has a step, and the last in any case.
    """

    index: int
    phase: Phase
    nominal_first_token: int
    stretches: tuple[Stretch, ...]

    @property
    def first_step(self) -> int:
        """Steps before the phase."""
        return self.stretches[0].first_step

    @property
    def last_step(self) -> int:
        """Steps up to its end."""
        return self.stretches[-1].last_step

    @property
    def first_token(self) -> int:
        """Tokens consumed before the phase."""
        return self.stretches[0].first_token

    @property
    def last_token(self) -> int:
        """Tokens consumed when the phase has ended."""
        return self.stretches[-1].last_token

    @property
    def first_sequence(self) -> int:
        """Sequences consumed before the phase."""
        return self.stretches[0].first_sequence

    @property
    def last_sequence(self) -> int:
        """Sequences consumed when the phase has ended."""
        return self.stretches[-1].last_sequence

    @property
    def steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.last_step - self.first_step


@dataclass(frozen=True)
class Step:
    """What one optimizer step does; ``tokens_before`` and ``first_sequence`` count from the start of the run."""

    index: int
    span: PhaseSpan
    tokens_before: int
    first_sequence: int
    batch_sequences: int
    learning_rate: float

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return self.batch_sequences * self.span.phase.context_tokens

    @property
    def tokens_after(self) -> int:
        """Tokens consumed when the step is done."""
        return self.tokens_before + self.tokens


def phase_spans(recipe: Recipe) -> list[PhaseSpan]:
    """Spans of all phases, in order; a phase whose budget the one before has used up has no step."""
    spans: list[PhaseSpan] = []
    step = token = sequence = nominal = 0
    for index, phase in enumerate(recipe.phases):
        stretches = _stretches(phase, nominal, step, token, sequence)
        spans.append(PhaseSpan(index, phase, nominal, stretches))
        last = stretches[-1]
        step, token, sequence = last.last_step, last.last_token, last.last_sequence
        nominal += phase.tokens
    return spans


def _stretches(phase: Phase, nominal: int, step: int, token: int, sequence: int) -> tuple[Stretch, ...]:
    """The stretches of a phase that starts at these numbers; ``nominal`` is the token from which it is planned."""
    stretches = []
    sizes = phase.batch_sizes
    for level, batch in enumerate(sizes, start=1):
        end = nominal + phase.tokens
        if level < len(sizes):
            # The ramp's tokens are cut into as many equal parts as there are additions.
            end = min(end, nominal + math.ceil(Fraction(level * phase.batch_ramp.tokens, len(sizes) - 1)))
        steps = max(0, -(-(end - token) // (batch * phase.context_tokens)))
        if steps or level == len(sizes):
            stretch = Stretch(step, step + steps, token, sequence, batch, phase.context_tokens)
            stretches.append(stretch)
            step, token, sequence = stretch.last_step, stretch.last_token, stretch.last_sequence
    return tuple(stretches)


def step_at(spans: Sequence[PhaseSpan], index: int) -> Step:
    """The step number ``index`` of the run, counted from 0; raises IndexError past the end."""
    if not 0 <= index < spans[-1].last_step:
        raise IndexError(f"step {index} is not one of the run's {spans[-1].last_step} steps")
    # The last span, and the last stretch of it, that begins at or before the step: those without a step come earlier.
    span = spans[bisect_right(spans, index, key=attrgetter("first_step")) - 1]
    stretch = span.stretches[bisect_right(span.stretches, index, key=attrgetter("first_step")) - 1]
    done = index - stretch.first_step
    tokens_before = stretch.first_token + done * stretch.batch_sequences * stretch.context_tokens
    progress = (tokens_before - span.nominal_first_token) / span.phase.tokens
    return Step(
        index,
        span,
        tokens_before,
        stretch.first_sequence + done * stretch.batch_sequences,
        stretch.batch_sequences,
        learning_rate_at(span.phase.learning_rate, progress),
    )


def step_of_sequence(span: PhaseSpan, sequence: int) -> int:
    """The step, counted from 0, that takes sequence ``sequence`` of the run, which ``span`` holds."""
    stretch = span.stretches[bisect_right(span.stretches, sequence, key=attrgetter("first_sequence")) - 1]
    return stretch.first_step + (sequence - stretch.first_sequence) // stretch.batch_sequences


def learning_rate_at(rate: LearningRate, progress: float) -> float:
    """Learning rate at a share ``progress`` in [0, 1] of its phase's tokens."""
    progress = min(1.0, max(0.0, progress))
    if rate.shape == "cosine":
        return rate.end + (rate.start - rate.end) * 0.5 * (1 + math.cos(math.pi * progress))
    return rate.start + (rate.end - rate.start) * progress
