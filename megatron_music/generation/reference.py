"""Music that a song starts from: references from audio or codes, and earlier songs to go on with."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_music.audio.files import audio_info, read_audio
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.generation.request import Reference, SungSegment
from megatron_music.songs.codes import load_codes
from megatron_music.songs.ids import plain
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import SHARD_SUFFIX, Rejected, Song
from megatron_music.vocabulary.vocabulary import CodecRange

if TYPE_CHECKING:
    from megatron_music.audio.codec import Codec

SHORTEST_S, LONGEST_FILE_S = 1.0, 1200.0
SILENCE_DBFS = -60.0
MOST_APART_S = 1.0
MANIFEST_MARK = ".jsonl#"


def read_reference(
    paths: Sequence[str | Path], codec: "Codec", codec_range: CodecRange, start_s: float = 0.0, end_s: float = 30.0
) -> Reference:
    """The part from ``start_s`` to ``end_s`` of one track (a mix, or a stem), or of vocals and accompaniment.

    The whole file is encoded and the part cut out of its codes, as references are cut out of training songs; the part
    ends with the file where that is shorter.

    Args:
        paths: one or two files: audio, or codes as ``.npy`` or ``shard.parquet#ID/TRACK``.

    Raises:
        InputError: a file can't be read, is silent, holds less than a second of the part, or is longer than 20 minutes;
            or two tracks differ in length by more than a second.
    """
    if len(paths) not in (1, 2):
        raise InputError("--reference", f"{len(paths)} tracks", "name one file, or vocals and accompaniment")
    if not 0 <= start_s < end_s:
        raise InputError(
            "--reference-start",
            f"{start_s:g} s to {end_s:g} s (--reference-end) is no part of a song",
            "let it start before its end",
        )
    tracks = [_codebook_0(path, codec, codec_range) for path in paths]
    rate = codec.frames_per_second
    if max(map(len, tracks)) - min(map(len, tracks)) > MOST_APART_S * rate:
        lengths = " and ".join(f"{len(codes_T) / rate:.1f} s" for codes_T in tracks)
        raise InputError(paths[1], f"is not of one song with {paths[0]} ({lengths})", "name two stems of one song")
    frames = min(map(len, tracks))
    span = slice(round(start_s * rate), min(frames, round(end_s * rate)))
    if span.stop - span.start < SHORTEST_S * rate:
        held = max(0.0, (span.stop - span.start) / rate)
        what = f"holds {held:.1f} s between {start_s:g} s and {end_s:g} s, too short a reference"
        raise InputError(paths[0], what, f"name a part of at least {SHORTEST_S:g} s")
    cut = tuple(codes_T[span] for codes_T in tracks)
    if all(len(np.unique(codes_T)) == 1 for codes_T in cut):
        raise InputError(paths[0], "holds one code only in this part", "name a part that sounds")
    names = ", ".join(Path(path).name for path in paths)
    return Reference(cut, f"{names}, {span.start / rate:g} s to {span.stop / rate:g} s")


def silent_code(codec: "Codec") -> int:
    """The codebook-0 code that silence has most of the time."""
    codes_T = codec.encode(np.zeros(2 * codec.sample_rate, np.float32))[0]
    return int(np.bincount(codes_T).argmax())


def read_past(name: str | Path, codec_range: CodecRange, after: int | None = None) -> tuple[str, list[SungSegment]]:
    """Tags and the first ``after`` sections, or all, of a song that was sung or recorded.

    Args:
        name: a ``song.json`` of an earlier song, or ``manifest.jsonl#ID`` for a song with codes and lyrics.

    Raises:
        InputError: there is no such song, it has no sections or fewer than ``after``, or its codes don't fit.
    """
    manifest, id = _split_name(str(name))
    tags, segments = _sung_past(Path(name), codec_range) if id is None else _manifest_past(manifest, id, codec_range)
    if after is not None and not 1 <= after <= len(segments):
        raise InputError(name, f"has {len(segments)} sections, {after} were asked for", "go on after one of them")
    return tags, segments[:after]


def _codebook_0(path: str | Path, codec: "Codec", codec_range: CodecRange) -> np.ndarray:
    name = str(path)
    if name.endswith(".npy") or f"{SHARD_SUFFIX}#" in name:
        try:
            return load_codes(Song("reference", codes={"reference": name}), "reference", codec_range)[0]
        except Rejected as rejected:
            raise InputError(path, rejected.detail, "name codes of this codec, or audio") from None
    # Small files may hold hours, which would fill the memory.
    if (seconds := audio_info(path).duration_s) > LONGEST_FILE_S:
        raise InputError(path, f"lasts {seconds / 60:.0f} minutes", f"cut it to {LONGEST_FILE_S / 60:g}")
    samples = read_audio(path, codec.sample_rate)
    if len(samples) < SHORTEST_S * codec.sample_rate:
        found = f"lasts {len(samples) / codec.sample_rate:.2f} s, too short a reference"
        raise InputError(path, found, f"name at least {SHORTEST_S:g} s")
    level = 10 * np.log10(max(float(np.mean(samples.astype(np.float64) ** 2)), 1e-20))
    if level < SILENCE_DBFS:
        raise InputError(path, f"is silent ({level:.0f} dBFS)", "name a file that sounds")
    return codec.encode(samples)[0]


def _sung_past(path: Path, codec_range: CodecRange) -> tuple[str, list[SungSegment]]:
    record = read_json(path)
    try:
        coarse_2T = np.array([record["codes"][track][0] for track in ("vocals", "accompaniment")])
        segments = [(segment["text"], segment["start_frame"], segment["end_frame"]) for segment in record["segments"]]
        tags, codec = str(record["request"]["tags"]), record["codec"]
        if coarse_2T.ndim != 2 or coarse_2T.dtype.kind != "i":
            raise ValueError
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        raise InputError(path, "is not the song.json of a song with lyrics", "name one that `generate` wrote") from None
    if codec != codec_range.name:
        raise InputError(path, f"holds {codec} codes, not {codec_range.name}", "name a song of these models")
    return tags, _cut(path, coarse_2T, segments, codec_range)


def _split_name(name: str) -> tuple[str, str | None]:
    """The manifest and the id of ``manifest.jsonl#ID``, of which both may hold a ``#``; no id of any other file."""
    ends = [found.end() - 1 for found in re.finditer(re.escape(MANIFEST_MARK), name)]
    if not ends or Path(name).is_file():
        return name, None
    end = next((end for end in ends if Path(name[:end]).is_file()), ends[0])
    return name[:end], name[end + 1 :]


def _manifest_past(path: str, id: str, codec_range: CodecRange) -> tuple[str, list[SungSegment]]:
    name = f"{path}#{id}"
    found: Song | None = None
    for song in read_manifest(path):
        if isinstance(song, Song) and (song.id == id or (found is None and plain(song.id) == plain(id))):
            found = song
            if song.id == id:
                break
    if found is None:
        raise InputError(path, f"has no song {id!r}", "name one of its ids")
    try:
        tracks = [load_codes(found, track, codec_range)[0] for track in ("vocals", "accompaniment")]
    except Rejected as rejected:
        raise InputError(name, rejected.detail, "name a song with codes of both tracks") from None
    frames = min(map(len, tracks))
    segments = [(segment.text, segment.start_frame, min(segment.end_frame, frames)) for segment in found.segments]
    return found.genres, _cut(name, np.stack([codes_T[:frames] for codes_T in tracks]), segments, codec_range)


def _cut(
    name: Any, coarse_2T: np.ndarray, segments: list[tuple[str, int, int]], codec_range: CodecRange
) -> list[SungSegment]:
    sung = []
    for number, (text, start, end) in enumerate(segments, start=1):
        whole = isinstance(text, str) and isinstance(start, int) and isinstance(end, int)
        if not whole or not 0 <= start < end <= coarse_2T.shape[1]:
            raise InputError(name, f"section {number} has no codes of its own", "go on after an earlier section")
        sung.append(SungSegment(text, coarse_2T[:, start:end].astype(np.int16)))
    if not sung:
        raise InputError(name, "has no sections", "name a song with lyrics")
    if not 0 <= coarse_2T.min() <= coarse_2T.max() < codec_range.codebook_size:
        raise InputError(name, f"holds codes that are none of {codec_range.name}", "name another song")
    return sung
