"""What ``build`` reads: a YAML file that names the vocabulary, the tokenizer, and the sources with their tasks.

.. code-block:: yaml

    vocabulary: ../tokenizers/yue.yaml     # paths are relative to this file
    tokenizer: tokenizer.model
    codec: xcodec                          # default: the vocabulary's default codec
    held_out: ["test-*", "song-0417"]      # patterns of song ids that no training source may use
    held_out_share: 0.01                   # and this share of all songs, chosen by a hash of their ids
    near_duplicates: {similarity: 0.1}     # of songs whose codes are nearly the same one is kept (corpus/duplicates.py)
    opt_out: opt_out.txt                   # ids and patterns of songs that must not get in (corpus/opt_out.py)
    seed: 0
    sources:
      cot:
        manifest: songs/manifest.jsonl
        task: lyrics_to_song
        filters: {min_duration_s: 30, languages: [en, zh]}  # songs/filters.py has them all
      held_out_cot: {manifest: songs/manifest.jsonl, task: lyrics_to_song, split: held_out}

A song is held out or trained on by its id alone: so in all manifests alike, and whatever songs are added. A training
song that is near a held-out one is left out, and any song that is near one that has opted out.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_music import __version__
from megatron_music.corpus import fingerprint
from megatron_music.corpus.duplicates import NearDuplicateOptions
from megatron_music.corpus.opt_out import OptOut, opted_out
from megatron_music.documents.tasks import find_task, task_options
from megatron_music.errors import InputError
from megatron_music.files import read_yaml
from megatron_music.recipe.fields import RelativePath, Strict
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.filters import SongFilters
from megatron_music.songs.ids import names
from megatron_music.songs.manifest import place_of, read_manifest
from megatron_music.songs.song import Reject, Rejected, Song
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

_FORMAT = 2
"""Raised whenever the same inputs give other documents than before, so that finished sources are built again."""
_CODEC_FOLDER = "codec"


class _SpecFile(Strict):
    vocabulary: RelativePath
    tokenizer: RelativePath
    codec: str | None = None
    held_out: list[str] = []
    held_out_share: float = Field(default=0.0, ge=0, lt=1)
    near_duplicates: NearDuplicateOptions | None = None
    opt_out: RelativePath | None = None
    seed: int = Field(default=0, ge=0)
    sources: dict[str, dict[str, Any]] = Field(min_length=1)


class _SourceFile(Strict):
    manifest: RelativePath
    task: str
    split: Literal["train", "held_out"] = "train"
    filters: SongFilters = SongFilters()


@dataclass(frozen=True)
class HeldOut:
    """Which songs no training source may use: those with ids like ``patterns``, and a ``share`` of the others."""

    patterns: tuple[str, ...]
    share: float
    seed: int

    def split(self, song_id: str) -> str:
        """``held_out`` or ``train``, by the id alone; a line without an id counts as ``train``."""
        if any(names(pattern, song_id) for pattern in self.patterns):
            return "held_out"
        if not (self.share and song_id):
            return "train"
        digest = hashlib.sha256(repr(("held out", self.seed, song_id)).encode("utf-8", "backslashreplace")).digest()
        return "held_out" if int.from_bytes(digest[:8]) < self.share * 2**64 else "train"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a song is left out as a near-duplicate: for which song, and how similar they are."""

    rule: Literal["near_duplicate", "near_held_out", "near_opted_out"]
    kept_id: str
    similarity: float

    def reject(self, song: Song, manifest: Path) -> Reject:
        """What is written down of the song."""
        noun = {"near_held_out": "the held-out song", "near_opted_out": "the song that opted out"}.get(
            self.rule, "song"
        )
        detail = f"shares {self.similarity:.0%} of its n-grams of codes with {noun} {self.kept_id}"
        return Rejected(self.rule, detail, self.kept_id).reject(song.id, manifest)


@dataclass(frozen=True)
class Survey:
    """What one pass over a manifest tells: the songs of each split, and fingerprints of the manifest and its codes.

    ``opted_out`` is a fingerprint of those of its songs that the opt-out list names.
    """

    songs: dict[str, int]
    content: str
    files: str
    opted_out: str
    patterns_used: frozenset[str]


@dataclass(frozen=True)
class SourceSpec:
    """One source of a build, validated; ``options`` is the task's own options model."""

    name: str
    manifest: Path
    task: str
    split: str
    filters: SongFilters
    options: Any


@dataclass(frozen=True)
class BuildSpec:
    """A whole build, validated.

    ``codec_folder`` is the fitted codec beside the manifests, where they have one. ``left_out`` has the near-duplicates
    of each manifest by their ids; ``corpus/curation.py`` finds them.
    """

    path: Path
    vocabulary_path: Path
    tokenizer_path: Path
    vocabulary: Vocabulary
    codec: str
    codec_folder: Path | None
    held_out: HeldOut
    near_duplicates: NearDuplicateOptions | None
    opt_out: OptOut
    seed: int
    sources: tuple[SourceSpec, ...]
    surveys: dict[Path, Survey]
    left_out: Mapping[Path, Mapping[str, LeftOut]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "BuildSpec":
        """Reads a spec and surveys its manifests; raises InputError for whatever is wrong with it."""
        path = Path(path)
        file: _SpecFile = parse_strict(_SpecFile, read_yaml(path), path)
        vocabulary = Vocabulary.load(file.vocabulary)
        TextTokenizer(file.tokenizer, vocabulary)
        codec = vocabulary.codec(file.codec).name
        sources = tuple(_source(path, name, fields) for name, fields in file.sources.items())
        folder = _codec_folder(path, sources)
        held_out = HeldOut(tuple(file.held_out), file.held_out_share, file.seed)
        manifests = dict.fromkeys(source.manifest for source in sources)
        opt_out = OptOut.read(file.opt_out) if file.opt_out else OptOut()
        for manifest in manifests:
            place_of(manifest).tell(manifest)
        surveys = {manifest: _survey(manifest, held_out, opt_out) for manifest in manifests}
        for pattern in file.held_out:
            if not any(pattern in survey.patterns_used for survey in surveys.values()):
                raise InputError(f"{path}: held_out", f"no song has an id like {pattern!r}", "mend the pattern")
        return cls(
            path=path,
            vocabulary_path=file.vocabulary,
            tokenizer_path=file.tokenizer,
            vocabulary=vocabulary,
            codec=codec,
            codec_folder=folder,
            held_out=held_out,
            near_duplicates=file.near_duplicates,
            opt_out=opt_out,
            seed=file.seed,
            sources=sources,
            surveys=surveys,
        )

    def identity(self) -> dict[str, Any]:
        """What all sources of a corpus share, as their sidecars tell it."""
        return {
            "vocabulary": {
                "name": self.vocabulary.name,
                "fingerprint": fingerprint.of_value(dataclasses.asdict(self.vocabulary)),
            },
            "tokenizer": {"fingerprint": fingerprint.of_file(self.tokenizer_path)},
            "codec": {
                "name": self.codec,
                "fingerprint": fingerprint.of_folder(self.codec_folder) if self.codec_folder else None,
            },
        }

    def about(self, source: SourceSpec) -> dict[str, Any]:
        """The sidecar of a source, but for what is counted while it is built.

        ``fingerprint`` is of all that decides the documents, ``files`` of the sizes and times of the files of codes.
        """
        about = {
            **self.identity(),
            "task": source.task,
            "options": source.options.model_dump(mode="json"),
            "filters": source.filters.model_dump(mode="json", exclude_defaults=True),
            "split": source.split,
            "held_out": list(self.held_out.patterns),
            "held_out_share": self.held_out.share,
            "near_duplicates": None,
            "seed": self.seed,
        }
        if self.near_duplicates:
            left_out = sorted((id, *astuple(why)) for id, why in self.left_out[source.manifest].items())
            options = self.near_duplicates.model_dump(mode="json")
            about["near_duplicates"] = options | {"left_out": fingerprint.of_value(left_out)}
        survey = self.surveys[source.manifest]
        about["opted_out"] = survey.opted_out
        inputs = [about, source.name, survey.content, _FORMAT, __version__]
        return {**about, "fingerprint": fingerprint.of_value(inputs), "files": survey.files}

    def songs(self, source: SourceSpec) -> Iterator[Song | Reject]:
        """The songs of a source's split, and the lines that are none, in the manifest's order.

        A song that has opted out, or is left out as a near-duplicate, comes as its reject.
        """
        left_out = self.left_out.get(source.manifest, {})
        for song in read_manifest(source.manifest):
            if self.held_out.split(song.id) != source.split:
                continue
            if isinstance(song, Song) and (line := self.opt_out.line_for(song.id)):
                yield opted_out(song.id, line, source.manifest)
                continue
            why = left_out.get(song.id) if isinstance(song, Song) else None
            yield why.reject(song, source.manifest) if why else song


def _source(path: Path, name: str, fields: dict[str, Any]) -> SourceSpec:
    where = f"{path}: sources.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(where, "can't name files", "use letters, digits, '_', '-' and '.' only")
    own = {key: value for key, value in fields.items() if key in _SourceFile.model_fields}
    # The path is only there for its folder, to which the fields' own paths are relative.
    source: _SourceFile = parse_strict(_SourceFile, own, where)
    task = find_task(source.task, f"{where}.task")
    rest = {key: value for key, value in fields.items() if key not in own}
    options = task_options(task, rest, where)
    return SourceSpec(name, source.manifest, source.task, source.split, source.filters, options)


def _survey(manifest: Path, held_out: HeldOut, opt_out: OptOut) -> Survey:
    songs = {"train": 0, "held_out": 0}
    used: set[str] = set()
    files, opted = hashlib.sha256(), hashlib.sha256()
    stat = lru_cache(maxsize=4096)(fingerprint.of_stat)
    for song in read_manifest(manifest):
        used.update(pattern for pattern in held_out.patterns if names(pattern, song.id))
        songs[held_out.split(song.id)] += 1
        if isinstance(song, Song):
            paths = [song.codes_path(track)[0] for track in song.codes]
            files.update(repr([stat(path) for path in paths]).encode())
            if opt_out.line_for(song.id):
                opted.update(f"{song.id}\n".encode())
    digests = [digest.hexdigest()[:16] for digest in (files, opted)]
    return Survey(songs, fingerprint.of_file(manifest), *digests, frozenset(used))


def _codec_folder(path: Path, sources: tuple[SourceSpec, ...]) -> Path | None:
    """The ``codec`` folder beside the manifests; codes of differently fitted codecs can't stand in one corpus."""
    first: tuple[Path, str] | None = None
    for source in sources:
        folder = source.manifest.parent / _CODEC_FOLDER
        if not folder.is_dir():
            continue
        found = fingerprint.of_folder(folder)
        if first is None:
            first = folder, found
        elif found != first[1]:
            what = f"{folder} is another codec than {first[0]}, whose codes mean other sounds"
            raise InputError(f"{path}: sources.{source.name}", what, "encode all songs with one codec")
    return first[0] if first else None
