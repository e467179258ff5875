"""An export has as many rows of embedding and head as the folder that its network was imported from."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from megatron_music.cli import app
from megatron_music.conversion.checkpoint import CheckpointReader
from megatron_music.conversion.export import export_checkpoint
from megatron_music.conversion.import_llama import import_llama
from megatron_music.conversion.import_megatron import import_megatron
from megatron_music.errors import InputError
from megatron_music.training.origin import Origin, read_origin, rows_that_came

STEP = "run/checkpoints/step_000007"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = 373
"""Of 370 ids, where the vocabulary has room for 384."""
TOKENIZER_FILES = {
    "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}',
    "special_tokens_map.json": "{}",
    "generation_config.json": '{"eos_token_id": 2}',
}


@pytest.fixture(scope="module")
def folder(write_model, tmp_path_factory):
    """A BF16 folder of an odd number of rows, as another program wrote it, with tokenizer files of its own."""
    folder = write_model(tmp_path_factory.mktemp("odd") / "hf", seed=3)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name in (EMBEDDING, HEAD):
        weights[name] = weights[name][:ROWS].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": ROWS, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "_name_or_path": "somebody/song"}))
    for name, text in TOKENIZER_FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("in") / "in"
    import_llama(folder, out)
    return out


def rows_of(folder) -> int:
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert len(weights[EMBEDDING]) == len(weights[HEAD]) == config["vocab_size"]
    return config["vocab_size"]


def test_what_was_imported_goes_out_as_it_came(folder, imported, tmp_path):
    said = []
    export_checkpoint(imported, tmp_path / "out", verify=True, say=said.append)
    assert said == [f"{tmp_path / 'out'}: embedding and head have 373 rows: 370 ids and 3 of padding, as they came"]
    # One file came, and the same bytes go out.
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    came, went = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "out"))
    assert came == went
    for name in ("vocabulary.yaml", "tokenizer.model", *TOKENIZER_FILES):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    assert "370 ids and 3 of padding, as they came" in (tmp_path / "out" / "README.md").read_text()
    import_llama(tmp_path / "out", tmp_path / "again")
    before, after = CheckpointReader(imported), CheckpointReader(tmp_path / "again")
    for name in ("embedding.word_embeddings.weight", "output_layer.weight", "decoder.layers.mlp.linear_fc1.weight"):
        assert torch.equal(before.read(name), after.read(name))


def test_rows_of_several_types_go_out_as_they_came(folder, tmp_path):
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    weights = load_file(mixed / "model.safetensors")
    weights |= {name: tensor.float() for name, tensor in weights.items() if "norm" in name}
    save_file(weights, mixed / "model.safetensors", metadata={"format": "pt"})
    import_llama(mixed, tmp_path / "in")
    export_checkpoint(tmp_path / "in", tmp_path / "out", verify=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (mixed / "model.safetensors").read_bytes()


@pytest.mark.parametrize("rows", [370, 380, 384])
def test_other_numbers_of_rows_are_written_where_they_are_asked_for(folder, imported, tmp_path, rows):
    options = ["--rows", str(rows), "--dtype", "float32", "--verify"]
    result = CliRunner().invoke(app, ["export", str(imported), str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    assert f"{rows} rows: 370 ids and {rows - 370} of padding, where 373 came" in result.output
    assert rows_of(tmp_path / "out") == rows
    came, went = load_file(folder / "model.safetensors")[HEAD], load_file(tmp_path / "out" / "model.safetensors")[HEAD]
    kept = min(rows, ROWS)
    assert torch.equal(went[:kept], came[:kept].float()) and not went[kept:].any()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("rows", [0, 369, 385])
def test_rows_that_there_are_not_are_refused(imported, tmp_path, rows):
    with pytest.raises(InputError, match=f"--rows: {rows} is not within 370 .ids. and 384 .padded."):
        export_checkpoint(imported, tmp_path / "out", rows=rows)
    for option in ({"rows": 384}, {"dtype": "float32"}):
        with pytest.raises(InputError, match="is of a Hugging Face folder, where `--format megatron` writes"):
            export_checkpoint(imported, tmp_path / "out", form="megatron", **option)


def test_megatrons_form_keeps_them_on_record(folder, imported, tmp_path):
    export_checkpoint(imported, tmp_path / "alone", form="megatron")
    assert rows_that_came(tmp_path / "alone") == ROWS
    export_checkpoint(tmp_path / "alone", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_of_megatrons_padding_the_vocabularys_is_kept(own_run, tmp_path):
    said, checkpoint = [], own_run / STEP
    vocabulary = own_run / "corpus" / "vocabulary.yaml"
    vocabulary.write_text(vocabulary.read_text().replace("padded_size: 384", "padded_size: 376"))
    import_megatron(checkpoint, tmp_path / "in", checkpoint / "recipe.yaml", vocabulary,
                    own_run / "corpus" / "tokenizer.model", said.append)  # fmt: skip
    assert said == [f"{checkpoint}: of 384 rows of embedding and head the last 8, of padding, are left"]
    export_checkpoint(tmp_path / "in", tmp_path / "out", say=said.append)
    assert rows_of(tmp_path / "out") == 376 and "376 rows: 370 ids and 6 of padding, as they came" in said[1]


def test_a_run_that_began_with_it_keeps_them(own_run, imported, tmp_path):
    origin = Origin.of(imported)
    assert origin.rows == ROWS
    origin.write(own_run / STEP)
    assert read_origin(own_run / STEP) == origin
    assert Origin.of(own_run / STEP).rows == ROWS  # and one that begins with that run
    export_checkpoint(own_run / STEP, tmp_path / "out", verify=True)
    assert rows_of(tmp_path / "out") == ROWS
    source = CheckpointReader(own_run / STEP).read("output_layer.weight")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[HEAD], source[:ROWS].bfloat16())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| vocabulary | 373 rows: 370 ids and 3 of padding, as they came; " in card


def test_of_runs_from_before_all_rows_are_written_and_it_is_told(own_run, imported, tmp_path):
    origin = json.dumps({name: value for name, value in vars(Origin.of(imported)).items() if name != "rows"})
    (own_run / STEP / "origin.json").write_text(origin)
    old = shutil.copytree(imported, tmp_path / "old")
    network = json.loads((old / "network.json").read_text())
    (old / "network.json").write_text(json.dumps({name: network[name] for name in ("network", "imported_from")}))
    (old / "files.json").unlink()
    for checkpoint in (own_run / STEP, old):
        said = []
        export_checkpoint(checkpoint, tmp_path / "out", say=said.append)
        assert rows_of(tmp_path / "out") == 384
        assert said[0].endswith("384 rows: 370 ids and 14 of padding; how many came is not on record")


def test_ids_that_were_added_since_are_not_cut_off(own_run, imported, tmp_path):
    Origin.of(imported).write(own_run / STEP)
    path = own_run / "corpus" / "vocabulary.yaml"
    content = yaml.safe_load(path.read_text())
    content["codecs"].append({"name": "more", "marker": "<embedded>", "first": 370, "codebooks": 1, "codebook_size": 8})
    path.write_text(yaml.safe_dump(content | {"size": 378}))
    said = []
    export_checkpoint(own_run / STEP, tmp_path / "out", corpus=own_run / "corpus", say=said.append)
    assert rows_of(tmp_path / "out") == 384 and said[0].endswith("378 ids and 6 of padding, where 373 came")
