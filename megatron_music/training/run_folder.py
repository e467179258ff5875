"""A run's folder: ``recipe.yaml``, ``corpus.json``, ``checkpoints/step_N/``, ``metrics.jsonl``, ``tensorboard/``."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_music.corpus.blend import read_stocks
from megatron_music.engine.integrity import BEFORE, size_fault
from megatron_music.errors import InputError
from megatron_music.files import read_json, read_text, write_json, write_text
from megatron_music.recipe.differences import differences
from megatron_music.recipe.recipe import Network, Recipe
from megatron_music.training.events import METRICS, ROLLED_BACK
from megatron_music.training.troubles import Rollback, Troubles
from megatron_music.vocabulary.vocabulary import Vocabulary

_FIXED = ("seed", "vocabulary", "corpus", "network", "optimizer", "lora", "groups", "attention", "loss", "phases")
"""Fields of a recipe that decide what is learned: a run that is resumed may not change them."""


STATE = "state.json"
"""In every checkpoint: where its run stood; without it a folder is none."""
NETWORK = "network.json"
"""In a checkpoint that was imported, in place of the ``recipe.yaml`` of one that was trained: its network, and where it
came from."""


@dataclass(frozen=True)
class CheckpointState:
    """Where a run stood when a checkpoint was written; ``state.json`` in its folder."""

    step: int
    tokens: int
    phase: str
    ends_phase: bool
    is_milestone: bool = False


_STEP, _DAMAGED = re.compile(r"step_(\d+)"), "damaged_"
_MOST_TRIES = 5
T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """Paths and checkpoints of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Everything measured, one JSON object a line."""
        return self.path / METRICS

    @property
    def stacks(self) -> Path:
        """Where the watchdog writes the stacks of processes that hang."""
        return self.path / "stacks"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after ``step`` steps."""
        return self.checkpoints / f"step_{step:06d}"

    def check_corpus(self, recipe: Recipe) -> None:
        """Raises InputError where a source is not the one that the run began with; its order would be another's.

        ``corpus.json`` has what the sources were at the start. A folder without it is of no run yet.
        """
        if self._sources.is_file():
            before, now = read_json(self._sources), _stocks(recipe)
            changed = next((name for name in now if before.get(name) != now[name]), None)
            if changed is not None:
                raise InputError(recipe.corpus / changed, "is not what it was when the run in "
                                 f"{self.path} began", "restore that corpus, or start another run")  # fmt: skip

    @property
    def _sources(self) -> Path:
        return self.path / "corpus.json"

    def step_folders(self, before: int | None = None) -> list[Path]:
        """Folders of checkpoints, oldest first, whatever is in them; half-written ones have another name.

        Where a step (from 1) is named, only those of less steps than it.
        """
        found = (folder for folder in self.checkpoints.glob("step_*") if _STEP.fullmatch(folder.name))
        steps = sorted((int(folder.name.removeprefix("step_")), folder) for folder in found)
        return [folder for step, folder in steps if before is None or step < before]

    def complete_checkpoints(self) -> list[tuple[Path, CheckpointState]]:
        """Checkpoints whose files have the sizes that they were written with, oldest first."""
        looked_at = ((folder, _look_at(folder)) for folder in self.step_folders())
        return [(folder, found) for folder, found in looked_at if isinstance(found, CheckpointState)]

    def newest_checkpoint(
        self, before: int | None = None, pass_over: Callable[[Path, str], object] | None = None
    ) -> tuple[Path, CheckpointState] | None:
        """The newest complete checkpoint, from before a step where one is named; None where there is none.

        Args:
            pass_over: is told of each newer one that is damaged, and what is wrong with it.
        """
        for folder in reversed(self.step_folders(before)):
            found = _look_at(folder)
            if isinstance(found, CheckpointState):
                return folder, found
            if found is not None and pass_over is not None:
                pass_over(folder, found)
        return None

    def on_newest(self, use: Callable[[Path, CheckpointState], T]) -> T:
        """What ``use`` makes of the newest complete checkpoint.

        A run removes old checkpoints while it goes on: where the one in use goes, the next newest is taken.

        Raises:
            InputError: there is no complete checkpoint, or one after another was removed.
        """
        for _ in range(_MOST_TRIES):
            newest = self.newest_checkpoint()
            if newest is None:
                raise InputError(self.path, "has no complete checkpoint yet", "wait for its first "
                                 "(checkpoints.every_steps)")  # fmt: skip
            try:
                return use(*newest)
            except (InputError, OSError):
                if newest[0].is_dir():
                    raise
        raise InputError(self.path, f"{_MOST_TRIES} checkpoints were removed while they were read",
                         "raise checkpoints.keep, or look again when it saves less often")  # fmt: skip

    def set_aside(self, checkpoint: Path) -> Path:
        """Gives a damaged checkpoint another name, so that the run can write it again; returns that."""
        aside = checkpoint.with_name(_DAMAGED + checkpoint.name)
        number = 1
        while aside.exists():
            number += 1
            aside = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}.{number}")
        return checkpoint.rename(aside)

    def damaged_checkpoints(self) -> list[Path]:
        """Those that were set aside."""
        return sorted(self.checkpoints.glob(f"{_DAMAGED}step_*"))

    def open(self, recipe: Recipe) -> list[str]:
        """Prepares the folder for ``recipe`` and clears what a killed run left half-written.

        Returns what is not as in the recipe that the folder was opened with before: ``layout.tensor 2, was 1``.

        Raises InputError where the folder holds another run.
        """
        saved, changed = self.path / "recipe.yaml", []
        if saved.exists():
            before = Recipe.load(saved)
            for field in _FIXED:
                if getattr(before, field) != getattr(recipe, field):
                    raise InputError(saved, f"this run was started with another `{field}`",
                                     "choose another run folder (--set run=...) or delete this one")  # fmt: skip
            changed = [f"{name} {new}, was {old}" for name, (old, new) in differences(before, recipe).items()]
        self.check_corpus(recipe)
        recipe.save(saved)
        write_json(self._sources, _stocks(recipe))
        if self.checkpoints.is_dir():
            for before in self.checkpoints.glob(f".step_*{BEFORE}"):
                final = before.with_name(before.name.removeprefix(".").removesuffix(BEFORE))
                if not final.exists():
                    before.rename(final)
            for leftover in self.checkpoints.glob(".step_*"):
                shutil.rmtree(leftover)
        self.remove_undone(Troubles.read(self.path))
        return changed

    def troubles(self, newest: Path | None) -> Troubles:
        """Where a run that goes on from ``newest`` stands: with the checkpoint's record, and all of its rollbacks."""
        found = Troubles.read(newest) if newest is not None else Troubles()
        of_run = Troubles.read(self.path).rollbacks
        # A checkpoint from before a rollback does not know of it; one that was copied here knows more than the folder.
        found.rollbacks = max(found.rollbacks, of_run, key=len)
        return found

    def remove_old(self, keep: int, before: int | None = None) -> None:
        """Removes all complete checkpoints but the latest ``keep``, milestones and those at the end of a phase.

        The latest before step ``before`` stays too: a rollback would go back to it.
        """
        complete = self.complete_checkpoints()
        needed = [folder for folder, state in complete if before is not None and state.step < before][-1:]
        for folder, state in complete[:-keep]:
            if not (state.ends_phase or state.is_milestone or folder in needed):
                self._remove(folder)

    def remove_undone(self, troubles: Troubles) -> None:
        """Removes checkpoints of steps that rollbacks have undone since they were written."""
        for folder, state in self.complete_checkpoints():
            if troubles.undoes(state.step, len(Troubles.read(folder).rollbacks)):
                self._remove(folder)

    @staticmethod
    def _remove(checkpoint: Path) -> None:
        # A folder that is going must not look complete while it goes.
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}")))

    def forget_metrics_after(self, step: int, rollbacks: Sequence[Rollback]) -> None:
        """Drops what was measured after a checkpoint, since those steps are done again, and tells of new rollbacks.

        Events up to the last rollback stay: the steps that they tell of are not done again.
        """
        if not self.metrics.exists():
            return
        lines = read_text(self.metrics).splitlines()
        events = [number for number, line in enumerate(lines) if '"event": ' in line]
        told = [number for number in events if f'"event": "{ROLLED_BACK}"' in lines[number]]
        untold = rollbacks[len(told) :]
        settled = {number for number in events if untold or number <= max(told, default=-1)}
        kept = [line for number, line in enumerate(lines) if number in settled or _step_of(line) <= step]
        kept += [json.dumps({"step": rollback.at, "event": ROLLED_BACK, **asdict(rollback)}) for rollback in untold]
        if kept != lines:
            write_text(self.metrics, "".join(f"{line}\n" for line in kept))


def _look_at(checkpoint: Path) -> CheckpointState | str | None:
    """A checkpoint's state, or what is wrong with its files; None where it went while it was looked at."""
    try:
        return size_fault(checkpoint) or read_state(checkpoint)
    except (InputError, OSError):
        if checkpoint.is_dir():
            raise
        return None


def _stocks(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {name: asdict(stock) for name, stock in read_stocks(recipe).items()}


def read_state(checkpoint: Path) -> CheckpointState:
    """State of a checkpoint folder; raises InputError where it is not one."""
    path = checkpoint / STATE
    if not path.is_file():
        raise InputError(checkpoint, f"is not a checkpoint: no {STATE}", "name one such as RUN/checkpoints/step_000100")
    try:
        return CheckpointState(**read_json(path))
    except TypeError:
        raise InputError(path, "does not hold a checkpoint's state", "choose another checkpoint") from None


@dataclass(frozen=True)
class Imported:
    """What an imported checkpoint records beside its weights; ``network.json`` in its folder.

    Attributes:
        imported_from: the folder that it came from.
        rows: that embedding and head had there; None where it is not on record, as of imports before it was.
        config: the fields of its ``config.json``; None where it had none.
        is_tied: whether it had no head, the embedding serving as one.
    """

    network: Network
    imported_from: str
    rows: int | None = None
    config: dict[str, Any] | None = None
    is_tied: bool = False

    def write(self, checkpoint: Path) -> None:
        """Writes ``network.json`` into a checkpoint folder."""
        fields = vars(self) | {"network": self.network.model_dump()}
        write_json(checkpoint / NETWORK, {name: value for name, value in fields.items() if value is not None})


def read_imported(checkpoint: Path) -> Imported | None:
    """What is recorded of an imported checkpoint; None of one that was trained. Raises InputError where it is none."""
    path = checkpoint / NETWORK
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        return Imported(**content | {"network": Network(**content["network"])})
    except (KeyError, TypeError, ValueError):
        raise InputError(path, "does not tell of an imported network", "import it again") from None


def read_network(checkpoint: Path) -> Network:
    """The network that a checkpoint's weights belong to, whether it was trained or imported."""
    imported = read_imported(checkpoint)
    return imported.network if imported is not None else Recipe.load(checkpoint / "recipe.yaml").network


def read_vocabulary(checkpoint: Path) -> Vocabulary | None:
    """The vocabulary that a checkpoint was trained with; None where its file is no longer there."""
    is_imported = (checkpoint / NETWORK).is_file()
    path = checkpoint / "vocabulary.yaml" if is_imported else Recipe.load(checkpoint / "recipe.yaml").vocabulary
    return Vocabulary.load(path) if path.is_file() else None


def has_optimizer(checkpoint: Path) -> bool:
    """Whether a checkpoint holds optimizer state: an imported one does not."""
    return not (checkpoint / NETWORK).is_file()


def write_state(checkpoint: Path, state: CheckpointState) -> None:
    """Writes ``state.json`` into a checkpoint folder."""
    write_json(checkpoint / STATE, asdict(state))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        # The last line of a run that was killed while writing it.
        return float("inf")
