"""Where what is measured goes: ``metrics.jsonl``, TensorBoard, Weights & Biases where asked for, and the terminal."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_music.files import naming
from megatron_music.progress import console
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run_folder import RunFolder
from megatron_music.training.troubles import Rollback

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAYOUT = {
    "Losses": {
        "by kind": ["Multiline", [r"^loss$", r"^loss/.*"]],
        "by task": ["Multiline", [r"^task/.*"]],
        "held out, by kind": ["Multiline", [r"^validation/loss.*"]],
        "held out, by task": ["Multiline", [r"^validation/task/.*"]],
        "invalid tokens": ["Multiline", [r"^invalid_token_share$"]],
    },
    "Optimizer": {
        "gradient norm": ["Multiline", [r"^gradient_norm$"]],
        "gradient norm by part": ["Multiline", [r"^gradient_norm/.*"]],
        "learning rate": ["Multiline", [r"^learning_rate$"]],
    },
    "Data": {"tokens by source": ["Multiline", [r"^tokens/.*"]]},
    "Speed": {
        "tokens a second": ["Multiline", [r"^tokens_per_second$"]],
        "MFU": ["Multiline", [r"^mfu$"]],
        "seconds a step": ["Multiline", [r"^seconds/.*"]],
        "slowest process over the median": ["Multiline", [r"^slowest_over_median$"]],
        "memory, GiB": ["Multiline", [r"^memory/.*"]],
    },
}
"""TensorBoard's page of custom scalars."""


def is_of_the_machine(name: str) -> bool:
    """Whether a value of a line depends on the machine and the hour, so that a repeated run has another."""
    return name.split("/")[0] in ("time", "tokens_per_second", "mfu", "seconds", "memory") or name.startswith("slowest")


class MetricsLog:
    """Where the first process writes what was measured; the others' calls do nothing."""

    def __init__(self, folder: RunFolder, first_step: int, recipe: Recipe | None = None):
        self._folder = folder
        self._file = self._board = self._wandb = None
        self._open(first_step)
        if self._file is not None and recipe is not None and recipe.watch.wandb is not None:
            import wandb

            # The run's name is its id: a run that goes on goes on there.
            self._wandb = wandb.init(
                project=recipe.watch.wandb, id=folder.path.name, name=folder.path.name, resume="allow",
                config=recipe.model_dump(mode="json"), dir=str(folder.path),
            )  # fmt: skip

    def _open(self, step: int) -> None:
        if torch.distributed.get_rank() == 0:
            self._file = self._folder.metrics.open("a", encoding="utf-8")
            self._board = _board(self._folder.path / "tensorboard", step)

    def go_back(self, step: int, rollbacks: Sequence[Rollback]) -> None:
        """Forgets what was measured after ``step``, to which the last of the rollbacks has gone back."""
        if self._file is not None:
            self._file.close()
            self._board.close()
            self._folder.forget_metrics_after(step, rollbacks)
            self._open(step)

    def write(self, step: int, values: dict[str, object]) -> None:
        """One line of ``metrics.jsonl``; numbers also go to TensorBoard."""
        if self._file is None:
            return
        self._line(step, values)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log({**numbers, "step": step})

    def event(self, step: int, name: str, **values: object) -> None:
        """One line of ``metrics.jsonl`` about something that happened behind ``step``."""
        if self._file is not None:
            self._line(step, {"event": name, **values})

    def sound(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        """Audio for TensorBoard, float32 (samples,) in [-1, 1]."""
        if self._file is not None:
            self._board.add_audio(name, torch.from_numpy(samples)[None], step, sample_rate)
            self._board.flush()

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        if self._file is not None:
            console.print(text)

    def close(self) -> None:
        """Ends all files."""
        if self._file is not None:
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _line(self, step: int, values: dict[str, object]) -> None:
        # JSON knows no infinity.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = {"step": step, "time": round(time.time(), 3), **finite}
        with naming(self._folder.metrics):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()


def _board(folder: Path, step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder), purge_step=step + 1)
    if step == 0:
        board.add_custom_scalars(LAYOUT)
    return board
