"""A singing voice by source and filter: the melody's pitch, the words' vowels and consonants.

The source is a pulse train with all harmonics up to the Nyquist frequency in closed form (a band-limited impulse train,
Stilson and Smith 1996); the filter is a cascade of resonances at the formants with a pole and a zero for nasal sounds
(Klatt 1980), applied frame by frame in the spectrum. Friction, bursts and breath are stretches of one fixed noise, so
that a sound is the same wherever it is sung. Nothing is random: the same input gives the same samples.

Vowels begin on the beat; consonants take their time from the end of the note before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.fft import irfft, rfft

from megatron_music.songs.phones import FRAME_S, PHONES, Formants, Noise

SAMPLE_RATE = 16_000
HOP = 160  # samples between control points: two to a codec frame
HOPS_PER_FRAME = round(FRAME_S * SAMPLE_RATE) // HOP
WINDOW = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)  # copies one hop apart add up to one
FFT_SIZE = 1024
VOWEL_RMS = 0.1
FREQUENCIES_HZ = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)
DELAYS = np.exp(-2j * np.pi * FREQUENCIES_HZ / SAMPLE_RATE)  # z^-1 on the unit circle
BANDWIDTHS_HZ = (60.0, 100.0, 160.0)
WIDER_FIRST = 0.3  # of f0: high voices lose more energy in the open glottis, and no single harmonic sticks out
NASAL_POLE_HZ, NASAL_BANDWIDTH_HZ = 270.0, 100.0
HIGH_FORMANTS_HZ, HIGH_BANDWIDTH_HZ = (3500.0, 4500.0, 5500.0, 6500.0, 7500.0), 280.0
VIBRATO_HZ, VIBRATO_AFTER_S, VIBRATO_RISE_S = 5.0, 0.3, 0.2
ROOM_FOR_CONSONANTS = 0.5  # of the note before
GLIDE_FRAMES = 8


@dataclass(frozen=True)
class Voice:
    """A singer.

    Attributes:
        formant_scale: formants against an adult male's (a shorter vocal tract has higher ones).
        lowest, highest: MIDI numbers of the comfortable range.
        octave: semitones between the written note and the sung one.
        slope: fall of the source's spectrum, 1 for 6 dB an octave.
        vibrato_cents: depth on long notes.
    """

    formant_scale: float
    lowest: int
    highest: int
    octave: int
    slope: float = 1.0
    vibrato_cents: float = 16.0


VOICES = {
    "male": Voice(1.0, 42, 67, -12),
    "female": Voice(1.16, 54, 79, 0),
    "child": Voice(1.3, 55, 79, 0, vibrato_cents=8.0),
}
SLOPES = {"bright": 0.9, "full": 1.05, "warm": 1.3, "airy": 1.6}  # by the timbre that the tags name


@dataclass(frozen=True)
class SungNote:
    """Frames (of 20 ms) from ``start`` to ``end`` on one pitch, a MIDI number."""

    start: int
    end: int
    pitch: float


@dataclass(frozen=True)
class SungSyllable:
    """Sounds with one vowel, and the notes that the vowel is held on."""

    phones: tuple[str, ...]
    notes: tuple[SungNote, ...]


@dataclass(frozen=True)
class Sound:
    """A phone in time, in frames."""

    phone: str
    start: int
    end: int
    syllable: int


def lay_out(syllables: Sequence[SungSyllable]) -> list[Sound]:
    """Gives each phone its frames, in order.

    The vowel starts with the first note. Consonants before it, and those that end the syllable before, lie in front of
    it and take at most half of the note there; where that is too little they are shortened, and then left out.
    """
    sounds: list[Sound] = []
    ends = [syllable.notes[-1].end for syllable in syllables]
    for index, syllable in enumerate(syllables):
        vowel = _vowel_index(syllable.phones)
        start = syllable.notes[0].start
        before = max(0, start - (ends[index - 1] if index else 0))
        coda = syllables[index - 1].phones[_vowel_index(syllables[index - 1].phones) + 1 :] if index else ()
        if before == 0 and index:
            # The coda of the syllable before and this onset share the end of the note before.
            note = syllables[index - 1].notes[-1]
            lengths = _fit([*coda, *syllable.phones[:vowel]], int((note.end - note.start) * ROOM_FOR_CONSONANTS))
            sounds = _place(sounds, [*coda, *syllable.phones[:vowel]], lengths, start, index, len(coda))
        else:
            if index:
                note = syllables[index - 1].notes[-1]
                lengths = _fit(coda, int((note.end - note.start) * ROOM_FOR_CONSONANTS))
                sounds = _place(sounds, coda, lengths, note.end, index, len(coda))
            lengths = _fit(syllable.phones[:vowel], before)
            sounds = _place(sounds, syllable.phones[:vowel], lengths, start, index, 0)
        sounds.append(Sound(syllable.phones[vowel], start, syllable.notes[-1].end, index))
    if syllables:
        last = syllables[-1]
        coda = last.phones[_vowel_index(last.phones) + 1 :]
        note = last.notes[-1]
        lengths = _fit(coda, int((note.end - note.start) * ROOM_FOR_CONSONANTS))
        sounds = _place(sounds, coda, lengths, note.end, len(syllables), len(coda))
    return sounds


def _vowel_index(phones: Sequence[str]) -> int:
    return next(index for index, phone in enumerate(phones) if PHONES[phone].kind == "vowel")


def _fit(phones: Sequence[str], room: int) -> list[int]:
    """Frames for each consonant, in all at most ``room``; the longest give way first, the last are left out."""
    lengths = [PHONES[phone].frames for phone in phones]
    while sum(lengths) > room:
        longest = max(range(len(lengths)), key=lambda index: (lengths[index], index))
        lengths[longest] -= 1
    return lengths


def _place(
    sounds: list[Sound], phones: Sequence[str], lengths: Sequence[int], end: int, syllable: int, of_previous: int
) -> list[Sound]:
    """Adds consonants that stop at frame ``end``; the vowel before them is cut to make room."""
    start = end - sum(lengths)
    if sounds and sounds[-1].end > start:
        last = sounds[-1]
        sounds = [*sounds[:-1], Sound(last.phone, last.start, start, last.syllable)]
    for index, (phone, length) in enumerate(zip(phones, lengths, strict=True)):
        if length:
            sounds.append(Sound(phone, start, start + length, syllable - 1 if index < of_previous else syllable))
        start += length
    return sounds


def sing(syllables: Sequence[SungSyllable], voice: Voice, frames: int) -> np.ndarray:
    """Sings syllables: float32 samples at 16 kHz, ``frames * 320`` of them; digital silence where nothing is sung."""
    hops = frames * HOPS_PER_FRAME
    sounds = lay_out(syllables)
    level, formants, zeros_hz = _targets(sounds, hops)
    f0_hz = _pitch_track(syllables, voice, hops)
    voiced = _voice(level, formants * voice.formant_scale, zeros_hz, f0_hz, voice)
    return voiced + _noises(sounds, frames)


def _targets(sounds: Sequence[Sound], hops: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loudness (hops,), formants (hops, 3) and nasal zero (hops,) at each control point, with smooth transitions."""
    level = np.zeros(hops)
    formants = np.zeros((hops, 3))
    zeros_hz = np.full(hops, NASAL_POLE_HZ)
    shapes = _shapes(sounds)
    for index, (sound, (first, last)) in enumerate(zip(sounds, shapes, strict=True)):
        phone = PHONES[sound.phone]
        # Up to the next sound (and from the first one's past) the mouth keeps its shape, so that silence has no jumps.
        start = sound.start * HOPS_PER_FRAME if index else 0
        stop = hops if index + 1 == len(sounds) else sounds[index + 1].start * HOPS_PER_FRAME
        here = slice(sound.start * HOPS_PER_FRAME, sound.end * HOPS_PER_FRAME)
        formants[start:stop] = first
        length = here.stop - here.start
        if last != first:
            glide = min(GLIDE_FRAMES * HOPS_PER_FRAME, length * 2 // 3)
            course = np.linspace(0, 1, glide)[:, None]
            formants[here.stop - glide : here.stop] = (1 - course) * np.array(first) + course * np.array(last)
            formants[here.stop : stop] = last
        if phone.level_db is not None:
            level[here] = VOWEL_RMS * 10 ** (phone.level_db / 20)
        if phone.nasal_zero_hz:
            zeros_hz[start:stop] = phone.nasal_zero_hz
    level = _smooth(level, 3)
    return level, _smooth(formants, 5), _smooth(zeros_hz, 5)


def _shapes(sounds: Sequence[Sound]) -> list[tuple[Formants, Formants]]:
    """Formants at the beginning and the end of each sound; sounds without their own take the nearest later vowel's."""
    shapes: list[tuple[Formants, Formants]] = []
    following: Formants | None = None
    for sound in reversed(sounds):
        phone = PHONES[sound.phone]
        if phone.formants:
            following = phone.formants
            shapes.append((phone.formants, phone.glide or phone.formants))
        else:
            neutral = following or PHONES["ax"].formants
            shapes.append((neutral, neutral))
    return shapes[::-1]


def _smooth(track: np.ndarray, taps: int) -> np.ndarray:
    """Weighted mean over ``taps`` control points (a Hann window); the ends are held."""
    kernel = np.hanning(taps + 2)[1:-1]
    kernel /= kernel.sum()
    half = taps // 2
    padded = np.concatenate([np.repeat(track[:1], half, axis=0), track, np.repeat(track[-1:], half, axis=0)])
    return sum(weight * padded[index : index + len(track)] for index, weight in enumerate(kernel))


def _pitch_track(syllables: Sequence[SungSyllable], voice: Voice, hops: int) -> np.ndarray:
    """Fundamental in Hz at each control point: steps between notes rounded to glides, vibrato on long ones."""
    pitch = np.zeros(hops)
    vibrato = np.zeros(hops)
    notes = [note for syllable in syllables for note in syllable.notes]
    for index, note in enumerate(notes):
        start = note.start * HOPS_PER_FRAME
        # The pitch of a note also serves the rest and the consonants before it.
        pitch[(notes[index - 1].end * HOPS_PER_FRAME if index else 0) :] = note.pitch
        time_s = np.arange((note.end - note.start) * HOPS_PER_FRAME) * HOP / SAMPLE_RATE
        depth = np.clip((time_s - VIBRATO_AFTER_S) / VIBRATO_RISE_S, 0, 1) * voice.vibrato_cents / 100
        wave = depth * np.sin(2 * np.pi * VIBRATO_HZ * (time_s - VIBRATO_AFTER_S))
        vibrato[start : start + len(wave)] = wave[: hops - start]
    return 440.0 * 2 ** ((_smooth(pitch, 7) + vibrato - 69) / 12)


def _voice(
    level: np.ndarray, formants: np.ndarray, zeros_hz: np.ndarray, f0_hz: np.ndarray, voice: Voice
) -> np.ndarray:
    """Pulses through the vocal tract; each control point comes out at its level whatever its vowel and pitch."""
    hops = len(level)
    samples = np.zeros((hops + FFT_SIZE // HOP + 2) * HOP, dtype=np.float32)
    sung = np.flatnonzero(level > 1e-5)
    if not len(sung):
        return samples[: hops * HOP]
    formants = np.column_stack([np.maximum(formants[:, 0], f0_hz), formants[:, 1:]])[sung]
    bandwidths_hz = np.array(BANDWIDTHS_HZ) * voice.formant_scale + np.outer(f0_hz[sung], (WIDER_FIRST, 0, 0))
    spectrum = _tract(formants, bandwidths_hz, zeros_hz[sung]) * _fixed_spectrum(voice)
    spectrum *= (level[sung] / _output_rms(np.abs(spectrum), f0_hz[sung]))[:, None].astype(np.float32)
    pulses = np.pad(_pulses(f0_hz), (HOP, HOP))
    windows = np.lib.stride_tricks.sliding_window_view(pulses, 2 * HOP)[::HOP][sung] * WINDOW
    filtered = irfft(rfft(windows, FFT_SIZE, axis=1) * spectrum, FFT_SIZE, axis=1)
    blocks = -(-FFT_SIZE // HOP)
    filtered = np.pad(filtered, ((0, 0), (0, blocks * HOP - FFT_SIZE))).reshape(len(sung), blocks, HOP)
    output = samples.reshape(-1, HOP)
    for block in range(blocks):
        output[sung + block] += filtered[:, block]
    return samples[HOP : (hops + 1) * HOP]


def _pulses(f0_hz: np.ndarray) -> np.ndarray:
    """2 x the sum of cos(k x phase) over all harmonics k below the Nyquist frequency, in closed form."""
    count = len(f0_hz) * HOP
    f0 = np.interp(np.arange(count), np.arange(len(f0_hz)) * HOP, f0_hz)
    half_phase = np.pi * (np.cumsum(f0) / SAMPLE_RATE % 1.0)
    # One number of harmonics a control point: a change in the middle of a period would be heard as a click.
    harmonics = np.repeat(np.floor(0.98 * SAMPLE_RATE / 2 / f0_hz), HOP)
    sine = np.sin(half_phase)
    flat = np.abs(sine) < 1e-6
    ratio = np.sin((2 * harmonics + 1) * half_phase) / np.where(flat, 1.0, sine)
    return (np.where(flat, 2 * harmonics + 1, ratio) - 1).astype(np.float32)


def _tract(formants: np.ndarray, bandwidths_hz: np.ndarray, zeros_hz: np.ndarray) -> np.ndarray:
    """Response (points, bins) of the moving resonances and the nasal pair; every resonance passes 0 Hz unchanged."""
    nasal_hz = np.full(len(formants), NASAL_BANDWIDTH_HZ)
    denominator = _resonance(np.full(len(formants), NASAL_POLE_HZ), nasal_hz)
    for frequency_hz, bandwidth_hz in zip(formants.T, bandwidths_hz.T, strict=True):
        denominator = _product(denominator, _resonance(frequency_hz, bandwidth_hz))
    numerator = _resonance(zeros_hz, nasal_hz)
    return _on_circle(numerator) / _on_circle(denominator)


def _resonance(frequency_hz: np.ndarray, bandwidth_hz: np.ndarray) -> np.ndarray:
    """Coefficients (points, 3) of 1 - 2 r cos(w) z^-1 + r^2 z^-2, scaled to 1 at 0 Hz."""
    radius = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE)
    middle = -2 * radius * np.cos(2 * np.pi * frequency_hz / SAMPLE_RATE)
    coefficients = np.column_stack([np.ones_like(middle), middle, radius**2])
    return coefficients / coefficients.sum(axis=1, keepdims=True)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of polynomials, row by row."""
    result = np.zeros((len(left), left.shape[1] + right.shape[1] - 1))
    for power in range(right.shape[1]):
        result[:, power : power + left.shape[1]] += left * right[:, power : power + 1]
    return result


def _on_circle(coefficients: np.ndarray) -> np.ndarray:
    """Values (points, bins) of polynomials in z^-1; by Horner, as the order of additions must not depend on a BLAS."""
    delays = DELAYS.astype(np.complex64)
    value = np.repeat(coefficients[:, -1:].astype(np.complex64), len(delays), axis=1)
    for power in range(coefficients.shape[1] - 2, -1, -1):
        value *= delays
        value += coefficients[:, power : power + 1].astype(np.float32)
    return value


@cache
def _fixed_spectrum(voice: Voice) -> np.ndarray:
    """Source slope, radiation's lack of bass and the formants above the third, for all control points."""
    high = np.ones(len(FREQUENCIES_HZ), dtype=np.complex64)
    for frequency_hz in HIGH_FORMANTS_HZ:
        if frequency_hz * voice.formant_scale < 0.97 * SAMPLE_RATE / 2:
            high /= _on_circle(
                _resonance(np.array([frequency_hz * voice.formant_scale]), np.array([HIGH_BANDWIDTH_HZ]))
            )[0]
    slope = (1 + (FREQUENCIES_HZ / 200) ** 2) ** (-voice.slope / 2) / np.sqrt(1 + (FREQUENCIES_HZ / 4500) ** 4)
    bass = FREQUENCIES_HZ**2 / (FREQUENCIES_HZ**2 + 60.0**2)
    return (high * slope * bass).astype(np.complex64)


def _output_rms(magnitude: np.ndarray, f0_hz: np.ndarray) -> np.ndarray:
    """Root mean square of the pulses behind a filter of this magnitude (points, bins): harmonics of amplitude 2 |H|."""
    step_hz = SAMPLE_RATE / FFT_SIZE
    orders = np.arange(1, int(SAMPLE_RATE / 2 / f0_hz.min()) + 1)
    frequency_hz = f0_hz[:, None] * orders
    place = np.minimum(frequency_hz / step_hz, magnitude.shape[1] - 2)
    bins = place.astype(int)
    # Between two bins, as a narrow first formant can lie there.
    lower, upper = (np.take_along_axis(magnitude, bins + step, axis=1) ** 2 for step in (0, 1))
    power = (lower + (place - bins) * (upper - lower)) * (frequency_hz < 0.98 * SAMPLE_RATE / 2)
    return np.sqrt(2 * power.sum(axis=1))


def _noises(sounds: Sequence[Sound], frames: int) -> np.ndarray:
    """All friction, bursts and breath."""
    samples = np.zeros(frames * HOPS_PER_FRAME * HOP, dtype=np.float32)
    for sound in sounds:
        phone = PHONES[sound.phone]
        if phone.noise is None:
            continue
        length = sound.end - sound.start
        if phone.kind == "stop":
            # Silence first; the burst needs one frame, what follows is friction (ch, ts) or breath (p, t, k).
            silent = min(1, length - 1)
            wave = _noise(phone.noise, length - silent, True)
        else:
            silent, wave = 0, _noise(phone.noise, length, False)
        first = (sound.start + silent) * HOPS_PER_FRAME * HOP
        samples[first : first + len(wave)] += wave[: len(samples) - first]
    return samples


@cache
def _noise(noise: Noise, frames: int, burst: bool) -> np.ndarray:
    """A stretch of the fixed noise in one band: a soft-edged friction, or a burst that dies away."""
    count = frames * HOPS_PER_FRAME * HOP
    spectrum = np.fft.rfft(np.random.RandomState(7).standard_normal(count))
    frequency_hz = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    wave = np.fft.irfft(spectrum * np.exp(-0.5 * ((frequency_hz - noise.centre_hz) / (noise.width_hz / 2)) ** 2), count)
    wave *= VOWEL_RMS * 10 ** (noise.level_db / 20) / np.sqrt(np.mean(wave**2))
    time_s = np.arange(count) / SAMPLE_RATE
    if burst:
        envelope = np.minimum(1, time_s / 0.001) * (0.35 + 1.4 * np.exp(-time_s / 0.012))
    else:
        envelope = np.minimum(1, time_s / 0.015)
    remaining_s = (count - np.arange(count)) / SAMPLE_RATE
    return (wave * envelope * np.minimum(1, remaining_s / 0.012)).astype(np.float32)
