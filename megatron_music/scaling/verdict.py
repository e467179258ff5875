"""From measured lines to a verdict, and both in words and as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_music.evaluation.intervals import Interval
from megatron_music.exits import ExitCode
from megatron_music.files import write_json
from megatron_music.scaling.thresholds import Judgement, Limit, Thresholds
from megatron_music.tables import short_count, table

Verdict = Literal["go", "no-go", "not-yet"]
EXITS: dict[Verdict, ExitCode] = {"go": ExitCode.DONE, "no-go": ExitCode.NO_GO, "not-yet": ExitCode.NOT_YET}
"""Exit status of ``--check``."""
FORMAT = "megatron-music gate"
CAVEAT = (
    "A go is necessary, not sufficient: unconditional pretraining worked at 0.5B and 2B and failed at 7B (deck, "
    "lessons). And no number here is a listener: hear the samples."
)


@dataclass
class Line:
    """One measure and what is made of it.

    Attributes:
        reach: of a loss the lowest that its straight line comes to by the budget.
        judgement: None where there is no limit to judge by.
    """

    measure: str
    title: str
    found: Interval
    unit: str
    limit: Limit | None = None
    reach: float | None = None

    @property
    def judgement(self) -> Judgement | None:
        """Where the value stands between its limits."""
        return None if self.limit is None else self.limit.judge(self.found)

    @property
    def limits(self) -> str:
        """The limits in words, in the unit of the value."""
        return "" if self.limit is None else self.limit.in_words(lambda number: _limit(number, self.unit))

    def as_dict(self) -> dict[str, Any]:
        """All of it that there is, for JSON."""
        # JSON knows no number that is none.
        found = {name: None if math.isnan(number) else number for name, number in self.found.as_dict().items()}
        told = {"measure": self.measure, "title": self.title.strip(), "unit": self.unit, **found}
        if self.reach is not None:
            told["reach"] = self.reach
        if self.limit is not None:
            told |= {"judgement": self.judgement, "limits": self.limits, "source": self.limit.source}
        return told


@dataclass
class Report:
    """A run as the gate finds it.

    Attributes:
        corpus, held_out: the folder that it was measured on, and which of its sources, None where none was.
        tokens: that the checkpoint was trained on; without one, those of the last loss. Those of runs that it branched
            off from, ``tokens_before``, count.
        missing: what could not be measured, why, and how to get it.
        model: all that was measured on the checkpoint, see ``evaluation.model.measure``.
    """

    run: str
    recipe: str
    corpus: str = ""
    held_out: str | None = None
    verdict: Verdict = "not-yet"
    reasons: list[str] = field(default_factory=list)
    tokens: int = 0
    tokens_before: int = 0
    budget_tokens: int = 0
    budget_source: str = ""
    parameters: int = 0
    checkpoint: str | None = None
    codec: dict[str, Any] = field(default_factory=dict)
    loss_limit: Limit | None = None
    lines: list[Line] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)

    def add(self, measure: str, title: str, found: Interval, unit: str, limit: Limit | None = None) -> Line:
        """Adds a line."""
        self.lines.append(Line(measure, title, found, unit, limit))
        return self.lines[-1]

    def lacks(self, measure: str, why: str, how: str) -> None:
        """Notes what could not be measured."""
        self.missing.append({"measure": measure, "why": why, "how": how})

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        told = {name: value for name, value in asdict(self).items() if name not in ("lines", "model", "loss_limit")}
        lines = [line.as_dict() for line in self.lines]
        return {"format": FORMAT, "version": 1, **told, "caveat": CAVEAT, "lines": lines, "model": self.model}


def decide(report: Report, thresholds: Thresholds) -> Report:
    """Sets verdict and reasons.

    At its budget a run is no-go where any measure is bad, not yet where one is open or a required one is missing, and
    otherwise go. Before, it is not yet, or from a share of the budget on no-go where a required measure is hopeless.
    """
    judged = [line for line in report.lines if line.judgement is not None]
    bad, still_open = ([line for line in judged if line.judgement == how] for how in ("bad", "open"))
    there = {line.measure.split("/")[0] for line in judged}
    lacking = [name for name in thresholds.required if name not in there]
    at_budget = 0 < report.budget_tokens <= report.tokens
    if at_budget:
        report.verdict = "no-go" if bad else "not-yet" if still_open or lacking else "go"
    else:
        share = report.tokens / report.budget_tokens if report.budget_tokens else 0.0
        late = share >= thresholds.hopeless.from_share_of_budget
        bad = [line for line in bad if late and line.measure.split("/")[0] in thresholds.required and _hopeless(line)]
        report.verdict = "no-go" if bad else "not-yet"
        budget = f"of a budget of {short_count(report.budget_tokens)}" if report.budget_tokens else "of no known budget"
        report.reasons.append(f"it has {short_count(report.tokens)} tokens {budget}")
    report.reasons += [f"{line.title.strip()} is bad: {in_words(line)}" for line in bad]
    if report.verdict == "not-yet":
        report.reasons += [f"{line.title.strip()} can't be told yet: {in_words(line)}" for line in still_open]
        report.reasons += [f"{name.replace('_', ' ')} is required and was not measured" for name in lacking]
    if report.verdict == "go":
        report.reasons.append(f"all {len(judged)} measures are good after {short_count(report.tokens)} tokens")
    return report


def _hopeless(line: Line) -> bool:
    """Whether a bad measure of a run that goes on will stay bad: of a loss, as far as its slope tells."""
    if not line.measure.startswith("loss/") or math.isnan(line.found.value):
        return True
    return line.reach is not None and line.limit.judge(Interval(value=line.reach)) == "bad"


def in_words(line: Line) -> str:
    """Value, interval and limits of a line."""
    return f"{_value(line)}{_range(line, ' [{}, {}]')} ({line.limits}; {line.limit.source})"


def report_text(report: Report) -> str:
    """The table, what is missing, and the verdict with its reasons."""
    rows = [["measure", "value", "95% interval", "limits", "is"]]
    for line in report.lines:
        rows.append([line.title, _value(line), _range(line, "{} to {}"), line.limits, line.judgement or ""])
    trained = f"{short_count(report.tokens)} tokens" + (f", {report.checkpoint}" if report.checkpoint else "")
    budget = f"; budget {short_count(report.budget_tokens)}" if report.budget_tokens else ""
    size = f"{short_count(report.parameters)} parameters, " if report.parameters else ""
    codec = f", {report.codec['name']} ({report.codec.get('class', 'no class')})" if report.codec else ""
    text = [f"{report.run}: {report.recipe}, {size}{trained}{budget}{codec}", f"corpus: {report.corpus}", ""]
    if report.model:
        following, sampled = report.model.get("following"), report.model["audio_positions_sampled"]
        songs = f"{following['documents']} documents of {following['songs']} songs and " if following else ""
        text[2:] = [f"measured on {report.held_out}: {songs}{sampled:,} sampled ids", ""]
    if report.lines:
        text += [table(rows), ""]
    text += [f"not measured: {lack['measure']}: {lack['why']}; {lack['how']}" for lack in report.missing]
    text += ["", f"verdict: {report.verdict.replace('-yet', ' yet')}"]
    text += [f"  {reason}" for reason in report.reasons]
    return "\n".join([*text, CAVEAT])


def show(report: Report, as_json: bool, out: Path | None) -> None:
    """Prints a report, and writes it where a file is named."""
    if out is not None:
        write_json(out, report.as_dict())
    print(json.dumps(report.as_dict(), indent=2) if as_json else report_text(report))


def _value(line: Line) -> str:
    return _number(line.found.value, line.unit)


def _range(line: Line, form: str) -> str:
    if line.found.low is None:
        return ""
    return form.format(_number(line.found.low, line.unit), _number(line.found.high, line.unit))


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "not finite"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:+.4f}" if unit == "nats more" else f"{value:.3f}"


def _limit(value: float, unit: str) -> str:
    return f"{100 * value:.3g}%" if unit == "share" else f"{value:.3g}"
