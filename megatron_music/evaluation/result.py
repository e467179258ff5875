"""What `evaluate` has found, as the one file that its verbs write and read: ``evaluation.json``.

Who measures something registers what the measure is (``register``) and makes ``SongResult`` and ``SystemResult`` of
what was found; ``Evaluation.of`` puts them together. A number that could not be had is absent, never 0; why stands
among the song's problems, or in ``missing`` with the way to get it.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Discriminator, JsonValue, Tag, model_validator

from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.files import read_json, write_json
from megatron_music.recipe.fields import Strict
from megatron_music.recipe.recipe import parse_strict

FORMAT, VERSION, FILE = "megatron-music evaluation", 1, "evaluation.json"
AUTOMATIC = "Automatic scores do not follow listeners: of those that the authors of YuE compared with listeners, vocal "
AUTOMATIC += "range came nearest (correlation 0.857 in their paper). Trust ears first."
"""What every page and table says beside automatic scores."""


class _Part(Strict):
    """A part of the file: numbers are numbers, not texts or truth values that could be read as one."""

    model_config = ConfigDict(strict=True)


class Measure(_Part):
    """What a measure is.

    Attributes:
        title: a few words for a table's heading, without the unit.
        unit: "semitones", "dB", "%", or nothing for a plain number.
        better: which way is better, None where neither is.
        note: how it is measured, and what to keep in mind, in a sentence or two.
    """

    title: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    note: str = ""


def _bounded(found: Interval) -> Interval:
    if found.low is None or found.high is None:
        raise ValueError("an end is missing: write value, low and high, or the number alone")
    if not all(map(math.isfinite, found.as_dict().values())):
        raise ValueError(f"{found.value:g}, {found.low:g} to {found.high:g}, is not finite")
    if found.low > found.high:
        raise ValueError(f"low {found.low:g} is above high {found.high:g}")
    return found


Bounded = Annotated[Interval, AfterValidator(_bounded)]
"""A number with both ends of its interval."""
Number = Annotated[
    Annotated[float, Tag("number")] | Annotated[Bounded, Tag("interval")],
    Discriminator(lambda value: "interval" if isinstance(value, dict | Interval) else "number"),
]
"""A number with or without its interval."""


class SongResult(_Part):
    """A song.

    Attributes:
        name: what songs of other systems from the same prompt are called too.
        file: its audio (or f0) file, relative to the system's folder.
        measures: numbers by the measure's name.
        details: what else was found, any JSON.
        problems: what could not be measured and why, a sentence each.
    """

    name: str
    file: str
    measures: dict[str, float] = {}
    details: dict[str, JsonValue] = {}
    problems: list[str] = []


class SystemResult(_Part):
    """A system's songs, or a model, or both.

    Attributes:
        folder: where ``file`` of its songs is relative to; absolute, or in the file relative to it.
        measures: of all songs together (a distance between sets) or of the model, where they are not one song's.
        model: what is known of the model: losses by kind under ``losses``, shares by position, any JSON.
    """

    name: str
    folder: str = ""
    songs: list[SongResult] = []
    measures: dict[str, Number] = {}
    model: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _different_songs(self) -> "SystemResult":
        if twice := _twice(song.name for song in self.songs):
            raise ValueError(f"two songs are named {twice!r}; name them apart")
        return self

    def values(self, measure: str) -> list[float]:
        """The songs' values of a measure, of songs that have it."""
        return [song.measures[measure] for song in self.songs if measure in song.measures]

    def quartiles(self, measure: str) -> "Quartiles | None":
        """Of the songs' values; None where no song has one."""
        values = self.values(measure)
        return Quartiles.of(values) if values else None

    def value(self, measure: str) -> float | None:
        """The one number that stands for the system: its own, or the median of its songs; None where neither is."""
        own = self.measures.get(measure)
        if own is not None:
            return own.value if isinstance(own, Interval) else own
        quartiles = self.quartiles(measure)
        return quartiles.median if quartiles else None


class Missing(_Part):
    """A measure that was not taken: why, and what to do to have it."""

    measure: str
    why: str
    how: str


class Quartiles(_Part):
    """Lower quartile, median and upper quartile of ``count`` songs, linear between neighbouring values."""

    low: float
    median: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Raises ValueError where there are no values."""
        if not len(values):
            raise ValueError("there are no values to take quartiles of")
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(low=low, median=median, high=high, count=len(values))


class PairHeard(_Part):
    """Two songs that listeners compared; ``preferences`` by aspect, from -1 (second better) to 1, means over raters."""

    first: str
    first_song: str
    second: str
    second_song: str
    raters: int
    preferences: dict[str, float]


class WinRate(_Part):
    """How often listeners found ``system`` better than ``against``; in the rate, a tie is half a win."""

    system: str
    against: str
    wins: int
    ties: int
    losses: int
    rate: Bounded


class Listening(_Part):
    """What listeners said of systems, by aspect; ``evaluation/listening/statistics`` tells how each is computed.

    Attributes:
        raters, answers: how many people, and pairs that they judged.
        scores: mean win rate of a system over those that it was compared with.
        strengths: of Bradley and Terry's model, natural logarithms with mean 0; none where a comparison is missing that
            would tie all systems together.
        agreement: Krippendorff's alpha; none where no two raters judged one pair.
    """

    systems: list[str]
    aspects: list[str]
    raters: int
    answers: int
    win_rates: dict[str, list[WinRate]]
    scores: dict[str, dict[str, float]]
    strengths: dict[str, dict[str, float]]
    agreement: dict[str, float]
    pairs: list[PairHeard]


class Evaluation(_Part):
    """The whole file; ``listening`` is None where there was no listening test."""

    format: Literal["megatron-music evaluation"] = FORMAT
    version: Literal[1] = VERSION
    measures: dict[str, Measure] = {}
    systems: list[SystemResult] = []
    missing: list[Missing] = []
    listening: Listening | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Evaluation":
        if twice := _twice(system.name for system in self.systems):
            raise ValueError(f"two systems are named {twice!r}; name them apart")
        for system in self.systems:
            for name in [*system.measures, *(name for song in system.songs for name in song.measures)]:
                if name not in self.measures:
                    raise ValueError(f"{system.name} has {name!r}, which is not among the measures")
        return self

    @classmethod
    def of(
        cls, systems: Sequence[SystemResult], missing: Iterable[Missing] = (), listening: Listening | None = None
    ) -> "Evaluation":
        """Puts together what was measured; every measure must have been registered.

        Measures come in the order in which they were registered. A reason that is given twice is kept once.
        """
        missing = list({(one.measure, one.why, one.how): one for one in missing}.values())
        used = {name for system in systems for name in system.measures} | {one.measure for one in missing}
        used |= {name for system in systems for song in system.songs for name in song.measures}
        measures = {name: measure for name, measure in _REGISTERED.items() if name in used}
        return cls(measures=measures, systems=list(systems), missing=missing, listening=listening)

    def missing_in_words(self) -> list[str]:
        """A line for each measure that was not taken: why, and what to do to have it."""
        titles = {name: measure.title for name, measure in self.measures.items()}
        return [f"missing: {titles.get(one.measure, one.measure)}: {one.why}; {one.how}" for one in self.missing]

    @classmethod
    def read(cls, path: str | Path) -> "Evaluation":
        """Reads a file, or the ``evaluation.json`` of a folder; folders of systems come back absolute.

        Raises InputError where it is no evaluation, one of another version, or has a field that is missing, unknown or
        of the wrong type.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(path, "is no evaluation", f"name an {FILE} that `evaluate` has written")
        if content.get("version") != VERSION:
            what = f"has version {content.get('version')!r} of the format, and this program reads {VERSION}"
            raise InputError(path, what, "evaluate again")
        evaluation: Evaluation = parse_strict(cls, content, path)
        folder = path.resolve().parent
        systems = [
            system.model_copy(update={"folder": str(folder / system.folder)})
            if system.folder or system.songs
            else system
            for system in evaluation.systems
        ]
        return evaluation.model_copy(update={"systems": systems})

    def write(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    def system(self, name: str) -> SystemResult | None:
        """The system of a name, or None."""
        return next((system for system in self.systems if system.name == name), None)


_REGISTERED: dict[str, Measure] = {}


def register(**measures: Measure) -> None:
    """Makes measures known by name: ``register(vocal_range=Measure(title="vocal range", unit="semitones"))``.

    A module that measures does this where it is imported. Raises ValueError where a name has another meaning already.
    """
    for name, measure in measures.items():
        if _REGISTERED.setdefault(name, measure) != measure:
            raise ValueError(f"measure {name!r} is registered with another meaning")


def merge(paths: Sequence[str | Path]) -> Evaluation:
    """Several files as one evaluation, in their order.

    Raises InputError where one can't be read, two have a system of one name or another meaning of a measure, or two
    hold listening tests.
    """
    measures: dict[str, Measure] = {}
    systems: dict[str, SystemResult] = {}
    missing: dict[tuple[str, str, str], Missing] = {}
    listening: Listening | None = None
    for path in paths:
        evaluation = Evaluation.read(path)
        for name, measure in evaluation.measures.items():
            if (known := measures.setdefault(name, measure)) != measure:
                what = f"means {measure.title} ({measure.unit}) here and {known.title} ({known.unit}) in another file"
                raise InputError(f"{path}: measures.{name}", what, "evaluate both with one version")
        for system in evaluation.systems:
            if system.name in systems:
                what = f"a system {system.name!r} is in another file too"
                raise InputError(path, what, "give one of them another name in its file")
            systems[system.name] = system
        missing |= {(one.measure, one.why, one.how): one for one in evaluation.missing}
        if listening and evaluation.listening:
            raise InputError(path, "holds a listening test, and so does another file", "name one of them")
        listening = listening or evaluation.listening
    return Evaluation(
        measures=measures, systems=list(systems.values()), missing=list(missing.values()), listening=listening
    )


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
