"""What two precisions have to have in common: the size of BF16's rounding in one step, the trend in many."""

import numpy as np

BF16_ROUNDOFF = 2.0**-8
"""The largest relative error of a number rounded to BF16, which keeps 8 bits of it."""


def rounding_error(rounded: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of ``exact``, in units of BF16's roundoff.

    Independent roundings one behind the other add up like the root of a third of their number.
    """
    difference, exact = np.asarray(rounded, float) - exact, np.asarray(exact, float)
    return float(np.sqrt((difference**2).mean() / (exact**2).mean()) / BF16_ROUNDOFF)


def decrease(losses: list[float]) -> float:
    """From the mean of the first three losses to that of the last three."""
    return float(np.mean(losses[:3]) - np.mean(losses[-3:]))
