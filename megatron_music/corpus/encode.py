"""From audio to codes: every track of every song of a manifest, in shards that are whole or absent.

``OUT`` receives ``codes-00000.parquet`` and on, ``manifest.jsonl`` (the songs that could be encoded, naming their codes
as ``codes-00000.parquet#ID/TRACK``), ``rejects.parquet``, ``encoding.json`` (what the codes are made with) and, of the
embedded codec, the fitted codec as ``OUT/codec``. The manifest comes last: where it is, all shards are whole. Started
again, after a kill or after songs have changed, only shards are encoded that are missing or whose audio is new.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.files import read_audio
from megatron_music.corpus import fingerprint
from megatron_music.corpus.parallel import Workers
from megatron_music.corpus.shuffle import seeded_bits, seeded_permutation
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.progress import track
from megatron_music.songs.codes import CodesRow, write_codes_shard
from megatron_music.songs.manifest import read_manifest, write_manifest, write_rejects
from megatron_music.songs.song import TRACKS, Reject, Rejected, Segment, Song, rebase_reference

MANIFEST_FRAMES_PER_SECOND = 50.0
"""Frame rate that ``codec_frame_start`` and ``codec_frame_end`` of a manifest of audio count in, as YuE's data does."""
FIT_SONGS, FIT_SECONDS, FIT_EXCERPT_SECONDS = 256, 1800.0, 5.0
"""The embedded codec is fitted on at most this many songs and, by equal excerpts, this much of their tracks; but an
excerpt has at least ``FIT_EXCERPT_SECONDS``."""
MANIFEST, REJECTS, CODEC, SETTINGS = "manifest.jsonl", "rejects.parquet", "codec", "encoding.json"
EMBEDDED = "embedded"
_WORK = ".encode"


@dataclass(frozen=True)
class _Settings:
    """What decides what a code means; kept in ``encoding.json`` so that one folder holds codes of one codec."""

    codec: str
    weights: str | None
    codebooks: int
    codebook_size: int
    seed: int


@dataclass(frozen=True)
class _Shard:
    """The songs of one shard, and what a worker needs to encode them."""

    number: int
    manifest: Path
    out: Path
    codec: str
    weights: str | None
    codebooks: int
    device: str
    songs: tuple[Song | Reject, ...]

    @property
    def path(self) -> Path:
        return self.out / f"codes-{self.number:05d}.parquet"

    @property
    def notes_path(self) -> Path:
        """Beside the shard, what it was made of and which songs were rejected; written before it."""
        return self.out / _WORK / f"{self.number:05d}.json"

    def inputs(self) -> str:
        """Fingerprint of the songs' ids and of the names, sizes and times of their audio files."""
        return fingerprint.of_value([_stamps(song) for song in self.songs])

    def is_whole(self) -> bool:
        """Whether the shard is there and its songs have not changed since."""
        there = self.path.is_file() and self.notes_path.is_file()
        return there and read_json(self.notes_path)["inputs"] == self.inputs()


def encode_manifest(
    manifest: str | Path,
    out: str | Path,
    codec_name: str = EMBEDDED,
    weights: str | Path | None = None,
    codebooks: int = 8,
    codebook_size: int = 1024,
    processes: int | None = None,
    device: str = "cpu",
    shard_songs: int = 64,
    seed: int = 0,
) -> dict[str, int]:
    """Encodes all tracks that a manifest has audio of; returns the numbers of songs, rejects and shards.

    The embedded codec without ``weights`` is fitted on a sample of the songs first (``codebook_size`` is only for that)
    and kept from then on. Vocals and accompaniment that differ in length stay as they are; segments are rescaled where
    the codec does not make 50 frames a second. On a GPU the default is one process.

    Raises InputError where the folder holds codes of another codec, and where no song can be encoded.
    """
    manifest = Path(manifest).resolve()
    lines = sum(1 for _ in read_manifest(manifest))
    settings = _Settings(codec_name, None if weights is None else str(weights), codebooks, codebook_size, seed)
    if processes is None and not device.startswith("cpu"):
        processes = 1
    with workplace(out) as out, Workers(processes) as workers:
        out = out.resolve()
        rate = _prepare_codec(manifest, out, settings, lines)
        (out / _WORK).mkdir(exist_ok=True)
        weights = str(out / CODEC) if codec_name == EMBEDDED else settings.weights
        empty = _Shard(0, manifest, out, codec_name, weights, codebooks, device, ())
        missing = _take_out_missing(out, _shards(empty, shard_songs))
        jobs = (shard for shard in _shards(empty, shard_songs) if shard.number in missing)
        _codec.cache_clear()  # an earlier call may have used the folder for another codec
        for _ in track(workers.map(_encode_shard, jobs), "encoding", total=len(missing)):
            pass
        rejects = _finish(empty, shard_songs, rate)
    return {"songs": lines - rejects, "rejected": rejects, "shards": -(-lines // shard_songs)}


def _stamps(song: Song | Reject) -> list | tuple:
    if isinstance(song, Reject):
        return astuple(song)
    return [song.id, *((name, song.audio[name], fingerprint.of_stat(song.audio_path(name))) for name in song.audio)]


def _prepare_codec(manifest: Path, out: Path, settings: _Settings, songs: int) -> float:
    """Makes sure that the folder is for these settings and the codec can be had; returns its frames a second.

    The settings are written once the codec is there, so that a folder without them holds nothing worth keeping.
    """
    if (out / SETTINGS).is_file():
        before = read_json(out / SETTINGS)
        for name, value in asdict(settings).items():
            if before.get(name) != value:
                what = f"holds codes of another codec: {name} is {before.get(name)}, not {value}"
                raise InputError(out, what, "remove the folder or name another")
        return before["frames_per_second"]
    if settings.codec == EMBEDDED and settings.weights is None:
        from megatron_music.audio.embedded import EmbeddedCodec

        excerpts = _fit_excerpts(manifest, songs, settings.seed, EmbeddedCodec.sample_rate)
        codec = EmbeddedCodec.fit(
            track(excerpts, "fitting a codec"), settings.codebooks, settings.codebook_size, settings.seed
        )
    else:
        codec = load_codec(settings.codec, settings.weights, "cpu", settings.codebooks)
    if settings.codec == EMBEDDED:
        codec.save(out / CODEC)
    write_json(out / SETTINGS, asdict(settings) | {"frames_per_second": codec.frames_per_second})
    return codec.frames_per_second


def _fit_excerpts(manifest: Path, songs: int, seed: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Excerpts of all tracks of a seeded choice of songs, float32 (samples,), as long as FIT_SECONDS allow."""
    chosen = set(seeded_permutation(songs, "codec songs", seed)[:FIT_SONGS].tolist())
    paths = [
        song.audio_path(name)
        for number, song in enumerate(read_manifest(manifest))
        if number in chosen and isinstance(song, Song)
        for name in song.audio
    ]
    most = int(sample_rate * max(FIT_SECONDS / max(len(paths), 1), FIT_EXCERPT_SECONDS))
    failure = "no song names any"
    found = False
    for number, path in enumerate(paths):
        try:
            samples = read_audio(path, sample_rate)
        except InputError as error:
            failure = str(error)  # encoding will reject the song
            continue
        found = True
        spare = max(len(samples) - most, 0)
        start = int(seeded_bits(1, "codec excerpt", seed, number)[0]) % (spare + 1)
        yield samples[start : start + most]
    if not found:
        raise InputError(manifest, f"has no audio to fit a codec on: {failure}", "mend the paths in the manifest")


def _shards(empty: _Shard, shard_songs: int) -> Iterator[_Shard]:
    """All shards with their songs, in the manifest's order."""
    lines = read_manifest(empty.manifest)
    for number in count():
        songs = tuple(islice(lines, shard_songs))
        if not songs:
            return
        yield replace(empty, number=number, songs=songs)


def _take_out_missing(out: Path, shards: Iterable[_Shard]) -> set[int]:
    """Numbers of the shards to encode; what is left of them goes, and the manifest, which would name them."""
    missing = {shard.number: shard.path for shard in shards if not shard.is_whole()}
    if missing:
        (out / MANIFEST).unlink(missing_ok=True)
    for path in missing.values():
        path.unlink(missing_ok=True)
    return set(missing)


def _encode_shard(shard: _Shard) -> None:
    """Encodes the songs of a shard; its notes are in place before it is."""
    codec = _codec(shard.codec, shard.weights, shard.device, shard.codebooks)
    inputs = shard.inputs()
    rejects: list[Reject] = []
    rows: list[CodesRow] = []
    for song in shard.songs:
        made = song if isinstance(song, Reject) else _encode_song(song, codec, shard.manifest)
        if isinstance(made, Reject):
            rejects.append(made)
        else:
            rows += made
    write_json(shard.notes_path, {"inputs": inputs, "rejects": [astuple(reject) for reject in rejects]})
    write_codes_shard(shard.path, rows)


@lru_cache(maxsize=1)
def _codec(name: str, weights: str | None, device: str, codebooks: int) -> Codec:
    return load_codec(name, weights, device, codebooks)


def _encode_song(song: Song, codec: Codec, manifest: Path) -> list[CodesRow] | Reject:
    """Codes of all tracks that a song has audio of, or the reason why one of them has none."""
    try:
        if not song.audio:
            raise Rejected("audio_missing", "the song names no audio")
        return [CodesRow(song.id, name, codec.name, _encode_track(song, name, codec)) for name in sorted(song.audio)]
    except Rejected as rejected:
        return Reject(song.id, rejected.rule, rejected.detail, str(manifest))


def _encode_track(song: Song, name: str, codec: Codec) -> np.ndarray:
    path = song.audio_path(name)
    try:
        samples = read_audio(path, codec.sample_rate)
    except InputError as error:
        raise Rejected("audio_unreadable" if path.is_file() else "audio_missing", str(error)) from None
    try:
        codes_KT = codec.encode(samples)
    except Exception as error:  # one file that a network can't take must not stop a run of a week
        raise Rejected("encoding_failed", f"{path}: {type(error).__name__}: {error}") from None
    if not codes_KT.shape[1]:
        raise Rejected("audio_short", f"{path} has {len(samples)} samples, too few for one frame")
    return codes_KT


def _finish(empty: _Shard, shard_songs: int, rate: float) -> int:
    """Writes the rejects of all shards and the manifest of the songs in them; returns the number of rejects."""
    rejects: list[Reject] = []
    shards = 0
    for shard in _shards(empty, shard_songs):
        rejects += [Reject(*fields) for fields in read_json(shard.notes_path)["rejects"]]
        shards += 1
    write_rejects(empty.out / REJECTS, rejects)
    for surplus in count(shards):
        shard = replace(empty, number=surplus)
        if not shard.path.is_file():
            break
        shard.path.unlink()
    songs = _encoded_songs(_shards(empty, shard_songs), rate)
    first = next(songs, None)
    if first is None:
        why = f"all {len(rejects)} songs were rejected, {rejects[0].detail}" if rejects else "there is no line in it"
        raise InputError(empty.manifest, f"has no song to encode: {why}", f"{empty.out / REJECTS} names each")
    write_manifest(empty.out / MANIFEST, chain([first], songs))
    return len(rejects)


def _encoded_songs(shards: Iterable[_Shard], rate: float) -> Iterator[Song]:
    for shard in shards:
        table = pq.read_table(shard.path, columns=["id", "track", "frames"]).to_pydict()
        frames: dict[str, dict[str, int]] = {}
        for song_id, name, length in zip(table["id"], table["track"], table["frames"], strict=True):
            frames.setdefault(song_id, {})[name] = length
        for song in shard.songs:
            if isinstance(song, Song) and song.id in frames:
                yield _encoded_song(song, frames[song.id], shard, rate)


def _encoded_song(song: Song, frames: dict[str, int], shard: _Shard, rate: float) -> Song:
    """The song with its codes named, its paths and segments rewritten; its duration where the manifest had none."""
    scale = rate / MANIFEST_FRAMES_PER_SECOND
    return replace(
        song,
        codes={name: f"{shard.path.name}#{song.id}/{name}" for name in TRACKS if name in frames},
        audio={name: rebase_reference(path, song.folder, shard.out) for name, path in song.audio.items()},
        duration_s=song.duration_s or max(frames.values()) / rate,
        segments=[_rescaled(segment, scale) for segment in song.segments],
        folder=shard.out,
    )


def _rescaled(segment: Segment, scale: float) -> Segment:
    start, end = round(segment.start_frame * scale), round(segment.end_frame * scale)
    return replace(segment, start_frame=start, end_frame=max(end, start + 1))
