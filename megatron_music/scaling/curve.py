"""The losses of a run by tokens consumed, from its folder alone: how low they are and how fast they fall."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.cluster.run_lines import read_measured
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import LEVEL, Interval, mean_interval
from megatron_music.recipe.phases import PhaseSpan, phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.events import METRICS
from megatron_music.vocabulary.kinds import COARSE_GROUPS

LAST_LINES = 20
"""Lines whose mean is a training loss: of a single step it is noisy."""
FEWEST_POINTS = 4
RESTORE = "restore the file, or take what is no line of it out"
"""What to do about metrics that can't be read."""


@dataclass(frozen=True)
class LossCurve:
    """Losses of one kind over a run.

    Attributes:
        held_out: whether they are of held-out songs, or of the steps' own data.
        tokens_N, loss_N: tokens consumed and nats a token, as logged; NaN where that was no finite number.
        context_N: the context length in tokens of each.
    """

    kind: str
    held_out: bool
    tokens_N: np.ndarray
    loss_N: np.ndarray
    context_N: np.ndarray

    @property
    def last(self) -> Interval:
        """The loss now: the last held-out one, or the mean of the last lines of steps with its interval.

        NaN where the last held-out one was no finite number, or none of these lines has one.
        """
        values = self.loss_N[-1:] if self.held_out else self.loss_N[-LAST_LINES:]
        finite = values[np.isfinite(values)]
        if self.held_out or not len(finite):
            return Interval(value=float(values[-1]))
        return mean_interval(finite, np.ones(len(finite)))

    def slope(self) -> Interval | None:
        """Nats a doubling of the tokens over the last doubling of the run, by least squares.

        Only finite values of the last context length count: a held-out loss of another one is of other cuts. None where
        there are fewer than four of them, or the loss now is none. The interval is that of independent errors.
        """
        from scipy.stats import t

        if math.isnan(self.last.value):
            return None
        counted = np.isfinite(self.loss_N) & (self.tokens_N >= self.tokens_N[-1] / 2) & (self.tokens_N > 0)
        counted &= self.context_N == self.context_N[-1]
        if counted.sum() < FEWEST_POINTS:
            return None
        doublings, loss = np.log2(self.tokens_N[counted]), self.loss_N[counted]
        centred = doublings - doublings.mean()
        slope = float(centred @ loss / (centred @ centred))
        residuals = loss - loss.mean() - slope * centred
        freedom = len(loss) - 2
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(residuals @ residuals / freedom / (centred @ centred))
        return Interval(value=slope, low=slope - half, high=slope + half)


def loss_curves(run: Path, recipe: Recipe) -> tuple[list[LossCurve], str]:
    """The curves of codebook 0 by kind: held-out losses, or the steps' own where none are logged.

    Reads ``metrics.jsonl`` up to its last whole line, and tells in words which lines of it can't be read.

    Raises:
        InputError: it is missing, or has no losses yet, or none that can be read.
    """
    try:
        found = read_measured(run / METRICS)
    except FileNotFoundError:
        raise InputError(run, f"has no {METRICS}", "name the folder of a run that has begun") from None
    for prefix in ("validation/loss/", "loss/"):
        curves = _curves(found.lines, prefix, phase_spans(recipe))
        if curves:
            return curves, str(found.unread)
    if found.unread.count:
        raise InputError(run / METRICS, f"{found.unread}, and no other has a loss of audio tokens", RESTORE)
    raise InputError(run / METRICS, "has no loss of audio tokens yet", "wait until it has, or train on songs")


def _curves(lines: list[dict[str, Any]], prefix: str, spans: list[PhaseSpan]) -> list[LossCurve]:
    curves = []
    for kind in COARSE_GROUPS:
        of_kind = [line for line in lines if f"{prefix}{kind}" in line]
        if of_kind:
            tokens, contexts = map(np.array, zip(*(_place(line["step"], spans) for line in of_kind), strict=True))
            # A loss that was no finite number is logged as null, which becomes NaN.
            losses = np.array([line[f"{prefix}{kind}"] for line in of_kind], float)
            curves.append(LossCurve(kind, prefix != "loss/", tokens, losses, contexts))
    return curves


def _place(step: int, spans: list[PhaseSpan]) -> tuple[int, int]:
    """Tokens consumed after ``step`` steps, and the context length then."""
    if step < 1:
        return 0, spans[0].phase.context_tokens
    at = step_at(spans, min(step, spans[-1].last_step) - 1)
    return at.tokens_after, at.span.phase.context_tokens
