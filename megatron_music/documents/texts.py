"""The texts that documents hold, for a text tokenizer to learn from."""

from collections.abc import Iterator
from pathlib import Path

from megatron_music.documents import lyrics_to_song, unconditional
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Reject, Song


def texts_of_manifest(manifest: str | Path) -> Iterator[str]:
    """Instructions, tags, lyrics and marks of every song, as often as its documents hold them; rejects are left out."""
    for song in read_manifest(manifest):
        if not isinstance(song, Reject):
            yield from texts_of_song(song)


def texts_of_song(song: Song) -> Iterator[str]:
    """The texts of one song in a lyrics-to-song, an in-context-learning and the unconditional documents."""
    texts = [segment.text for segment in song.segments]
    yield "\n".join([lyrics_to_song.INSTRUCTION, f"[Genre] {song.genres}", *texts])
    for text in texts:
        yield f"[start_of_segment]{text}[end_of_segment]"
    yield "[start_of_reference][end_of_reference]"
    for instruction in unconditional.INSTRUCTIONS.values():
        yield f"{instruction}\n[Genre] {song.genres}"
