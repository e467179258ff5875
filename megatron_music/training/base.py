"""The network below adapters: a checkpoint of adapters says which one it was trained on, and holds no copy of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run_folder import RunFolder, read_state

BASE = "base.json"
"""In a checkpoint of adapters: where the network below them lies, and its fingerprint."""
_BLOCKS, _BLOCK_BYTES = 256, 4096


@dataclass(frozen=True)
class Base:
    """A checkpoint of a whole network, and what tells it from another."""

    checkpoint: Path
    fingerprint: str

    @classmethod
    def of(cls, checkpoint: Path) -> "Base":
        """The base that lies in a checkpoint folder; raises InputError where it is none."""
        read_state(checkpoint)
        return cls(Path(checkpoint).resolve(), weights_fingerprint(checkpoint))

    def write(self, folder: Path) -> None:
        """Writes ``base.json`` into a checkpoint folder of adapters."""
        write_json(folder / BASE, {"checkpoint": str(self.checkpoint), "fingerprint": self.fingerprint})


def holds_adapters(checkpoint: Path) -> bool:
    """Whether a checkpoint holds adapters, and not a whole network."""
    return (Path(checkpoint) / BASE).is_file()


def base_of(adapters: Path, elsewhere: Path | None = None) -> Base:
    """The network below a checkpoint of adapters, as it was when they were trained.

    Args:
        elsewhere: where it may lie too.

    Raises:
        InputError: it lies at neither place, or was changed.
    """
    path = Path(adapters) / BASE
    content = read_json(path)
    try:
        recorded = Base(Path(content["checkpoint"]), content["fingerprint"])
    except (KeyError, TypeError):
        raise InputError(path, "does not name a network", "copy the checkpoint again") from None
    for place in (recorded.checkpoint, elsewhere):
        if place is not None and weights_fingerprint(place) == recorded.fingerprint:
            return Base(Path(place).resolve(), recorded.fingerprint)
    place = elsewhere or recorded.checkpoint
    what = f"{place} is not the network that these adapters were trained on" if Path(place).is_dir() else (
        f"the network that these adapters were trained on is gone: {place}")  # fmt: skip
    raise InputError(path, what, "put it back, or name the folder where it lies now (train --from, export --base)")


def base_below(recipe: Recipe, branch_from: Path | None) -> Base | None:
    """The network that a run trains adapters on; None for a run that trains a network itself.

    A run that goes on uses the one that it began with, wherever ``branch_from`` points.

    Raises:
        InputError: it is not named, gone, or changed; or ``branch_from`` holds other adapters than the recipe's.
    """
    from_adapters = branch_from is not None and holds_adapters(branch_from)
    if recipe.lora is None:
        if from_adapters:
            what = "holds adapters and no whole network, where the recipe has no `lora`"
            raise InputError(branch_from, what, "export it merged and import that, or give the recipe the same `lora`")
        return None
    newest = RunFolder(recipe.run).newest_checkpoint()
    if newest is not None:
        return base_of(newest[0], None if from_adapters else branch_from)
    if branch_from is None:
        what = f"{recipe.name} trains adapters, and no network is named for them"
        raise InputError("lora", what, "start it with `train RECIPE --from CHECKPOINT`")
    if not from_adapters:
        return Base.of(branch_from)
    lora = Recipe.load(branch_from / "recipe.yaml").lora
    if lora is None or lora.model_copy(update={"dropout": recipe.lora.dropout}) != recipe.lora:
        raise InputError(branch_from, "holds adapters of another `lora` than the recipe's", "make `lora` equal")
    return base_of(branch_from)


def weights_fingerprint(checkpoint: Path) -> str | None:
    """Name of a checkpoint's weights, by the sizes of its files and 256 blocks of 4 KiB of each; None without any.

    Every weight of another network differs, so that blocks tell as much as all bytes, at once for any size.
    """
    files = sorted(Path(checkpoint).glob("*.distcp"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as stream:
            for start in range(0, size, max(_BLOCK_BYTES, size // _BLOCKS)):
                stream.seek(start)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
