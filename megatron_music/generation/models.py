"""Exported model folders: a Llama network with the vocabulary, the text tokenizer and the codec that belong to it."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

EXPORT_AGAIN = "name a folder that `megatron-music export` wrote"
# The decoder makes one table of positions: rotary embeddings that change with the length read can't be told by it.
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
FILE_END_BYTES = 2**20


@dataclass(frozen=True)
class ModelFolder:
    """What is known of a model folder before its weights are read; raises InputError where something is missing."""

    path: Path
    vocabulary: Vocabulary
    positions: int

    @classmethod
    def open(cls, path: str | Path) -> "ModelFolder":
        """Checks the folder's files against each other."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(path, "no such model folder", EXPORT_AGAIN)
        for name in ("config.json", "vocabulary.yaml"):
            if not (path / name).is_file():
                raise InputError(path, f"has no {name}", EXPORT_AGAIN)
        if not any(path.glob("*.safetensors")):
            raise InputError(path, "has no weights (*.safetensors)", EXPORT_AGAIN)
        vocabulary = Vocabulary.load(path / "vocabulary.yaml")
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or config.get("model_type") != "llama":
            raise InputError(path / "config.json", "model_type is not llama", EXPORT_AGAIN)
        rows = config.get("vocab_size")
        if rows != vocabulary.padded_size:
            raise InputError(
                path / "config.json",
                f"vocab_size {rows} is not vocabulary.yaml's padded_size {vocabulary.padded_size}",
                "export the model again, or copy the vocabulary file that it was trained with",
            )
        positions = config.get("max_position_embeddings")
        if not isinstance(positions, int) or positions < 1:
            raise InputError(path / "config.json", "max_position_embeddings is missing", EXPORT_AGAIN)
        return cls(path, vocabulary, positions)

    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer; raises InputError where the folder has none."""
        path = self.path / "tokenizer.model"
        if not path.is_file():
            raise InputError(self.path, "has no tokenizer.model", EXPORT_AGAIN)
        return TextTokenizer(path, self.vocabulary)

    def network(self, device: str = "cpu", dtype: str = "auto") -> "LlamaForCausalLM":
        """Loads the weights for inference in ``dtype`` ("auto": as they are stored)."""
        import torch
        from safetensors import SafetensorError
        from transformers import LlamaForCausalLM

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = LlamaForCausalLM.from_pretrained(
                    self.path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), local_files_only=True
                )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise InputError(self.path, f"can't be loaded ({error})", EXPORT_AGAIN) from error
        rotary = model.config.rope_parameters["rope_type"]
        if rotary not in ROTARY_TYPES:
            raise InputError(
                self.path / "config.json", f"rope_type {rotary} can't be decoded", f"use {', '.join(ROTARY_TYPES)}"
            )
        return model.to(device).eval()

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
    """Raises InputError where the two folders do not speak the same language of ids and codes."""
    if stage1.vocabulary != stage2.vocabulary:
        raise InputError(
            stage2.path / "vocabulary.yaml",
            f"is not the vocabulary of {stage1.path} ({stage2.vocabulary.name}, {stage1.vocabulary.name})",
            "choose two models of one vocabulary",
        )
    digests = [codec_digest(folder.path / "codec") for folder in (stage1, stage2)]
    if None not in digests and digests[0] != digests[1]:
        raise InputError(
            stage2.path / "codec", f"is not the codec of {stage1.path}", "choose two models trained on one encoding"
        )


def codec_digest(folder: Path) -> str | None:
    """SHA-256 of the codec files in a folder, None where there is no such folder."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(f"{file.relative_to(folder)}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
