"""The steps of an encoding as a datatrove pipeline: read the songs of a task's shards, annotate, encode, write.

What flows from step to step is one shard after another. A step's order and results do not depend on the task that it
runs in, so that the same pipeline runs on local processes, a SLURM array or Ray.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from datatrove.pipeline.base import PipelineStep

from megatron_music.audio.batches import encode_tracks
from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.files import read_audio
from megatron_music.corpus.encode_plan import Plan, Shard, changed, changes
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.songs.annotators import Annotator, load_annotator
from megatron_music.songs.codes import CodesRow, write_codes_shard
from megatron_music.songs.song import Reject, Rejected, Song

_READ_AHEAD_THREADS = 4
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass
class Work:
    """A shard on its way: its songs as far as they are annotated, or why they were rejected, and their codes.

    ``inputs`` is the shard's fingerprint from before anything was read, so that a later change is seen.
    """

    shard: Shard
    inputs: str
    songs: list[Song | Reject]
    rows: list[CodesRow] = field(default_factory=list)


class ReadSongs(PipelineStep):
    """Yields those of the task's shards that are missing or whose songs have changed.

    ``shared`` keeps others out of the folder while the task runs, for tasks whose starter does not wait for them.
    """

    name, type = "songs of a manifest", "reader"

    def __init__(self, plan: Plan, shared: bool):
        super().__init__()
        self.plan, self.shared = plan, shared

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Work]:
        with workplace(self.plan.out, shared=True) if self.shared else nullcontext():
            for number in self.plan.numbers(rank, world_size):
                shard = self.plan.shard(number)
                if not shard.is_whole():
                    shard.clear()
                    self.stat_update("shards")
                    yield Work(shard, shard.inputs(), list(shard.songs))


class Annotate(PipelineStep):
    """Adds to the songs of every shard what one annotator finds out, and keeps that until the shard is whole."""

    type = "annotator"

    def __init__(self, plan: Plan, name: str, options: dict[str, str]):
        self.name = name
        super().__init__()
        self.plan, self.options = plan, options

    def run(self, data: Iterable[Work], rank: int = 0, world_size: int = 1) -> Iterator[Work]:
        for work in data:
            path, before = work.shard.annotations_path(self.name), work.shard.songs
            kept = read_json(path) if path.is_file() else {}
            if kept.get("inputs") == work.inputs:
                work.songs = [_restore(song, found) for song, found in zip(before, kept["songs"], strict=True)]
            else:
                with self.track_time("shard"):
                    work.songs = [self._annotate(song) for song in work.songs]
                found = [_note(*versions) for versions in zip(before, work.songs, strict=True)]
                write_json(path, {"inputs": work.inputs, "songs": found})
            yield work

    def _annotate(self, song: Song | Reject) -> Song | Reject:
        if isinstance(song, Reject):
            return song
        annotator = _annotator(self.name, tuple(self.options.items()), self.plan.device)
        try:
            self.stat_update("songs")
            return annotator.annotate(song, self.plan.out)
        except Rejected as rejected:
            return rejected.reject(song.id, self.plan.manifest)
        except Exception as error:  # one song that a model can't take must not stop a run of a week
            detail = f"{self.name}: {type(error).__name__}: {error}"
            return Rejected("annotation_failed", detail).reject(song.id, self.plan.manifest)


class Encode(PipelineStep):
    """Gives every song the codes of all tracks that it has audio of, or the reason why one of them has none.

    A batch holds tracks of one shard, so that a shard's codes do not depend on what else its task encodes.
    """

    type = "codec"

    def __init__(self, plan: Plan):
        self.name = plan.settings.codec
        super().__init__()
        self.plan = plan

    def run(self, data: Iterable[Work], rank: int = 0, world_size: int = 1) -> Iterator[Work]:
        settings, device = self.plan.settings, self.plan.device
        for work in data:
            codec = _codec(settings.codec, self.plan.weights, device, settings.codebooks)
            with self.track_time("shard"):
                self._encode(work, codec)
            yield work

    def _encode(self, work: Work, codec: Codec) -> None:
        failures: dict[int, Rejected] = {}
        tracks: list[tuple[int, str]] = []
        for index, song in enumerate(work.songs):
            if isinstance(song, Song) and not song.audio:
                failures[index] = Rejected("audio_missing", "the song names no audio")
            elif isinstance(song, Song):
                tracks += [(index, name) for name in sorted(song.audio)]
        read: deque[tuple[int, str, int]] = deque()

        def readable() -> Iterator[np.ndarray]:
            threads = 0 if self.plan.device.startswith("cpu") else _READ_AHEAD_THREADS
            heard = _map_ahead(lambda track: _hear(work.songs[track[0]], track[1], codec), tracks, threads)
            for (index, name), samples in zip(tracks, heard, strict=True):
                if isinstance(samples, Rejected):
                    failures.setdefault(index, samples)
                elif index not in failures:
                    self.stat_update("audio", value=len(samples) / codec.sample_rate, unit="second")
                    read.append((index, name, len(samples)))
                    yield samples

        codes: dict[tuple[int, str], np.ndarray] = {}
        for codes_KT in encode_tracks(codec, readable(), self.plan.batch_seconds, self.plan.settings.window_seconds):
            index, name, samples = read.popleft()
            path = work.songs[index].audio_path(name)
            if isinstance(codes_KT, Exception):
                detail = f"{path}: {type(codes_KT).__name__}: {codes_KT}"
                failures.setdefault(index, Rejected("encoding_failed", detail))
            elif not codes_KT.shape[1]:
                detail = f"{path} has {samples} samples, too few for one frame"
                failures.setdefault(index, Rejected("audio_short", detail))
            else:
                codes[index, name] = codes_KT
        for index, rejected in failures.items():
            work.songs[index] = rejected.reject(work.songs[index].id, self.plan.manifest)
        work.rows = [
            CodesRow(work.songs[index].id, name, codec.name, codes_KT)
            for (index, name), codes_KT in codes.items()
            if index not in failures
        ]


class WriteShards(PipelineStep):
    """Writes every shard, with the notes in place before it.

    As the last step it is where an error of any step arrives: one in the input is noted for whoever waits for the task.
    """

    name, type = "shards of codes", "writer"

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan

    def run(self, data: Iterable[Work], rank: int = 0, world_size: int = 1) -> None:
        try:
            for work in data:
                self._write(work)
        except InputError as error:
            write_json(self.plan.logs / "errors" / f"{rank:05d}.json", [error.where, error.what, error.mend])
            raise

    def _write(self, work: Work) -> None:
        shard = work.shard
        rejects = [song for song in work.songs if isinstance(song, Reject)]
        notes = {"inputs": work.inputs, "rejects": [astuple(reject) for reject in rejects]}
        if shard.annotated:
            notes["found"] = {
                after.id: changes(before, after)
                for before, after in zip(shard.songs, work.songs, strict=True)
                if isinstance(after, Song)
            }
        write_json(shard.notes_path, notes)
        write_codes_shard(shard.path, work.rows)
        for name, _ in self.plan.settings.annotators:
            shard.annotations_path(name).unlink(missing_ok=True)
        self.stat_update("songs", value=len(work.songs) - len(rejects))
        self.stat_update("rejected", value=len(rejects))


def _note(before: Song | Reject, after: Song | Reject) -> dict | list:
    return list(astuple(after)) if isinstance(after, Reject) else changes(before, after)


def _restore(song: Song | Reject, found: dict | list) -> Song | Reject:
    return Reject(*found) if isinstance(found, list) else changed(song, found)


def _hear(song: Song, name: str, codec: Codec) -> np.ndarray | Rejected:
    path = song.audio_path(name)
    try:
        return read_audio(path, codec.sample_rate)
    except InputError as error:
        return Rejected("audio_unreadable" if path.is_file() else "audio_missing", str(error))


def _map_ahead(function: Callable[[Job], Result], jobs: Iterable[Job], threads: int) -> Iterator[Result]:
    """``map``, with ``threads`` threads at work on the next jobs, so that a GPU does not wait for files."""
    if not threads:
        yield from map(function, jobs)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@lru_cache(maxsize=1)
def _codec(name: str, weights: str | None, device: str, codebooks: int) -> Codec:
    return load_codec(name, weights, device, codebooks)


def forget_codec() -> None:
    """Has a codec loaded anew, where the weights of one name may have changed."""
    _codec.cache_clear()


@cache
def _annotator(name: str, options: tuple[tuple[str, str], ...], device: str) -> Annotator:
    return load_annotator(name, dict(options), device)
