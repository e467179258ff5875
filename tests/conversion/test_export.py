"""An exported folder computes what megatron-core computes, and says what it is."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from megatron_music.conversion.checkpoint import MASTER_PREFIX, CheckpointReader
from megatron_music.conversion.export import export_checkpoint
from megatron_music.errors import InputError
from megatron_music.training.origin import Origin

STEP = "run/checkpoints/step_000007"


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


def test_logits_equal_megatron_core(trained_run, tmp_path):
    assert_logits_are_equal(trained_run, tmp_path / "hf")


def test_logits_equal_megatron_core_on_two_processes(parallel_run, tmp_path):
    assert_logits_are_equal(parallel_run, tmp_path / "hf")


def assert_logits_are_equal(run, out):
    export_checkpoint(run / STEP, out, dtype="float32")
    probe = np.load(run / "probe.npz")
    network = load(out)
    assert network.dtype == torch.float32
    with torch.inference_mode():
        logits = network(torch.from_numpy(probe["ids"])).logits
    assert probe["logits"].std() > 0.1
    assert np.abs(logits.numpy() - probe["logits"]).max() < 1e-4


def test_bfloat16_shards_hold_the_rounded_weights(trained_run, tmp_path):
    export_checkpoint(trained_run / STEP, tmp_path / "one", dtype="float32")
    export_checkpoint(trained_run / STEP, tmp_path / "many", shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    whole, sharded = load(tmp_path / "one"), load(tmp_path / "many")
    assert sharded.dtype == torch.bfloat16
    expected = whole.state_dict()
    for name, tensor in sharded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(torch.bfloat16), rtol=0, atol=0)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in expected.values())


def test_float32_comes_from_the_master_weights(own_run, tmp_path, monkeypatch):
    """Where weights and master weights differ, as in a BF16 run, each dtype takes its own."""
    plain = CheckpointReader.read

    def read(self, name, layer=None):
        tensor = plain(self, name, layer)
        return tensor + 1 if name.startswith(MASTER_PREFIX) else tensor

    monkeypatch.setattr(CheckpointReader, "read", read)
    export_checkpoint(own_run / STEP, tmp_path / "masters", dtype="float32")
    export_checkpoint(own_run / STEP, tmp_path / "weights", dtype="bfloat16")
    for folder, offset in (("masters", 1.0), ("weights", 0.0)):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            found = file.get_tensor("model.layers.1.mlp.up_proj.weight")
        source = plain(CheckpointReader(own_run / STEP), "decoder.layers.mlp.linear_fc1.weight", 1)[48:]
        torch.testing.assert_close(found, (source + offset).to(found.dtype), rtol=0, atol=0)


def test_the_folder_carries_what_belongs_to_the_weights(trained_run, tmp_path):
    export_checkpoint(trained_run / "run", tmp_path / "hf")
    hf, corpus = tmp_path / "hf", trained_run / "corpus"
    for name in ("vocabulary.yaml", "tokenizer.model", "codec/codebooks.bin"):
        assert (hf / name).read_bytes() == (corpus / name).read_bytes()
    config = json.loads((hf / "config.json").read_text())
    assert config["max_position_embeddings"] == 64 and config["rms_norm_eps"] == 1e-4
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    generation = GenerationConfig.from_pretrained(hf)
    assert (generation.top_k, generation.top_p, generation.repetition_penalty) == (50, 0.93, 1.1)
    assert generation.eos_token_id == 302
    documents = json.loads((hf / "documents.json").read_text())
    assert documents == {
        "codec": "embedded",
        "context_tokens": 16,
        "sources": {"cot": {"task": "lyrics_to_song", "options": {"tags": "as_written"}, "shares": {"warm-up": "1"}}},
    }
    card = (hf / "README.md").read_text()
    for words in ("# tiny song", "(stage 1)", "224 (step 7", "| vocal | 4.2500 |", "| text | 5.5000 |", "rope_base"):
        assert words in card
    assert "1.0000 |" not in card


def test_an_earlier_export_is_replaced_and_other_folders_are_not(trained_run, tmp_path):
    out = tmp_path / "hf"
    for _ in range(2):
        export_checkpoint(trained_run / STEP, out)
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.flac").write_bytes(b"")
    with pytest.raises(InputError, match="exists and holds no config.json"):
        export_checkpoint(trained_run / STEP, tmp_path / "music")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "music"]


def spoil_shape(folder):
    path = folder / STEP / "recipe.yaml"
    path.write_text(path.read_text().replace("ffn_hidden_size: 48", "ffn_hidden_size: 64"))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: shutil.rmtree(folder / STEP), "is not a checkpoint|no such checkpoint"),
        (lambda folder: (folder / STEP / "state.json").unlink(), "no state.json"),
        (lambda folder: (folder / STEP / ".metadata").unlink(), "is damaged: .metadata is missing; choose another"),
        (lambda folder: (folder / "corpus" / "tokenizer.model").unlink(), "has no tokenizer.model; .*--corpus"),
        (spoil_shape, "linear_fc1.weight has shape"),
        (
            lambda folder: [file.write_bytes(b"") for file in (folder / STEP).glob("*.distcp")],
            "is damaged: __0_0.distcp has 0 bytes where",
        ),
    ],
)
def test_what_is_no_whole_checkpoint_is_named_in_one_line(own_run, tmp_path, spoil, message):
    recipe = own_run / STEP / "recipe.yaml"
    original = recipe.read_text().splitlines()
    corpus = f"corpus: {own_run / 'corpus'}"
    recipe.write_text("\n".join(corpus if line.startswith("corpus:") else line for line in original))
    spoil(own_run)
    with pytest.raises(InputError, match=message) as caught:
        export_checkpoint(own_run / STEP, tmp_path / "hf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_unknown_dtypes_are_refused(trained_run, tmp_path):
    with pytest.raises(InputError, match="float16 can't be exported"):
        export_checkpoint(trained_run / STEP, tmp_path / "hf", dtype="float16")


def test_the_card_of_a_branch_counts_what_its_network_had_read_before(own_run, tmp_path):
    origin = Origin("trunk/checkpoints/step_000100", "trunk", 100, 5_000, "stable", 1_005_000, 48, keeps_optimizer=True)
    origin.write(own_run / STEP)
    export_checkpoint(own_run / STEP, tmp_path / "hf")
    seen = "1,005,224 in all: 224 (step 7, phase warm-up) after 1,005,000 up to step 100 of trunk"
    assert f"| tokens seen | {seen} |" in (tmp_path / "hf" / "README.md").read_text()
    # Its own phases so far had 16, and the one to come counts for nothing.
    assert json.loads((tmp_path / "hf" / "documents.json").read_text())["context_tokens"] == 48
