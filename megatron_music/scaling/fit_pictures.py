"""Pictures of a law: the loss over tokens by size, out to the targets; and the compute-optimal frontier."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_music.pages.plots import COLOURS, draw_png
from megatron_music.scaling.fit import Law, Prediction, widest
from megatron_music.tables import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND, _TARGET = COLOURS[0], COLOURS[6]
_CURVES = 6
_POINTS = 120


def draw(law: Law, prediction: Prediction, folder: Path) -> list[Path]:
    """Writes ``NAME_loss.png``, and ``NAME_frontier.png`` where there is a law; returns their paths."""
    name = re.sub(r"[^\w.-]+", "_", law.name)
    drawn = [draw_png(Path(folder) / f"{name}_loss.png", 4.6, lambda axes: _losses(axes, law, prediction))]
    if law.fit is not None:
        drawn.append(
            draw_png(Path(folder) / f"{name}_frontier.png", 4.6, lambda axes: _frontier(axes, law, prediction))
        )
    return drawn


def _losses(axes: "Axes", law: Law, prediction: Prediction) -> None:
    from matplotlib import colormaps

    sizes = np.unique(law.parameters)
    low, high = np.log(sizes[0]), np.log(sizes[-1])
    shade = lambda size: colormaps["viridis"](0.9 * (np.log(size) - low) / max(high - low, 1e-9))  # noqa: E731
    for size, tokens, loss in zip(law.parameters, law.tokens, law.losses, strict=True):
        axes.plot(tokens, loss, "o", color=shade(size), markersize=6, markeredgecolor="white", zorder=3)
    if law.fit is not None:
        most = max([*law.tokens, *(target.tokens for target in prediction.targets)])
        tokens = np.geomspace(law.tokens.min() / 1.5, most * 1.5, _POINTS)
        for size in sizes[np.unique(np.linspace(0, len(sizes) - 1, _CURVES).round().astype(int))]:
            curve = law.fit.loss(np.full(_POINTS, size), tokens)[0]
            own = law.tokens[law.parameters == size]
            measured = (tokens >= own.min() / 1.1) & (tokens <= own.max() * 1.1)
            axes.plot(tokens[measured], curve[measured], color=shade(size), linewidth=1.6)
            axes.plot(tokens, curve, color=shade(size), linewidth=0.8, linestyle=":")
            axes.annotate(short_count(size), (tokens[-1], curve[-1]), xytext=(4, 0), textcoords="offset points",
                          fontsize=8, va="center", color=shade(size))  # fmt: skip
        _targets(axes, law, prediction, tokens)
        floor = law.numbers["E"]
        axes.axhspan(floor.low, floor.high, color="0.92", zorder=0)
        axes.axhline(floor.value, color="0.6", linewidth=0.8)
        axes.annotate("E, 90%", (tokens[0], floor.value), xytext=(2, 3), textcoords="offset points", fontsize=8,
                      color="0.4")  # fmt: skip
    else:
        for point in law.points:
            axes.annotate(point.name, (point.tokens, point.losses[law.name]), xytext=(6, 4),
                          textcoords="offset points", fontsize=8)  # fmt: skip
    _logarithmic(axes.set_xscale, axes.xaxis)
    axes.set_xlabel("training tokens", fontsize=9)
    axes.set_ylabel("loss, nats a token", fontsize=9)
    axes.set_title(f"{law.name}: points, the law by size (parameters at the right), dotted beyond what was measured"
                   if law.fit is not None else f"{law.name}: points, no law", fontsize=10, loc="left")  # fmt: skip


def _targets(axes: "Axes", law: Law, prediction: Prediction, tokens: np.ndarray) -> None:
    for target in prediction.targets:
        loss = law.predictions[target.name]
        size = np.full(len(tokens), target.parameters)
        low, high = widest(*(one.laws.loss(size, tokens) for one in law.resamples))
        axes.fill_between(tokens, low, high, color=_TARGET, alpha=0.13, linewidth=0)
        axes.plot(tokens, law.fit.loss(size, tokens)[0], color=_TARGET, linewidth=1.2, linestyle="--")
        errors = [[loss.value - loss.low], [loss.high - loss.value]]
        axes.errorbar(target.tokens, loss.value, yerr=errors, fmt="D", color=_TARGET, capsize=4, zorder=4)
        text = f"{target.name}: {loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f})"
        axes.annotate(text, (target.tokens, loss.low), xytext=(-2, -5), textcoords="offset points", fontsize=8.5,
                      ha="right", va="top", color=_TARGET)  # fmt: skip


def _frontier(axes: "Axes", law: Law, prediction: Prediction) -> None:
    spent = 6 * law.parameters * law.tokens
    asked = [6 * target.parameters * target.tokens for target in prediction.targets]
    flops = np.geomspace(spent.min() / 2, max([*asked, 100 * spent.max()]) * 2, _POINTS)
    low, high = widest(*(one.laws.optimum(flops)[0] for one in law.resamples))
    axes.fill_between(flops, low, high, color=_BAND, alpha=0.3, linewidth=0, label="90% of resamples")
    axes.plot(flops, law.fit.optimum(flops)[0][0], color=_BAND, linewidth=2, label="best parameters")
    axes.plot(spent, law.parameters, "o", color="0.35", markersize=5, markeredgecolor="white", label="points")
    for target, budget in zip(prediction.targets, asked, strict=True):
        axes.plot(budget, target.parameters, "D", color=_TARGET)
        axes.annotate(target.name, (budget, target.parameters), xytext=(0, -7), textcoords="offset points", ha="center",
                      va="top", fontsize=8.5, color=_TARGET)  # fmt: skip
    axes.set_xscale("log")
    _logarithmic(axes.set_yscale, axes.yaxis)
    axes.set_xlabel("FLOPs, C = 6 N D", fontsize=9)
    axes.set_ylabel("parameters", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")
    axes.set_title(f"{law.name}: the parameters that make the least loss of a budget", fontsize=10, loc="left")


def _logarithmic(set_scale, axis) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    set_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axis.set_minor_formatter(NullFormatter())
