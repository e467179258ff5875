"""Which files of a folder in Hugging Face's form hold a network's weights, by their names and the index alone.

The hub's cache keeps a model two folders further down, in ``models--OWNER--NAME/snapshots/COMMIT``.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.weights import require_content

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Safetensors in one file and, where there are several, which tensor lies in which of them."""
PICKLED_WHOLE, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The same in PyTorch's own form."""
COPY_AGAIN = "copy the folder again, with all its weights"
_NOT_THE_NETWORK = re.compile(r"(adapter_|consolidated|training_args|optimizer|scheduler|random_states|rng_state).*")
"""Files of the two suffixes that hold something else."""
_SNAPSHOTS = "snapshots"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.\w+")
_OTHER_FORMS = (
    ("consolidated*", "Meta's own form", "convert them with transformers' convert_llama_weights_to_hf.py"),
    ("adapter_model.*", "the form of peft, adapters without a network", "merge them with peft's merge_and_unload"),
    ("*.gguf", "the form of llama.cpp", "fetch the folder that it was made from"),
    ("*.h5", "the form of TensorFlow", "convert them to model.safetensors"),
    ("*.msgpack", "the form of Flax", "convert them to model.safetensors"),
    ("*.onnx", "the form of ONNX", "fetch the folder that it was made from"),
    ("*.pt *.pth *.ckpt", "a form without a fixed meaning", "convert them to model.safetensors"),
)


@dataclass(frozen=True)
class WeightFolder:
    """The files of weights that are read in a folder.

    Attributes:
        folder: where they lie: a snapshot, where a folder of the hub's cache was named.
        names: the files.
        places: the file of each tensor, as the index says; None without an index.
        is_standard: whether transformers finds the files too, by their names or the index.
        notes: what a reader of the folder may not expect, a line each.
    """

    folder: Path
    names: tuple[str, ...]
    places: dict[str, str] | None
    is_standard: bool
    notes: tuple[str, ...]

    @classmethod
    def find(cls, folder: str | Path) -> "WeightFolder":
        """The files that transformers takes: one of safetensors, those of its index, and then PyTorch's likewise.

        Files under other names, or several without an index, are read where there is nothing else.

        Raises InputError where there are none, one of those that an index or their numbers tell of is missing, the
        index is none, or there is more than one snapshot and none of them main.
        """
        place = snapshot(folder)
        names, places, is_standard = _standard(place)
        notes = [] if place == Path(folder) else [f"{folder}: its snapshot {place.name} is read"]
        if not is_standard:
            names = _others(place)
            _require_all_shards(place, names)
            notes.append(f"{place}: there is no index; read are {_listed(names)}")
        for name in names:
            require_content(place / name, COPY_AGAIN)
        left = [path.name for path in _files(place) if path.name not in names]
        if left:
            notes.append(f"{place}: not read beside {_listed(names)}: {_listed(left)}")
        return cls(place, tuple(names), places, is_standard, tuple(notes))

    def for_transformers(self) -> Path:
        """The folder; raises InputError where transformers would not find its files."""
        if not self.is_standard:
            is_one = len(self.names) == 1 and self.names[0].endswith(".safetensors")
            what = f"has weights under no name that transformers knows: {_listed(self.names)}"
            raise InputError(self.folder, what, f"rename it to {WHOLE}" if is_one else f"save them as {WHOLE}")
        return self.folder


def snapshot(folder: str | Path) -> Path:
    """``folder`` itself or, of a folder in the hub's cache, its snapshot: the one called main, or else the only one.

    Raises InputError where there are several, or none.
    """
    folder = Path(folder)
    cache = folder.parent if folder.name == _SNAPSHOTS else folder
    if (folder / "config.json").exists() or not (cache / _SNAPSHOTS).is_dir():
        return folder
    found = sorted(path for path in (cache / _SNAPSHOTS).iterdir() if path.is_dir())
    with suppress(OSError, UnicodeDecodeError):
        main = cache / _SNAPSHOTS / (cache / "refs" / "main").read_text(encoding="utf-8").strip()
        found = [main] if main in found else found
    if not found:
        raise InputError(folder, "is a folder of the hub's cache without a snapshot", "download the model again")
    if len(found) > 1:
        what = f"is a folder of the hub's cache with {len(found)} snapshots, none of them main"
        raise InputError(folder, what, f"name one of them, such as {found[0]}")
    return found[0]


def known_as(folder: str | Path) -> str:
    """What a model's folder is called: its own name or, of a snapshot in the hub's cache, the model's on the hub."""
    folder = Path(folder)
    cached = folder.parents[1].name if folder.parent.name == _SNAPSHOTS else ""
    return cached.removeprefix("models--").replace("--", "/") if cached.startswith("models--") else folder.name


def _standard(folder: Path) -> tuple[list[str], dict[str, str] | None, bool]:
    for whole, index in ((WHOLE, INDEX), (PICKLED_WHOLE, PICKLED_INDEX)):
        if (folder / whole).is_file():
            return [whole], None, True
        if (folder / index).is_file():
            places = _read_index(folder / index)
            return sorted(set(places.values())), places, True
    return [], None, False


def _read_index(path: Path) -> dict[str, str]:
    mend = "copy the folder again, or delete the index: the files are read without one"
    content = read_json(path)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(path, "does not say which tensor lies in which file (weight_map)", mend)
    for name in sorted(set(places.values())):
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise InputError(path, f"names {name}, which is not in the folder", mend)
        if not (path.parent / name).is_file():
            raise InputError(path, f"names {name}, which is not there", COPY_AGAIN)
    return places


def _files(folder: Path) -> Iterator[Path]:
    """Files that may hold a network's weights, safetensors first."""
    for suffix in (".safetensors", ".bin"):
        yield from (path for path in sorted(folder.glob(f"*{suffix}")) if not _NOT_THE_NETWORK.fullmatch(path.name))


def _others(folder: Path) -> list[str]:
    """Files under other names than transformers', of the better form that there is."""
    found = list(_files(folder))
    if found:
        return [path.name for path in found if path.suffix == found[0].suffix]
    for patterns, form, mend in _OTHER_FORMS:
        other = sorted(path for pattern in patterns.split() for path in folder.glob(pattern))
        if other:
            raise InputError(folder, f"has weights in {form} alone ({other[0].name})", mend)
    raise InputError(folder / WHOLE, f"no such file, nor {PICKLED_WHOLE} or any other with weights", COPY_AGAIN)


def _require_all_shards(folder: Path, names: list[str]) -> None:
    """Raises InputError where files that are numbered ``-00001-of-00003`` are not all there."""
    for shard in filter(None, map(_SHARD.fullmatch, names)):
        for number in range(1, int(shard["count"]) + 1):
            digits = len(shard["number"])
            name = f"{shard['stem']}-{number:0{digits}d}-of-{shard['count']}{PurePath(shard.string).suffix}"
            if name not in names:
                raise InputError(folder, f"has {shard.string} and no {name}", COPY_AGAIN)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)} files)"
