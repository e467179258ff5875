import json
import os

import engine_workers
import numpy as np
import pytest
from curves import decrease, rounding_error

from megatron_music.engine import processes

TWO = {
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence": True},
    "pipeline": {"pipeline": 2},
    "interleaved": {"pipeline": 2, "interleave": 2},
    "context": {"context": 2},
    "data": {},
}
FOUR = {
    "tensor x pipeline": {"tensor": 2, "sequence": True, "pipeline": 2},
    "tensor x data": {"tensor": 2},
    "pipeline x data": {"pipeline": 2},
}
LAYOUTS = TWO | FOUR
WRITERS = ["one", *LAYOUTS]
RESUMED = slice(engine_workers.HALF, engine_workers.RESUMED)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with the results of all runs: four launches for every test of this module."""
    folder = tmp_path_factory.mktemp("runs")
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        processes.launch(engine_workers.one_process, 1, folder)
        writer = "one"
        for count, layouts in ((2, TWO), (4, FOUR)):
            ports = [processes.free_port() for _ in layouts]
            processes.launch(engine_workers.several_processes, count, folder, layouts, ports, writer)
            writer = list(layouts)[-1]
        processes.launch(engine_workers.one_process_after, 1, folder, list(LAYOUTS))
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    return folder


def result(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_processes_equal_one(runs, layout):
    one, two = result(runs, "one"), result(runs, layout)
    assert len(one["losses"]) == engine_workers.STEPS
    assert one["losses"][-1] < one["losses"][0] - 0.5
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(two["norms"], one["norms"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_equal_on_all_layouts(runs, layout):
    one = np.load(runs / "one.npy")
    assert one.shape == (2, engine_workers.CONTEXT, engine_workers.VOCABULARY)
    np.testing.assert_allclose(np.load(runs / f"{layout}.npy"), one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", WRITERS)
def test_resuming_on_the_same_layout_is_exact(runs, layout):
    whole, again = result(runs, layout), result(runs, f"{layout}_again")
    assert again["losses"] == whole["losses"][RESUMED]
    assert again["norms"] == whole["norms"][RESUMED]


@pytest.mark.parametrize(
    ("reader", "writer"), [*zip(LAYOUTS, WRITERS, strict=False), *(("one", writer) for writer in LAYOUTS)]
)
def test_resuming_on_another_layout(runs, reader, writer):
    continued, one = result(runs, f"{reader}_after_{writer}"), result(runs, "one")
    np.testing.assert_allclose(continued["losses"], one["losses"][RESUMED], rtol=0, atol=1e-4)
    np.testing.assert_allclose(continued["norms"], one["norms"][RESUMED], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["selective", "full", "three"])
def test_recomputation_changes_nothing_but_what_is_kept(runs, name):
    plain, run = result(runs, "recompute_none"), result(runs, f"recompute_{name}")
    assert plain["losses"] == result(runs, "one")["losses"][: engine_workers.HALF]
    for what in ("losses", "norms", "sums"):
        assert run[what] == plain[what]
    # FP32 numbers that a layer of the network above keeps of a token. With its feed-forward layer computed again it
    # keeps none of three times that width, and with all of it computed again its own input only. All share a rotation.
    tokens, hidden, ffn, key_value, heads = engine_workers.CONTEXT, 64, 128, 32, 4
    feed_forward = 3 * ffn
    # Both norms' inputs and outputs with a scale each; queries, keys and values; what attention gives, by heads and by
    # positions, and its log-sum by head.
    rest = 4 * hidden + 2 + hidden + 2 * key_value + 2 * hidden + heads
    layer, angles = feed_forward + rest - hidden, hidden // heads
    # Who computes again keeps the angles of the rotation, and who does not their cosines and sines, as wide together.
    freed = {"selective": 4 * feed_forward, "three": 3 * layer - angles, "full": 4 * layer}
    assert plain["kept"] - run["kept"] == 4 * tokens * freed[name]


def test_bf16_trains_like_fp32(runs):
    # Some 50 roundings one behind the other.
    assert 0.5 < rounding_error(np.load(runs / "one_bf16.npy"), np.load(runs / "one.npy")) < 4
    bf16, fp32 = result(runs, "one_bf16"), result(runs, "one")
    assert rounding_error(bf16["norms"][:1], fp32["norms"][:1]) < 4
    assert decrease(bf16["losses"]) == pytest.approx(decrease(fp32["losses"]), rel=0.05)


@pytest.mark.parametrize("name", ["loss_table", *(f"{layout}_table" for layout in LAYOUTS)])
def test_losses_are_told_apart_by_kind(runs, name):
    content = result(runs, name)
    table, expected = np.array(content["table"]), np.array(content["expected"])
    np.testing.assert_array_equal(table[1], expected[1])
    assert table[1].sum() == engine_workers.SEQUENCES * engine_workers.CONTEXT
    np.testing.assert_allclose(table[0], expected[0], rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_the_mean_of_what_counts_wherever_it_is(runs, layout):
    """Micro-batches and processes hold unequal numbers of counted tokens; one process takes all in one micro-batch."""
    # Processes that share sequences can't keep documents apart.
    reference = "one_masked_across" if "context" in LAYOUTS[layout] else "one_masked"
    one, several = result(runs, reference), result(runs, f"{layout}_masked")
    for name in ("losses", "norms"):
        np.testing.assert_allclose(several[name], one[name], rtol=0, atol=1e-4)
    table, expected = np.array(several["table"]), np.array(one["table"])
    np.testing.assert_array_equal(table[1], expected[1])
    np.testing.assert_allclose(table[0], expected[0], rtol=1e-4)
    # Kinds are measured whole, whether they count or not.
    assert table[1, : engine_workers.COUNTED].sum() == engine_workers.SEQUENCES * engine_workers.CONTEXT
    assert 0 < table[1, engine_workers.COUNTED] < 0.5 * engine_workers.SEQUENCES * engine_workers.CONTEXT


def test_the_loss_of_what_counts_is_that_of_the_logits(runs):
    masked, expected = result(runs, "one_masked"), result(runs, "masked_expected")
    assert masked["losses"][0] == pytest.approx(expected["loss"], rel=1e-5)


def test_documents_are_kept_apart_in_what_is_computed_again(runs):
    assert result(runs, "one_masked_recomputed") == result(runs, "one_masked")


def test_a_mask_that_leaves_out_nothing_changes_nothing(runs):
    plain, masked = result(runs, "one"), result(runs, "one_all_counted")
    for name in ("losses", "norms"):
        np.testing.assert_allclose(masked[name], plain[name][: len(masked[name])], rtol=1e-6)


def test_a_document_in_a_packed_sequence_is_read_as_alone(runs):
    logits = np.load(runs / "packed.npz")
    np.testing.assert_allclose(logits["within"], logits["alone"], rtol=0, atol=1e-5)
    # The first document of a sequence has nothing before it in either case.
    assert np.abs(logits["across"][0, :20] - logits["alone"][0, :20]).max() < 1e-5
    assert np.abs(logits["across"][0, 20:] - logits["alone"][0, 20:]).max() > 0.01


def test_gains_are_not_decayed_and_a_load_keeps_the_constants_of_the_recipe(runs):
    groups = result(runs, "groups")
    assert groups["1.0"] == {"weight_decay": 0.5, "betas": [0.9, 0.9], "eps": 1e-8, "numel": groups["1.0"]["numel"]}
    assert min(groups["1.0"]["numel"]) > 64
    assert groups["0.0"] == {"weight_decay": 0.0, "betas": [0.9, 0.9], "eps": 1e-8, "numel": [64]}
