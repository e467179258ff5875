"""`status`: where runs stand, from their metrics alone. Nothing heavy is imported, so that it is there at once."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_music.cluster.run_lines import RunLines, runs_in
from megatron_music.tables import duration, short_count, table
from megatron_music.terminal import signs
from megatron_music.training.events import ENDED, METRICS, ROLLED_BACK, STOPPED

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_DONE, _PLAIN_DONE = "█░", "#-"
_TREND = 24
_ENDS = {ENDED: "done", STOPPED: "stopped"}
_SILENCES = 20
"""A run whose last line is older than so many of the times between its lines, and than a minute, stands still."""


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        state: ``done``, ``stopped`` (asked to), ``moves``, ``silent`` (no line for long), or ``empty``.
        silent_seconds: since the last line.
        tokens, total_tokens: consumed, and planned; 0 where it is not told.
        left_seconds: until the end, at the speed of the last lines.
        losses: of the last step that has some, by kind and task, with the names of ``metrics.jsonl``; None for one that
            was no number.
        invalid_token_step: after which ``invalid_token_share`` was measured.
        planned: tokens of each source, by the plan, at this point of its phase; ``consumed`` as they were.
        unread: which lines of the metrics can't be read, in words; empty where all can.
    """

    run: str
    state: str
    silent_seconds: float | None
    phase: str
    step: int
    steps: int
    tokens: int
    total_tokens: int
    left_seconds: float | None
    losses: dict[str, float | None]
    trends: dict[str, list[float]]
    held_out: dict[str, float | None]
    invalid_token_share: float | None
    invalid_token_step: int | None
    tokens_per_second: float | None
    mfu: float | None
    seconds: dict[str, float]
    memory_gib: dict[str, float]
    slowest: tuple[int, float] | None
    consumed: dict[str, int]
    planned: dict[str, float]
    checkpoint: dict[str, Any]
    counts: dict[str, int]
    events: list[dict[str, Any]]
    unread: str


def status_of(lines: RunLines, now: float) -> Status:
    """Reads a run's lines as of ``now``, seconds since 1970."""
    steps = [line for line in lines.steps if "loss" in line]  # one that was passed has none
    last = lines.steps[-1] if lines.steps else {}
    whole = steps[-1] if steps else {}
    speed, tokens, total = whole.get("tokens_per_second"), last.get("tokens", 0), lines.plan.get("total_tokens", 0)
    names = [name for name in whole if name.split("/")[0] in ("loss", "task")]
    return Status(
        run=str(lines.run),
        state=_state(lines, now),
        silent_seconds=None if lines.time is None else max(0.0, now - lines.time),
        phase=last.get("phase", ""),
        step=last.get("step", 0),
        steps=lines.plan.get("steps", 0),
        tokens=tokens,
        total_tokens=total,
        left_seconds=(total - tokens) / speed if speed and total else None,
        losses={name: whole[name] for name in names},
        trends={name: [line[name] for line in steps if line.get(name) is not None] for name in names},
        held_out=_below(lines.held_out, "validation/"),
        invalid_token_share=lines.invalid.get("invalid_token_share"),
        invalid_token_step=lines.invalid.get("step"),
        tokens_per_second=speed,
        mfu=whole.get("mfu"),
        seconds=_below(whole, "seconds/"),
        memory_gib={name.removesuffix("_gib"): value for name, value in _below(whole, "memory/").items()},
        slowest=(whole["slowest_rank"], whole["slowest_over_median"]) if "slowest_rank" in whole else None,
        consumed=_below(last, "tokens/"),
        planned=_planned(lines.plan.get("phases", []), tokens),
        checkpoint=lines.checkpoint,
        counts=dict(lines.counts),
        events=list(lines.events),
        unread=str(lines.unread),
    )


def _below(line: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}


def _state(lines: RunLines, now: float) -> str:
    if not lines.steps and not lines.counts:
        return "empty"
    if lines.end is not None:
        return _ENDS[lines.end]
    times = [line["time"] for line in lines.steps if "time" in line]
    if lines.time is None or len(times) < 2:
        return "moves" if lines.time is not None and now - lines.time < 600 else "silent"
    usual = (times[-1] - times[0]) / (len(times) - 1)
    return "moves" if now - lines.time < max(60.0, _SILENCES * usual) else "silent"


def _planned(phases: Sequence[dict[str, Any]], tokens: int) -> dict[str, float]:
    """Tokens of each source that the mixture asks for in the first ``tokens``."""
    planned: dict[str, float] = {}
    before = 0
    for phase in phases:
        share = min(1.0, max(0.0, (tokens - before) / max(1, phase["last_token"] - before)))
        for name, count in phase["sources"].items():
            planned[name] = planned.get(name, 0) + share * count
        before = phase["last_token"]
    return {name: count for name, count in planned.items() if count}


def status_text(runs: Sequence[Status]) -> str:
    """One run in full, several as a table."""
    if len(runs) == 1:
        return one_run(runs[0])
    heading = ["run", "state", "phase", "step", "tokens", "of", "left", "loss", "held out", "tokens/s", "MFU"]
    return table([[*heading, "skipped"], *(_row(run) for run in runs)], left=3)


def _row(run: Status) -> list[str]:
    return [
        Path(run.run).name,
        run.state,
        run.phase,
        f"{run.step:,}",
        short_count(run.tokens),
        short_count(run.total_tokens) if run.total_tokens else "?",
        "" if run.left_seconds is None or run.state == "done" else duration(run.left_seconds),
        number_cell(run.losses, "loss"),
        number_cell(run.held_out, "loss"),
        "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        "" if run.mfu is None else f"{run.mfu:.1%}",
        str(run.counts.get("skipped", 0)),
    ]


def number_cell(numbers: dict[str, Any], name: str) -> str:
    """A number to three places; nothing where it was not measured, and words where it was None: not finite."""
    if name not in numbers:
        return ""
    return "not finite" if numbers[name] is None else f"{numbers[name]:.3f}"


def one_run(run: Status) -> str:
    """A screen of 80 columns."""
    head = f"{run.run}  {run.state}"
    if run.silent_seconds is not None:
        head += f", last line {duration(run.silent_seconds)} ago"
    if run.state == "empty":
        return f"{head}: nothing is measured yet" + (f"; {METRICS}: {run.unread}" if run.unread else "")
    lines = [head, f"phase {run.phase or '?'}, step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")]
    if run.unread:
        lines.append(f"{METRICS}: {run.unread}")
    if run.total_tokens:
        share = run.tokens / run.total_tokens
        done, open_ = signs(_DONE, _PLAIN_DONE)
        bar = done * int(share * 30) + open_ * (30 - int(share * 30))
        left = "" if run.left_seconds is None or run.state == "done" else f", {duration(run.left_seconds)} left"
        lines.append(f"{bar} {share:.1%}: {short_count(run.tokens)} of {short_count(run.total_tokens)} tokens{left}")
    speed = [] if run.tokens_per_second is None else [f"{run.tokens_per_second:,.0f} tokens/s"]
    speed += [f"MFU {run.mfu:.1%}"] if run.mfu is not None else []
    speed += [f"memory {name} {value:.2f} GiB" for name, value in run.memory_gib.items()]
    lines.append(", ".join(speed))
    if run.seconds:
        parts = ", ".join(f"{name.replace('_', ' ')} {spent:.3g}" for name, spent in run.seconds.items())
        lines.append(f"seconds a step: {parts}")
    if run.slowest:
        lines.append(f"slowest rank: {run.slowest[0]}, {run.slowest[1]:.2f} x the median's own computation")
    lines += ["", _losses(run)]
    if run.invalid_token_share is not None:
        when = "" if run.invalid_token_step == run.step else f", after step {run.invalid_token_step:,}"
        lines.append(f"invalid tokens: {run.invalid_token_share:.1%}{when}")
    if run.consumed:
        lines += ["", _data(run)]
    at = run.checkpoint.get("step")
    lines += ["", f"last checkpoint: step {at:,}" if at else "no checkpoint is told of"]
    lines += [_event(event) for event in run.events]
    return "\n".join(lines)


def _losses(run: Status) -> str:
    rows = [["loss, nats a token", "trend", "now", "held out"]]
    for name in run.losses:
        label = "all" if name == "loss" else name.removeprefix("loss/").replace("task/", "task ")
        rows.append([label, _trend(run.trends[name]), number_cell(run.losses, name), number_cell(run.held_out, name)])
    return table(rows, left=2)


def _trend(values: Sequence[float]) -> str:
    """Means of equal runs of values, as bars from the least to the largest."""
    count = min(_TREND, len(values))
    cuts = [len(values) * at // count for at in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    low, span = (min(means), (max(means) - min(means)) or 1.0) if means else (0.0, 1.0)
    bars = signs(_BARS, _PLAIN_BARS)
    return "".join(bars[int((mean - low) / span * (len(bars) - 1))] for mean in means)


def _data(run: Status) -> str:
    rows = [["data", "tokens", "share", "plan so far", "share"]]
    total, planned = sum(run.consumed.values()) or 1, sum(run.planned.values()) or 1
    for name, count in run.consumed.items():
        wanted = run.planned.get(name)
        plan = ["", ""] if wanted is None else [short_count(wanted), f"{wanted / planned:.1%}"]
        rows.append([name, short_count(count), f"{count / total:.1%}", *plan])
    return table(rows)


def _event(event: dict[str, Any]) -> str:
    name, when = event["event"], event.get("time")
    at = "" if when is None else time.strftime(" (%Y-%m-%d %H:%M)", time.localtime(when))
    if name == "skipped":
        loss, norm = (number_cell(event, name) for name in ("loss", "gradient_norm"))
        name = f"skipped: loss {loss}, gradient norm {norm}"
    elif name == ROLLED_BACK:
        name = f"went back to step {event['to']:,}; steps {event['first']:,} to {event['last']:,} are passed"
    return f"step {event['step']:,}: {name}{at}"


def show(folders: list[Path], live: bool, as_json: bool, every_seconds: float) -> None:
    """Prints where runs stand: once, or again and again until all of them have ended or Ctrl-C."""
    runs = runs_in(folders)
    if as_json:
        statuses = [asdict(status_of(lines, time.time())) for lines in runs]
        for status in statuses:
            del status["trends"]
        print(json.dumps(statuses, indent=2))
        return
    if not live:
        print(status_text([status_of(lines, time.time()) for lines in runs]))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, screen=False) as screen:
        try:
            while True:
                statuses = [status_of(lines, time.time()) for lines in runs]
                screen.update(Text(status_text(statuses), no_wrap=True), refresh=True)
                if all(status.state in _ENDS.values() for status in statuses):
                    return
                time.sleep(every_seconds)
                for lines in runs:
                    lines.read()
        except KeyboardInterrupt:
            return
