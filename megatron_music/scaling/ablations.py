"""`predict ablate`: both sides of each ablation's file, trained and measured as far as that is not done.

A side is trained once for every seed; sides of several ablations that come to the same recipe share their runs.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_music.cluster.run_lines import has_ended
from megatron_music.corpus import fingerprint
from megatron_music.corpus.blend import read_stock
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.progress import console
from megatron_music.recipe.recipe import naming_faults
from megatron_music.scaling.ablation import Ablation
from megatron_music.training.run_folder import RunFolder


def run_ablations(
    files: Sequence[str | Path],
    out: str | Path,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    processes: int | None = None,
    positions: int = 500,
) -> dict[str, dict[str, Any]]:
    """Trains and measures what is not there yet; returns each ablation's result, which ``out/NAME.json`` holds.

    Seed after seed, so that all questions have a first answer soon. Killed, it goes on with the run that it was at.

    Args:
        seeds: in place of the files' own.
        positions: audio ids sampled freely for the share of invalid ones.

    Raises:
        InputError: before anything is trained, where a file, its recipe or its corpus is no good.
    """
    from megatron_music.training.run import check

    out = Path(out)
    ablations = [Ablation.read(file, overrides) for file in files]
    by_name = {ablation.name: ablation for ablation in ablations}
    if len(by_name) < len(ablations):
        raise InputError(", ".join(map(str, files)), "two files have one name", "rename one")
    rounds = {name: list(seeds or ablation.file.seeds) for name, ablation in by_name.items()}
    for ablation in ablations:
        with naming_faults(ablation.path):
            for side, options in ablation.file.sides.items():
                recipe = ablation.recipe(side, rounds[ablation.name][0], out)
                check(recipe, processes or recipe.layout.model_processes)
                for name in options.sources.values():
                    read_stock(recipe.corpus, name)
                for seed in rounds[ablation.name]:
                    # Of a run that has ended nothing else would tell that it was of another corpus.
                    RunFolder(ablation.recipe(side, seed, out).run).check_corpus(recipe)
    with workplace(out):
        return _run_all(by_name, rounds, out, processes, positions)


def _run_all(
    by_name: dict[str, Ablation], rounds: dict[str, list[int]], out: Path, processes: int | None, positions: int
) -> dict[str, dict[str, Any]]:
    from megatron_music.scaling.ablation_result import result_of

    measured: dict[str, dict[str, dict[int, Any]]] = {name: {} for name in by_name}
    for turn in range(max(map(len, rounds.values()))):
        for name, ablation in by_name.items():
            if turn < len(rounds[name]):
                seed = rounds[name][turn]
                for side in ablation.file.sides:
                    measured[name].setdefault(side, {})[seed] = _side(ablation, side, seed, out, processes, positions)
                write_json(out / f"{name}.json", result_of(ablation, measured[name]))
    return {name: read_json(out / f"{name}.json") for name in by_name}


def _side(ablation: Ablation, side: str, seed: int, out: Path, processes: int | None, positions: int) -> dict[str, Any]:
    """What was measured of a side, trained and measured now where it is not there."""
    from megatron_music.scaling.ablation_result import MEASURING, measure_side

    recipe, options = ablation.recipe(side, seed, out), ablation.file.sides[side]
    if not has_ended(recipe.run):
        from megatron_music.training.run import train

        console.print(f"{ablation.name}: training {side}, seed {seed}, in {recipe.run}")
        train(recipe, processes)
    sources = {field: asdict(read_stock(recipe.corpus, name)) for field, name in options.sources.items()}
    asked = fingerprint.of_value([MEASURING, options.sources, sources, options.tracks, positions, seed])
    path = recipe.run / f"measured.{asked}.json"
    if not path.is_file():
        console.print(f"{ablation.name}: measuring {side}, seed {seed}")
        write_json(path, measure_side(recipe, options, positions, seed))
    return read_json(path)


def read_seeds(text: str | None) -> list[int] | None:
    """``1,2`` as numbers; raises InputError on anything else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise InputError("--seeds", f"{text!r} is not a list of different whole numbers", "write for example 1,2")
    return [int(part) for part in parts]
