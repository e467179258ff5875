"""What the processes of the adapters' tests run; rank 0 leaves the results in a folder."""

import os
from pathlib import Path

import numpy as np
import torch
from engine_workers import VOCABULARY, batches, logits_of, recipe, start, train, write

from megatron_music.engine import processes
from megatron_music.engine.engine import Batch, Engine
from megatron_music.engine.lora import is_adapter
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.recipe import Lora, Recipe

STEPS, HALF = 14, 7
LEARNING_RATE = 2e-3
"""Above it the gradients of single steps are tenfold, and what differs by a rounding part ways."""
DRAWS = "sequence", "data"
"""The layouts on which dropout and whole embeddings are trained as well."""
PLAIN = Lora(rank=8, alpha=16)
ALL = Lora(rank=8, alpha=16, dropout=0.25, full_embeddings=True)


def adapted(layout: dict, lora: Lora = PLAIN, precision: str = "fp32") -> Recipe:
    """The engine tests' recipe with adapters."""
    return recipe(layout, precision).model_copy(update={"lora": lora})


def start_adapters(folder: Path, what: Recipe, checkpoint: Path | None = None) -> Engine:
    """An engine on the base in ``folder``, with the adapters of ``checkpoint`` if one is given."""
    engine = Engine(what, VOCABULARY)
    engine.load_base(folder / "base")
    if checkpoint is not None:
        engine.load(checkpoint)
    return engine


def one_process(folder: Path) -> None:
    """Writes the checkpoint ``base`` after 3 steps of the whole network, then trains adapters on it."""
    torch.set_num_threads(1)
    processes.join(recipe({}).layout)
    base = start({}, None)
    train(base, 100, 103)
    base.save(folder / "base")
    np.save(folder / "base.npy", logits_of(base))
    run_on({}, "one", folder)
    what = adapted({}, ALL)
    engine = start_adapters(folder, what)
    write(folder, "all", {"trained": trained_names(engine), **train_and_resume(engine, what, "all", folder)})
    np.save(folder / "all_after.npy", logits_of(engine))
    np.save(folder / "all_again.npy", logits_of(start_adapters(folder, what, folder / "all")))
    what = what.model_copy(update={"layout": Layout(recompute="full")})
    write(folder, "recomputed", train_steps(start_adapters(folder, what), 0, STEPS))
    engine = start_adapters(folder, adapted({}, precision="bf16"))
    np.save(folder / "bf16.npy", logits_of(engine))
    write(folder, "bf16", train_steps(engine, 0, STEPS))
    processes.leave()


def two_processes(folder: Path, layouts: dict[str, dict], ports: list[str]) -> None:
    """The same adapters on other layouts, then those that one process has saved."""
    torch.set_num_threads(1)
    for (name, layout), port in zip(layouts.items(), ports, strict=True):
        # A port of its own: one process may join anew while the other has yet to leave.
        os.environ["MASTER_PORT"] = port
        what = adapted(layout)
        processes.join(what.layout)
        run_on(layout, name, folder)
        write(folder, f"{name}_after_one", train_steps(start_adapters(folder, what, folder / "one"), HALF, STEPS))
        if name in DRAWS:
            what = adapted(layout, ALL)
            write(folder, f"{name}_all", train_and_resume(start_adapters(folder, what), what, f"{name}_all", folder))
        processes.leave()


def run_on(layout: dict, name: str, folder: Path) -> None:
    """All steps from the base, with the logits before them, what changed, and the second half again."""
    what = adapted(layout)
    engine = start_adapters(folder, what)
    logits, before = logits_of(engine), weights_of(engine)
    if torch.distributed.get_rank() == 0:
        np.save(folder / f"{name}.npy", logits)
    result = train_and_resume(engine, what, name, folder)
    after = weights_of(engine)
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    write(folder, name, result | {"changed": changed, "all": list(before)})


def train_and_resume(engine: Engine, what: Recipe, name: str, folder: Path) -> dict:
    """All steps, saved half way, and ``again`` the second half from what was saved."""
    first = train_steps(engine, 0, HALF)
    engine.save(folder / name)
    second = train_steps(engine, HALF, STEPS)
    again = train_steps(start_adapters(folder, what, folder / name), HALF, STEPS)
    return {key: first[key] + second[key] for key in first} | {"again": again}


def train_steps(engine: Engine, first: int, last: int) -> dict:
    """Trains the steps [first, last) on 16 of the ids; mean losses and gradient norms."""
    losses, norms = [], []
    for step in range(first, last):
        few = [Batch(batch.ids % 16, batch.kinds) for batch in batches(step, engine)]
        update = engine.step(LEARNING_RATE, engine.forward_backward(few, step=step))
        losses.append(float(update.loss))
        norms.append(float(update.gradient_norm))
    return {"losses": losses, "norms": norms}


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of this process' parameters by name and, where runs of layers are several, their number."""
    return {
        f"{index}.{name}": parameter.detach().clone()
        for index, chunk in enumerate(engine.chunks)
        for name, parameter in chunk.named_parameters()
    }


def trained_names(engine: Engine) -> dict[str, bool]:
    """Of every parameter that takes gradients, whether it is an adapter's."""
    return {
        name.removeprefix("module."): is_adapter(name)
        for name, parameter in engine.chunks[0].named_parameters()
        if parameter.requires_grad
    }
