"""The pitch of one voice, by YIN (de Cheveigné and Kawahara 2002, doi 10.1121/1.1458024)."""

import numpy as np
import scipy.fft

from megatron_music.audio.files import resample

SAMPLE_RATE = 16000
HOP_S = 0.01
WINDOW_S = 0.032
LOWEST_HZ, HIGHEST_HZ = 60.0, 1100.0
HIGHEST_DIFFERENCE = 0.15
"""The paper's threshold d' is 0.1; codec sound is noisier than what it was set for."""
SILENCE_DBFS = -50.0
_BLOCK_FRAMES = 2048


def fundamental_hz(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """The fundamental frequency every 10 ms, NaN where the sound is silent or not periodic.

    Of several voices at once, or of a voice among instruments, it follows whichever is periodic, or nothing.

    Args:
        samples: float32 (samples,), full scale = 1.

    Returns:
        float64 (ceil(seconds / 0.01),): frame t is centred on (t + 0.5) * 0.01 s.
    """
    samples = resample(samples, sample_rate, SAMPLE_RATE).astype(np.float64)
    hop, window = round(HOP_S * SAMPLE_RATE), round(WINDOW_S * SAMPLE_RATE)
    longest = int(np.ceil(SAMPLE_RATE / LOWEST_HZ)) + 1
    frames, span = -(-len(samples) // hop), window + longest
    padded = np.zeros(max(frames - 1, 0) * hop + span)
    lead = (span - hop) // 2
    padded[lead : lead + len(samples)] = samples[: len(padded) - lead]
    spans_TN = np.lib.stride_tricks.sliding_window_view(padded, span)[::hop][:frames]
    blocks = [_of_spans(spans_TN[t : t + _BLOCK_FRAMES], window, longest) for t in range(0, frames, _BLOCK_FRAMES)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _of_spans(spans_TN: np.ndarray, window: int, longest: int) -> np.ndarray:
    """Pitch in Hz, (T,), of spans of ``window + longest`` samples."""
    difference_TL = _normalised_difference(spans_TN, window, longest)
    shortest = int(SAMPLE_RATE / HIGHEST_HZ)
    inner = difference_TL[:, 1:-1]
    dips = (inner <= difference_TL[:, :-2]) & (inner < difference_TL[:, 2:]) & (inner < HIGHEST_DIFFERENCE)
    dips[:, : shortest - 1] = False
    # The first dip that is deep enough: a deeper one behind it is a multiple of the period.
    lag_T = dips.argmax(axis=1) + 1
    rows = np.arange(len(lag_T))
    left, middle, right = (difference_TL[rows, lag_T + step] for step in (-1, 0, 1))
    curvature = np.maximum(left - 2 * middle + right, 1e-12)
    hz_T = SAMPLE_RATE / (lag_T + 0.5 * (left - right) / curvature)
    loud_T = np.mean(spans_TN**2, axis=1) > 10 ** (SILENCE_DBFS / 10)
    return np.where(dips.any(axis=1) & loud_T, hz_T, np.nan)


def _normalised_difference(spans_TN: np.ndarray, window: int, longest: int) -> np.ndarray:
    """d'(lag) of equation 8, (T, longest + 1): the squared difference to the window ``lag`` later, over its mean."""
    size = scipy.fft.next_fast_len(spans_TN.shape[1] + window, real=True)
    head = scipy.fft.rfft(spans_TN[:, :window], size, axis=1)
    products_TL = scipy.fft.irfft(scipy.fft.rfft(spans_TN, size, axis=1) * head.conj(), size, axis=1)[:, : longest + 1]
    sums = np.cumsum(np.pad(spans_TN**2, ((0, 0), (1, 0))), axis=1)
    energy_TL = sums[:, window : window + longest + 1] - sums[:, : longest + 1]
    difference_TL = np.maximum(energy_TL[:, :1] + energy_TL - 2 * products_TL, 0.0)
    mean_TL = np.cumsum(difference_TL[:, 1:], axis=1) / np.arange(1, longest + 1)
    return np.pad(difference_TL[:, 1:] / np.maximum(mean_TL, 1e-12), ((0, 0), (1, 0)), constant_values=1.0)
