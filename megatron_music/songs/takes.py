"""Takes of a song: in which key and tempo, by which singer and with which instruments it is recorded."""

import math
import random
from dataclasses import dataclass
from fractions import Fraction

from megatron_music.songs.abc import AbcSong
from megatron_music.songs.accompaniment import PATTERN_OF_INSTRUMENT, Timeline
from megatron_music.songs.phones import FRAME_S
from megatron_music.songs.singing import SLOPES, VOICES

TEMPO_FACTORS = (0.9, 0.95, 1.05, 1.1)
ENSEMBLES = (
    {"acoustic guitar": "arpeggio", "bass": "bass"},
    {"piano": "oompah", "bass": "bass"},
    {"acoustic guitar": "strum", "bass": "bass", "drums": "drums"},
    {"piano": "arpeggio", "strings": "block"},
    {"accordion": "oompah", "bass": "bass"},
    {"harp": "arpeggio", "strings": "block"},
    {"banjo": "oompah", "bass": "bass", "drums": "drums"},
    {"organ": "block", "bass": "bass"},
)


@dataclass(frozen=True)
class Take:
    """One recording of a song.

    Attributes:
        singer, timbre: names in ``singing.VOICES`` and ``singing.SLOPES``.
        transposition: semitones between the written and this key.
        quarters_per_minute: tempo.
        instruments: name of each instrument to its pattern.
        intro: whether the written introduction is played.
    """

    number: int
    singer: str
    timbre: str
    transposition: int
    quarters_per_minute: float
    instruments: dict[str, str]
    intro: bool


def written_instruments(song: AbcSong) -> list[str]:
    return [name.strip() for name in song.fields["instruments"].split(",")]


def take_plans(song: AbcSong, takes: int, seed: int) -> list[Take]:
    """Take 0 as written, and the others in a seeded order: singers in turn, keys that suit them, other ensembles."""
    singer, _, timbre = song.fields["voice"].partition(" ")
    written = {name: PATTERN_OF_INSTRUMENT[name] for name in written_instruments(song)}
    plans = [Take(0, singer, timbre, 0, song.tempo, written, True)]
    # A string seed: the same in every Python process, and another one for every song.
    chance = random.Random(f"{seed} {song.path.stem}")
    singers = [name for name in VOICES if name != singer] + [singer]
    ensembles = [ensemble for ensemble in ENSEMBLES if set(ensemble) != set(written)]
    chance.shuffle(singers)
    chance.shuffle(ensembles)
    for number in range(1, takes):
        name = singers[(number - 1) % len(singers)]
        plans.append(
            Take(
                number=number,
                singer=name,
                timbre=chance.choice(sorted(SLOPES)),
                transposition=chance.choice(_transpositions(song, name)),
                quarters_per_minute=song.tempo * chance.choice(TEMPO_FACTORS),
                instruments=ensembles[(number - 1) % len(ensembles)],
                intro=number % 2 == 0,
            )
        )
    return plans


def _transpositions(song: AbcSong, singer: str) -> list[int]:
    """Shifts of at most a fourth that keep the melody in the singer's range; the least bad one where none does."""
    voice = VOICES[singer]
    lowest, highest = (edge(note.pitch for note in song.notes) + voice.octave for edge in (min, max))
    shifts = sorted(range(-5, 6), key=abs)
    fitting = [shift for shift in shifts if voice.lowest <= lowest + shift and highest + shift <= voice.highest]
    excess = {shift: max(voice.lowest - lowest - shift, highest + shift - voice.highest) for shift in shifts}
    return fitting or [min(shifts, key=lambda shift: excess[shift])]


def tags(song: AbcSong, take: Take) -> str:
    """What a listener would say of this take: mood, voice, genre, timbre, instruments; separated by spaces."""
    fields = song.fields
    words = [fields.get("mood", ""), take.singer, fields["genre"], f"{take.timbre} vocal", *take.instruments]
    return " ".join(word for word in words if word)


def timeline_of(song: AbcSong, take: Take) -> Timeline:
    """Bar lines of a take: the introduction (its last bar shared with the upbeat), the song, one quarter to ring."""
    bars_before = len(song.intro) if take.intro else 0
    # Without an introduction half a quarter note goes before, for the first consonants.
    start = -bars_before * song.bar if bars_before else -song.pickup - Fraction(1, 2)
    end = -(-(song.length - song.pickup) // song.bar) * song.bar
    return Timeline(
        quarters_per_minute=take.quarters_per_minute,
        bar=song.bar,
        compound=song.meter[1] == 8 and song.meter[0] % 3 == 0,
        start=start,
        last_bar=end - song.bar,
        end=end + 1,
    )


def frame_count(timeline: Timeline) -> int:
    """Length of a take in frames."""
    return timeline.frame(timeline.end) + math.ceil(0.1 / FRAME_S)
