"""Distributed checkpoints tensor by tensor, without megatron-core and without the network that they belong to.

megatron-core writes torch's distributed format: the shards of every tensor with their offsets in the whole, so that
any part can be put together again whatever the layout of the run. The layers' tensors of one name are the rows of one
tensor.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_music.engine.integrity import Mark
from megatron_music.engine.summed import SummedFiles, without_torchs_sums
from megatron_music.errors import InputError
from megatron_music.files import write_json

MASTER_PREFIX = "optimizer.state.param."
"""Before the name of a weight, that of the optimizer's FP32 master copy."""
_WRITERS = 2
"""Files written side by side: a copy into the system's cache takes a core."""


class CheckpointReader:
    """The tensors of a checkpoint folder.

    Raises InputError where the folder is no complete distributed checkpoint.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / ".metadata").is_file():
            raise InputError(
                folder, "is not a distributed checkpoint: no .metadata", "name one such as RUN/checkpoints/step_000100"
            )
        self._reader = FileSystemReader(self.folder)
        try:
            self._metadata = self._reader.read_metadata()
        except Exception as error:  # damaged bytes can make unpickling raise almost anything
            what = f"can't be read ({type(error).__name__}: {error})"
            raise InputError(self.folder / ".metadata", what, "copy the checkpoint again") from None
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def __contains__(self, name: str) -> bool:
        return isinstance(self._metadata.state_dict_metadata.get(name), TensorStorageMetadata)

    def best_source(self, name: str, dtype: str) -> str:
        """The tensor to take the weight ``name`` from: for "float32" the optimizer's master copy where there is one."""
        return MASTER_PREFIX + name if dtype == "float32" and MASTER_PREFIX + name in self else name

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor, layers included; raises InputError where there is none of this name."""
        return tuple(self._of(name).size)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor's numbers."""
        return self._of(name).properties.dtype

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """The whole tensor, or row ``layer`` of its first dimension; memory holds it and one shard of it."""
        described = self._of(name)
        sizes, offsets = list(described.size), [0] * len(described.size)
        if layer is not None:
            sizes[0], offsets[0] = 1, layer
        whole = torch.empty(sizes, dtype=described.properties.dtype)
        wanted = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        items = create_read_items_for_chunk_list(name, described, [wanted])
        if sum(item.lengths.numel() for item in items) != whole.numel():
            raise InputError(self.folder, f"lacks a part of {name}", "use a checkpoint that was written to its end")
        try:
            self._reader.read_data(LoadPlan(items), _IntoOne(whole)).wait()
        except (OSError, RuntimeError, EOFError) as error:
            raise InputError(self.folder, f"{name} can't be read ({error})", "copy the checkpoint again") from error
        return whole if layer is None else whole[0]

    def _of(self, name: str) -> TensorStorageMetadata:
        if name not in self:
            raise InputError(self.folder, f"has no tensor {name}", "use a checkpoint that `train` wrote")
        return self._metadata.state_dict_metadata[name]


class _IntoOne(DefaultLoadPlanner):
    """Puts every part that is read into its place in one tensor."""

    def __init__(self, whole: torch.Tensor):
        super().__init__()
        self.whole = whole

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """The place in the whole where the part belongs."""
        place = self.whole
        for dimension, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            place = place.narrow(dimension, offset, length)
        return place


@dataclass(frozen=True)
class Row:
    """A tensor to write, or one layer's row of the tensor that holds all layers.

    Attributes:
        name: megatron-core's name, which the layers share.
        layer, layers: which row of how many; None for a tensor outside the layers.
        shape: of the row.
        load: gives it, of ``dtype``; called once, when its turn has come, by one of several threads, which writes it
            before it calls for another.
    """

    name: str
    layer: int | None
    layers: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    def write_item(self) -> WriteItem:
        """The row as torch's format places it in the whole tensor."""
        within, size = torch.Size([0] * len(self.shape)), torch.Size(self.shape)
        offsets, sizes, whole = within, size, size
        if self.layer is not None:
            offsets, sizes, whole = (torch.Size((n, *rest)) for n, rest in
                                     ((self.layer, within), (1, size), (self.layers, size)))  # fmt: skip
        chunk = ChunkStorageMetadata(offsets=offsets, sizes=sizes)
        data = TensorWriteData(chunk=chunk, properties=TensorProperties(dtype=self.dtype), size=whole)
        return WriteItem(MetadataIndex(self.name, offsets), WriteItemType.SHARD, tensor_data=data)


def write_checkpoint(folder: Path, rows: Sequence[Row]) -> dict[str, Mark]:
    """Writes rows as a distributed checkpoint that megatron-core loads on any layout, into the existing ``folder``.

    Memory holds one row of each writer, and the last one of every name. Returns the marks of the files with the rows.
    Raises InputError where a row holds numbers that are not finite.
    """
    planner, writer = _OneByOne(rows), FileSystemWriter(folder)
    writer.fs = files = SummedFiles()
    writer.set_up_storage_writer(is_coordinator=True)
    shares = [SavePlan([row.write_item() for row in share]) for share in _shares(rows)]
    plans, metadata = create_default_global_save_plan(shares)
    plans = writer.prepare_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    with without_torchs_sums(), ThreadPoolExecutor(_WRITERS) as pool:
        results = list(pool.map(lambda plan: writer.write_data(plan, planner).wait(), plans))
    FileSystemWriter(folder).finish(metadata, results)
    torch.save({}, folder / "common.pt")
    versions = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    write_json(folder / "metadata.json", versions | {"common_backend": "torch", "common_backend_version": 1})
    return files.marks


def _shares(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The rows in runs of about the same bytes, a file each."""
    ends = list(accumulate(math.prod(row.shape) * row.dtype.itemsize for row in rows))
    cuts = [bisect.bisect_left(ends, ends[-1] * share / _WRITERS) for share in range(1, _WRITERS)]
    shares = [rows[first:last] for first, last in pairwise([0, *cuts, len(rows)])]
    return [share for share in shares if share]


class _OneByOne(DefaultSavePlanner):
    """Loads each row when it is written."""

    def __init__(self, rows: Sequence[Row]):
        super().__init__()
        self._rows = {row.write_item().index: row for row in rows}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """The row, in the shape in which it stands in the whole tensor."""
        row = self._rows[write_item.index]
        tensor = row.load()
        if not tensor.sum(dtype=torch.float64).isfinite():  # in no memory of its own, as isfinite() of all would take
            where = row.name if row.layer is None else f"layer {row.layer} of {row.name}"
            raise InputError(where, "holds numbers that are not finite", "get these weights again")
        return tensor if row.layer is None else tensor[None]
