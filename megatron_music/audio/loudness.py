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
    meter = LoudnessMeter(sample_rate)
    meter.add(np.atleast_2d(samples))
    return meter.lufs()


class LoudnessMeter:
    """``integrated_loudness`` of audio that comes piece by piece."""

    def __init__(self, sample_rate: int):
        self._filters = k_weighting(sample_rate)
        self._states: list[np.ndarray] | None = None
        self._block, self._step = round(BLOCK_S * sample_rate), round(STEP_S * sample_rate)
        self._waiting = np.zeros(0)  # squares, summed over channels, of samples that a coming block takes
        self._powers: list[np.ndarray] = []

    def add(self, samples_CS: np.ndarray) -> None:
        """The next samples, (channels, samples)."""
        weighted_CS = np.asarray(samples_CS, dtype=np.float64)
        if self._states is None:
            self._states = [np.zeros((len(weighted_CS), len(a) - 1)) for _, a in self._filters]
        for index, (b, a) in enumerate(self._filters):
            weighted_CS, self._states[index] = lfilter(b, a, weighted_CS, axis=-1, zi=self._states[index])
        self._waiting = np.concatenate([self._waiting, np.square(weighted_CS).sum(axis=0)])
        starts = np.arange(0, len(self._waiting) - self._block + 1, self._step)
        if len(starts):
            sums = np.concatenate([[0.0], np.cumsum(self._waiting)])
            self._powers.append((sums[starts + self._block] - sums[starts]) / self._block)
            self._waiting = self._waiting[starts[-1] + self._step :]

    def lufs(self) -> float:
        """Loudness of all so far; minus infinity for silence."""
        only = [self._waiting.sum() / max(1, len(self._waiting))]
        powers = np.concatenate(self._powers) if self._powers else np.array(only)
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

    Without a target, and of silence, 1, or less where something would clip.
    """
    peak = max(true_peak(audio, sample_rate) for audio in [samples, *others])
    return gain_to(target_lufs, -np.inf if target_lufs is None else integrated_loudness(samples, sample_rate), peak)


def gain_to(target_lufs: float | None, loudness_lufs: float, peak: float) -> float:
    """``levelling_gain`` of audio whose loudness and true peak are known."""
    highest = PEAK / peak if peak > 0 else 1.0
    if target_lufs is None or not np.isfinite(loudness_lufs):
        return min(1.0, highest)
    return min(highest, 10 ** ((target_lufs - loudness_lufs) / 20))


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _lufs(power: float) -> float:
    return -0.691 + 10 * np.log10(power)
