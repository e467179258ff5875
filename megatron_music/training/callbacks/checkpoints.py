"""Checkpoints at intervals and milestones, at the end of every phase and where the run ends or is stopped.

A checkpoint that can't be written, on a full disk for instance, does not end the run: its steps are worth more than the
place where they could be done again from. The run says so, keeps the checkpoints that it has, and tries again at the
next interval; at its end, where nothing comes after, it ends with the error.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_music.engine.saving import Saving, fault_of
from megatron_music.errors import InputError
from megatron_music.progress import console
from megatron_music.recipe.phases import Step
from megatron_music.recipe.recipe import Checkpoints
from megatron_music.training.base import Base
from megatron_music.training.callbacks.metrics import StepMetrics
from megatron_music.training.loop import Callback, StepReport
from megatron_music.training.metrics_log import MetricsLog
from megatron_music.training.origin import Origin
from megatron_music.training.run_folder import CheckpointState, RunFolder, write_state

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


class CheckpointWriter(Callback):
    """Writes checkpoints that are due, beside training or while it waits, and removes old ones.

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
        self._pending: tuple[CheckpointState, Saving] | None = None
        self._fault: str | None = None
        self._owes_milestone, self._last_step = False, 0

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Starts to write where the step is due; all processes take part."""
        if torch.distributed.get_rank() == 0 and self._pending is not None and self._pending[1].is_done:
            self._finish()  # to tell of it at once
        step, span = report.step, report.step.span
        done = step.index + 1
        is_milestone, ends_phase = self._passes_milestone(step), done == span.last_step
        self._owes_milestone |= is_milestone
        is_due = done % self.options.every_steps == 0 or ends_phase or is_milestone or trainer.is_stopping
        if not is_due:
            return
        self._finish()
        self._start(
            trainer, CheckpointState(done, step.tokens_after, span.phase.name, ends_phase, self._owes_milestone)
        )
        if not self.options.asynchronous:
            self._finish()
        self.metrics.restart_clock(trainer)

    def before_rollback(self, trainer: "Trainer") -> None:
        """Waits for what is being written and removed, so that the folder holds what it will hold."""
        self._finish()
        trainer.engine.finish_saves()

    def at_end(self, trainer: "Trainer", failed: bool) -> None:
        """Waits for what is being written and removed; raises InputError where what the run ends with is not there."""
        self._finish()
        trainer.engine.finish_saves()
        if self._fault is not None and not failed:
            raise InputError(self.folder.checkpoints, f"the last one can't be written: {self._fault}",
                             "make room or mend it and run again")  # fmt: skip

    def _passes_milestone(self, step: Step) -> bool:
        done = step.index + 1
        every_steps, every_tokens = self.options.milestones_every_steps, self.options.milestones_every_tokens
        by_steps = every_steps is not None and done % every_steps == 0
        before = step.tokens_after - step.tokens
        return by_steps or every_tokens is not None and before // every_tokens < step.tokens_after // every_tokens

    def _start(self, trainer: "Trainer", state: CheckpointState) -> None:
        # What follows runs beside the next steps.
        troubles = trainer.recovery.record(trainer)
        needed_before = troubles.oldest_open(trainer.recipe.skip, state.step)

        def complete(folder: Path) -> None:
            troubles.write(folder)
            trainer.recipe.save(folder / "recipe.yaml")
            if self.base is not None:
                self.base.write(folder)
            if self.origin is not None:
                self.origin.write(folder)
            write_state(folder, state)

        self._last_step, self._owes_milestone = trainer.last_step, False
        folder = self.folder.checkpoint(state.step)
        saving = trainer.engine.start_save(folder, complete, lambda: self._remove_old(needed_before))
        self._pending = state, saving

    def _finish(self) -> None:
        """Waits for what is being written, and tells how it went: the same on all processes."""
        if self._pending is None:
            return
        (state, saving), self._pending = self._pending, None
        self._fault = fault = saving.wait()
        if fault is None:
            self.log.say(f"step {state.step}/{self._last_step}  wrote {self.folder.checkpoint(state.step)}")
            self.log.event(state.step, "checkpoint", path=str(self.folder.checkpoint(state.step)))
            return
        self._owes_milestone |= state.is_milestone
        self.log.event(state.step, "checkpoint_failed", why=fault)
        self.log.say(f"WARNING: the checkpoint after step {state.step} can't be written: {fault}; the run goes on, and "
                     "what it learns is lost if it is killed before the next one is written")  # fmt: skip

    def _remove_old(self, needed_before: int | None) -> None:
        """On the first process, in the thread that has written the newest."""
        try:
            self.folder.remove_old(self.options.keep, needed_before)
        except OSError as error:
            console.print(f"WARNING: an old checkpoint can't be removed: {fault_of(error)}")
