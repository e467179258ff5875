"""Intervals against scipy's where ids are independent, and against the number of clusters where they are not."""

import numpy as np
import pytest
from scipy import stats

from megatron_music.evaluation.intervals import Interval, mean_interval, share_interval


def test_a_mean_over_clusters_of_one_is_students():
    values = np.random.default_rng(0).normal(3, 2, 30)
    found = mean_interval(values, np.ones(30))
    low, high = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_tokens_of_a_cluster_count_as_one():
    """Ten songs of 1,000 equal tokens each say as much as ten tokens."""
    values = np.random.default_rng(1).normal(size=10)
    many, few = mean_interval(values * 1000, np.full(10, 1000)), mean_interval(values, np.ones(10))
    assert (many.value, many.low, many.high) == pytest.approx((few.value, few.low, few.high))


def test_a_share_of_independent_ids_is_wilsons():
    """One id a span: the design effect is just above 1, by C / (C - 1)."""
    hits = np.array([1] * 3 + [0] * 97)
    found, wilson = share_interval(hits, np.ones(100)), stats.binomtest(3, 100).proportion_ci(method="wilson")
    assert found.value == 0.03
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=5e-4)
    none = share_interval(np.zeros(5), np.full(5, 20))
    expected = stats.binomtest(0, 100).proportion_ci(method="wilson")
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, expected.high))


@pytest.mark.parametrize("hits", [0, 1])
def test_a_share_lies_in_its_interval_where_all_are_alike(hits):
    """By the formula alone the end of the interval is off by the last digit for many numbers of ids."""
    for count in range(1, 400):
        found = share_interval(np.full(count, hits), np.ones(count))
        assert found.low <= found.value == hits <= found.high


def test_a_share_of_spans_that_fail_as_a_whole_is_wilsons_of_the_spans():
    """The variance between C whole spans is that of C - 1 independent ids (the design effect is m C / (C - 1))."""
    hits = np.array([50] * 10 + [0] * 31)
    found = share_interval(hits, np.full(41, 50))
    z, share, count = stats.norm.ppf(0.975), 10 / 41, 40
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((share, centre - half, centre + half))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """400 draws of 25 spans whose own shares differ: at least 92% of the intervals hold the mean share."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(400):
        shares = rng.beta(1, 9, 25)
        found = share_interval(rng.binomial(40, shares), np.full(25, 40))
        held += found.low <= 0.1 <= found.high
    assert held >= 368


def test_one_cluster_has_no_interval_and_none_no_mean():
    assert mean_interval([6.0, 0.0], [3, 0]) == Interval(value=2.0)
    assert Interval(value=2.0).as_dict() == {"value": 2.0}
    with pytest.raises(ValueError, match="nothing to take a mean of"):
        mean_interval([0.0], [0])
