"""Distributed checkpoints in the form that megatron-core writes: readable on any layout and by other Megatron tools.

A checkpoint holds what is trained: of a network with adapters these alone, without the frozen weights below them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedStateDict
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch.distributed.checkpoint import FileSystemReader

from megatron_music.engine.lora import is_adapter
from megatron_music.engine.pieces import Piece, network_pieces, optimizer_pieces

# Optimizer state in the shape of the parameters, so that any layout can read it.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def pieces_of(
    chunks: list[torch.nn.Module], optimizer: MegatronOptimizer, check: bool
) -> tuple[list[Piece], dict[str, Any]]:
    """What this process writes of trained weights and optimizer state, and the common state beside it.

    The pieces are views of the live state. With ``check``, in which all processes take part, megatron-core compares
    what the processes hold.
    """
    state = _state(chunks, _is_trained, None, is_loading=False)
    [part] = optimizer.chained_optimizers
    # Before the pieces: it makes what the optimizer has not used yet.
    common = part.state_dict() | {"param_state_sharding_type": _METADATA["distrib_optim_sharding_type"]}
    of_optimizer = optimizer_pieces(part, state)
    sharded, common = save_preprocess(state | {"optimizer": common, "content_metadata": dict(_METADATA)}, check)
    return network_pieces(sharded) + of_optimizer, common


def load(folder: Path, chunks: list[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    """Reads trained weights, and with ``optimizer`` its state, into place; every process takes part."""
    _load(folder, chunks, _is_trained, optimizer)


def load_base(folder: Path, chunks: list[torch.nn.Module]) -> None:
    """Reads the weights of a whole network below the adapters of this one; every process takes part."""
    _load(folder, chunks, lambda name, _: not is_adapter(name), None)


def _is_trained(_name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.requires_grad


def _load(
    folder: Path,
    chunks: list[torch.nn.Module],
    is_wanted: Callable[[str, torch.nn.Parameter], bool],
    optimizer: MegatronOptimizer | None,
) -> None:
    state = _state(chunks, is_wanted, optimizer, is_loading=True)
    absent = _drop_absent_objects(state, folder)
    loaded = dist_checkpointing.load(state, str(folder))
    for index, chunk in enumerate(chunks):
        missing, unexpected = _bare(chunk).load_state_dict(loaded[_key(chunks, index)], strict=False)
        lacking = set(missing) - absent - _unwanted(chunk, is_wanted)
        if unexpected or lacking:
            raise RuntimeError(f"{folder} lacks {sorted(lacking)} or has also {unexpected}")
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


def _state(
    chunks: list[torch.nn.Module],
    is_wanted: Callable[[str, torch.nn.Parameter], bool],
    optimizer: MegatronOptimizer | None,
    is_loading: bool,
) -> ShardedStateDict:
    state: ShardedStateDict = {}
    for index, chunk in enumerate(chunks):
        unwanted = _unwanted(chunk, is_wanted)
        whole = _bare(chunk).sharded_state_dict()
        state[_key(chunks, index)] = {name: item for name, item in whole.items() if name not in unwanted}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=_METADATA)
    return state


def _unwanted(chunk: torch.nn.Module, is_wanted: Callable[[str, torch.nn.Parameter], bool]) -> set[str]:
    return {name for name, parameter in _bare(chunk).named_parameters() if not is_wanted(name, parameter)}


def _key(chunks: list[torch.nn.Module], index: int) -> str:
    return "model" if len(chunks) == 1 else f"model{index}"


def _bare(chunk: torch.nn.Module) -> torch.nn.Module:
    """The network inside the wrappers for data parallelism and precision, whose names a checkpoint carries."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk
