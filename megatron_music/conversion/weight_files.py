"""The weights of a Hugging Face folder, tensor by tensor."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_music.errors import InputError
from megatron_music.files import read_json

_INDEX = "model.safetensors.index.json"
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
        index = folder / _INDEX
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
