"""A checkpoint's network alone, in torch's distributed format as megatron-core writes it: a seventh of its size.

`train --from` starts from it, with a fresh optimizer, and other Megatron tools read it.
"""

from dataclasses import replace
from pathlib import Path

from megatron_music.conversion.export import Trained, refuse_foreign_folder
from megatron_music.conversion.import_megatron import network_rows
from megatron_music.conversion.imported import Words, write_imported
from megatron_music.errors import InputError
from megatron_music.training.base import holds_adapters
from megatron_music.training.run_folder import STATE, Imported


def export_megatron(checkpoint: Path, out: Path, corpus: Path | None = None) -> None:
    """Writes the weights of ``checkpoint`` in their own type, without the optimizer; ``out`` appears whole.

    Memory holds one layer's tensor at a time.

    Raises:
        InputError: the folder is no checkpoint, is damaged, or holds adapters.
    """
    from megatron_music.conversion.checkpoint import CheckpointReader

    refuse_foreign_folder(out, STATE)
    trained = Trained.open(checkpoint, corpus)
    if holds_adapters(trained.checkpoint):
        mend = "export it merged (--format huggingface) and import that"
        raise InputError(trained.checkpoint, "holds adapters and no whole network", mend)
    words = Words.open(trained.corpus, None, None)
    rows = list(network_rows(CheckpointReader(trained.checkpoint), trained.network, trained.vocabulary))
    imported = trained.imported or Imported(trained.network, str(trained.checkpoint.resolve()))
    imported = replace(imported, imported_from=str(trained.checkpoint.resolve()), rows=trained.rows)
    write_imported(out, imported, words, trained.checkpoint, rows, trained.corpus, trained.documents())
