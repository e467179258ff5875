"""What ``build`` reads: a YAML file that names the vocabulary, the tokenizer, and the sources with their tasks.

.. code-block:: yaml

    vocabulary: ../tokenizers/yue.yaml     # paths are relative to this file
    tokenizer: tokenizer.model
    codec: xcodec                          # default: the vocabulary's default codec
    held_out: ["test-*", "song-0417"]      # patterns of song ids that no training source may use
    seed: 0
    sources:
      cot: {manifest: songs/manifest.jsonl, task: lyrics_to_song}
      held_out_cot: {manifest: songs/manifest.jsonl, task: lyrics_to_song, split: held_out}
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_music import __version__
from megatron_music.corpus import fingerprint
from megatron_music.documents.tasks import find_task, task_options
from megatron_music.errors import InputError
from megatron_music.files import read_yaml
from megatron_music.recipe.fields import RelativePath, Strict
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Reject, Song
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
    seed: int = Field(default=0, ge=0)
    sources: dict[str, dict[str, Any]] = Field(min_length=1)


class _SourceFile(Strict):
    manifest: RelativePath
    task: str
    split: Literal["train", "held_out"] = "train"


@dataclass(frozen=True)
class Survey:
    """What one pass over a manifest tells: the songs of each split, and fingerprints of the manifest and its codes."""

    songs: dict[str, int]
    content: str
    files: str
    patterns_used: frozenset[str]


@dataclass(frozen=True)
class SourceSpec:
    """One source of a build, validated; ``options`` is the task's own options model."""

    name: str
    manifest: Path
    task: str
    split: str
    options: Any


@dataclass(frozen=True)
class BuildSpec:
    """A whole build, validated; ``codec_folder`` is the fitted codec beside the manifests, where they have one."""

    path: Path
    vocabulary_path: Path
    tokenizer_path: Path
    vocabulary: Vocabulary
    codec: str
    codec_folder: Path | None
    held_out: tuple[str, ...]
    seed: int
    sources: tuple[SourceSpec, ...]
    surveys: dict[Path, Survey]

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
        manifests = {source.manifest for source in sources}
        surveys = {manifest: _survey(manifest, file.held_out) for manifest in sorted(manifests)}
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
            held_out=tuple(file.held_out),
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
            "split": source.split,
            "held_out": list(self.held_out),
            "seed": self.seed,
        }
        survey = self.surveys[source.manifest]
        inputs = [about, source.name, survey.content, _FORMAT, __version__]
        return {**about, "fingerprint": fingerprint.of_value(inputs), "files": survey.files}

    def songs(self, source: SourceSpec) -> Iterator[Song | Reject]:
        """The songs of a source's split, and the lines that are none, in the manifest's order."""
        return (song for song in read_manifest(source.manifest) if _split(song.id, self.held_out) == source.split)


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
    return SourceSpec(name, source.manifest, source.task, source.split, options)


def _survey(manifest: Path, held_out: Sequence[str]) -> Survey:
    songs = {"train": 0, "held_out": 0}
    used: set[str] = set()
    files = hashlib.sha256()
    stat = lru_cache(maxsize=4096)(fingerprint.of_stat)
    for song in read_manifest(manifest):
        used.update(pattern for pattern in held_out if fnmatchcase(song.id, pattern))
        songs[_split(song.id, held_out)] += 1
        if isinstance(song, Song):
            paths = [song.codes_path(track)[0] for track in song.codes]
            files.update(repr([stat(path) for path in paths]).encode())
    return Survey(songs, fingerprint.of_file(manifest), files.hexdigest()[:16], frozenset(used))


def _split(song_id: str, held_out: Sequence[str]) -> str:
    return "held_out" if any(fnmatchcase(song_id, pattern) for pattern in held_out) else "train"


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
