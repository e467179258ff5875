"""Instruments of the accompaniment: one note or stroke at a time, by additive synthesis.

A note depends on nothing but instrument, pitch and length, so that it is the same wherever it is played; notes are kept
in memory between songs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megatron_music.songs.singing import SAMPLE_RATE

HIGHEST_HZ = 7600.0
FADE_S = 0.03


@dataclass(frozen=True)
class Instrument:
    """A sound made of partials.

    Attributes:
        level: root mean square of the first fifth of a second of a note.
        fall: amplitude of partial k is k^-fall ...
        plucked_at: ... times |sin(pi k plucked_at)|, the comb of a string plucked at that part of its length.
        ratios: frequencies of the partials against the fundamental; whole multiples where empty.
        decay: neper a second of the fundamental; 0 sounds on until the note ends.
        damping: additional decay for each further partial.
        stiffness: partial k lies at k f0 sqrt(1 + stiffness k^2).
        attack_s: time to full loudness.
        ring_s: how long a note is heard at most.
    """

    level: float
    fall: float
    plucked_at: float = 0.0
    ratios: tuple[float, ...] = ()
    decay: float = 0.0
    damping: float = 0.0
    stiffness: float = 0.0
    attack_s: float = 0.002
    ring_s: float = 2.0


INSTRUMENTS = {
    "acoustic guitar": Instrument(0.028, 1.1, 0.18, decay=1.6, damping=0.35, stiffness=5e-5),
    "banjo": Instrument(0.026, 0.7, 0.11, decay=5.0, damping=0.5, stiffness=1e-4, ring_s=1.0),
    "harp": Instrument(0.028, 1.7, 0.4, decay=1.2, damping=0.5),
    "piano": Instrument(0.028, 1.3, 0.12, decay=1.0, damping=0.22, stiffness=3e-4, attack_s=0.004),
    "music box": Instrument(0.03, 1.2, ratios=(1.0, 3.0, 6.27), decay=2.6, damping=2.0),
    "strings": Instrument(0.018, 1.6, attack_s=0.08),
    "organ": Instrument(0.02, 1.0, ratios=(1.0, 2.0, 3.0, 4.0, 6.0, 8.0), attack_s=0.02),
    "accordion": Instrument(0.02, 1.2, 0.37, attack_s=0.03),
    "flute": Instrument(0.024, 2.2, attack_s=0.05),
    "bass": Instrument(0.045, 1.6, 0.3, decay=1.8, damping=0.8, attack_s=0.006),
}
DRUMS = {"kick": 0.09, "snare": 0.035, "hat": 0.008}


def sustains(name: str) -> bool:
    """Whether the instrument holds a note until it is let go."""
    return INSTRUMENTS[name].decay == 0


@lru_cache(maxsize=4096)
def note(name: str, pitch: int, frames: int) -> np.ndarray:
    """A note of an instrument held for ``frames`` of 20 ms: float32 samples, with its fade-out."""
    instrument = INSTRUMENTS[name]
    length_s = frames * 0.02
    if instrument.decay:
        length_s = min(length_s, instrument.ring_s)
    count = round((length_s + FADE_S) * SAMPLE_RATE)
    time_s = np.arange(count) / SAMPLE_RATE
    f0_hz = 440.0 * 2 ** ((pitch - 69) / 12)
    ratios = np.array(instrument.ratios) if instrument.ratios else np.arange(1, 41, dtype=float)
    orders = np.arange(1, len(ratios) + 1)
    frequencies_hz = f0_hz * ratios * np.sqrt(1 + instrument.stiffness * ratios**2)
    amplitudes = orders**-instrument.fall
    if instrument.plucked_at:
        amplitudes = amplitudes * np.abs(np.sin(np.pi * orders * instrument.plucked_at))
    samples = np.zeros(count)
    for order, frequency_hz, amplitude in zip(orders, frequencies_hz, amplitudes, strict=True):
        if frequency_hz < HIGHEST_HZ and amplitude > 1e-3:
            decay = instrument.decay + instrument.damping * (order - 1) if instrument.decay else 0.0
            samples += amplitude * np.exp(-decay * time_s) * np.sin(2 * np.pi * frequency_hz * time_s)
    samples *= np.minimum(1, time_s / instrument.attack_s)
    samples *= instrument.level / np.sqrt(np.mean(samples[: SAMPLE_RATE // 5] ** 2))
    return (samples * np.clip((count / SAMPLE_RATE - time_s) / FADE_S, 0, 1)).astype(np.float32)


@lru_cache(maxsize=8)
def stroke(name: str) -> np.ndarray:
    """A drum: a falling tone (kick), a tone with noise (snare) or high noise (hat), always the same samples."""
    time_s = np.arange(round(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.RandomState(11).standard_normal(len(time_s))
    bright = np.diff(noise, prepend=0.0)
    if name == "kick":
        wave = np.sin(2 * np.pi * (50 * time_s - 70 * 0.03 * np.exp(-time_s / 0.03))) * np.exp(-time_s / 0.07)
    elif name == "snare":
        wave = 0.6 * np.sin(2 * np.pi * 190 * time_s) * np.exp(-time_s / 0.04) + 0.5 * noise * np.exp(-time_s / 0.05)
    else:
        wave = np.diff(bright, prepend=0.0) * np.exp(-time_s / 0.02)
    wave *= DRUMS[name] / np.sqrt(np.mean(wave[: SAMPLE_RATE // 10] ** 2))
    return (wave * np.minimum(1, (time_s[-1] - time_s) / FADE_S)).astype(np.float32)
