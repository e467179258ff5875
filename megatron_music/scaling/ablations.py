"""`predict ablate`: one question, two recipes that differ in what the question asks, both trained and measured.

An ablation is a file: the question, a recipe that both sides share, what each side sets in it, which of its fields may
differ for that, and what so small a run can't show. ``examples/ablations`` has some. A side is trained once for every
seed; sides of several ablations that come to the same recipe share their runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from megatron_music.cluster.run_lines import has_ended
from megatron_music.corpus import fingerprint
from megatron_music.corpus.blend import read_stock
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.files import read_json, read_yaml, write_json
from megatron_music.progress import console
from megatron_music.recipe.fields import RelativePath, Strict
from megatron_music.recipe.recipe import Recipe, naming_faults, parse_strict
from megatron_music.training.run_folder import RunFolder


class Side(Strict):
    """One of the two recipes, and what it is measured on.

    Attributes:
        set: ``a.b=c`` overrides of the shared recipe.
        held_out: source of songs that neither side is trained on; both sides' are of the same songs.
        swapped: the same songs with other songs' lyrics.
        reference: the same songs behind a reference of their own.
        tracks: 1 where the audio is a mix, 2 where it is vocals and accompaniment.
    """

    set: list[str] = []
    held_out: str
    swapped: str | None = None
    reference: str | None = None
    tracks: Literal[1, 2] = 2

    @property
    def sources(self) -> dict[str, str]:
        """The sources that it is measured on, by field."""
        named = {field: getattr(self, field) for field in ("held_out", "swapped", "reference")}
        return {field: name for field, name in named.items() if name is not None}


class AblationFile(Strict):
    """What an ablation's file holds.

    Attributes:
        expected: what others found.
        equal: what both sides share, in words.
        differs: fields of the recipe that the sides may differ in, and have to; a phase goes by its name.
        cannot_show: what the size of these runs leaves open.
    """

    question: str = Field(min_length=1)
    expected: str = Field(min_length=1)
    recipe: RelativePath
    equal: str = Field(min_length=1)
    differs: list[str] = Field(min_length=1)
    sides: dict[str, Side]
    seeds: list[int] = Field([1], min_length=1)
    cannot_show: str = Field(min_length=1)

    @field_validator("sides")
    @classmethod
    def _two(cls, sides: dict[str, Side]) -> dict[str, Side]:
        if len(sides) != 2:
            raise ValueError(f"an ablation has two sides, not {len(sides)}; make one file for each pair")
        return sides


@dataclass(frozen=True)
class Ablation:
    """A file, checked: its sides' recipes differ in what it says and in nothing else."""

    path: Path
    file: AblationFile
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's, without its suffix."""
        return self.path.stem

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Ablation":
        """Reads a file; ``overrides`` are set on both sides. Raises InputError for whatever is wrong with it."""
        path = Path(path)
        ablation = cls(path, parse_strict(AblationFile, read_yaml(path), path), tuple(overrides))
        ablation._check_differences()
        return ablation

    def recipe(self, side: str, seed: int, out: Path) -> Recipe:
        """The recipe of a side, whose run lies below ``out`` under a name that equal recipes share."""
        recipe = self._recipe(side, seed)
        content = recipe.model_dump(mode="json", exclude={"run"})
        run = Path(out).resolve() / "runs" / f"{fingerprint.of_value(content)[:12]}.s{seed}"
        return recipe.model_copy(update={"run": run})

    def _recipe(self, side: str, seed: int) -> Recipe:
        overrides = [*self.file.sides[side].set, *self.overrides, f"seed={seed}"]
        try:
            return Recipe.load(self.file.recipe, overrides)
        except InputError as error:
            raise InputError(f"{self.path}: sides.{side}: {error.where}", error.what, error.mend) from None

    def _check_differences(self) -> None:
        first, second = (dict(_leaves(self._recipe(side, 1).model_dump(mode="json"))) for side in self.file.sides)
        differing = [name for name in first | second if first.get(name) != second.get(name)]
        where = f"{self.path}: differs"
        for name in differing:
            if not any(_is_below(name, field) for field in self.file.differs):
                raise InputError(where, f"the sides also differ in {name}", "name it, or make both sides equal there")
        for field in self.file.differs:
            if not any(_is_below(name, field) for name in differing):
                raise InputError(where, f"the sides do not differ in {field}", "take it out, or set it on one side")


def _is_below(name: str, field: str) -> bool:
    return name == field or name.startswith(f"{field}.")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in nested mappings and lists, by their path; items of a list go by their name or number."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            key = item.get("name", index) if isinstance(item, dict) else index
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


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
