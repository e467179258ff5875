"""The memory model against what real processes allocate."""

import json

import memory_workers
import pytest

from megatron_music.cluster.memory import CROSS_ENTROPY_BYTES, memory_by_rank, stage_of_rank
from megatron_music.cluster.parameters import parameters_of_stage
from megatron_music.engine import kernels, processes

LORA = {"rank": 8, "alpha": 16}
CASES = {
    "data fp32": {"precision": "fp32"},
    "data bf16": {"precision": "bf16"},
    "tensor fp32": {"precision": "fp32", "layout": {"tensor": 2}},
    "tensor bf16": {"precision": "bf16", "layout": {"tensor": 2, "sequence": True}},
    "pipeline fp32": {"precision": "fp32", "layout": {"pipeline": 2}},
    "pipeline bf16": {"precision": "bf16", "layout": {"pipeline": 2}},
    "interleaved": {"precision": "bf16", "layout": {"pipeline": 2, "interleave": 2, "recompute": "selective"}},
    "recomputed": {"precision": "bf16", "layout": {"recompute": "full", "recompute_layers": 4}},
    "adapters": {"precision": "bf16", "layout": {"tensor": 2}, "lora": LORA},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each process of every case found."""
    folder = tmp_path_factory.mktemp("memory")
    ports = [processes.free_port() for _ in CASES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes.launch(memory_workers.measure_all, memory_workers.PROCESSES, folder, CASES, ports)
    ranks = range(memory_workers.PROCESSES)
    return {name: [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in ranks] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_what_is_allocated_is_what_was_planned(measured, case):
    recipe = memory_workers.recipe(CASES[case])
    ranks = range(memory_workers.PROCESSES)
    planned = memory_by_rank(recipe, memory_workers.VOCABULARY, memory_workers.PROCESSES, ranks, device="cpu")
    for rank, found in enumerate(measured[case]):
        stage = stage_of_rank(recipe, memory_workers.PROCESSES, rank)
        assert found["parameters"] == parameters_of_stage(recipe, memory_workers.VOCABULARY, stage).total
        memory = planned[rank]
        for part in ("weights", "gradients", "optimizer"):
            assert found[part] == pytest.approx(getattr(memory, part), rel=0.1), part
        peak = memory.activations + memory.logits + memory.working
        assert found["peak"] == pytest.approx(peak, rel=0.1), (memory, found)


def test_the_constants_are_the_engines():
    assert CROSS_ENTROPY_BYTES == kernels._CROSS_ENTROPY_BYTES
