"""Whether a checkpoint and a Hugging Face folder hold the same network: bit for bit, and in what they compute."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.llama import EMBEDDING, Weight, llama_weights
from megatron_music.conversion.read_config import CONFIG, read_config
from megatron_music.conversion.weight_files import WeightFiles
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.progress import quiet_transformers, track
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.recipe import Network, Optimizer, Recipe
from megatron_music.training.run_folder import read_network, read_vocabulary

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

    A weight has to be, bit for bit, what the checkpoint's becomes in the folder's type. Both networks then compute with
    the weights of the narrower of both types, so that what rounding changes is in both. Rows that the folder lacks have
    to be padding. megatron-core runs in a process of its own; both networks are held in FP32, one after the other.

    Raises:
        InputError: the first tensor, or the logits, that differ.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    network, reader = read_network(checkpoint), CheckpointReader(checkpoint)
    with WeightFiles(folder) as files, tempfile.TemporaryDirectory() as scratch:
        files.tie()
        rows = files.describe(EMBEDDING)[0][0]
        vocabulary = read_vocabulary(checkpoint)
        if vocabulary is not None and rows < vocabulary.size:
            what = f"has {rows} rows of embedding and head, where the vocabulary has {vocabulary.size} ids"
            raise InputError(folder, what, "convert again")
        weights = list(llama_weights(network, rows))
        types = {_compare(weight, reader, files) for weight in track(weights, "verify: tensors")}
        types.add(reader.dtype(weights[0].source))
        narrower = min(types, key=lambda dtype: (dtype.itemsize, -torch.finfo(dtype).eps))
        ids, out = np.random.default_rng(0).integers(0, rows, PROBE_SHAPE), Path(scratch) / "logits.npy"
        padded = reader.shape(weights[0].source)[0]
        launch(_megatron_logits, 1, checkpoint, network, padded, narrower, ids, out)
        ours = np.load(out)[..., :rows]
        theirs = _transformers_logits(files, Path(scratch), ids, narrower)
    largest, difference = float(np.abs(theirs).max()), float(np.abs(ours - theirs).max())
    if not difference <= TOLERANCE * largest:
        what = f"logits up to {largest:.3g} differ by {difference:.2g} from those of {checkpoint}"
        raise InputError(folder, what, "compare config.json with the recipe's network")
    return Verified(len(weights), largest, difference)


def _compare(weight: Weight, reader: CheckpointReader, files: WeightFiles) -> torch.dtype:
    """The folder's type of a weight; raises InputError where it is not the checkpoint's weight in that type."""
    theirs = files.read(weight.name)
    source = reader.best_source(weight.source, str(theirs.dtype).removeprefix("torch."))
    row = reader.read(source, weight.layer)
    ours = weight.view(row).reshape(weight.shape).to(theirs.dtype)
    if theirs.shape != ours.shape or not torch.equal(_bits(ours), _bits(theirs)):
        raise InputError(files.folder, f"{weight.name} is not what {reader.folder} holds", "convert again")
    return theirs.dtype


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Integers of the same bits, so that not-a-number equals itself and 0 is not -0."""
    widths = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(widths[tensor.element_size()])


def _megatron_logits(
    checkpoint: Path, network: Network, vocabulary_size: int, dtype: torch.dtype, ids: np.ndarray, out: Path
) -> None:
    from megatron_music.engine import processes
    from megatron_music.engine.engine import Engine

    layout = Layout()
    processes.join(layout)
    # A recipe of which only the network counts.
    recipe = Recipe.model_construct(network=network, layout=layout, optimizer=Optimizer(), precision="fp32", seed=0)
    engine = Engine(recipe, vocabulary_size, trains=False)
    engine.load(checkpoint, with_optimizer=False)
    for chunk in engine.chunks:
        for parameter in chunk.parameters():
            parameter.data.copy_(parameter.data.to(dtype))
    np.save(out, engine.logits(ids).numpy())
    processes.leave()


def _transformers_logits(files: WeightFiles, scratch: Path, ids: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    from transformers import LlamaForCausalLM

    # A folder of our own, so that files of other names, and what `import` tells of config.json, make no difference.
    files.link_into(scratch)
    write_json(scratch / CONFIG, read_config(files.folder) | {"vocab_size": files.describe(EMBEDDING)[0][0]})
    try:
        with quiet_transformers():
            network = LlamaForCausalLM.from_pretrained(scratch, dtype=dtype, local_files_only=True).float().eval()
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        what = f"transformers can't load it ({error})"
        raise InputError(files.folder, what, "compare config.json with the recipe's network") from None
    with torch.inference_mode():
        return network(torch.from_numpy(ids)).logits.numpy()
