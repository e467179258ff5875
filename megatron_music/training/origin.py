"""Branches: what a run that starts from another's checkpoint records of where it comes from."""

from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run_folder import RunFolder, has_optimizer, read_imported, read_state
from megatron_music.weight_folder import known_as

ORIGIN = "origin.json"
"""In the folder of a run that branched off, and in each of its checkpoints."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run started from.

    Attributes:
        name: of its recipe, or of the folder that it was imported from.
        step, tokens, phase: where its run stood, counted from that run's start.
        tokens_in_all: what the network had read by then, in that run and in those that it came from; 0 where unknown.
        context_tokens: the longest context that it had read.
        keeps_optimizer: whether the branch goes on with its optimizer state, or starts with none.
        rows: that embedding and head had in the folder that the network was first imported from; None where it began
            here, or where the import was before this was recorded.
    """

    checkpoint: str
    name: str
    step: int
    tokens: int
    phase: str
    tokens_in_all: int
    context_tokens: int
    keeps_optimizer: bool
    rows: int | None = None

    @classmethod
    def of(cls, checkpoint: Path, fresh_optimizer: bool = False) -> "Origin":
        """What is to be recorded of a checkpoint; raises InputError where it is none."""
        state, before = read_state(checkpoint), read_origin(checkpoint)
        imported = read_imported(checkpoint)
        if imported is not None:
            name, context_tokens = known_as(imported.imported_from), 0
        else:
            recipe = Recipe.load(checkpoint / "recipe.yaml")
            read = [phase.name for phase in recipe.phases].index(state.phase) + 1
            name, context_tokens = recipe.name, max(phase.context_tokens for phase in recipe.phases[:read])
        return cls(
            checkpoint=str(Path(checkpoint).resolve()),
            name=name,
            step=state.step,
            tokens=state.tokens,
            phase=state.phase,
            tokens_in_all=state.tokens + (before.tokens_in_all if before else 0),
            context_tokens=max(context_tokens, before.context_tokens if before else 0),
            keeps_optimizer=has_optimizer(checkpoint) and not fresh_optimizer,
            rows=rows_that_came(checkpoint),
        )

    def write(self, folder: Path) -> None:
        """Writes ``origin.json`` into the folder of a run or checkpoint."""
        write_json(folder / ORIGIN, asdict(self))


def read_origin(folder: Path) -> Origin | None:
    """The origin of a run or of a checkpoint; None where it began from nothing."""
    path = Path(folder) / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin(**read_json(path))
    except TypeError:
        raise InputError(path, "does not tell of an origin", "restore it, or start another run") from None


def rows_that_came(checkpoint: Path) -> int | None:
    """Rows of embedding and head in the folder that a network was imported from, whatever it has learned since.

    None where it began here, or where the import was before this was recorded.
    """
    imported = read_imported(checkpoint)
    recorded = imported if imported is not None else read_origin(checkpoint)
    return recorded.rows if recorded is not None else None


def origin_of_run(recipe: Recipe, branch_from: Path | None, fresh_optimizer: bool) -> Origin | None:
    """Where a run starts, or has started where it has begun before; None for a run from nothing.

    Raises:
        InputError: the run has checkpoints and began elsewhere than at ``branch_from``; or the optimizer of no
            checkpoint is to be left out.
    """
    folder = RunFolder(recipe.run)
    recorded = read_origin(folder.path)
    if branch_from is None:
        if fresh_optimizer and recorded is None:
            raise InputError(
                "--fresh-optimizer", "is given without a checkpoint to start from", "add --from CHECKPOINT"
            )
        return recorded
    if folder.newest_checkpoint() is None:
        return Origin.of(branch_from, fresh_optimizer)
    # Adapters may name the place to which the network below them was moved.
    if recipe.lora is None and (recorded is None or recorded.checkpoint != str(Path(branch_from).resolve())):
        began = f"from {recorded.checkpoint}" if recorded else "from nothing"
        raise InputError(folder.path, f"the run in there began {began}, not from {branch_from}",
                         "leave out --from to go on with it, or choose another run folder (--set run=...)")  # fmt: skip
    return recorded


def start_of_run(recipe: Recipe, branch_from: Path | None, origin: Origin | None) -> Path | None:
    """The checkpoint to read before the first step: the one named or, after a kill before any other, the recorded."""
    if branch_from is None and origin is not None and RunFolder(recipe.run).newest_checkpoint() is None:
        return Path(origin.checkpoint)
    return branch_from


def reads_again(recipe: Recipe, origin: Origin) -> list[str]:
    """Sources of a branch that begin with the very documents that its origin's run began with."""
    path = Path(origin.checkpoint) / "recipe.yaml"
    if not path.is_file():
        return []
    before = Recipe.load(path)
    if (before.corpus, before.seed) != (recipe.corpus, recipe.seed):
        return []
    return [name for name in recipe.source_names if name in before.source_names]
