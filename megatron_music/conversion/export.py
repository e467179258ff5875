"""From a checkpoint, trained or imported, to a Hugging Face Llama folder that transformers, vLLM and `generate` load.

The folder carries what belongs to the weights: vocabulary, text tokenizer, fitted codec, the tasks of the training
documents (`documents.json`), the published sampling settings, and a model card. A checkpoint of adapters becomes such a
folder with the network below it, or a folder for the `peft` package by itself.
"""

import functools
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.conversion.card import model_card
from megatron_music.conversion.imported import AS_IT_CAME
from megatron_music.corpus.blend import read_stocks, token_shares
from megatron_music.engine.integrity import require_whole
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, write_json
from megatron_music.progress import console, track
from megatron_music.recipe.recipe import Network, Recipe
from megatron_music.training.base import base_of, holds_adapters
from megatron_music.training.origin import read_origin, rows_that_came
from megatron_music.training.run_folder import CheckpointState, Imported, RunFolder, read_imported, read_state
from megatron_music.vocabulary.vocabulary import Vocabulary
from megatron_music.weight_folder import INDEX, WHOLE, known_as

if TYPE_CHECKING:
    from megatron_music.conversion.checkpoint import CheckpointReader
    from megatron_music.conversion.llama import Weight
    from megatron_music.conversion.peft import MergedReader
    from megatron_music.conversion.verify import Verified
    from megatron_music.conversion.weight_files import NewTensor

DTYPES = "bfloat16", "float32"
ADAPTERS = "merged", "peft"
FORMS = "huggingface", "megatron"
SHARD_BYTES = 2**30
CARRIED = ("vocabulary.yaml", "tokenizer.model")
_WRITERS = 2
"""Files written side by side: reading a checkpoint's archives takes a core."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint with what its run says of it.

    ``corpus`` holds vocabulary, tokenizer and codec; an imported checkpoint holds them itself and has no recipe, but
    ``imported``.
    """

    checkpoint: Path
    network: Network
    recipe: Recipe | None
    imported: Imported | None
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
        newest, folders = run.newest_checkpoint(), run.step_folders()
        if newest is not None:
            checkpoint = newest[0]
            console.print(f"{run.path}: taking {checkpoint.name}, its latest checkpoint")
        elif folders:
            checkpoint = folders[-1]  # it is told to be damaged, and why
        state = read_state(checkpoint)
        require_whole(checkpoint)
        imported = read_imported(checkpoint)
        recipe = None if imported else Recipe.load(checkpoint / "recipe.yaml")
        corpus = Path(corpus or (recipe.corpus if recipe else checkpoint))
        for name in CARRIED:
            if not (corpus / name).is_file():
                raise InputError(corpus, f"has no {name}", "name the corpus that the model was trained on (--corpus)")
        vocabulary = Vocabulary.load(corpus / "vocabulary.yaml")
        network = imported.network if imported else recipe.network
        return cls(checkpoint, network, recipe, imported, state, corpus, vocabulary)

    @property
    def rows(self) -> int:
        """Rows of embedding and head that are written: as many as were imported, if that is enough for all ids.

        Otherwise, and of a network that began here, as many as the checkpoint has: with the vocabulary's padding.
        """
        came = rows_that_came(self.checkpoint)
        return came if came is not None and came >= self.vocabulary.size else self.vocabulary.padded_size

    def rows_in_words(self, rows: int) -> str:
        """What ``rows`` of embedding and head are."""
        came, ids, origin = rows_that_came(self.checkpoint), self.vocabulary.size, read_origin(self.checkpoint)
        text = f"{rows:,} rows: {ids:,} ids and {rows - ids:,} of padding"
        if came is not None:
            return f"{text}, as they came" if rows == came else f"{text}, where {came:,} came"
        began_elsewhere = self.imported is not None or (origin is not None and origin.phase == "import")
        return f"{text}; how many came is not on record" if began_elsewhere else text

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
    dtype: str | None = None,
    corpus: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    adapters: str = "merged",
    base: Path | None = None,
    verify: bool = False,
    form: str = "huggingface",
    rows: int | None = None,
    say: Callable[[str], None] = console.print,
) -> "Verified | None":
    """Writes ``checkpoint`` as a Llama folder, or in another form; ``out`` appears whole.

    The weights are read and written tensor by tensor, two files side by side.

    Args:
        checkpoint: ``RUN/checkpoints/step_N``, or ``RUN`` for its latest one.
        dtype: "bfloat16" from the model's weights, "float32" from the optimizer's master weights where it keeps some.
            None takes bfloat16 or, of a network that was imported and not trained since, the types that came.
        corpus: the folder with vocabulary, tokenizer and codec; None takes the one that the recipe names.
        shard_bytes: most bytes of one weights file, unless a single tensor has more.
        adapters: of a checkpoint of adapters: "merged" adds them to the network below, "peft" writes them alone.
        base: where the network below adapters lies now, if no longer where they were trained.
        verify: compare what was written with the checkpoint, see ``conversion.verify``.
        form: "huggingface", or "megatron" for the weights alone in the checkpoint's own format and type, to which of
            the other options only ``corpus`` belongs: see ``conversion.export_megatron``.
        rows: of embedding and head; None takes those of ``Trained.rows``.
        say: is told how many rows there are, and why.

    Returns:
        What was found with ``verify``.

    Raises:
        InputError: the folder is no checkpoint, recipe and weights do not fit each other, or the network below adapters
            is gone or was changed.
    """
    known = {"format": (form, FORMS), "dtype": (dtype, (None, *DTYPES)), "adapters": (adapters, ADAPTERS)}
    for field, (value, values) in known.items():
        if value not in values:
            choices = ", ".join(filter(None, values))
            raise InputError(f"--{field}", f"{value} can't be exported", f"choose from {choices}")
    if form == "megatron":
        from megatron_music.conversion.export_megatron import export_megatron

        peft = None if adapters == "merged" else adapters
        options = {"--verify": verify, "--dtype": dtype, "--rows": rows, "--base": base, "--adapters": peft}
        _refuse_of_megatron(options)
        return export_megatron(checkpoint, out, corpus)
    refuse_foreign_folder(out, "adapter_config.json" if adapters == "peft" else "config.json")
    trained = Trained.open(checkpoint, corpus)
    has_adapters = holds_adapters(trained.checkpoint)
    if not has_adapters and (adapters == "peft" or base is not None):
        option = "--base" if base is not None else "--adapters peft"
        raise InputError(trained.checkpoint, "holds a whole network and no adapters", f"leave out {option}")
    if has_adapters and verify:
        raise InputError(trained.checkpoint, "holds adapters, where whole networks are compared", "leave out --verify")
    rows = trained.rows if rows is None else rows
    least, most = trained.vocabulary.size, trained.vocabulary.padded_size
    if not least <= rows <= most:
        raise InputError("--rows", f"{rows} is not within {least} (ids) and {most} (padded)", "choose one of them")
    documents = trained.documents()
    if dtype is None and trained.imported is None:
        dtype = "bfloat16"
    with atomic_path(out) as folder:
        folder.mkdir()
        if adapters == "peft":
            _write_adapters(folder, trained, documents, dtype, base, rows)
        else:
            _write_network(folder, trained, documents, dtype, base, shard_bytes, rows)
        write_json(folder / "documents.json", documents)
        for name in CARRIED:
            shutil.copyfile(trained.corpus / name, folder / name)
        if (trained.corpus / "codec").is_dir():
            shutil.copytree(trained.corpus / "codec", folder / "codec")
    say(f"{out}: embedding and head have {trained.rows_in_words(rows)}")
    if not verify:
        return None
    from megatron_music.conversion.verify import verify as verified

    return verified(trained.checkpoint, out)


def _refuse_of_megatron(options: dict[str, Any]) -> None:
    for option, value in options.items():
        if value is not None and value is not False:
            what = "is of a Hugging Face folder, where `--format megatron` writes weights as they are"
            raise InputError(option, what, "leave it out, or export one")


def _write_network(
    folder: Path,
    trained: Trained,
    documents: dict[str, Any],
    dtype: str | None,
    base: Path | None,
    shard_bytes: int,
    rows: int,
) -> None:
    from megatron_music.conversion.checkpoint import CheckpointReader
    from megatron_music.conversion.llama import HEAD, llama_weights
    from megatron_music.conversion.peft import Adapters, MergedReader

    vocabulary, imported = trained.vocabulary, trained.imported
    reader = CheckpointReader(trained.checkpoint)
    if holds_adapters(trained.checkpoint):
        below = CheckpointReader(base_of(trained.checkpoint, base).checkpoint)
        reader = MergedReader(below, Adapters(reader, trained.recipe.lora, dtype))
    _check_shapes(reader, list(llama_weights(trained.network, vocabulary.padded_size)))
    weights = list(llama_weights(trained.network, rows))
    if imported is not None and imported.is_tied:
        weights = [weight for weight in weights if weight.name != HEAD]
    tensors = _tensors(reader, weights, dtype)
    # Read before the first weight, so that a bad metrics file costs no conversion.
    card = _card(trained, documents, dtype or _type_name(tensors), rows, is_whole=True)
    _write_weights(folder, tensors, shard_bytes)
    write_json(folder / "config.json", _config(trained, dtype, tensors, rows))
    write_json(folder / "generation_config.json", _generation_config(vocabulary, documents))
    (folder / "README.md").write_text(card, encoding="utf-8")
    for name in AS_IT_CAME if imported is not None else ():
        if (trained.checkpoint / name).is_file():
            shutil.copyfile(trained.checkpoint / name, folder / name)


def _write_adapters(
    folder: Path, trained: Trained, documents: dict[str, Any], dtype: str, base: Path | None, rows: int
) -> None:
    from megatron_music.conversion.checkpoint import CheckpointReader
    from megatron_music.conversion.peft import Adapters, write_peft

    # Of a base that was trained here, and not imported, no folder is known that `peft` could load.
    below = read_imported(base_of(trained.checkpoint, base).checkpoint)
    base_name = below.imported_from if below is not None else None
    adapters = Adapters(CheckpointReader(trained.checkpoint), trained.recipe.lora, dtype)
    card = _card(trained, documents, dtype, rows, is_whole=False)
    write_peft(folder, adapters, trained.network, rows, base_name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _card(trained: Trained, documents: dict[str, Any], dtype: str, rows: int, is_whole: bool) -> str:
    of_rows = trained.rows_in_words(rows)
    if trained.imported is None:
        of_network = trained.recipe, trained.state, trained.checkpoint, documents
        return model_card(*of_network, dtype, rows, of_rows, is_whole)
    origin = known_as(trained.imported.imported_from)
    text = f"From `{origin}` through megatron-music, not trained further; {dtype}. Embedding and head have {of_rows}."
    return f"# Imported network\n\n{text}\n"


def _config(trained: Trained, dtype: str | None, tensors: list["NewTensor"], rows: int) -> dict[str, Any]:
    """``config.json``: of a network that was not trained since it was imported as it came, with what was asked for."""
    from megatron_music.conversion.llama import llama_config

    if trained.imported is None or trained.imported.config is None:
        end = trained.vocabulary.special("<EOA>")
        return llama_config(trained.network, rows, dtype or _type_name(tensors), end)
    types = {} if dtype is None else {"dtype": dtype, "torch_dtype": dtype}
    return trained.imported.config | {"vocab_size": rows} | types


def _type_name(tensors: list["NewTensor"]) -> str:
    """The type of the embedding, which stands first, and with it nearly always of all."""
    return str(tensors[0].dtype).removeprefix("torch.")


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


def _tensors(
    reader: "CheckpointReader | MergedReader", weights: list["Weight"], dtype: str | None
) -> list["NewTensor"]:
    """What is to be written, in ``dtype``, or each in the type that the checkpoint has."""
    import torch

    from megatron_music.conversion.weight_files import NewTensor

    @functools.lru_cache(maxsize=2 * _WRITERS)  # queries, keys and values, and gate and up projection, share a row each
    def row(source: str, layer: int | None) -> torch.Tensor:
        return reader.read(reader.best_source(source, dtype), layer)

    def load(weight: "Weight", of_dtype: torch.dtype) -> torch.Tensor:
        return weight.view(row(weight.source, weight.layer)).to(of_dtype)

    tensors = []
    for weight in weights:
        of_dtype = reader.dtype(weight.source) if dtype is None else getattr(torch, dtype)
        tensors.append(NewTensor(weight.name, weight.shape, of_dtype, functools.partial(load, weight, of_dtype)))
    return tensors


def _write_weights(folder: Path, tensors: list["NewTensor"], shard_bytes: int) -> None:
    from megatron_music.conversion.weight_files import write_weight_file

    shards = _in_shards(tensors, shard_bytes)
    of = len(shards)
    names = [f"model-{number:05d}-of-{of:05d}.safetensors" for number in range(1, of + 1)] if of > 1 else [WHOLE]
    with ThreadPoolExecutor(_WRITERS) as pool:
        written = pool.map(lambda name, shard: write_weight_file(folder / name, shard), names, shards)
        for _ in track(written, "export: files of weights", of):
            pass
    if of > 1:
        total = sum(tensor.bytes for tensor in tensors)
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _in_shards(tensors: list["NewTensor"], shard_bytes: int) -> list[list["NewTensor"]]:
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
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
