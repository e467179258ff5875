"""Points of a scaling law: what runs of some parameters and tokens came to, from run folders or from a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_music.cluster.run_lines import has_ended, read_measured, run_folders
from megatron_music.errors import InputError
from megatron_music.progress import console
from megatron_music.recipe.phases import phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.counts import parameters_of, run_flops
from megatron_music.scaling.ladder import LADDER, read_ladder
from megatron_music.scaling.point import Options, Point
from megatron_music.scaling.tables import read_table
from megatron_music.tables import short_count
from megatron_music.training.events import METRICS
from megatron_music.vocabulary.vocabulary import Vocabulary

TAIL = 0.05
"""The loss of a run without held-out songs is the mean over this last share of its tokens."""


def read_points(paths: Sequence[Path], options: Options) -> list[Point]:
    """The points of run folders, folders of runs, ladders and tables (.csv, .tsv), in their order.

    Raises InputError for what holds none, a run that has not ended, and a table that can't be read.
    """
    if options.loss not in ("auto", "held_out", "training"):
        raise InputError("--loss", f"{options.loss!r} is not known", "choose auto, held_out or training")
    points: list[Point] = []
    runs: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            runs += _runs_of(path, options.unfinished)
        else:
            points += read_table(path, options)
    read = [_Run.read(run) for run in runs]
    held_out = options.loss == "held_out" or (options.loss == "auto" and all(run.held_out for run in read))
    for run in read:
        points += run.points(options, held_out)
    return points


def _runs_of(folder: Path, unfinished: bool) -> list[Path]:
    """The runs of the ladder that the folder holds (where ``unfinished``: that began), itself, or the runs below it."""
    if (folder / LADDER).is_file():
        runs = [rung.folder for rung in read_ladder(folder)]
        begun = [run for run in runs if (run / METRICS).is_file()]
        missing = next((run for run in runs if run not in begun), None)
        if missing is not None and not (unfinished and begun):
            raise InputError(missing, "this rung has not been trained", "train it, or do without it: --unfinished")
        return begun
    found = run_folders(folder)
    if not found:
        raise InputError(folder, f"holds no run: no {METRICS} in it or right below it", "name run folders or a table")
    return found


@dataclass(frozen=True)
class _Run:
    """A run as its folder tells it: its lines of steps and of held-out losses, oldest first."""

    folder: Path
    recipe: Recipe
    trained: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    ended: bool

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        found = read_measured(folder / METRICS)
        if found.unread.count:
            console.print(f"{folder / METRICS}: {found.unread} and is passed over")
        trained = [line for line in found.lines if line.get("learning_rate") is not None and "loss" in line]
        held_out = [line for line in found.lines if "validation/loss" in line]
        return cls(folder, Recipe.load(folder / "recipe.yaml"), trained, held_out, has_ended(folder))

    def points(self, options: Options, held_out: bool) -> list[Point]:
        """The run at its end, and at the ends of phases where those are asked for."""
        spans = [span for span in phase_spans(self.recipe) if span.steps]
        last = self._last_step(held_out)
        if not (self.ended or options.unfinished):
            done = short_count(self.trained[-1]["tokens"] if self.trained else 0)
            what = f"is unfinished: {done} of {short_count(spans[-1].last_token)} tokens are done"
            raise InputError(self.folder, what, "leave it out until it has ended, or take it as it is: --unfinished")
        steps = [span.last_step for span in spans if span.last_step < last] if options.phase_ends else []
        found = [self._point(step, held_out, step_at(spans, step - 1).tokens_after) for step in [*steps, last]]
        if "loss" not in found[-1].losses:
            what = f"the last {_called(held_out)}, after step {last}, is not finite: the run has diverged"
            raise InputError(self.folder / METRICS, what, "leave the run out")
        size = Vocabulary.load(self.recipe.vocabulary).padded_size
        return [
            replace(
                point,
                parameters=parameters_of(self.recipe.network, size, options.counted),
                flops=run_flops(self.recipe, size) if point.tokens == spans[-1].last_token else None,
            )
            for point in found
            if point is found[-1] or point.has_decayed
        ]

    def _last_step(self, held_out: bool) -> int:
        lines = self.held_out if held_out else self.trained
        if not lines or not lines[-1]["step"]:
            raise InputError(self.folder / METRICS, f"holds no {_called(held_out)} of a trained step",
                             "leave the run out, or choose the other --loss")  # fmt: skip
        return lines[-1]["step"]

    def _point(self, step: int, held_out: bool, tokens: int) -> Point:
        before = [line for line in self.trained if line["step"] <= step]
        if held_out:
            line = next((line for line in reversed(self.held_out) if line["step"] <= step), {})
            losses = _losses([line], "validation/")
            watch = self.recipe.watch.validation
            on = f"{', '.join(watch.source) if watch else 'held-out songs'} of {self.recipe.corpus}"
        else:
            losses = _losses([line for line in before if line["tokens"] >= (1 - TAIL) * tokens] or before[-1:], "")
            on = f"the training songs of {self.recipe.corpus}"
        rates = [line["learning_rate"] for line in before]
        return Point(
            name=self.folder.name + ("" if step == self._last_step(held_out) else f" at {short_count(tokens)}"),
            parameters=0,
            tokens=tokens,
            losses=losses,
            learning_rate_left=rates[-1] / max(rates) if rates and max(rates) else None,
            measured_on=on,
        )


def _called(held_out: bool) -> str:
    return "held-out loss" if held_out else "loss"


def _losses(lines: Sequence[dict[str, Any]], prefix: str) -> dict[str, float]:
    """Mean nats by name: ``loss``, and by kind those of ``loss/vocal``, ... that every line has.

    Those that were no finite numbers, as of an update that was skipped, are left out; nothing where all are.
    """
    names = [
        name for name in (lines[0] if lines else ()) if name == f"{prefix}loss" or name.startswith(f"{prefix}loss/")
    ]
    found = {}
    for name in names:
        values = [line[name] for line in lines if line.get(name) is not None]
        if values and all(name in line for line in lines):
            found[name.removeprefix(prefix).removeprefix("loss/")] = sum(values) / len(values)
    return found
