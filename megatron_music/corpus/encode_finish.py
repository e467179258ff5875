"""What makes a folder of whole shards an encoding: the rejects and, last, the manifest of the songs in the shards."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from megatron_music.corpus.encode_plan import EMBEDDED, MANIFEST, WORK, Plan, Shard, changed
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.songs.manifest import write_manifest
from megatron_music.songs.rejects import (
    REJECTS,
    all_rejected,
    refuse_too_many,
    rejects_by_rule,
    where_to_read,
    write_rejects,
)
from megatron_music.songs.song import TRACKS, Reject, Segment, Song, rebase_reference

MANIFEST_FRAMES_PER_SECOND = 50.0
"""Frame rate that ``codec_frame_start`` and ``codec_frame_end`` of a manifest of audio count in, as YuE's data does."""


def check_tasks(plan: Plan, logs: Path, tasks: int) -> None:
    """Raises InputError, with what the first of them said, where not all tasks came to their end.

    A task says that it did in ``logs/completions``, once it has looked at all of its shards in this very run.
    """
    unfinished = [task for task in range(tasks) if not (logs / "completions" / f"{task:05d}").is_file()]
    for task in unfinished:
        note = plan.logs / "errors" / f"{task:05d}.json"
        if note.is_file():
            raise InputError(*read_json(note))
    if unfinished:
        named = ", ".join(map(str, unfinished[:5])) + (", ..." if len(unfinished) > 5 else "")
        what = f"{len(unfinished)} of {tasks} tasks did not finish ({named})"
        raise InputError(plan.out, what, f"see {logs}; run again, finished shards are kept")


@dataclass(frozen=True)
class Encoded:
    """What an encoding has come to: songs with codes, those rejected by rule, and shards; earlier runs' included.

    ``codec`` is its name, and what is to be said of it.
    """

    out: str
    codec: str
    songs: int
    hours: float
    shards: int
    rejected: dict[str, int]

    def __str__(self) -> str:
        rejected = sum(self.rejected.values())
        lines = [
            f"songs        {self.songs:,} of {self.songs + rejected:,} are encoded",
            f"hours        {self.hours:,.2f}",
            f"shards       {self.shards:,}",
            f"codec        {self.codec}",
            *rejects_by_rule(self.rejected),
            *where_to_read(self.out, rejected),
            f"written      {Path(self.out) / MANIFEST}",
        ]
        return "\n".join(lines)

    def tell(self, most_rejected: float, say: Callable[[object], None]) -> None:
        """Says all of it; raises InputError where more than the share ``most_rejected`` of the songs were rejected."""
        say(self)
        rejected = sum(self.rejected.values())
        refuse_too_many(self.out, rejected, self.songs + rejected, most_rejected)


def finish(plan: Plan) -> Encoded:
    """Writes rejects and manifest of whole shards.

    Raises InputError where no song could be encoded.
    """
    _remove_surplus(plan)
    rejects = [Reject(*fields) for shard in plan.read_shards() for fields in read_json(shard.notes_path)["rejects"]]
    write_rejects(plan.out / REJECTS, rejects)
    songs = _encoded_songs(plan.read_shards(), plan.frames_per_second)
    first = next(songs, None)
    if first is None:
        why = all_rejected(rejects) or "there is no line in it"
        raise InputError(plan.manifest, f"has no song to encode: {why}", f"{plan.out / REJECTS} names each")
    seconds = _Seconds(chain([first], songs))
    write_manifest(plan.out / MANIFEST, seconds)
    by_rule = dict(Counter(reject.rule for reject in rejects))
    codec = plan.settings.codec
    if codec == EMBEDDED and plan.settings.weights is None:
        codec = f"{codec}, fitted to these songs: to try everything on, not to publish with"
    return Encoded(str(plan.out), codec, plan.songs - len(rejects), seconds.total / 3600, plan.shards, by_rule)


class _Seconds:
    """Songs, whose seconds it adds up as they pass."""

    def __init__(self, songs: Iterable[Song]):
        self._songs, self.total = songs, 0.0

    def __iter__(self) -> Iterator[Song]:
        for song in self._songs:
            self.total += song.duration_s
            yield song


class Finish(PipelineStep):
    """``finish`` as a step of its own, for a job that starts once all tasks have ended, whether well or not.

    ``outcome.json`` in the logs says what came of it: the fields of ``Encoded``, or the three parts of an InputError.
    More rejects than ``most_rejected`` allows are no such error, but end the job with one behind all of its work.
    """

    name, type = "manifest", "writer"

    def __init__(self, plan: Plan, logs: Path, tasks: int, most_rejected: float):
        super().__init__()
        self.plan, self.logs, self.tasks, self.most_rejected = plan, logs, tasks, most_rejected

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:
        try:
            with workplace(self.plan.out):
                check_tasks(self.plan, self.logs, self.tasks)
                encoded = finish(self.plan)
        except InputError as error:
            write_json(self.plan.logs / "outcome.json", [error.where, error.what, error.mend])
            raise
        write_json(self.plan.logs / "outcome.json", asdict(encoded))
        encoded.tell(self.most_rejected, print)


def _remove_surplus(plan: Plan) -> None:
    """Removes shards and notes that an earlier, longer manifest left; the manifest that names them goes first."""
    for path in chain(plan.out.glob("codes-*.parquet"), (plan.out / WORK).glob("*.json")):
        number = path.name.removeprefix("codes-").split(".")[0]
        if number.isdecimal() and int(number) >= plan.shards:
            (plan.out / MANIFEST).unlink(missing_ok=True)
            path.unlink()


def _encoded_songs(shards: Iterable[Shard], frames_per_second: float) -> Iterator[Song]:
    for shard in shards:
        found = read_json(shard.notes_path).get("found", {}) if shard.annotated else {}
        table = pq.read_table(shard.path, columns=["id", "track", "frames"]).to_pydict()
        frames: dict[str, dict[str, int]] = {}
        for song_id, name, length in zip(table["id"], table["track"], table["frames"], strict=True):
            frames.setdefault(song_id, {})[name] = length
        for song in shard.songs:
            if isinstance(song, Song) and song.id in frames:
                yield _encoded_song(changed(song, found.get(song.id, {})), frames[song.id], shard, frames_per_second)


def _encoded_song(song: Song, frames: dict[str, int], shard: Shard, frames_per_second: float) -> Song:
    """The song with its codes named, its paths and segments rewritten; its duration where the manifest had none."""
    scale = frames_per_second / MANIFEST_FRAMES_PER_SECOND
    return replace(
        song,
        codes={name: f"{shard.path.name}#{song.id}/{name}" for name in TRACKS if name in frames},
        audio={name: rebase_reference(path, song.folder, shard.out) for name, path in song.audio.items()},
        duration_s=song.duration_s or max(frames.values()) / frames_per_second,
        segments=[_rescaled(segment, scale) for segment in song.segments],
        folder=shard.out,
    )


def _rescaled(segment: Segment, scale: float) -> Segment:
    start, end = round(segment.start_frame * scale), round(segment.end_frame * scale)
    return replace(segment, start_frame=start, end_frame=max(end, start + 1))
