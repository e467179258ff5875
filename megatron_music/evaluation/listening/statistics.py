"""What answers of listeners say: win rates, strengths, agreement, and how automatic scores go along with them.

Win rates come with Wilson's interval, because answers are few and rates near 0 or 1 are common. One rater's answers
resemble each other, so that they count as fewer, with raters as the clusters of ``intervals.share_interval``. A
bootstrap over raters would do the same for many raters, but gives no width at all for one and too little for three,
which is what listening tests have.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from megatron_music.evaluation.intervals import Interval, share_interval
from megatron_music.evaluation.result import Evaluation, Listening, PairHeard, SystemResult, WinRate

Z_95 = NormalDist().inv_cdf(0.975)
FEWEST, FEW = 4, 10
"""Systems or pairs below which no correlation is given, and below which it is called one of few."""
_ROUNDS, _TOLERANCE = 10_000, 1e-12


@dataclass(frozen=True)
class Answer:
    """What one rater said of one pair; ``preferences`` by aspect: 1 first better, 0 a tie, -1 second better."""

    rater: str
    first: str
    first_song: str
    second: str
    second_song: str
    preferences: dict[str, int]

    @property
    def pair(self) -> tuple[str, str, str, str]:
        """The two songs."""
        return self.first, self.first_song, self.second, self.second_song


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient of ``count`` points, with its interval where that can be told."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class AgainstListeners:
    """How a measure goes along with one aspect, over systems and over pairs of songs; None: too few or all alike."""

    system_count: int
    systems_pearson: Correlation | None
    systems_spearman: Correlation | None
    pair_count: int
    pairs_pearson: Correlation | None
    pairs_spearman: Correlation | None


def summarise(answers: Sequence[Answer], systems: Sequence[str], aspects: Sequence[str]) -> Listening:
    """All that answers say of the systems; aspects that nobody was asked about have no entries."""
    win_rates = {aspect: _win_rates(answers, systems, aspect) for aspect in aspects}
    strengths = {aspect: bradley_terry(_wins(rates, systems)) for aspect, rates in win_rates.items()}
    agreement = {aspect: krippendorff_alpha(_ratings(answers, aspect), "ordinal") for aspect in aspects}
    return Listening(
        systems=list(systems),
        aspects=list(aspects),
        raters=len({answer.rater for answer in answers}),
        answers=len(answers),
        win_rates=win_rates,
        scores={aspect: _scores(rates, systems) for aspect, rates in win_rates.items()},
        strengths={
            aspect: dict(zip(systems, found.tolist(), strict=True))
            for aspect, found in strengths.items()
            if found is not None
        },
        agreement={aspect: alpha for aspect, alpha in agreement.items() if alpha is not None},
        pairs=_pairs_heard(answers),
    )


def win_rate_interval(wins: Sequence[float], raters: Sequence[str]) -> Interval:
    """Mean of ``wins`` (1 won, 0.5 a tie, 0 lost), each by the rater at its place, with its interval.

    With ties the interval is a little too wide: half a win varies less than a win or none.
    """
    names, rater_N = np.unique(np.asarray(raters), return_inverse=True)
    return share_interval(np.bincount(rater_N, weights=wins, minlength=len(names)), np.bincount(rater_N))


def _win_rates(answers: Sequence[Answer], systems: Sequence[str], aspect: str) -> list[WinRate]:
    """Of every two systems that were compared, both ways."""
    said: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for answer in answers:
        if aspect in answer.preferences:
            preference = answer.preferences[aspect]
            said[answer.first, answer.second].append((preference, answer.rater))
            said[answer.second, answer.first].append((-preference, answer.rater))
    rates = []
    for system, against in ((one, other) for one in systems for other in systems if (one, other) in said):
        preferences, raters = zip(*said[system, against], strict=True)
        rates.append(
            WinRate(
                system=system,
                against=against,
                wins=preferences.count(1),
                ties=preferences.count(0),
                losses=preferences.count(-1),
                rate=win_rate_interval([(1 + preference) / 2 for preference in preferences], raters),
            )
        )
    return rates


def _scores(rates: Sequence[WinRate], systems: Sequence[str]) -> dict[str, float]:
    by_system = {system: [one.rate.value for one in rates if one.system == system] for system in systems}
    return {system: float(np.mean(values)) for system, values in by_system.items() if values}


def _wins(rates: Sequence[WinRate], systems: Sequence[str]) -> np.ndarray:
    """Wins (S, S) of the row's system over the column's, ties as half a win for each."""
    wins_SS = np.zeros((len(systems), len(systems)))
    for one in rates:
        wins_SS[systems.index(one.system), systems.index(one.against)] = one.wins + one.ties / 2
    return wins_SS


def bradley_terry(wins_SS: np.ndarray) -> np.ndarray | None:
    """Logarithms (S,) of the strengths that make ``wins_SS`` most probable, with mean 0.

    p(i beats j) = strength_i / (strength_i + strength_j), by the iteration of Hunter (2004). One more tie is added to
    every two systems that were compared, without which one that never lost would be infinitely strong. None where the
    comparisons do not tie all systems together.
    """
    wins_SS = np.asarray(wins_SS, dtype=np.float64)
    games_SS = wins_SS + wins_SS.T
    compared_SS = games_SS > 0
    if len(wins_SS) < 2 or not _connected(compared_SS):
        return None
    won_S = (wins_SS + 0.5 * compared_SS).sum(axis=1)
    games_SS = games_SS + compared_SS
    strength_S = np.ones(len(wins_SS))
    for _ in range(_ROUNDS):
        new_S = won_S / (games_SS / (strength_S[:, None] + strength_S)).sum(axis=1)
        new_S /= np.exp(np.log(new_S).mean())
        settled = np.abs(new_S - strength_S).max() < _TOLERANCE
        strength_S = new_S
        if settled:
            break
    return np.log(strength_S)


def _connected(compared_SS: np.ndarray) -> bool:
    reached = {0}
    waiting = [0]
    while waiting:
        for other in np.flatnonzero(compared_SS[waiting.pop()]).tolist():
            if other not in reached:
                reached.add(other)
                waiting.append(other)
    return len(reached) == len(compared_SS)


def krippendorff_alpha(ratings_RU: np.ndarray, level: str) -> float | None:
    """Agreement of raters about units, 1 for full, 0 as by chance; ratings (raters, units), NaN where there is none.

    Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", for ``level`` "nominal", "ordinal" or "interval".
    None where no unit has two ratings, or all ratings are alike.
    """
    ratings_RU = np.asarray(ratings_RU, dtype=np.float64)
    values = np.unique(ratings_RU[~np.isnan(ratings_RU)])
    counts_UV = np.stack([(ratings_RU == value).sum(axis=0) for value in values], axis=1) if len(values) else None
    if counts_UV is None or not (counts_UV.sum(axis=1) > 1).any():
        return None
    counts_UV = counts_UV[counts_UV.sum(axis=1) > 1].astype(np.float64)
    weight_U1 = 1 / (counts_UV.sum(axis=1, keepdims=True) - 1)
    coincidences_VV = counts_UV.T @ (counts_UV * weight_U1) - np.diag((counts_UV * weight_U1).sum(axis=0))
    totals_V = coincidences_VV.sum(axis=1)
    distance_VV = _distances(values, totals_V, level)
    expected = (np.outer(totals_V, totals_V) * distance_VV).sum()
    if expected == 0:
        return None
    return float(1 - (totals_V.sum() - 1) * (coincidences_VV * distance_VV).sum() / expected)


def _distances(values: np.ndarray, totals_V: np.ndarray, level: str) -> np.ndarray:
    """Squared distance (V, V) between values."""
    if level == "nominal":
        return (values[:, None] != values).astype(np.float64)
    if level == "interval":
        return np.square(values[:, None] - values)
    # Ordinal: the ratings between two values, and half of those at them.
    rank_V = np.cumsum(totals_V) - totals_V / 2
    return np.square(rank_V[:, None] - rank_V)


def _ratings(answers: Sequence[Answer], aspect: str) -> np.ndarray:
    """Preferences (raters, pairs), NaN where a rater did not judge the pair."""
    raters = {name: row for row, name in enumerate(dict.fromkeys(answer.rater for answer in answers))}
    pairs = {pair: column for column, pair in enumerate(dict.fromkeys(answer.pair for answer in answers))}
    ratings_RU = np.full((len(raters), len(pairs)), np.nan)
    for answer in answers:
        if aspect in answer.preferences:
            ratings_RU[raters[answer.rater], pairs[answer.pair]] = answer.preferences[aspect]
    return ratings_RU


def _pairs_heard(answers: Sequence[Answer]) -> list[PairHeard]:
    by_pair: dict[tuple[str, str, str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        by_pair[answer.pair].append(answer)
    heard = []
    for (first, first_song, second, second_song), given in by_pair.items():
        aspects = dict.fromkeys(aspect for answer in given for aspect in answer.preferences)
        means = {
            aspect: float(np.mean([a.preferences[aspect] for a in given if aspect in a.preferences]))
            for aspect in aspects
        }
        heard.append(PairHeard(first=first, first_song=first_song, second=second, second_song=second_song,
                               raters=len(given), preferences=means))  # fmt: skip
    return heard


def pearson(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Pearson's coefficient, interval by Fisher's transformation; None for fewer than ``FEWEST`` or all alike."""
    return _correlation(np.asarray(x, float), np.asarray(y, float), len(x), 1 / max(len(x) - 3, 1))


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Spearman's coefficient, the variance of Fisher's transformation that of Bonett and Wright (2000)."""
    return _of_ranks(np.asarray(x, float), np.asarray(y, float), len(x))


def _of_ranks(x: np.ndarray, y: np.ndarray, count: int) -> Correlation | None:
    from scipy.stats import rankdata

    return _correlation(rankdata(x), rankdata(y), count, 1 / max(count - 3, 1), ranks=True)


def _correlation(x: np.ndarray, y: np.ndarray, count: int, variance: float, ranks: bool = False) -> Correlation | None:
    if count < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    value = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if abs(value) > 1 - 1e-12:
        return Correlation(value, None, None, count)  # the transformation is infinite
    half = Z_95 * np.sqrt(variance * (1 + value**2 / 2 if ranks else 1))
    middle = np.arctanh(value)
    return Correlation(value, float(np.tanh(middle - half)), float(np.tanh(middle + half)), count)


def correlate(evaluation: Evaluation, measure: str, aspect: str) -> AgainstListeners | None:
    """How a measure goes along with the listeners of an evaluation; None where there were none.

    Over systems: the systems' values and mean win rates. Over pairs: the difference of the two songs' values and the
    mean preference; which song is the first means nothing, so that every pair counts both ways round. The interval over
    pairs takes them as independent, which pairs that share a song are not.
    """
    listening = evaluation.listening
    if listening is None or aspect not in listening.aspects:
        return None
    systems = {system.name: system for system in evaluation.systems}
    scores = listening.scores.get(aspect, {})
    points = [(systems[name].value(measure), score) for name, score in scores.items() if name in systems]
    values, wins = _columns([(value, score) for value, score in points if value is not None])
    differences, preferences = _columns(
        (after_first - after_second, pair.preferences[aspect])
        for pair in listening.pairs
        if aspect in pair.preferences
        and (after_first := _song_value(systems.get(pair.first), pair.first_song, measure)) is not None
        and (after_second := _song_value(systems.get(pair.second), pair.second_song, measure)) is not None
    )
    both, both_preferences = np.concatenate([differences, -differences]), np.concatenate([preferences, -preferences])
    variance = 1 / max(len(differences) - 3, 1)
    return AgainstListeners(
        len(values), pearson(values, wins), spearman(values, wins),
        len(differences), _correlation(both, both_preferences, len(differences), variance),
        _of_ranks(both, both_preferences, len(differences)),
    )  # fmt: skip


def _columns(points) -> tuple[np.ndarray, np.ndarray]:
    columns = np.array(list(points), dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _song_value(system: SystemResult | None, song: str, measure: str) -> float | None:
    if system is None:
        return None
    return next((one.measures.get(measure) for one in system.songs if one.name == song), None)
