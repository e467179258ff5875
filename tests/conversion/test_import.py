"""A Hugging Face folder comes in bit for bit, on any layout, and training goes on from it."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.export import export_checkpoint
from megatron_music.conversion.import_llama import import_llama, network_of
from megatron_music.corpus.blend import run_stream
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run import train
from megatron_music.training.run_folder import RunFolder, read_network
from megatron_music.vocabulary.kinds import Kind

STEP = "run/checkpoints/step_000007"


def engine_logits(recipe: Recipe, checkpoint, ids, out) -> None:
    """Runs in its own process: the logits of an imported checkpoint in megatron-core."""
    from megatron_music.engine import processes
    from megatron_music.engine.engine import Engine

    processes.join(recipe.layout)
    engine = Engine(recipe, 384)
    engine.load(checkpoint, with_optimizer=False)
    logits = engine.logits(ids).numpy()
    if torch.distributed.get_rank() == 0:
        np.save(out, logits)
    processes.leave()


@pytest.fixture
def exported(trained_run, tmp_path):
    export_checkpoint(trained_run / STEP, tmp_path / "hf", dtype="float32", shard_bytes=20_000)
    return tmp_path / "hf"


def test_every_row_of_the_checkpoint_comes_back_bit_for_bit(trained_run, exported, tmp_path):
    network = import_llama(exported, tmp_path / "in")
    assert network == read_network(trained_run / STEP) == read_network(tmp_path / "in")
    before, after = CheckpointReader(trained_run / STEP), CheckpointReader(tmp_path / "in")
    stored = before._metadata.state_dict_metadata
    names = [name for name in stored if name.endswith("weight") and not name.startswith("optimizer")]
    assert len(names) == 9
    for name in names:
        assert after.shape(name) == before.shape(name)
        assert torch.equal(after.read(name), before.read(name))
        if name.startswith("decoder.layers"):
            assert torch.equal(after.read(name, 2), before.read(name, 2))


@pytest.mark.parametrize(
    "layout",
    [{}, {"tensor": 2, "sequence": True}, {"pipeline": 2}, {"pipeline": 2, "interleave": 2}],
    ids=["one", "tensor", "pipeline", "interleaved"],
)
def test_megatron_core_computes_the_folders_logits_on_any_layout(trained_run, exported, tmp_path, layout):
    import_llama(exported, tmp_path / "in")
    recipe = Recipe.load(trained_run / STEP / "recipe.yaml", [f"layout.{key}={value}" for key, value in layout.items()])
    ids = np.random.default_rng(1).integers(0, 370, (2, 24))
    launch(engine_logits, recipe.layout.model_processes, recipe, tmp_path / "in", ids, tmp_path / "logits.npy")
    hf = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True).eval()
    with torch.inference_mode():
        expected = hf(torch.from_numpy(ids)).logits.numpy()
    assert expected.std() > 0.1
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() < 1e-4


def test_an_imported_network_exports_as_the_same_folder(exported, tmp_path):
    import_llama(exported, tmp_path / "in")
    export_checkpoint(tmp_path / "in", tmp_path / "again", dtype="float32", shard_bytes=20_000)
    names = sorted(path.name for path in exported.glob("*.safetensors"))
    assert len(names) > 2 and names == sorted(path.name for path in (tmp_path / "again").glob("*.safetensors"))
    for name in names:
        before, after = load_file(exported / name), load_file(tmp_path / "again" / name)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for name in ("config.json", "documents.json", "tokenizer.model", "codec/codebooks.bin", "vocabulary.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_types_are_kept_and_missing_padding_is_filled_with_zeros(make_model, tmp_path):
    folder = make_model("hf")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:372].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    import_llama(folder, tmp_path / "in")
    output = CheckpointReader(tmp_path / "in").read("output_layer.weight")
    assert output.dtype == torch.bfloat16 and output.shape == (384, 32)
    assert torch.equal(output[:372], weights["lm_head.weight"]) and not output[372:].any()


def test_the_released_configurations_are_understood(tmp_path):
    config = {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 4, "intermediate_size": 11008, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": None, "vocab_size": 83968, "hidden_act": "silu",
    }  # fmt: skip
    network = network_of(config, tmp_path)
    example = Recipe.load(tmp_path.__class__(__file__).parents[2] / "examples" / "yue_7b.yaml").network
    assert network == example
    newer = {key: value for key, value in config.items() if key != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    assert network_of(newer, tmp_path) == network


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def without(folder, name):
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "no such file"),
        (lambda folder: change(folder, model_type="gpt2"), "model_type is 'gpt2'"),
        (lambda folder: change(folder, attention_bias=True), "attention_bias is True"),
        (lambda folder: change(folder, rope_parameters={"rope_type": "llama3"}), "rope_type is 'llama3'"),
        (lambda folder: change(folder, num_attention_heads=3), "not a multiple of attention_heads"),
        (lambda folder: change(folder, hidden_size="wide"), "hidden_size: found 'wide'; write a whole number"),
        (lambda folder: change(folder, intermediate_size=64), r"has shape \(48, 32\), where config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "is not a whole file of weights"),
        (lambda folder: without(folder, "model.layers.1.mlp.up_proj.weight"), "has no weight model.layers.1.mlp.up"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model"),
        (lambda folder: (folder / "vocabulary.yaml").unlink(), "vocabulary.yaml"),
    ],
)
def test_what_is_no_whole_llama_folder_is_named_in_one_line(make_model, tmp_path, spoil, message):
    folder = make_model("hf")
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        import_llama(folder, tmp_path / "in")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "in").exists()


def test_training_goes_on_from_an_imported_network(exported, trained_run, tmp_path):
    """The first step's loss is that of transformers on the same samples."""
    corpus = shutil.copytree(trained_run / "corpus", tmp_path / "corpus")
    rng = np.random.default_rng(0)
    with IndexedWriter(corpus / "cot", {"vocabulary": "tiny"}) as writer:
        for _ in range(20):
            ids = rng.integers(0, 370, 40)
            writer.add(ids, np.where(ids < 300, Kind.TEXT, Kind.VOCAL).astype(np.uint8))
    import_llama(exported, tmp_path / "in")
    fields = {"corpus": corpus, "vocabulary": corpus / "vocabulary.yaml", "run": tmp_path / "run"}
    content = yaml.safe_load((trained_run / STEP / "recipe.yaml").read_text())
    phase = content["phases"][0] | {"tokens": 128, "context_tokens": 16, "batch_sequences": 4}
    content |= {name: str(path) for name, path in fields.items()} | {"phases": [phase], "watch": {"log_every_steps": 1}}
    content["network"]["position_limit"] = 32
    recipe = Recipe.parse(content, tmp_path / "recipe.yaml")
    train(recipe, 1, tmp_path / "in")
    lines = [json.loads(line) for line in RunFolder(recipe.run).metrics.read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    stream = run_stream(recipe)
    ids = torch.from_numpy(np.stack([stream.sample(index).ids for index in range(4)])).long()
    network = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True).eval()
    with torch.inference_mode():
        logits = network(ids[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert lines[0]["loss"] == pytest.approx(expected, abs=1e-4)
    origin = json.loads((recipe.run / "origin.json").read_text())
    assert origin["checkpoint"] == str(tmp_path / "in") and origin["rows"] == 384
