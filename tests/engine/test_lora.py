"""Adapters start as the network below them, change nothing but themselves, and learn the same on every layout."""

import json

import lora_workers
import numpy as np
import pytest
import torch
from curves import decrease, rounding_error
from torch.distributed.checkpoint import FileSystemReader

from megatron_music.engine import processes
from megatron_music.engine.lora import is_adapter

LAYOUTS = {
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence": True},
    "interleaved": {"pipeline": 2, "interleave": 2},
    "data": {},
}
ALL = ["one", *LAYOUTS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with the results of all runs: two launches for every test of this module."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes.launch(lora_workers.one_process, 1, folder)
        ports = [processes.free_port() for _ in LAYOUTS]
        processes.launch(lora_workers.two_processes, 2, folder, LAYOUTS, ports)
    return folder


def result(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_new_adapters_leave_the_network_as_it_is(runs):
    base, one = np.load(runs / "base.npy"), np.load(runs / "one.npy")
    assert base.std() > 0.1 and np.array_equal(one.view(np.int32), base.view(np.int32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_adapters_leave_the_network_as_it_is_on_every_layout(runs, layout):
    np.testing.assert_allclose(np.load(runs / f"{layout}.npy"), np.load(runs / "base.npy"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ALL)
def test_only_adapters_change_and_all_of_them_do(runs, layout):
    run = result(runs, layout)
    assert run["changed"] == [name for name in run["all"] if is_adapter(name)]
    # Every process of a pipeline holds two of the four layers.
    layers = 2 if layout == "interleaved" else 4
    assert len(run["changed"]) == layers * 4 * 2 < len(run["all"])


def test_they_learn_the_same_where_layers_are_computed_again(runs):
    again, whole = result(runs, "recomputed"), result(runs, "all")
    assert (again["losses"], again["norms"]) == (whole["losses"], whole["norms"])


def test_they_learn(runs):
    assert decrease(result(runs, "one")["losses"]) > 0.15


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_equal_one(runs, layout):
    one, two = result(runs, "one"), result(runs, layout)
    assert len(one["losses"]) == lora_workers.STEPS
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(two["norms"], one["norms"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [*ALL, "all", *(f"{layout}_all" for layout in lora_workers.DRAWS)])
def test_resuming_on_the_same_layout_is_exact(runs, layout):
    """With dropout as well, and with embeddings that are trained whole."""
    run = result(runs, layout)
    for name in ("losses", "norms"):
        assert run["again"][name] == run[name][lora_workers.HALF :]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resuming_on_another_layout(runs, layout):
    continued, one = result(runs, f"{layout}_after_one"), result(runs, "one")
    np.testing.assert_allclose(continued["losses"], one["losses"][lora_workers.HALF :], rtol=0, atol=1e-4)
    np.testing.assert_allclose(continued["norms"], one["norms"][lora_workers.HALF :], rtol=0, atol=1e-4)


def test_a_checkpoint_holds_what_is_trained_alone(runs):
    for name, embeddings in (("one", set()), ("all", {"embedding.word_embeddings.weight", "output_layer.weight"})):
        stored = FileSystemReader(runs / name).read_metadata().state_dict_metadata
        tensors = {key for key, value in stored.items() if hasattr(value, "size") and not key.startswith("optimizer")}
        assert {key for key in tensors if is_adapter(key)} | embeddings == tensors
        assert len(tensors) == 8 + len(embeddings)
        # Moments and master weights of each of them, and no others.
        assert len([key for key in stored if key.startswith("optimizer.state.exp_avg.")]) == len(tensors)


def test_embeddings_are_trained_whole_where_the_recipe_says_so(runs):
    run = result(runs, "all")
    others = {name for name, is_adapters in run["trained"].items() if not is_adapters}
    assert others == {"embedding.word_embeddings.weight", "output_layer.weight"}
    assert run["losses"][-1] < result(runs, "one")["losses"][-1]
    before, after = np.load(runs / "all_again.npy"), np.load(runs / "all_after.npy")
    assert np.abs(before - after).max() > 0.01


def test_bf16_trains_like_fp32(runs):
    # Some 50 roundings one behind the other.
    assert 0.5 < rounding_error(np.load(runs / "bf16.npy"), np.load(runs / "one.npy")) < 4
    bf16, fp32 = result(runs, "bf16"), result(runs, "one")
    assert rounding_error(bf16["norms"][:1], fp32["norms"][:1]) < 4
    assert decrease(bf16["losses"]) == pytest.approx(decrease(fp32["losses"]), rel=0.05)


def test_dropout_differs_between_copies_and_repeats_itself(runs):
    """Runs that differ in nothing but how many processes draw part ways from the first step on."""
    one, data = result(runs, "all")["losses"], result(runs, "data_all")["losses"]
    # B is zero before the first step: no dropout shows there.
    assert one[0] == pytest.approx(data[0], abs=1e-5) and abs(one[2] - data[2]) > 1e-5
    assert torch.isfinite(torch.tensor(one)).all()
