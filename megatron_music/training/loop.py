"""The loop: for every step of every phase forward, backward, update; everything else is a callback."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_music.corpus.stream import SampleStream
from megatron_music.engine.engine import Engine
from megatron_music.engine.optimizer import Update
from megatron_music.recipe.phases import Step, phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.data import Loader, tasks_of
from megatron_music.training.marks import marks_of
from megatron_music.training.recovery import Recovery
from megatron_music.training.stopwatch import Stopwatch
from megatron_music.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class StepReport:
    """A step that has been done.

    Attributes:
        step: what it did.
        update: what came of it, on the device; None where the step was passed.
    """

    step: Step
    update: Update | None


class Callback:
    """Something that happens beside the steps, on every process."""

    def at_start(self, trainer: "Trainer") -> None:
        """Called once, before the first step of a run that starts from nothing."""

    def at_begin(self, trainer: "Trainer", first_step: int) -> None:
        """Called once, before ``first_step`` (counted from 0) of this start of the run."""

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Called after every step, done or passed."""

    def wants_norms(self, step: Step) -> bool:
        """Whether the gradient's norm by part is asked for, which costs a pass over the gradients."""
        return False

    def before_rollback(self, trainer: "Trainer") -> None:
        """Called before the run goes back to a checkpoint: what is under way has to end."""

    def at_end(self, trainer: "Trainer", failed: bool) -> None:
        """Called once, after the last step or, with ``failed``, where an error ends the run on this process."""


class Trainer:
    """A recipe, its engine on this process and its data, with the callbacks around them."""

    def __init__(
        self,
        recipe: Recipe,
        vocabulary: Vocabulary,
        engine: Engine,
        stream: SampleStream,
        callbacks: Sequence[Callback],
        recovery: Recovery,
    ):
        self.recipe, self.vocabulary, self.engine, self.stream = recipe, vocabulary, engine, stream
        self.callbacks, self.recovery = callbacks, recovery
        self.tasks, self.stopwatch = tasks_of(stream), Stopwatch(engine.device)
        engine.before_reduction = lambda: self.stopwatch.lap("forward_backward")
        self.spans, self.marks = phase_spans(recipe), marks_of(recipe, vocabulary, stream)
        self.is_stopping = False
        """Set by a callback: the run ends after this step."""

    @property
    def last_step(self) -> int:
        """Number of steps of the whole run."""
        return self.spans[-1].last_step

    def run(self, first_step: int = 0, until: int | None = None) -> int:
        """Does the steps from ``first_step`` to the end of the recipe, or ``until`` so many, or until a callback stops.

        Returns the number of steps that are done in all.
        """
        last_step = self.last_step if until is None else until
        for callback in self.callbacks:
            callback.at_begin(self, first_step)
        if first_step == 0:
            for callback in self.callbacks:
                callback.at_start(self)
        engine = self.engine
        loader = Loader(self.stream, self.spans, self.marks, engine.data_rank, engine.data_processes, engine.device)
        done, failed = first_step, True
        try:
            index = self.recovery.next_step(self, first_step, last_step)
            self.stopwatch.restart()
            while index < last_step:
                report = self._do(step_at(self.spans, index), loader)
                for callback in self.callbacks:
                    callback.after_step(self, report)
                self.stopwatch.lap("callbacks")
                done = index + 1
                if self.is_stopping:
                    break
                index = self.recovery.next_step(self, index + 1, last_step)
            failed = False
            return done
        finally:
            loader.close()
            for callback in self.callbacks:
                callback.at_end(self, failed)

    def _do(self, step: Step, loader: Loader) -> StepReport:
        engine, number = self.engine, step.index + 1
        if step.index == step.span.first_step:
            engine.guard.forget()
        if self.recovery.troubles.passes(number):
            return StepReport(step, None)
        batches = loader.batches(step)
        self.stopwatch.lap("data")
        loss_table = engine.forward_backward(batches, step=step.index, tasks=len(self.tasks))
        self.stopwatch.lap("reduction")
        watched = any(callback.wants_norms(step) for callback in self.callbacks)
        update = engine.step(step.learning_rate, loss_table, with_parts=watched)
        self.recovery.note(number, update)
        self.stopwatch.lap("optimizer")
        return StepReport(step, update)
