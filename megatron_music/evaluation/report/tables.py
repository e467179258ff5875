"""The table of an evaluation, measures by system, for the page, as CSV and as LaTeX."""

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.listening.statistics import FEW, FEWEST, AgainstListeners, Correlation, correlate
from megatron_music.evaluation.result import AUTOMATIC, Evaluation, Measure, SystemResult

OVERALL = "overall"
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': "''",
}  # fmt: skip
_MEASURE_COLUMNS = ("measure", "title", "unit", "better", "system", "of", "value", "low", "high", "songs")
_LISTENER_COLUMNS = tuple(
    f"listeners_{over}_{column}"
    for over in ("systems", "pairs")
    for column in ("count", "pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high")
)


@dataclass(frozen=True)
class Cell:
    """A system's number of a measure: the median of ``songs`` songs with its quartiles, or one of the whole system
    (``songs`` None) with or without a 95% interval; ``best`` of all systems."""

    value: float
    low: float | None
    high: float | None
    songs: int | None
    best: bool = False

    @property
    def words(self) -> str:
        """The number and its range."""
        spread = "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"
        return f"{number(self.value)}{spread}"


@dataclass(frozen=True)
class Row:
    """A measure with the cells of the systems that have it, and how it goes along with the listeners."""

    name: str
    measure: Measure
    cells: dict[str, Cell]
    listeners: AgainstListeners | None


def measure_rows(evaluation: Evaluation) -> list[Row]:
    """The measures that any system has a number of."""
    aspect = main_aspect(evaluation)
    rows = []
    for name, measure in evaluation.measures.items():
        found = {system.name: _cell(system, name) for system in evaluation.systems}
        cells = {system: cell for system, cell in found.items() if cell is not None}
        if cells:
            listeners = correlate(evaluation, name, aspect) if aspect else None
            rows.append(Row(name, measure, _with_best(cells, measure), listeners))
    return rows


def main_aspect(evaluation: Evaluation) -> str | None:
    """The aspect that one column can show: the overall one, or else the first."""
    aspects = evaluation.listening.aspects if evaluation.listening else []
    return OVERALL if OVERALL in aspects else next(iter(aspects), None)


def _cell(system: SystemResult, measure: str) -> Cell | None:
    own = system.measures.get(measure)
    if isinstance(own, Interval):
        return Cell(own.value, own.low, own.high, None)
    if own is not None:
        return Cell(own, None, None, None)
    quartiles = system.quartiles(measure)
    return Cell(quartiles.median, quartiles.low, quartiles.high, quartiles.count) if quartiles else None


def _with_best(cells: dict[str, Cell], measure: Measure) -> dict[str, Cell]:
    if measure.better is None or len({cell.value for cell in cells.values()}) < 2:
        return cells  # one system, or all alike
    best = (max if measure.better == "higher" else min)(cell.value for cell in cells.values())
    return {
        system: Cell(cell.value, cell.low, cell.high, cell.songs, cell.value == best) for system, cell in cells.items()
    }


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def heading(measure: Measure) -> str:
    """Title and unit."""
    return f"{measure.title} ({measure.unit})" if measure.unit else measure.title


def correlation_words(found: Correlation | None, count: int) -> str:
    """A coefficient with its interval and number of points, or that they are too few."""
    if found is None:
        return f"{'too few' if count < FEWEST else 'all alike'}, n = {count}"
    spread = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}{spread}, n = {count}{', too few to rely on' if count < FEW else ''}"


def measures_csv(evaluation: Evaluation) -> str:
    """One line for each measure of each system, numbers in full; what is unknown is empty."""
    lines = [[*_MEASURE_COLUMNS, *_LISTENER_COLUMNS]]
    for row in measure_rows(evaluation):
        about = [row.name, row.measure.title, row.measure.unit, row.measure.better]
        for system, cell in row.cells.items():
            of = "system" if cell.songs is None else "median of songs"
            numbers = [cell.value, cell.low, cell.high, cell.songs]
            lines.append([*about, system, of, *numbers, *_listener_numbers(row.listeners)])
    return _csv(lines)


def songs_csv(evaluation: Evaluation) -> str:
    """One line for each song, a column for each measure of songs; what is unknown is empty."""
    measures = [
        name for name in evaluation.measures if any(name in s.measures for y in evaluation.systems for s in y.songs)
    ]
    lines: list[Sequence[object]] = [["system", "song", "file", *measures, "problems"]]
    for system in evaluation.systems:
        for song in system.songs:
            values = [song.measures.get(name) for name in measures]
            lines.append([system.name, song.name, song.file, *values, " | ".join(song.problems)])
    return _csv(lines)


def _listener_numbers(found: AgainstListeners | None) -> list[float | None]:
    if found is None:
        return [None] * len(_LISTENER_COLUMNS)
    numbers: list[float | None] = []
    for count, *coefficients in (
        (found.system_count, found.systems_pearson, found.systems_spearman),
        (found.pair_count, found.pairs_pearson, found.pairs_spearman),
    ):
        numbers.append(count)
        for one in coefficients:
            numbers += [one.value, one.low, one.high] if one else [None] * 3
    return numbers


def _csv(lines: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(["" if value is None else value for value in line] for line in lines)
    return stream.getvalue()


def latex(evaluation: Evaluation) -> str:
    """A ``table`` that needs no package; names that are not Latin need LuaLaTeX or XeLaTeX."""
    systems = [system.name for system in evaluation.systems]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * len(systems)}l}}",
        r"\hline",
        _latex_line(["", *map(latex_text, systems), "listeners"]),
        r"\hline",
    ]
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", None: ""}
    for row in measure_rows(evaluation):
        cells = [_latex_cell(row.cells.get(system)) for system in systems]
        listeners = row.listeners and _latex_numbers(
            correlation_words(row.listeners.pairs_spearman, row.listeners.pair_count)
        )
        lines.append(
            _latex_line([latex_text(heading(row.measure)) + arrows[row.measure.better], *cells, listeners or "--"])
        )
    lines += [r"\hline", r"\end{tabular}", rf"\caption{{{latex_text(_CAPTION)}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


_CAPTION = (
    "Medians of songs with quartiles, or numbers of whole systems with 95% intervals. Listeners: Spearman's "
    f"correlation with their preferences over pairs of songs. {AUTOMATIC}"
)


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    return rf"\textbf{{{_latex_numbers(cell.words)}}}" if cell.best else _latex_numbers(cell.words)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it stands: one line, no commands, no control characters."""
    plain = "".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text)
    return "".join(_LATEX.get(one, one) for one in plain)


def _latex_numbers(words: str) -> str:
    """Numbers with signs of minus, where a hyphen would stand."""
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", latex_text(words))
