"""``predict ladder``: the rule, what is written, and what is refused."""

import json
import math

import pytest
import yaml
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.cluster.plan import make_plan
from megatron_music.errors import InputError
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.counts import parameters_of, run_flops
from megatron_music.scaling.ladder import ladder_table, write_ladder
from megatron_music.scaling.rungs import Rule, network_of_size, scale_recipe


@pytest.fixture
def predictor(repository):
    return repository / "examples" / "yue_0.5b.yaml"


@pytest.mark.parametrize("name", ["yue_0.5b", "yue_2b", "yue_7b"])
def test_a_recipe_scaled_to_its_own_size_is_itself(repository, name):
    recipe = Recipe.load(repository / "examples" / f"{name}.yaml")
    size = parameters_of(recipe.network, 0)
    tokens = sum(phase.tokens for phase in recipe.phases)
    assert scale_recipe(recipe, size, tokens / size, Rule()) == recipe


def test_counts_of_parameters_are_those_of_the_network(predictor):
    """24 layers of 2.62M in attention, 12.58M in feed-forward and two norms; a last norm, and 83,968 rows of 1,024."""
    network = Recipe.load(predictor).network
    in_layers = 24 * (1024 * 1536 + 1024 * 1024 + 3 * 1024 * 4096 + 2 * 1024)
    assert parameters_of(network, 83_968) == parameters_of(network, 7, "layers") == in_layers
    assert parameters_of(network, 83_968, "multiplying") == in_layers + 1024 + 83_968 * 1024
    assert parameters_of(network, 83_968, "all") == in_layers + 1024 + 2 * 83_968 * 1024


def test_rates_and_batches_follow_the_operations_of_the_run(predictor):
    recipe = Recipe.load(predictor)
    small = scale_recipe(recipe, 50_000_000, 60, Rule())
    ratio = run_flops(small, 0) / run_flops(recipe, 0)
    for before, after in zip(recipe.phases, small.phases, strict=True):
        # Four digits of the rate are written; the batch is rounded to 1 or 1.5 x a power of 2; runs end on a step.
        assert after.learning_rate.end == pytest.approx(before.learning_rate.end * ratio**-0.125, rel=1e-3)
        off = after.batch_sequences / (before.batch_sequences * ratio**0.3271)
        assert abs(math.log(off)) <= math.log(4 / 3)
        assert after.tokens / small.phases[0].tokens == pytest.approx(before.tokens / recipe.phases[0].tokens)
        kept = "name", "context_tokens", "mixture"
        assert [getattr(after, field) for field in kept] == [getattr(before, field) for field in kept]
    assert small.network.init_std == pytest.approx(0.02 * math.sqrt(1024 / small.network.hidden_size), rel=1e-3)
    unscaled = scale_recipe(recipe, 50_000_000, 60, Rule(0, 0))
    assert [phase.learning_rate for phase in unscaled.phases] == [phase.learning_rate for phase in recipe.phases]
    # Ten steps of every phase come before the batch: 34M tokens of annealing leave 206 sequences of 16,384.
    assert [phase.batch_sequences for phase in unscaled.phases] == [384, 384, 192, 192]


@pytest.mark.parametrize("size", [20_000_000, 120_000_000, 500_000_000, 2_000_000_000])
def test_networks_are_of_the_family(repository, size):
    family = Recipe.load(repository / "examples" / "yue_7b.yaml").network
    network = network_of_size(family, size)
    assert parameters_of(network, 0) == pytest.approx(size, rel=0.15)
    assert network.head_size == family.head_size == 128
    assert network.ffn_hidden_size / network.hidden_size == pytest.approx(11008 / 4096, rel=0.01)
    assert network.attention_heads / network.key_value_heads >= 8 or network.key_value_heads == 1
    assert network.hidden_size / network.layers == pytest.approx(128, rel=0.2)


def test_every_rung_loads_and_passes_plan(predictor, tmp_path):
    rungs = write_ladder(predictor, tmp_path, "20M,120M", "20,60", gpus=8)
    content = json.loads((tmp_path / "ladder.json").read_text())
    assert [rung["name"] for rung in content["rungs"]] == ["20M_20x", "20M_60x", "120M_20x", "120M_60x"]
    assert content["recipe"] == str(predictor) and "arXiv 2401.02954" in content["rule"]
    for told, rung in zip(content["rungs"], rungs, strict=True):
        recipe = Recipe.load(told["recipe"])
        assert recipe == rung.recipe and told["run"] == str(recipe.run) == str(tmp_path / "runs" / told["name"])
        assert make_plan(recipe, rung.plan.cluster.gpus, build=False).fault is None
        assert told["parameters"] == parameters_of(recipe.network, 83_968)
        ratio = float(told["name"].partition("_")[2].removesuffix("x"))
        last = phase_spans(recipe)[-1]
        assert 0 <= last.last_token - ratio * told["parameters"] < 2 * last.phase.step_tokens
        assert told["tokens"] == last.last_token and told["flops"] == run_flops(recipe, 83_968)
        assert all(span.steps >= 10 for span in phase_spans(recipe))
    shown = ladder_table(rungs, "H800").splitlines()
    assert len(shown) == 6 and shown[1].split()[:4] == ["20M_20x", "9", "x", "384"]


def test_the_table_shows_the_batches_of_all_phases(bare_recipe, tmp_path):
    """A first phase with half of the other's batch."""
    content = yaml.safe_load(bare_recipe.read_text())
    content["phases"][0] |= {"batch_sequences": 4}
    bare_recipe.write_text(yaml.safe_dump(content))
    rungs = write_ladder(bare_recipe, tmp_path / "out", "24k", "1", Rule(0, 0), gpus=1)
    assert [phase.step_tokens for phase in rungs[0].recipe.phases] == [4 * 64, 8 * 64]
    assert "  256 to 512  " in ladder_table(rungs, "H800").splitlines()[1]


def test_run_folders_follow_the_override(predictor, tmp_path):
    (rung,) = write_ladder(predictor, tmp_path / "out", "20M", "20", overrides=["run=/data/runs", "seed=7"])
    assert (str(rung.recipe.run), rung.recipe.seed) == ("/data/runs/20M_20x", 7)


@pytest.mark.parametrize(("name", "value"), [("learning-rate", "nan"), ("learning-rate", "100"), ("batch", "inf")])
def test_an_exponent_that_no_rule_has_is_refused_and_nothing_is_written(predictor, tmp_path, name, value):
    call = ["predict", "ladder", str(predictor), str(tmp_path / "ladder"), f"--{name}-exponent", value]
    with pytest.raises(InputError, match=f"--{name}-exponent: {value} is no exponent; name one from -1 to 1"):
        CliRunner().invoke(cli.app, call, catch_exceptions=False)
    assert not (tmp_path / "ladder").exists()


@pytest.mark.parametrize(("gpus", "nodes"), [(8, 1), (9, 3), (12, 2)])
def test_all_gpus_of_a_rung_are_submitted(predictor, tmp_path, gpus, nodes):
    (rung,) = write_ladder(predictor, tmp_path, "20M", "20", gpus=gpus)
    assert rung.plan.cluster.gpus == gpus
    line = (tmp_path / "submit.sh").read_text().splitlines()[-1]
    assert line.endswith(f'20M_20x.yaml --nodes {nodes} --gpus-per-node {gpus // nodes} "$@"')


def test_running_it_again_changes_nothing_and_changed_recipes_are_kept(predictor, tmp_path):
    def contents():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    write_ladder(predictor, tmp_path, "20M,50M", "20")
    written = contents()
    assert set(written) == {"20M_20x.yaml", "50M_20x.yaml", "ladder.json", "submit.sh"}
    write_ladder(predictor, tmp_path, "50M,20M,20M", "20.0")
    assert contents() == written
    with pytest.raises(InputError, match="ladder.json: is of another ladder; write this one to another folder"):
        write_ladder(predictor, tmp_path, "20M,50M", "20,60")
    # As a killed run leaves it, but for one file that somebody has changed since.
    (tmp_path / "ladder.json").unlink()
    (tmp_path / "50M_20x.yaml").write_text(written["50M_20x.yaml"].decode().replace("seed: 1", "seed: 2"))
    (tmp_path / "20M_20x.yaml").unlink()
    before = contents()
    with pytest.raises(InputError, match="50M_20x.yaml: is not what the ladder would write"):
        write_ladder(predictor, tmp_path, "20M,50M", "20")
    assert contents() == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--sizes", "20M,big"], "--sizes: 'big' is no number above 0; write for example 20M,50M"),
        (["--sizes", "0"], "--sizes: '0' is no number above 0"),
        (["--sizes", "2k"], "--sizes: 2,000 parameters make no network with heads of 64 channels (the least has "),
        (["--tokens-per-parameter", "-3"], "--tokens-per-parameter: '-3' is no number above 0"),
        (["--sizes", "20M,20001k"], "--sizes: 20M_20x and 20M_20x come to the same network and tokens"),
        (["--gpu", "TPU"], "--gpu: 'TPU' is not known"),
        (["--set", "lora={rank: 8, alpha: 8}"], "yue_0.5b.yaml: lora: trains adapters"),
    ],
)
def test_what_makes_no_ladder_is_one_line(predictor, tmp_path, options, line):
    call = ["predict", "ladder", str(predictor), str(tmp_path / "out"), "--tokens-per-parameter", "20", *options]
    shown = CliRunner().invoke(cli.app, call)
    assert isinstance(shown.exception, InputError) and line in str(shown.exception)
    assert not (tmp_path / "out").exists()
