"""Statistics of listeners' answers, against published examples, independent programs and planted truths."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest, pearsonr
from scipy.stats import spearmanr as scipy_spearman

from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.listening.statistics import (
    Answer,
    bradley_terry,
    correlate,
    krippendorff_alpha,
    pearson,
    spearman,
    summarise,
    win_rate_interval,
)
from megatron_music.evaluation.result import Evaluation, Measure, SongResult, SystemResult

NONE = np.nan
# Krippendorff (2011), part C: four observers, twelve units, five values.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level, alpha):
    assert krippendorff_alpha(PUBLISHED, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_knows_its_ends():
    alike = np.array([[1, 0, -1, 1], [1, 0, -1, 1]])
    assert krippendorff_alpha(alike, "ordinal") == 1
    # Two raters, two values, always opposed: observed disagreement 1, expected 2 * 2 * 2 / (4 * 3).
    assert krippendorff_alpha(np.array([[1, -1], [-1, 1]]), "ordinal") == pytest.approx(1 - 3 / 2)
    assert krippendorff_alpha(np.ones((2, 3)), "ordinal") is None
    assert krippendorff_alpha(np.array([[1, NONE], [NONE, 1]]), "ordinal") is None
    assert krippendorff_alpha(np.zeros((0, 0)), "ordinal") is None


@pytest.mark.parametrize(("wins", "count"), [(7, 10), (0, 5), (5, 5), (130, 200)])
def test_the_interval_of_one_rater_is_wilsons(wins, count):
    found = win_rate_interval([1.0] * wins + [0.0] * (count - wins), ["ann"] * count)
    expected = binomtest(wins, count).proportion_ci(0.95, "wilson")
    assert (found.low, found.value, found.high) == pytest.approx((expected.low, wins / count, expected.high), abs=1e-12)


def test_raters_who_repeat_themselves_count_once():
    # Ten raters give the same answer to ten pairs each: as much as ten answers, with n / (n - 1) of the variance.
    wins = [1.0] * 60 + [0.0] * 40
    raters = [f"rater {n // 10}" for n in range(100)]
    found = win_rate_interval(wins, raters)
    # The design effect is 10 * 10 / 9, of 100 answers 9 are left, of which 0.6 won.
    z2 = 1.959963984540054**2
    middle, half = (0.6 + z2 / 18) / (1 + z2 / 9), np.sqrt(z2 * 0.24 / 9 + z2**2 / 324) / (1 + z2 / 9)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    # Raters who do not differ leave Wilson's interval, and never a narrower one.
    alike = win_rate_interval(wins, [f"rater {n % 10}" for n in range(100)])
    expected = binomtest(60, 100).proportion_ci(0.95, "wilson")
    assert (alike.low, alike.high) == pytest.approx((expected.low, expected.high))


def test_strengths_are_the_most_probable_ones():
    wins_SS = np.array([[0, 9, 14, 3], [4, 0, 8, 0], [2, 5, 0, 6], [1, 0, 7, 0]], float)
    padded_SS = wins_SS + 0.5 * ((wins_SS + wins_SS.T) > 0)

    def surprise(logs_S):
        return (padded_SS * np.log1p(np.exp(logs_S[None] - logs_S[:, None]))).sum()

    expected = minimize(surprise, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(bradley_terry(wins_SS), expected - expected.mean(), atol=1e-4)


def test_planted_strengths_are_found_again():
    planted = np.array([1.0, 0.4, -0.2, -1.2])
    chance, games = np.random.default_rng(3), 4000
    wins_SS = np.zeros((4, 4))
    for one in range(4):
        for other in range(one + 1, 4):
            won = chance.binomial(games, 1 / (1 + np.exp(planted[other] - planted[one])))
            wins_SS[one, other], wins_SS[other, one] = won, games - won
    np.testing.assert_allclose(bradley_terry(wins_SS), planted, atol=0.06)


def test_strengths_need_comparisons_that_tie_all_together():
    assert bradley_terry(np.array([[0, 3, 0], [1, 0, 0], [0, 0, 0]])) is None
    # Who never lost is not infinitely strong: three wins and a tie are odds of 3.5 to 0.5.
    assert np.exp(np.diff(bradley_terry(np.array([[0, 3], [0, 0]]))))[0] == pytest.approx(0.5 / 3.5)


def test_correlations_are_scipys():
    chance = np.random.default_rng(0)
    x = chance.normal(size=30)
    y = x + chance.normal(size=30)
    y[:4] = y[0]
    expected = pearsonr(x, y)
    interval = expected.confidence_interval()
    found = pearson(x, y)
    assert (found.value, found.low, found.high) == pytest.approx((expected.statistic, interval.low, interval.high))
    ranks, value = spearman(x, y), scipy_spearman(x, y).statistic
    half = 1.959963984540054 * np.sqrt((1 + value**2 / 2) / 27)
    assert (ranks.value, ranks.low) == pytest.approx((value, np.tanh(np.arctanh(value) - half)))
    assert found.count == ranks.count == 30
    assert pearson([1, 2, 3], [1, 2, 4]) is None and pearson([1, 1, 1, 1], [1, 2, 3, 4]) is None
    perfect = pearson([1, 2, 3, 4], [2, 4, 6, 8])
    assert (perfect.value, perfect.low, perfect.high) == (1, None, None)


def said(rater, first, second, song, **preferences):
    return Answer(rater, first, song, second, song, preferences)


ANSWERS = [
    said("ann", "x", "y", "1", overall=1, structure=1),
    said("bob", "x", "y", "1", overall=1, structure=0),
    said("ann", "x", "y", "2", overall=0),
    said("bob", "y", "z", "1", overall=-1),
    said("ann", "z", "x", "1", overall=1),
]


def test_answers_become_rates_scores_and_pairs():
    heard = summarise(ANSWERS, ["x", "y", "z"], ["overall", "structure"])
    rates = {(one.system, one.against): one for one in heard.win_rates["overall"]}
    assert len(rates) == 6 and (heard.raters, heard.answers) == (2, 5)
    forth, back = rates["x", "y"], rates["y", "x"]
    assert (forth.wins, forth.ties, forth.losses, forth.rate.value) == (2, 1, 0, pytest.approx(5 / 6))
    assert (back.wins, back.ties, back.losses, back.rate.value) == (0, 1, 2, pytest.approx(1 / 6))
    assert forth.rate.low == pytest.approx(1 - back.rate.high)
    assert heard.scores["overall"] == pytest.approx({"x": 5 / 12, "y": 1 / 12, "z": 1})
    assert heard.scores["structure"] == pytest.approx({"x": 0.75, "y": 0.25})
    strengths = heard.strengths["overall"]
    assert list(heard.strengths) == ["overall"] and strengths["z"] > strengths["x"] > strengths["y"]
    assert sum(strengths.values()) == pytest.approx(0)
    first = heard.pairs[0]
    assert (first.first, first.second_song, first.raters) == ("x", "1", 2)
    assert first.preferences == {"overall": 1.0, "structure": 0.5}
    # On the only structure that two raters judged, they gave two different values.
    assert heard.agreement == {"structure": pytest.approx(0.0)}
    assert summarise([], ["x", "y"], ["overall"]).scores == {"overall": {}}


def evaluated(values, answers):
    """Systems with one song each for every value of ``values[system]``."""
    songs = {
        name: [SongResult(name=str(n), file="", measures={"m": value}) for n, value in enumerate(column)]
        for name, column in values.items()
    }
    systems = [SystemResult(name=name, songs=made) for name, made in songs.items()]
    return Evaluation(measures={"m": Measure(title="m")}, systems=systems,
                      listening=summarise(answers, list(values), ["overall"]))  # fmt: skip


def test_measures_are_correlated_with_listeners_over_systems_and_pairs():
    chance = np.random.default_rng(1)
    values = {name: chance.normal(centre, 1, size=6) for name, centre in zip("abcde", (0, 1, 2, 0.5, 3), strict=True)}
    answers = []
    for one in values:
        for other in (name for name in values if name > one):
            # Which of the two comes first must not matter.
            pairs = [(one, other), (other, one)]
            for song in range(6):
                first, second = pairs[song % 2]
                noisy = values[first][song] - values[second][song] + chance.normal()
                answers.append(said("ann", first, second, str(song), overall=int(np.sign(round(noisy)))))
    evaluation = evaluated(values, answers)
    found = correlate(evaluation, "m", "overall")
    medians = [float(np.median(column)) for column in values.values()]
    scores = list(evaluation.listening.scores["overall"].values())
    assert found.system_count == 5 and found.pair_count == 60
    assert found.systems_pearson.value == pytest.approx(pearsonr(medians, scores).statistic)
    assert found.systems_spearman.value == pytest.approx(scipy_spearman(medians, scores).statistic)
    x = [values[a.first][int(a.first_song)] - values[a.second][int(a.second_song)] for a in answers]
    y = [a.preferences["overall"] for a in answers]
    expected = np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y))
    assert found.pairs_pearson.value == pytest.approx(expected) and found.pairs_pearson.count == 60
    turned = [said("ann", a.second, a.first, a.first_song, overall=-a.preferences["overall"]) for a in answers]
    assert correlate(evaluated(values, turned), "m", "overall").pairs_spearman == found.pairs_spearman
    assert found.pairs_pearson.value > 0.5 and found.pairs_spearman.value > 0.5


def test_too_few_points_give_no_correlation_but_their_number():
    evaluation = evaluated({"x": [1.0], "y": [2.0]}, [said("ann", "x", "y", "0", overall=1)])
    found = correlate(evaluation, "m", "overall")
    assert (found.system_count, found.systems_pearson, found.pair_count, found.pairs_spearman) == (2, None, 1, None)
    assert correlate(evaluation, "m", "structure") is None
    assert correlate(Evaluation(), "m", "overall") is None


def test_the_interval_of_a_file_is_kept():
    heard = summarise(ANSWERS, ["x", "y", "z"], ["overall"])
    assert isinstance(heard.win_rates["overall"][0].rate, Interval)
    assert Evaluation.model_validate(Evaluation(listening=heard).model_dump(mode="json")).listening == heard
