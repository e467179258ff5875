"""Stage-2 documents: from the codebook-0 codes of a track to all of its codebooks, window by window.

``<SOA><stage_1>`` the window's codebook-0 ids ``<stage_2>`` frame by frame the ids of all codebooks ``<EOA>``; one
``<EOD>`` behind a track's windows. Id for id what YuE's released preprocessor writes, with codebook 0 in the second
part ("teacher forcing") or without it.
"""

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from megatron_music.documents.document import Document, DocumentBuilder, DocumentContext
from megatron_music.documents.tracks import Track, TrackOptions, checked_rate
from megatron_music.errors import InputError
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.kinds import CODEBOOK_KINDS, TRACK_KINDS, Kind

MOST_CODEBOOKS = 1 + len(CODEBOOK_KINDS)


class ResidualOptions(TrackOptions):
    """Options of stage-2 documents.

    Attributes:
        tracks: the tracks of each song, one document each.
        speech: the manifest's clips are speech; their codebook-0 codes are then counted as such, whatever the track.
        codebooks: codebooks of the second part, codebook 0 included; by default the codec's, at most 8.
        repeat_codebook_0: whether the second part holds codebook 0 as well.
        window_s: length of a window; the partial one at a track's end is dropped.
        min_distinct_codes: windows with fewer distinct codebook-0 codes are dropped.
    """

    tracks: Annotated[list[Track], Field(min_length=1)] = ["mix", "vocals", "accompaniment"]
    speech: bool = False
    codebooks: int | None = Field(None, ge=2, le=MOST_CODEBOOKS)
    repeat_codebook_0: bool = True
    window_s: float = Field(6.0, gt=0)
    min_distinct_codes: int = Field(25, ge=0)
    code_rate_tolerance: float | None = Field(None, ge=0)


def documents(
    song: Song, context: DocumentContext, rng: np.random.Generator, options: ResidualOptions
) -> list[Document]:
    """One document for each track with a usable window; raises Rejected where no track has one."""
    codebooks = residual_codebooks(context, options)
    made, monotonous = [], 0
    for track in options.tracks:
        codes_KT = context.codes(song, track)
        if codes_KT.shape[0] < codebooks:
            detail = f"{track} has {codes_KT.shape[0]} codebooks, fewer than {codebooks}"
            raise Rejected("codes_shape", detail, codes_KT.shape[0])
        checked_rate(song, codes_KT.shape[1], options)
        windows_NKT, too_few = split_windows(codes_KT[:codebooks], options)
        monotonous += too_few
        if len(windows_NKT):
            builder = DocumentBuilder(context)
            kind = Kind.SPEECH if options.speech else TRACK_KINDS[track]
            builder.extend(*_window_ids(windows_NKT, kind, context, options))
            made.append(builder.build(song.id, len(windows_NKT) * options.window_s))
    if not made:
        raise Rejected(
            "no_windows", f"no {options.window_s:g} s of the song have {options.min_distinct_codes} distinct codes"
        )
    # Counted once a song, as a track without any usable window has no document to say so.
    left_out = {f"windows of fewer than {options.min_distinct_codes} distinct codes": monotonous}
    return [replace(made[0], left_out=left_out), *made[1:]]


def residual_codebooks(context: DocumentContext, options: ResidualOptions) -> int:
    """Codebooks of the second part; raises InputError where the codec has fewer."""
    codebooks = min(MOST_CODEBOOKS, context.codec.codebooks) if options.codebooks is None else options.codebooks
    if not 2 <= codebooks <= context.codec.codebooks:
        raise InputError(
            "codebooks",
            f"{context.codec.name} has {context.codec.codebooks}, a stage-2 document needs {max(2, codebooks)}",
            "ask for fewer or name another codec",
        )
    return codebooks


def split_windows(codes_KT: np.ndarray, options: ResidualOptions) -> tuple[np.ndarray, int]:
    """The usable windows (N, K, window) of a track, in order, and how many have too few distinct codes."""
    length = round(options.window_s * options.frames_per_second)
    codebooks, frames = codes_KT.shape
    count = frames // length
    windows_NKT = codes_KT[:, : count * length].reshape(codebooks, count, length).transpose(1, 0, 2)
    sorted_NT = np.sort(windows_NKT[:, 0], axis=1)
    distinct_N = 1 + (np.diff(sorted_NT, axis=1) != 0).sum(axis=1)
    usable_N = distinct_N >= options.min_distinct_codes
    return windows_NKT[usable_N], int((~usable_N).sum())


def _window_ids(
    windows_NKT: np.ndarray, kind: Kind, context: DocumentContext, options: ResidualOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and kinds of all windows, one after the other."""
    count, codebooks, length = windows_NKT.shape
    vocabulary = context.vocabulary
    ids_NKT = context.codec.ids(windows_NKT.transpose(1, 0, 2)).transpose(1, 0, 2)
    first = 0 if options.repeat_codebook_0 else 1
    special, kind = int(Kind.SPECIAL), int(kind)
    frame_kinds = [kind, *map(int, CODEBOOK_KINDS)][first:codebooks]
    head = np.array([vocabulary.special("<SOA>"), vocabulary.special("<stage_1>")], dtype=np.int32)
    columns = [
        (np.broadcast_to(head, (count, 2)), [special] * 2),
        (ids_NKT[:, 0], [kind] * length),
        (np.full((count, 1), vocabulary.special("<stage_2>")), [special]),
        (ids_NKT[:, first:].transpose(0, 2, 1).reshape(count, -1), frame_kinds * length),
        (np.full((count, 1), vocabulary.special("<EOA>")), [special]),
    ]
    ids = np.concatenate([part for part, _ in columns], axis=1, dtype=np.int32)
    kinds = np.concatenate([np.array(part, dtype=np.uint8) for _, part in columns])
    return ids.ravel(), np.tile(kinds, count)
