"""Distributed checkpoints in the form that megatron-core writes: readable on any layout and by other Megatron tools."""

from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedStateDict
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch.distributed.checkpoint import FileSystemReader

# Optimizer state in the shape of the parameters, so that any layout can read it.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(folder: Path, chunks: list[torch.nn.Module], optimizer: MegatronOptimizer) -> None:
    """Writes weights and optimizer state into the existing, empty ``folder``; every process takes part."""
    dist_checkpointing.save(_state(chunks, optimizer, is_loading=False), str(folder), content_metadata=_METADATA)


def load(folder: Path, chunks: list[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    """Reads weights, and with ``optimizer`` its state, into place; every process takes part."""
    state = _state(chunks, optimizer, is_loading=True)
    absent = _drop_absent_objects(state, folder)
    loaded = dist_checkpointing.load(state, str(folder))
    for index, chunk in enumerate(chunks):
        missing, unexpected = _bare(chunk).load_state_dict(loaded[_key(chunks, index)], strict=False)
        if unexpected or not set(missing) <= absent:
            raise RuntimeError(f"{folder} lacks {sorted(set(missing) - absent)} or has also {unexpected}")
    if optimizer is not None:
        optimizer.load_state_dict(loaded["optimizer"])


def _drop_absent_objects(state: ShardedStateDict, folder: Path) -> set[str]:
    """Takes objects that the checkpoint does not have out of the networks' state; returns their names.

    Transformer Engine's layers keep FP8 scales in objects beside the weights. A checkpoint that was imported or written
    without it has none, and the network then keeps those that it starts with.
    """
    known = FileSystemReader(folder).read_metadata().state_dict_metadata
    absent = set()
    for part in (part for key, part in state.items() if key.startswith("model")):
        for name in [name for name, item in part.items() if isinstance(item, ShardedObject)]:
            if part[name].unique_key not in known:
                absent.add(name)
                del part[name]
    return absent


def _state(chunks: list[torch.nn.Module], optimizer: MegatronOptimizer | None, is_loading: bool) -> ShardedStateDict:
    state = {_key(chunks, index): _bare(chunk).sharded_state_dict() for index, chunk in enumerate(chunks)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=_METADATA)
    return state


def _key(chunks: list[torch.nn.Module], index: int) -> str:
    return "model" if len(chunks) == 1 else f"model{index}"


def _bare(chunk: torch.nn.Module) -> torch.nn.Module:
    """The network inside the wrappers for data parallelism and precision, whose names a checkpoint carries."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk
