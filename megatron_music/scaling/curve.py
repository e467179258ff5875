"""The losses of a run by tokens consumed, from its folder alone: how low they are and how fast they fall."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.cluster.run_lines import measured_lines
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import LEVEL, Interval, mean_interval
from megatron_music.recipe.phases import PhaseSpan, phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.events import METRICS
from megatron_music.vocabulary.kinds import COARSE_GROUPS

LAST_LINES = 20
"""Lines whose mean is a training loss: of a single step it is noisy."""
FEWEST_POINTS = 4


@dataclass(frozen=True)
class LossCurve:
    """Losses of one kind over a run.

    Attributes:
        held_out: whether they are of held-out songs, or of the steps' own data.
        tokens_N, loss_N: tokens consumed and nats a token, as logged.
        context_N: the context length in tokens of each.
    """

    kind: str
    held_out: bool
    tokens_N: np.ndarray
    loss_N: np.ndarray
    context_N: np.ndarray

    @property
    def last(self) -> Interval:
        """The loss now: the last held-out one, or the mean of the last lines of steps with its interval."""
        if self.held_out:
            return Interval(float(self.loss_N[-1]))
        values = self.loss_N[-LAST_LINES:]
        return mean_interval(values, np.ones(len(values)))

    def slope(self) -> Interval | None:
        """Nats a doubling of the tokens over the last doubling of the run, by least squares.

        Only values of the last context length count: a held-out loss of another one is of other cuts. None where there
        are fewer than four of them. The interval is that of independent errors.
        """
        from scipy.stats import t

        counted = (self.tokens_N >= self.tokens_N[-1] / 2) & (self.tokens_N > 0)
        counted &= self.context_N == self.context_N[-1]
        if counted.sum() < FEWEST_POINTS:
            return None
        doublings, loss = np.log2(self.tokens_N[counted]), self.loss_N[counted]
        centred = doublings - doublings.mean()
        slope = float(centred @ loss / (centred @ centred))
        residuals = loss - loss.mean() - slope * centred
        freedom = len(loss) - 2
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(residuals @ residuals / freedom / (centred @ centred))
        return Interval(slope, slope - half, slope + half)


def loss_curves(run: Path, recipe: Recipe) -> list[LossCurve]:
    """The curves of codebook 0 by kind: held-out losses, or the steps' own where none are logged.

    Reads ``metrics.jsonl`` up to its last whole line. Raises InputError where it is missing or has no losses yet.
    """
    try:
        lines = list(measured_lines(run / METRICS))
    except FileNotFoundError:
        raise InputError(run, f"has no {METRICS}", "name the folder of a run that has begun") from None
    for prefix in ("validation/loss/", "loss/"):
        curves = _curves(lines, prefix, phase_spans(recipe))
        if curves:
            return curves
    raise InputError(run / METRICS, "has no loss of audio tokens yet", "wait until it has, or train on songs")


def _curves(lines: list[dict[str, Any]], prefix: str, spans: list[PhaseSpan]) -> list[LossCurve]:
    curves = []
    for kind in COARSE_GROUPS:
        of_kind = [(line["step"], line.get(f"{prefix}{kind}")) for line in lines]
        # A loss that was no finite number is logged as null.
        points = [(*_place(step, spans), loss) for step, loss in of_kind if loss is not None]
        if points:
            tokens, contexts, losses = map(np.array, zip(*points, strict=True))
            curves.append(LossCurve(kind, prefix != "loss/", tokens, losses, contexts))
    return curves


def _place(step: int, spans: list[PhaseSpan]) -> tuple[int, int]:
    """Tokens consumed after ``step`` steps, and the context length then."""
    if step < 1:
        return 0, spans[0].phase.context_tokens
    at = step_at(spans, min(step, spans[-1].last_step) - 1)
    return at.tokens_after, at.span.phase.context_tokens
