"""What `predict fit` found, as text, as JSON, and as a folder with pictures and a page."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.files import write_json, write_text
from megatron_music.pages import render
from megatron_music.pages.plots import png_address
from megatron_music.scaling.counts import COUNTED
from megatron_music.scaling.fit import BOOTSTRAP, Interval90, Law, Prediction
from megatron_music.scaling.fit_pictures import draw
from megatron_music.tables import short_count, table

_PAGE = Path(__file__).parent / "page" / "fit.html"
FLOPS = "C = 6 N D, N and D as counted here"
"""The convention of the compute-optimal frontier; FLOPs of runs by ``recipe.flops`` stand beside their points."""


def show(prediction: Prediction, out: Path | None, is_json: bool) -> None:
    """Prints what was found, and writes it into the folder ``out``: fit.json, pictures, fit.html."""
    if out is not None:
        write(prediction, out)
    if is_json:
        print(json.dumps(as_json(prediction), indent=2))
        return
    print("\n\n".join(sections(prediction)))
    if out is not None:
        print(f"\nwritten: {out / 'fit.html'}, fit.json and pictures beside it")


def write(prediction: Prediction, out: Path) -> None:
    """Writes ``fit.json``, pictures of every loss, and ``fit.html`` with all of it, which fetches nothing."""
    content = as_json(prediction)
    pictures = {law.name: list(map(png_address, draw(law, prediction, out))) for law in prediction.laws}
    write_json(out / "fit.json", content)
    headings = {"laws": LAW_HEADINGS, "frontier": FRONTIER_HEADINGS, "points": POINT_HEADINGS}
    page = render(_PAGE, fit=content, words=words(prediction), pictures=pictures, headings=headings)
    write_text(out / "fit.html", page)


def budgets(law: Law, prediction: Prediction) -> np.ndarray:
    """Decades of FLOPs from the largest point to the largest target, and each target's own."""
    last = float(np.max(6 * law.parameters * law.tokens))
    asked = [6 * target.parameters * target.tokens for target in prediction.targets]
    first, most = np.ceil(np.log10(last)), np.log10(max([*asked, 100 * last]))
    return np.unique([*10.0 ** np.arange(first, most), *asked])


def words(prediction: Prediction) -> dict[str, Any]:
    """The rows of all tables, as they are printed and stand on the page."""
    fitted = [law for law in prediction.laws if law.fit is not None]
    return {
        "laws": [_law_row(law) for law in fitted],
        "targets": [target.name for target in prediction.targets],
        "predictions": {law.name: [_prediction(law, target.name) for target in prediction.targets] for law in fitted},
        "verdicts": {law.name: verdict(law) for law in prediction.laws},
        "frontiers": {law.name: _frontier_rows(law, prediction) for law in fitted},
        "points": {law.name: _point_rows(law) for law in prediction.laws},
        "formulas": {law.name: formula(law) for law in fitted},
        "counted": COUNTED[prediction.counted],
        "bootstrap": f"{BOOTSTRAP}; {prediction.resamples:,} resamples, seed {prediction.seed}",
        "flops": FLOPS,
    }


LAW_HEADINGS = ["loss", "points", "E", "alpha", "beta", "A", "B", "noise", "left out, mean", "worst"]
FRONTIER_HEADINGS = ["FLOPs", "parameters", "90%", "tokens", "90%", "tokens a parameter", "loss", "90%"]
POINT_HEADINGS = ["point", "parameters", "tokens", "FLOPs", "loss", "law", "off", "left out"]


def sections(prediction: Prediction) -> Iterator[str]:
    """What was found in sections, each a heading with a table."""
    shown = words(prediction)
    if shown["targets"] and shown["predictions"]:
        rows = [["loss", *shown["targets"]], *([name, *cells] for name, cells in shown["predictions"].items())]
        yield _section("Prediction, nats a token, with 90% intervals", table(rows))
    lines = [f"{name}: {text}" for name, text in shown["verdicts"].items()]
    yield _section("Verdict", "\n".join(lines))
    if prediction.warnings:
        yield _section("Warnings", "\n".join(prediction.warnings))
    if shown["laws"]:
        yield _section(
            "L(N, D) = E + A / N^alpha + B / D^beta, with 90% intervals", table([LAW_HEADINGS, *shown["laws"]])
        )
    for name, rows in shown["frontiers"].items():
        yield _section(f"Compute-optimal, {name} ({FLOPS})", table([FRONTIER_HEADINGS, *rows], left=0))
    for name, rows in shown["points"].items():
        yield _section(f"Points, {name}", table([POINT_HEADINGS, *rows]))
    yield f"N: {shown['counted']}, or as the table counts them."
    if shown["laws"]:
        yield f"Intervals: {shown['bootstrap']}."


def verdict(law: Law) -> str:
    """In words, whether the data can tell."""
    if law.fit is None:
        return f"the data can't tell: {'; '.join(law.doubts)}"
    if law.doubts:
        return f"fitted, but not to decide by: {'; '.join(law.doubts)}"
    return "the points hold all five numbers"


def formula(law: Law) -> str:
    """The law with its numbers."""
    e, a, alpha, b, beta = (law.numbers[name].value for name in ("E", "A", "alpha", "B", "beta"))
    return f"{e:.3f} + {a:.4g} / N^{alpha:.3f} + {b:.4g} / D^{beta:.3f}"


def _section(heading: str, body: str) -> str:
    return f"{heading}\n{'-' * len(heading)}\n{body}"


def _law_row(law: Law) -> list[str]:
    off = np.abs(law.left_out)
    numbers = [_with_interval(law.numbers[name], ".3g") for name in ("E", "alpha", "beta")]
    numbers += [f"{law.numbers[name].value:.4g}" for name in ("A", "B")]
    return [law.name, str(len(law.points)), *numbers, f"{law.noise:.2%}", f"{off.mean():.2%}", f"{off.max():.2%}"]


def _with_interval(interval: Interval90, form: str) -> str:
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _prediction(law: Law, target: str) -> str:
    return _with_interval(law.predictions[target], ".3f")


def _frontier_rows(law: Law, prediction: Prediction) -> list[list[str]]:
    flops = budgets(law, prediction)
    rows = []
    for budget, best in zip(flops, law.frontier(flops), strict=True):
        n, d, loss = best["parameters"], best["tokens"], best["loss"]
        rows.append([
            f"{budget:.2e}", short_count(n.value), _range(n), short_count(d.value), _range(d),
            f"{d.value / n.value:.3g}", f"{loss.value:.3f}", f"{loss.low:.3f} to {loss.high:.3f}",
        ])  # fmt: skip
    return rows


def _range(interval: Interval90) -> str:
    return f"{short_count(interval.low)} to {short_count(interval.high)}"


def _point_rows(law: Law) -> list[list[str]]:
    fitted = law.fit.loss(law.parameters, law.tokens)[0] if law.fit is not None else None
    rows = []
    for at, point in enumerate(law.points):
        loss = point.losses[law.name]
        told = ["", "", ""]
        if fitted is not None:
            told = [f"{fitted[at]:.4f}", f"{loss / fitted[at] - 1:+.2%}", f"{law.left_out[at]:+.2%}"]
        flops = "" if point.flops is None else f"{point.flops:.2e}"
        rows.append([point.name, short_count(point.parameters), short_count(point.tokens), flops, f"{loss:.4f}", *told])
    return rows


def as_json(prediction: Prediction) -> dict[str, Any]:
    """All that was found, in plain types: numbers with intervals as value, low and high."""
    return {
        "format": "megatron-music fit",
        "version": 1,
        "form": "L(N, D) = E + A / N^alpha + B / D^beta",
        "parameters_counted": COUNTED[prediction.counted],
        "flops": FLOPS,
        "bootstrap": {"kind": BOOTSTRAP, "resamples": prediction.resamples, "seed": prediction.seed, "interval": 0.9},
        "targets": [asdict(target) for target in prediction.targets],
        "losses": {law.name: _law_json(law, prediction) for law in prediction.laws},
        "warnings": prediction.warnings,
    }


def _law_json(law: Law, prediction: Prediction) -> dict[str, Any]:
    content: dict[str, Any] = {
        "told": law.fit is not None and not law.doubts,
        "verdict": verdict(law),
        "doubts": law.doubts,
        "points": [_point_json(law, at) for at in range(len(law.points))],
    }
    if law.fit is None:
        return content
    flops = budgets(law, prediction)
    frontier = [
        {"flops": float(budget)} | {name: asdict(interval) for name, interval in best.items()}
        for budget, best in zip(flops, law.frontier(flops), strict=True)
    ]
    return content | {
        "numbers": {name: asdict(interval) for name, interval in law.numbers.items()},
        "noise": law.noise,
        "condition": law.condition,
        "left_out": {"mean": float(np.mean(np.abs(law.left_out))), "worst": float(np.max(np.abs(law.left_out)))},
        "predictions": {name: asdict(interval) for name, interval in law.predictions.items()},
        "frontier": frontier,
    }


def _point_json(law: Law, at: int) -> dict[str, Any]:
    point = law.points[at]
    content = {"name": point.name, "parameters": point.parameters, "tokens": point.tokens, "flops": point.flops}
    content["loss"] = point.losses[law.name]
    if law.fit is not None:
        content["law"] = float(law.fit.loss(point.parameters, point.tokens)[0, 0])
        content["left_out"] = float(law.left_out[at])
    return content
