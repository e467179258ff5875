"""`predict fit`: the law through the points, how sure it is, and what it says of a larger training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_music.errors import InputError
from megatron_music.progress import track
from megatron_music.recipe.fields import parse_count
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.counts import Counted, parameters_of
from megatron_music.scaling.law import LARGEST_EXPONENT, LEAST_EXPONENT, Laws, fit_laws, sensitivities
from megatron_music.scaling.point import DECAYED, Point
from megatron_music.tables import short_count
from megatron_music.vocabulary.vocabulary import Vocabulary

NUMBERS = 5
"""What is fitted: E, A, B, alpha, beta."""
LEAST_POINTS = NUMBERS + 2
LOW, HIGH = 5.0, 95.0
"""Percentiles of a 90% interval."""
BOOTSTRAP = (
    "the wider of two bootstraps. Parametric: the fitted losses with normal noise of log L, of the residuals' size "
    "over the degrees of freedom left, that size itself drawn from its chi-square distribution, which few points need. "
    "Pairs: points drawn with replacement, which noise of unequal size needs. An interval of a prediction also has the "
    "noise of the one run that it is about"
)
_SAME = 1.1
"""Sizes, and tokens, that differ by less count as one."""
_LINE_DECADES = 0.1
_OPEN_EXPONENT, _OPEN_LOSS, _OFF = 3.0, 0.10, 0.05
_FAR = 10.0


@dataclass(frozen=True)
class Interval90:
    """A number and its 90% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, *drawn: np.ndarray) -> "Interval90":
        """Around ``value``, the widest of what each bootstrap has drawn."""
        low, high = widest(*drawn)
        return cls(float(value), float(low), float(high))


def widest(*drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 90% interval that holds those of all bootstraps, each (resamples, ...)."""
    lows, highs = zip(*(np.percentile(values, [LOW, HIGH], axis=0) for values in drawn), strict=True)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


@dataclass(frozen=True)
class Resamples:
    """What one bootstrap has drawn: laws, and for each the noise of a run, as a factor (resamples,)."""

    laws: Laws
    noise: np.ndarray


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
        fit: one row; None where the points can't tell at all.
        resamples: of each bootstrap.
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
    resamples: list[Resamples]
    numbers: dict[str, Interval90]
    noise: float | None
    left_out: list[float]
    condition: float | None
    predictions: dict[str, Interval90]
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

    def frontier(self, flops: np.ndarray) -> list[dict[str, Interval90]]:
        """The best parameters, tokens and loss for budgets of 6 N D = ``flops`` (budgets,)."""
        best_n, best_d = (values[0] for values in self.fit.optimum(flops))
        values = {"parameters": best_n, "tokens": best_d, "loss": self.fit.loss(best_n, best_d)[0]}
        drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
        for resamples in self.resamples:
            n, d = resamples.laws.optimum(flops)
            for name, of_one in (("parameters", n), ("tokens", d), ("loss", resamples.laws.loss(n, d))):
                drawn[name].append(of_one)
        return [
            {name: Interval90.of(values[name][at], *(of_one[:, at] for of_one in drawn[name])) for name in values}
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
        for name in track(losses or names, "fitting")
    ]
    warnings = [*_warnings(points, targets), *(text for law in laws for text in _outliers(law))]
    return Prediction(laws, list(targets), warnings, counted, resamples, seed)


def _law(name: str, points: list[Point], targets: Sequence[Target], resamples: int, seed: int) -> Law:
    law = Law(name, points, None, [], {}, None, [], None, {}, [])
    n, d, losses = law.parameters, law.tokens, law.losses
    untold = _untold(n, d)
    if untold:
        return replace(law, doubts=untold)
    fit = fit_laws(n, d, losses[None])
    off = np.log(losses / fit.loss(n, d)[0])
    noise = float(np.sqrt(np.sum(off**2) / (len(points) - NUMBERS)))
    drawn = _bootstraps(fit, n, d, losses, resamples, np.random.default_rng(seed))
    predictions = {
        target.name: Interval90.of(
            fit.loss(target.parameters, target.tokens)[0, 0],
            *(one.laws.loss(target.parameters, target.tokens)[:, 0] * one.noise for one in drawn),
        )
        for target in targets
    }
    others = fit_laws(n, d, np.broadcast_to(losses, (len(n), len(n))), 1.0 - np.eye(len(n)), fit.theta_P5[0], 4)
    law = replace(
        law,
        fit=fit,
        resamples=drawn,
        numbers={
            name: Interval90.of(getattr(fit, field)[0], *(getattr(one.laws, field) for one in drawn))
            for name, field in (("E", "floor"), ("A", "a"), ("B", "b"), ("alpha", "alpha"), ("beta", "beta"))
        },
        noise=noise,
        left_out=list(np.diagonal(others.loss(n, d)) / losses - 1),
        condition=_condition(fit, n, d),
        predictions=predictions,
    )
    return replace(law, doubts=_doubts(law))


def _bootstraps(
    fit: Laws, n: np.ndarray, d: np.ndarray, losses: np.ndarray, count: int, random: np.random.Generator
) -> list[Resamples]:
    """Both bootstraps, as ``BOOTSTRAP`` tells them."""
    fitted, points = fit.loss(n, d)[0], len(n)
    freedom = points - NUMBERS
    off = np.log(losses / fitted)
    # From so few residuals the size of the noise is itself uncertain: one for each resample.
    sizes = np.sqrt(np.sum(off**2) / random.chisquare(freedom, count))
    noisy = fitted * np.exp(sizes[:, None] * random.standard_normal((count, points)))
    again = random.multinomial(points, np.full(points, 1 / points), count).astype(float)
    own = np.sqrt(points / freedom) * random.choice(off, count)
    near = fit.theta_P5[0]
    return [
        Resamples(fit_laws(n, d, noisy, near=near, starts=2), np.exp(sizes * random.standard_normal(count))),
        Resamples(fit_laws(n, d, np.tile(losses, (count, 1)), again, near, starts=2), np.exp(own)),
    ]


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
    typical = float(np.median(np.abs(law.left_out)))
    if typical > _OFF:
        found.append(f"the law of all others is {typical:.0%} off at the middle point: the form does not hold here")
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


def _outliers(law: Law) -> list[str]:
    """The point that lies farthest from the law of the others, where that is far. It moves the law little."""
    if not law.left_out:
        return []
    worst = int(np.argmax(np.abs(law.left_out)))
    if abs(law.left_out[worst]) <= _OFF:
        return []
    return [f"{law.name}: the law of all others is {law.left_out[worst]:+.1%} off at {law.points[worst].name}: look at "
            "that run"]  # fmt: skip


def _names(points: Sequence[Point]) -> str:
    shown = ", ".join(point.name for point in points[:3])
    return shown + (f" and {len(points) - 3} more" if len(points) > 3 else "")
