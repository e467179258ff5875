"""Reading a distributed checkpoint tensor by tensor, without megatron-core and without the network that wrote it.

megatron-core writes torch's distributed format: the shards of every tensor with their offsets in the whole, so that
any part can be put together again whatever the layout of the run. The layers' tensors of one name are the rows of one
tensor.
"""

from pathlib import Path

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_music.errors import InputError

MASTER_PREFIX = "optimizer.state.param."
"""Before the name of a weight, that of the optimizer's FP32 master copy."""


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
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def __contains__(self, name: str) -> bool:
        return isinstance(self._metadata.state_dict_metadata.get(name), TensorStorageMetadata)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor, layers included; raises InputError where there is none of this name."""
        return tuple(self._of(name).size)

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
