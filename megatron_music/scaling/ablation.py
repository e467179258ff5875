"""An ablation's file: one question, and two recipes that differ in what it asks and in nothing else.

It holds the question, a recipe that both sides share, what each side sets in it, which of its fields may differ for
that, and what so small a run can't show. ``examples/ablations`` has some.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.files import read_yaml
from megatron_music.recipe.differences import differences
from megatron_music.recipe.fields import RelativePath, Strict
from megatron_music.recipe.recipe import Recipe, parse_strict


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
        differing = differences(*(self._recipe(side, 1) for side in self.file.sides))
        where = f"{self.path}: differs"
        for name in differing:
            if not any(_is_below(name, field) for field in self.file.differs):
                raise InputError(where, f"the sides also differ in {name}", "name it, or make both sides equal there")
        for field in self.file.differs:
            if not any(_is_below(name, field) for name in differing):
                raise InputError(where, f"the sides do not differ in {field}", "take it out, or set it on one side")


def _is_below(name: str, field: str) -> bool:
    return name == field or name.startswith(f"{field}.")
