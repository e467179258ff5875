"""Checkpoints at intervals, at the end of every phase, and where the run ends or is stopped."""

import os
from typing import TYPE_CHECKING

import torch

from megatron_music.recipe.recipe import Checkpoints
from megatron_music.training.base import Base
from megatron_music.training.callbacks.metrics import MetricsLog, StepMetrics
from megatron_music.training.loop import StepReport
from megatron_music.training.origin import Origin
from megatron_music.training.run_folder import CheckpointState, RunFolder, write_state

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


class CheckpointWriter:
    """Writes a checkpoint under another name and renames it once every process has finished.

    One of adapters names the ``base`` that they are trained on, one of a branch its ``origin``.
    """

    def __init__(
        self,
        log: MetricsLog,
        metrics: StepMetrics,
        folder: RunFolder,
        options: Checkpoints,
        base: Base | None,
        origin: Origin | None,
    ):
        self.log, self.metrics, self.folder, self.options = log, metrics, folder, options
        self.base, self.origin = base, origin

    def at_start(self, trainer: "Trainer") -> None:
        """There is nothing to keep yet."""

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Writes where the step is due; all processes take part."""
        step, span = report.step, report.step.span
        done = step.index + 1
        if done % self.options.every_steps and done != span.last_step and not trainer.is_stopping:
            return
        final = self.folder.checkpoint(done)
        unfinished = final.with_name(f".{final.name}")
        first = torch.distributed.get_rank() == 0
        if first:
            unfinished.mkdir(parents=True)
        torch.distributed.barrier()
        trainer.engine.save(unfinished)
        if first:
            trainer.recipe.save(unfinished / "recipe.yaml")
            if self.base is not None:
                self.base.write(unfinished)
            if self.origin is not None:
                self.origin.write(unfinished)
            write_state(unfinished, CheckpointState(done, step.tokens_after, span.phase.name, done == span.last_step))
            os.replace(unfinished, final)
            self.folder.remove_old(self.options.keep)
        torch.distributed.barrier()
        self.log.say(f"step {done}/{trainer.last_step}  wrote {final}")
        self.metrics.restart_clock()
