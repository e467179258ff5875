"""`predict ladder`: the recipes of a ladder of small runs, what they take, and how to submit them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_music.cluster.layouts import NODE_GPUS, proposals
from megatron_music.cluster.plan import Plan, make_plan
from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json, write_text
from megatron_music.recipe.fields import parse_count, positive_fraction
from megatron_music.recipe.gpus import Gpu, gpu_named
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe, naming_faults
from megatron_music.scaling.counts import parameters_of, run_flops
from megatron_music.scaling.rungs import Rule, scale_recipe
from megatron_music.tables import short_count, table
from megatron_music.vocabulary.vocabulary import Vocabulary

LADDER = "ladder.json"
SUBMIT = "submit.sh"
RUNS = "runs"


@dataclass(frozen=True)
class Rung:
    """One run of a ladder.

    Attributes:
        recipe: with its own layout, name and run folder.
        path: its file.
        parameters: in its layers, without both embeddings; ``all_parameters`` with both.
        flops: of the whole run, by the convention of ``recipe.flops``.
    """

    name: str
    recipe: Recipe
    path: Path
    parameters: int
    all_parameters: int
    tokens: int
    flops: float
    plan: Plan


def write_ladder(
    path: Path,
    out: Path,
    sizes: str,
    tokens_per_parameter: str,
    rule: Rule = Rule(),  # noqa: B008
    gpus: int = 8,
    gpu: str = "H800",
    mfu: float = 0.4,
    overrides: Sequence[str] = (),
) -> list[Rung]:
    """Writes a recipe for every size and every ratio into ``out``, with ``ladder.json`` and ``submit.sh``.

    Args:
        path: the recipe that is scaled, with ``overrides``.
        sizes: parameters of the layers, such as ``20M,50M``.
        tokens_per_parameter: ratios of tokens to them, such as ``20,60``; with one alone, what parameters do and what
            tokens do can't be told apart.
        gpus: the most of a run; a small one takes as many of half, a quarter, ... as its batches allow.
        mfu: share of the peak that the runs are expected to reach.

    Raises:
        InputError: recipe, sizes or ratios are no good; ``out`` holds another ladder, or recipes that were changed.
    """
    recipe, path, out = Recipe.load(path, list(overrides)), Path(path).resolve(), Path(out).resolve()
    if recipe.lora is not None:
        raise InputError(f"{path}: lora", "trains adapters; a ladder is of whole networks", "leave `lora` out")
    runs = recipe.run if any(text.startswith("run=") for text in overrides) else out / RUNS
    with naming_faults(path):
        rungs = [
            _rung(recipe, size, ratio, rule, out, runs, gpus, gpu_named(gpu), mfu)
            for size in _numbers("--sizes", sizes, parse_count)
            for ratio in _numbers("--tokens-per-parameter", tokens_per_parameter, positive_fraction)
        ]
    _check_distinct(rungs)
    content = _ladder_json(path, rule, rungs)
    _check_unchanged(out, content, rungs)
    for rung in rungs:
        write_text(rung.path, _recipe_text(rung, path, rule))
    write_text(out / SUBMIT, _submit_text(rungs))
    # Last: a folder that has it has all of the ladder.
    write_json(out / LADDER, content)
    return rungs


@dataclass(frozen=True)
class LadderRun:
    """A run that ``ladder.json`` names, begun or not; ``parameters`` and ``tokens`` as of ``Rung``."""

    name: str
    folder: Path
    parameters: int
    tokens: int


def read_ladder(folder: Path) -> list[LadderRun]:
    """The runs of the ladder in ``folder``; raises InputError where its ``ladder.json`` is none."""
    path = folder / LADDER
    try:
        runs = [LadderRun(str(rung["name"]), Path(rung["run"]), int(rung["parameters"]), int(rung["tokens"]))
                for rung in read_json(path)["rungs"]]  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise InputError(path, "is not a ladder", "write it again with `megatron-music predict ladder`") from None
    # A ladder may have been moved with its runs in it.
    moved = [folder / RUNS / run.name for run in runs]
    return [
        replace(run, folder=there) if there.is_dir() and not run.folder.is_dir() else run
        for run, there in zip(runs, moved, strict=True)
    ]


def ladder_table(rungs: Sequence[Rung], gpu: str) -> str:
    """What the runs of a ladder take."""
    heading = ["rung", "network", "parameters", "all", "tokens", "batch tokens", "learning rate", "steps", "FLOPs"]
    rows = [[*heading, "GPUs", "GPU-hours"]]
    for rung in rungs:
        network, cluster = rung.recipe.network, rung.plan.cluster
        batches = sorted({phase.step_tokens for phase in rung.recipe.phases})
        rate = max(max(phase.learning_rate.start, phase.learning_rate.end) for phase in rung.recipe.phases)
        rows.append([
            rung.name, f"{network.layers} x {network.hidden_size}", short_count(rung.parameters),
            short_count(rung.all_parameters), short_count(rung.tokens), _extent(batches), f"{rate:.2e}",
            f"{phase_spans(rung.recipe)[-1].last_step:,}", f"{rung.flops:.2e}", f"{cluster.gpus:,} {gpu}",
            f"{_gpu_hours(rung):,.1f}",
        ])  # fmt: skip
    total = ["all", *[""] * 7, f"{sum(rung.flops for rung in rungs):.2e}", "", f"{sum(map(_gpu_hours, rungs)):,.1f}"]
    return table([*rows, total])


def _extent(counts: Sequence[int]) -> str:
    """The least and the most of ascending counts, or the only one."""
    return " to ".join(dict.fromkeys(short_count(count) for count in (counts[0], counts[-1])))


def _gpu_hours(rung: Rung) -> float:
    return sum(stretch.gpu_hours for stretch in rung.plan.cluster.forecast)


def _numbers(option: str, text: str, parse) -> list[Any]:
    """The numbers of an option, in their order; each once."""
    found = []
    for part in text.split(","):
        try:
            number = parse(part.strip())
        except ValueError as error:
            raise InputError(option, f"{part.strip()!r} is no number above 0", "write for example 20M,50M") from error
        if number <= 0:
            raise InputError(option, f"{part.strip()!r} is no number above 0", "write for example 20M,50M")
        found.append(number)
    return sorted(set(found))


def _rung(recipe: Recipe, size: int, ratio, rule: Rule, out: Path, runs: Path, gpus: int, gpu: Gpu, mfu: float) -> Rung:
    name = f"{short_count(size)}_{float(ratio):g}x"
    scaled = scale_recipe(recipe, size, float(ratio), rule)
    vocabulary_size = Vocabulary.load(recipe.vocabulary).padded_size
    scaled, own_gpus = _laid_out(scaled, vocabulary_size, gpus, gpu)
    scaled = scaled.model_copy(update={"name": f"{recipe.name}_{name}", "run": runs / name})
    plan = make_plan(scaled, own_gpus, gpu.name, mfu, build=False)
    if plan.fault is not None:
        raise plan.fault
    return Rung(
        name=name,
        recipe=scaled,
        path=out / f"{name}.yaml",
        parameters=parameters_of(scaled.network, vocabulary_size),
        all_parameters=parameters_of(scaled.network, vocabulary_size, "all"),
        tokens=phase_spans(scaled)[-1].last_token,
        flops=run_flops(scaled, vocabulary_size),
        plan=plan,
    )


def _laid_out(recipe: Recipe, vocabulary_size: int, gpus: int, gpu: Gpu) -> tuple[Recipe, int]:
    """The recipe with the best layout of the most GPUs on which one starts and fits, halving from ``gpus``."""
    count = gpus
    while count:
        found = proposals(recipe, vocabulary_size, count, gpu)
        if found:
            return recipe.model_copy(update={"layout": found[0].layout}), count
        count //= 2
    raise InputError("layout", f"{recipe.network.hidden_size} x {recipe.network.layers} fits no layout on up to {gpus} "
                     f"{gpu.name}", "take more or larger GPUs, or smaller --sizes")  # fmt: skip


def _check_distinct(rungs: Sequence[Rung]) -> None:
    seen: dict[tuple[int, int], str] = {}
    for rung in rungs:
        of_run = rung.parameters, rung.tokens
        if of_run in seen:
            raise InputError("--sizes", f"{seen[of_run]} and {rung.name} come to the same network and tokens",
                             "take sizes or ratios that lie further apart")  # fmt: skip
        seen[of_run] = rung.name


def _ladder_json(path: Path, rule: Rule, rungs: Sequence[Rung]) -> dict[str, Any]:
    return {
        "recipe": str(path),
        "rule": str(rule),
        "rungs": [
            {
                "name": rung.name,
                "recipe": str(rung.path),
                "run": str(rung.recipe.run),
                "parameters": rung.parameters,
                "all_parameters": rung.all_parameters,
                "tokens": rung.tokens,
                "flops": rung.flops,
            }
            for rung in rungs
        ],
    }


def _check_unchanged(out: Path, content: dict[str, Any], rungs: Sequence[Rung]) -> None:
    """Raises InputError where what lies in the folder is not what would be written."""
    if (out / LADDER).is_file() and read_json(out / LADDER) != content:
        raise InputError(out / LADDER, "is of another ladder", "write this one to another folder; `fit` takes several")
    for rung in rungs:
        if rung.path.is_file() and Recipe.load(rung.path) != rung.recipe:
            raise InputError(rung.path, "is not what the ladder would write: it was changed, or the recipe was",
                             "delete it, or write to another folder")  # fmt: skip


def _recipe_text(rung: Rung, path: Path, rule: Rule) -> str:
    head = [
        f"# {rung.name}: a rung of the ladder of {path}, written by `megatron-music predict ladder`.",
        f"# {rung.parameters:,} parameters in its layers ({rung.all_parameters:,} with both embeddings), "
        f"{rung.tokens:,} tokens.",
        f"# {rule}.",
    ]
    body = yaml.safe_dump(rung.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return "\n".join([*head, body])


def _submit_text(rungs: Sequence[Rung]) -> str:
    """A script that submits every rung; what it is given goes to each: sh submit.sh --partition gpu --dry-run."""
    lines = ["#!/bin/sh", "# Submits all runs of the ladder: sh submit.sh --partition gpu --time 1-00:00:00",
             "# With --dry-run it prints the sbatch files alone.", "set -e"]  # fmt: skip
    for rung in rungs:
        gpus = rung.plan.cluster.gpus
        # The fewest that have as many GPUs each.
        nodes = next(nodes for nodes in range(-(-gpus // NODE_GPUS), gpus + 1) if gpus % nodes == 0)
        lines.append(
            f'megatron-music submit {shlex.quote(str(rung.path))} --nodes {nodes} --gpus-per-node {gpus // nodes} "$@"'
        )
    return "\n".join(lines) + "\n"
