"""The tracks that a document is made of: codes of a mix or of a pair, checked against the song's length."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from megatron_music.documents.document import DocumentContext, dual_track, single_track
from megatron_music.recipe.fields import Strict
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.kinds import Kind

Track = Literal["mix", "vocals", "accompaniment"]


class TrackOptions(Strict):
    """Options that every task on songs has.

    Attributes:
        frames_per_second: the codec's frame rate, used where the song's length is unknown.
        code_rate_tolerance: a song is rejected whose codes a second differ from ``frames_per_second`` by more; null
            checks nothing.
        max_length_difference_frames: tracks of one song that differ by at most this are trimmed to the shorter one;
            a song whose tracks differ by more is rejected.
    """

    frames_per_second: float = Field(50.0, gt=0)
    code_rate_tolerance: float | None = Field(1.0, ge=0)
    max_length_difference_frames: int = Field(10, ge=0)


@dataclass(frozen=True)
class Pair:
    """Codebook-0 codes of vocals and accompaniment, both int16 (T,).

    Attributes:
        frames_per_second: the song's own rate, T over its length.
        longest_frames: length of the longer track before trimming.
    """

    vocals_T: np.ndarray
    accompaniment_T: np.ndarray
    frames_per_second: float
    longest_frames: int

    @property
    def frames(self) -> int:
        """T."""
        return len(self.vocals_T)


@dataclass(frozen=True)
class SongAudio:
    """A song's audio as a document holds it: codebook-0 ids, int32 (ids_per_frame * frames,), and their kinds, uint8.

    Attributes:
        ids_per_frame: 2 of vocals and accompaniment interleaved, 1 of the mix.
        frames_per_second, longest_frames: see ``Pair``.
    """

    ids: np.ndarray
    kinds: np.ndarray
    ids_per_frame: int
    frames_per_second: float
    longest_frames: int

    @property
    def frames(self) -> int:
        """Frames of the song."""
        return len(self.ids) // self.ids_per_frame


def load_audio(
    song: Song, context: DocumentContext, options: TrackOptions, tracks: Literal["dual", "mix"]
) -> SongAudio:
    """Vocals and accompaniment interleaved, or the mix; raises Rejected."""
    if tracks == "dual":
        return pair_audio(load_pair(song, context, options), context)
    codes_T = context.codes(song, "mix")[0]
    rate = checked_rate(song, len(codes_T), options)
    return SongAudio(*single_track(codes_T, Kind.MIX, context.codec), 1, rate, len(codes_T))


def pair_audio(pair: Pair, context: DocumentContext) -> SongAudio:
    """A pair interleaved."""
    ids, kinds = dual_track(pair.vocals_T, pair.accompaniment_T, context.codec)
    return SongAudio(ids, kinds, 2, pair.frames_per_second, pair.longest_frames)


def load_pair(song: Song, context: DocumentContext, options: TrackOptions) -> Pair:
    """Vocals and accompaniment, trimmed to one length; raises Rejected."""
    vocals_T = context.codes(song, "vocals")[0]
    accompaniment_T = context.codes(song, "accompaniment")[0]
    longest = max(len(vocals_T), len(accompaniment_T))
    frames = common_length(len(vocals_T), len(accompaniment_T), "vocals and accompaniment", options)
    rate = checked_rate(song, frames, options)
    return Pair(vocals_T[:frames], accompaniment_T[:frames], rate, longest)


def common_length(first: int, second: int, names: str, options: TrackOptions) -> int:
    """The shorter of two lengths in frames; raises Rejected where they differ by too much."""
    if abs(first - second) > options.max_length_difference_frames:
        raise Rejected(
            "length_difference",
            f"{names} have {first} and {second} frames, more than {options.max_length_difference_frames} apart",
            abs(first - second),
        )
    return min(first, second)


def checked_rate(song: Song, frames: int, options: TrackOptions) -> float:
    """Frames a second of the song; raises Rejected where the codes do not fit the song's length."""
    if song.duration_s is None:
        if options.code_rate_tolerance is not None:
            raise Rejected("code_rate", "the song has no audio_length_in_sec to check its codes against")
        return options.frames_per_second
    rate = frames / song.duration_s
    tolerance = options.code_rate_tolerance
    if tolerance is None:
        return rate
    lowest, highest = options.frames_per_second - tolerance, options.frames_per_second + tolerance
    if not lowest <= rate <= highest:
        raise Rejected(
            "code_rate",
            f"{frames} frames in {song.duration_s:g} s are {rate:.2f} a second, not {lowest:g} to {highest:g}",
            f"{rate:.2f}",
        )
    return rate
