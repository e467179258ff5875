"""Loudness as ITU-R BS.1770-4 measures it, and the gain that brings audio to a target without clipping."""

import numpy as np
from scipy.signal import lfilter

from megatron_music.audio.files import resample

BLOCK_S, STEP_S = 0.4, 0.1
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
PEAK = 0.99
_OVERSAMPLING = 4


def integrated_loudness(samples: np.ndarray, sample_rate: int) -> float:
    """Gated loudness in LUFS of float audio (samples,) or (channels, samples); minus infinity for silence.

    Channels count alike, as left and right do. Audio of less than a block (0.4 s) is measured as one block.
    """
    channels_CS = np.atleast_2d(np.asarray(samples, dtype=np.float64))
    weighted_CS = channels_CS
    for b, a in k_weighting(sample_rate):
        weighted_CS = lfilter(b, a, weighted_CS, axis=-1)
    power_S = np.square(weighted_CS).sum(axis=0)
    block, step = round(BLOCK_S * sample_rate), round(STEP_S * sample_rate)
    sums = np.concatenate([[0.0], np.cumsum(power_S)])
    if len(power_S) < block:
        powers = sums[-1:] / max(1, len(power_S))
    else:
        starts = np.arange(0, len(power_S) - block + 1, step)
        powers = (sums[starts + block] - sums[starts]) / block
    powers = powers[powers > _power(ABSOLUTE_GATE_LUFS)]
    if not len(powers):
        return -np.inf
    powers = powers[powers > powers.mean() * 10 ** (RELATIVE_GATE_LU / 10)]
    return float(_lufs(powers.mean()))


def k_weighting(sample_rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numerators and denominators of the two filters of BS.1770: the head's high shelf, and a high pass.

    The standard tabulates them at 48 kHz; these are the analogue filters behind the table at any rate.
    """
    k, q, gain = np.tan(np.pi * 1681.974450955533 / sample_rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    middle = gain**0.4996667741545416
    shelf = np.array([gain + middle * k / q + k * k, 2 * (k * k - gain), gain - middle * k / q + k * k])
    below = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    k, q = np.tan(np.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    high = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    return [(shelf / below[0], below / below[0]), (np.array([1.0, -2.0, 1.0]), high / high[0])]


def true_peak(samples: np.ndarray, sample_rate: int) -> float:
    """Largest magnitude of float audio (..., samples) and of the curve through its samples, four times oversampled."""
    samples = np.asarray(samples, dtype=np.float32)
    if samples.size == 0:
        return 0.0
    between = resample(samples, sample_rate, _OVERSAMPLING * sample_rate)
    return float(max(np.abs(samples).max(), np.abs(between).max()))


def levelling_gain(samples: np.ndarray, others: list[np.ndarray], sample_rate: int, target_lufs: float | None) -> float:
    """The factor that brings ``samples`` to a loudness, as far as neither it nor ``others`` then clip.

    Without a target, 1, or less where something would clip.
    """
    peak = max(true_peak(audio, sample_rate) for audio in [samples, *others])
    highest = PEAK / peak if peak > 0 else 1.0
    if target_lufs is None:
        return min(1.0, highest)
    loudness = integrated_loudness(samples, sample_rate)
    return min(highest, 10 ** ((target_lufs - loudness) / 20)) if np.isfinite(loudness) else 1.0


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _lufs(power: float) -> float:
    return -0.691 + 10 * np.log10(power)
