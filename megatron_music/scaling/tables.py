"""Points of a scaling law from a table, so that published sweeps can be fitted."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_text
from megatron_music.recipe.fields import parse_count
from megatron_music.scaling.point import Options, Point

KNOWN = {
    "parameters": ("parameters", "params", "n", "model size", "num params", "non-embedding parameters"),
    "tokens": ("tokens", "d", "training tokens", "num tokens"),
    "flops": ("flops", "flop", "c", "training flop", "training flops", "compute"),
    "name": ("name", "run", "model"),
}
"""Headings that are understood, without regard to capitals and with _ as a space."""


def read_table(path: Path, options: Options) -> list[Point]:
    """The points of a table with a line of headings; cells are separated by commas, semicolons or tabs.

    Without tokens they are FLOPs / (6 x parameters). Columns named ``loss`` or beginning with it are losses
    (``loss``, ``loss/vocal``), or those of ``options.loss_columns`` under their own names; an empty cell is none.

    Raises InputError with the line for what is no table of points.
    """
    lines = read_text(path).split("\n")
    heading = next((number for number, line in enumerate(lines) if line.strip()), None)
    if heading is None:
        raise InputError(path, "is empty", "write a line of headings, such as parameters,tokens,loss, and the points")
    separator = max(",;\t", key=lines[heading].count)
    try:
        rows = list(csv.reader(lines[heading:], delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(path, f"is no table ({error})", "save it as text with separated cells") from None
    headings = [cell.strip() for cell in rows[0]]
    columns = _columns(path, headings, options)
    losses = _loss_columns(path, headings, options.loss_columns)
    points = []
    for number, row in enumerate(rows[1:], heading + 2):
        if any(cell.strip() for cell in row):
            points.append(_point(f"{path}: line {number}", headings, row, columns, losses))
    if not points:
        raise InputError(path, "holds no point below its headings", "write a line for each training")
    return points


def _plain(heading: str) -> str:
    return heading.strip().lower().replace("_", " ")


def _columns(path: Path, headings: Sequence[str], options: Options) -> dict[str, int]:
    """Where each quantity stands; those that the table lacks are left out."""
    found = {}
    for quantity, names in KNOWN.items():
        asked = options.columns.get(quantity)
        if asked is not None:
            found[quantity] = _at(path, headings, asked)
            continue
        at = [number for number, heading in enumerate(headings) if _plain(heading) in names]
        if at:
            found[quantity] = at[0]
    for quantity in ("parameters", "tokens"):
        if quantity not in found and not (quantity == "tokens" and "flops" in found):
            raise InputError(path, f"has no column for {quantity} (it has {', '.join(headings)})",
                             f"name it {quantity}, or say which it is with --{quantity}-column")  # fmt: skip
    return found


def _at(path: Path, headings: Sequence[str], asked: str) -> int:
    if asked not in headings:
        raise InputError(
            path, f"has no column {asked!r} (it has {', '.join(headings)})", "mend the option or the table"
        )
    return headings.index(asked)


def _loss_columns(path: Path, headings: Sequence[str], asked: Sequence[str]) -> dict[str, int]:
    if asked:
        return {name: _at(path, headings, name) for name in asked}
    found = {}
    for number, heading in enumerate(headings):
        plain = _plain(heading)
        if plain.startswith(("loss", "validation/loss")):
            found[plain.removeprefix("validation/").removeprefix("loss").strip(" /:") or "loss"] = number
    if not found:
        raise InputError(path, f"has no column for losses (it has {', '.join(headings)})",
                         "name it loss, or say which it is with --loss-column")  # fmt: skip
    return found


def _point(
    where: str, headings: Sequence[str], row: Sequence[str], columns: dict[str, int], losses: dict[str, int]
) -> Point:
    if len(row) != len(headings):
        raise InputError(where, f"has {len(row)} cells, the headings are {len(headings)}", "mend the line")
    numbers = {
        quantity: _number(where, headings[at], row[at])
        for quantity, at in columns.items()
        if quantity != "name" and (row[at].strip() or quantity != "flops")
    }
    if "tokens" not in numbers:
        if "flops" not in numbers:
            raise InputError(where, "has neither tokens nor FLOPs", "mend the line")
        numbers["tokens"] = numbers["flops"] / (6 * numbers["parameters"])
    found = {name: _number(where, headings[at], row[at]) for name, at in losses.items() if row[at].strip()}
    if not found:
        raise InputError(where, "has no loss", "take the line out, or fill it in")
    name = row[columns["name"]].strip() if "name" in columns else ""
    return Point(
        name=name or where.rpartition(": ")[2],
        parameters=numbers["parameters"],
        tokens=numbers["tokens"],
        losses=found,
        flops=numbers.get("flops"),
        measured_on=where.rpartition(": ")[0],
    )


def _number(where: str, heading: str, cell: str) -> float:
    """A positive number; counts may be written with units (70B)."""
    text = cell.strip()
    try:
        number = float(text)
    except ValueError:
        try:
            number = float(parse_count(text))
        except ValueError:
            number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(where, f"{heading}: {text!r} is no number above 0", "write one such as 125M, 1.3e9 or 2.71")
    return number
