"""Updates that were left out, and what was undone for them: ``skips.json`` in a run and in each of its checkpoints."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.recipe.recipe import Skip

SKIPS = "skips.json"


@dataclass(frozen=True)
class Rollback:
    """A return to a checkpoint. Steps are numbered from 1, as in ``metrics.jsonl``.

    Attributes:
        at: the step behind which it happened.
        to: the step of the checkpoint, which lies before ``first``.
        first, last: steps that are passed from then on: their data is counted as consumed, and nothing is learned.
    """

    at: int
    to: int
    first: int
    last: int


@dataclass
class Troubles:
    """What has gone wrong in a run up to some step.

    Attributes:
        skipped: steps whose update was left out, of those that made the weights (none that a rollback has undone).
        rollbacks: in their order.
        recent_losses: in a checkpoint, the window of ``StepGuard``.
    """

    skipped: list[int] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    recent_losses: list[float | None] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Troubles":
        """Those of a run or checkpoint; none where it has no record."""
        path = Path(folder) / SKIPS
        if not path.is_file():
            return cls()
        content = read_json(path)
        try:
            rollbacks = [Rollback(**rollback) for rollback in content["rollbacks"]]
            return cls(content["skipped"], rollbacks, content["recent_losses"])
        except (KeyError, TypeError):
            raise InputError(path, "is no record of skipped steps", "restore it from a checkpoint of the run") from None

    def write(self, folder: Path) -> None:
        """Writes ``skips.json`` into the folder of a run or of a checkpoint."""
        write_json(Path(folder) / SKIPS, asdict(self))

    def passes(self, step: int) -> bool:
        """Whether step number ``step`` is passed."""
        return any(rollback.first <= step <= rollback.last for rollback in self.rollbacks)

    def to_undo(self, rule: Skip) -> tuple[int, int] | None:
        """The first and the last step of a trouble that asks for a rollback."""
        latest = self.skipped[-rule.roll_back_after :]
        if len(latest) == rule.roll_back_after and latest[-1] - latest[0] < rule.within_steps:
            return latest[0], latest[-1]
        return None

    def oldest_open(self, rule: Skip, step: int) -> int | None:
        """The first skipped step that a rollback behind ``step``, or behind a later one, can still be for."""
        return next((skipped for skipped in self.skipped if skipped > step - rule.within_steps), None)

    def undoes(self, step: int, rollbacks_before: int) -> bool:
        """Whether a checkpoint after ``step`` steps, written when so many rollbacks had happened, has been undone."""
        return any(step > rollback.to for rollback in self.rollbacks[rollbacks_before:])

    def check(self, rule: Skip, run: Path) -> None:
        """Raises InputError where the run has gone back more often than ``rule`` lets it."""
        if len(self.rollbacks) > rule.most_rollbacks:
            raise InputError(run, f"the run has gone back {len(self.rollbacks)} times, {_places(self.rollbacks)}, and "
                             "finds no way on", "look at the data and the learning rate there; raise "
                             "skip.most_rollbacks to let it go on")  # fmt: skip


def _places(rollbacks: Sequence[Rollback]) -> str:
    last = rollbacks[-1]
    return f"the last time for steps {last.first} to {last.last}"
