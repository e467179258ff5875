"""What an encoding has to make: the settings that give its codes their meaning, and which songs are which shard.

A shard is a fixed number of songs in the manifest's order, and is what is whole or absent. Which process encodes it has
no part in what it holds, so that a run can be stopped and started again on other machines.
"""

from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.songs.manifest import place_of, read_manifest, read_songs
from megatron_music.songs.manifest_file import song_lines
from megatron_music.songs.song import Reject, Segment, Song

MANIFEST, CODEC, SETTINGS, LOGS = "manifest.jsonl", "codec", "encoding.json", "logs"
WORK = ".encode"
EMBEDDED = "embedded"
_NOT_ANNOTATED = {"id", "codes", "folder"}


@dataclass(frozen=True)
class Settings:
    """What decides what a code means; kept in ``encoding.json`` so that one folder holds codes of one making.

    Attributes:
        annotators: by name, in the order in which they hear a song, the options of each.
    """

    codec: str = EMBEDDED
    weights: str | None = None
    codebooks: int = 8
    codebook_size: int = 1024
    seed: int = 0
    window_seconds: float | None = None
    annotators: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@dataclass(frozen=True)
class Shard:
    """Some songs of the manifest, and the files that they become.

    Attributes:
        songs: as the manifest has them.
        annotated: whether annotators hear them, so that more than their audio decides what becomes of them.
    """

    number: int
    out: Path
    songs: tuple[Song | Reject, ...]
    annotated: bool

    @property
    def path(self) -> Path:
        return self.out / f"codes-{self.number:05d}.parquet"

    @property
    def notes_path(self) -> Path:
        """Beside the shard, what it was made of, what was rejected and what was found out; written before it."""
        return self.out / WORK / f"{self.number:05d}.json"

    def annotations_path(self, annotator: str) -> Path:
        """What the annotators up to this one found out, until the shard is whole."""
        return self.out / WORK / f"{self.number:05d}.{annotator}.json"

    def inputs(self) -> str:
        """Fingerprint of the songs' ids and of the names, sizes and times of their audio files; of all of a song where
        annotators hear it."""
        return fingerprint.of_value([self._stamps(song) for song in self.songs])

    def is_whole(self) -> bool:
        """Whether the shard is there and its songs have not changed since."""
        there = self.path.is_file() and self.notes_path.is_file()
        return there and read_json(self.notes_path)["inputs"] == self.inputs()

    def clear(self) -> None:
        """Takes away what is left of the shard, and first the manifest, which would name it."""
        (self.out / MANIFEST).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _stamps(self, song: Song | Reject) -> list | tuple:
        if isinstance(song, Reject):
            return astuple(song)
        stamps = [(name, song.audio[name], fingerprint.of_stat(song.audio_path(name))) for name in song.audio]
        return [asdict(song) if self.annotated else song.id, *stamps]


@dataclass(frozen=True)
class Plan:
    """All shards of a manifest and what they are made with; a few bytes a shard, as every task is sent one.

    Attributes:
        folder: to which the manifest's paths are relative.
        stamp: size and time of the manifest, which has to stay as it is while tasks read it.
        starts: byte and line in the manifest at which each shard starts.
        repeats: by position in the manifest, the songs whose id an earlier one has.
        batch_seconds: how much audio at most the codec is given at once.
    """

    manifest: Path
    folder: Path
    stamp: tuple[int, int] | None
    out: Path
    settings: Settings
    frames_per_second: float
    device: str
    batch_seconds: float
    shard_songs: int
    songs: int
    starts: tuple[tuple[int, int], ...]
    repeats: dict[int, Reject]

    @property
    def weights(self) -> str | None:
        return str(self.out / CODEC) if self.settings.codec == EMBEDDED else self.settings.weights

    @property
    def shards(self) -> int:
        return len(self.starts)

    @property
    def logs(self) -> Path:
        return self.out / LOGS

    def shard(self, number: int) -> Shard:
        """A shard with its songs; raises InputError where the manifest is no longer the one that was planned for."""
        if fingerprint.of_stat(self.manifest) != self.stamp:
            raise InputError(self.manifest, "has changed since the run was started", "start it again")
        byte, line = self.starts[number]
        file = self.manifest.open("rb")
        file.seek(byte)
        first = number * self.shard_songs
        songs = islice(read_songs(file, self.manifest, self.folder, line), self.shard_songs)
        kept = tuple(self.repeats.get(position, song) for position, song in enumerate(songs, first))
        return Shard(number, self.out, kept, bool(self.settings.annotators))

    def read_shards(self) -> Iterator[Shard]:
        """All shards in the manifest's order."""
        return (self.shard(number) for number in range(self.shards))

    def numbers(self, task: int, tasks: int) -> range:
        """The shards of one of ``tasks`` tasks."""
        return range(task, self.shards, tasks)


def plan_shards(
    manifest: Path,
    out: Path,
    settings: Settings,
    frames_per_second: float,
    device: str,
    batch_seconds: float,
    shard_songs: int,
) -> Plan:
    """Reads the manifest once, to find where each shard starts and which ids stand in it twice."""
    folder, stamp = place_of(manifest).folder, fingerprint.of_stat(manifest)
    starts: list[tuple[int, int]] = []
    repeats: dict[int, Reject] = {}
    songs = 0
    for place, song in zip(_song_lines(manifest), read_manifest(manifest), strict=True):
        if songs % shard_songs == 0:
            starts.append(place)
        if isinstance(song, Reject) and song.rule == "duplicate_id":
            repeats[songs] = song
        songs += 1
    return Plan(
        manifest, folder, stamp, out, settings, frames_per_second, device, batch_seconds, shard_songs, songs,
        tuple(starts), repeats,
    )  # fmt: skip


def _song_lines(manifest: Path) -> Iterator[tuple[int, int]]:
    """Byte and line number of every line that ``read_manifest`` gives something for."""
    with manifest.open("rb") as file:
        for number, byte, _ in song_lines(file):
            yield byte, number


def changes(before: Song, after: Song) -> dict[str, Any]:
    """What annotators found out about a song, as JSON can hold it."""
    old, new = asdict(before), asdict(after)
    return {f.name: new[f.name] for f in fields(Song) if f.name not in _NOT_ANNOTATED and new[f.name] != old[f.name]}


def changed(song: Song, found: dict[str, Any]) -> Song:
    """The song with what ``changes`` noted of it."""
    found = dict(found)
    if "segments" in found:
        found["segments"] = [Segment(**segment) for segment in found["segments"]]
    return replace(song, **found)
