"""Exported model folders: a Llama network with the vocabulary, the text tokenizer and the codec that belong to it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.progress import quiet_transformers
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary
from megatron_music.weight_folder import WeightFolder, snapshot

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

EXPORT_AGAIN = "name a folder that `megatron-music export` wrote"
# The decoder makes one table of positions: rotary embeddings that change with the length read can't be told by it.
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
FILE_END_BYTES = 2**20
STAGE1_TASKS, STAGE2_TASKS = ("lyrics_to_song", "reference", "unconditional"), ("residual",)


def check_device(device: str) -> None:
    """Raises InputError for a torch device that this machine lacks."""
    import torch

    kind, _, index = device.partition(":")
    there = kind == "cuda" and torch.cuda.is_available() and (not index or index.isdigit())
    if device != "cpu" and not (there and int(index or 0) < torch.cuda.device_count()):
        raise InputError("--device", f"{device} is not there", "choose cpu, or cuda on a machine with a GPU")


def refuse_stage_2(where: Path, tasks: Iterable[str | None]) -> None:
    """Raises InputError for what learned the tasks of stage 2 alone, where a model of stage 1 is measured."""
    known = set(tasks)
    if known and known <= set(STAGE2_TASKS):
        what = f"is of stage 2: it learned {', '.join(STAGE2_TASKS)} alone, where models of stage 1 are measured"
        raise InputError(where, what, "name one of stage 1")


@dataclass(frozen=True)
class ModelFolder:
    """What is known of a model folder before its weights are read.

    Attributes:
        positions: tokens of the longest context that the network has been trained on, as far as the folder tells it;
            otherwise those that it was declared for.
        tasks: the tasks of the model's training documents, each with the options of its sources; empty where the
            folder has no ``documents.json``, as one that this project did not export.
        tokenizer_path: the SentencePiece model.
    """

    path: Path
    vocabulary: Vocabulary
    positions: int
    tasks: dict[str, tuple[dict[str, Any], ...]]
    tokenizer_path: Path

    @classmethod
    def open(
        cls, path: str | Path, vocabulary: str | Path | None = None, tokenizer: str | Path | None = None
    ) -> "ModelFolder":
        """Checks the folder's files against each other; raises InputError where something is missing.

        Args:
            vocabulary, tokenizer: the vocabulary file and the SentencePiece model of folders that carry none, as the
                released YuE models.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(path, "no such model folder", EXPORT_AGAIN)
        path = snapshot(path)
        if not (path / "config.json").is_file():
            raise InputError(path, "has no config.json", EXPORT_AGAIN)
        words = Path(vocabulary or path / "vocabulary.yaml")
        if not words.is_file():
            mend = "check the path" if vocabulary else f"name it with --vocabulary, or {EXPORT_AGAIN}"
            raise InputError(
                words if vocabulary else path, "no such file" if vocabulary else "has no vocabulary.yaml", mend
            )
        WeightFolder.find(path).for_transformers()
        known = Vocabulary.load(words)
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or config.get("model_type") != "llama":
            raise InputError(path / "config.json", "model_type is not llama", EXPORT_AGAIN)
        rows = config.get("vocab_size")
        if not isinstance(rows, int) or not known.size <= rows <= known.padded_size:
            sizes = f"{known.size} to {known.padded_size}" if known.size < known.padded_size else known.size
            raise InputError(
                path / "config.json",
                f"vocab_size {rows} is not that of {words} ({sizes})",
                "export the model again, or name the vocabulary file that it was trained with",
            )
        positions = config.get("max_position_embeddings")
        if not isinstance(positions, int) or positions < 1:
            raise InputError(path / "config.json", "max_position_embeddings is missing", EXPORT_AGAIN)
        context, tasks = _documents(path / "documents.json", positions)
        return cls(path, known, min(positions, context), tasks, Path(tokenizer or path / "tokenizer.model"))

    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer; raises InputError where the folder has none."""
        if not self.tokenizer_path.is_file() and self.tokenizer_path.parent == self.path:
            raise InputError(self.path, "has no tokenizer.model", f"name it with --tokenizer, or {EXPORT_AGAIN}")
        return TextTokenizer(self.tokenizer_path, self.vocabulary)

    def network(self, device: str = "cpu", dtype: str = "auto") -> "LlamaForCausalLM":
        """Loads the weights for inference in ``dtype`` ("auto": as they are stored)."""
        import torch
        from safetensors import SafetensorError
        from transformers import LlamaConfig, LlamaForCausalLM

        try:
            with quiet_transformers():
                model, loaded = LlamaForCausalLM.from_pretrained(
                    self.path,
                    # As everywhere; transformers takes no byte order mark.
                    config=LlamaConfig.from_dict(read_json(self.path / "config.json")),
                    dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                    local_files_only=True,
                    output_loading_info=True,
                )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise InputError(self.path, f"can't be loaded ({error})", EXPORT_AGAIN) from error
        missing = sorted(loaded["missing_keys"])
        if missing:
            # transformers draws what is missing at random, and the model would sing noise without an error.
            raise InputError(self.path, f"lacks {len(missing)} tensors, {missing[0]} among them", EXPORT_AGAIN)
        rotary = model.config.rope_parameters["rope_type"]
        if rotary not in ROTARY_TYPES:
            raise InputError(
                self.path / "config.json", f"rope_type {rotary} can't be decoded", f"use {', '.join(ROTARY_TYPES)}"
            )
        return model.to(device).eval()

    def codec_weights(self, named: str | Path | None = None) -> str | Path | None:
        """Weights of the model's codec: those that are named, or the folder's own; None where there are neither."""
        carried = self.path / "codec"
        return named or (carried if carried.is_dir() else None)

    def fingerprint(self) -> str:
        """SHA-256 over the folder's files: of large ones the size and both ends, which any training step changes."""
        digest = hashlib.sha256()
        for file in _files(self.path):
            size = file.stat().st_size
            digest.update(f"{file.relative_to(self.path)} {size}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(FILE_END_BYTES))
                stream.seek(max(stream.tell(), size - FILE_END_BYTES))
                digest.update(stream.read())
        return digest.hexdigest()


def check_pair(stage1: ModelFolder, stage2: ModelFolder) -> None:
    """Raises InputError where the two folders can't sing together: other ids, another codec, or another task."""
    if stage1.vocabulary != stage2.vocabulary:
        raise InputError(
            stage2.path,
            f"its vocabulary is not that of {stage1.path} ({stage2.vocabulary.name}, {stage1.vocabulary.name})",
            "choose two models of one vocabulary",
        )
    codecs = [folder.path / "codec" for folder in (stage1, stage2)]
    if all(folder.is_dir() for folder in codecs) and fingerprint.of_folder(codecs[0]) != fingerprint.of_folder(
        codecs[1]
    ):
        raise InputError(codecs[1], f"is not the codec of {stage1.path}", "choose two models trained on one encoding")
    for folder, needed, purpose in ((stage1, STAGE1_TASKS, "songs"), (stage2, STAGE2_TASKS, "residual codes")):
        if folder.tasks and not set(needed) & set(folder.tasks):
            raise InputError(
                folder.path,
                f"was not trained on {purpose} ({', '.join(folder.tasks)})",
                f"choose a model trained on {' or '.join(needed)}",
            )


def _documents(path: Path, positions: int) -> tuple[int, dict[str, tuple[dict[str, Any], ...]]]:
    """The longest context and the options by task that the export noted; ``positions`` and none without the file."""
    if not path.is_file():
        return positions, {}
    try:
        documents = read_json(path)
        tasks: dict[str, tuple[dict[str, Any], ...]] = {}
        for source in documents["sources"].values():
            tasks[source["task"]] = (*tasks.get(source["task"], ()), dict(source["options"]))
        return int(documents["context_tokens"]), tasks
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(path, "does not tell what the model was trained on", EXPORT_AGAIN) from None


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
