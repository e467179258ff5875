"""A phase's mixture: shares of its sources, written down one by one or as ratios between groups of them.

.. code-block:: yaml

    mixture: {songs: 29/44, speech: 1/11, mix: 1/4}        # shares of the tokens, in any proportion

    mixture:
      sources: [songs_en, songs_zh, speech_en, speech_zh, mix]
      ratios:
        - conditional:mix = 3:1                            # conditional is one of the recipe's `groups`
        - songs:speech = 10:1                              # songs is songs_en and songs_zh
        - en:zh = 2:1 in each of songs, speech
      unit: hours                                          # default: tokens

Ratios may overlap (conditional music is both conditional and music): together with "the shares sum to 1" they are a
system of linear equations, solved in fractions. What they leave open is an error, unless ``rest: by_size`` splits what
no ratio tells apart by what the corpus holds of each.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, SerializerFunctionWrapHandler, model_serializer, model_validator

from megatron_music.recipe.fields import Ratio, Strict, positive_fraction

Groups = Mapping[str, Sequence[str]]
"""Names for sets of sources: the name, and patterns of the sources in it."""


@dataclass(frozen=True)
class RatioRule:
    """``a:b = 3:1``: the sources of each name stand in these proportions, within each of ``each`` if there are any."""

    names: tuple[str, ...]
    numbers: tuple[Fraction, ...]
    each: tuple[str, ...] = ()

    def __str__(self) -> str:
        within = f" in each of {', '.join(self.each)}" if self.each else ""
        return f"{':'.join(self.names)} = {':'.join(map(str, self.numbers))}{within}"

    @classmethod
    def parse(cls, text: Any) -> "RatioRule":
        """Reads ``en:zh:ja = 4:2:1 in each of songs, speech``; raises ValueError."""
        if isinstance(text, RatioRule):
            return text
        mend = "write for example `music:speech = 10:1`, or `old:new = 2:1 in each of songs, speech`"
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a ratio; {mend}, in quotes where YAML takes it apart")
        match = re.fullmatch(r"([^=]+)=([^=]+?)(?:\sin each of\s([^=]+))?", text.strip())
        if not match:
            raise ValueError(f"{text!r} is not a ratio; {mend}")
        names, numbers, each = (
            tuple(part.strip() for part in re.split("[:,]", group or "")) for group in match.groups()
        )
        each = each if match[3] else ()
        if not all((*names, *each)):
            raise ValueError(f"{text!r} lacks a name between its signs; {mend}")
        if len(names) != len(numbers) or len(names) < 2:
            raise ValueError(f"{text!r} has {len(names)} names and {len(numbers)} numbers; {mend}")
        try:
            return cls(names, tuple(positive_fraction(number) for number in numbers), each)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a ratio: {error}") from None


Rule = Annotated[RatioRule, BeforeValidator(RatioRule.parse), PlainSerializer(str)]


class Mixture(Strict):
    """Either ``shares`` by source (a plain mapping is read as these), or ``sources`` with ``ratios`` between them.

    Attributes:
        unit: what shares and ratios count; hours become tokens by what the corpus measures of each source.
        rest: how sources that no ratio tells apart share: not at all (an error), or by their size in ``unit``.
    """

    shares: dict[str, Ratio] = {}
    sources: list[str] = []
    ratios: list[Rule] = []
    unit: Literal["tokens", "hours"] = "tokens"
    rest: Literal["by_size"] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The sources, in the order in which the recipe names them."""
        return tuple(self.shares or self.sources)

    @property
    def needs_corpus(self) -> bool:
        """Whether its shares of the tokens depend on what the corpus holds."""
        return self.unit == "hours" or self.rest is not None

    @model_validator(mode="before")
    @classmethod
    def _plain_shares(cls, value: Any) -> Any:
        return {"shares": value} if isinstance(value, dict) and not value.keys() & cls.model_fields.keys() else value

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if not self.names:
            raise ValueError("names no source; write `source: share` lines, or sources and ratios")
        if self.shares and (self.sources or self.ratios or self.rest):
            raise ValueError("has shares besides sources, ratios or rest; keep one of the two forms")
        twice = next((name for name in self.sources if self.sources.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"names the source {twice} twice; leave one out")
        return self

    @model_serializer(mode="wrap")
    def _shortest(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As the recipe has it: plain shares, or the fields of the other form."""
        fields = dump(self)
        if self.shares and self.unit == "tokens":
            return fields["shares"]
        return {name: fields[name] for name in fields if name in self.model_fields_set}


def members(name: str, sources: Sequence[str], groups: Groups) -> tuple[str, ...]:
    """The sources that a name stands for: those of the group of that name, or those that it names itself.

    A source's own name is that source; ``*_en`` is a pattern; ``songs`` is every source ``songs_...``.
    """
    found = {source for pattern in groups.get(name, [name]) for source in _named(pattern, sources)}
    return tuple(source for source in sources if source in found)


def _named(pattern: str, sources: Sequence[str]) -> list[str]:
    if pattern in sources:
        return [pattern]
    return [source for source in sources if fnmatchcase(source, pattern) or source.startswith(f"{pattern}_")]


def solve(mixture: Mixture, groups: Groups) -> dict[tuple[str, ...], Fraction]:
    """The exact share, in the mixture's unit, of every source, or of all sources that ``rest`` leaves together.

    Raises ValueError naming the ratio where ratios contradict each other or name nothing, and the sources whose share
    they leave open.
    """
    if mixture.shares:
        total = sum(mixture.shares.values())
        return {(name,): share / total for name, share in mixture.shares.items()}
    equations = [equation for rule in mixture.ratios for equation in _equations(rule, mixture.sources, groups)]
    parts = [(source,) for source in mixture.sources]
    if mixture.rest is not None:
        parts = _told_apart(mixture.sources, equations)
    system = _System(len(parts))
    for equation in equations:
        for side, number in zip(equation.sides[1:], equation.numbers[1:], strict=True):
            row = [equation.numbers[0] * (part[0] in side) - number * (part[0] in equation.sides[0]) for part in parts]
            if not system.add([*row, Fraction(0)]):
                raise ValueError(f"the ratio {equation.rule} contradicts those before it; change one of them")
    if system.free:
        raise _open(parts, system, mixture, equations)
    shares = dict(zip(parts, system.solution(), strict=True))
    for part, share in shares.items():
        if share <= 0:
            naming = [str(rule) for rule in mixture.ratios if any(part[0] in side for equation in equations
                      if equation.rule is rule for side in equation.sides)]  # fmt: skip
            raise ValueError(f"the ratios give {' + '.join(part)} a share of {share}: they can't all hold; change one "
                             f"of those that name it: {'; '.join(naming)}")  # fmt: skip
    return shares


@dataclass(frozen=True)
class _Equation:
    """A ratio with the sources of each side, inside one of its ``each``."""

    rule: RatioRule
    sides: tuple[tuple[str, ...], ...]
    numbers: tuple[Fraction, ...]


def _equations(rule: RatioRule, sources: Sequence[str], groups: Groups) -> list[_Equation]:
    equations = []
    for each in rule.each or (None,):
        within = sources if each is None else members(each, sources, groups)
        sides = []
        for name in rule.names:
            side = tuple(source for source in members(name, sources, groups) if source in within)
            if not side:
                where = f"{name} in {each}" if each else name
                raise ValueError(f"the ratio {rule}: {where} is no source of this phase; mend the name or its group, "
                                 f"or leave the ratio out (sources: {', '.join(sources)})")  # fmt: skip
            sides.append(side)
        equations.append(_Equation(rule, tuple(sides), rule.numbers))
    return equations


def _told_apart(sources: Sequence[str], equations: Sequence[_Equation]) -> list[tuple[str, ...]]:
    """Sources in sets of those that stand on the same sides of every ratio."""
    sets: dict[tuple[bool, ...], tuple[str, ...]] = {}
    for source in sources:
        place = tuple(source in side for equation in equations for side in equation.sides)
        sets[place] = (*sets.get(place, ()), source)
    return list(sets.values())


def _open(
    parts: Sequence[tuple[str, ...]], system: "_System", mixture: Mixture, equations: Sequence[_Equation]
) -> ValueError:
    """What to tell where shares are left open; the ratio that it suggests is a new equation to the others."""
    first = system.free[0]
    tied = next(pivot for pivot, row in system.rows.items() if row[first] > 0)
    names = ", ".join(" + ".join(parts[column]) for column in system.open())
    mend = "add a ratio"
    if len(parts[first]) == len(parts[tied]) == 1:
        mend += f" such as {parts[tied][0]}:{parts[first][0]} = 1:1"
    alike = _told_apart(mixture.sources, equations)
    # Two sources that no ratio tells apart may change places: each but the first of a set is an unknown left free.
    if mixture.rest is None and len(system.free) == len(mixture.sources) - len(alike):
        mend += ", or `rest: by_size` to split by what the corpus holds of each"
    return ValueError(f"the ratios leave open the shares of {names}; {mend}")


class _System:
    """Linear equations over shares that sum to 1, kept in reduced row echelon form while they are added."""

    def __init__(self, unknowns: int):
        self.unknowns = unknowns
        self.rows: dict[int, list[Fraction]] = {}
        self.add([Fraction(1)] * (unknowns + 1))

    def add(self, row: list[Fraction]) -> bool:
        """Adds an equation, coefficients and then its right side; False where it contradicts the others."""
        for pivot, other in self.rows.items():
            row = _minus(row, row[pivot], other)
        pivot = next((column for column in range(self.unknowns) if row[column]), None)
        if pivot is None:
            return not row[-1]
        row = [value / row[pivot] for value in row]
        self.rows = {column: _minus(other, other[pivot], row) for column, other in self.rows.items()} | {pivot: row}
        return True

    @property
    def free(self) -> list[int]:
        """Unknowns that may still take any value."""
        return [column for column in range(self.unknowns) if column not in self.rows]

    def open(self) -> list[int]:
        """Unknowns whose value is not settled: the free ones and those that depend on them."""
        return [column for column in range(self.unknowns)
                if column not in self.rows or any(self.rows[column][free] for free in self.free)]  # fmt: skip

    def solution(self) -> list[Fraction]:
        """Values of the unknowns, where none is free."""
        return [self.rows[column][-1] for column in range(self.unknowns)]


def _minus(row: list[Fraction], times: Fraction, other: list[Fraction]) -> list[Fraction]:
    return [a - times * b for a, b in zip(row, other, strict=True)] if times else row
