"""From a Hugging Face Llama folder to a checkpoint that `train --from` goes on from, on any layout.

The published YuE models come in this way. Weights are read and written one at a time, in the type that they have; the
checkpoint holds no optimizer state, and stands at step 0 of no phase. Beside the weights it carries the vocabulary, the
text tokenizer and what else the folder has of an export.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, write_json
from megatron_music.recipe.recipe import Network
from megatron_music.training.run_folder import NETWORK, CheckpointState, write_state
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import Weight

CARRIED = ("documents.json", "generation_config.json")
_INDEX = "model.safetensors.index.json"


def import_llama(
    folder: str | Path, out: str | Path, vocabulary: str | Path | None = None, tokenizer: str | Path | None = None
) -> Network:
    """Writes the Llama network in ``folder`` as a checkpoint; ``out`` appears whole. Returns the network.

    Args:
        vocabulary, tokenizer: the vocabulary file and the SentencePiece model, for folders that lack
            ``vocabulary.yaml`` and ``tokenizer.model``. A network with fewer rows than the vocabulary's
            ``padded_size`` gets rows of zeros for the ids behind them.

    Raises:
        InputError: the folder is no Llama network of this kind, its files are damaged, or the vocabulary does not fit.
    """
    from megatron_music.conversion.checkpoint import write_checkpoint

    folder, out = Path(folder), Path(out)
    refuse_foreign_folder(out, "state.json")
    config = read_json(folder / "config.json")
    network = network_of(config, folder / "config.json")
    vocabulary = Path(vocabulary or folder / "vocabulary.yaml")
    words = Vocabulary.load(vocabulary)
    tokenizer = Path(tokenizer or folder / "tokenizer.model")
    TextTokenizer(tokenizer, words)
    with ExitStack() as stack, atomic_path(out) as checkpoint:
        tensors = _Tensors(folder, stack)
        rows = list(_rows(network, words, tensors))
        checkpoint.mkdir()
        write_checkpoint(checkpoint, rows)
        shutil.copyfile(vocabulary, checkpoint / "vocabulary.yaml")
        shutil.copyfile(tokenizer, checkpoint / "tokenizer.model")
        for name in CARRIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, checkpoint / name)
        if (folder / "codec").is_dir():
            shutil.copytree(folder / "codec", checkpoint / "codec")
        write_json(checkpoint / NETWORK, {"network": network.model_dump(), "imported_from": str(folder.resolve())})
        write_state(checkpoint, CheckpointState(0, 0, "import", True))
    return network


def network_of(config: dict[str, Any], where: Path) -> Network:
    """The network that a Llama ``config.json`` describes, of transformers 4 or 5.

    Raises InputError for what this project's network does not have: biases, other activations, scaled RoPE, heads of
    another size.
    """
    if not isinstance(config, dict) or config.get("model_type") != "llama":
        found = config.get("model_type") if isinstance(config, dict) else config
        raise InputError(where, f"model_type is {found!r}", "name the folder of a Llama network")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads = config.get("num_attention_heads")
    try:
        network = Network(
            hidden_size=config["hidden_size"],
            layers=config["num_hidden_layers"],
            attention_heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            ffn_hidden_size=config["intermediate_size"],
            position_limit=config["max_position_embeddings"],
            rope_base=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            norm_epsilon=config["rms_norm_eps"],
            init_std=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise InputError(where, f"has no {error.args[0]}", "name the folder of a Llama network") from None
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "network"
        raise InputError(where, f"{field}: {fault['msg']}", "name the folder of a Llama network") from None
    strange = {
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default",
        "head_dim": (config.get("head_dim") or network.head_size) != network.head_size,
    }
    for field, is_strange in strange.items():
        if is_strange:
            what = f"{field} is {config.get(field, rope.get(field))!r}, which this network does not have"
            raise InputError(where, what, "import a Llama network without it")
    return network


class _Tensors:
    """The tensors of a folder's safetensors files by name, each read when it is asked for."""

    def __init__(self, folder: Path, stack: ExitStack):
        from safetensors import SafetensorError, safe_open

        self._folder = folder
        index = folder / _INDEX
        self._files = read_json(index).get("weight_map", {}) if index.is_file() else {}
        names = sorted(set(self._files.values())) if index.is_file() else ["model.safetensors"]
        self._open: dict[str, Any] = {}
        for name in names:
            try:
                self._open[name] = stack.enter_context(safe_open(folder / name, framework="pt"))
            except FileNotFoundError:
                raise InputError(folder / name, "no such file", "copy the folder again, with all its weights") from None
            except (SafetensorError, OSError) as error:
                what = f"is not a whole file of weights ({error})"
                raise InputError(folder / name, what, "copy it again") from None
        if not index.is_file():
            self._files = dict.fromkeys(self._open["model.safetensors"].keys(), "model.safetensors")
        tied = "lm_head.weight" not in self._files and "model.embed_tokens.weight" in self._files
        self._alias = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}

    def describe(self, name: str) -> tuple[tuple[int, ...], "torch.dtype"]:
        """Shape and type of a tensor; tied embeddings give their one matrix under both names."""
        import torch

        file = self._file(name)
        described = file.get_slice(self._alias.get(name, name))
        types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
        if described.get_dtype() not in types:
            what = f"{name} is of type {described.get_dtype()}"
            raise InputError(self._folder, what, "import weights that are not quantised")
        return tuple(described.get_shape()), types[described.get_dtype()]

    def read(self, name: str) -> "torch.Tensor":
        """A tensor."""
        return self._file(name).get_tensor(self._alias.get(name, name))

    def _file(self, name: str) -> Any:
        real = self._alias.get(name, name)
        file = self._open.get(self._files.get(real, ""))
        if file is None or real not in file.keys():
            raise InputError(self._folder, f"has no weight {name}", "copy the folder again, with all its weights")
        return file


def _rows(network: Network, vocabulary: Vocabulary, tensors: _Tensors) -> Iterator["Row"]:
    """What the checkpoint consists of, checked against the folder before anything is read."""
    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import llama_weights

    weights = list(llama_weights(network, vocabulary.padded_size))
    for (source, layer), members in groupby(weights, key=lambda weight: (weight.source, weight.layer)):
        parts = list(members)
        types = {_checked(part, tensors, vocabulary) for part in parts}
        if len(types) > 1:
            raise InputError(tensors._folder, f"{parts[0].name} and its kin are of several types", "convert them")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        yield Row(source, layer, network.layers, shape, types.pop(), _Joined(parts, shape, tensors))


def _checked(weight: "Weight", tensors: _Tensors, vocabulary: Vocabulary) -> "torch.dtype":
    shape, dtype = tensors.describe(weight.name)
    whole = shape == weight.shape
    padded = weight.layer is None and shape[1:] == weight.shape[1:] and vocabulary.size <= shape[0] < weight.shape[0]
    if not whole and not padded:
        what = f"{weight.name} has shape {shape}, where config.json and the vocabulary need {weight.shape}"
        raise InputError(tensors._folder, what, "name the vocabulary file of this network")
    return dtype


class _Joined:
    """Puts the weights that share a row of the checkpoint into their places in it."""

    def __init__(self, parts: list["Weight"], shape: tuple[int, ...], tensors: _Tensors):
        self._parts, self._shape, self._tensors = parts, shape, tensors

    def __call__(self) -> "torch.Tensor":
        """The row, rows of ids that the network does not have filled with zeros."""
        import torch

        first = self._tensors.read(self._parts[0].name)
        if first.shape == self._shape:
            return first
        row = torch.zeros(self._shape, dtype=first.dtype)
        for part in self._parts:
            tensor = self._tensors.read(part.name)
            place = part.view(row)
            if len(self._parts) == 1:
                place[: len(tensor)] = tensor
            else:
                place.copy_(tensor.reshape(place.shape))
        return row
