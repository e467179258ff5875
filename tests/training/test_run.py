"""Whole runs over real processes: what they log, where phases change, how they resume and on which layouts."""

import itertools
import json
import math
import shutil

import pytest
import training_workers
from metric_lines import measured

from megatron_music.corpus.blend import run_stream
from megatron_music.engine.optimizer import PARTS
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.recipe.phases import phase_spans
from megatron_music.training.run import check, train
from megatron_music.training.run_folder import RunFolder, read_state


def metrics_of(run):
    return measured(run / "metrics.jsonl")


def steps_of(run):
    return [line for line in metrics_of(run) if "learning_rate" in line]


def test_a_run_resumed_after_any_step_repeats_the_uninterrupted_one(make_recipe):
    """The batch of the second phase grows: two steps of 2 sequences, then three of 4."""
    phases = make_recipe().model_dump(mode="json")["phases"]
    phases[1]["batch_ramp"] = {"start_sequences": 2, "add_sequences": 2, "tokens": 128}
    recipe = make_recipe(phases=phases)
    launch(training_workers.run_then_resume, 1, recipe, [1, 4, 5, 7, 12])
    uninterrupted = metrics_of(recipe.run)
    for step in (1, 4, 5, 7, 12):
        assert metrics_of(recipe.run.with_name(f"resumed_{step}")) == uninterrupted

    steps = steps_of(recipe.run)
    assert [line["step"] for line in steps] == list(range(1, 14))
    assert [line["phase"] for line in steps] == ["warm-up"] * 4 + ["constant"] * 5 + ["long"] * 4
    tokens = [128] * 4 + [64] * 2 + [128] * 3 + [256] * 4
    assert [line["tokens"] for line in steps] == list(itertools.accumulate(tokens))
    # Learning rate and mixture are those of the tokens before the step.
    assert [line["learning_rate"] for line in steps[:10]] == pytest.approx([0, 0.0025, 0.005, 0.0075] + [0.01] * 6)
    assert steps[11]["learning_rate"] == pytest.approx(0.0055)
    songs = [line["tokens/songs"] for line in steps]
    loops = [line["tokens/loops"] for line in steps]
    assert (songs[3], loops[3]) == (3 * 128, 128)
    assert (songs[8], loops[8]) == (3 * 128 + 2 * 128, 128 + 2 * 128)
    assert (songs[12], loops[12]) == (5 * 128 + 4 * 256, 3 * 128)

    groups = {"loss", "loss/text", "loss/special", "loss/vocal", "loss/accompaniment"}
    assert groups <= set(steps[0]) and "loss/mix" not in steps[0]
    # The sources of this corpus were built without a task: each is one of its own.
    first = steps[0]
    nats = sum(first.get(f"task/{name}", 0) * first[f"tokens/{name}"] for name in ("songs", "loops"))
    assert nats / 128 == pytest.approx(first["loss"])
    events = [json.loads(line) for line in (recipe.run / "metrics.jsonl").read_text().splitlines() if "event" in line]
    told = [(line["event"], line["step"]) for line in events if line["event"] != "checkpoint"]
    assert told == [("started", 0), ("phase", 1), ("phase", 5), ("phase", 10), ("ended", 13)]
    assert [line["step"] for line in events if line["event"] == "checkpoint"] == list(range(1, 14))
    plan = events[0]["phases"]
    assert [phase["sources"] for phase in plan] == [
        {"songs": 384, "loops": 128}, {"songs": 256, "loops": 256}, {"songs": 1024}]  # fmt: skip
    assert (events[0]["steps"], events[0]["total_tokens"]) == (13, 2048)
    validated = [line for line in uninterrupted if "validation/loss" in line]
    assert [line["step"] for line in validated] == [0, 4, 8, 9, 12, 13]
    assert validated[-1]["validation/loss"] < validated[0]["validation/loss"]
    sampled = [line for line in uninterrupted if "invalid_token_share" in line]
    assert [line["step"] for line in sampled] == [6, 12] and all(0 <= s["invalid_token_share"] <= 1 for s in sampled)
    assert list((recipe.run / "tensorboard").iterdir())
    assert read_state(recipe.run / "checkpoints" / "step_000009").ends_phase


def test_a_run_resumed_on_another_number_of_processes_goes_on_with_what_is_left(make_recipe, tmp_path):
    recipe = make_recipe()
    train(recipe, 2)
    expected = steps_of(recipe.run)
    resumed = make_recipe(run=str(tmp_path / "resumed"))
    kept = resumed.run / "checkpoints" / "step_000005"
    shutil.copytree(recipe.run / "checkpoints" / kept.name, kept)
    train(resumed, 1)
    steps = steps_of(resumed.run)
    assert [line["step"] for line in steps] == list(range(6, 13))
    for ours, theirs in zip(steps, expected[5:], strict=True):
        assert set(ours) == set(theirs)
        for field in ours:
            # What is read is the same to the token; sums over two processes round otherwise than over one.
            rounds = field.split("/")[0] in ("loss", "task", "gradient_norm")
            wanted = pytest.approx(theirs[field], abs=1e-4) if rounds else theirs[field]
            assert ours[field] == wanted, (field, ours["step"])


def test_every_layout_trains_like_one_process(make_recipe, tmp_path):
    """TP2 with sequence parallelism, PP2 and DP2 from one checkpoint, through the whole loop."""
    seldom = {"every_steps": 100}
    start = make_recipe(run=str(tmp_path / "start"), phases=[make_recipe().phases[1].model_dump()], checkpoints=seldom)
    train(start, 1)
    checkpoint = RunFolder(start.run).complete_checkpoints()[-1][0]
    layouts = {
        "one": {},
        "tensor": {"tensor": 2, "sequence": True},
        "pipeline": {"pipeline": 2},
        "data": {},
    }
    recipes = {
        name: make_recipe(run=str(tmp_path / name), layout=layout, checkpoints=seldom)
        for name, layout in layouts.items()
    }
    train(recipes.pop("one"), 1, checkpoint)
    expected = steps_of(tmp_path / "one")
    for line in expected:
        parts = [line[f"gradient_norm/{part}"] for part in PARTS]
        assert math.hypot(*parts) == pytest.approx(line["gradient_norm"]) and min(parts) > 0
    for name, recipe in recipes.items():
        train(recipe, 2, checkpoint)
        for ours, theirs in zip(steps_of(tmp_path / name), expected, strict=True):
            assert set(ours) == set(theirs)
            for field in ours:
                assert ours[field] == pytest.approx(theirs[field], abs=1e-4), (name, field, ours["step"])
        assert json.loads((tmp_path / name / "origin.json").read_text())["checkpoint"] == str(checkpoint)


def test_the_stream_has_the_samples_of_every_phase(make_recipe):
    recipe = make_recipe()
    stream = run_stream(recipe)
    assert len(stream) == sum(span.steps * span.phase.batch_sequences for span in phase_spans(recipe))
    assert {len(stream.sample(index).ids) for index in range(32)} == {33}
    assert {len(stream.sample(index).ids) for index in range(32, 48)} == {65}


@pytest.mark.parametrize(
    ("fields", "processes", "message"),
    [
        ({"layout": {"tensor": 2}}, 3, "3 processes are not a multiple of tensor x pipeline x context = 2"),
        ({"precision": "fp8-delayed"}, 1, "precision: fp8-delayed needs a GPU, and there is none here; train on a GPU"),
        ({"layout": {"tensor": 2, "sequence": True, "tensor_overlap": True}}, 2, "layout.tensor_overlap: true needs a"),
        ({"layout": {"cuda_graphs": True}}, 1, "layout.cuda_graphs: true needs a GPU"),
        ({"corpus": "nowhere"}, 1, "there is no corpus here; run `megatron-music build`"),
        ({"vocabulary": "nowhere.yaml"}, 1, "nowhere.yaml: no such file"),
        ({"watch": {"validation": {"source": "nothing"}}}, 1, "nothing"),
    ],
)
def test_a_run_that_can_not_start_says_so_before_any_process(make_recipe, fields, processes, message):
    with pytest.raises(InputError) as error:
        check(make_recipe(**fields), processes)
    assert message in str(error.value)


def test_a_mixture_without_its_source_is_refused(make_recipe):
    phase = make_recipe().phases[0].model_dump(mode="json")
    with pytest.raises(InputError, match="has no source choirs"):
        check(make_recipe(phases=[{**phase, "mixture": {"choirs": 1}}]), 1)


def test_another_vocabulary_than_the_corpus_is_refused(make_recipe, repository):
    with pytest.raises(InputError, match="is not the vocabulary that"):
        check(make_recipe(vocabulary=str(repository / "tokenizers" / "quickstart.yaml")), 1)


def test_a_run_folder_refuses_another_recipe_and_forgets_what_is_done_again(make_recipe):
    recipe = make_recipe()
    folder = RunFolder(recipe.run)
    assert folder.open(recipe) == []
    changed = folder.open(make_recipe(precision="bf16", checkpoints={"every_steps": 6, "keep": 7}))
    assert {"precision bf16, was fp32", f"checkpoints.keep 7, was {recipe.checkpoints.keep}"} <= set(changed)
    assert len(changed) == 2 + (recipe.checkpoints.every_steps != 6)
    folder.open(recipe)
    folder.metrics.write_text('{"step": 3, "loss": 1}\n{"step": 4, "lo')
    folder.forget_metrics_after(3, [])
    assert folder.metrics.read_text() == '{"step": 3, "loss": 1}\n'
    folder.forget_metrics_after(-1, [])
    assert folder.metrics.read_text() == ""
    with pytest.raises(InputError, match="was started with another `seed`"):
        folder.open(make_recipe(seed=2))


def test_a_run_folder_refuses_a_corpus_that_was_built_again(make_recipe, corpus, tmp_path):
    recipe = make_recipe(corpus=str(shutil.copytree(corpus, tmp_path / "corpus")))
    folder = RunFolder(recipe.run)
    folder.open(recipe)
    folder.open(recipe)
    sidecar = recipe.corpus / "loops.json"
    about = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(about | {"fingerprint": "another"}))
    with pytest.raises(InputError, match="loops: is not what it was when the run in .*run began; restore that corpus"):
        folder.open(recipe)
    sidecar.write_text(json.dumps(about))
    folder.open(recipe)


def test_a_branch_needs_a_checkpoint_of_the_same_network(make_recipe, tmp_path):
    with pytest.raises(InputError, match="is not a checkpoint"):
        check(make_recipe(), 1, tmp_path)
