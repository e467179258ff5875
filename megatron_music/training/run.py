"""A training run from its recipe: checks first, then processes, then the loop."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.engine.integrity import damaged, size_fault
from megatron_music.errors import InputError
from megatron_music.exits import Stopped
from megatron_music.progress import console
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.base import Base, base_below, holds_adapters
from megatron_music.training.events import ENDED, STOPPED
from megatron_music.training.origin import Origin, origin_of_run, reads_again, start_of_run
from megatron_music.training.restarts import run_again
from megatron_music.training.run_folder import (
    CheckpointState,
    RunFolder,
    read_network,
    read_state,
    read_vocabulary,
)
from megatron_music.training.run_lock import RunLock, refuse_if_held
from megatron_music.training.troubles import Troubles
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_music.training.callbacks.stop import StopWhenAsked
    from megatron_music.training.loop import Callback
    from megatron_music.training.metrics_log import MetricsLog
    from megatron_music.training.watchdog import Watchdog


_FREE = {"position_limit", "init_std"}
"""Fields of a network that a branch may change: how far positions reach, and how weights were first drawn, is no part
of the weights' shape or use."""


def train(
    recipe: Recipe,
    processes: int | None = None,
    branch_from: Path | None = None,
    fresh_optimizer: bool = False,
    restarts: int = 0,
    until: str | None = None,
) -> None:
    """Trains ``recipe`` to its end, going on from the last complete checkpoint of its run folder.

    Under torchrun or SLURM this process is one of theirs; otherwise ``processes`` are started on this machine (one for
    each GPU, or as many as hold one model, where none are named). Where srun has started one task on each of several
    nodes, ``processes`` are started on all of them, by torch elastic.

    Args:
        branch_from: checkpoint, of another run or imported, that a fresh run starts from: with its weights and, where
            it has one, its optimizer state; or that a fresh run with `lora` trains adapters on. The recipe counts its
            own steps and tokens, from 0.
        fresh_optimizer: start without that optimizer state.
        restarts: how often in a row, without a new checkpoint between, a run on this machine is started again that
            lost a process, hung or failed.
        until: the phase with which it ends, in place of the last.

    Raises:
        InputError: before any process starts, where recipe, corpus, layout or run folder do not fit.
        RunEnded: the run is not done: it was asked to stop, or ended too often.
    """
    from megatron_music.engine.elastic import start
    from megatron_music.engine.launchers import read_start

    started = read_start(os.environ)
    _last_step(recipe, until)
    if started.note is not None and processes is None:
        console.print(started.note)
    if started.is_one_of_several(processes):
        check(recipe, started.size, branch_from, fresh_optimizer)
        run_process(recipe, branch_from, fresh_optimizer, until)
        return
    processes = processes or _default_processes(recipe)
    refuse_if_held(recipe.run)
    check(recipe, processes * started.nodes, branch_from, fresh_optimizer)
    arguments = processes, recipe, branch_from, fresh_optimizer, until
    if started.nodes > 1:
        start(run_process, *arguments, restarts=restarts)
    else:
        run_again(lambda: start(run_process, *arguments), RunFolder(recipe.run), restarts)


def check(
    recipe: Recipe,
    processes: int,
    branch_from: Path | None = None,
    fresh_optimizer: bool = False,
    on_this_machine: bool = True,
) -> None:
    """Raises a one-line InputError for whatever would stop the run later; starts nothing.

    Args:
        on_this_machine: whether this is one that the run will be on, with its hardware.
    """
    from megatron_music.corpus.blend import run_stream
    from megatron_music.corpus.indexed import IndexedSource, prefix_file
    from megatron_music.engine.hardware import check_hardware
    from megatron_music.training.marks import marks_of

    recipe.data_processes(processes)
    if on_this_machine:
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
    marks_of(recipe, vocabulary, run_stream(recipe))
    for where, source in _watched_sources(recipe):
        if not prefix_file(recipe.corpus / source, ".json").is_file():
            raise InputError(where, f"{recipe.corpus} has no source {source}", "build it, or name another")
        if not len(IndexedSource(recipe.corpus / source)):
            raise InputError(where, f"{source} holds no document", "name another")
    _check_watching(recipe, vocabulary)
    start = start_of_run(recipe, branch_from, origin_of_run(recipe, branch_from, fresh_optimizer))
    if start is not None:
        read_state(start)
        there = read_network(start)
        for field, value in recipe.network:
            if field not in _FREE and getattr(there, field) != value:
                what = f"holds another network than the recipe's: its {field} is {getattr(there, field)}, not {value}"
                raise InputError(start, what, f"make network.{field} equal")
        read = read_vocabulary(start)
        if read is not None and read.padded_size != vocabulary.padded_size:
            what = f"has embeddings of {read.padded_size} ids, the recipe's vocabulary has {vocabulary.padded_size}"
            raise InputError(start, what, "make `padded_size` equal: ids can be added within it")
        fault = size_fault(start)
        if fault is not None:
            raise damaged(start, fault)
    base_below(recipe, start)
    Troubles.read(recipe.run).check(recipe.skip, recipe.run)


def _watched_sources(recipe: Recipe) -> list[tuple[str, str]]:
    """Sources that only measuring reads, each with the field that names it."""
    watch = recipe.watch
    found = [("watch.validation.source", source) for source in (watch.validation.source if watch.validation else ())]
    for field in ("invalid_tokens", "audio_sample"):
        if getattr(watch, field) is not None:
            found.append((f"watch.{field}.source", getattr(watch, field).source))
    return found


def _check_watching(recipe: Recipe, vocabulary: Vocabulary) -> None:
    watch = recipe.watch
    for options in (watch.invalid_tokens, watch.audio_sample):
        if options is not None:
            from megatron_music.corpus.indexed import IndexedSource
            from megatron_music.engine.sampling import grammar_of, span_prompts

            source = IndexedSource(recipe.corpus / options.source)
            span_prompts(source, grammar_of(source, vocabulary), most=1)
    if watch.audio_sample is not None:
        from megatron_music.training.callbacks.audio_sample import codec_of_samples

        codec_of_samples(recipe.corpus, watch.audio_sample)
    if watch.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise InputError("watch.wandb", "needs the package wandb, which is not installed",
                         "pip install 'megatron-music[wandb]', or leave it out")  # fmt: skip


def run_process(
    recipe: Recipe, branch_from: Path | None, fresh_optimizer: bool = False, until: str | None = None
) -> None:
    """The whole run, or that to the end of the phase ``until``, as one of the processes sees it.

    Raises:
        Stopped: on all processes, after a step and its checkpoint, where any of them was asked to stop.
    """
    import torch

    from megatron_music.engine import processes
    from megatron_music.training.callbacks.stop import StopWhenAsked
    from megatron_music.training.watchdog import Watchdog

    processes.join(recipe.layout)
    lock, last_step = RunLock(recipe.run), _last_step(recipe, until)
    processes.from_first(lock.take)
    try:
        stacks, hang_seconds = RunFolder(recipe.run).stacks, 60 * recipe.watch.hang_minutes
        with StopWhenAsked() as stop, Watchdog(stacks, hang_seconds) as watchdog:
            steps_done = _train(recipe, branch_from, fresh_optimizer, stop, watchdog, last_step)
            torch.distributed.barrier()
    finally:
        lock.give_back()
    processes.leave()
    if steps_done < last_step:
        what = f"stopped after step {steps_done} of {last_step}, as asked, with a checkpoint"
        raise Stopped(f"{recipe.run}: {what}; run it again to go on")


def _train(
    recipe: Recipe,
    branch_from: Path | None,
    fresh_optimizer: bool,
    stop: "StopWhenAsked",
    watchdog: "Watchdog",
    last_step: int,
) -> int:
    """Trains in a process that has joined the others; returns how many steps are done."""
    from megatron_music.corpus.blend import run_stream
    from megatron_music.engine.engine import Engine
    from megatron_music.engine.processes import from_first
    from megatron_music.training.loop import Trainer
    from megatron_music.training.metrics_log import MetricsLog
    from megatron_music.training.newest import check_whole, newest_whole
    from megatron_music.training.recovery import Recovery
    from megatron_music.training.watchdog import SLOW_TIMES, Beat

    folder = RunFolder(recipe.run)
    changed = from_first(lambda: folder.open(recipe))
    newest = newest_whole(folder)
    base, origin = from_first(lambda: _beginning(recipe, folder, branch_from, fresh_optimizer, newest))
    troubles = from_first(lambda: folder.troubles(newest[0] if newest else None))
    vocabulary = Vocabulary.load(recipe.vocabulary)
    engine = Engine(recipe, vocabulary.padded_size)
    first_step = 0
    if base is not None:
        check_whole(base.checkpoint)
        engine.load_base(base.checkpoint)
    if newest is not None:
        checkpoint, state = newest
        engine.load(checkpoint)
        first_step = state.step
    elif origin is not None and (base is None or holds_adapters(Path(origin.checkpoint))):
        check_whole(Path(origin.checkpoint))
        engine.load(Path(origin.checkpoint), with_optimizer=origin.keeps_optimizer)
    log = MetricsLog(folder, first_step, recipe)
    engine.guard.recent_losses = troubles.recent_losses
    recovery = Recovery(log, folder, recipe.skip, troubles)
    callbacks = _callbacks(recipe, folder, log, base, origin)
    callbacks = [Beat(watchdog, "what follows it", SLOW_TIMES), stop, *callbacks, Beat(watchdog, "the next one")]
    trainer = Trainer(recipe, vocabulary, engine, run_stream(recipe), callbacks, recovery)
    whole = last_step == trainer.last_step
    if first_step >= last_step:
        done = f"all of its {last_step} steps" if whole else f"the {last_step} steps up to --until"
        log.say(f"{recipe.run} has done {done}; nothing is left to train")
    elif origin is not None and not first_step:
        log.say(branch_in_words(recipe, origin))
    elif first_step:
        log.say(f"going on after step {first_step} of {trainer.last_step}, from {checkpoint}")
    if first_step and changed:
        log.say(f"changed since this run was last started: {'; '.join(changed)}")
    watchdog.beat("in the first step", SLOW_TIMES)
    steps_done = trainer.run(first_step, last_step)
    watchdog.beat("at the end", SLOW_TIMES)
    log.event(steps_done, ENDED if steps_done == trainer.last_step else STOPPED)
    if first_step < steps_done == last_step:
        rest = f"take it: megatron-music export {recipe.run} OUT" if whole else "without --until it goes on"
        log.say(f"{recipe.run}: {steps_done} of {trainer.last_step} steps are done; {rest}")
    log.close()
    return steps_done


def _last_step(recipe: Recipe, until: str | None) -> int:
    spans = phase_spans(recipe)
    last = spans[-1] if until is None else next((span for span in spans if span.phase.name == until), None)
    if last is None:
        raise InputError("--until", f"the recipe has no phase {until!r}", "name one of its phases")
    return last.last_step


def _beginning(
    recipe: Recipe,
    folder: RunFolder,
    branch_from: Path | None,
    fresh_optimizer: bool,
    newest: tuple[Path, CheckpointState] | None,
) -> tuple[Base | None, Origin | None]:
    """What lies below and before the run; the folder then holds nothing of steps that are done again."""
    origin = origin_of_run(recipe, branch_from, fresh_optimizer)
    base = base_below(recipe, start_of_run(recipe, branch_from, origin))
    rollbacks = folder.troubles(newest[0] if newest else None).rollbacks
    folder.forget_metrics_after(newest[1].step if newest else -1, rollbacks)
    if origin is not None:
        # Before anything is learned: a run that is killed now starts from there again.
        origin.write(folder.path)
    return base, origin


def branch_in_words(recipe: Recipe, origin: Origin) -> str:
    """What a branch begins with, and what of it may surprise."""
    optimizer = "with" if origin.keeps_optimizer else "without"
    text = f"starting from {origin.checkpoint}, {optimizer} its optimizer state"
    before = read_network(Path(origin.checkpoint))
    for field in sorted(_FREE):
        if getattr(before, field) != getattr(recipe.network, field):
            text += f"; network.{field} is {getattr(recipe.network, field)}, was {getattr(before, field)} there"
    again = reads_again(recipe, origin)
    if again:
        text += (f"; {', '.join(again)} begin with what that run began with: with another `seed` they come in another "
                 "order")  # fmt: skip
    return text


def _callbacks(
    recipe: Recipe, folder: RunFolder, log: "MetricsLog", base: Base | None, origin: Origin | None
) -> list["Callback"]:
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
    if watch.audio_sample is not None:
        from megatron_music.training.callbacks.audio_sample import AudioSamples

        callbacks.append(AudioSamples(log, watch.audio_sample))
    return [*callbacks, CheckpointWriter(log, metrics, folder, recipe.checkpoints, base, origin)]


def _default_processes(recipe: Recipe) -> int:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return gpus if gpus and not gpus % recipe.layout.model_processes else recipe.layout.model_processes
