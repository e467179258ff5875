"""Whether a checkpoint and a Hugging Face folder hold the same network: bit for bit, and in what they compute."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.llama import llama_weights
from megatron_music.conversion.weight_files import WeightFiles
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.progress import track
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.recipe import Network, Optimizer, Recipe
from megatron_music.training.run_folder import read_network

PROBE_SHAPE = 2, 64
"""Sequences and tokens of the ids that both networks read."""
TOLERANCE = 1e-4
"""Of the largest logit: what the order of FP32 sums may change."""


@dataclass(frozen=True)
class Verified:
    """Tensors found equal bit for bit, the largest logit of the probe, and the largest difference of two logits."""

    tensors: int
    largest_logit: float
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"{self.tensors} tensors equal bit for bit; logits of {PROBE_SHAPE[0]} x {PROBE_SHAPE[1]} ids, up to "
            f"{self.largest_logit:.3g}, differ by at most {self.largest_difference:.2g}"
        )


def verify(checkpoint: str | Path, folder: str | Path) -> Verified:
    """Compares every weight of a checkpoint with the folder's, then the logits of both on a probe, in FP32.

    Where a checkpoint holds rows of padding that the folder lacks, they have to be zero. megatron-core runs in a
    process of its own; both networks are held in FP32, one after the other.

    Raises:
        InputError: the first tensor, or the logits, that differ.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    network = read_network(checkpoint)
    with WeightFiles(folder) as files:
        reader = CheckpointReader(checkpoint)
        size = reader.shape("embedding.word_embeddings.weight")[0]
        weights = list(llama_weights(network, size))
        for weight in track(weights, "verify: tensors"):
            theirs = files.read(weight.name)
            name = {torch.float32: "float32"}.get(theirs.dtype, "")
            row = reader.read(reader.best_source(weight.source, name), weight.layer)
            ours = weight.view(row).reshape(weight.shape).to(theirs.dtype)
            if not torch.equal(_bits(ours[: len(theirs)]), _bits(theirs)) or ours[len(theirs) :].any():
                raise InputError(folder, f"{weight.name} is not what {checkpoint} holds", "convert again")
        read_ids = files.describe("model.embed_tokens.weight")[0][0]
    ids = np.random.default_rng(0).integers(0, read_ids, PROBE_SHAPE)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npy"
        launch(_megatron_logits, 1, checkpoint, network, size, ids, out)
        ours = np.load(out)[..., :read_ids]
    # A folder of FP32 master weights is rounded to what the checkpoint's network computes with.
    theirs = _transformers_logits(folder, ids, reader.read("decoder.final_layernorm.weight").dtype)
    largest, difference = float(np.abs(theirs).max()), float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE * largest:
        what = f"logits up to {largest:.3g} differ by {difference:.2g} from those of {checkpoint}"
        raise InputError(folder, what, "compare config.json with the recipe's network")
    return Verified(len(weights), largest, difference)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Integers of the same bits, so that not-a-number equals itself and 0 is not -0."""
    widths = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(widths[tensor.element_size()])


def _megatron_logits(checkpoint: Path, network: Network, vocabulary_size: int, ids: np.ndarray, out: Path) -> None:
    from megatron_music.engine import processes
    from megatron_music.engine.engine import Engine

    layout = Layout()
    processes.join(layout)
    # A recipe of which only the network counts.
    recipe = Recipe.model_construct(network=network, layout=layout, optimizer=Optimizer(), precision="fp32", seed=0)
    engine = Engine(recipe, vocabulary_size, trains=False)
    engine.load(checkpoint, with_optimizer=False)
    np.save(out, engine.logits(ids).numpy())
    processes.leave()


def _transformers_logits(folder: Path, ids: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(read_json(folder / "config.json"))  # transformers takes no byte order mark
    network = LlamaForCausalLM.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True)
    network = network.float().eval()
    with torch.inference_mode():
        return network(torch.from_numpy(ids)).logits.numpy()
