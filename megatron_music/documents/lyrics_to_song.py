"""Lyrics-to-song documents: the whole lyrics first, then each segment's text followed by its audio.

``{instruction}\\n[Genre] {tags}\\n{all segments' texts joined by \\n}``, then for each segment ``[start_of_segment]``,
its text, ``<SOA><codec>`` v1 a1 v2 a2 ... ``<EOA>`` and ``[end_of_segment]``, then ``<EOD>``: id for id what YuE's
released preprocessor writes. Each of these texts is encoded on its own. Where it differs: a song without a usable
segment is rejected, the released preprocessor writes a document of the header alone; a song with a segment that has no
text or no span (``songs/manifest.py``) is rejected, the released one leaves the segment out; a segment may lack
``duration``, the released one then leaves it out.

Two options are for comparison with what YuE's authors left: the codes of the mix in place of two tracks, and the lyrics
in the header alone, with the same audio in one span behind it.
"""

from collections import Counter
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from megatron_music.documents.document import Document, DocumentBuilder, DocumentContext
from megatron_music.documents.tags import TagOptions, tag_text
from megatron_music.documents.tracks import SongAudio, TrackOptions, load_audio
from megatron_music.songs.filters import count_lines, without_irrelevant_text
from megatron_music.songs.song import Rejected, Segment, Song

INSTRUCTION = "Generate music from the given lyrics segment by segment."


class LyricsOptions(TrackOptions, TagOptions):
    """Options of lyrics-to-song documents.

    Attributes:
        tracks: vocals and accompaniment interleaved, or the mix.
        lyrics: before each segment's audio, or in the header alone, whose audio is then one span: that of the segments.
        header: False gives the released preprocessor's other form: no header and no segment marks, each segment's text
            after an instruction of its own.
        instruction_dropout: share of segments whose instruction is left out, in the form without the header.
        min_segment_s: shorter segments get no audio span; their text stays in the header.
        overhang: what becomes of a segment that ends behind the codes (of the shorter track): dropped like a short one,
            as released, or clipped.
        max_overhang_frames: a song with a segment that ends further than this behind the codes of the longer track is
            rejected; null, as released, rejects none.
        min_lyric_lines: songs with fewer sung lines are rejected (10 in YuE's pretraining).
        remove_irrelevant_text: take out credits, links and the like.
    """

    instruction: str = INSTRUCTION
    tracks: Literal["dual", "mix"] = "dual"
    lyrics: Literal["by_segment", "prepended"] = "by_segment"
    header: bool = True
    instruction_dropout: float = Field(0.0, ge=0, le=1)
    min_segment_s: float = Field(1.0, ge=0)
    overhang: Literal["drop", "clip"] = "drop"
    max_overhang_frames: int | None = Field(None, ge=0)
    min_lyric_lines: int = Field(0, ge=0)
    remove_irrelevant_text: bool = False

    @model_validator(mode="after")
    def _holds_lyrics(self) -> Self:
        if self.lyrics == "prepended" and not self.header:
            raise ValueError("lyrics: prepended without a header leaves no lyrics; take `header: false` out")
        return self


def documents(song: Song, context: DocumentContext, rng: np.random.Generator, options: LyricsOptions) -> list[Document]:
    """The one document of a song; raises Rejected where it has none."""
    lyrics = usable_lyrics(song, options)
    audio = load_audio(song, context, options, options.tracks)
    segments, left_out = usable_segments(lyrics, audio, options)
    builder = DocumentBuilder(context)
    if options.header:
        builder.text(header_text(song, lyrics, rng, options))
    if options.lyrics == "prepended":
        spans = [_span(segment, audio) for segment in segments]
        builder.audio(np.concatenate([ids for ids, _ in spans]), np.concatenate([kinds for _, kinds in spans]))
    elif options.header:
        append_segments(builder, segments, audio)
    else:
        _append_instructed_segments(builder, segments, audio, rng, options)
    return [builder.build(song.id, segments_seconds(segments, audio), left_out)]


def header_text(song: Song, lyrics: list[Segment], rng: np.random.Generator, options: LyricsOptions) -> str:
    """Instruction, tags and the whole lyrics."""
    whole = "\n".join(segment.text for segment in lyrics)
    return f"{options.instruction}\n[Genre] {tag_text(song, rng, options)}\n{whole}"


def usable_lyrics(song: Song, options: LyricsOptions) -> list[Segment]:
    """The song's segments with their texts cleaned; raises Rejected where there are none or too few lines."""
    segments = song.segments
    if not segments:
        raise Rejected("no_segments", "the song has no segments")
    if options.remove_irrelevant_text:
        segments = [replace(segment, text=without_irrelevant_text(segment.text)) for segment in segments]
    if options.min_lyric_lines and (lines := count_lines(segments)) < options.min_lyric_lines:
        detail = f"the song has {lines} lines of lyrics, fewer than {options.min_lyric_lines}"
        raise Rejected("few_lyrics", detail, lines)
    return segments


def usable_segments(
    lyrics: list[Segment], audio: SongAudio, options: LyricsOptions
) -> tuple[list[Segment], Counter[str]]:
    """The segments that get an audio span, and why others do not.

    Raises Rejected where none does, or where one lies too far outside the codes.
    """
    kept, left_out = [], Counter()
    for index, segment in enumerate(lyrics):
        overhang = segment.end_frame - audio.longest_frames
        if options.max_overhang_frames is not None and overhang > options.max_overhang_frames:
            raise Rejected(
                "segment_frames",
                f"segment {index} ends at frame {segment.end_frame}, the tracks have {audio.longest_frames}",
                segment.end_frame,
            )
        end = min(segment.end_frame, audio.frames)
        if end < segment.end_frame and options.overhang == "drop":
            left_out["segments that end behind the codes"] += 1
        elif end > segment.start_frame and end - segment.start_frame >= audio.frames_per_second * options.min_segment_s:
            kept.append(replace(segment, end_frame=end))
        else:
            left_out[f"segments shorter than {options.min_segment_s:g} s"] += 1
    if not kept:
        raise Rejected("no_segments", f"none of the song's {len(lyrics)} segments can be used")
    return kept, left_out


def segments_seconds(segments: list[Segment], audio: SongAudio) -> float:
    """Seconds of audio in the segments, by the song's own frame rate."""
    return sum(segment.end_frame - segment.start_frame for segment in segments) / audio.frames_per_second


def append_segments(builder: DocumentBuilder, segments: list[Segment], audio: SongAudio) -> None:
    """Each segment's text and audio between the segment marks."""
    for segment in segments:
        builder.mark("[start_of_segment]")
        builder.text(segment.text)
        builder.audio(*_span(segment, audio))
        builder.mark("[end_of_segment]")


def _append_instructed_segments(
    builder: DocumentBuilder,
    segments: list[Segment],
    audio: SongAudio,
    rng: np.random.Generator,
    options: LyricsOptions,
) -> None:
    for segment in segments:
        dropped = options.instruction_dropout > 0 and rng.random() < options.instruction_dropout
        builder.text(segment.text if dropped else f"{options.instruction}\n{segment.text}")
        builder.audio(*_span(segment, audio))


def _span(segment: Segment, audio: SongAudio) -> tuple[np.ndarray, np.ndarray]:
    """Ids and kinds of a segment's audio."""
    span = slice(audio.ids_per_frame * segment.start_frame, audio.ids_per_frame * segment.end_frame)
    return audio.ids[span], audio.kinds[span]
