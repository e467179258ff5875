"""In-context-learning documents: lyrics-to-song with a stretch of the same song as a reference behind the header.

``[start_of_reference]<SOA><codec>`` reference ``<EOA>[end_of_reference]`` stands between the header and the segments.
Lengths and starts are distributed as in YuE's released preprocessor, but a dual-track reference always starts with a
vocal code and holds whole frames; the released one counts tokens, and half of the time starts with an accompaniment
code. Which segments are long enough is told by their frames, as in lyrics-to-song; here the released one goes by the
manifest's ``duration``.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from megatron_music.documents.document import Document, DocumentBuilder, DocumentContext, dual_track, single_track
from megatron_music.documents.lyrics_to_song import (
    LyricsOptions,
    append_segments,
    header_text,
    segments_seconds,
    usable_lyrics,
    usable_segments,
)
from megatron_music.documents.tracks import Pair, common_length, load_pair, pair_audio
from megatron_music.songs.labels import plain_label
from megatron_music.songs.song import Rejected, Segment, Song
from megatron_music.vocabulary.kinds import TRACK_KINDS

GRID_POINTS = 100


class ReferenceOptions(LyricsOptions):
    """Options of in-context-learning documents.

    Attributes:
        mode: what the reference is; ``random`` draws one of the four for each song.
        order: the reference behind the header, as the released models have it, or before it, as the slides have it.
        mean_s, variance_s2, shortest_s, longest_s: the truncated normal distribution of the reference's length.
        min_distinct: a reference with a smaller share of distinct ids is drawn again, up to ``redraws`` times.
    """

    header: Literal[True] = True
    tracks: Literal["dual"] = "dual"
    lyrics: Literal["by_segment"] = "by_segment"
    mode: Literal["dual", "vocals", "accompaniment", "mix", "random"] = "dual"
    order: Literal["header_first", "reference_first"] = "header_first"
    mean_s: float = Field(30.0, gt=0)
    variance_s2: float = Field(3.0, gt=0)
    shortest_s: float = Field(20.0, gt=0)
    longest_s: float = Field(40.0, gt=0)
    min_distinct: float = Field(0.1, ge=0, le=1)
    redraws: int = Field(5, ge=0)


def documents(
    song: Song, context: DocumentContext, rng: np.random.Generator, options: ReferenceOptions
) -> list[Document]:
    """The one document of a song; raises Rejected where it has none."""
    lyrics = usable_lyrics(song, options)
    pair = load_pair(song, context, options)
    audio = pair_audio(pair, context)
    segments, left_out = usable_segments(lyrics, audio, options)
    ids, kinds, frames = _reference(song, lyrics, pair, context, rng, options)
    header = header_text(song, lyrics, rng, options)
    builder = DocumentBuilder(context)
    if options.order == "header_first":
        builder.text(header)
    builder.mark("[start_of_reference]")
    builder.audio(ids, kinds)
    builder.mark("[end_of_reference]")
    if options.order == "reference_first":
        builder.text(header)
    append_segments(builder, segments, audio)
    return [builder.build(song.id, segments_seconds(segments, audio) + frames / pair.frames_per_second, left_out)]


def _reference(
    song: Song,
    lyrics: list[Segment],
    pair: Pair,
    context: DocumentContext,
    rng: np.random.Generator,
    options: ReferenceOptions,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids, kinds and frames of a reference drawn from the range that the lyrics cover."""
    ids, kinds, step = _reference_track(song, pair, context, rng, options)
    first = lyrics[0].start_frame
    frames = min(lyrics[-1].end_frame, len(ids) // step) - first
    if frames < 2:
        raise Rejected("reference_range", f"the lyrics cover frames {first} to {lyrics[-1].end_frame}", frames)
    ids, kinds = ids[first * step : (first + frames) * step], kinds[first * step : (first + frames) * step]
    length = reference_frames(rng.random(), pair.frames_per_second, frames, options)
    start = _first_start(song, first, frames, length, pair.frames_per_second, rng)
    for _ in range(options.redraws):
        if len(np.unique(ids[start * step : (start + length) * step])) >= options.min_distinct * length * step:
            break
        start = int(rng.integers(0, frames - length, endpoint=True))
    span = slice(start * step, (start + length) * step)
    return ids[span], kinds[span], length


def _reference_track(
    song: Song, pair: Pair, context: DocumentContext, rng: np.random.Generator, options: ReferenceOptions
) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids and kinds of the whole track that the reference is cut from, and its ids a frame."""
    mode = options.mode
    if mode == "random":
        mode = ("dual", "vocals", "accompaniment", "mix")[int(rng.integers(4))]
    if mode == "dual":
        return *dual_track(pair.vocals_T, pair.accompaniment_T, context.codec), 2
    if mode == "mix":
        codes_T = context.codes(song, "mix")[0]
        codes_T = codes_T[: common_length(len(codes_T), pair.frames, "mix and vocals", options)]
    else:
        codes_T = pair.vocals_T if mode == "vocals" else pair.accompaniment_T
    return *single_track(codes_T, TRACK_KINDS[mode], context.codec), 1


def reference_frames(quantile: float, frames_per_second: float, frames: int, options: ReferenceOptions) -> int:
    """Length in frames of the reference at a ``quantile`` in [0, 1) of the distribution, out of a range of ``frames``.

    Half of the range where the drawn length would reach its end.
    """
    table = _cumulative(options.mean_s, options.variance_s2, options.shortest_s, options.longest_s)
    length = int(np.interp(quantile, *table) * frames_per_second)
    return length if 0 < length < frames else frames // 2


@lru_cache(maxsize=16)
def _cumulative(mean_s: float, variance_s2: float, shortest_s: float, longest_s: float) -> tuple[np.ndarray, ...]:
    """Cumulative probabilities and lengths in seconds of a truncated normal on a grid.

    The grid is that of the released preprocessor, which makes lengths half a grid step (0.1 s) shorter on average.
    """
    lengths_s = np.linspace(shortest_s, longest_s, GRID_POINTS)
    density = np.exp(-((lengths_s - mean_s) ** 2) / (2 * variance_s2))
    return np.cumsum(density / density.sum()), lengths_s


def _first_start(
    song: Song, first: int, frames: int, length: int, frames_per_second: float, rng: np.random.Generator
) -> int:
    """Start in frames after ``first``: inside a random chorus where the reference fits it, else anywhere."""
    choruses = [section for section in song.structure if plain_label(section["label"]) == "chorus"]
    if choruses:
        chorus = choruses[int(rng.integers(len(choruses)))]
        earliest = max(0, int(chorus["start"] * frames_per_second) - first)
        latest = min(frames, int(chorus["end"] * frames_per_second) - first) - length
        if latest > earliest:
            return int(rng.integers(earliest, latest, endpoint=True))
    return int(rng.integers(0, frames - length, endpoint=True))
