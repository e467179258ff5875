"""How a recording is made: loudness, clipping, silence and bandwidth, and the levels of voice and accompaniment.

Files are read block by block at their own sample rate, so that eight channels of ten minutes take no more memory than
two of one; what other measures hear is kept, mono at 16 kHz.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
from scipy.signal.windows import blackmanharris

from megatron_music.audio.files import audio_blocks, resample
from megatron_music.audio.loudness import LoudnessMeter

SAMPLE_RATE = 16_000
CLIPPED, CLIPPED_RUN = 0.999, 3
"""Magnitude from which a sample may be clipped, and how many such samples in a row on one side are."""
SILENT_DBFS, SILENCE_S = -60.0, 0.05
WINDOW = 4096
ENERGY_SHARE = 0.99
CONTENT_DB = -80.0
"""Content ends above the highest frequency whose power is no further below the strongest."""
LOWEST_HZ = 20.0
_BLOCK_S = 10.0


@dataclass(frozen=True)
class Recording:
    """An audio file as it was heard.

    Attributes:
        samples: float32 (S,), channels averaged, at 16 kHz.
        sample_rate, channels: of the file.
        energy: squares of all samples, full scale = 1, averaged over the channels and summed over the seconds.
        loudness_lufs: by ITU-R BS.1770; minus infinity of silence.
        clipped_share, silent_share: of the samples and of the time, from 0 to 1.
        power_F: mean power in each bin of ``WINDOW`` samples.
    """

    samples: np.ndarray
    sample_rate: int
    channels: int
    duration_s: float
    energy: float
    loudness_lufs: float
    clipped_share: float
    silent_share: float
    power_F: np.ndarray

    def bandwidth_hz(self) -> tuple[float, float] | None:
        """The frequency below which 99% of the energy lies, and the one where content ends (80 dB below the
        strongest); None of silence. Both from 20 Hz on, exact to a bin of the spectrum."""
        hz_F = np.fft.rfftfreq(WINDOW, 1 / self.sample_rate)
        power_F = np.where(hz_F >= LOWEST_HZ, self.power_F, 0.0)
        if power_F.max() <= 0:
            return None
        shares = np.cumsum(power_F) / power_F.sum()
        last = np.flatnonzero(power_F >= power_F.max() * 10 ** (CONTENT_DB / 10))[-1]
        return float(hz_F[np.searchsorted(shares, ENERGY_SHARE)]), float(hz_F[last])


def hear(path: str | Path) -> Recording:
    """Reads a file once and measures it on the way; raises InputError as ``audio_blocks`` does."""
    mono, power_F, windows = [], np.zeros(WINDOW // 2 + 1), 0
    frames, energy, clipped, silent = 0, 0.0, _ClippedRuns(), 0
    meter, rate, channels = None, 0, 0
    for block_SC, rate in audio_blocks(path, _BLOCK_S):
        if meter is None:
            meter, channels = LoudnessMeter(rate), block_SC.shape[1]
        meter.add(block_SC.T)
        mono.append(block_SC.mean(axis=1))
        power_S = np.square(block_SC, dtype=np.float64).mean(axis=1)
        frames, energy = frames + len(block_SC), energy + power_S.sum()
        clipped.add(block_SC)
        silent += _silent_samples(power_S, round(SILENCE_S * rate))
        spectra_F, count = _power(mono[-1])
        power_F, windows = power_F + spectra_F, windows + count
    return Recording(
        samples=resample(np.concatenate(mono), rate, SAMPLE_RATE),
        sample_rate=rate,
        channels=channels,
        duration_s=frames / rate,
        energy=float(energy / rate),
        loudness_lufs=meter.lufs(),
        clipped_share=clipped.count / (frames * channels),
        silent_share=silent / frames,
        power_F=power_F / windows,
    )


def sound_measures(recording: Recording) -> tuple[dict[str, float], list[str]]:
    """Measures of a mix, and what could not be measured."""
    measures = {
        "duration": recording.duration_s,
        "clipped": 100 * recording.clipped_share,
        "silence": 100 * recording.silent_share,
    }
    problems = []
    if np.isfinite(recording.loudness_lufs):
        measures["loudness"] = recording.loudness_lufs
    else:
        problems.append("is silent: it has no loudness")
    if bandwidth := recording.bandwidth_hz():
        measures |= {"bandwidth": bandwidth[0] / 1000, "content_end": bandwidth[1] / 1000}
    return measures, problems


def vocal_to_accompaniment_db(vocals: Recording, accompaniment: Recording) -> float | None:
    """Ratio of the energies of both tracks over the whole song in dB; None where one is silent."""
    if vocals.energy <= 0 or accompaniment.energy <= 0:
        return None
    return float(10 * np.log10(vocals.energy / accompaniment.energy))


class _ClippedRuns:
    """Counts samples in runs of at least ``CLIPPED_RUN`` on one side of full scale, over the edges of blocks."""

    def __init__(self):
        self.count = 0
        self._before: np.ndarray | None = None  # run length and side with which each channel has ended: (2, channels)

    def add(self, block_SC: np.ndarray) -> None:
        if self._before is None:
            self._before = np.zeros((2, block_SC.shape[1]), int)
        for channel, samples in enumerate(block_SC.T):
            side_S = np.where(np.abs(samples) >= CLIPPED, np.sign(samples), 0).astype(int)
            edges = np.concatenate([[0], np.flatnonzero(np.diff(side_S)) + 1, [len(side_S)]])
            lengths, sides = np.diff(edges), side_S[edges[:-1]]
            carried, side = self._before[:, channel]
            joined = carried if side == sides[0] else 0
            # The carried part of a run was counted where it was long enough by itself.
            counted = joined if joined >= CLIPPED_RUN else 0
            totals = lengths.copy()
            totals[0] += joined
            self.count += int(totals[(totals >= CLIPPED_RUN) & (sides != 0)].sum())
            self.count -= counted if sides[0] != 0 else 0
            self._before[:, channel] = (totals[-1], sides[-1]) if sides[-1] != 0 else (0, 0)


def _silent_samples(power_S: np.ndarray, frame: int) -> int:
    """Samples in stretches of ``frame`` samples whose mean power is below ``SILENT_DBFS``; the last may be shorter."""
    starts = np.arange(0, len(power_S), max(1, frame))
    lengths = np.diff([*starts, len(power_S)])
    means = np.add.reduceat(power_S, starts) / lengths
    return int(lengths[means < 10 ** (SILENT_DBFS / 10)].sum())


def _power(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Power spectra summed over the windows of float32 (S,), and how many there are; what is left over is dropped,
    except where there is no whole window."""
    if len(samples) < WINDOW:
        samples = np.pad(samples, (0, WINDOW - len(samples)))
    windows_WN = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    # Sidelobes of 92 dB: a strong low tone must not look like content above.
    spectra = scipy.fft.rfft(windows_WN * blackmanharris(WINDOW, sym=False).astype(np.float32), axis=1)
    return (np.abs(spectra).astype(np.float64) ** 2).sum(axis=0), len(windows_WN)
