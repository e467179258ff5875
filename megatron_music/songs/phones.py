"""The sounds of singing: formants of vowels, colour and loudness of consonants.

Formant frequencies in Hz of an adult male: English vowels after Peterson and Barney (1952) and, for reduced vowels and
diphthongs, Klatt (1980), "Software for a cascade/parallel formant synthesizer"; the others from textbook values.
Singers with shorter vocal tracts scale them (``singing.VOICES``). All lengths are whole 20 ms frames, the step of the
codecs, so that a sound always falls on the same codes.
"""

from dataclasses import dataclass
from typing import Literal

FRAME_S = 0.02  # frames a second of X-Codec and of the embedded codec: 50
Formants = tuple[float, float, float]


@dataclass(frozen=True)
class Noise:
    """A band of noise: centre and width in Hz, level in dB against a full vowel."""

    centre_hz: float
    width_hz: float
    level_db: float


@dataclass(frozen=True)
class Phone:
    """One sound.

    Attributes:
        kind: vowels can be held; stops are a silence and a burst; ``continuant`` is every other consonant.
        formants: F1 to F3, or None where the neighbours' formants go on.
        glide: the formants that a diphthong moves to.
        level_db: loudness of the voiced part against a full vowel; None without voice.
        nasal_zero_hz: frequency of the spectral zero of nasal sounds.
        noise: what is heard besides the voice: friction, a burst, breath.
        frames: length of a consonant in 20 ms frames.
    """

    kind: Literal["vowel", "continuant", "stop"]
    formants: Formants | None = None
    glide: Formants | None = None
    level_db: float | None = None
    nasal_zero_hz: float | None = None
    noise: Noise | None = None
    frames: int = 3


def _vowel(f1: float, f2: float, f3: float, glide: Formants | None = None, zero: float | None = None) -> Phone:
    return Phone("vowel", (f1, f2, f3), glide, 0.0, zero)


def _voiced(f1: float, f2: float, f3: float, level_db: float, zero: float | None = None, frames: int = 3) -> Phone:
    return Phone("continuant", (f1, f2, f3), None, level_db, zero, None, frames)


def _friction(noise: tuple[float, float, float], level_db: float | None = None, frames: int = 4) -> Phone:
    return Phone("continuant", None, None, level_db, None, Noise(*noise), frames)


def _stop(noise: tuple[float, float, float], level_db: float | None = None, frames: int = 3) -> Phone:
    return Phone("stop", None, None, level_db, None, Noise(*noise), frames)


PHONES: dict[str, Phone] = {
    "iy": _vowel(280, 2250, 2950),
    "ih": _vowel(400, 1950, 2550),
    "ey": _vowel(450, 2000, 2600, (310, 2250, 2850)),
    "eh": _vowel(550, 1800, 2500),
    "ae": _vowel(690, 1680, 2430),
    "aa": _vowel(740, 1100, 2450),
    "ah": _vowel(630, 1220, 2500),
    "ao": _vowel(570, 840, 2420),
    "ow": _vowel(490, 880, 2350, (360, 780, 2300)),
    "uh": _vowel(440, 1020, 2250),
    "uw": _vowel(310, 830, 2250),
    "er": _vowel(490, 1330, 1680),
    "ax": _vowel(500, 1450, 2480),
    "ay": _vowel(720, 1200, 2450, (360, 2050, 2600)),
    "aw": _vowel(720, 1250, 2450, (400, 860, 2350)),
    "oy": _vowel(540, 820, 2400, (360, 2000, 2550)),
    "a": _vowel(700, 1350, 2500),
    "e": _vowel(380, 2150, 2700),
    "o": _vowel(390, 780, 2350),
    "ue": _vowel(280, 1850, 2250),
    "oe": _vowel(390, 1480, 2250),
    "ahn": _vowel(620, 960, 2450, None, 520),
    "ohn": _vowel(430, 780, 2400, None, 480),
    "ehn": _vowel(600, 1550, 2450, None, 520),
    "ir": _vowel(390, 1400, 1900),
    "ex": _vowel(470, 1180, 2450),
    "au": _vowel(720, 1250, 2450, (430, 850, 2350)),
    "ei": _vowel(450, 2000, 2600, (320, 2200, 2750)),
    "m": _voiced(260, 1050, 2250, -8, 1000),
    "n": _voiced(260, 1500, 2450, -8, 1450),
    "ng": _voiced(260, 1900, 2300, -8, 2000),
    "l": _voiced(350, 1080, 2750, -5),
    "r": _voiced(370, 1180, 1600, -5),
    "R": _voiced(470, 1150, 2300, -9, None, 2),
    "w": _voiced(310, 660, 2250, -4, None, 2),
    "y": _voiced(280, 2200, 2950, -4, None, 2),
    "wy": _voiced(280, 1800, 2200, -4, None, 2),
    "f": _friction((6000, 5000, -24)),
    "v": _friction((5500, 5000, -30), -10, 3),
    "th": _friction((6300, 3500, -25)),
    "dh": _friction((6000, 4000, -33), -9, 2),
    "s": _friction((6400, 2600, -13)),
    "z": _friction((6400, 2600, -20), -12, 3),
    "sh": _friction((3300, 2200, -12)),
    "zh": _friction((3300, 2200, -19), -12, 3),
    "cx": _friction((4100, 2200, -15)),
    "x": _friction((1600, 1400, -18)),
    "h": _friction((1500, 2600, -21), None, 3),
    "p": _stop((1000, 1800, -16)),
    "t": _stop((5200, 4200, -12)),
    "k": _stop((2200, 1600, -12)),
    "b": _stop((800, 1400, -19), -18, 2),
    "d": _stop((4600, 4000, -18), -18, 2),
    "g": _stop((2000, 1500, -17), -18, 2),
    "ch": _stop((3500, 2200, -11), None, 4),
    "jh": _stop((3500, 2200, -15), -18, 3),
    "ts": _stop((6400, 2600, -12), None, 4),
}


def is_vowel(phone: str) -> bool:
    """Whether a note can be held on this sound."""
    return PHONES[phone].kind == "vowel"
