"""The loop: for every step of every phase forward, backward, update; everything else is a callback."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_music.corpus.stream import SampleStream
from megatron_music.engine.engine import Engine
from megatron_music.recipe.phases import Step, phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.data import Loader
from megatron_music.training.marks import marks_of
from megatron_music.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class StepReport:
    """A step that has been done.

    Attributes:
        step: what it did.
        loss_table: this process' (2, kinds) sums of nats and counts of tokens, as ``Engine.forward_backward`` gives.
        gradient_norm: () norm over all processes, before clipping; reading it waits for the GPU.
    """

    step: Step
    loss_table: torch.Tensor
    gradient_norm: torch.Tensor


class Callback(Protocol):
    """Something that happens beside the steps, on every process."""

    def at_start(self, trainer: "Trainer") -> None:
        """Called once, before the first step of a run that starts from nothing."""

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Called after every step."""

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
    ):
        self.recipe, self.vocabulary, self.engine, self.stream = recipe, vocabulary, engine, stream
        self.callbacks = callbacks
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
        if first_step == 0:
            for callback in self.callbacks:
                callback.at_start(self)
        engine = self.engine
        loader = Loader(self.stream, self.spans, self.marks, engine.data_rank, engine.data_processes, engine.device)
        done, failed = first_step, True
        try:
            for index in range(first_step, last_step):
                step = step_at(self.spans, index)
                loss_table = engine.forward_backward(loader.batches(step), step=index)
                report = StepReport(step, loss_table, engine.step(step.learning_rate))
                for callback in self.callbacks:
                    callback.after_step(self, report)
                done = index + 1
                if self.is_stopping:
                    break
            failed = False
            return done
        finally:
            loader.close()
            for callback in self.callbacks:
                callback.at_end(self, failed)
