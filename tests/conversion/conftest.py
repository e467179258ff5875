"""A checkpoint as `train` leaves it: written by the engine on one process, in a run folder beside a corpus."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_music.engine.processes import launch
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run_folder import CheckpointState, write_state
from megatron_music.vocabulary.vocabulary import Vocabulary


def write_trained(recipe: Recipe, checkpoint: Path, probe: Path) -> None:
    """Runs in its own process: a network with weights of some size, its checkpoint, and its logits of a probe."""
    import torch

    from megatron_music.engine import processes
    from megatron_music.engine.engine import Engine

    processes.join(recipe.layout)
    engine = Engine(recipe, Vocabulary.load(recipe.vocabulary).padded_size)
    with torch.no_grad():
        for chunk in engine.chunks:
            for parameter in chunk.parameters():
                parameter.mul_(4).add_(torch.randn_like(parameter) * 0.05)
    engine.optimizer.reload_model_params()
    engine.save(checkpoint)
    ids = np.random.default_rng(0).integers(0, 370, (2, 24))
    logits = engine.logits(ids).numpy()
    if torch.distributed.get_rank() == 0:
        np.savez(probe, ids=ids, logits=logits)
    processes.leave()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, repository, text_tokenizer_file) -> Path:
    """A folder with ``corpus/``, ``run/checkpoints/step_000007`` and ``probe.npz``."""
    corpus = write_corpus(tmp_path_factory.mktemp("trained"), repository, text_tokenizer_file)
    return write_run(corpus, {}, 1)


@pytest.fixture(
    scope="session",
    params=[{"tensor": 2, "sequence": True}, {"pipeline": 2}, {"pipeline": 2, "interleave": 2}],
    ids=["tensor", "pipeline", "interleaved"],
)
def parallel_run(request, tmp_path_factory, repository, text_tokenizer_file) -> Path:
    """The same from two processes."""
    corpus = write_corpus(tmp_path_factory.mktemp("parallel"), repository, text_tokenizer_file)
    return write_run(corpus, request.param, 2)


def write_corpus(folder: Path, repository: Path, text_tokenizer_file: Path) -> Path:
    """Fills ``folder`` with what a corpus holds beside its tokens; returns ``folder``."""
    corpus = folder / "corpus"
    (corpus / "codec").mkdir(parents=True)
    (corpus / "codec" / "codebooks.bin").write_bytes(b"codebooks")
    shutil.copy(repository / "tests" / "data" / "tiny_vocabulary.yaml", corpus / "vocabulary.yaml")
    shutil.copy(text_tokenizer_file, corpus / "tokenizer.model")
    sidecar = {"task": "lyrics_to_song", "options": {"tags": "as_written"}, "documents": 3, "tokens": 100}
    (corpus / "cot.json").write_text(json.dumps(sidecar))
    return folder


def write_run(folder: Path, layout: dict, processes: int) -> Path:
    """Adds to ``folder`` a run of the given layout and the logits of a probe."""
    checkpoint = folder / "run" / "checkpoints" / "step_000007"
    checkpoint.mkdir(parents=True)
    network = {
        "hidden_size": 32, "layers": 4, "attention_heads": 4, "key_value_heads": 2, "ffn_hidden_size": 48,
        "position_limit": 64, "rope_base": 5000.0, "norm_epsilon": 1e-4,
    }  # fmt: skip
    phase = {
        "name": "warm-up", "tokens": 1000, "context_tokens": 16, "batch_sequences": 4, "learning_rate": 1e-3,
        "mixture": {"cot": 1},
    }  # fmt: skip
    content = {
        "name": "tiny song", "vocabulary": "corpus/vocabulary.yaml", "corpus": "corpus", "run": "run",
        "precision": "fp32", "layout": layout, "network": network,
        "phases": [phase, phase | {"name": "later", "context_tokens": 32}],
    }  # fmt: skip
    recipe = Recipe.parse(content, folder / "recipe.yaml")
    launch(write_trained, processes, recipe, checkpoint, folder / "probe.npz")
    recipe.save(checkpoint / "recipe.yaml")
    write_state(checkpoint, CheckpointState(7, 224, "warm-up", False))
    metrics = [
        {"step": 5, "loss": 4.5, "loss/vocal": 4.25},
        {"step": 6, "validation/loss": 4.75, "validation/loss/text": 5.5},
        {"step": 8, "loss": 1.0},
    ]
    lines = "".join(f"{json.dumps(line)}\n" for line in metrics)
    (folder / "run" / "metrics.jsonl").write_text(lines + '{"step": 7, "lo')
    return folder


@pytest.fixture
def own_run(trained_run, tmp_path) -> Path:
    """A copy of the run to spoil."""
    return Path(shutil.copytree(trained_run, tmp_path / "own"))
