"""What one process writes of a checkpoint: boxes of the whole tensors, in torch's distributed format.

Weights that several processes hold are dealt out among them. Of the optimizer's state each process writes what it
holds, a run of numbers of a flattened parameter, as the few boxes that make up such a run. So nothing is exchanged
between processes, and nothing is held twice; megatron-core's own writer gathers the whole state on every process of a
data-parallel group first. The tensors, their names and shapes are the same.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedStateDict,
    ShardedTensor,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

_STATES = ("param", "exp_avg", "exp_avg_sq")
"""What the optimizer keeps of every number, as megatron-core names it."""


@dataclass(frozen=True)
class Piece:
    """A box of a whole tensor, or an object's bytes, with its place in the checkpoint."""

    item: WriteItem
    data: torch.Tensor | io.BytesIO


def network_pieces(state: ShardedStateDict) -> list[Piece]:
    """Weights and objects that this process writes, of what megatron-core's ``save_preprocess`` gives."""
    processes = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    own = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    written = [0] * processes
    pieces = []
    for item in nested_values(state):
        if isinstance(item, ShardedObject):
            if is_main_replica(item.replica_id):
                content = io.BytesIO()
                torch.save([item.data], content)
                pieces.append(Piece(WriteItem(MetadataIndex(item.unique_key), WriteItemType.BYTE_IO), content))
        elif is_main_replica(item.replica_id[:-1]):
            # Its copies differ in the last number alone, and all count alike.
            writer = written.index(min(written))
            written[writer] += item.data.numel()
            if writer == own:
                pieces.append(_piece(item, [0] * len(item.local_shape), list(item.local_shape), item.data))
    return pieces


def optimizer_pieces(optimizer: DistributedOptimizer, network: ShardedStateDict) -> list[Piece]:
    """The optimizer's state that this process holds; ``network`` is the networks' state, with its factories."""
    places = {id(place.data): place for place in nested_values(extract_sharded_tensors_and_factories(network)[0])}
    pieces = []
    for buffers in optimizer.gbuf_ranges:
        for buckets in buffers.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    place = places[id(parameter)]
                    if is_main_replica(place.replica_id[:-1]):
                        states = optimizer._get_main_param_and_optimizer_states(parameter)
                        for name in _STATES:
                            pieces += _flat_pieces(place, name, states[name], ranges["param"].start)
    return pieces


def _flat_pieces(
    place: ShardedTensor | ShardedTensorFactory, name: str, flat: torch.Tensor, start: int
) -> Iterator[Piece]:
    """Boxes of ``flat``, the numbers from ``start`` on of a flattened parameter."""
    shape = torch.empty_like(place.data, dtype=flat.dtype, device="meta")
    named: dict[str, Any] = {"key": f"optimizer.state.{name}.{place.key}", "data": shape}
    if isinstance(place, ShardedTensorFactory):
        # A parameter that is stored as several tensors, such as gate and up projection: views of it, one after another.
        parts = list(nested_values(replace(place, **named).build()))
    else:
        parts = [replace(place, **named, dtype=flat.dtype)]
    for part in parts:
        assert part.data.is_contiguous(), f"{part.key} is no run of numbers of its parameter"
        first = part.data.storage_offset()
        begin, end = max(start, first), min(start + flat.numel(), first + part.data.numel())
        if begin < end:
            for offsets, sizes in boxes(part.local_shape, begin - first, end - first):
                numel = math.prod(sizes)
                yield _piece(part, offsets, sizes, flat.detach()[begin - start :][:numel].view(sizes))
                begin += numel


def boxes(shape: tuple[int, ...], start: int, end: int) -> Iterator[tuple[list[int], list[int]]]:
    """Offsets and sizes of the boxes that make up the numbers [start, end) of a flattened tensor, in their order.

    Of a matrix these are at most three: the rest of a row, whole rows, and the beginning of one.
    """
    if len(shape) == 1:
        yield [start], [end - start]
        return
    row = math.prod(shape[1:])
    while start < end:
        index, column = divmod(start, row)
        rows = (end - start) // row
        if column or not rows:
            stop = min(end, (index + 1) * row)
            for offsets, sizes in boxes(shape[1:], column, stop - index * row):
                yield [index, *offsets], [1, *sizes]
            start = stop
        else:
            yield [index, *(0 for _ in shape[1:])], [rows, *shape[1:]]
            start += rows * row


def _piece(place: ShardedTensor, offsets: list[int], sizes: list[int], data: torch.Tensor) -> Piece:
    """A box of the local part of a whole tensor; before its own axes stand those along which layers are stacked."""
    stacked = place.prepend_axis_num
    own = (before + within for before, within in zip(place.global_offset[stacked:], offsets, strict=True))
    start = torch.Size((*place.global_offset[:stacked], *own))
    whole = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets=start, sizes=torch.Size((*[1] * stacked, *sizes))),
        properties=TensorProperties(dtype=data.dtype),
        size=torch.Size(place.global_shape),
    )
    data = data.detach().view((*[1] * stacked, *sizes))
    return Piece(WriteItem(MetadataIndex(place.key, start), WriteItemType.SHARD, tensor_data=whole), data)
