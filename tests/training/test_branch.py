"""Runs that start from a checkpoint of another: what they take over, what they record, and what is refused."""

import dataclasses
import shutil

import pytest
import training_workers
from metric_lines import measured

from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.origin import origin_of_run, read_origin, reads_again
from megatron_music.training.run import branch_in_words, check
from megatron_music.training.run_folder import read_state
from megatron_music.vocabulary.vocabulary import Vocabulary

ANNEALING = {
    "name": "annealing",
    "tokens": 4 * 256,
    "context_tokens": 64,
    "batch_sequences": 4,
    "learning_rate": {"shape": "linear", "start": 0.01, "end": 0.002},
    "mixture": {"loops": 1},
}


@pytest.fixture(scope="module")
def runs(make_module_recipe, tmp_path_factory):
    """A run of 12 steps; branches after 8, with and without its optimizer; a branch of the first of those after 2."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"watch": {"log_every_steps": 1}, "checkpoints": {"every_steps": 2, "keep": 100}}
    annealing = {"phases": [ANNEALING], "seed": 2, **options}
    trunk = make_module_recipe(run=str(folder / "trunk"), **options)
    kept = make_module_recipe(name="kept", run=str(folder / "kept"), **annealing)
    fresh = make_module_recipe(name="fresh", run=str(folder / "fresh"), **annealing)
    again = make_module_recipe(name="again", run=str(folder / "again"), **annealing)
    after_8, after_2 = trunk.run / "checkpoints" / "step_000008", kept.run / "checkpoints" / "step_000002"
    chain = [(trunk, None, False), (kept, after_8, False), (fresh, after_8, True), (again, after_2, False)]
    launch(training_workers.run_and_branch, 1, chain, folder / "forgotten.jsonl")
    return folder


def test_a_branch_counts_its_own_recipe_from_the_start(runs):
    steps = measured(runs / "kept" / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert [step["tokens"] for step in steps] == [256, 512, 768, 1024]
    assert [step["learning_rate"] for step in steps] == pytest.approx([0.01, 0.008, 0.006, 0.004])
    assert [step["tokens/loops"] for step in steps] == [256, 512, 768, 1024]
    # It starts where the trunk stood, near its loss and far from the 4.9 nats of 128 ids that it began with.
    trunk = measured(runs / "trunk" / "metrics.jsonl")
    assert trunk[0]["loss"] > 4.7 and steps[0]["loss"] < trunk[7]["loss"] + 0.2 < 4.5


def test_the_optimizer_state_is_kept_or_left_out(runs):
    kept, fresh = (measured(runs / name / "metrics.jsonl") for name in ("kept", "fresh"))
    for field in ("loss", "gradient_norm"):
        assert kept[0][field] == fresh[0][field] and kept[1][field] != fresh[1][field]
    assert read_origin(runs / "kept").keeps_optimizer and not read_origin(runs / "fresh").keeps_optimizer


def test_every_checkpoint_tells_of_all_that_was_learned_before(runs):
    first, second = (read_origin(runs / name) for name in ("kept", "again"))
    assert first.checkpoint == str(runs / "trunk" / "checkpoints" / "step_000008")
    assert (first.name, first.step, first.tokens, first.phase) == ("tiny", 8, 1024, "constant")
    assert (first.tokens_in_all, first.context_tokens) == (1024, 32)
    assert (second.name, second.step, second.tokens, second.phase) == ("kept", 2, 512, "annealing")
    assert (second.tokens_in_all, second.context_tokens) == (1024 + 512, 64)
    last = runs / "again" / "checkpoints" / "step_000004"
    assert read_origin(last) == second and read_state(last).tokens == 1024
    assert read_origin(runs / "trunk") is None and read_origin(first.checkpoint) is None


def test_a_branch_killed_before_its_first_checkpoint_starts_there_again(runs):
    assert measured(runs / "again" / "metrics.jsonl") == measured(runs / "forgotten.jsonl")


def test_what_comes_again_is_told(runs):
    kept, origin = Recipe.load(runs / "kept" / "recipe.yaml"), read_origin(runs / "kept")
    assert reads_again(kept, origin) == []
    assert reads_again(kept.model_copy(update={"seed": 1}), origin) == ["loops"]
    assert branch_in_words(kept, origin) == f"starting from {origin.checkpoint}, with its optimizer state"
    network = kept.network.model_copy(update={"position_limit": 999})
    assert "; network.position_limit is 999, was " in branch_in_words(
        kept.model_copy(update={"network": network}), origin
    )


def test_a_run_that_began_elsewhere_is_not_mistaken_for_a_branch(runs):
    trunk, kept = (Recipe.load(runs / name / "recipe.yaml") for name in ("trunk", "kept"))
    start = runs / "trunk" / "checkpoints" / "step_000008"
    check(kept, 1, start)
    assert origin_of_run(kept, None, False) == origin_of_run(kept, start, False)
    with pytest.raises(InputError, match="trunk: the run in there began from nothing, not from .*; leave out --from"):
        check(trunk, 1, start)
    with pytest.raises(InputError, match="kept: the run in there began from .*step_000008, not from .*step_000004"):
        check(kept, 1, runs / "trunk" / "checkpoints" / "step_000004")
    with pytest.raises(InputError, match="--fresh-optimizer: is given without a checkpoint to start from; add --from"):
        check(trunk.model_copy(update={"run": runs / "new"}), 1, None, True)


def test_a_checkpoint_of_another_network_or_vocabulary_is_refused(runs, tmp_path):
    start, other = runs / "trunk" / "checkpoints" / "step_000008", tmp_path / "step_000008"
    kept = Recipe.load(runs / "kept" / "recipe.yaml").model_copy(update={"run": tmp_path / "new"})
    other.mkdir()
    shutil.copy(start / "state.json", other)
    larger = dataclasses.replace(Vocabulary.load(kept.vocabulary), padded_size=160)
    larger.save(tmp_path / "larger.yaml")
    Recipe.load(start / "recipe.yaml").model_copy(update={"vocabulary": tmp_path / "larger.yaml"}).save(
        other / "recipe.yaml"
    )
    check(kept, 1, start)
    deeper = kept.model_copy(update={"network": kept.network.model_copy(update={"layers": 9})})
    with pytest.raises(InputError, match="than the recipe's: its layers is [^9]*, not 9; make network.layers equal"):
        check(deeper, 1, start)
    with pytest.raises(InputError, match="step_000008: has embeddings of 160 ids, the recipe's vocabulary has 128;"):
        check(kept, 1, other)
