"""A checkpoint that came from elsewhere: what every importer writes.

It holds no optimizer state and stands at step 0 of no phase. Beside the weights it carries its network, the vocabulary,
the text tokenizer and what else the source has of an export.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.engine.integrity import names_of_files, synced_marks, write_list
from megatron_music.files import atomic_path, write_json
from megatron_music.training.run_folder import CheckpointState, Imported, write_state
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from megatron_music.conversion.checkpoint import Row

AS_IT_CAME = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
"""Files that go out again with a network that was not trained further."""


@dataclass(frozen=True)
class Words:
    """The vocabulary and the SentencePiece model of a network, with their files."""

    vocabulary: Vocabulary
    vocabulary_path: Path
    tokenizer_path: Path

    @classmethod
    def open(cls, folder: Path, vocabulary: str | Path | None, tokenizer: str | Path | None) -> "Words":
        """Those named, or those that lie in ``folder``; raises InputError where they are missing or do not fit."""
        vocabulary_path = Path(vocabulary or folder / "vocabulary.yaml")
        tokenizer_path = Path(tokenizer or folder / "tokenizer.model")
        found = Vocabulary.load(vocabulary_path)
        TextTokenizer(tokenizer_path, found)
        return cls(found, vocabulary_path, tokenizer_path)


def write_imported(
    out: str | Path,
    imported: Imported,
    words: Words,
    source: Path,
    rows: list["Row"],
    codec_in: Path | None = None,
    documents: dict[str, Any] | None = None,
) -> None:
    """Writes the checkpoint of a network that came from the folder ``source``; ``out`` appears whole.

    Args:
        imported: what is recorded of it.
        codec_in: the folder whose ``codec`` goes with it, if it is another.
        documents: what the network has read, where ``source`` has no file that tells.
    """
    from megatron_music.conversion.checkpoint import write_checkpoint

    with atomic_path(out) as checkpoint:
        checkpoint.mkdir()
        marks = write_checkpoint(checkpoint, rows)
        shutil.copyfile(words.vocabulary_path, checkpoint / "vocabulary.yaml")
        shutil.copyfile(words.tokenizer_path, checkpoint / "tokenizer.model")
        for name in ("documents.json", *AS_IT_CAME):
            if (source / name).is_file():
                shutil.copyfile(source / name, checkpoint / name)
        if documents is not None:
            write_json(checkpoint / "documents.json", documents)
        codec = (codec_in or source) / "codec"
        if codec.is_dir():
            shutil.copytree(codec, checkpoint / "codec")
        imported.write(checkpoint)
        write_state(checkpoint, CheckpointState(0, 0, "import", True))
        write_list(checkpoint, marks | synced_marks(checkpoint, names_of_files(checkpoint) - marks.keys()))


def with_padding(tensor: "torch.Tensor", shape: tuple[int, ...]) -> "torch.Tensor":
    """``tensor`` with as many rows as ``shape`` has: zeros for ids that it lacks, its own padding cut away."""
    if len(tensor) >= shape[0]:
        return tensor[: shape[0]]
    row = tensor.new_zeros(shape)
    row[: len(tensor)] = tensor
    return row
