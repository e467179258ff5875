"""The start of a run on many processes, tried on one machine: their groups, and the network without its memory.

Torch's fake process group takes the place of NCCL: it counts processes and moves nothing. Parameters are made on the
meta device: they have shapes and no storage. What megatron-core refuses at 512 GPUs it refuses here too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe

PARTS = {
    "lora_": "adapters",
    "layer_norm": "norms",
    "layernorm": "norms",
    "word_embeddings": "embedding",
    "self_attention": "attention",
    "mlp": "feed_forward",
    "output_layer": "output",
}
"""Parts of the network by what the names of their parameters contain; the first that fits counts."""


@dataclass(frozen=True)
class Built:
    """What one process would hold.

    Attributes:
        rank: the process.
        place: its number in each kind of group: tensor, context, data, pipeline.
        parameters: how many it has, by part (``cluster.parameters``).
        trained: how many of them take a gradient.
    """

    rank: int
    place: dict[str, int]
    parameters: dict[str, int]
    trained: int


def dry_run(recipe: Recipe, vocabulary_size: int, processes: int, ranks: Sequence[int]) -> list[Built]:
    """Builds groups and network as each of ``ranks`` of ``processes`` would, in a child process.

    Raises InputError where one of them can't start.
    """
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "vocabulary_size": vocabulary_size,
        "processes": processes,
        "ranks": list(ranks),
    }
    # The child sees no GPU: it needs none, and what is on them is others'.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_music.engine.dry_run"],
        input=json.dumps(job), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the dry run ended with code {done.returncode}:\n{done.stderr}")
    # Libraries may have printed before it.
    answer = json.loads(done.stdout.splitlines()[-1])
    if "fault" in answer:
        what = f"rank {answer['rank']} of {processes} can't start: {answer['fault']}"
        raise InputError("layout", what, "change the layout; `plan --gpus` lists some that fit")
    return [Built(**built) for built in answer["built"]]


def _main() -> None:
    from megatron_music.engine import cpu

    job = json.load(sys.stdin)
    recipe = Recipe.parse(job["recipe"], "recipe.yaml")
    # FP8 changes how numbers are kept, not which there are, and asks for a GPU.
    recipe = recipe.model_copy(update={"precision": "bf16" if recipe.is_bf16 else "fp32"})
    cpu.install()
    built = []
    for rank in job["ranks"]:
        try:
            built.append(asdict(_build(recipe, job["vocabulary_size"], job["processes"], rank)))
        except (AssertionError, RuntimeError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
            print(json.dumps({"rank": rank, "fault": fault}))
            return
    print(json.dumps({"built": built}))


def _build(recipe: Recipe, vocabulary_size: int, processes: int, rank: int) -> Built:
    import torch
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_music.engine.network import build_chunks, transformer_config
    from megatron_music.engine.processes import form_groups, leave

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        form_groups(recipe.layout, create_gloo_process_groups=False)
        config = transformer_config(recipe)
        # Megatron-core draws initial weights in the CPU's memory before it copies them to where the parameters are.
        config.perform_initialization = False
        with torch.device("meta"):
            chunks = build_chunks(recipe, config, vocabulary_size)
        named = [item for chunk in chunks for item in chunk.named_parameters()]
        counts = dict.fromkeys(PARTS.values(), 0)
        for name, parameter in named:
            counts[next(part for key, part in PARTS.items() if key in name)] += parameter.numel()
        place = {
            "tensor": parallel_state.get_tensor_model_parallel_rank(),
            "context": parallel_state.get_context_parallel_rank(),
            "data": parallel_state.get_data_parallel_rank(),
            "pipeline": parallel_state.get_pipeline_model_parallel_rank(),
        }
        trained = sum(parameter.numel() for _, parameter in named if parameter.requires_grad)
        return Built(rank, place, counts, trained)
    finally:
        leave()


if __name__ == "__main__":
    _main()
