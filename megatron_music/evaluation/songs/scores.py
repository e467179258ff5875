"""Scores that other programs gave songs, read from a table: CLaMP 3, Audiobox-Aesthetics."""

import csv
import io
import math
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_text

KNOWN = {
    "CE": "audiobox_enjoyment",
    "CU": "audiobox_usefulness",
    "PC": "audiobox_complexity",
    "PQ": "audiobox_quality",
    "clamp3": "clamp3_score",
}
"""Columns that are read, and the measures that they are: Audiobox's own names of its axes, and CLaMP 3's cosine."""


def read_scores(path: str | Path) -> dict[tuple[str, str], dict[str, float]]:
    """Scores by (system, song) and measure, from a CSV file with the columns system, song and some of ``KNOWN``.

    An empty cell is no score.

    Raises:
        InputError: a column or a value is missing or wrong; names the line.
    """
    rows = csv.DictReader(io.StringIO(read_text(path)))
    columns = rows.fieldnames or []
    found = [name for name in columns if name in KNOWN]
    if "system" not in columns or "song" not in columns or not found:
        mend = f"give the columns system, song and some of {', '.join(KNOWN)}"
        raise InputError(path, f"has the columns {', '.join(columns) or 'of none'}", mend)
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        where = f"{path}: line {rows.line_num}"
        key = (row["system"], row["song"])
        if None in key or key in scores:
            what = "is too short" if None in key else f"names {key[0]}/{key[1]} a second time"
            raise InputError(where, what, "give each song one line")
        scores[key] = {KNOWN[name]: _number(row[name], f"{where}: {name}") for name in found if row[name]}
    return scores


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(where, f"{text!r} is no number", "leave the cell empty where there is no score")
    return value
