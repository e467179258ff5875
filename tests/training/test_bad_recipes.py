"""Recipes that can't be trained: one line each, with the field and the mend, before anything is started or written."""

import json
import sys

import pytest
import torch
import yaml

from megatron_music import cli
from megatron_music.engine import elastic

RAMP = {"start_sequences": 2, "add_sequences": 1, "tokens": 256}
LORA = {"rank": 4, "alpha": 8}
RATIOS = {"sources": ["songs", "loops"], "ratios": []}
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def bad(name: str, overrides: dict, message: str, *options: str, marks=()):
    """A case: what is changed in a good recipe, and the line that tells it, without the file's name before it."""
    return pytest.param(overrides, message, options, id=name, marks=marks)


BAD = [
    bad("unknown field", {"nmae": "x"}, "nmae: unknown field; did you mean name?"),
    bad("unknown field below", {"phases.long.tokns": 1}, "phases[2].tokns: unknown field; did you mean tokens?"),
    bad("a field of another place", {"layout.layers": 2}, "layout.layers: unknown field; known fields here: tensor, "),
    bad("wrong type", {"network.layers": "many"}, "network.layers: found 'many'; write a whole number"),
    bad("a number as a list", {"optimizer.beta1": [1]}, "optimizer.beta1: found [1]; write a number"),
    bad("a mapping as a number", {"network": 3}, "network: found 3; write `name: value` lines"),
    bad("missing field", {"network.layers": None, "network": {"hidden_size": 32}}, "network.layers: missing field"),
    bad("infinite", {"optimizer.clip_norm": float("inf")}, "optimizer.clip_norm: found inf; write a finite number"),
    bad("negative seed", {"seed": -1}, "seed: found -1; write 0 or more"),
    bad("an unknown precision", {"precision": "fp7"}, "precision: found 'fp7'; choose 'bf16', 'fp32', 'fp8-delayed', "),
    bad("heads that don't divide", {"network.attention_heads": 5}, "network: hidden_size 32 is not a multiple of"),
    bad("more processes than heads", {"layout.tensor": 8}, "layout.tensor 8 does not divide network.attention_heads 4"),
    bad("stages that don't divide", {"layout.pipeline": 3}, "network.layers 2 is not a multiple of layout.pipeline x"),
    bad("sequence alone", {"layout.sequence": True}, "layout: sequence parallelism needs tensor above 1; set sequence"),
    bad("interleave alone", {"layout.interleave": 2}, "layout: interleave needs pipeline above 1; set interleave: 1"),
    bad("processes beside the layout", {"layout.tensor": 2},
        "layout: 3 processes are not a multiple of tensor x pipeline x context = 2; change", "--processes=3"),
    bad("a batch that copies don't divide", {},
        "phases[0].batch_sequences: 4 is not a multiple of 3 data-parallel processes x micro_batch_sequences 1; change",
        "--processes=3"),
    bad("micro-batches that don't divide", {"phases.0.micro_batch_sequences": 3},
        "phase 'warm-up': batch_sequences: 4 is not a multiple of micro_batch_sequences 3; change one"),
    bad("micro-batches for an interleaved pipeline",
        {"layout": {"pipeline": 2, "interleave": 2}, "network.layers": 4, "phases.1.micro_batch_sequences": 4},
        "phases[1].batch_sequences: 4 gives 1 micro-batches a process, not a multiple of layout.pipeline 2, which"),
    bad("no phase", {"phases": []}, "phases: found []; write at least 1 of them"),
    bad("two phases of a name", {"phases.1.name": "long"}, "phases: two phases are named 'long'; give each its"),
    bad("no budget", {"phases.0.tokens": 0}, "phases[0].tokens: found 0; write a number above 0"),
    bad("a phase that runs backwards", {"phases.0.tokens": "-3k"}, "phases[0].tokens: '-3k' is not a count; write"),
    bad("half a token", {"phases.0.tokens": 2.5}, "phases[0].tokens: 2.5 is not a whole number; write one"),
    bad("a context above the limit", {"phases.2.context_tokens": 128},
        "phase 'long': context_tokens 128 is above network.position_limit 64; raise the limit or shorten the context"),
    bad("a negative learning rate", {"phases.1.learning_rate": -0.1},
        "phases[1].learning_rate.start: found -0.1; write 0 or more"),
    bad("a constant that moves", {"phases.0.learning_rate": {"shape": "constant", "start": 1, "end": 2}},
        "phases[0].learning_rate: a constant learning rate needs start equal to end; or choose linear or cosine"),
    bad("an unknown schedule", {"phases.0.learning_rate": {"shape": "wsd", "start": 1, "end": 2}},
        "phases[0].learning_rate.shape: found 'wsd'; choose 'constant', 'linear' or 'cosine'"),
    bad("a ramp that never arrives", {"phases.0.batch_ramp": RAMP | {"add_sequences": 3}},
        "phases[0]: batch_ramp.add_sequences 3 does not lead from start_sequences 2 to batch_sequences 4; choose a"),
    bad("a ramp from above", {"phases.0.batch_ramp": RAMP | {"start_sequences": 9}},
        "phases[0]: batch_ramp.start_sequences 9 is not below batch_sequences 4; lower it, or leave batch_ramp out"),
    bad("a ramp beyond its phase", {"phases.0.batch_ramp": RAMP | {"tokens": "1M"}},
        "phases[0]: batch_ramp.tokens 1000000 is above the phase's tokens 512; shorten the ramp"),
    bad("a ramp that copies don't divide", {"phases.0.batch_ramp": RAMP},
        "phases[0].batch_ramp: a batch of 3 on the way to 4 is not a multiple of 2 data-parallel processes",
        "--processes=2"),
    bad("a mask of no kind", {"loss": {"without": ["drums"]}},
        "loss.without[0]: found 'drums'; choose 'text', 'special', 'vocal', "),
    bad("a mask of everything", {"loss": {"without": ["text", "special", "vocal", "accompaniment", "mix", "speech",
                                                      "residual"]}},
        "loss.without: leaves no token to learn; take a kind out of the list"),
    bad("a mask of references that are not there", {"phases.2.loss": {"without": ["reference"]}},
        "loss.without: names `reference`, and no source of the run was built with the task of that name; leave it out"),
    bad("attention of no kind", {"attention": "none"},
        "attention: found 'none'; choose 'across_documents' or 'within_documents'"),
    bad("attention within documents, context parallel", {"attention": "within_documents", "layout.context": 2},
        "layout.context needs sequences that are all cut alike, attention: within_documents cuts each at its own docu"),
    bad("a mixture without a source", {"phases.0.mixture": {}}, "phases[0].mixture: names no source; write `source: "),
    bad("a source that is not there", {"phases.0.mixture": {"choirs": 1}}, "has no source choirs (there: held_out, "),
    bad("a share of nothing", {"phases.0.mixture": {"songs": 0}}, "phases[0].mixture.shares.songs: 0 must be above 0"),
    bad("ratios that leave shares open", {"phases.0.mixture": RATIOS},
        "phase 'warm-up': mixture: the ratios leave open the shares of songs, loops; add a ratio such as"),
    bad("a ratio of nothing", {"phases.0.mixture": RATIOS | {"ratios": ["songs:drums = 2:1"]}},
        "phase 'warm-up': mixture: the ratio songs:drums = 2:1: drums is no source of this phase; mend the name"),
    bad("a limit of no source", {"most_epochs": {"choirs": 2}}, "most_epochs: choirs holds no source of any phase; "),
    bad("a source that runs out", {"most_epochs": {"songs": "1/9"}},
        "most_epochs: songs runs out in phase constant after 585"),
    bad("no corpus", {"corpus": "nowhere"}, "nowhere: there is no corpus here; run `megatron-music build`, or mend"),
    bad("no vocabulary", {"vocabulary": "nowhere.yaml"}, "nowhere.yaml: no such file; check the path"),
    bad("held-out songs that are not there", {"watch": {"validation": {"source": "none"}}},
        " has no source none; build it, or name another"),
    bad("adapters without a network", {"lora": LORA}, "lora: tiny trains adapters, and no network is named for them; "),
    bad("a start that is no checkpoint", {}, "is not a checkpoint: no state.json; name one such as RUN/checkpoints",
        "--from=."),
    bad("no optimizer to leave out", {}, "--fresh-optimizer: is given without a checkpoint to start from; add --from",
        "--fresh-optimizer"),
    bad("FP8 without a GPU", {"precision": "fp8-blockwise"}, "precision: fp8-blockwise needs a GPU, and there is none",
        marks=NO_GPU),
    bad("CUDA graphs without a GPU", {"layout.cuda_graphs": True}, "layout.cuda_graphs: true needs a GPU, and there ",
        marks=NO_GPU),
]  # fmt: skip


@pytest.fixture
def train(make_recipe, tmp_path, monkeypatch, capsys):
    """Runs ``train`` in this process, with the good recipe and ``--set`` for each override; (status, error)."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe().model_dump(mode="json")))

    def never(*_arguments):
        raise AssertionError("a process was started")

    def run(overrides, options):
        sets = [argument for field, value in overrides.items() for argument in ("--set", f"{field}={as_yaml(value)}")]
        monkeypatch.setattr(sys, "argv", ["megatron-music", "train", str(path), *options, *sets])
        monkeypatch.setattr(elastic, "start", never)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr().err

    return run


def as_yaml(value) -> str:
    return ".inf" if value == float("inf") else json.dumps(value)


def test_there_are_forty_kinds():
    assert len(BAD) >= 40


@pytest.mark.parametrize(("overrides", "message", "options"), BAD)
def test_a_bad_recipe_gets_one_line_before_any_process(train, tmp_path, overrides, message, options):
    status, error = train(overrides, options)
    assert status == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert "; " in error, "no mend"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
