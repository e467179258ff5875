"""The limits that a predictor run is judged by, from a YAML file in which every one names its source."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.files import read_yaml
from megatron_music.recipe.fields import Strict, parse_count
from megatron_music.recipe.recipe import parse_strict
from megatron_music.vocabulary.vocabulary import CodecRange

SHIPPED = Path(__file__).with_name("thresholds.yaml")
MEASURES = (
    "gain_over_bigram", "order", "invalid", "following", "following_far", "copying", "repetition", "hold", "silence"
)  # fmt: skip
Judgement = Literal["good", "bad", "open"]


class _Sourced(Strict):
    source: str = Field(min_length=1)


class Limit(_Sourced):
    """Good below or above one number, bad above or below another; without a ``no_go_...`` nothing is bad."""

    go_below: float | None = None
    no_go_above: float | None = None
    go_above: float | None = None
    no_go_below: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        below, above = self.go_below is not None, self.go_above is not None
        if below == above or (below and self.no_go_below is not None) or (above and self.no_go_above is not None):
            raise ValueError("write go_below and, if you like, no_go_above, or go_above and no_go_below")
        if below and self.no_go_above is not None and self.no_go_above < self.go_below:
            raise ValueError(f"no_go_above {self.no_go_above} is below go_below {self.go_below}; raise it")
        return self

    def judge(self, found: Interval) -> Judgement:
        """Good or bad where the whole interval is; the value alone where there is no interval.

        Bad where it is both: surely more than nothing may surely be too little. Bad also where the value is no number,
        as of a network that has diverged.
        """
        if math.isnan(found.value):
            return "bad"
        low = found.value if found.low is None else found.low
        high = found.value if found.high is None else found.high
        if _beyond(low, self.no_go_above) or _beyond(self.no_go_below, high):
            return "bad"
        is_good = high < self.go_below if self.go_below is not None else low > self.go_above
        return "good" if is_good else "open"

    def scaled(self, factor: float) -> "Limit":
        """The same with all numbers multiplied."""
        numbers = {name: value * factor for name, value in self.model_dump().items() if isinstance(value, float)}
        return self.model_copy(update=numbers)

    def in_words(self, number: Callable[[float], str]) -> str:
        """``go below 10%, no-go above 50%``, numbers written by ``number``."""
        way = "below" if self.go_below is not None else "above"
        bad = self.no_go_above if self.go_below is not None else self.no_go_below
        good = self.go_below if self.go_below is not None else self.go_above
        other = {"below": "above", "above": "below"}[way]
        return f"go {way} {number(good)}" + ("" if bad is None else f", no-go {other} {number(bad)}")


def _beyond(higher: float | None, lower: float | None) -> bool:
    return higher is not None and lower is not None and higher > lower


class _Budget(_Sourced):
    tokens_per_parameter: float = Field(gt=0)


class _Hopeless(_Sourced):
    from_share_of_budget: float = Field(gt=0, le=1)


class _Codec(_Sourced):
    tokens: str = Field(min_length=1, alias="class")


class _Loss(Strict):
    codebook_size: int = Field(gt=1)
    scaling_source: str = Field(min_length=1)
    classes: dict[str, Limit] = Field(min_length=1)


class Thresholds(Strict):
    """A file of limits; ``thresholds.yaml`` beside this module is the one that is used where none is named."""

    budget: _Budget
    hopeless: _Hopeless
    codecs: dict[str, _Codec]
    loss: _Loss
    measures: dict[str, Limit]
    required: list[str]

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Thresholds":
        """Reads a file; raises InputError naming the field and the mend."""
        path = SHIPPED if path is None else path
        return parse_strict(cls, read_yaml(path), path)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name, codec in self.codecs.items():
            if codec.tokens not in self.loss.classes:
                raise ValueError(f"codecs: {name}: class {codec.tokens} is none of loss.classes "
                                 f"({', '.join(self.loss.classes)}); add it or choose one")  # fmt: skip
        for field, names, known in (
            ("measures", self.measures, MEASURES),
            ("required", self.required, ("loss", *MEASURES)),
        ):
            unknown = next((name for name in names if name not in known), None)
            if unknown is not None:
                raise ValueError(f"{field}: {unknown} is not measured; choose from {', '.join(known)}")
        return self

    def class_of(self, codec: CodecRange) -> str:
        """The class of a codec; raises InputError where the file does not say."""
        if codec.name not in self.codecs:
            raise InputError(f"codec {codec.name}", "has no class in the thresholds",
                             f"add it to `codecs` of your own file (--thresholds), with a class of "
                             f"{', '.join(self.loss.classes)}")  # fmt: skip
        return self.codecs[codec.name].tokens

    def loss_limit(self, codec: CodecRange, tokens: str | None = None) -> Limit:
        """The limit of a loss in nats, as the same share of ln(codes) for every size of codebook.

        ``tokens`` is a class in place of the codec's. Raises InputError as ``class_of`` does.
        """
        limit = self.loss.classes[tokens or self.class_of(codec)]
        return limit.scaled(math.log(codec.codebook_size) / math.log(self.loss.codebook_size))


def budget_tokens(text: str | None) -> int | None:
    """Tokens as a recipe writes them (``70B``); raises InputError where that is none."""
    if text is None:
        return None
    try:
        tokens = parse_count(text)
    except ValueError as error:
        raise InputError("--budget", str(error)) from None
    if tokens < 1:
        raise InputError("--budget", f"{text} is no budget", "name a count such as 70B")
    return tokens
