"""Intervals of means and shares over clusters: what stands in one span, or comes from one song, is not independent.

Both take sums and counts by cluster and linearise the ratio of their totals (Cochran 1977, section 6.3):

    r = sum t_c / sum n_c,   var r = C / (C - 1) sum (t_c - r n_c)^2 / (sum n_c)^2

A mean's interval is r +- Student's t with C - 1 degrees of freedom. A share's is Wilson's (1927) with the number of
ids divided by the design effect, that is, by how much larger the variance is than that of independent ids: it holds
where a share is near 0, and is the one recommended for clustered shares by Dean and Pagano (2015). Where no id is
invalid, or all are, the design effect can't be seen and ids count as independent.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

LEVEL = 0.95


class Interval(BaseModel):
    """A measured value and its 95% interval; without one where there is a single cluster."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float]:
        """The numbers that there are, by name."""
        return self.model_dump(exclude_none=True)


def mean_interval(totals_C: np.ndarray, counts_C: np.ndarray) -> Interval:
    """Mean a token of ``totals_C`` over clusters with ``counts_C`` tokens; raises ValueError where there is none."""
    from scipy.stats import t

    totals_C, counts_C = _present(totals_C, counts_C)
    mean, variance = _ratio(totals_C, counts_C)
    if variance is None:
        return Interval(value=mean)
    half = float(t.ppf((1 + LEVEL) / 2, len(counts_C) - 1)) * variance**0.5
    return Interval(value=mean, low=mean - half, high=mean + half)


def share_interval(hits_C: np.ndarray, counts_C: np.ndarray) -> Interval:
    """Share of hits among ids over clusters with ``counts_C`` ids; raises ValueError where there is none."""
    from scipy.stats import norm

    hits_C, counts_C = _present(hits_C, counts_C)
    share, variance = _ratio(hits_C, counts_C)
    ids = float(counts_C.sum())
    independent = share * (1 - share) / ids
    effect = max(1.0, variance / independent) if variance is not None and independent > 0 else 1.0
    ids /= effect
    z = float(norm.ppf((1 + LEVEL) / 2))
    centre = (share + z**2 / (2 * ids)) / (1 + z**2 / ids)
    half = z / (1 + z**2 / ids) * (share * (1 - share) / ids + z**2 / (4 * ids**2)) ** 0.5
    # Where no id is a hit, or all are, rounding would leave the share outside.
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(value=share, low=low, high=high)


def _present(totals_C: np.ndarray, counts_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    totals_C, counts_C = np.asarray(totals_C, dtype=np.float64), np.asarray(counts_C, dtype=np.float64)
    if not (counts_C > 0).any():
        raise ValueError("there is nothing to take a mean of")
    return totals_C[counts_C > 0], counts_C[counts_C > 0]


def _ratio(totals_C: np.ndarray, counts_C: np.ndarray) -> tuple[float, float | None]:
    """Ratio of the totals and its variance, which a single cluster does not show."""
    clusters, count = len(counts_C), counts_C.sum()
    ratio = float(totals_C.sum() / count)
    if clusters < 2:
        return ratio, None
    residuals_C = totals_C - ratio * counts_C
    return ratio, float(clusters / (clusters - 1) * (residuals_C**2).sum() / count**2)
