"""`predict compare LADDER_OR_RUN...`: runs side by side, from their folders alone, whether they have ended or not."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_music.cluster.run_lines import RunLines, runs_in
from megatron_music.cluster.status import number_cell, status_of
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.comparison import invalid_cell
from megatron_music.scaling.counts import parameters_of
from megatron_music.scaling.ladder import LADDER, read_ladder
from megatron_music.tables import short_count, table
from megatron_music.training.events import METRICS

NOT_STARTED = "not started"


@dataclass(frozen=True)
class ComparedRun:
    """A run in the comparison.

    Attributes:
        state: ``not started`` (a ladder's), or as `status` tells it; ``done`` alone means that the losses are final.
        parameters: in its layers, without both embeddings.
        tokens, planned_tokens: consumed, and of the whole recipe.
        losses: held out, nats a token, the last that were measured: ``all``, and by kind; None for one that was no
            finite number.
        invalid_token_step: after which the run measured its share of invalid tokens last.
        unread: which lines of its metrics can't be read, in words.
    """

    name: str
    run: str
    state: str
    parameters: int
    tokens: int
    planned_tokens: int
    losses: dict[str, float | None] = field(default_factory=dict)
    invalid_token_share: float | None = None
    invalid_token_step: int | None = None
    tokens_per_second: float | None = None
    unread: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All that there is, for JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_runs(folders: Sequence[str | Path]) -> list[ComparedRun]:
    """Runs, folders of runs, and ladders, in this order; each run once.

    Raises InputError for a folder that is none of these, and where no run has begun.
    """
    found: dict[Path, ComparedRun] = {}
    for folder in map(Path, folders):
        for one in _of_ladder(folder) if (folder / LADDER).is_file() else map(_of_run, runs_in([folder])):
            found.setdefault(Path(one.run).resolve(), one)
    if all(one.state == NOT_STARTED for one in found.values()):
        raise InputError(", ".join(map(str, folders)), "no run has begun", "train one of its recipes first")
    return list(found.values())


def _of_ladder(folder: Path) -> list[ComparedRun]:
    return [
        _of_run(RunLines(rung.folder), rung.name)
        if (rung.folder / METRICS).is_file()
        else ComparedRun(rung.name, str(rung.folder), NOT_STARTED, rung.parameters, 0, rung.tokens)
        for rung in read_ladder(folder)
    ]


def _of_run(lines: RunLines, name: str | None = None) -> ComparedRun:
    recipe = Recipe.load(lines.run / "recipe.yaml")
    status = status_of(lines, time.time())
    return ComparedRun(
        name=name or lines.run.name,
        run=str(lines.run),
        state=status.state,
        parameters=parameters_of(recipe.network, 0),
        tokens=status.tokens,
        planned_tokens=status.total_tokens or sum(phase.tokens for phase in recipe.phases),
        losses=held_out_losses(lines),
        invalid_token_share=status.invalid_token_share,
        invalid_token_step=status.invalid_token_step,
        tokens_per_second=status.tokens_per_second,
        unread=status.unread or None,
    )


def held_out_losses(lines: RunLines) -> dict[str, float | None]:
    """The last held-out losses of a run by kind, ``all`` first; empty where none was measured, None for no number."""
    losses = {}
    for name, value in lines.held_out.items():
        head, _, kind = name.removeprefix("validation/").partition("/")
        if name.startswith("validation/") and head == "loss":
            losses[kind or "all"] = value
    return losses


def runs_table(runs: Sequence[ComparedRun]) -> str:
    """Runs side by side for a terminal."""
    return "\n".join([table(runs_rows(runs), left=2), *notes(runs)])


def runs_rows(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """A row of cells for each run, below the headings."""
    kinds = list(dict.fromkeys(kind for run in runs for kind in run.losses))
    rows = [["run", "state", "parameters", "tokens", "of", *kinds, "invalid", "tokens/s"]]
    for run in runs:
        losses = [number_cell(run.losses, kind) for kind in kinds]
        invalid = invalid_cell(run.invalid_token_share, run.invalid_token_step)
        speed = "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}"
        counts = [short_count(count) for count in (run.parameters, run.tokens, run.planned_tokens)]
        rows.append([run.name, run.state, *counts, *losses, invalid, speed])
    return rows


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What keeps the numbers from being compared as they stand."""
    told = ["losses: held out, nats a token; parameters: without both embeddings"]
    if any(run.invalid_token_share is not None for run in runs):
        told.append("invalid tokens: of the few samples that a run takes as it trains; `predict gate` takes more")
    unfinished = [run.name for run in runs if run.state != "done"]
    if unfinished:
        told.append(f"not done, so that their losses are not final: {', '.join(unfinished)}")
    told += [f"{run.run}/{METRICS}: {run.unread}" for run in runs if run.unread]
    without = [run.name for run in runs if not run.losses and run.state != NOT_STARTED]
    if without:
        told.append(f"no held-out loss (`watch.validation` in the recipe): {', '.join(without)}")
    return told
