"""What two processes really allocate for a small network; every process leaves its figures in a folder."""

import gc
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from allocated import MostAllocated

from megatron_music.engine import kernels, processes
from megatron_music.engine.engine import Batch, Engine
from megatron_music.recipe.recipe import Recipe

VOCABULARY, CONTEXT, SEQUENCES, PROCESSES = 512, 256, 2, 2


def recipe(fields: dict) -> Recipe:
    """A network of 8 layers whose activations outweigh what lives for a moment, with ``fields`` of a recipe."""
    content = dict(
        name="test",
        vocabulary="v.yaml",
        corpus="c",
        run="r",
        network=dict(
            hidden_size=128,
            layers=8,
            attention_heads=4,
            key_value_heads=2,
            ffn_hidden_size=352,
            position_limit=CONTEXT,
        ),
        phases=[
            dict(
                name="a",
                tokens=SEQUENCES * CONTEXT,
                context_tokens=CONTEXT,
                batch_sequences=SEQUENCES,
                learning_rate=1e-3,
                mixture={"a": 1},
            )
        ],
    )
    return Recipe.parse(content | fields, "/tmp/recipe.yaml")


def measure_all(folder: Path, cases: dict[str, dict], ports: list[str]) -> None:
    """Measures a step of every case; writes ``NAME_RANK.json``."""
    torch.set_num_threads(1)
    # A processor that can't multiply BF16 does it on copies in FP32, which no GPU has, and no plan.
    kernels._MULTIPLIES_BF16 = True
    for (name, fields), port in zip(cases.items(), ports, strict=True):
        # A port of its own: one process may join anew while the other has yet to leave.
        os.environ["MASTER_PORT"] = port
        what = recipe(fields)
        processes.join(what.layout)
        found = measure(Engine(what, VOCABULARY))
        (folder / f"{name}_{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
        processes.leave()


def measure(engine: Engine) -> dict[str, int]:
    """Parameters, and bytes of weights, gradients and optimizer as they lie in memory; and what a step takes on top."""
    # The first step makes what stays.
    train_a_step(engine)
    peak = highest_of_a_step(engine)
    buffers = [buffer for chunk in engine.chunks for buffer in chunk.buffers]
    parameters = [parameter for chunk in engine.chunks for parameter in chunk.parameters()]
    weights = storages([*(buffer.param_data for buffer in buffers), *parameters])
    gradients = storages(buffer.grad_data for buffer in buffers)
    states = (part.optimizer.state for part in engine.optimizer.chained_optimizers)
    optimizer = storages(
        tensor
        for state in states
        for master, moments in state.items()
        for tensor in (master, *moments.values())
        if torch.is_tensor(tensor)
    )
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weights": sum(weights.values()),
        "gradients": sum(gradients.values()),
        # In FP32 the optimizer works on the weights themselves.
        "optimizer": sum(size for place, size in optimizer.items() if place not in weights),
        "peak": peak,
    }


def train_a_step(engine: Engine) -> None:
    """One step on ids that mean nothing."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, CONTEXT + 1))
    batch = Batch(ids, np.zeros(ids.shape, np.uint8))
    engine.step(1e-3, engine.forward_backward([batch] * (SEQUENCES // engine.data_processes)))


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of the memory behind tensors, each piece once, by its address."""
    pieces = (tensor.untyped_storage() for tensor in tensors)
    return {piece.data_ptr(): piece.nbytes() for piece in pieces}


def highest_of_a_step(engine: Engine) -> int:
    """The most bytes of new tensors at once."""
    gc.collect()
    allocated = MostAllocated()
    with allocated:
        train_a_step(engine)
    return allocated.largest
