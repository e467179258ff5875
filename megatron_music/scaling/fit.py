"""`predict fit`: the law through the points, how sure it is, and what it says of a larger training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_music.errors import InputError
from megatron_music.recipe.fields import parse_count
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.counts import Counted, parameters_of
from megatron_music.scaling.law import LARGEST_EXPONENT, LEAST_EXPONENT, Laws, fit_laws, sensitivities
from megatron_music.scaling.points import DECAYED, Point
from megatron_music.tables import short_count
from megatron_music.vocabulary.vocabulary import Vocabulary

NUMBERS = 5
"""What is fitted: E, A, B, alpha, beta."""
LEAST_POINTS = NUMBERS + 2
LOW, HIGH = 5.0, 95.0
"""Percentiles of a 90% interval."""
BOOTSTRAP = (
    "parametric: the fitted losses with normal noise of log L, of the residuals' size over the degrees of freedom that "
    "the fit leaves, that size itself drawn from its chi-square distribution; an interval of a prediction also has the "
    "noise of the one run that it is about"
)
_SAME = 1.1
"""Sizes, and tokens, that differ by less count as one."""
_LINE_DECADES = 0.1
_OPEN_EXPONENT, _OPEN_LOSS, _OFF = 3.0, 0.10, 0.05
_FAR = 10.0


@dataclass(frozen=True)
class Interval:
    """A number and its 90% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: np.ndarray) -> "Interval":
        """Around ``value``, from resamples."""
        low, high = np.percentile(drawn, [LOW, HIGH])
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Target:
    """A training that is asked about."""

    name: str
    parameters: float
    tokens: float


@dataclass(frozen=True)
class Law:
    """The law of one loss.

    Attributes:
        points: those that have this loss.
        fit: one row; ``resamples`` many. None where the points can't tell at all.
        numbers: E, A, B, alpha and beta, with intervals.
        noise: standard deviation of log L around the law, over the degrees of freedom that are left.
        left_out: of every point: how far, as a share, the law of all others is from it.
        condition: ratio of the largest to the least singular value of the derivatives, each at scale 1: above some
            thousands, numbers are told apart by noise alone.
        predictions: by target's name.
        doubts: why the data can't tell, in words; none where it can.
    """

    name: str
    points: list[Point]
    fit: Laws | None
    resamples: Laws | None
    numbers: dict[str, Interval]
    noise: float | None
    left_out: list[float]
    condition: float | None
    predictions: dict[str, Interval]
    doubts: list[str]

    @property
    def parameters(self) -> np.ndarray:
        """Of the points (points,)."""
        return np.array([point.parameters for point in self.points], float)

    @property
    def tokens(self) -> np.ndarray:
        """Of the points (points,)."""
        return np.array([point.tokens for point in self.points], float)

    @property
    def losses(self) -> np.ndarray:
        """Of the points (points,)."""
        return np.array([point.losses[self.name] for point in self.points], float)

    def frontier(self, flops: np.ndarray) -> list[dict[str, Interval]]:
        """The best parameters, tokens and loss for budgets of 6 N D = ``flops`` (budgets,)."""
        best_n, best_d = (values[0] for values in self.fit.optimum(flops))
        drawn_n, drawn_d = self.resamples.optimum(flops)
        best_loss, drawn_loss = self.fit.loss(best_n, best_d)[0], self.resamples.loss(drawn_n, drawn_d)
        return [
            {
                "parameters": Interval.of(best_n[at], drawn_n[:, at]),
                "tokens": Interval.of(best_d[at], drawn_d[:, at]),
                "loss": Interval.of(best_loss[at], drawn_loss[:, at]),
            }
            for at in range(len(flops))
        ]


@dataclass(frozen=True)
class Prediction:
    """All laws of a set of points, and warnings that concern all of them."""

    laws: list[Law]
    targets: list[Target]
    warnings: list[str]
    counted: Counted
    resamples: int
    seed: int


def parse_target(text: str, counted: Counted = "layers") -> Target:
    """Reads ``7B@1.75T``, or a recipe's file with its parameters, as ``counted``, and tokens; raises InputError."""
    if Path(text).suffix in (".yaml", ".yml"):
        recipe = Recipe.load(text)
        size = Vocabulary.load(recipe.vocabulary).padded_size
        tokens = phase_spans(recipe)[-1].last_token
        return Target(recipe.name, float(parameters_of(recipe.network, size, counted)), float(tokens))
    try:
        parameters, tokens = map(parse_count, text.split("@"))
    except ValueError:
        parameters = tokens = 0
    if not (parameters > 0 and tokens > 0):
        raise InputError("--target", f"{text!r} is not PARAMETERS@TOKENS", "write 7B@1.75T, or name a recipe's file")
    return Target(text, float(parameters), float(tokens))


def predict(
    points: Sequence[Point],
    targets: Sequence[Target] = (),
    losses: Sequence[str] = (),
    counted: Counted = "layers",
    resamples: int = 500,
    seed: int = 0,
) -> Prediction:
    """Fits every loss of the points, or those that ``losses`` names; raises InputError where no point has one."""
    names = list(dict.fromkeys(name for point in points for name in point.losses))
    unknown = next((name for name in losses if name not in names), None)
    if unknown is not None:
        raise InputError("--kind", f"no point has a loss {unknown!r}", f"choose from {', '.join(names)}")
    laws = [
        _law(name, [point for point in points if name in point.losses], targets, resamples, seed)
        for name in (losses or names)
    ]
    return Prediction(laws, list(targets), _warnings(points, targets), counted, resamples, seed)


def _law(name: str, points: list[Point], targets: Sequence[Target], resamples: int, seed: int) -> Law:
    law = Law(name, points, None, None, {}, None, [], None, {}, [])
    n, d, losses = law.parameters, law.tokens, law.losses
    untold = _untold(n, d)
    if untold:
        return replace(law, doubts=untold)
    fit = fit_laws(n, d, losses[None])
    fitted = fit.loss(n, d)[0]
    freedom = len(points) - NUMBERS
    noise = float(np.sqrt(np.sum(np.log(losses / fitted) ** 2) / freedom))
    random = np.random.default_rng(seed)
    # One size of the noise for each resample: from so few residuals it is itself uncertain.
    sizes = noise * np.sqrt(freedom / random.chisquare(freedom, resamples))
    drawn = fitted * np.exp(sizes[:, None] * random.standard_normal((resamples, len(points))))
    drawn_laws = fit_laws(n, d, drawn, near=fit.theta_P5[0], starts=2)
    own = np.exp(sizes * random.standard_normal(resamples))
    predictions = {
        target.name: Interval.of(
            fit.loss(target.parameters, target.tokens)[0, 0],
            drawn_laws.loss(target.parameters, target.tokens)[:, 0] * own,
        )
        for target in targets
    }
    others = fit_laws(n, d, np.broadcast_to(losses, (len(n), len(n))), 1.0 - np.eye(len(n)), fit.theta_P5[0], 4)
    law = replace(
        law,
        fit=fit,
        resamples=drawn_laws,
        numbers={
            "E": Interval.of(fit.floor[0], drawn_laws.floor),
            "A": Interval.of(fit.a[0], drawn_laws.a),
            "B": Interval.of(fit.b[0], drawn_laws.b),
            "alpha": Interval.of(fit.alpha[0], drawn_laws.alpha),
            "beta": Interval.of(fit.beta[0], drawn_laws.beta),
        },
        noise=noise,
        left_out=list(np.diagonal(others.loss(n, d)) / losses - 1),
        condition=_condition(fit, n, d),
        predictions=predictions,
    )
    return replace(law, doubts=_doubts(law))


def _condition(fit: Laws, n: np.ndarray, d: np.ndarray) -> float:
    derivatives = sensitivities(fit, n, d)
    singular = np.linalg.svd(derivatives / np.linalg.norm(derivatives, axis=0), compute_uv=False)
    return float(singular[0] / max(singular[-1], 1e-300))


def _untold(n: np.ndarray, d: np.ndarray) -> list[str]:
    """Why no law goes through points at these parameters and tokens, whatever their losses."""
    found = []
    if len(n) < LEAST_POINTS:
        found.append(f"too few points: a law of {NUMBERS} numbers and the noise around it need {LEAST_POINTS} or more, "
                     f"there are {len(n)}")  # fmt: skip
    for values, what in ((n, "sizes"), (d, "numbers of tokens")):
        count = 1 + int(np.sum(np.diff(np.log(np.sort(values))) > np.log(_SAME)))
        if count < 3:
            found.append(f"{count} {what if count > 1 else what.replace('sizes', 'size').replace('numbers', 'number')} "
                         f"alone: a floor and an exponent need at least 3")  # fmt: skip
    places = np.log10(np.stack([n, d], axis=1))
    across = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)[-1] / np.sqrt(len(n))
    if len(n) > 2 and not found and across < _LINE_DECADES:
        found.append("all points lie on one line of tokens over parameters: what each does can't be told apart; "
                     "train a size with more tokens, and one with fewer")  # fmt: skip
    return found


def _doubts(law: Law) -> list[str]:
    """Why the law that was fitted is none to decide by."""
    found = []
    for name, what in (("alpha", "parameters"), ("beta", "tokens")):
        number = law.numbers[name]
        at_bound = min(number.value - LEAST_EXPONENT, LARGEST_EXPONENT - number.value) < 1e-6
        if at_bound or number.high > _OPEN_EXPONENT * number.low:
            found.append(f"the exponent {name} of the {what} is not determined: {number.low:.2g} to {number.high:.2g} "
                         f"fit as well")  # fmt: skip
    for target, loss in law.predictions.items():
        width = (loss.high - loss.low) / loss.value
        if width > _OPEN_LOSS:
            found.append(f"the interval at {target} is {width:.0%} of the loss")
    worst = int(np.argmax(np.abs(law.left_out)))
    if abs(law.left_out[worst]) > _OFF:
        found.append(f"the law of the others is {law.left_out[worst]:+.1%} off at {law.points[worst].name}: look at "
                     "that run, or the form does not hold here")  # fmt: skip
    return found


def _warnings(points: Sequence[Point], targets: Sequence[Target]) -> list[str]:
    found = []
    most_n, most_d = max(point.parameters for point in points), max(point.tokens for point in points)
    least_n, least_d = min(point.parameters for point in points), min(point.tokens for point in points)
    for target in targets:
        beyond = []
        for value, least, most, what in (
            (target.parameters, least_n, most_n, "parameters"), (target.tokens, least_d, most_d, "tokens")
        ):  # fmt: skip
            if value > most:
                beyond.append(f"{value / most:.3g} times the most {what} measured ({short_count(most)})")
            elif value < least:
                beyond.append(f"1/{least / value:.3g} of the least {what} measured ({short_count(least)})")
        if beyond:
            far = max(target.parameters / most_n, target.tokens / most_d) > _FAR
            more = "; the interval knows noise, not a form that fails so far out: add a larger rung" if far else ""
            found.append(f"{target.name} lies outside the measured range: {' and '.join(beyond)}{more}")
    constant = [point for point in points if (point.learning_rate_left or 0) > DECAYED]
    if constant:
        found.append(f"the learning rate had not decayed at the end of {_names(constant)}: their losses are above what "
                     "a decayed run of these tokens reaches")  # fmt: skip
    measured = sorted({point.measured_on for point in points if point.measured_on})
    if len(measured) > 1:
        found.append(f"losses come from different places, which may not compare: {'; '.join(measured)}")
    return found


def _names(points: Sequence[Point]) -> str:
    shown = ", ".join(point.name for point in points[:3])
    return shown + (f" and {len(points) - 3} more" if len(points) > 3 else "")
