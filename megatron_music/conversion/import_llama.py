"""From a Hugging Face Llama folder to a checkpoint that `train --from` goes on from, on any layout.

The published YuE models come in this way. Weights are read and written one at a time, in the type that they have.
"""

import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.conversion.imported import Words, with_padding, write_imported
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.recipe.recipe import Network, parse_strict
from megatron_music.training.run_folder import STATE
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import Weight
    from megatron_music.conversion.weight_files import WeightFiles


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
    from megatron_music.conversion.weight_files import WeightFiles

    folder = Path(folder)
    refuse_foreign_folder(out, STATE)
    network = network_of(read_json(folder / "config.json"), folder / "config.json")
    words = Words.open(folder, vocabulary, tokenizer)
    with WeightFiles(folder) as tensors:
        write_imported(out, network, words, folder, list(_rows(network, words.vocabulary, tensors)))
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
        fields = {
            "hidden_size": config["hidden_size"],
            "layers": config["num_hidden_layers"],
            "attention_heads": heads,
            "key_value_heads": config.get("num_key_value_heads") or heads,
            "ffn_hidden_size": config["intermediate_size"],
            "position_limit": config["max_position_embeddings"],
            "rope_base": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            "norm_epsilon": config["rms_norm_eps"],
            "init_std": config.get("initializer_range", 0.02),
        }
    except KeyError as error:
        raise InputError(where, f"has no {error.args[0]}", "name the folder of a Llama network") from None
    network = parse_strict(Network, fields, where)
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


def _rows(network: Network, vocabulary: Vocabulary, tensors: "WeightFiles") -> Iterator["Row"]:
    """What the checkpoint consists of, checked against the folder before anything is read."""
    from megatron_music.conversion.checkpoint import Row
    from megatron_music.conversion.llama import llama_weights

    weights, scratch = list(llama_weights(network, vocabulary.padded_size)), _Scratch()
    for (source, layer), members in groupby(weights, key=lambda weight: (weight.source, weight.layer)):
        parts = list(members)
        types = {_checked(part, tensors, vocabulary) for part in parts}
        if len(types) > 1:
            raise InputError(tensors.folder, f"{parts[0].name} and its kin are of several types", "convert them")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        [dtype] = types
        load = _Joined(parts, shape, dtype, tensors, scratch)
        yield Row(source, layer, network.layers, shape, dtype, load)


def _checked(weight: "Weight", tensors: "WeightFiles", vocabulary: Vocabulary) -> "torch.dtype":
    shape, dtype = tensors.describe(weight.name)
    whole = shape == weight.shape
    padded = weight.layer is None and shape[1:] == weight.shape[1:] and vocabulary.size <= shape[0] < weight.shape[0]
    if not whole and not padded:
        what = f"{weight.name} has shape {shape}, where config.json and the vocabulary need {weight.shape}"
        raise InputError(tensors.folder, what, "name the vocabulary file of this network")
    return dtype


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
