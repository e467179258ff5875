"""Recipes: what is read, what is refused and with which words."""

from fractions import Fraction
from typing import get_args

import pytest
import yaml

from megatron_music.errors import InputError
from megatron_music.recipe.flops import flops_per_token, parameter_count
from megatron_music.recipe.mixture import solve
from megatron_music.recipe.phase import LossGroup
from megatron_music.recipe.recipe import Network, Recipe
from megatron_music.vocabulary.kinds import LOSS_GROUPS

GROUPS = list(LOSS_GROUPS)
RAMP = {"start_sequences": 1, "add_sequences": 3, "tokens": 500}
YUE = ["yue_7b", "yue_2b", "yue_0.5b", "yue_stage2"]


@pytest.fixture
def content():
    return {
        "name": "small",
        "vocabulary": "vocabulary.yaml",
        "corpus": "corpus",
        "run": "runs/small",
        "network": {
            "hidden_size": 64,
            "layers": 4,
            "attention_heads": 4,
            "key_value_heads": 2,
            "ffn_hidden_size": 128,
            "position_limit": 64,
        },
        "layout": {"tensor": 2, "sequence": True},
        "phases": [
            {
                "name": "only",
                "tokens": "1k",
                "context_tokens": 64,
                "batch_sequences": 4,
                "learning_rate": 1e-3,
                "mixture": {"songs": "29/44", "speech": 0.25},
            }
        ],
    }


@pytest.fixture
def load(content, tmp_path):
    def load(*overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return Recipe.load(path, list(overrides))

    return load


def test_fields_are_read_with_their_units_and_paths_from_the_files_folder(load, tmp_path):
    recipe = load()
    phase = recipe.phases[0]
    assert phase.tokens == 1000
    assert phase.mixture.shares == {"songs": Fraction(29, 44), "speech": Fraction(1, 4)}
    assert phase.learning_rate.shape == "constant" and phase.learning_rate.end == 1e-3
    assert recipe.corpus == tmp_path / "corpus"


def test_the_resolved_recipe_reads_back_equal_from_any_folder(load, tmp_path):
    recipe = load()
    recipe.save(tmp_path / "elsewhere" / "resolved.yaml")
    assert Recipe.load(tmp_path / "elsewhere" / "resolved.yaml") == recipe


def test_overrides_reach_list_items_by_index_and_by_name(load):
    recipe = load("phases.0.tokens=3M", "phases.only.mixture.songs=2", "phases.0.learning_rate=3e-4",
                  "layout.tensor=1", "layout.sequence=false")  # fmt: skip
    assert recipe.phases[0].learning_rate.end == 3e-4
    assert recipe.phases[0].tokens == 3_000_000
    assert recipe.phases[0].mixture.shares["songs"] == 2
    assert recipe.layout.tensor == 1


@pytest.mark.parametrize("name", [*YUE, "quickstart", "quickstart_stage2"])
def test_the_shipped_recipes_pass_validation(repository, name):
    assert Recipe.load(repository / "examples" / f"{name}.yaml").phases


@pytest.mark.parametrize("name", YUE)
def test_all_published_recipes_share_the_optimizer_and_the_batch_in_tokens(repository, name):
    recipe = Recipe.load(repository / "examples" / f"{name}.yaml")
    optimizer = recipe.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm, recipe.network.init_std) == (0.1, 1.0, 0.02)
    assert (recipe.network.rope_base, recipe.network.norm_epsilon, recipe.precision) == (10000, 1e-5, "bf16")
    assert {phase.step_tokens for phase in recipe.phases} == {768 * 8192}


@pytest.mark.parametrize("name", ["yue_7b", "yue_2b"])
def test_stage_1_has_the_decks_four_phases(repository, name):
    phases = Recipe.load(repository / "examples" / f"{name}.yaml").phases
    rates = [(phase.learning_rate.shape, phase.learning_rate.start, phase.learning_rate.end) for phase in phases]
    assert [phase.tokens for phase in phases] == [240 * 10**9, 760 * 10**9, 750 * 10**9, 20 * 10**9]
    assert [phase.context_tokens for phase in phases] == [8192, 8192, 16384, 16384]
    assert [phase.batch_sequences for phase in phases] == [768, 768, 384, 384]
    assert rates == [("linear", 0, 3e-4), ("constant", 3e-4, 3e-4), ("constant", 3e-4, 3e-4), ("cosine", 3e-4, 3e-5)]


@pytest.mark.parametrize("name", ["yue_7b", "yue_2b", "yue_0.5b"])
def test_the_mixtures_hold_the_published_ratios(repository, name):
    recipe = Recipe.load(repository / "examples" / f"{name}.yaml")
    warm_up, constant, long_context, annealing = (solve(phase.mixture, recipe.groups) for phase in recipe.phases)
    published = {
        "lyrics_to_song": Fraction(29, 44),
        "speech": Fraction(1, 11),
        "mix": Fraction(1, 8),
        "dual_track": Fraction(1, 8),
    }
    assert warm_up == {(f"{task}_en_zh",): share for task, share in published.items()}
    parts = {"en_zh": Fraction(2, 3), "other": Fraction(1, 3)}
    both = {(f"{task}_{part}",): share * of for task, share in published.items() for part, of in parts.items()}
    assert constant == both
    without_mix = published | {"dual_track": Fraction(1, 4)}
    del without_mix["mix"]
    assert long_context == {
        (f"{task}_{part}",): share * of for task, share in without_mix.items() for part, of in parts.items()
    }
    assert annealing == {("lyrics_to_song_best",): Fraction(2, 3), ("reference_best",): Fraction(1, 3)}


def test_the_predictor_is_the_full_run_in_proportion(repository):
    small, full = (Recipe.load(repository / "examples" / f"{name}.yaml").phases for name in ("yue_0.5b", "yue_7b"))
    assert sum(phase.tokens for phase in small) == 70 * 10**9
    for ours, theirs in zip(small, full, strict=True):
        assert ours.tokens / (70 * 10**9) == pytest.approx(theirs.tokens / (1770 * 10**9), abs=1e-3)


def test_stage_2_warms_up_for_a_hundredth_of_its_2t_tokens(repository):
    first, second = Recipe.load(repository / "examples" / "yue_stage2.yaml").phases
    assert first.tokens + second.tokens == 2 * 10**12
    assert first.tokens * 100 == 2 * 10**12
    assert (second.learning_rate.shape, second.learning_rate.end) == ("cosine", 3e-5)


def test_parameter_counts_of_the_published_shapes(repository):
    counts = {
        name: parameter_count(Recipe.load(repository / "examples" / f"{name}.yaml").network, 83_968) for name in YUE
    }
    # 7B: 32 layers of 4096 x (4096 + 2 x 512) + 4096^2 + 3 x 4096 x 11008 + norms, final norm, two tables.
    layer = 4096 * 5120 + 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert counts["yue_7b"] == 32 * layer + 4096 + 2 * 83_968 * 4096
    assert counts["yue_7b"] == pytest.approx(6.2e9, rel=0.01)
    assert counts["yue_stage2"] == pytest.approx(1.56e9, rel=0.01)


def test_flops_of_the_half_billion_network():
    network = Network(
        hidden_size=1024, layers=24, attention_heads=16, key_value_heads=4, ffn_hidden_size=4096, position_limit=8192
    )
    assert flops_per_token(network, 83_968, 8192) == pytest.approx(3.9e9, rel=0.01)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("leyers", 3, "leyers: unknown field; known fields here: "),
        ("network.layer", 3, "network.layer: unknown field; did you mean layers?"),
        ("phases.0.token", 3, "phases[0].token: unknown field; did you mean tokens?"),
        ("phases.0.learning_rate", {"shape": "linear", "start": 0, "stop": 1}, "unknown field"),
        ("network.hidden_size", None, "network.hidden_size: "),
        ("network.hidden_size", 62, "is not a multiple of attention_heads 4"),
        ("network.attention_heads", 64, "the head size 1 is odd"),
        ("network.key_value_heads", 3, "is not a multiple of key_value_heads 3"),
        ("layout.tensor", 4, "layout.tensor 4 does not divide network.key_value_heads 2"),
        ("layout.tensor", 1, "sequence parallelism needs tensor above 1"),
        ("layout.pipeline", 3, "network.layers 4 is not a multiple of layout.pipeline x layout.interleave = 3"),
        ("layout.interleave", 2, "interleave needs pipeline above 1"),
        ("phases.0.tokens", "240 billion", "'240 billion' is not a count"),
        ("phases.0.tokens", 0, "phases[0].tokens: "),
        ("phases.0.tokens", 1.5, "1.5 is not a whole number"),
        ("phases.0.tokens", True, "is a truth value"),
        ("phases.0.context_tokens", 128, "context_tokens 128 is above network.position_limit 64"),
        ("phases.0.context_tokens", 63, "is not a multiple of layout.tensor x layout.context = 2"),
        ("layout.context", 3, "context_tokens 64 is not a multiple of 2 x layout.context = 6; change one of them"),
        ("layout.context", 64, "context_tokens 64 is not a multiple of 2 x layout.context = 128"),
        ("layout", {"tensor_overlap": True}, "layout: tensor_overlap needs sequence parallelism"),
        ("layout.recompute", "some", "layout.recompute: "),
        ("layout.recompute_layers", 1, "layout: recompute_layers needs recompute: full"),
        ("layout", {"pipeline": 2, "recompute": "full", "recompute_layers": 3}, "recompute_layers 3 is above the 2"),
        ("layout", {"recompute": "selective", "cuda_graphs": True}, "layout: cuda_graphs can't hold recomputation"),
        ("phases.0.micro_batch_sequences", 3, "is not a multiple of micro_batch_sequences 3"),
        ("phases.0.batch_ramp", RAMP | {"start_sequences": 4}, "start_sequences 4 is not below batch_sequences 4"),
        ("phases.0.batch_ramp", RAMP | {"add_sequences": 2}, "does not lead from start_sequences 1 to batch_sequences"),
        ("phases.0.batch_ramp", RAMP | {"tokens": "2k"}, "batch_ramp.tokens 2000 is above the phase's tokens 1000"),
        ("phases.0.batch_ramp", RAMP | {"samples": 3}, "phases[0].batch_ramp.samples: unknown field"),
        ("loss", {"without": ["words"]}, "loss.without[0]: "),
        ("phases.0.loss", {"without": GROUPS}, "phases[0].loss.without: leaves no token to learn"),
        ("attention", "none", "attention: "),
        ("phases.0.mixture", {}, "phases[0].mixture: names no source"),
        ("phases.0.mixture.songs", "a/b", "'a/b' is not a number or a fraction"),
        ("phases.0.mixture.songs", -1, "must be above 0"),
        ("phases.0.learning_rate", -1, "phases[0].learning_rate.start: "),
        ("phases.0.learning_rate", "fast", "phases[0].learning_rate.start: "),
        ("phases", [], "phases: "),
        ("precision", "fp7", "precision: "),
        ("seed", "one", "seed: "),
        ("corpus", 7, "7 is not a path"),
    ],
)
def test_a_bad_recipe_gets_one_line_that_names_file_field_and_mend(content, load, tmp_path, path, value, message):
    *parents, last = path.split(".")
    node = content
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    with pytest.raises(InputError) as error:
        load()
    assert str(error.value).startswith(str(tmp_path / "recipe.yaml"))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases", "is not of the form a.b=c"),
        ("phases.late.tokens=3", "there is no item 'late'; choose one of ['only'] or an index"),
        ("name.first=x", "lies under a plain value"),
    ],
)
def test_a_bad_override_is_refused(load, override, message):
    with pytest.raises(InputError, match="--set") as error:
        load(override)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("precision=fp8-blockwise", "precision: fp8-blockwise"),
        ("layout.tensor_overlap=true", "layout.tensor_overlap: true"),
    ],
)
def test_what_only_transformer_engine_has_is_told_and_takes_no_adapters(load, override, field):
    assert load().needs_transformer_engine is None
    assert load(override).needs_transformer_engine == field
    with pytest.raises(InputError, match=f"{field} needs Transformer Engine's layers, which take no `lora`"):
        load(override, "lora={rank: 2, alpha: 4}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["network.ffn_hidden_size=136"],
            "fp8-delayed needs network.ffn_hidden_size / layout.tensor in multiples of 16",
        ),
        (["network.hidden_size=48"], "network.hidden_size / layout.tensor in multiples of 16, not 24"),
        (["phases.0.context_tokens=24"], "phase 'only': fp8-delayed needs a process' tokens of a micro-batch in multi"),
    ],
)
def test_fp8_needs_matrices_of_whole_blocks(load, overrides, message):
    load(*overrides)
    with pytest.raises(InputError) as error:
        load("precision=fp8-delayed", *overrides)
    assert message in str(error.value)
    load("precision=fp8-delayed")


def test_precisions_are_told_by_what_they_mean(load):
    meanings = {name: (load(f"precision={name}").is_bf16, load(f"precision={name}").fp8_scaling) for name in
                ("fp32", "bf16", "fp8-delayed", "fp8-tensorwise", "fp8-blockwise")}  # fmt: skip
    assert meanings == {
        "fp32": (False, None),
        "bf16": (True, None),
        "fp8-delayed": (True, "delayed"),
        "fp8-tensorwise": (True, "tensorwise"),
        "fp8-blockwise": (True, "blockwise"),
    }


def test_two_phases_of_one_name_are_refused(content, load):
    content["phases"] = content["phases"] * 2
    with pytest.raises(InputError, match="two phases are named 'only'"):
        load()


def test_a_missing_field_and_a_file_that_is_not_yaml_are_named(content, load, tmp_path):
    del content["phases"][0]["tokens"]
    with pytest.raises(InputError, match=r"phases\[0\].tokens: missing field"):
        load()
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="bad.yaml: line"):
        Recipe.load(tmp_path / "bad.yaml")


def test_processes_and_batches_have_to_divide(load):
    recipe = load()
    assert recipe.data_processes(8) == 4
    assert load("layout.context=4").data_processes(16) == 2
    with pytest.raises(InputError, match="3 processes are not a multiple of tensor x pipeline x context = 2"):
        recipe.data_processes(3)
    with pytest.raises(InputError, match=r"phases\[0\].batch_sequences: 4 is not a multiple of 8 data-parallel"):
        recipe.data_processes(16)


def test_every_batch_of_a_ramp_has_to_divide(content, load):
    content["phases"][0] |= {"batch_sequences": 12, "batch_ramp": RAMP | {"start_sequences": 6}}
    assert load().phases[0].batch_sizes == [6, 9, 12]
    assert load().data_processes(6) == 3
    with pytest.raises(InputError, match=r"phases\[0\].batch_ramp: a batch of 9 on the way to 12 is not a "):
        load().data_processes(4)
    content["phases"][0] |= {"micro_batch_sequences": 2}
    with pytest.raises(InputError, match="'only': batch_ramp: a batch of 9 on the way to 12 is not a"):
        load()


def test_a_phase_may_have_a_loss_of_its_own(content, load):
    content["loss"] = {"without": ["text"]}
    content["phases"] += [content["phases"][0] | {"name": "other", "loss": {"without": ["reference"]}}]
    recipe = load()
    assert [recipe.loss_of(phase).without for phase in recipe.phases] == [["text"], ["reference"]]
    assert {*get_args(LossGroup)} == {*LOSS_GROUPS, "reference"}


@pytest.mark.parametrize("field", ["precision: fp8-delayed", "layout.context: 2", "layout.cuda_graphs: true"])
def test_attention_within_documents_is_not_for_transformer_engine(content, load, field):
    content["attention"] = "within_documents"
    name, value = field.split(": ")
    with pytest.raises(InputError, match=f"{name}.*attention: within_documents.*; leave one of them out"):
        load(f"{name}={value}")
