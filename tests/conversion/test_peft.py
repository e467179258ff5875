"""Adapters trained on an imported network: what a run leaves, how they come out merged or for peft, what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from metric_lines import measured
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from megatron_music.cli import app
from megatron_music.conversion.export import export_checkpoint
from megatron_music.conversion.import_llama import import_llama
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.engine.processes import free_port, launch
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run import check, run_process
from megatron_music.training.run_folder import RunFolder
from megatron_music.vocabulary.kinds import Kind

STEP = "run/checkpoints/step_000007"
LORA = {"rank": 3, "alpha": 12, "dropout": 0.1}
ROWS = 377
"""Of embedding and head below the adapters, in a checkpoint that has 384."""
IDS = np.random.default_rng(1).integers(0, 370, (2, 24))


def train_and_probe(recipe: Recipe, base, port, out) -> None:
    """Runs in processes of its own: trains adapters, and leaves the logits of their last checkpoint."""
    from megatron_music.engine import processes
    from megatron_music.engine.engine import Engine

    run_process(recipe, base)
    # A port of its own: one process may join anew while the other has yet to leave.
    os.environ["MASTER_PORT"] = port
    processes.join(recipe.layout)
    engine = Engine(recipe, 384, trains=False)
    engine.load_base(base)
    engine.load(newest(recipe), with_optimizer=False)
    logits = engine.logits(IDS).numpy()
    if torch.distributed.get_rank() == 0:
        np.save(out, logits)
    processes.leave()


def run_all(runs: list) -> None:
    """Runs in its own process: trains recipes, each from its checkpoint or where it stopped."""
    for recipe, branch_from in runs:
        run_process(recipe, branch_from)


@pytest.fixture(scope="module")
def base(trained_run, tmp_path_factory):
    """A folder with ``hf``, the network in FP32, ``in``, the same imported, and a ``corpus`` to adapt it on."""
    folder = tmp_path_factory.mktemp("base")
    corpus = shutil.copytree(trained_run / "corpus", folder / "corpus")
    rng = np.random.default_rng(0)
    with IndexedWriter(corpus / "cot", {"vocabulary": "tiny"}) as writer:
        for _ in range(20):
            writer.add(rng.integers(300, 320, 40), np.full(40, Kind.VOCAL, dtype=np.uint8))
    sidecar = json.loads((corpus / "cot.json").read_text())
    (corpus / "cot.json").write_text(json.dumps(sidecar | {"task": "lyrics_to_song", "options": {}}))
    export_checkpoint(trained_run / STEP, folder / "hf", dtype="float32", rows=ROWS)
    import_llama(folder / "hf", folder / "in")
    return folder


def recipe_of(base, run, trained_run, **fields) -> Recipe:
    content = yaml.safe_load((trained_run / STEP / "recipe.yaml").read_text())
    phase = content["phases"][0] | {"tokens": 512, "context_tokens": 16, "batch_sequences": 4, "learning_rate": 0.02}
    content |= {"corpus": str(base / "corpus"), "vocabulary": str(base / "corpus" / "vocabulary.yaml")}
    content |= {"run": str(run), "phases": [phase], "watch": {"log_every_steps": 1}, "lora": LORA}
    return Recipe.parse(content | fields, base / "recipe.yaml")


@pytest.fixture(scope="module", params=["attention", "everything"])
def adapted(request, base, trained_run, tmp_path_factory):
    """A run of 8 steps, of attention on two tensor-parallel processes or of all there is, and its logits."""
    folder = tmp_path_factory.mktemp("adapted")
    if request.param == "attention":
        fields = {"lora": LORA | {"targets": ["attention"]}, "layout": {"tensor": 2, "sequence": True}}
    else:
        fields = {"lora": LORA | {"full_embeddings": True}}
    recipe = recipe_of(base, folder / "run", trained_run, **fields)
    processes = recipe.layout.model_processes
    check(recipe, processes, base / "in")
    launch(train_and_probe, processes, recipe, base / "in", free_port(), folder / "logits.npy")
    return recipe, np.load(folder / "logits.npy")[..., :ROWS]


def newest(recipe):
    return RunFolder(recipe.run).complete_checkpoints()[-1][0]


def logits_of(network):
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(IDS)).logits.numpy()


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def test_a_run_learns_and_its_checkpoint_holds_no_base(adapted, base):
    recipe, _ = adapted
    losses = [line["loss"] for line in measured(RunFolder(recipe.run).metrics)]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.1
    named = json.loads((newest(recipe) / "base.json").read_text())
    assert named["checkpoint"] == str(base / "in")


def test_merged_weights_compute_megatron_cores_logits(adapted, base, tmp_path):
    recipe, expected = adapted
    export_checkpoint(recipe.run, tmp_path / "hf", dtype="float32")
    merged = logits_of(load(tmp_path / "hf"))
    assert np.abs(merged - expected).max() < 1e-4
    assert np.abs(merged - logits_of(load(base / "hf"))).max() > 0.1
    # The type is the last thing that happens to a weight.
    export_checkpoint(recipe.run, tmp_path / "small")
    exact, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "small"))
    assert exact.keys() == rounded.keys() and len(exact["lm_head.weight"]) == ROWS
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "adapted with megatron-music" in card and "| adapters | rank 3, alpha 12, on attention" in card


def test_peft_computes_the_same_on_the_base(adapted, base, tmp_path):
    recipe, expected = adapted
    export_checkpoint(recipe.run, tmp_path / "adapters", dtype="float32", adapters="peft")
    network = PeftModel.from_pretrained(load(base / "hf"), tmp_path / "adapters")
    assert np.abs(logits_of(network) - expected).max() < 1e-4
    export_checkpoint(recipe.run, tmp_path / "hf", dtype="float32")
    ours, theirs = load(tmp_path / "hf").state_dict(), network.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-5)


def test_a_peft_folder_says_what_it_is(adapted, base, tmp_path):
    recipe, _ = adapted
    out = tmp_path / "adapters"
    for _ in range(2):
        export_checkpoint(recipe.run, out, adapters="peft")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 12, 0.1)
    assert config["base_model_name_or_path"] == str(base / "hf")
    attention, mlp = ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]
    whole = recipe.lora.full_embeddings
    assert config["target_modules"] == sorted(attention + mlp * whole)
    assert config["modules_to_save"] == (["embed_tokens", "lm_head"] if whole else None)
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        assert len(names) == 4 * 2 * len(config["target_modules"]) + 2 * whole
        parts = [
            file.get_tensor(f"base_model.model.model.layers.2.self_attn.{name}_proj.lora_A.weight") for name in "qkv"
        ]
        assert parts[0].dtype == torch.bfloat16 and all(torch.equal(part, parts[0]) for part in parts)
    assert "peft.PeftModel.from_pretrained" in (out / "README.md").read_text()
    assert (out / "vocabulary.yaml").is_file() and not (out / "config.json").exists()


def test_a_run_goes_on_exactly_also_from_a_base_that_moved(base, trained_run, tmp_path):
    """Resumed without --from, and in a copy whose base lies elsewhere; then another run begins with its adapters."""
    plain = recipe_of(base, tmp_path / "run", trained_run, checkpoints={"every_steps": 4})
    launch(run_all, 1, [(plain, base / "in")])
    moved = shutil.copytree(base / "in", tmp_path / "elsewhere")
    copies = [plain.model_copy(update={"run": shutil.copytree(plain.run, tmp_path / name)}) for name in ("one", "two")]
    for copy in copies:
        shutil.rmtree(copy.run / "checkpoints" / "step_000008")
    path = newest(copies[1]) / "base.json"
    path.write_text(path.read_text().replace(str(base / "in"), str(tmp_path / "gone")))
    (path.parent / "files.json").unlink()  # it would tell that another base is written there
    other = recipe_of(base, tmp_path / "next", trained_run, checkpoints={"every_steps": 4})
    launch(run_all, 1, [(copies[0], None), (copies[1], moved), (other, newest(plain))])
    expected = measured(RunFolder(plain.run).metrics)
    resumed = [measured(RunFolder(copy.run).metrics) for copy in copies[:2]]
    assert len(expected) >= 8 and resumed == [expected, expected]
    assert measured(RunFolder(other.run).metrics)[0]["loss"] < expected[0]["loss"] - 0.1
    assert json.loads((newest(other) / "base.json").read_text())["checkpoint"] == str(base / "in")


@pytest.mark.parametrize(
    "lora, message",
    [
        ({"rank": 0}, "lora.rank: found 0; write a number above 0"),
        (
            {"targets": ["attention", "embeddings"]},
            r"lora.targets\[1\]: found 'embeddings'; choose 'attention'",
        ),
        ({"targets": []}, r"lora.targets: found \[\]; write at least 1 of them"),
        ({"dropout": 1}, "lora.dropout: found 1; write a number below 1"),
        ({"alfa": 16}, "lora.alfa: unknown field; did you mean alpha?"),
    ],
)
def test_a_recipe_that_can_not_be_trained_is_named_in_one_line(base, trained_run, tmp_path, lora, message):
    with pytest.raises(InputError, match=message) as caught:
        recipe_of(base, tmp_path / "run", trained_run, lora=LORA | lora)
    assert "\n" not in str(caught.value)


def test_what_adapters_start_from_has_to_be_there(adapted, base, trained_run, tmp_path):
    recipe, _ = adapted
    count = recipe.layout.model_processes
    fresh = recipe.model_copy(update={"run": tmp_path / "fresh"})
    with pytest.raises(InputError, match="^lora: .*no network is named for them; start it with `train RECIPE --from"):
        check(fresh, count)
    with pytest.raises(InputError, match="is not a checkpoint"):
        check(fresh, count, tmp_path)
    with pytest.raises(InputError, match="holds adapters and no whole network"):
        check(fresh.model_copy(update={"lora": None}), count, newest(recipe))
    with pytest.raises(InputError, match="holds adapters of another `lora`"):
        check(fresh.model_copy(update={"lora": recipe.lora.model_copy(update={"rank": 5})}), count, newest(recipe))
    check(recipe, count)
    check(fresh, count, newest(recipe))


def test_a_base_that_is_gone_or_changed_is_refused(adapted, base, tmp_path):
    recipe, _ = adapted
    run, count = shutil.copytree(recipe.run, tmp_path / "run"), recipe.layout.model_processes
    copy = shutil.copytree(base / "in", tmp_path / "in")
    path = newest(recipe.model_copy(update={"run": run})) / "base.json"
    path.write_text(path.read_text().replace(str(base / "in"), str(copy)))
    (path.parent / "files.json").unlink()  # it would tell that another base is written there
    export_checkpoint(run, tmp_path / "hf")
    weights = next(copy.glob("*.distcp"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    spoiled = recipe.model_copy(update={"run": run})
    with pytest.raises(InputError, match="base.json: .* is not the network that these adapters were trained on"):
        export_checkpoint(run, tmp_path / "hf")
    with pytest.raises(InputError, match="is not the network that"):
        check(spoiled, count)
    shutil.rmtree(copy)
    for adapters in ("merged", "peft"):
        with pytest.raises(InputError, match=f"is gone: {copy}; put it back, or name"):
            export_checkpoint(run, tmp_path / adapters, adapters=adapters)
    with pytest.raises(InputError, match="is gone"):
        check(spoiled, count)
    check(spoiled, count, base / "in")
    export_checkpoint(run, tmp_path / "again", base=base / "in")
    again, before = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "hf"))
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_options_that_do_not_fit_the_checkpoint_are_refused(adapted, base, tmp_path):
    recipe, _ = adapted
    for options, message in (
        ({"adapters": "peft"}, "holds a whole network and no adapters; leave out --adapters peft"),
        ({"base": base / "in"}, "leave out --base"),
        ({"adapters": "none"}, "none can't be exported; choose from merged, peft"),
    ):
        with pytest.raises(InputError, match=message):
            export_checkpoint(base / "in", tmp_path / "hf", **options)
    with pytest.raises(InputError, match="holds adapters, where whole networks are compared"):
        export_checkpoint(newest(recipe), tmp_path / "hf", verify=True)
    assert not (tmp_path / "hf").exists()


def test_the_command_line_writes_both(adapted, tmp_path):
    recipe, _ = adapted
    for adapters, file in (("merged", "model.safetensors"), ("peft", "adapter_model.safetensors")):
        out = tmp_path / adapters
        result = CliRunner().invoke(app, ["export", str(recipe.run), str(out), "--adapters", adapters])
        assert result.exit_code == 0, result.output
        assert (out / file).is_file()
