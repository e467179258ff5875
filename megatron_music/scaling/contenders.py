"""The codecs of a bake-off: those that can be loaded, and those whose codes and audio come from elsewhere.

.. code-block:: yaml

    songs: songs/manifest.jsonl          # with audio; paths are relative to this file
    tracks: [mix, vocals]
    seconds: 30                          # of every song, from its beginning; whole songs by default
    sample_rate: 16000                   # that all are compared at; by default the lowest of any codec
    recogniser: {weights: faster-whisper-large-v3}
    codecs:
      small: {codec: embedded, weights: codes/codec, run: runs/small}
      X-Codec: {codec: xcodec, weights: xcodec.pth}
      HiFi-Codec:                        # not loaded here: a manifest of its codes and of what it decodes them to
        {codec: hificodec, codes: hificodec/manifest.jsonl, codebooks: 4, codebook_size: 1024, frames_per_second: 50,
         sample_rate: 24000}
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.files import read_audio
from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.files import read_yaml
from megatron_music.recipe.fields import RelativePath, Strict
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.codes import load_codes
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.vocabulary import CodecRange

Track = Literal["mix", "vocals", "accompaniment"]
_IMPORTED = ("codebook_size", "frames_per_second", "sample_rate")


class CodecEntry(Strict):
    """A codec as the file names it.

    Attributes:
        codec: its name, as ``audio.codec`` or, of codes from elsewhere, the codes' files and the thresholds know it.
        weights: of a codec that is loaded: a folder, a file or a hub name.
        codes: of any other: a manifest whose songs have the same ids, with its codes and the audio decoded from them.
        codebooks: of a loaded codec the first so many of them, by default as ``encode`` has it; otherwise those that
            the codes have.
        tokens: class of its tokens, where the thresholds do not name the codec.
        run: folder of a run that was trained on its codes.
    """

    codec: str = Field(min_length=1)
    weights: str | None = None
    codes: RelativePath | None = None
    codebooks: int | None = Field(None, gt=0)
    codebook_size: int | None = Field(None, gt=1)
    frames_per_second: float | None = Field(None, gt=0)
    sample_rate: int | None = Field(None, gt=0)
    tokens: Literal["semantic", "acoustic"] | None = Field(None, alias="class")
    run: RelativePath | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.weights is None) == (self.codes is None):
            raise ValueError("name the codec's `weights`, or a manifest of its `codes` and audio, and not both")
        given = [name for name in _IMPORTED if getattr(self, name) is not None]
        if self.codes is None and given:
            raise ValueError(f"{given[0]} is the loaded codec's own; take it out")
        lacking = [name for name in ("codebooks", *_IMPORTED) if getattr(self, name) is None]
        if self.codes is not None and lacking:
            raise ValueError(f"codes from elsewhere need {lacking[0]}; add it")
        return self


class RecogniserEntry(Strict):
    """A speech recogniser: weights as ``evaluation.songs.lyrics_error`` takes them, and the language that it is told.

    By default that of each song.
    """

    weights: str = Field(min_length=1)
    language: str | None = None


class BakeOffFile(Strict):
    """What the file holds; see this module's own words."""

    songs: RelativePath
    tracks: list[Track] | None = Field(None, min_length=1)
    seconds: float | None = Field(None, gt=0)
    sample_rate: int | None = Field(None, gt=0)
    recogniser: RecogniserEntry | None = None
    codecs: dict[str, CodecEntry] = Field(min_length=1)


@dataclass(frozen=True)
class Contender:
    """A codec of the bake-off, ready.

    Attributes:
        range: its codes as a vocabulary describes them.
        loaded: the codec, and ``weights`` a fingerprint of them (of a hub name, the name); None where ``imported``,
            songs by id, has its codes and audio.
    """

    name: str
    entry: CodecEntry
    range: CodecRange
    frames_per_second: float
    sample_rate: int
    weights: str | None = None
    loaded: Codec | None = None
    imported: dict[str, Song] | None = None

    def song_identity(self, song: Song, track: str) -> Any:
        """What tells this codec's codes and audio of a track from any other's."""
        if self.imported is None:
            return self.weights
        own = self.imported[song.id]
        return [fingerprint.of_stat(own.codes_path(track)[0]), own.codes[track],
                fingerprint.of_stat(own.audio_path(track)), self.range.codebook_size]  # fmt: skip

    def rebuild(self, song: Song, track: str, seconds: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Codes (K, T) of a track and the audio decoded from them, float32 (S,) at the codec's rate."""
        if self.loaded is not None:
            samples = read_audio(song.audio_path(track), self.sample_rate)
            codes_KT = self.loaded.encode(samples[: whole(seconds, self.sample_rate)])
            return codes_KT, self.loaded.decode(codes_KT)
        own = self.imported[song.id]
        try:
            codes_KT = load_codes(own, track, self.range)
        except Rejected as rejected:
            raise InputError(self.entry.codes, f"{song.id}: {rejected}", "mend the codes") from None
        if len(codes_KT) != self.range.codebooks:
            what = f"{song.id}: the {track} has {len(codes_KT)} codebooks, not {self.range.codebooks}"
            raise InputError(self.entry.codes, what, "mend the codes, or `codebooks`")
        samples = read_audio(own.audio_path(track), self.sample_rate)
        return codes_KT[:, : whole(seconds, self.frames_per_second)], samples[: whole(seconds, self.sample_rate)]


def whole(seconds: float | None, rate: float) -> int | None:
    """So many samples or frames; None for all."""
    return None if seconds is None else round(seconds * rate)


@dataclass(frozen=True)
class BakeOff:
    """A file, read and checked: every song's audio is there, and every codec can be had."""

    path: Path
    file: BakeOffFile
    songs: list[Song]
    tracks: list[str]
    sample_rate: int
    contenders: list[Contender]

    @classmethod
    def read(cls, path: str | Path, device: str = "cpu") -> "BakeOff":
        """Raises InputError for whatever is wrong with the file, its songs and its codecs."""
        path = Path(path)
        file: BakeOffFile = parse_strict(BakeOffFile, read_yaml(path), path)
        songs = _songs(file.songs)
        tracks = file.tracks or [track for track in ("mix", "vocals") if any(track in song.audio for song in songs)]
        if not tracks:
            raise InputError(file.songs, "names no audio of a mix or of vocals", "add `audio` or `vocals_audio`")
        _check_audio(file.songs, songs, tracks)
        contenders = [_contender(path, name, entry, songs, tracks, device) for name, entry in file.codecs.items()]
        sample_rate = file.sample_rate or min(one.sample_rate for one in contenders)
        return cls(path, file, songs, tracks, sample_rate, contenders)


def _songs(manifest: Path) -> list[Song]:
    songs = []
    for song in read_manifest(manifest):
        if not isinstance(song, Song):
            raise InputError(song.where, song.detail, "mend the line or take it out")
        songs.append(song)
    if not songs:
        raise InputError(manifest, "holds no songs", "name a manifest with songs")
    return songs


def _check_audio(manifest: Path, songs: list[Song], tracks: list[str]) -> None:
    """Every song has a file of every track, so that all codecs and tracks are measured on the same songs."""
    for song in songs:
        for track in tracks:
            try:
                path = song.audio_path(track)
            except Rejected as rejected:
                mend = "add it, take the song out, or name other `tracks`"
                raise InputError(f"{manifest}: {song.id}", rejected.detail, mend) from None
            if not path.is_file():
                raise InputError(f"{manifest}: {song.id}", f"there is no {track} audio {path}", "mend the path")


def _contender(
    path: Path, name: str, entry: CodecEntry, songs: list[Song], tracks: list[str], device: str
) -> Contender:
    where = f"{path}: codecs.{name}"
    if entry.codes is not None:
        imported = {song.id: song for song in _songs(entry.codes)}
        missing = next((song.id for song in songs if song.id not in imported), None)
        if missing is not None:
            raise InputError(f"{where}.codes", f"{entry.codes} lacks the song {missing}", "add its codes and audio")
        _check_audio(entry.codes, [imported[song.id] for song in songs], tracks)
        for song in songs:
            for track in tracks:
                if track not in imported[song.id].codes:
                    raise InputError(f"{entry.codes}: {song.id}", f"names no {track} codes", "add them")
        codes = CodecRange(entry.codec, "", 0, entry.codebooks, entry.codebook_size)
        return Contender(name, entry, codes, entry.frames_per_second, entry.sample_rate, imported=imported)
    beside = path.resolve().parent / Path(entry.weights).expanduser()
    weights = str(beside) if beside.exists() else entry.weights
    try:
        codec = load_codec(entry.codec, weights, device, entry.codebooks)
    except InputError as error:
        raise InputError(f"{where}: {error.where}", error.what, error.mend) from None
    if beside.exists():
        weights = fingerprint.of_folder(beside) if beside.is_dir() else fingerprint.of_file(beside)
    codes = CodecRange(codec.name, "", 0, codec.codebooks, codec.codebook_size)
    return Contender(name, entry, codes, codec.frames_per_second, codec.sample_rate, weights, codec)
