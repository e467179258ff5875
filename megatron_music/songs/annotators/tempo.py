"""Tempo, by autocorrelation of what begins in the sound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.fft

from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters
from megatron_music.songs.annotators import common
from megatron_music.songs.song import Song

SAMPLE_RATE, WINDOW, HOP = 16_000, 1_024, 160
FRAMES_PER_S = SAMPLE_RATE / HOP
SLOWEST_BPM, FASTEST_BPM = 40.0, 220.0
USUAL_BPM, SPREAD_OCTAVES = 120.0, 0.9
"""Preferred tempo: a Gaussian over the logarithm of the tempo (Ellis 2007, Beat tracking by dynamic programming)."""
LEAST_PEAK = 0.05
"""A sound whose autocorrelation has no higher peak, of a maximum of 1, has no beat."""
_BANDS = 40
_PIECE_S = 30


class Tempo:
    """Adds ``tempo_bpm``, beats a minute to a tenth; nothing where no beat is found.

    One tempo for the whole song: its autocorrelation's highest peak, weighted for tempi near 120. Which of two levels
    is the beat is a matter of taste: from about 170 on, half of the tempo wins. Meters of three beats can be found a
    third too slow, and a song that changes its tempo gets the one that it has longest.
    """

    name = "tempo"

    class Options(common.Options):
        """Options of ``tempo``."""

    def __init__(self, options: "Tempo.Options", device: str):
        self.options = options

    def annotate(self, song: Song, out: Path) -> Song:
        """Raises Rejected where the audio can't be read."""
        if "tempo_bpm" in song.extra and not self.options.overwrite:
            return song
        found = tempo_bpm(common.hear(song, "mix", SAMPLE_RATE))
        return song if found is None else replace(song, extra={**song.extra, "tempo_bpm": round(found, 1)})


def onset_strength(samples: np.ndarray) -> np.ndarray:
    """Rise of the logarithmic amplitude, summed over mel bands: float32 (S,) at 16 kHz -> (frames,), 100 a second."""
    spectrum = ShortTimeSpectrum(WINDOW, HOP)
    weights = mel_filters(_BANDS, WINDOW, SAMPLE_RATE)
    bands = [
        np.log1p(1000 * (np.abs(spectrum(samples[start : start + _PIECE_S * SAMPLE_RATE])) @ weights.T))
        for start in range(0, len(samples), _PIECE_S * SAMPLE_RATE)
    ]
    rise = np.maximum(np.diff(np.concatenate(bands), axis=0), 0).sum(axis=1)
    # A piece ends in silence: the first rise of the next is not the music's.
    rise[_PIECE_S * round(FRAMES_PER_S) - 1 :: _PIECE_S * round(FRAMES_PER_S)] = 0
    return rise


def tempo_bpm(samples: np.ndarray) -> float | None:
    """Beats a minute of float32 (S,) at 16 kHz; None where there is no beat or less than 4 s of sound."""
    if len(samples) < 4 * SAMPLE_RATE:
        return None
    rise = onset_strength(samples)
    rise = rise - rise.mean()
    if not rise.any():
        return None
    power = np.abs(scipy.fft.rfft(rise, scipy.fft.next_fast_len(2 * len(rise)))) ** 2
    correlation = scipy.fft.irfft(power)[: len(rise)]
    correlation /= correlation[0]
    lags = np.arange(round(60 / FASTEST_BPM * FRAMES_PER_S), round(60 / SLOWEST_BPM * FRAMES_PER_S) + 1)
    octaves = np.log2(60 * FRAMES_PER_S / lags / USUAL_BPM)
    lag = int(lags[np.argmax(_summit(correlation, lags) * np.exp(-0.5 * (octaves / SPREAD_OCTAVES) ** 2))])
    if correlation[lag - 1 : lag + 2].max() < LEAST_PEAK:
        return None
    return 60 * FRAMES_PER_S / _refined(correlation, lag)


def _summit(correlation: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Correlation at each lag where it is a peak, else 0."""
    peak = (correlation[lags] >= correlation[lags - 1]) & (correlation[lags] >= correlation[lags + 1])
    return np.where(peak, correlation[lags], 0)


def _refined(correlation: np.ndarray, lag: float) -> float:
    """A lag in frames, exact to fractions: the peaks at its multiples, up to 16, are that many times as exact."""
    for multiple in (1, 2, 4, 8, 16):
        centre = round(lag * multiple)
        reach = max(1, round(0.02 * centre)) if multiple == 1 else 2
        if centre + reach + 1 >= len(correlation) // 2:
            break
        at = centre - reach + int(np.argmax(correlation[centre - reach : centre + reach + 1]))
        before, here, after = correlation[at - 1 : at + 2]
        bend = before - 2 * here + after
        if here < LEAST_PEAK or bend >= 0:
            break
        lag = (at + float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))) / multiple
    return lag
