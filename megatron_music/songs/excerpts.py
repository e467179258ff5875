"""Short pieces of songs whose lines have times: excerpts of some lines to learn from in a short context, and clips.

A song of a minute is six thousand tokens, more than a small network reads at once. An excerpt is a song of its own,
each of its lines a segment, so that all that is asked of a document of a whole song can be asked of one that fits.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import atomic_path
from megatron_music.songs.codes import CodesRow, load_codes, write_codes_shard
from megatron_music.songs.manifest import read_manifest, write_manifest
from megatron_music.songs.song import Rejected, Segment, Song
from megatron_music.vocabulary.vocabulary import CodecRange

_SHARD, _CODEC = "codes.parquet", "codec"


def write_excerpts(
    manifest: str | Path, out: str | Path, codec: CodecRange, lines: int = 2, frames_per_second: float = 50.0
) -> dict[str, int]:
    """Cuts the codes of every song into excerpts, and its vocals into clips of a line; returns how many of each.

    ``out/excerpts`` and ``out/clips`` receive ``manifest.jsonl``, the codes, and the fitted codec where ``manifest``
    has one beside it. An excerpt runs from its first line's start to the start of the line behind its last; it is named
    ``ID.eN``, a clip ``ID.lN``, so that patterns of held-out songs hold for them too. ``out/swapped`` names the codes
    of the same excerpts with the lyrics of others, of another song in the same language: what a model loses on them
    beside the right ones is what it has learned to take from lyrics. Songs alone in their language are left out there.

    Args:
        manifest: of songs with codes of all three tracks and a field ``lines``: ``text``, ``start`` and ``end`` in
            seconds, as ``songbook`` writes it.

    Raises InputError where no song has such lines.
    """
    manifest, out = Path(manifest), Path(out)
    songs = [song for song in read_manifest(manifest) if isinstance(song, Song) and _has_lines(song)]
    if not songs:
        raise InputError(manifest, "has no song with `lines` and their times", "name an encoded songbook")
    pieces = {
        "excerpts": [piece for song in songs for piece in _excerpts(song, lines, frames_per_second)],
        "clips": [piece for song in songs for piece in _clips(song, frames_per_second)],
    }
    for name, cut in pieces.items():
        with _folder(out / name, manifest) as folder:
            write_codes_shard(folder / _SHARD, _rows(cut, codec))
            write_manifest(folder / "manifest.jsonl", [replace(piece, folder=folder) for _, piece, _ in cut])
    swapped = list(_swapped([piece for _, piece, _ in pieces["excerpts"]]))
    with _folder(out / "swapped", manifest) as folder:
        # Relative to where the folder will stand: beside that of the excerpts.
        beside = folder.parent / "excerpts"
        write_manifest(folder / "manifest.jsonl", [replace(piece, folder=beside) for piece in swapped])
    return {name: len(cut) for name, cut in pieces.items()} | {"swapped": len(swapped)}


@contextmanager
def _folder(path: Path, manifest: Path) -> Iterator[Path]:
    """A folder that appears whole, with the codec that lies beside ``manifest``."""
    with atomic_path(path) as folder:
        folder.mkdir()
        if (manifest.parent / _CODEC).is_dir():
            shutil.copytree(manifest.parent / _CODEC, folder / _CODEC)
        yield folder


def _has_lines(song: Song) -> bool:
    lines = song.extra.get("lines")
    return isinstance(lines, list) and bool(lines) and all({"text", "start", "end"} <= set(line) for line in lines)


_Cut = tuple[Song, Song, slice]
"""A song, the piece of it, and its frames."""


def _excerpts(song: Song, lines: int, rate: float) -> Iterator[_Cut]:
    every = song.extra["lines"]
    starts = [round(line["start"] * rate) for line in every] + [round(song.duration_s * rate)]
    for number, first in enumerate(range(0, len(every) - lines + 1, lines)):
        begin, end = starts[first], starts[first + lines]
        segments = [
            Segment(f"[verse]\n{every[at]['text']}\n\n", starts[at] - begin, starts[at + 1] - begin)
            for at in range(first, first + lines)
        ]
        span = slice(begin, end)
        yield song, _piece(song, f"{song.id}.e{number}", span, rate, song.codes, segments=segments), span


def _clips(song: Song, rate: float) -> Iterator[_Cut]:
    for number, line in enumerate(song.extra["lines"]):
        span = slice(round(line["start"] * rate), round(line["end"] * rate))
        yield song, _piece(song, f"{song.id}.l{number}", span, rate, ["vocals"], text=line["text"]), span


def _swapped(excerpts: list[Song]) -> Iterator[Song]:
    """Each excerpt with the texts of the next one, half of the list on, of another song in its language."""
    for number, excerpt in enumerate(excerpts):
        from_here = (excerpts[(number + len(excerpts) // 2 + step) % len(excerpts)] for step in range(len(excerpts)))
        other = next((one for one in from_here if _may_lend(one, excerpt)), None)
        if other is not None:
            texts = zip(excerpt.segments, other.segments, strict=True)
            yield replace(excerpt, segments=[replace(own, text=lent.text) for own, lent in texts])


def _may_lend(other: Song, excerpt: Song) -> bool:
    name, own = (one.id.split(".")[0] for one in (other, excerpt))
    return name != own and other.language == excerpt.language


def _piece(song: Song, id: str, span: slice, rate: float, tracks, **fields) -> Song:
    codes = {track: f"{_SHARD}#{id}/{track}" for track in tracks}
    seconds = (span.stop - span.start) / rate
    return Song(id, codes, duration_s=seconds, genres=song.genres, language=song.language, **fields)


def _rows(cut: list[_Cut], codec: CodecRange) -> Iterator[CodesRow]:
    for song, piece, span in cut:
        for track in piece.codes:
            try:
                codes_KT = load_codes(song, track, codec)[:, span]
            except Rejected as rejected:
                raise InputError(song.folder / "manifest.jsonl", str(rejected), "encode the songs again") from None
            yield CodesRow(piece.id, track, codec.name, codes_KT)
