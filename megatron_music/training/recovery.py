"""Skipped updates seen from the host: told and counted, and after several of them undone, with the data passed."""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_music.engine.optimizer import Update
from megatron_music.engine.processes import from_first
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Skip
from megatron_music.training.newest import newest_whole
from megatron_music.training.run_folder import RunFolder
from megatron_music.training.troubles import Rollback, Troubles

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer
    from megatron_music.training.metrics_log import MetricsLog


class Recovery:
    """Follows what the guard decides on the device, and brings the run back where too many updates were left out.

    On a GPU a decision is read once the step behind it has been handed over, so that the GPU always has work. Every
    process reads the same decisions at the same step, and so does a run that is resumed.
    """

    def __init__(self, log: "MetricsLog", folder: RunFolder, rule: Skip, troubles: Troubles):
        self.log, self.folder, self.rule, self.troubles = log, folder, rule, troubles
        self._unread: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()

    def note(self, step: int, update: Update) -> None:
        """Keeps the decision about step number ``step`` for ``settle``."""
        told = torch.stack([update.skipped.double(), update.loss, update.limit, update.gradient_norm.double()])
        if not told.is_cuda:
            self._unread.append((step, told, None))
            return
        copied, arrived = torch.empty(told.shape, dtype=told.dtype, pin_memory=True), torch.cuda.Event()
        copied.copy_(told, non_blocking=True)
        arrived.record()
        self._unread.append((step, copied, arrived))

    def settle(self, behind: int = 0) -> None:
        """Reads the decisions about all steps but the last ``behind``, and tells of updates that were left out."""
        while len(self._unread) > behind:
            step, told, arrived = self._unread.popleft()
            if arrived is not None:
                arrived.synchronize()
            skipped, loss, limit, gradient_norm = told.tolist()
            if skipped:
                self.troubles.skipped.append(step)
                self.log.event(step, "skipped", loss=loss, limit=limit, gradient_norm=gradient_norm)
                self.log.say(f"step {step}  skipped: loss {loss:.3f} (limit {limit:.3f}), norm {gradient_norm:.2f}")

    def record(self, trainer: "Trainer") -> Troubles:
        """What a checkpoint of this moment has to tell, for which the host waits."""
        self.settle()
        return Troubles(list(self.troubles.skipped), list(self.troubles.rollbacks), trainer.engine.guard.recent_losses)

    def next_step(self, trainer: "Trainer", index: int, last_step: int) -> int:
        """The step to do, counted from 0: ``index``, or after a rollback the one behind its checkpoint.

        At ``last_step`` nothing is left unread.

        Raises:
            InputError: on all processes, where there is nothing to go back to, or the run has gone back too often.
        """
        self.settle(behind=1 if trainer.engine.device.type == "cuda" and index < last_step else 0)
        undone = self.troubles.to_undo(self.rule)
        if undone is None:
            return index
        self.settle()
        for callback in trainer.callbacks:
            callback.before_rollback(trainer)
        first, last = undone
        good = newest_whole(self.folder, before=first)
        if good is None:
            raise InputError(self.folder.path, f"steps {first} to {last} were skipped, and no checkpoint is from "
                             "before them", "look at the data and the learning rate there")  # fmt: skip
        self.troubles.rollbacks.append(Rollback(index, good[1].step, first, last))
        self._go_back(trainer, good[0])
        self.troubles.check(self.rule, self.folder.path)
        return good[1].step

    def _go_back(self, trainer: "Trainer", checkpoint: Path) -> None:
        # The record first: a run that is killed from here on goes back when it is started again.
        from_first(lambda: Troubles(rollbacks=self.troubles.rollbacks).write(self.folder.path))
        from_first(lambda: self.folder.remove_undone(self.troubles))
        trainer.engine.load(checkpoint)
        before, rollback = Troubles.read(checkpoint), self.troubles.rollbacks[-1]
        self.troubles.skipped, trainer.engine.guard.recent_losses = before.skipped, before.recent_losses
        self.log.go_back(rollback.to, self.troubles.rollbacks)
        passed = f"steps {rollback.first} to {rollback.last} are passed"
        self.log.say(f"step {rollback.at}  went back to {checkpoint}; {passed}")
