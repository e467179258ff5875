"""How far decoded audio is from what was encoded: distances of spectra and waveforms, and errors of pitch.

All take two signals of one sample rate, float32 (S,), and compare them as far as the shorter one reaches. What differs
in rate or bandwidth has to be resampled to one first (``at_common_rate``). Levels below ``FLOOR`` count as silence.
"""

import numpy as np

from megatron_music.audio.files import resample
from megatron_music.audio.pitch import fundamental_hz
from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters

FLOOR = 1e-4
"""-80 dB of a full-scale sine: below it lie dither and rounding, whose logarithms would drown all else."""
BAND_EDGES_HZ = (0, 500, 2000, 4000, 8000, 12000, 24000)
MOST_DB = 100.0
"""Where SI-SDR ends either way: 32-bit rounding is not far beyond."""
MEL_BANDS, MEL_WINDOW_S, MEL_HOP_S = 80, 0.04, 0.01
STFT_WINDOWS_S = (0.01, 0.025, 0.05)
_LSD_WINDOW_S = 0.032
RIGHT_PITCH_CENTS = 50.0


def at_common_rate(
    reference: np.ndarray, reference_rate: int, decoded: np.ndarray, decoded_rate: int, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both signals at ``sample_rate``, cut to one length: what a codec of a higher rate does above is left out."""
    return _cut(resample(reference, reference_rate, sample_rate), resample(decoded, decoded_rate, sample_rate))


def mel_distance_db(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of log-mel spectra in dB, 80 bands, windows of 40 ms every 10 ms.

    The L1 distance of log-mels that codecs are trained on (Kumar et al. 2023, https://arxiv.org/abs/2306.06546), at one
    resolution and in dB.
    """
    window = round(MEL_WINDOW_S * sample_rate)
    spectrum = ShortTimeSpectrum(window, round(MEL_HOP_S * sample_rate))
    filters_MF = mel_filters(MEL_BANDS, window, sample_rate)
    first, second = (_db(np.abs(spectrum(samples)) @ filters_MF.T) for samples in _cut(reference, decoded))
    return float(np.abs(first - second).mean())


def stft_distance(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float | None:
    """Multi-resolution STFT distance; None where the reference is silence.

    Spectral convergence ||S| - |D|| / ||S|| and mean |ln |S| - ln |D||, summed, in the mean of three windows of 10, 25
    and 50 ms with hops of a fifth (Yamamoto, Song and Kim 2020, https://arxiv.org/abs/1910.11480, equations 3 to 6).
    """
    reference, decoded = _cut(reference, decoded)
    distances = []
    for seconds in STFT_WINDOWS_S:
        window = round(seconds * sample_rate)
        spectrum = ShortTimeSpectrum(window, max(1, window // 5))
        first_TF, second_TF = np.abs(spectrum(reference)), np.abs(spectrum(decoded))
        norm = np.linalg.norm(first_TF)
        if not norm:
            return None
        logarithms = np.log(np.maximum(first_TF, FLOOR)) - np.log(np.maximum(second_TF, FLOOR))
        distances.append(float(np.linalg.norm(first_TF - second_TF) / norm + np.abs(logarithms).mean()))
    return float(np.mean(distances))


def si_sdr_db(reference: np.ndarray, decoded: np.ndarray) -> float | None:
    """Scale-invariant signal-to-distortion ratio in dB, within +-100; None where the reference is silence.

    Le Roux et al. 2019 (https://arxiv.org/abs/1811.02508), means removed. It asks for the waveform itself: a codec that
    makes up phases, as all vocoders do, sounds well and scores below 0.
    """
    reference, decoded = (samples.astype(np.float64) - samples.mean() for samples in _cut(reference, decoded))
    energy = float(reference @ reference)
    if not energy:
        return None
    target = reference * (float(reference @ decoded) / energy)
    signal, noise = float(target @ target), float(np.square(target - decoded).sum())
    if not signal or not noise:
        return MOST_DB if signal else -MOST_DB
    return float(np.clip(10 * np.log10(signal / noise), -MOST_DB, MOST_DB))


def log_spectral_distance_db(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Log-spectral distance in dB by band (``0-500`` Hz, ...), up to half the sample rate.

    Root mean square over a band's bins of the difference of log spectra, mean over frames of 32 ms every 8 ms (Gray and
    Markel 1976, doi 10.1109/TASSP.1976.1162849).
    """
    window = round(_LSD_WINDOW_S * sample_rate)
    spectrum = ShortTimeSpectrum(window, window // 4)
    first_TF, second_TF = (_db(np.abs(spectrum(samples))) for samples in _cut(reference, decoded))
    bins_hz = np.fft.rfftfreq(window, 1 / sample_rate)
    found = {}
    for low, high in zip(BAND_EDGES_HZ[:-1], BAND_EDGES_HZ[1:], strict=True):
        band = (bins_hz >= low) & (bins_hz < min(high, sample_rate / 2))
        if band.any():
            squares_TF = np.square(first_TF[:, band] - second_TF[:, band])
            found[f"{low}-{min(high, sample_rate // 2)}"] = float(np.sqrt(squares_TF.mean(axis=1)).mean())
    return found


def pitch_errors(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Errors of the pitch of one voice, every 10 ms (``audio.pitch``).

    ``pitch_accuracy``: share of the reference's voiced frames whose pitch is within 50 cents; an unvoiced one is wrong
    (raw pitch accuracy of Salamon et al. 2014, doi 10.1109/MSP.2013.2271648). ``pitch_cents``: median absolute error
    where both are voiced. Each is left out where there is no such frame.
    """
    first_T, second_T = (fundamental_hz(samples, sample_rate) for samples in _cut(reference, decoded))
    voiced, both = np.isfinite(first_T), np.isfinite(first_T) & np.isfinite(second_T)
    cents = np.abs(1200 * np.log2(second_T[both] / first_T[both]))
    found = {}
    if voiced.any():
        found["pitch_accuracy"] = float((cents <= RIGHT_PITCH_CENTS).sum() / voiced.sum())
    if both.any():
        found["pitch_cents"] = float(np.median(cents))
    return found


def code_entropy_bits(counts_KC: np.ndarray) -> np.ndarray:
    """Entropy in bits of each codebook's codes by how often each was used, float64 (K,), counts int (K, codes).

    What the codes would take by an ideal code of single codes: an upper bound of their information, since what the
    codes before tell of the next is not used. Of few frames it reads low (by about codes / (2 ln 2 frames)).
    """
    shares_KC = counts_KC / np.maximum(counts_KC.sum(axis=1, keepdims=True), 1)
    logarithms_KC = np.log2(shares_KC, out=np.zeros_like(shares_KC), where=shares_KC > 0)
    return -(shares_KC * logarithms_KC).sum(axis=1)


def _db(amplitudes: np.ndarray) -> np.ndarray:
    return 20 * np.log10(np.maximum(amplitudes, FLOOR))


def _cut(reference: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = min(len(reference), len(decoded))
    return reference[:length], decoded[:length]
