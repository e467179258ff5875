"""One phase of a recipe: its tokens, context, batch, learning rate and mixture."""

from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from megatron_music.recipe.fields import Count, Strict
from megatron_music.recipe.mixture import Mixture


class LearningRate(Strict):
    """A learning rate over the tokens of one phase, from ``start`` to ``end``."""

    shape: Literal["constant", "linear", "cosine"]
    start: float = Field(ge=0)
    end: float = Field(ge=0)

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        # YAML reads 3e-4, without a point, as text; the fields take text that spells a number.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return {"shape": "constant", "start": value, "end": value}
        return value

    @model_validator(mode="after")
    def _flat(self) -> Self:
        if self.shape == "constant" and self.start != self.end:
            raise ValueError("a constant learning rate needs start equal to end; or choose linear or cosine")
        return self


class BatchRamp(Strict):
    """A batch that grows by equal additions, each held for the same number of tokens, to the phase's.

    As Megatron-LM's ``--rampup-batch-size START INCREMENT SAMPLES``, which counts samples where this counts tokens.
    """

    start_sequences: int = Field(gt=0, description="sequences of the phase's first step")
    add_sequences: int = Field(gt=0, description="sequences added each time")
    tokens: Count = Field(gt=0, description="tokens of the phase after which the batch is whole")


LossGroup = Literal["text", "special", "vocal", "accompaniment", "mix", "speech", "residual", "reference"]
"""Tokens that can be left out of the loss: the groups that it is reported for, and references."""


class Loss(Strict):
    """Which tokens count in the loss; the others are read and not learned."""

    without: list[LossGroup] = Field([], description="kinds of tokens; `reference` is that of in-context learning")

    @field_validator("without")
    @classmethod
    def _leaves_some(cls, without: list[str]) -> list[str]:
        if set(without) >= set(get_args(LossGroup)) - {"reference"}:
            raise ValueError("leaves no token to learn; take a kind out of the list")
        return without


class Phase(Strict):
    """A stretch of training with one context length, batch, mixture and learning-rate shape."""

    name: str = Field(min_length=1)
    tokens: Count = Field(gt=0)
    context_tokens: Count = Field(gt=1)
    batch_sequences: int = Field(gt=0, description="sequences of one optimizer step, over all processes")
    batch_ramp: BatchRamp | None = Field(None, description="a batch that grows to batch_sequences")
    micro_batch_sequences: int = Field(1, gt=0, description="sequences of one forward pass on one process")
    learning_rate: LearningRate
    mixture: Mixture
    loss: Loss | None = Field(None, description="in place of the recipe's")

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, once the batch is whole."""
        return self.context_tokens * self.batch_sequences

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of a step at every level of the ramp, the whole batch last."""
        ramp = self.batch_ramp
        if ramp is None:
            return [self.batch_sequences]
        return list(range(ramp.start_sequences, self.batch_sequences + 1, ramp.add_sequences))

    @model_validator(mode="after")
    def _ramps(self) -> Self:
        ramp = self.batch_ramp
        if ramp is None:
            return self
        if ramp.start_sequences >= self.batch_sequences:
            raise ValueError(f"batch_ramp.start_sequences {ramp.start_sequences} is not below batch_sequences "
                             f"{self.batch_sequences}; lower it, or leave batch_ramp out")  # fmt: skip
        if (self.batch_sequences - ramp.start_sequences) % ramp.add_sequences:
            raise ValueError(f"batch_ramp.add_sequences {ramp.add_sequences} does not lead from start_sequences "
                             f"{ramp.start_sequences} to batch_sequences {self.batch_sequences}; "
                             f"choose a divisor of {self.batch_sequences - ramp.start_sequences}")  # fmt: skip
        if ramp.tokens > self.tokens:
            raise ValueError(f"batch_ramp.tokens {ramp.tokens} is above the phase's tokens {self.tokens}; "
                             "shorten the ramp")  # fmt: skip
        return self
