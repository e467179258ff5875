"""Field types of a recipe: token counts with units, ratios written as fractions, paths relative to the file."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationInfo

UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Strict(BaseModel):
    """A part of a recipe: unknown fields are refused, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def parse_count(value: Any) -> int:
    """Reads ``240B``, ``6_291_456`` or a whole number; raises ValueError for what is none."""
    if isinstance(value, bool):
        raise ValueError("is a truth value; write a count such as 6291456 or 240B")
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMBT]?)\s*", value.replace("_", ""))
        if not match:
            raise ValueError(f"{value!r} is not a count; write digits and, if you like, k, M, B or T (240B)")
        value = Fraction(match[1]) * UNITS[match[2]]
    if not isinstance(value, int | float | Fraction):
        raise ValueError(f"{value!r} is not a count; write a whole number such as 6291456 or 240B")
    if value != int(value):
        raise ValueError(f"{value} is not a whole number; write one such as 6291456 or 240B")
    return int(value)


def positive_fraction(value: Any) -> Fraction:
    """Reads ``29/44``, ``0.25`` or ``3`` exactly; raises ValueError for what is not a number above 0."""
    try:
        if isinstance(value, bool):
            raise ValueError
        ratio = Fraction(str(value).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number or a fraction such as 29/44") from None
    if ratio <= 0:
        raise ValueError(f"{value!r} must be above 0; leave the source out instead")
    return ratio


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"{value!r} is not a path")
    folder = (info.context or {}).get("folder", Path.cwd())
    return (Path(folder) / Path(value).expanduser()).resolve()


Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number; ``240B`` is read as 240 * 10**9."""

Ratio = Annotated[Fraction, BeforeValidator(positive_fraction), PlainSerializer(str)]
"""A positive share, kept exact: ``29/44``, ``0.25``, ``3``."""

RelativePath = Annotated[Path, BeforeValidator(_path), PlainSerializer(str)]
"""A path relative to the file that names it, made absolute on reading."""
