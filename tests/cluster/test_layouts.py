"""Which layouts start and fit, how long a run takes, and what checkpoints weigh."""

import pytest

from megatron_music.cluster.forecast import bubble, checkpoint, forecast
from megatron_music.cluster.layouts import divisions, proposals
from megatron_music.cluster.memory import activations_by_recompute, memory_by_rank, stage_memory
from megatron_music.cluster.parameters import whole_parameters
from megatron_music.recipe.flops import parameter_count
from megatron_music.recipe.gpus import GPUS, GiB, Gpu, gpu_of_device
from megatron_music.recipe.recipe import Recipe

VOCABULARY = 83968
H800 = GPUS["H800"]


@pytest.fixture
def load(repository):
    """Loads an example with overrides: ``load("yue_7b", "layout.tensor=2")``."""
    return lambda name, *overrides: Recipe.load(repository / "examples" / f"{name}.yaml", list(overrides))


def misfits(recipe, gpus, vocabulary_size=VOCABULARY):
    found = divisions(recipe, vocabulary_size, gpus)
    return [(division.what, division.by, division.divisor) for division in found if not division.holds]


def test_the_parameters_of_the_whole_model_are_those_of_the_formula(load):
    for name in ("yue_0.5b", "yue_2b", "yue_7b", "yue_stage2"):
        recipe = load(name)
        assert whole_parameters(recipe, VOCABULARY).total == parameter_count(recipe.network, VOCABULARY)


def test_every_division_is_checked(load):
    recipe = load("yue_7b")
    assert misfits(recipe, 512) == []
    assert misfits(recipe, 500) == [("GPUs", "tensor x pipeline x context", 8)] + [
        (f"batch of {phase.name}", "copies x micro-batch", 62) for phase in recipe.phases
    ]
    assert misfits(recipe, 512, 83734) == [("padded vocabulary", "tensor", 4)]
    small = misfits(load("yue_0.5b"), 512)
    assert [what for what, *_ in small] == [f"batch of {name}" for name in ("warm-up", "constant", "long-context",
                                                                            "annealing")]  # fmt: skip
    # What a recipe refuses on reading, a proposal must not do either.
    layout = recipe.layout.model_copy(update={"tensor": 8, "pipeline": 3, "context": 3})
    whats = [what for what, *_ in misfits(recipe.model_copy(update={"layout": layout}), 72)]
    assert whats[:2] == ["key-value heads", "layers"] and "context" in whats


def test_fp8_wants_multiples_of_16_on_every_process(load):
    recipe = load("yue_7b", "precision=fp8-delayed")
    assert misfits(recipe, 512) == []
    # 11,008 is 688 x 16: shared by 32 processes it is not a multiple of 16 any more.
    wide = recipe.model_copy(update={"layout": recipe.layout.model_copy(update={"tensor": 32})})
    assert ("feed-forward channels", "16 x tensor (FP8)", 512) in misfits(wide, 512)


def test_an_interleaved_pipeline_needs_micro_batches_for_every_stage(load):
    recipe = load("yue_7b", "layout.interleave=2")
    # 128 GPUs a stage of 4: 96 copies of the model leave 8 and 4 micro-batches; 256 copies leave 3 and none.
    assert misfits(recipe, 768) == []
    assert ("micro-batches of warm-up", "pipeline", 2) in misfits(recipe, 8 * 256)


def test_every_proposal_starts_and_fits_and_the_best_is_the_least_parallel(load):
    for name, gpus in (("yue_7b", 512), ("yue_2b", 96), ("yue_stage2", 16)):
        recipe = load(name)
        found = proposals(recipe, VOCABULARY, gpus, H800)
        assert found
        for proposal in found[:10]:
            # Read again as a user would write it: the recipe's own checks hold too.
            fields = ", ".join(f"{key}: {str(value).lower()}" for key, value in proposal.layout.model_dump().items()
                               if value is not None)  # fmt: skip
            again = load(name, f"layout={{{fields}}}")
            assert again.layout == proposal.layout
            assert again.data_processes(gpus) == proposal.copies
        assert all(proposal.layout.tensor <= 8 for proposal in found)
        assert all(proposal.peak_bytes <= 0.95 * H800.memory_bytes for proposal in found)
        sizes = [proposal.layout.model_processes for proposal in found if proposal.layout.recompute == "none"]
        assert sizes == sorted(sizes)
    best = proposals(load("yue_7b"), VOCABULARY, 512, H800)[0]
    # 384 sequences of the long phases on 512 GPUs leave no fewer than four GPUs to a sequence.
    assert (best.layout.tensor, best.layout.pipeline, best.layout.context, best.copies) == (4, 1, 1, 128)


def test_nothing_fits_where_the_model_is_too_large_or_the_batch_has_no_divisor(load):
    assert proposals(load("yue_7b"), VOCABULARY, 1, Gpu("small", 24 * GiB, 1e12)) == []
    assert proposals(load("yue_7b"), VOCABULARY, 7, H800) == []


def test_recomputation_is_proposed_where_memory_is_short(load):
    recipe = load("yue_7b")
    peaks = {}
    for setting in ("none", "selective", "full"):
        layout = recipe.layout.model_copy(update={"tensor": 1, "pipeline": 1, "sequence": False, "recompute": setting})
        memory = memory_by_rank(recipe.model_copy(update={"layout": layout}), VOCABULARY, 16)
        peaks[setting] = memory[0].total
    assert peaks["none"] > peaks["selective"] > peaks["full"]
    gpu = Gpu("just", int(peaks["full"] / 0.95) + 1, 1e15)
    found = [proposal.layout for proposal in proposals(recipe, VOCABULARY, 16, gpu)]
    assert [layout.recompute for layout in found if layout.model_processes == 1] == ["full"]


def test_what_is_kept_follows_the_formulas(load):
    """By hand: 7B, one micro-batch of 16,384 tokens on 4 processes, two bytes a number."""
    recipe = load("yue_7b")
    tokens, hidden, layers = 16384, 4096, 16
    residual = 2 * tokens * hidden // 4
    kept = activations_by_recompute(recipe, VOCABULARY, 512, 0)
    # The first of two stages keeps two micro-batches.
    assert kept["full"] == 2 * layers * residual
    heads = (32 + 4 + 4 + 2 * 32) * 128  # turned queries and keys, values, the result twice
    attention = tokens * (2 * heads + 4 * 32) // 4
    norms = 4 * residual + 2 * 4 * tokens // 4
    assert kept["selective"] == 2 * layers * (attention + norms)
    assert kept["none"] == kept["selective"] + 2 * layers * 2 * tokens * 3 * 11008 // 4
    some = load("yue_7b", "layout.recompute=full", "layout.recompute_layers=4")
    quarter = stage_memory(some, VOCABULARY, 512, 0).activations
    assert quarter == (kept["full"] + 3 * kept["none"]) // 4
    last = stage_memory(recipe, VOCABULARY, 512, 1)
    assert last.logits == 2 * tokens * VOCABULARY // 4
    # Context parallelism halves all of it, on twice the processes.
    half = load("yue_7b", "layout.context=2")
    assert activations_by_recompute(half, VOCABULARY, 512, 0)["none"] == kept["none"] // 2


def test_fp8_keeps_copies_of_weights_and_half_of_the_products_inputs(load):
    plain, fp8 = load("yue_7b"), load("yue_7b", "precision=fp8-blockwise")
    before, after = stage_memory(plain, VOCABULARY, 512, 0), stage_memory(fp8, VOCABULARY, 512, 0)
    matrices = 16 * (4096 * 5120 + 4096 * 4096 + 3 * 4096 * 11008) // 4
    assert (after.fp8_weights, before.fp8_weights) == (2 * matrices, 0)
    assert (after.weights, after.optimizer) == (before.weights, before.optimizer)
    tokens = 16384
    inputs = (
        2 * 4096 + 11008 - 4096
    )  # norms' outputs and the feed-forward product shrink; attention's result has a copy
    assert before.activations - after.activations == 2 * 16 * tokens * inputs // 4


def test_the_forecast_counts_attention_at_the_context_of_each_phase(load):
    recipe = load("yue_0.5b")
    warm_up, _, long_context, _ = forecast(recipe, VOCABULARY, 16, H800, 0.5)
    assert warm_up.flops_per_token == 6 * (536_921_088 - 85_983_232) + 6 * 24 * 1024 * 8192
    assert long_context.flops_per_token - warm_up.flops_per_token == 6 * 24 * 1024 * 8192
    # docs/benchmarks.md: 127,000 tokens/s are 50% of the peak.
    assert warm_up.tokens_per_second == pytest.approx(0.5 * 989e12 / warm_up.flops_per_token)
    assert round(warm_up.tokens_per_second, -3) == 126_000
    assert warm_up.gpu_hours == pytest.approx(16 * 24 * warm_up.days)
    assert warm_up.step_seconds * warm_up.steps == pytest.approx(warm_up.days * 86400)
    slower = forecast(recipe, VOCABULARY, 16, GPUS["A100"], 0.25)[0]
    assert slower.days == pytest.approx(warm_up.days * 2 * 989 / 312)


def test_checkpoints_hold_master_weights_and_moments_of_what_is_trained(load):
    size = checkpoint(load("yue_0.5b"), VOCABULARY)
    assert (size.weights, size.full) == (2 * 536_921_088, 14 * 536_921_088)
    assert (size.kept, size.on_disk) == (3 + 4, 7 * size.full)
    adapters = checkpoint(load("yue_0.5b", "lora={rank: 8, alpha: 8}"), VOCABULARY)
    inputs_and_outputs = (1024 + 1536) + (1024 + 1024) + (1024 + 8192) + (4096 + 1024)
    assert adapters.weights == 2 * 24 * 8 * inputs_and_outputs


def test_the_bubble_of_a_pipeline(load):
    recipe = load("yue_7b")
    assert bubble(recipe, 64, recipe.phases[0]) == 1 / 13
    assert bubble(load("yue_7b", "layout.interleave=4"), 64, recipe.phases[0]) == 1 / 49


def test_a_gpu_is_known_by_its_devices_name():
    names = {"NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA A100-SXM4-80GB": "A100"}
    assert {device: gpu_of_device(device).name for device in names} == names
    assert gpu_of_device("NVIDIA GeForce RTX 3060") is None
