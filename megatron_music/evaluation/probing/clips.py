"""The labelled clips of probes: a CSV with a line of headings, or JSON lines.

    path,split,genre,key,tags,valence,arousal
    clips/1.wav,train,rock,C# minor,guitar|loud,0.2,-0.4

``path`` is an audio file, or codes: an ``.npy`` file or ``shard.parquet#ID/TRACK``; relative to the file. ``split`` is
train, valid or test. Every other column is a task: ``key``, ``tags`` (in JSON lines a list), ``valence`` and
``arousal`` together are ``emotion``, and ``genre`` or ``class.NAME`` are classes. A clip without a label is not part of
that task.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_music.errors import InputError
from megatron_music.files import parse_json, read_text

SPLITS = ("train", "valid", "test")
EMOTION = ("valence", "arousal")
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
KEYS = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS]
TaskKind = Literal["classes", "key", "tags", "emotion"]


@dataclass(frozen=True)
class Clip:
    """A clip's ``path`` as it is written, its split, and its labels by column, no empty ones."""

    path: str
    split: str
    labels: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is to be told from a clip.

    Attributes:
        clips: numbers of the clips that have a label.
        labels: names of the classes, keys or tags, or the columns of an emotion.
        targets: int64 (N,) of classes and keys, float32 (N, labels) otherwise: 0 or 1 of tags, numbers of emotions.
        split: (N,) of SPLITS.
    """

    name: str
    kind: TaskKind
    clips: np.ndarray
    labels: list[str]
    targets: np.ndarray
    split: np.ndarray

    def only(self, kept: np.ndarray) -> "Task":
        """The task with those of its clips that are among ``kept``."""
        part = np.isin(self.clips, kept)
        return Task(self.name, self.kind, self.clips[part], self.labels, self.targets[part], self.split[part])

    def check_splits(self, where: object) -> None:
        """Raises InputError where a split has no clips."""
        for split in SPLITS:
            if not (self.split == split).any():
                what = f"no clip of the split {split} has a label that can be used"
                raise InputError(f"{where}: {self.name}", what, f"mark some clips as {split}")


def read_clips(path: str | Path) -> list[Clip]:
    """Reads a CSV or JSON lines (``.jsonl``); raises InputError with the line that is wrong."""
    path = Path(path)
    clips = []
    for number, fields in _lines(path):
        where = f"{path}: line {number}"
        if not isinstance(fields.get("path"), str) or not fields["path"]:
            raise InputError(where, "has no path", "name the clip's audio or codes in the field path")
        if fields.get("split") not in SPLITS:
            raise InputError(where, f"split is {fields.get('split')!r}", f"write {', '.join(SPLITS)}")
        labels = {name: value for name, value in fields.items() if name not in ("path", "split")}
        for name in labels:
            if _kind(name) is None:
                mend = "name it class.NAME if it is a class, or take it out"
                raise InputError(f"{where}: {name}", "is no task that is known", mend)
        clips.append(
            Clip(fields["path"], fields["split"], {k: v for k, v in labels.items() if v not in (None, "", [])})
        )
    if not clips:
        raise InputError(path, "holds no clips", "write a line for each clip")
    return clips


def tasks_of(clips: list[Clip], where: object) -> list[Task]:
    """The tasks of all columns.

    Raises InputError for a label that can't be read, a task that lacks a split or classes, and a class or tag that the
    training split lacks.
    """
    columns = dict.fromkeys(name for clip in clips for name in clip.labels)
    tasks = []
    for name in dict.fromkeys("emotion" if column in EMOTION else column for column in columns):
        wanted = EMOTION if name == "emotion" else (name,)
        numbers = [at for at, clip in enumerate(clips) if all(column in clip.labels for column in wanted)]
        values = [[clips[at].labels[column] for column in wanted] for at in numbers]
        split = np.array([clips[at].split for at in numbers])
        labels, targets = _targets(name, values, [clips[at].path for at in numbers], split, where)
        task = Task(name.removeprefix("class."), _kind(wanted[0]), np.array(numbers, int), labels, targets, split)
        task.check_splits(where)
        if task.name in [one.name for one in tasks]:
            raise InputError(f"{where}: {name}", f"is a second task {task.name!r}", "name its column otherwise")
        tasks.append(task)
    if not tasks:
        raise InputError(where, "has no labels", "add a column such as genre, key, tags, or valence and arousal")
    return tasks


def _kind(column: str) -> TaskKind | None:
    if column in EMOTION:
        return "emotion"
    if column in ("key", "tags"):
        return column
    return "classes" if column == "genre" or column.startswith("class.") and column != "class." else None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Fields of each line with its number."""
    text = read_text(path)
    if path.suffix == ".jsonl":
        # Not splitlines: JSON may hold other signs that end a line, U+2028 among them, as they are.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                fields = parse_json(line, path, number)
                if not isinstance(fields, dict):
                    raise InputError(f"{path}: line {number}", "is not an object of fields", "write {...}")
                yield number, fields
        return
    reader = csv.DictReader(io.StringIO(text))
    for fields in reader:
        if None in fields or None in fields.values():
            what = "has more or fewer fields than the headings"
            raise InputError(f"{path}: line {reader.line_num}", what, "quote what holds a comma")
        yield reader.line_num, {name: value.strip() for name, value in fields.items()}


def _targets(
    name: str, values: list[list[Any]], paths: list[str], split: np.ndarray, where: object
) -> tuple[list[str], np.ndarray]:
    """Names of the labels, and the targets, see ``Task``."""
    if name == "emotion":
        return list(EMOTION), np.array(
            [[_number(value, f"{where}: {path}") for value in pair] for pair, path in zip(values, paths, strict=True)],
            np.float32,
        ).reshape(-1, 2)
    if name == "key":
        read = [_key(value, f"{where}: {path}") for (value,), path in zip(values, paths, strict=True)]
        return KEYS, np.array(read, np.int64)
    if name == "tags":
        sets = [_tags(value, f"{where}: {path}") for (value,), path in zip(values, paths, strict=True)]
    else:
        sets = [{str(value)} for (value,) in values]
    known = set().union(*(tags for tags, of in zip(sets, split, strict=True) if of == "train"))
    for tags, of in zip(sets, split, strict=True):
        if tags - known and known:
            what = f"{sorted(tags - known)[0]!r} stands in the split {of} and not in train"
            raise InputError(f"{where}: {name}", what, "add clips of it to train, or take it out")
    labels = sorted(known)
    if name != "tags" and known and len(labels) < 2:
        raise InputError(f"{where}: {name}", f"all clips are {labels[0]!r}", "add clips of another class")
    if name == "tags":
        return labels, np.array([[label in tags for label in labels] for tags in sets], np.float32)
    return labels, np.array([labels.index(*tags) if known else 0 for tags in sets], np.int64)


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(where, f"{value!r} is not a number", "write valence and arousal as numbers")
    return number


def _key(value: Any, where: str) -> int:
    """Number among KEYS; enharmonic names are one key."""
    from megatron_music.evaluation.probing.metrics import mir_eval_key

    semitones = mir_eval_key().KEY_TO_SEMITONE
    tonic, _, mode = str(value).strip().partition(" ")
    if semitones.get(tonic.lower()) is None or mode.strip().lower() not in ("major", "minor"):
        raise InputError(where, f"{value!r} is not a key", "write a tonic and a mode, such as C# minor or Eb major")
    return semitones[tonic.lower()] + 12 * (mode.strip().lower() == "minor")


def _tags(value: Any, where: str) -> set[str]:
    tags = value.split("|") if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InputError(where, f"{value!r} are not tags", "write tag|tag, or a list in JSON lines")
    return {tag.strip() for tag in tags if tag.strip()}
