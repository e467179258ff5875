"""The newest complete checkpoint of a run as an exported folder, while the run writes others and removes this one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_music.conversion.export import export_checkpoint
from megatron_music.engine.integrity import size_fault
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run_folder import CheckpointState, RunFolder, read_state

_MOST_TRIES = 5


@dataclass(frozen=True)
class Exported:
    """A Llama folder that lasts as long as the ``with`` block, and the state of the checkpoint that it is of."""

    folder: Path
    checkpoint: str
    state: CheckpointState


@contextmanager
def newest_exported(run: Path, recipe: Recipe, corpus: Path | None = None) -> Iterator[Exported]:
    """Exports the newest complete checkpoint to a temporary folder (of TMPDIR); nothing is written into the run.

    A run removes old checkpoints while it goes on: where the one being read goes, the next newest is taken.

    Raises:
        InputError: there is no complete checkpoint, or it can't be exported, as where its corpus is gone.
    """
    dtype = "bfloat16" if recipe.is_bf16 else "float32"
    with tempfile.TemporaryDirectory(prefix="megatron-music-") as folder:
        for _ in range(_MOST_TRIES):
            checkpoint = _newest(RunFolder(run))
            if checkpoint is None:
                raise InputError(run, "has no complete checkpoint yet", "wait for its first (checkpoints.every_steps)")
            try:
                state = read_state(checkpoint)
                export_checkpoint(checkpoint, Path(folder) / "hf", dtype=dtype, corpus=corpus, say=lambda _: None)
                break
            except (InputError, OSError):
                if checkpoint.is_dir():
                    raise
        else:
            raise InputError(run, f"{_MOST_TRIES} checkpoints were removed while they were read",
                             "raise checkpoints.keep, or look again when it saves less often")  # fmt: skip
        yield Exported(Path(folder) / "hf", checkpoint.name, state)


def _newest(run: RunFolder) -> Path | None:
    for checkpoint in reversed(run.step_folders()):
        try:
            if size_fault(checkpoint) is None:
                return checkpoint
        except OSError:
            continue  # it went between the listing and the look
    return None
