"""The weights of a Hugging Face folder, tensor by tensor."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from megatron_music.conversion.llama import EMBEDDING, HEAD
from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.weight_folder import COPY_AGAIN, INDEX, PICKLED_INDEX, WeightFolder
from megatron_music.weights import load_pickled

_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""By safetensors' names, in its own order."""


class _File(Protocol):
    """One file of weights."""

    names: Collection[str]

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype | str]:
        """Shape and type of a tensor; where the type is none of ``_TYPES``, what it is called."""
        ...

    def read(self, name: str) -> torch.Tensor: ...


class _Safetensors:
    def __init__(self, path: Path, stack: ExitStack):
        try:
            self._file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InputError(path, f"is not a whole file of weights ({error})", "copy it again") from None
        self.names = frozenset(self._file.keys())

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype | str]:
        described = self._file.get_slice(name)
        return tuple(described.get_shape()), _TYPES.get(described.get_dtype(), described.get_dtype())

    def read(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _Pickled:
    def __init__(self, path: Path):
        content = load_pickled(path, COPY_AGAIN)
        if not isinstance(content, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
            raise InputError(path, "holds other things than tensors by name", "have the tensors saved alone")
        self._tensors: dict[str, torch.Tensor] = {str(name): tensor.detach() for name, tensor in content.items()}
        self.names = self._tensors.keys()

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype | str]:
        tensor = self._tensors[name]
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        known = plain and tensor.dtype in _TYPES.values()
        return tuple(tensor.shape), tensor.dtype if known else f"{tensor.layout} {tensor.dtype} ({tensor.device})"

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].contiguous()


class WeightFiles:
    """The tensors of a folder's files of weights by name, each read when it is asked for.

    Args:
        folder: see ``WeightFolder.find``.

    Attributes:
        found: the files.
        is_tied: whether the embedding serves as head, see ``tie``.
        notes: what a reader of the folder may not expect, a line each.

    Raises InputError, when it is opened, where a file is missing or damaged, or an index does not fit its files.
    """

    def __init__(self, folder: Path):
        self.found = WeightFolder.find(folder)
        self.folder, self.notes = self.found.folder, list(self.found.notes)
        self.is_tied = False
        self._stack = ExitStack()
        try:
            self._files = {name: self._opened(self.folder / name) for name in self.found.names}
            self._places = self._placed()
        except InputError:
            self._stack.close()
            raise

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def _opened(self, path: Path) -> _File:
        return _Pickled(path) if path.suffix == ".bin" else _Safetensors(path, self._stack)

    def _placed(self) -> dict[str, str]:
        """The file of each tensor: what the files hold, where two hold it that which the index says."""
        named = self.found.places or {}
        for tensor, name in named.items():
            if tensor not in self._files[name].names:
                what = f"{name} has no {tensor}, which the index puts there"
                raise InputError(self.folder, what, "copy the folder again, or delete the index")
        held = [(tensor, name) for name, file in self._files.items() for tensor in sorted(file.names)]
        twice = [tensor for tensor, count in Counter(tensor for tensor, _ in held).items() if count > 1]
        unsettled = next((tensor for tensor in twice if tensor not in named), None)
        if unsettled is not None:
            places = " and ".join(name for tensor, name in held if tensor == unsettled)
            raise InputError(self.folder, f"{unsettled} lies in {places}", "keep the files of one network alone")
        more = [tensor for tensor, _ in held if tensor not in named]
        if named and more:
            self.notes.append(f"{self.folder}: {len(more)} tensors that the index lacks are read too, {more[0]} first")
        return dict(held) | named

    def tie(self) -> None:
        """Gives the embedding under the head's name as well, of which the folder has none."""
        self.is_tied = HEAD not in self

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of a tensor."""
        file, real = self._file(name)
        shape, dtype = file.describe(real)
        if isinstance(dtype, str):
            raise InputError(self.folder, f"{name} is of type {dtype}", "import weights that are not quantised")
        return shape, dtype

    def read(self, name: str) -> torch.Tensor:
        """A tensor."""
        file, real = self._file(name)
        return file.read(real)

    def _file(self, name: str) -> tuple[_File, str]:
        real = EMBEDDING if self.is_tied and name == HEAD else name
        if real not in self._places:
            first = min(self._places, default="nothing")
            raise InputError(self.folder, f"has no weight {name} (but {first}, ...)", COPY_AGAIN)
        return self._files[self._places[real]], real

    def link_into(self, folder: Path) -> None:
        """Puts links to the files, and an index of them, into ``folder``, so that transformers finds them there."""
        for name in self.found.names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((self.folder / name).resolve())
        index = PICKLED_INDEX if self.found.names[0].endswith(".bin") else INDEX
        write_json(folder / index, {"metadata": {}, "weight_map": self._places})


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write; ``load`` gives its numbers in their order, in any shape, when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        """Of its numbers in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weight_file(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Writes a safetensors file, one tensor in memory at a time.

    The file is, byte for byte, what ``safetensors.torch.save_file`` writes, which needs all of its tensors at once.
    """
    codes = {dtype: code for code, dtype in _TYPES.items()}
    ranks = {dtype: rank for rank, dtype in enumerate(_TYPES.values())}
    # The widest type first, so that every tensor is aligned.
    tensors = sorted(tensors, key=lambda tensor: (-ranks[tensor.dtype], tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": codes[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for tensor in tensors:
            file.write(tensor.load().contiguous().view(torch.uint8).numpy().data)
