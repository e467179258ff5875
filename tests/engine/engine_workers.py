"""What the processes of the engine's tests run; rank 0 leaves the results in a folder."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from megatron_music.engine import processes
from megatron_music.engine.engine import COUNTED, Batch, Engine
from megatron_music.recipe.recipe import Optimizer, Recipe

VOCABULARY, CONTEXT, SEQUENCES = 256, 64, 4
STEPS, HALF = 20, 10
RECOMPUTED = {
    "none": {},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "three": {"recompute": "full", "recompute_layers": 3},
}
RESUMED = HALF + 4
"""Up to this step a resumed run is followed: what it lacks shows at once."""
MASKED_STEPS = 3
DOCUMENTS = ((20, 44), (64,), (1, 30, 33), (63, 1))
"""Lengths of the documents in every four sequences, where they are kept apart."""


def recipe(layout: dict, precision: str = "fp32") -> Recipe:
    """A network of 4 layers with grouped queries, small enough for 20 steps in about a second."""
    network = dict(
        hidden_size=64, layers=4, attention_heads=4, key_value_heads=2, ffn_hidden_size=128, position_limit=CONTEXT
    )
    phase = dict(
        name="a",
        tokens=STEPS * SEQUENCES * CONTEXT,
        context_tokens=CONTEXT,
        batch_sequences=SEQUENCES,
        learning_rate=3e-3,
        mixture={"a": 1},
    )
    paths = dict(name="test", vocabulary="v.yaml", corpus="c", run="r")
    return Recipe.parse(
        dict(paths, precision=precision, network=network, layout=layout, phases=[phase]), "/tmp/recipe.yaml"
    )


def batches(step: int, engine: Engine) -> list[Batch]:
    """This process' share of the step's sequences, in which every second token repeats the one before it."""
    generator = np.random.default_rng(step)
    ids = generator.integers(0, VOCABULARY, (SEQUENCES, CONTEXT + 1))
    ids[:, 1::2] = ids[:, 0:-1:2]
    kinds = generator.integers(0, 13, ids.shape).astype(np.uint8)
    share = SEQUENCES // engine.data_processes
    own = range(engine.data_rank * share, (engine.data_rank + 1) * share)
    return [Batch(ids[i : i + 1], kinds[i : i + 1]) for i in own]


def train(engine: Engine, first: int, last: int) -> dict:
    """Trains the steps [first, last); mean losses and gradient norms."""
    losses, norms = [], []
    for step in range(first, last):
        update = engine.step(3e-3, engine.forward_backward(batches(step, engine)))
        losses.append(float(update.loss))
        norms.append(float(update.gradient_norm))
    return {"losses": losses, "norms": norms}


def masked_batches(step: int, engine: Engine, size: int, within: bool = True) -> list[Batch]:
    """This process' share of the same sequences, ``size`` a micro-batch, each counting another number of its tokens.

    Attention is kept ``within`` documents, or runs across them.
    """
    whole = batches(step, engine)
    first = engine.data_rank * len(whole)
    marked = []
    for at in range(0, len(whole), size):
        ids, kinds = (np.concatenate([getattr(b, name) for b in whole[at : at + size]]) for name in ("ids", "kinds"))
        sequences = np.arange(first + at, first + at + size)
        # Of the 13 kinds the first sequence counts one, the last eight.
        counted = kinds <= sequences[:, None]
        documents = tuple(DOCUMENTS[sequence % 4] for sequence in sequences) if within else None
        marked.append(Batch(ids, kinds, counted, documents))
    return marked


def train_masked(engine: Engine, size: int, within: bool = True) -> dict:
    """A few steps of those batches: mean losses of what counts, sums by kind of the last step, gradient norms."""
    losses, norms = [], []
    for step in range(MASKED_STEPS):
        update = engine.step(3e-3, engine.forward_backward(masked_batches(step, engine, size, within)))
        losses.append(float(update.loss))
        norms.append(float(update.gradient_norm))
    return {"losses": losses, "norms": norms, "table": update.loss_table.tolist()}


def expected_masked_loss(engine: Engine) -> dict:
    """The first of those losses, from the logits of every sequence."""
    nats = []
    for batch in masked_batches(0, engine, 1):
        logits = engine.logits(batch.ids[:, :-1], batch.documents)[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.ids[0, 1:]), reduction="none")
        nats += losses[torch.from_numpy(batch.counted[0, 1:])].tolist()
    return {"loss": sum(nats) / len(nats), "tokens": len(nats)}


def train_with_all_counted(engine: Engine) -> dict:
    """Losses and norms of the first steps of ``train``, by way of a mask that leaves out nothing."""
    losses, norms = [], []
    for step in range(MASKED_STEPS):
        table = engine.forward_backward([Batch(b.ids, b.kinds, b.kinds < 99) for b in batches(step, engine)])
        losses.append(float(table[0, COUNTED] / table[1, COUNTED]))
        norms.append(float(engine.step(3e-3, table).gradient_norm))
    return {"losses": losses, "norms": norms}


def packed_and_alone(engine: Engine) -> dict[str, np.ndarray]:
    """Logits of four packed sequences within and across documents, and of every document by itself."""
    ids = np.random.default_rng(98).integers(0, VOCABULARY, (len(DOCUMENTS), CONTEXT))
    alone = []
    for row, lengths in zip(ids, DOCUMENTS, strict=True):
        parts = np.split(row, np.cumsum(lengths)[:-1])
        alone.append(np.concatenate([engine.logits(part[None])[0].numpy() for part in parts]))
    within, across = engine.logits(ids, DOCUMENTS), engine.logits(ids)
    return {"within": within.numpy(), "across": across.numpy(), "alone": np.stack(alone)}


def start(layout: dict, checkpoint: Path | None, precision: str = "fp32") -> Engine:
    """An engine on ``layout``, from ``checkpoint`` if one is given."""
    engine = Engine(recipe(layout, precision), VOCABULARY)
    if checkpoint is not None:
        engine.load(checkpoint)
    return engine


def logits_of(engine: Engine) -> np.ndarray:
    """Logits of two fixed sequences."""
    return engine.logits(np.random.default_rng(99).integers(0, VOCABULARY, (2, CONTEXT))).cpu().numpy()


def one_process(folder: Path) -> None:
    """Writes the checkpoint ``start`` after 3 steps, and trains on from it without and with a stop."""
    torch.set_num_threads(1)
    processes.join(recipe({}).layout)
    engine = start({}, None)
    train(engine, 100, 103)
    engine.save(folder / "start")
    run_on({}, "one", folder)
    bf16 = start({}, folder / "start", "bf16")
    np.save(folder / "one_bf16.npy", logits_of(bf16))
    write(folder, "one_bf16", train(bf16, 0, STEPS))
    for name, layout in RECOMPUTED.items():
        engine = start(layout, folder / "start")
        write(folder, f"recompute_{name}", {"kept": kept_bytes(engine), **train(engine, 0, HALF), **sums(engine)})
    engine = start({}, folder / "start")
    write(folder, "loss_table", loss_table(engine))
    np.savez(folder / "packed.npz", **packed_and_alone(engine))
    write(folder, "masked_expected", expected_masked_loss(engine))
    write(folder, "one_masked", train_masked(engine, SEQUENCES))
    recomputed = start(RECOMPUTED["full"], folder / "start")
    write(folder, "one_masked_recomputed", train_masked(recomputed, SEQUENCES))
    write(folder, "one_masked_across", train_masked(start({}, folder / "start"), SEQUENCES, within=False))
    write(folder, "one_all_counted", train_with_all_counted(start({}, folder / "start")))
    other = Engine(recipe({}).model_copy(update={"optimizer": Optimizer(weight_decay=0.5, beta2=0.9)}), VOCABULARY)
    other.load(folder / "start")
    write(folder, "groups", {group["wd_mult"]: constants(group) for group in other.optimizer.param_groups})
    processes.leave()


def several_processes(folder: Path, layouts: dict[str, dict], ports: list[str], writer: str) -> None:
    """Does on each of the layouts what ``one_process`` did, and continues what the ``writer`` before it has saved."""
    torch.set_num_threads(1)
    for (name, layout), port in zip(layouts.items(), ports, strict=True):
        # A port of its own: one process may join anew while the other has yet to leave.
        os.environ["MASTER_PORT"] = port
        processes.join(recipe(layout).layout)
        run_on(layout, name, folder)
        engine = start(layout, folder / "start")
        write(folder, f"{name}_table", loss_table(engine))
        write(folder, f"{name}_masked", train_masked(engine, 1, "context" not in layout))
        write(folder, f"{name}_after_{writer}", train(start(layout, folder / writer), HALF, RESUMED))
        processes.leave()
        writer = name


def one_process_after(folder: Path, writers: list[str]) -> None:
    """Continues on one process what several have saved."""
    torch.set_num_threads(1)
    processes.join(recipe({}).layout)
    for writer in writers:
        write(folder, f"one_after_{writer}", train(start({}, folder / writer), HALF, RESUMED))
    processes.leave()


def run_on(layout: dict, name: str, folder: Path) -> None:
    """20 steps from ``start``, saved half way, and the next of them again from what was saved."""
    engine = start(layout, folder / "start")
    logits = logits_of(engine)
    if torch.distributed.get_rank() == 0:
        np.save(folder / f"{name}.npy", logits)
    first = train(engine, 0, HALF)
    engine.save(folder / name)
    second = train(engine, HALF, STEPS)
    write(folder, name, {key: first[key] + second[key] for key in first})
    write(folder, f"{name}_again", train(start(layout, folder / name), HALF, RESUMED))


def kept_bytes(engine: Engine) -> int:
    """Bytes, parameters left out, that a forward pass of one sequence keeps for the backward pass."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in engine.chunks[0].parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Held until the count, so that no later tensor takes the same place.
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.from_numpy(batches(0, engine)[0].ids)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.chunks[0](ids[:, :-1], None, None, labels=ids[:, 1:].contiguous())
    return sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - parameters)


def sums(engine: Engine) -> dict:
    """Sum of every parameter in FP64: equal for equal parameters."""
    named = engine.chunks[0].named_parameters()
    return {"sums": {name: parameter.double().sum().item() for name, parameter in named}}


def constants(group: dict) -> dict:
    """What a parameter group holds beside its learning rate."""
    lengths = sorted({parameter.numel() for parameter in group["params"]})
    return {"weight_decay": group["weight_decay"], "betas": group["betas"], "eps": group["eps"], "numel": lengths}


def loss_table(engine: Engine) -> dict:
    """The engine's table for one batch, and the same sums from its logits."""
    table = engine.forward_backward(batches(0, engine), train=False)
    torch.distributed.all_reduce(table)
    expected = torch.zeros_like(table)
    for batch in batches(0, engine):
        logits = engine.logits(batch.ids[:, :-1])
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(batch.ids[:, 1:]).flatten(), reduction="none"
        )
        for loss, kind in zip(losses.tolist(), batch.kinds[:, 1:].flatten().tolist(), strict=True):
            expected[0, kind] += loss
            expected[1, kind] += 1
    if engine.data_processes > 1:
        torch.distributed.all_reduce(expected)
        # Every process of a copy of the model has the same logits.
        expected /= torch.distributed.get_world_size() // engine.data_processes
    return {"table": table.tolist(), "expected": expected.tolist()}


def write(folder: Path, name: str, content: dict) -> None:
    """Leaves ``content`` for the test, once."""
    if torch.distributed.get_rank() == 0:
        (folder / f"{name}.json").write_text(json.dumps(content))
