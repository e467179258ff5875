"""The weights of a Hugging Face folder, tensor by tensor."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_music.errors import InputError
from megatron_music.files import read_json

INDEX = "model.safetensors.index.json"
"""Which tensor lies in which file, where there are several."""
_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


class WeightFiles:
    """The tensors of a folder's safetensors files by name, each read when it is asked for.

    Raises InputError, when it is opened, where a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        try:
            self._open_all()
        except InputError:
            self._stack.close()
            raise

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open_all(self) -> None:
        folder = self.folder
        index = folder / INDEX
        self._files = read_json(index).get("weight_map", {}) if index.is_file() else {}
        names = sorted(set(self._files.values())) if index.is_file() else ["model.safetensors"]
        for name in names:
            try:
                self._open[name] = self._stack.enter_context(safe_open(folder / name, framework="pt"))
            except FileNotFoundError:
                raise InputError(folder / name, "no such file", "copy the folder again, with all its weights") from None
            except (SafetensorError, OSError) as error:
                what = f"is not a whole file of weights ({error})"
                raise InputError(folder / name, what, "copy it again") from None
        if not index.is_file():
            self._files = dict.fromkeys(self._open["model.safetensors"].keys(), "model.safetensors")
        tied = "lm_head.weight" not in self._files and "model.embed_tokens.weight" in self._files
        self._alias = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of a tensor; tied embeddings give their one matrix under both names."""
        file = self._file(name)
        described = file.get_slice(self._alias.get(name, name))
        if described.get_dtype() not in _TYPES:
            what = f"{name} is of type {described.get_dtype()}"
            raise InputError(self.folder, what, "import weights that are not quantised")
        return tuple(described.get_shape()), _TYPES[described.get_dtype()]

    def read(self, name: str) -> torch.Tensor:
        """A tensor."""
        return self._file(name).get_tensor(self._alias.get(name, name))

    def _file(self, name: str) -> Any:
        real = self._alias.get(name, name)
        file = self._open.get(self._files.get(real, ""))
        if file is None or real not in file.keys():
            raise InputError(self.folder, f"has no weight {name}", "copy the folder again, with all its weights")
        return file


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write; ``load`` gives its numbers in their order, in any shape, when its turn has come."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


def write_weight_file(path: Path, tensors: Sequence[NewTensor], dtype: torch.dtype) -> None:
    """Writes a safetensors file of one type, one tensor in memory at a time.

    The file is, byte for byte, what ``safetensors.torch.save_file`` writes, which needs all of its tensors at once.
    """
    code = next(name for name, of_name in _TYPES.items() if of_name == dtype)
    tensors = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + torch.Size(tensor.shape).numel() * dtype.itemsize
        header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [begin, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for tensor in tensors:
            file.write(tensor.load().contiguous().view(torch.uint8).numpy().data)
