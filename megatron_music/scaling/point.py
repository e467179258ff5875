"""A point of a scaling law: what one training of some parameters and tokens came to, and how such are read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_music.scaling.counts import Counted

DECAYED = 0.25
"""A learning rate of at most this share of the highest before it counts as decayed (the recipes end at a tenth)."""


@dataclass(frozen=True)
class Point:
    """What one training came to.

    Attributes:
        losses: nats a token by name: ``loss`` of all tokens, ``vocal``, ``text``, ... by kind.
        learning_rate_left: the last learning rate over the highest; None where it is not known.
        measured_on: where the losses come from; those of one fit have to agree.
    """

    name: str
    parameters: float
    tokens: float
    losses: dict[str, float]
    flops: float | None = None
    learning_rate_left: float | None = None
    measured_on: str = ""

    @property
    def has_decayed(self) -> bool:
        """Whether the loss is known, and is of a learning rate that had decayed."""
        return "loss" in self.losses and self.learning_rate_left is not None and self.learning_rate_left <= DECAYED


@dataclass(frozen=True)
class Options:
    """How points are read.

    Attributes:
        counted: which parameters of a run count.
        phase_ends: the end of every phase whose learning rate had decayed is a point too, and not the run's end alone.
        unfinished: take runs that have not ended, as far as they are.
        loss: ``held_out``, ``training``, or ``auto``: held out where every run has it.
        columns: of a table: ``parameters``, ``tokens``, ``flops``; and ``losses``, by their names in the file.
    """

    counted: Counted = "layers"
    phase_ends: bool = False
    unfinished: bool = False
    loss: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    loss_columns: Sequence[str] = ()
