"""The texts that documents hold, for a text tokenizer to learn from."""

from collections.abc import Iterator
from pathlib import Path

from megatron_music.documents import lyrics_to_song, speech, unconditional
from megatron_music.progress import console
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Reject, Song


def texts_of_manifest(manifest: str | Path) -> Iterator[str]:
    """Instructions, tags, lyrics, marks and plain texts of every line that documents may hold; tells of rejects."""
    rejected, first = 0, None
    for song in read_manifest(manifest):
        if isinstance(song, Reject):
            rejected, first = rejected + 1, first or song
        else:
            yield from texts_of_song(song)
    if first:
        example = f"{first.where}: {first.rule}, {first.detail}"
        console.print(f"left out: {rejected:,} lines that are no song, the first {example}")


def texts_of_song(song: Song) -> Iterator[str]:
    """The texts of one line of a manifest in the documents of all tasks that it can serve.

    A line with a ``text`` is a clip of speech where it names codes or audio, and a plain text where it names none; a
    line without one, or with segments as well, is a song.
    """
    if song.text:
        yield f"{speech.INSTRUCTION}{song.text}" if song.codes or song.audio else song.text
        if not song.segments:
            return
    texts = [segment.text for segment in song.segments]
    yield "\n".join([lyrics_to_song.INSTRUCTION, f"[Genre] {song.genres}", *texts])
    for text in texts:
        yield f"[start_of_segment]{text}[end_of_segment]"
    yield "[start_of_reference][end_of_reference]"
    for instruction in unconditional.INSTRUCTIONS.values():
        yield f"{instruction}\n[Genre] {song.genres}"
