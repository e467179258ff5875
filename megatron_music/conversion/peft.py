"""Adapters out of a checkpoint: added to the weights below them, or as a folder that the `peft` package loads.

megatron-core's matrix for queries, keys and values, and its matrix for gate and up projection, have one adapter each.
The matrices that transformers has in their place share its A, and each takes its own rows of B: the same product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.llama import Weight, llama_weights
from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.progress import track
from megatron_music.recipe.recipe import Lora, Network

CONFIG = "adapter_config.json"
EMBEDDINGS = {"embed_tokens": "embedding.word_embeddings.weight", "lm_head": "output_layer.weight"}
"""Modules that ``full_embeddings`` trains whole, and the checkpoint's tensors."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of a checkpoint, in the type that an export asks for.

    Args:
        reader: of the checkpoint that holds them.
        dtype: "float32" takes the optimizer's master weights where it keeps some, anything else the weights.
    """

    reader: CheckpointReader
    lora: Lora
    dtype: str

    def parts(self, source: str, layer: int | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A (rank, inputs) and B (outputs, rank) beside row ``layer`` of the tensor ``source``; None without any.

        Raises InputError where they are not of the recipe's rank.
        """
        if self.name(source, "lora_A") not in self.reader:
            return None
        down, up = (
            self.reader.read(self.reader.best_source(self.name(source, part), self.dtype), layer)
            for part in ("lora_A", "lora_B")
        )
        if not len(down) == up.shape[1] == self.lora.rank:
            what = f"adapters of shapes {tuple(down.shape)} and {tuple(up.shape)}, where `rank` is {self.lora.rank}"
            raise InputError(self.reader.folder, what, "use the recipe.yaml that the checkpoint was written with")
        return down, up

    def whole(self, source: str) -> torch.Tensor | None:
        """The tensor ``source`` itself, where it was trained beside the adapters."""
        return self.reader.read(self.reader.best_source(source, self.dtype)) if source in self.reader else None

    @staticmethod
    def name(source: str, part: str) -> str:
        """The checkpoint's name of a part of the adapter of ``source``."""
        return f"{source.removesuffix('weight')}{part}"


class MergedReader:
    """Reads the network that adapters and the network below them make together, as ``CheckpointReader`` reads one.

    W + alpha / rank x B A is worked out in FP32, from W as it was rounded for the adapters' run.
    """

    def __init__(self, base: CheckpointReader, adapters: Adapters):
        self.folder, self._base, self._adapters = base.folder, base, adapters

    def best_source(self, name: str, dtype: str) -> str:
        """The name itself: master weights of the base were not what the adapters were trained on."""
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._base.shape(name)

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """The whole tensor, or row ``layer`` of it."""
        trained = self._adapters.whole(name)
        if trained is not None:
            return trained
        row, parts = self._base.read(name, layer), self._adapters.parts(name, layer)
        if parts is None:
            return row
        down, up = parts
        rounded = row.to(self._adapters.reader.dtype(Adapters.name(name, "lora_A")))
        return rounded.float().addmm_(up.float(), down.float(), alpha=self._adapters.lora.scale)


def write_peft(folder: Path, adapters: Adapters, network: Network, rows: int, base_name: str | None) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` into an existing folder.

    ``rows`` are those of embedding and head in the network below; ``base_name`` is where `peft` may find that, with
    None it is handed to it.
    """
    weights = list(llama_weights(network, rows))
    tensors, modules = {}, set()
    for weight in track(weights, "export: adapters"):
        module = weight.name.removesuffix(".weight")
        for part, tensor in _parts(weight, adapters):
            tensors[f"base_model.model.{module}.{part}"] = tensor.to(getattr(torch, adapters.dtype), copy=True)
            modules.add(module.rpartition(".")[2])
    if not modules:
        raise InputError(adapters.reader.folder, "holds no adapters", "use a checkpoint of a run with `lora`")
    whole = sorted(modules & EMBEDDINGS.keys())
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / CONFIG, _config(adapters.lora, sorted(modules - EMBEDDINGS.keys()), whole, base_name))


def _parts(weight: Weight, adapters: Adapters) -> Iterator[tuple[str, torch.Tensor]]:
    """What belongs to one of transformers' matrices: A and its rows of B, or the matrix itself, or nothing."""
    parts = adapters.parts(weight.source, weight.layer)
    if parts is not None:
        down, up = parts
        yield "lora_A.weight", down
        yield "lora_B.weight", weight.view(up).reshape(weight.shape[0], -1)
    elif weight.source in EMBEDDINGS.values():
        whole = adapters.whole(weight.source)
        if whole is not None:
            yield "weight", weight.view(whole)


def _config(lora: Lora, modules: list[str], whole: list[str], base_name: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "modules_to_save": whole or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
