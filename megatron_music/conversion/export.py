"""From a checkpoint, trained or imported, to a Hugging Face Llama folder that transformers, vLLM and `generate` load.

The folder carries what belongs to the weights: vocabulary, text tokenizer, fitted codec, the tasks of the training
documents (`documents.json`), the published sampling settings, and a model card. A checkpoint of adapters becomes such a
folder with the network below it, or a folder for the `peft` package by itself.
"""

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.conversion.card import model_card
from megatron_music.corpus.blend import read_stocks, token_shares
from megatron_music.engine.integrity import require_whole
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, write_json
from megatron_music.progress import track
from megatron_music.recipe.recipe import Network, Recipe
from megatron_music.training.base import base_of, holds_adapters
from megatron_music.training.origin import read_origin
from megatron_music.training.run_folder import NETWORK, CheckpointState, RunFolder, read_network, read_state
from megatron_music.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_music.conversion.checkpoint import CheckpointReader
    from megatron_music.conversion.llama import Weight
    from megatron_music.conversion.peft import MergedReader
    from megatron_music.conversion.verify import Verified

DTYPES = {"bfloat16": 2, "float32": 4}
ADAPTERS = "merged", "peft"
FORMS = "huggingface", "megatron"
SHARD_BYTES = 2**30
CARRIED = ("vocabulary.yaml", "tokenizer.model")
_WRITERS = 2
"""Files written side by side: reading a checkpoint's archives takes a core."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint with what its run says of it.

    ``corpus`` holds vocabulary, tokenizer and codec; an imported checkpoint holds them itself and has no recipe.
    """

    checkpoint: Path
    network: Network
    recipe: Recipe | None
    state: CheckpointState
    corpus: Path
    vocabulary: Vocabulary

    @classmethod
    def open(cls, checkpoint: Path, corpus: Path | None = None) -> "Trained":
        """Reads a checkpoint's recipe and state; a run folder stands for its latest checkpoint.

        Raises InputError where the folder is neither, or the corpus that it was trained on is not there.
        """
        checkpoint = Path(checkpoint)
        if not checkpoint.is_dir():
            raise InputError(checkpoint, "no such checkpoint", "name one such as RUN/checkpoints/step_000100")
        run = RunFolder(checkpoint)
        # Where none is complete, the newest is told to be damaged, and why.
        found = [folder for folder, _ in run.complete_checkpoints()] or run.step_folders()
        if found:
            checkpoint = found[-1]
        state = read_state(checkpoint)
        require_whole(checkpoint)
        imported = (checkpoint / NETWORK).is_file()
        recipe = None if imported else Recipe.load(checkpoint / "recipe.yaml")
        corpus = Path(corpus or (recipe.corpus if recipe else checkpoint))
        for name in CARRIED:
            if not (corpus / name).is_file():
                raise InputError(corpus, f"has no {name}", "name the corpus that the model was trained on (--corpus)")
        vocabulary = Vocabulary.load(corpus / "vocabulary.yaml")
        return cls(checkpoint, read_network(checkpoint), recipe, state, corpus, vocabulary)

    def documents(self) -> dict[str, Any]:
        """What the network has read: the longest context, and task, options and shares of every source.

        Only phases up to the checkpoint's own count; a network can be declared for more positions than it has seen. Of
        an imported checkpoint, what the imported folder said.
        """
        if self.recipe is None:
            path = self.checkpoint / "documents.json"
            unknown = {"context_tokens": self.network.position_limit, "sources": {}}
            return read_json(path) if path.is_file() else {"codec": self.vocabulary.default_codec} | unknown
        names = [phase.name for phase in self.recipe.phases]
        phases = self.recipe.phases[: names.index(self.state.phase) + 1]
        trained = self.recipe.model_copy(update={"corpus": self.corpus, "phases": phases})
        sources: dict[str, Any] = {}
        for phase, shares in zip(phases, token_shares(trained, read_stocks(trained)), strict=True):
            for name, share in shares.items():
                if name not in sources:
                    sidecar = read_json(self.corpus / f"{name}.json")
                    sources[name] = {field: sidecar.get(field) for field in ("task", "options")} | {"shares": {}}
                sources[name]["shares"][phase.name] = str(share)
        origin = read_origin(self.checkpoint)
        longest = max(origin.context_tokens if origin else 0, *(phase.context_tokens for phase in phases))
        return {"codec": self.vocabulary.default_codec, "context_tokens": longest, "sources": sources}


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    dtype: str = "bfloat16",
    corpus: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    adapters: str = "merged",
    base: Path | None = None,
    verify: bool = False,
    form: str = "huggingface",
) -> "Verified | None":
    """Writes ``checkpoint`` as a Llama folder, or in another form; ``out`` appears whole.

    The weights are read and written tensor by tensor, two files side by side.

    Args:
        checkpoint: ``RUN/checkpoints/step_N``, or ``RUN`` for its latest one.
        dtype: "bfloat16" from the model's weights, "float32" from the optimizer's master weights where it keeps some.
        corpus: the folder with vocabulary, tokenizer and codec; None takes the one that the recipe names.
        shard_bytes: most bytes of one weights file, unless a single tensor has more.
        adapters: of a checkpoint of adapters: "merged" adds them to the network below, "peft" writes them alone.
        base: where the network below adapters lies now, if no longer where they were trained.
        verify: compare what was written with the checkpoint, see ``conversion.verify``.
        form: "huggingface", or "megatron" for the weights alone in the checkpoint's own format and type, to which of
            the other options only ``corpus`` belongs: see ``conversion.export_megatron``.

    Returns:
        What was found with ``verify``.

    Raises:
        InputError: the folder is no checkpoint, recipe and weights do not fit each other, or the network below adapters
            is gone or was changed.
    """
    for field, value, known in (("format", form, FORMS), ("dtype", dtype, DTYPES), ("adapters", adapters, ADAPTERS)):
        if value not in known:
            raise InputError(field, f"{value} can't be exported", f"choose from {', '.join(known)}")
    if form == "megatron":
        from megatron_music.conversion.export_megatron import export_megatron

        if verify:
            raise InputError("--verify", "compares with a Hugging Face folder", "leave it out, or export one")
        return export_megatron(checkpoint, out, corpus)
    refuse_foreign_folder(out, "adapter_config.json" if adapters == "peft" else "config.json")
    trained = Trained.open(checkpoint, corpus)
    has_adapters = holds_adapters(trained.checkpoint)
    if not has_adapters and (adapters == "peft" or base is not None):
        option = "--base" if base is not None else "--adapters peft"
        raise InputError(trained.checkpoint, "holds a whole network and no adapters", f"leave out {option}")
    if has_adapters and verify:
        raise InputError(trained.checkpoint, "holds adapters, where whole networks are compared", "leave out --verify")
    documents = trained.documents()
    with atomic_path(out) as folder:
        folder.mkdir()
        if adapters == "peft":
            _write_adapters(folder, trained, documents, dtype, base)
        else:
            _write_network(folder, trained, documents, dtype, base, shard_bytes)
        write_json(folder / "documents.json", documents)
        for name in CARRIED:
            shutil.copyfile(trained.corpus / name, folder / name)
        if (trained.corpus / "codec").is_dir():
            shutil.copytree(trained.corpus / "codec", folder / "codec")
    if not verify:
        return None
    from megatron_music.conversion.verify import verify as verified

    return verified(trained.checkpoint, out)


def _write_network(
    folder: Path, trained: Trained, documents: dict[str, Any], dtype: str, base: Path | None, shard_bytes: int
) -> None:
    from megatron_music.conversion.checkpoint import CheckpointReader
    from megatron_music.conversion.llama import llama_config, llama_weights
    from megatron_music.conversion.peft import Adapters, MergedReader

    vocabulary, network = trained.vocabulary, trained.network
    reader = CheckpointReader(trained.checkpoint)
    if holds_adapters(trained.checkpoint):
        below = CheckpointReader(base_of(trained.checkpoint, base).checkpoint)
        reader = MergedReader(below, Adapters(reader, trained.recipe.lora, dtype))
    weights = list(llama_weights(network, vocabulary.padded_size))
    _check_shapes(reader, weights)
    # Read before the first weight, so that a bad metrics file costs no conversion.
    card = _card(trained, documents, dtype, is_whole=True)
    _write_weights(folder, reader, weights, dtype, shard_bytes)
    config = llama_config(network, vocabulary.padded_size, dtype, vocabulary.special("<EOA>"))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _generation_config(vocabulary, documents))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_adapters(folder: Path, trained: Trained, documents: dict[str, Any], dtype: str, base: Path | None) -> None:
    from megatron_music.conversion.checkpoint import CheckpointReader
    from megatron_music.conversion.peft import Adapters, write_peft

    below = base_of(trained.checkpoint, base).checkpoint / NETWORK
    # Of a base that was trained here, and not imported, no folder is known that `peft` could load.
    base_name = read_json(below)["imported_from"] if below.is_file() else None
    adapters = Adapters(CheckpointReader(trained.checkpoint), trained.recipe.lora, dtype)
    card = _card(trained, documents, dtype, is_whole=False)
    write_peft(folder, adapters, trained.network, trained.vocabulary.padded_size, base_name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _card(trained: Trained, documents: dict[str, Any], dtype: str, is_whole: bool) -> str:
    size = trained.vocabulary.padded_size
    if trained.recipe is not None:
        return model_card(trained.recipe, trained.state, trained.checkpoint, documents, dtype, size, is_whole)
    origin = read_json(trained.checkpoint / NETWORK)["imported_from"]
    return f"# Imported network\n\nFrom `{Path(origin).name}` through megatron-music, not trained further; {dtype}.\n"


def refuse_foreign_folder(out: Path, mark: str) -> None:
    """Raises InputError where ``out`` exists and holds other things than an earlier output, known by its ``mark``."""
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / mark).is_file() or not any(out.iterdir()))):
        raise InputError(out, f"exists and holds no {mark}", "name a new folder")


def _check_shapes(reader: "CheckpointReader | MergedReader", weights: list["Weight"]) -> None:
    """Every source tensor has as many numbers as the weights that are cut out of it, before any is read."""
    expected: dict[str, int] = {}
    for weight in weights:
        expected[weight.source] = expected.get(weight.source, 0) + weight.elements
    for source, elements in expected.items():
        shape = reader.shape(source)
        found = 1
        for size in shape:
            found *= size
        if found != elements:
            what = f"{source} has shape {shape}, where the recipe's network and vocabulary need {elements} numbers"
            raise InputError(reader.folder, what, "use the recipe.yaml that the checkpoint was written with")


def _write_weights(
    folder: Path, reader: "CheckpointReader | MergedReader", weights: list["Weight"], dtype: str, shard_bytes: int
) -> None:
    from megatron_music.conversion.weight_files import INDEX

    shards = _in_shards(weights, DTYPES[dtype], shard_bytes)
    of = len(shards)
    names = [f"model-{number:05d}-of-{of:05d}.safetensors" for number in range(1, of + 1)]
    if of == 1:
        names = ["model.safetensors"]
    with ThreadPoolExecutor(_WRITERS) as pool:
        written = pool.map(lambda name, shard: _write_shard(folder / name, reader, shard, dtype), names, shards)
        for _ in track(written, "export: files of weights", of):
            pass
    if of > 1:
        total = sum(weight.elements for weight in weights) * DTYPES[dtype]
        places = {weight.name: name for name, shard in zip(names, shards, strict=True) for weight in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_shard(path: Path, reader: "CheckpointReader | MergedReader", weights: list["Weight"], dtype: str) -> None:
    import torch

    from megatron_music.conversion.weight_files import NewTensor, write_weight_file

    of_dtype = getattr(torch, dtype)

    @functools.lru_cache(maxsize=2)  # queries, keys and values, and gate and up projection, come from one row each
    def row(source: str, layer: int | None) -> torch.Tensor:
        return reader.read(source, layer)

    def load(weight: "Weight") -> torch.Tensor:
        return weight.view(row(reader.best_source(weight.source, dtype), weight.layer)).to(of_dtype)

    tensors = [NewTensor(weight.name, weight.shape, functools.partial(load, weight)) for weight in weights]
    write_weight_file(path, tensors, of_dtype)


def _in_shards(weights: list["Weight"], element_bytes: int, shard_bytes: int) -> list[list["Weight"]]:
    shards: list[list[Weight]] = [[]]
    size = 0
    for weight in weights:
        weight_bytes = weight.elements * element_bytes
        if shards[-1] and size + weight_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight_bytes
    return shards


def _generation_config(vocabulary: Vocabulary, documents: dict[str, Any]) -> dict[str, Any]:
    """The settings published with YuE: sampling for stage 1, the most probable code for stage 2."""
    end = vocabulary.special("<EOA>")
    tasks = {source["task"] for source in documents["sources"].values()}
    if tasks == {"residual"}:
        return {"do_sample": False, "eos_token_id": end, "pad_token_id": end}
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.93,
        "repetition_penalty": 1.1,
        "min_new_tokens": 100,
        "max_new_tokens": 3000,
        "eos_token_id": end,
        "pad_token_id": end,
    }
