"""What is asked for: the prompt of one song, and how those who asked follow the work and end it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from megatron_music.errors import InputError


@dataclass(frozen=True)
class Reference:
    """Music that the song shall resemble: codebook-0 codes, int16 (frames,), of one track, or of vocals and
    accompaniment; and where they came from, in words."""

    tracks: tuple[np.ndarray, ...]
    source: str = ""


@dataclass(frozen=True)
class SungSegment:
    """A section that has been sung already: its text as in the lyrics, and codebook-0 codes, int16 (2, frames), of
    vocals and accompaniment."""

    text: str
    codes_2T: np.ndarray


@dataclass(frozen=True)
class SongRequest:
    """One song to be sung.

    Attributes:
        tags: one line, as the training songs have them.
        lyrics: texts of all sections, those of ``Lyrics``. Without any, the song is one span of at most
            ``max_new_tokens`` under its tags alone.
        seed: the same seed, prompt, model and settings give the same song.
        reference: music to resemble; only with lyrics.
        past: the first sections as they have been sung; the song goes on with the next one.
        segments: sing so many sections, after those of ``past``; None sings all.
        tracks: of a song without lyrics: vocals and accompaniment, or their mix as a single track.
        instrumental: the vocals stay silent.
    """

    tags: str
    lyrics: tuple[str, ...] = ()
    seed: int = 42
    reference: Reference | None = None
    past: tuple[SungSegment, ...] = ()
    segments: int | None = None
    tracks: Literal["dual", "mix"] = "dual"
    instrumental: bool = False

    def __post_init__(self):
        if not self.tags.strip():
            raise InputError("--tags", "there are none", "name genre, instruments, mood, vocal gender and timbre")
        if self.tracks not in ("dual", "mix"):
            raise InputError("--tracks", f"{self.tracks!r} is not known", "choose dual or mix")
        if self.segments is not None and self.segments < 1:
            raise InputError("--segments", f"{self.segments} segments make no song", "ask for at least 1")
        if self.lyrics and self.tracks == "mix":
            raise InputError("--tracks", "a song with lyrics has two", "leave out the lyrics for a single track")
        if self.instrumental and self.tracks == "mix":
            raise InputError("--instrumental", "a mix has no vocals of its own", "choose --tracks dual")
        for what, given in (("--reference", self.reference), ("--continue", self.past)):
            if given and not self.lyrics:
                raise InputError(what, "a song without lyrics takes none", "give it --lyrics")
        if self.past and len(self.past) >= len(self.lyrics):
            raise InputError(
                "--continue",
                f"{len(self.past)} of {len(self.lyrics)} sections have been sung already",
                "add sections to the lyrics, or go on --after an earlier one",
            )

    @property
    def sections(self) -> range:
        """Numbers of the sections that are to be sung, in the lyrics; one where there are no lyrics."""
        first, count = len(self.past), max(1, len(self.lyrics))
        return range(first, count if self.segments is None else min(count, first + self.segments))

    def record(self) -> dict[str, Any]:
        """All of it as JSON can hold it; ``from_record`` reads it back equal."""
        reference = self.reference and {
            "source": self.reference.source,
            "tracks": [codes_T.tolist() for codes_T in self.reference.tracks],
        }
        past = [{"text": segment.text, "codes": segment.codes_2T.tolist()} for segment in self.past]
        return {
            "tags": self.tags,
            "lyrics": list(self.lyrics),
            "seed": self.seed,
            "reference": reference,
            "past": past,
            "segments": self.segments,
            "tracks": self.tracks,
            "instrumental": self.instrumental,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "SongRequest":
        """What ``record`` gave; raises KeyError, TypeError or ValueError for anything else."""
        types = {"tags": str, "seed": int, "segments": int | None, "tracks": str, "instrumental": bool}
        types |= {"lyrics": list, "past": list, "reference": dict | None}
        if not all(isinstance(record[name], types[name]) for name in types):
            raise TypeError("a field of another type")
        reference = record["reference"] and Reference(
            tuple(np.array(codes_T, dtype=np.int16) for codes_T in record["reference"]["tracks"]),
            record["reference"]["source"],
        )
        past = tuple(
            SungSegment(segment["text"], np.array(segment["codes"], dtype=np.int16).reshape(2, -1))
            for segment in record["past"]
        )
        if not all(isinstance(text, str) for text in [*record["lyrics"], *(segment.text for segment in past)]):
            raise TypeError("lyrics that are no text")
        changed = {"lyrics": tuple(record["lyrics"]), "reference": reference, "past": past}
        return cls(**{name: changed.get(name, record[name]) for name in cls.__dataclass_fields__})


class Stopped(Exception):
    """Raised while songs are made, where ``Watch.stop`` was set."""


def _nothing(*_: Any) -> None:
    pass


@dataclass
class Watch:
    """How a caller follows the work, and ends it from another thread.

    Attributes:
        on_token: called with (song, section, tokens): ``tokens`` ids of this section of this song are sung.
        on_segment: called with (song, section, of): this section is sung, it was the last of ``of``.
        on_frame: called with (frame, of) while stage 2 adds codebooks, once for each frame of each batch.
        stop: where it is set, the work ends with ``Stopped`` at the next token.
    """

    on_token: Callable[[int, int, int], None] = _nothing
    on_segment: Callable[[int, int, int], None] = _nothing
    on_frame: Callable[[int, int], None] = _nothing
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises Stopped where ``stop`` was set."""
        if self.stop.is_set():
            raise Stopped
