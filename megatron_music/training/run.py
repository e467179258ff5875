"""A training run from its recipe: checks first, then processes, then the loop."""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.base import Base, base_below, holds_adapters
from megatron_music.training.run_folder import RunFolder, has_optimizer, read_network, read_state
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_music.training.callbacks.metrics import MetricsLog
    from megatron_music.training.loop import Callback


def train(recipe: Recipe, processes: int | None = None, branch_from: Path | None = None) -> None:
    """Trains ``recipe`` to its end, going on from the last complete checkpoint of its run folder.

    Under torchrun or SLURM this process is one of theirs; otherwise ``processes`` are started on this machine (one for
    each GPU, or as many as hold one model, where none are named).

    Args:
        branch_from: checkpoint, of another run or imported, that a fresh run starts from: with its weights and, where
            it has one, its optimizer state; or that a fresh run with `lora` trains adapters on.

    Raises:
        InputError: before any process starts, where recipe, corpus, layout or run folder do not fit.
    """
    from megatron_music.engine.processes import launch, started_by_a_launcher, world_size

    if started_by_a_launcher():
        if processes is not None:
            raise InputError(
                "--processes", "is given where torchrun or SLURM has started the processes", "leave it out"
            )
        check(recipe, world_size(), branch_from)
        run_process(recipe, branch_from)
        return
    processes = processes or _default_processes(recipe)
    check(recipe, processes, branch_from)
    launch(run_process, processes, recipe, branch_from)


def check(recipe: Recipe, processes: int, branch_from: Path | None = None) -> None:
    """Raises a one-line InputError for whatever would stop the run later; starts nothing."""
    from megatron_music.corpus.blend import run_stream
    from megatron_music.corpus.indexed import IndexedSource
    from megatron_music.engine.hardware import check_hardware

    recipe.data_processes(processes)
    check_hardware(recipe)
    vocabulary = Vocabulary.load(recipe.vocabulary)
    if vocabulary.padded_size % recipe.layout.tensor:
        what = f"{vocabulary.padded_size} is not a multiple of layout.tensor {recipe.layout.tensor}"
        raise InputError(f"{recipe.vocabulary}: padded_size", what, "pad the vocabulary or change the layout")
    if not recipe.corpus.is_dir():
        raise InputError(recipe.corpus, "there is no corpus here", "run `megatron-music build`, or mend `corpus`")
    built_with = Vocabulary.load(recipe.corpus / "vocabulary.yaml")
    if built_with != vocabulary:
        raise InputError(recipe.vocabulary, f"is not the vocabulary that {recipe.corpus} was built with",
                         f"use {recipe.corpus / 'vocabulary.yaml'}")  # fmt: skip
    run_stream(recipe)
    for watched in (recipe.watch.validation, recipe.watch.invalid_tokens):
        if watched is not None and not len(IndexedSource(recipe.corpus / watched.source)):
            raise InputError(recipe.corpus / watched.source, "holds no document", "name another source in `watch`")
    if branch_from is not None:
        read_state(branch_from)
        # How far positions reach, and how weights were first drawn, is no part of the weights' shape or use.
        free = {name: getattr(recipe.network, name) for name in ("position_limit", "init_std")}
        if read_network(branch_from).model_copy(update=free) != recipe.network:
            raise InputError(branch_from, "holds another network than the recipe's", "make `network` equal")
    base_below(recipe, branch_from)


def run_process(recipe: Recipe, branch_from: Path | None) -> None:
    """The whole run as one of the processes sees it."""
    import torch

    from megatron_music.corpus.blend import run_stream
    from megatron_music.engine import processes
    from megatron_music.engine.engine import Engine
    from megatron_music.training.callbacks.metrics import MetricsLog
    from megatron_music.training.loop import Trainer

    processes.join(recipe.layout)
    first = torch.distributed.get_rank() == 0
    folder = RunFolder(recipe.run)
    if first:
        folder.path.mkdir(parents=True, exist_ok=True)
        found = [folder.open(recipe), base_below(recipe, branch_from)]
    else:
        found = [None, None]
    torch.distributed.broadcast_object_list(found, src=0)
    newest, base = found
    vocabulary = Vocabulary.load(recipe.vocabulary)
    engine = Engine(recipe, vocabulary.padded_size)
    first_step = 0
    if base is not None:
        engine.load_base(base.checkpoint)
    if newest is not None:
        checkpoint, state = newest
        engine.load(checkpoint)
        first_step = state.step
    elif branch_from is not None:
        if base is None or holds_adapters(branch_from):
            engine.load(branch_from, with_optimizer=has_optimizer(branch_from))
        if first:
            write_json(folder.path / "origin.json", {"checkpoint": str(branch_from), **vars(read_state(branch_from))})
    log = MetricsLog(folder.metrics, folder.path / "tensorboard", first_step)
    trainer = Trainer(recipe, vocabulary, engine, run_stream(recipe), _callbacks(recipe, folder, log, base))
    if first_step >= trainer.last_step:
        log.say(f"{recipe.run} has done all of its {trainer.last_step} steps; nothing is left to train")
    elif first_step:
        log.say(f"going on after step {first_step} of {trainer.last_step}, from {checkpoint}")
    trainer.run(first_step)
    log.close()
    torch.distributed.barrier()
    processes.leave()


def _callbacks(recipe: Recipe, folder: RunFolder, log: "MetricsLog", base: Base | None) -> list["Callback"]:
    """The callbacks that the recipe asks for, in the order in which they see a step."""
    from megatron_music.training.callbacks.checkpoints import CheckpointWriter
    from megatron_music.training.callbacks.invalid_tokens import InvalidTokenShare
    from megatron_music.training.callbacks.metrics import StepMetrics
    from megatron_music.training.callbacks.validation import HeldOutLoss

    watch = recipe.watch
    metrics = StepMetrics(log, watch.log_every_steps)
    callbacks: list[Callback] = [metrics]
    if watch.validation is not None:
        callbacks.append(HeldOutLoss(log, watch.validation))
    if watch.invalid_tokens is not None:
        callbacks.append(InvalidTokenShare(log, watch.invalid_tokens))
    return [*callbacks, CheckpointWriter(log, metrics, folder, recipe.checkpoints, base)]


def _default_processes(recipe: Recipe) -> int:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return gpus if gpus and not gpus % recipe.layout.model_processes else recipe.layout.model_processes
