"""The newest complete checkpoint of a run as an exported folder, while the run writes others and removes this one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_music.conversion.export import export_checkpoint
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run_folder import CheckpointState, RunFolder


@dataclass(frozen=True)
class Exported:
    """A Llama folder that lasts as long as the ``with`` block, and the state of the checkpoint that it is of."""

    folder: Path
    checkpoint: str
    state: CheckpointState


@contextmanager
def newest_exported(run: Path, recipe: Recipe, corpus: Path | None = None) -> Iterator[Exported]:
    """Exports the newest complete checkpoint to a temporary folder (of TMPDIR); nothing is written into the run.

    Where the one being read is removed meanwhile, the next newest is taken.

    Raises:
        InputError: there is no complete checkpoint, or it can't be exported, as where its corpus is gone.
    """
    dtype = "bfloat16" if recipe.is_bf16 else "float32"
    with tempfile.TemporaryDirectory(prefix="megatron-music-") as folder:
        out = Path(folder) / "hf"

        def export(checkpoint: Path, state: CheckpointState) -> Exported:
            export_checkpoint(checkpoint, out, dtype=dtype, corpus=corpus, say=lambda _: None)
            return Exported(out, checkpoint.name, state)

        yield RunFolder(run).on_newest(export)
