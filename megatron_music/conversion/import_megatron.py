"""From a distributed checkpoint of Megatron-LM, or of another program on megatron-core, to one of this project.

Such a checkpoint holds the same tensors under the same names; what it lacks is a word about the network that this
project can trust (Megatron-LM pickles its arguments). The recipe says it, and every shape is held against it.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.conversion.imported import Words, with_padding, write_imported
from megatron_music.errors import InputError
from megatron_music.files import read_text
from megatron_music.progress import console
from megatron_music.recipe.recipe import Network, Recipe
from megatron_music.training.run_folder import STATE, Imported
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from megatron_music.conversion.checkpoint import CheckpointReader, Row

_LATEST = "latest_checkpointed_iteration.txt"
_LAYERS = "decoder.layers."


def is_megatron(folder: str | Path) -> bool:
    """Whether a folder is a distributed checkpoint, or Megatron-LM's folder of several."""
    return (Path(folder) / ".metadata").is_file() or (Path(folder) / _LATEST).is_file()


def import_megatron(
    folder: str | Path,
    out: str | Path,
    recipe: str | Path,
    vocabulary: str | Path | None = None,
    tokenizer: str | Path | None = None,
    say: Callable[[str], None] = console.print,
) -> Network:
    """Writes the weights of a distributed checkpoint as an imported checkpoint; ``out`` appears whole.

    Args:
        folder: ``iter_0001000``, or the folder above it for its latest checkpoint.
        recipe: whose network the weights are of.
        vocabulary, tokenizer: the vocabulary file (the recipe's where none is named) and the SentencePiece model.
            Padding of another length than the vocabulary's is cut, or filled with zeros.
        say: is told where it is cut.

    Raises:
        InputError: the folder is no whole checkpoint, or network and vocabulary do not fit it.
    """
    from megatron_music.conversion.checkpoint import CheckpointReader

    refuse_foreign_folder(out, STATE)
    folder = _latest(Path(folder))
    content = Recipe.load(recipe)
    words = Words.open(folder, vocabulary or content.vocabulary, tokenizer)
    reader, most = CheckpointReader(folder), words.vocabulary.padded_size
    rows = list(network_rows(reader, content.network, words.vocabulary))
    of_ids = reader.shape("embedding.word_embeddings.weight")[0]
    if of_ids > most:
        say(f"{folder}: of {of_ids:,} rows of embedding and head the last {of_ids - most:,}, of padding, are left")
    imported = Imported(content.network, str(folder.resolve()), min(of_ids, most))
    write_imported(out, imported, words, folder, rows)
    return content.network


def _latest(folder: Path) -> Path:
    if not (folder / _LATEST).is_file():
        return folder
    iteration = read_text(folder / _LATEST).strip()
    name = iteration if iteration == "release" else f"iter_{int(iteration):07d}" if iteration.isdigit() else ""
    if not name or not (folder / name).is_dir():
        raise InputError(folder / _LATEST, f"names {iteration!r}, which is not there", "name the checkpoint itself")
    return folder / name


def network_rows(reader: "CheckpointReader", network: Network, vocabulary: Vocabulary) -> Iterator["Row"]:
    """What the new checkpoint consists of, checked against the old one before anything is read."""
    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import llama_weights

    weights = llama_weights(network, vocabulary.padded_size)
    for (source, layer), members in groupby(weights, key=lambda weight: (weight.source, weight.layer)):
        parts = list(members)
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        name, row = _stored(reader, source, layer)
        found = reader.shape(name)[1:] if row is not None else reader.shape(name)
        padded = layer is None and found[1:] == shape[1:] and found[0] >= vocabulary.size
        if found != shape and not padded:
            what = f"{name} has shape {found}, where the recipe and the vocabulary need {shape}"
            raise InputError(reader.folder, what, "name the recipe of this network")
        if row is not None and reader.shape(name)[0] != network.layers:
            what = f"has {reader.shape(name)[0]} layers, where the recipe has {network.layers}"
            raise InputError(reader.folder, what, "name the recipe of this network")
        yield Row(source, layer, network.layers, shape, reader.dtype(name), _Stored(reader, name, row, shape))


def _stored(reader: "CheckpointReader", source: str, layer: int | None) -> tuple[str, int | None]:
    """Name and row of a tensor: layers that are not all alike are kept under names of their own."""
    own = source.replace(_LAYERS, f"{_LAYERS}{layer}.", 1)
    return (own, None) if layer is not None and source not in reader and own in reader else (source, layer)


class _Stored:
    """Reads one tensor when its turn has come."""

    def __init__(self, reader: "CheckpointReader", name: str, row: int | None, shape: tuple[int, ...]):
        self._reader, self._name, self._row, self._shape = reader, name, row, shape

    def __call__(self) -> "torch.Tensor":
        """The tensor, with the vocabulary's padding."""
        return with_padding(self._reader.read(self._name, self._row), self._shape)
