"""Distributed checkpoints in the form that megatron-core writes: readable on any layout and by other Megatron tools."""

from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.optimizer.optimizer import MegatronOptimizer

# Optimizer state in the shape of the parameters, so that any layout can read it.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(folder: Path, chunks: list[torch.nn.Module], optimizer: MegatronOptimizer) -> None:
    """Writes weights and optimizer state into the existing, empty ``folder``; every process takes part."""
    dist_checkpointing.save(_state(chunks, optimizer, is_loading=False), str(folder), content_metadata=_METADATA)


def load(folder: Path, chunks: list[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    """Reads weights, and with ``optimizer`` its state, into place; every process takes part."""
    loaded = dist_checkpointing.load(_state(chunks, optimizer, is_loading=True), str(folder))
    for index, chunk in enumerate(chunks):
        _bare(chunk).load_state_dict(loaded[_key(chunks, index)])
    if optimizer is not None:
        optimizer.load_state_dict(loaded["optimizer"])


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
