"""Sections of a song and what they are: from what changes in it and what comes back.

Signal processing only, no weights. Where they can be had, better labels exist (the released models' data came from a
network trained on annotated songs): put them into a manifest's ``msa``, and this leaves them alone.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.cluster.hierarchy
import scipy.fft
import scipy.ndimage
import scipy.signal
from pydantic import Field

from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters
from megatron_music.songs.annotators import common
from megatron_music.songs.song import Song

SAMPLE_RATE, WINDOW, HOP = 16_000, 4_096, 1_024
BLOCK_FRAMES = 4
BLOCK_S = BLOCK_FRAMES * HOP / SAMPLE_RATE
"""Features are averaged over blocks of 0.256 s, which is what a boundary is exact to at best."""
TIMBRE_BANDS, TIMBRE_COEFFICIENTS = 40, 12
CONTEXT_BLOCKS, NEIGHBOURS, BLUR_BLOCKS, BLUR_LAGS = 4, 0.06, 6.0, 2.0
"""Of the recurrences: blocks compared at once, share of a song's blocks that count as like one, and smoothing."""
MOST_BLOCKS = 2_400
"""Recurrences of songs of more than ten minutes are found in longer blocks: they take the square of the blocks."""
SAME_PART = 0.5
"""Sections whose features correlate by at least so much on average are the same part."""
SILENT_DB, VOICELESS_DB = -60.0, -30.0
"""A song below ``SILENT_DB`` of full scale is silent; a section whose vocals lie ``VOICELESS_DB`` below the song's
loudest section's has none."""


@dataclass(frozen=True)
class Features:
    """What each block sounds like.

    Attributes:
        sound_TD: chroma and timbre, less their mean over the song, in units of their deviation.
        level_T: power, full scale = 1.
        chroma_TC: how strong each of the 12 pitch classes is, from C on, with an Euclidean length of 1.
    """

    sound_TD: np.ndarray
    level_T: np.ndarray
    chroma_TC: np.ndarray


class Structure:
    """Fills ``Song.structure`` with ``{start, end, label}`` in seconds, from 0 to the end without gaps.

    Boundaries are peaks of two curves, scaled to a maximum of 1 and summed: Foote's novelty (Foote 2000, Automatic
    audio segmentation using a measure of audio novelty) and the change of what recurs (Serra et al. 2014, Unsupervised
    music structure annotation by time series structure features and segment similarity), both of chroma and timbre.
    Sections that sound alike, block by block, are one part (agglomerative clustering, average linkage).

    Labels follow from rules. Where parts come back, a first section that is short, comes once and is quieter than most
    is the ``intro`` and a last one that comes once the ``outro``. Of the others, the part that comes most often (the
    loudest of several) is the ``chorus``, and what comes once after the first chorus a ``bridge``; the rest is
    ``verse``. With a vocals track, sections without voice are ``intro``, ``inst`` and ``outro``, and no others.

    On the 25 songs of the project's songbook (on which the settings were chosen) 57% of the boundaries that are found
    lie within 3 s of a true one, and 63% of the true ones are found; by novelty alone 28% and 21%.

    What it can't do: tell verse from chorus by anything but count and loudness (a song whose verse comes more often
    has them swapped); find a boundary where neither harmony nor sound changes; keep parts apart that share chords and
    instruments and differ in the melody only; or follow a repetition in another key. Boundaries have no idea of bars.
    """

    name = "structure"

    class Options(common.Options):
        """Options of ``structure``.

        Attributes:
            shortest: seconds of the shortest section, and half of the novelty kernel's width.
        """

        shortest: float = Field(8.0, ge=2.0, le=60.0)

    def __init__(self, options: "Structure.Options", device: str):
        self.options = options

    def annotate(self, song: Song, out: Path) -> Song:
        """Raises Rejected where the audio can't be read."""
        if song.structure and not self.options.overwrite:
            return song
        samples = common.hear(song, "mix", SAMPLE_RATE)
        vocals = common.hear(song, "vocals", SAMPLE_RATE) if "vocals" in song.audio else None
        return replace(song, structure=self.sections(samples, vocals))

    def sections(self, samples: np.ndarray, vocals: np.ndarray | None = None) -> list[dict]:
        """float32 (S,) at 16 kHz -> sections; silence is one ``inst``."""
        duration_s = len(samples) / SAMPLE_RATE
        features = block_features(samples)
        if 10 * np.log10(features.level_T.max() + 1e-20) < SILENT_DB:
            return [{"start": 0.0, "end": round(duration_s, 2), "label": "inst"}]
        edges = boundaries(features, round(self.options.shortest / BLOCK_S))
        parts = same_parts(features, edges)
        has_voice = None if vocals is None else voiced(vocals, edges)
        levels = np.array([features.level_T[start:end].mean() for start, end in pairwise(edges)])
        times_s = [0.0, *(edge * BLOCK_S for edge in edges[1:-1]), duration_s]
        labels = label_parts(parts, np.diff(times_s), levels, has_voice)
        return [
            {"start": round(start_s, 2), "end": round(end_s, 2), "label": label}
            for (start_s, end_s), label in zip(pairwise(times_s), labels, strict=True)
        ]


def block_features(samples: np.ndarray) -> Features:
    """float32 (S,) at 16 kHz, S > 0 -> features of ceil(S / block) blocks."""
    spectrum = ShortTimeSpectrum(WINDOW, HOP)
    chroma_weights = _chroma_filters()
    mel_weights = mel_filters(TIMBRE_BANDS, WINDOW, SAMPLE_RATE)
    chroma, timbre = [], []
    # Blocks of half a minute: all spectra of an hour at once would take a gigabyte.
    piece = 120 * BLOCK_FRAMES * HOP
    for start in range(0, len(samples), piece):
        amplitudes_TF = np.abs(spectrum(samples[start : start + piece]))
        starts = np.arange(0, len(amplitudes_TF), BLOCK_FRAMES)
        sizes = np.diff([*starts, len(amplitudes_TF)])[:, None]
        mean_TF = np.add.reduceat(amplitudes_TF, starts, axis=0) / sizes
        chroma.append(np.log1p(100 * mean_TF) @ chroma_weights.T)
        bands = np.log(mean_TF @ mel_weights.T + 1e-5)
        timbre.append(scipy.fft.dct(bands, axis=1, norm="ortho")[:, 1 : TIMBRE_COEFFICIENTS + 1])
    chroma_TC = np.concatenate(chroma)
    chroma_TC /= np.linalg.norm(chroma_TC, axis=1, keepdims=True) + 1e-6
    # Chroma and timbre count the same, whatever their units.
    sound_TD = np.concatenate([_standardised(chroma_TC), _standardised(np.concatenate(timbre))], axis=1)
    starts = np.arange(0, len(samples), BLOCK_FRAMES * HOP)
    level_T = np.add.reduceat(samples.astype(np.float64) ** 2, starts) / np.diff([*starts, len(samples)])
    return Features(sound_TD, level_T, chroma_TC)


def _standardised(features_TD: np.ndarray) -> np.ndarray:
    centred_TD = features_TD - features_TD.mean(axis=0)
    return centred_TD / (np.sqrt((centred_TD**2).sum(axis=1).mean()) + 1e-6)


def _chroma_filters() -> np.ndarray:
    """Share of each bin in each pitch class, (12, bins), from A1 to A7 with a Gaussian of half a semitone."""
    frequencies_hz = np.arange(1, WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    pitches = 69 + 12 * np.log2(frequencies_hz / 440)
    distance = (pitches[None] - np.arange(12)[:, None] + 6) % 12 - 6
    weights = np.exp(-0.5 * (distance / 0.5) ** 2) * ((pitches >= 33) & (pitches <= 105))
    return np.pad(weights, ((0, 0), (1, 0)))


def novelty(sound_TD: np.ndarray, half_width: int) -> np.ndarray:
    """Foote's novelty before each block, (T,): how much the next blocks differ from the last ones, and are alike.

    The kernel, a checkerboard with a Gaussian taper, is an outer product k k', and the similarity is the inner product
    of the features; so the sum of their product is |sum of k_i x_i|^2: one filter along time, and no T x T matrix.
    """
    offsets = np.arange(-half_width, half_width) + 0.5
    kernel = np.sign(offsets) * np.exp(-0.5 * (offsets / (0.5 * half_width)) ** 2)
    padded = np.pad(sound_TD, ((half_width, half_width - 1), (0, 0)), mode="edge")
    filtered = scipy.signal.oaconvolve(padded, kernel[::-1, None], mode="valid", axes=0)
    return (filtered**2).sum(axis=1)


def recurrence_change(sound_TD: np.ndarray) -> np.ndarray:
    """How much the set of lags at which a song is like itself changes at each block, (T,).

    Two blocks are alike where each, with its context, is among the nearest neighbours of the other. In the matrix of
    time and lag a repetition is a stripe along time; boundaries are where stripes begin and end.
    """
    pooled = -(-len(sound_TD) // MOST_BLOCKS)
    starts = np.arange(0, len(sound_TD), pooled)
    sizes = np.diff([*starts, len(sound_TD)])
    pooled_TD = np.add.reduceat(sound_TD, starts, axis=0) / sizes[:, None]
    blocks = len(pooled_TD)
    padded = np.pad(pooled_TD, ((CONTEXT_BLOCKS // 2, CONTEXT_BLOCKS - 1 - CONTEXT_BLOCKS // 2), (0, 0)), mode="edge")
    contexts_TE = np.concatenate([padded[shift : shift + blocks] for shift in range(CONTEXT_BLOCKS)], axis=1)
    power_T = (contexts_TE**2).sum(axis=1)
    distance_TT = power_T[:, None] + power_T[None] - 2 * contexts_TE @ contexts_TE.T
    nearest = min(max(2, round(NEIGHBOURS * blocks)), blocks - 1)
    reach_T = np.partition(distance_TT, nearest, axis=1)[:, nearest]
    alike_TT = (distance_TT <= reach_T[:, None]) & (distance_TT <= reach_T[None])
    lags_TL = np.stack([np.roll(row, -block) for block, row in enumerate(alike_TT)]).astype(np.float32)
    smooth_TL = scipy.ndimage.gaussian_filter(lags_TL, (BLUR_BLOCKS / pooled, BLUR_LAGS), mode=("nearest", "wrap"))
    change = (np.diff(smooth_TL, axis=0, prepend=smooth_TL[:1]) ** 2).sum(axis=1)
    return np.repeat(change, sizes)


def boundaries(features: Features, shortest: int) -> list[int]:
    """Edges of sections in blocks, from 0 to the number of blocks, at least ``shortest`` apart."""
    blocks = len(features.level_T)
    curves = (novelty(features.sound_TD, shortest), recurrence_change(features.sound_TD))
    curve = sum(one / (one.max() + 1e-12) for one in curves)
    peaks, _ = scipy.signal.find_peaks(curve, height=curve.mean(), distance=shortest)
    return [0, *(int(peak) for peak in peaks if shortest <= peak <= blocks - shortest), blocks]


def same_parts(features: Features, edges: list[int]) -> np.ndarray:
    """Number of the part that each section is; equal where sections sound the same."""
    sections = [features.sound_TD[start:end] for start, end in pairwise(edges)]
    if len(sections) == 1:
        return np.zeros(1, int)
    distances = [1 - likeness(a, b) for i, a in enumerate(sections) for b in sections[i + 1 :]]
    tree = scipy.cluster.hierarchy.linkage(np.maximum(distances, 0), "average")
    return scipy.cluster.hierarchy.fcluster(tree, 1 - SAME_PART, "distance")


def likeness(first_TD: np.ndarray, second_TD: np.ndarray) -> float:
    """Highest correlation over shifts of up to 2 s, where at least three quarters of the shorter section overlap."""
    best = -1.0
    least = 0.75 * min(len(first_TD), len(second_TD))
    reach = round(2.0 / BLOCK_S)
    for shift in range(-reach, reach + 1):
        a, b = first_TD[max(shift, 0) :], second_TD[max(-shift, 0) :]
        length = min(len(a), len(b))
        if length >= least:
            a, b = a[:length], b[:length]
            best = max(best, float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9)))
    return best


def voiced(vocals: np.ndarray, edges: list[int]) -> np.ndarray:
    """Whether each section has a voice: its power in the vocals track beside the loudest section's."""
    size = BLOCK_FRAMES * HOP
    pieces = [vocals[start * size : end * size] for start, end in pairwise(edges)]
    levels = np.array([np.mean(piece.astype(np.float64) ** 2) if len(piece) else 0.0 for piece in pieces])
    return levels > max(levels.max() * 10 ** (VOICELESS_DB / 10), 10 ** (SILENT_DB / 10))


def label_parts(
    parts: np.ndarray, lengths_s: np.ndarray, levels: np.ndarray, has_voice: np.ndarray | None
) -> list[str]:
    """Labels of sections from the part that each is, its seconds, its mean power and, if known, whether it is sung."""
    last = len(parts) - 1
    count = {part: int((parts == part).sum()) for part in set(parts.tolist())}
    labels = [""] * len(parts)
    if has_voice is not None:
        for index in np.flatnonzero(~has_voice):
            labels[index] = "intro" if index == 0 else "outro" if index == last else "inst"
    elif max(count.values()) > 1:
        if count[parts[0]] == 1 and lengths_s[0] < 1.5 * np.median(lengths_s) and levels[0] < np.median(levels):
            labels[0] = "intro"
        if count[parts[-1]] == 1:
            labels[-1] = "outro"
    sung = [index for index, label in enumerate(labels) if not label]
    loudness = {part: levels[parts == part].mean() for part in count}
    kinds = {int(parts[index]) for index in sung}
    repeated = [part for part in sorted(kinds) if count[part] > 1]
    # A song of one part only has verses.
    chorus = max(repeated, key=lambda part: (count[part], loudness[part])) if repeated and len(kinds) > 1 else None
    for index in sung:
        if parts[index] == chorus:
            labels[index] = "chorus"
        else:
            labels[index] = "bridge" if count[parts[index]] == 1 and "chorus" in labels[:index] else "verse"
    return labels
