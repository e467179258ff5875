"""Pictures of a plan: the learning rate and the mixture over tokens.

Phases are drawn equally wide, with the tokens at their boundaries: the last one is often a hundredth of the run.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_music.cluster.plan import Plan
from megatron_music.pages.plots import COLOURS, draw_png
from megatron_music.recipe.phases import PhaseSpan, learning_rate_at, phase_spans
from megatron_music.tables import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TINTS = 0.0, 0.45, 0.7
"""Shares of white, for sources of one task."""
_POINTS = 200


def draw(plan: Plan, folder: Path) -> list[Path]:
    """Writes ``learning_rate.png`` and ``mixture.png`` into ``folder``; returns their paths."""
    spans = phase_spans(plan.recipe)
    drawn = []
    for name, height, draw_one in (("learning_rate", 2.8, _learning_rate), ("mixture", 4.2, _mixture)):

        def draw_phases(axes: "Axes", draw_one=draw_one) -> None:
            draw_one(axes, plan, spans)
            _phases(axes, spans)
            axes.figure.suptitle(plan.recipe.name, x=0.01, ha="left", fontsize=10)

        drawn.append(draw_png(Path(folder) / f"{name}.png", height, draw_phases))
    return drawn


def _phases(axes: "Axes", spans: list[PhaseSpan]) -> None:
    """The tokens at which phases begin and end, and their names with context and batch above them."""
    axes.set_xlim(0, len(spans))
    axes.set_xticks(range(len(spans) + 1), [short_count(tokens) for tokens in (0, *(s.last_token for s in spans))])
    axes.set_xlabel("tokens (phases drawn equally wide)", fontsize=9)
    for index, span in enumerate(spans):
        if index:
            axes.axvline(index, color="0.6", linewidth=0.8, linestyle=":")
        text = f"{span.phase.name}\n{span.phase.context_tokens:,} tokens x {span.phase.batch_sequences:,}"
        axes.annotate(text, (index + 0.5, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                      fontsize=8, xytext=(0, 3), textcoords="offset points")  # fmt: skip


def _learning_rate(axes: "Axes", plan: Plan, spans: list[PhaseSpan]) -> None:
    progress = np.linspace(0, 1, _POINTS)
    for index, span in enumerate(spans):
        rates = [learning_rate_at(span.phase.learning_rate, share) for share in progress]
        axes.plot(index + progress, rates, color=COLOURS[5], linewidth=2)
    # Ticks at the rates that the recipe names: those between them mean nothing.
    named = {rate for span in spans for rate in (span.phase.learning_rate.start, span.phase.learning_rate.end)}
    axes.set_yticks(sorted(named), [f"{rate:g}" for rate in sorted(named)])
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_ylim(0, 1.1 * max(named))
    axes.set_ylabel("learning rate", fontsize=9)


def _mixture(axes: "Axes", plan: Plan, spans: list[PhaseSpan]) -> None:
    parts = list(dict.fromkeys(part for shares in plan.shares for part in shares))
    colours = _colours(parts)
    for index, shares in enumerate(plan.shares):
        below = 0.0
        for part in (part for part in parts if part in shares):
            share = float(shares[part])
            axes.bar(index, share, 1, below, align="edge", color=colours[part], edgecolor="white", linewidth=0.8)
            if share >= 0.025:
                axes.text(index + 0.5, below + share / 2, f"{' + '.join(part)}  {share:.1%}", ha="center", va="center",
                          fontsize=7)  # fmt: skip
            below += share
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 5), [f"{share:.0%}" for share in np.linspace(0, 1, 5)])
    units = {span.phase.mixture.unit for span in spans} if plan.stocks is None else {"tokens"}
    axes.set_ylabel(f"share of the {' or '.join(sorted(units))}", fontsize=9)


def _colours(parts: list[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[float, ...]]:
    """A colour for every source: one hue for those whose names begin alike, lighter for each further one."""
    from matplotlib.colors import to_rgb

    hues: dict[str, int] = {}
    seen: dict[str, int] = {}
    colours = {}
    for part in parts:
        stem = next((stem for stem in hues if _begins_alike(stem, part[0])), part[0])
        hue = hues.setdefault(stem, len(hues))
        white = _TINTS[seen.get(stem, 0) % len(_TINTS)]
        seen[stem] = seen.get(stem, 0) + 1
        colours[part] = tuple(white + (1 - white) * value for value in to_rgb(COLOURS[hue % len(COLOURS)]))
    return colours


def _begins_alike(one: str, other: str) -> bool:
    """Whether two sources are of one task, by the first word of their names."""
    return one.split("_")[0] == other.split("_")[0]
