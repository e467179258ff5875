"""The benchmark of a training step: its run on a CPU, and what it makes of the recipes that it measures on a GPU."""

import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def tools(repository):
    """The folder of the benchmarks, from which they import each other."""
    sys.path.insert(0, str(repository / "tools"))
    yield repository / "tools"
    sys.path.remove(str(repository / "tools"))


def test_a_run_beside_transformers(tools):
    network = "--hidden 32 --layers 2 --heads 2 --key-value-heads 1 --ffn 64 --vocabulary 128 --context 64".split()
    turns = "--peer transformers --rounds 2 --steps 2 --warmup 1 --threads 1".split()
    command = [sys.executable, str(tools / "benchmark_training.py"), *network, *turns]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert "26,784 parameters" in printed and "4 sequences a step" in printed
    # Both begin with the same weights, and after five updates of them still agree.
    ours, theirs = re.findall(r"loss over 5 steps: (.*)", printed)
    assert len(ours.split()) == len(theirs.split()) == 6
    assert float(re.search(r"largest difference of a step's loss (\S+)", printed)[1]) < 1e-5
    speeds = [float(speed.replace(",", "")) for speed in re.findall(r"([\d,]+) tokens/s a process", printed)]
    ratios = [float(number) for number in re.search(r"ratio by round (\S+) to (\S+)", printed).groups()]
    assert ratios[0] - 0.01 <= speeds[0] / speeds[1] <= ratios[1] + 0.01
    shares = re.search(r"own share of a step: (\S+)% \(median of 2 rounds, (\S+)% to (\S+)%\)", printed)
    median, least, most = map(float, shares.groups())
    assert 0 < least <= median <= most < 100


@pytest.mark.parametrize(
    ("options", "layers", "precision", "batch", "context"),
    [
        (["--recipe", "yue_0.5b"], 24, "bf16", 4, 8192),
        (["--recipe", "yue_0.5b", "--precision", "fp8-delayed", "--batch", "6"], 24, "fp8-delayed", 6, 8192),
        (["--recipe", "yue_7b", "--slice-layers", "4", "--context", "16384"], 4, "bf16", 4, 16384),
    ],
)
def test_a_recipe_is_cut_to_one_phase_of_small_steps(
    tools, repository, monkeypatch, options, layers, precision, batch, context
):
    import benchmark_training

    name = options[1]
    options[1] = str(repository / "examples" / f"{name}.yaml")
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", *options])
    recipe, vocabulary_size = benchmark_training.recipe_of(benchmark_training.read_options())
    (phase,) = recipe.phases
    assert (recipe.network.layers, recipe.precision, phase.batch_sequences) == (layers, precision, batch)
    assert (phase.context_tokens, vocabulary_size, recipe.name) == (context, 83_968, name)
    # The slice lies on one process, whatever the whole is spread over.
    assert "--slice-layers" not in options or recipe.layout.model_processes == 1
