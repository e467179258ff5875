"""From a Hugging Face Llama folder to a checkpoint that `train --from` goes on from, on any layout.

The published YuE models come in this way. Weights are read and written one at a time, in the type that they have.
"""

import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.conversion.imported import Words, with_padding, write_imported
from megatron_music.conversion.read_config import CONFIG, network_of, read_config, ties_embeddings
from megatron_music.errors import InputError
from megatron_music.progress import console
from megatron_music.recipe.recipe import Network
from megatron_music.training.run_folder import STATE, Imported
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import Weight
    from megatron_music.conversion.weight_files import WeightFiles


def import_llama(
    folder: str | Path,
    out: str | Path,
    vocabulary: str | Path | None = None,
    tokenizer: str | Path | None = None,
    say: Callable[[str], None] = console.print,
) -> Network:
    """Writes the Llama network in ``folder`` as a checkpoint; ``out`` appears whole. Returns the network.

    Args:
        folder: with safetensors or PyTorch's own files, of which nothing is run; or a model's in the hub's cache.
        vocabulary, tokenizer: the vocabulary file and the SentencePiece model, for folders that lack
            ``vocabulary.yaml`` and ``tokenizer.model``. A network with fewer rows than the vocabulary's
            ``padded_size`` gets rows of zeros for the ids behind them, which an export leaves away again.
        say: is given what was left, or read in another way than it may seem, a line each.

    Raises:
        InputError: the folder is no Llama network of this kind, its files are damaged or contradict each other, or the
            vocabulary does not fit.
    """
    from megatron_music.conversion.weight_files import WeightFiles

    refuse_foreign_folder(out, STATE)
    # The weights first: what a folder in another form lacks besides tells nothing.
    with WeightFiles(Path(folder)) as tensors:
        source = tensors.folder
        config = read_config(source)
        network = network_of(config, source / CONFIG)
        words = Words.open(source, vocabulary, tokenizer)
        _settle_head(config, tensors)
        rows = _rows_of_ids(config, words.vocabulary, tensors)
        content = list(_content(network, words.vocabulary, rows, tensors))
        others = _others(network, rows, tensors)
        for note in _notes(config, rows, others, content, tensors):
            say(note)
        # Code that a folder brings along for its network does not come with it.
        config = {field: value for field, value in config.items() if field != "auto_map"}
        imported = Imported(network, str(source.resolve()), rows, config, tensors.is_tied)
        write_imported(out, imported, words, source, content)
    return network


def _settle_head(config: dict[str, Any], tensors: "WeightFiles") -> None:
    """Takes the embedding as head where ``config.json`` says so; raises InputError where the weights say otherwise."""
    import torch

    from megatron_music.conversion.llama import EMBEDDING, HEAD

    where, is_tied = tensors.folder / CONFIG, ties_embeddings(config)
    if HEAD not in tensors:
        if not is_tied:
            what = f"tie_word_embeddings is {config.get('tie_word_embeddings')}, and the weights have no {HEAD}"
            raise InputError(where, what, "copy the folder again; or write true, if the embedding is the head")
        tensors.tie()
    elif is_tied and not (
        tensors.describe(HEAD) == tensors.describe(EMBEDDING)
        and torch.equal(tensors.read(HEAD), tensors.read(EMBEDDING))
    ):
        what = f"tie_word_embeddings is true, and {HEAD} is another matrix than the embedding"
        raise InputError(where, what, "write false to have it as it is, or take it out of the weights")


def _rows_of_ids(config: dict[str, Any], vocabulary: Vocabulary, tensors: "WeightFiles") -> int:
    """Rows of embedding and head; raises InputError where they differ, and where the vocabulary has other ids."""
    from megatron_music.conversion.llama import EMBEDDING, HEAD

    (rows, *_), (in_head, *_) = ((*tensors.describe(name)[0], 0) for name in (EMBEDDING, HEAD))
    if in_head != rows:
        raise InputError(tensors.folder, f"{EMBEDDING} has {rows} rows, {HEAD} has {in_head}", "copy the folder again")
    if not vocabulary.size <= rows <= vocabulary.padded_size:
        what = (f"{EMBEDDING} has {rows} rows, where vocabulary {vocabulary.name} has {vocabulary.size} ids and room "
                f"for {vocabulary.padded_size}")  # fmt: skip
        raise InputError(tensors.folder, what, "name the vocabulary file of this network; room is its padded_size")
    return rows


def _content(network: Network, vocabulary: Vocabulary, rows: int, tensors: "WeightFiles") -> Iterator["Row"]:
    """What the checkpoint consists of, checked against the folder before anything is read."""
    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import EMBEDDING, HEAD, llama_weights

    weights, scratch, types = llama_weights(network, rows), _Scratch(), {}
    for (source, layer), members in groupby(weights, key=lambda weight: (weight.source, weight.layer)):
        parts = list(members)
        for part in parts:
            shape, dtype = tensors.describe(part.name)
            if shape != part.shape:
                what = f"{part.name} has shape {shape}, where config.json needs {part.shape}"
                raise InputError(tensors.folder, what, "copy the folder again, config.json and weights of one network")
            # The checkpoint keeps them in one matrix, and that of all layers in one tensor.
            if types.setdefault(source, dtype) != dtype:
                what = f"{part.name} is of type {dtype}, its kin of {types[source]}"
                raise InputError(tensors.folder, what, "convert them to one type")
        of_ids = parts[0].name in (EMBEDDING, HEAD)
        length = vocabulary.padded_size if of_ids else sum(part.shape[0] for part in parts)
        shape = (length, *parts[0].shape[1:])
        load = _Joined(parts, shape, types[source], tensors, scratch)
        yield Row(source, layer, network.layers, shape, types[source], load)


def _others(network: Network, rows: int, tensors: "WeightFiles") -> list[str]:
    """Weights that are no part of the network; raises InputError where they stand among its own."""
    from megatron_music.conversion.llama import llama_weights

    known = {weight.name for weight in llama_weights(network, rows)}
    # What older folders keep of RoPE follows from its base.
    others = sorted(name for name in tensors if name not in known and ".rotary_emb." not in name)
    within = [name for name in others if name.startswith(("model.", "lm_head."))]
    if within:
        what = f"has {len(within)} weights that config.json's network has not, {within[0]} first"
        raise InputError(tensors.folder, what, "copy the folder again, config.json and weights of one network")
    return others


def _notes(
    config: dict[str, Any], rows: int, others: list[str], content: list["Row"], tensors: "WeightFiles"
) -> Iterator[str]:
    """What a reader of the folder may not expect of the import."""
    folder = tensors.folder
    yield from tensors.notes
    if others:
        yield f"{folder}: {len(others)} weights are no part of the network and are left, {others[0]} first"
    if config.get("vocab_size", rows) != rows:
        yield f"{folder}: config.json says vocab_size {config['vocab_size']}, taken are the weights' {rows} rows"
    found = sorted({str(row.dtype).removeprefix("torch.") for row in content})
    declared = str(config.get("dtype") or config.get("torch_dtype") or found[0]).removeprefix("torch.")
    if [declared] != found:
        yield f"{folder}: config.json says {declared}, the weights are {', '.join(found)} and stay so"
    if "float16" in found:
        yield f"{folder}: weights are float16; training takes them as bfloat16 or float32, as its recipe says"


class _Joined:
    """Puts the weights that share a row of the checkpoint into their places in it."""

    def __init__(
        self,
        parts: list["Weight"],
        shape: tuple[int, ...],
        dtype: "torch.dtype",
        tensors: "WeightFiles",
        scratch: "_Scratch",
    ):
        self._parts, self._shape, self._dtype, self._tensors = parts, shape, dtype, tensors
        self._scratch = scratch

    def __call__(self) -> "torch.Tensor":
        """The row."""
        if len(self._parts) == 1:
            return with_padding(self._tensors.read(self._parts[0].name), self._shape)
        row = self._scratch.tensor(self._shape, self._dtype)
        for part in self._parts:
            place = part.view(row)
            place.copy_(self._tensors.read(part.name).reshape(place.shape))
        return row


class _Scratch(threading.local):
    """Memory for the rows of one writer, by their shape: fresh pages for each would take longer than the copy."""

    def __init__(self) -> None:
        self._tensors: dict[tuple, torch.Tensor] = {}

    def tensor(self, shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
        """A tensor with what was last written to it, good until the next call for such a one."""
        import torch

        if (shape, dtype) not in self._tensors:
            self._tensors[shape, dtype] = torch.empty(shape, dtype=dtype)
        return self._tensors[shape, dtype]
