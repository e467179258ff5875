"""The plots of a report: violins, win rates, losses by kind, and radars."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_music.evaluation.report.tables import heading, number
from megatron_music.evaluation.result import Evaluation, Listening, SystemResult
from megatron_music.pages.plots import COLOURS, Plot, draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_FOR_VIOLIN = 5
"""Songs below which a violin would be drawn of next to nothing; then there are dots alone."""
FEWEST_AXES = 3
_DOTS = 200


def violin(evaluation: Evaluation, measure: str) -> Plot | None:
    """The songs' values of a measure by system; None where no song has one."""
    systems = [system for system in evaluation.systems if system.values(measure)]
    if not systems:
        return None
    about = evaluation.measures[measure]
    words = [_spread_words(system, measure) for system in systems]
    address = draw_svg(
        lambda figure: _violins(figure, systems, measure, heading(about)), 1.6 + 1.3 * max(len(systems), 3), 3.2
    )
    return Plot(about.title, f"Violins of {heading(about)} by system. {'; '.join(words)}.", address)


def _violins(figure: "Figure", systems: Sequence[SystemResult], measure: str, label: str) -> None:
    axes = figure.add_subplot()
    chance = np.random.default_rng(0)  # only sets dots apart
    for place, system in enumerate(systems):
        values = np.array(system.values(measure))
        colour = COLOURS[place % len(COLOURS)]
        if len(values) >= FEWEST_FOR_VIOLIN and np.ptp(values) > 0:
            drawn = axes.violinplot([values], [place], widths=0.8, showextrema=False)
            for body in drawn["bodies"]:
                body.set(facecolor=colour, alpha=0.45, edgecolor=colour)
        shown = values if len(values) <= _DOTS else chance.choice(values, _DOTS, replace=False)
        axes.plot(place + chance.uniform(-0.08, 0.08, len(shown)), shown, ".", color="0.35", markersize=3, alpha=0.6)
        quartiles = system.quartiles(measure)
        axes.plot([place, place], [quartiles.low, quartiles.high], color="0.1", linewidth=4, solid_capstyle="butt")
        axes.plot(place, quartiles.median, "o", color="white", markeredgecolor="0.1", markersize=6)
    _name_columns(axes, [system.name for system in systems])
    axes.set_ylabel(label)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def _spread_words(system: SystemResult, measure: str) -> str:
    quartiles = system.quartiles(measure)
    spread = f"median {number(quartiles.median)}, quartiles {number(quartiles.low)} and {number(quartiles.high)}"
    return f"{system.name}: {spread}, {quartiles.count} song{'s' * (quartiles.count != 1)}"


def win_matrix(listening: Listening, aspect: str) -> Plot | None:
    """How often the row's system was found better than the column's; None where nobody was asked."""
    rates = {(one.system, one.against): one for one in listening.win_rates.get(aspect, [])}
    systems = [name for name in listening.systems if any(name in pair for pair in rates)]
    if not systems:
        return None
    words = [
        f"{one.system} against {one.against} {one.rate.value:.0%} ({one.rate.low:.0%} to {one.rate.high:.0%})"
        for one in rates.values()
    ]

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        values = np.array([[_rate(rates, one, other) for other in systems] for one in systems])
        axes.imshow(np.ma.masked_invalid(values), cmap="BrBG", vmin=-0.25, vmax=1.25)  # pale enough for black words
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                rate = rates[systems[row], systems[column]].rate
                told = f"{value:.0%}\n{100 * rate.low:.0f}\N{EN DASH}{100 * rate.high:.0f}"
                axes.text(column, row, told, ha="center", va="center", fontsize=8)
        _name_columns(axes, systems)
        axes.set_yticks(range(len(systems)), [_short(name) for name in systems])
        axes.set_xlabel("against")
        axes.spines[:].set_visible(False)

    side = 1.6 + 0.85 * len(systems)
    return Plot(aspect, f"Win rates, {aspect}: {'; '.join(words)}.", draw_svg(draw, side + 0.4, side))


def _rate(rates: dict, one: str, other: str) -> float:
    found = rates.get((one, other))
    return found.rate.value if found else np.nan


def losses(evaluation: Evaluation) -> Plot | None:
    """The models' held-out losses by kind of token; None where no model has any."""
    by_system = {system.name: losses_of(system) for system in evaluation.systems}
    by_system = {name: found for name, found in by_system.items() if found}
    kinds = list(dict.fromkeys(kind for found in by_system.values() for kind in found))
    if not kinds:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        width = 0.8 / len(by_system)
        for at, (name, found) in enumerate(by_system.items()):
            places = [n - 0.4 + (at + 0.5) * width for n, kind in enumerate(kinds) if kind in found]
            heights = [found[kind] for kind in kinds if kind in found]
            bars = axes.bar(places, heights, width * 0.92, color=COLOURS[at % len(COLOURS)], label=_short(name))
            axes.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=7)
        _name_columns(axes, kinds)
        axes.set_ylabel("nats a token")
        axes.legend(frameon=False, fontsize=8)

    words = [f"{name}: " + ", ".join(f"{kind} {loss:.2f}" for kind, loss in found.items())
             for name, found in by_system.items()]  # fmt: skip
    address = draw_svg(draw, 2.2 + max(len(kinds) * max(len(by_system) * 0.5, 0.9), 4), 3.0)
    return Plot("losses by kind", f"Held-out loss in nats a token by kind. {'; '.join(words)}.", address)


def losses_of(system: SystemResult) -> dict[str, float]:
    """The numbers under ``losses`` of a system's model."""
    found = system.model.get("losses")
    found = found if isinstance(found, dict) else {}
    return {kind: float(loss) for kind, loss in found.items() if isinstance(loss, int | float)}


def listener_radar(listening: Listening) -> Plot | None:
    """Mean win rates by aspect; None for fewer than three aspects."""
    aspects = [aspect for aspect in listening.aspects if listening.scores.get(aspect)]
    values = {name: [listening.scores[aspect].get(name) for aspect in aspects] for name in listening.systems}
    return _radar("win rate by aspect", aspects, values, "Mean win rate against the other systems")


def score_radar(evaluation: Evaluation) -> Plot | None:
    """How often a song of a system has the better score than one of another; None for fewer than three scores."""
    systems = evaluation.systems
    values: dict[str, list[float | None]] = {system.name: [] for system in systems}
    titles = []
    for name, measure in evaluation.measures.items():
        by_system = {system.name: np.array(system.values(name)) for system in systems}
        if measure.better is None or sum(len(found) > 0 for found in by_system.values()) < 2:
            continue
        titles.append(measure.title)
        sign = 1 if measure.better == "higher" else -1
        for system, own in by_system.items():
            others = np.concatenate([found for other, found in by_system.items() if other != system])
            better = np.sign(sign * (own[:, None] - others)) / 2 + 0.5
            values[system].append(float(better.mean()) if better.size else None)
    return _radar("automatic scores", titles, values, "Share of comparisons with other systems' songs that are won")


def _radar(title: str, names: list[str], values: dict[str, list[float | None]], what: str) -> Plot | None:
    values = {system: found for system, found in values.items() if any(value is not None for value in found)}
    if len(names) < FEWEST_AXES or not values:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot(projection="polar")
        angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
        for at, (system, found) in enumerate(values.items()):
            # What is unknown breaks the line.
            closed = [np.nan if value is None else value for value in [*found, found[0]]]
            axes.plot([*angles, angles[0]], closed, color=COLOURS[at % len(COLOURS)], marker="o", markersize=3,
                      label=_short(system))  # fmt: skip
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        axes.set_ylim(0, 1)
        axes.set_yticks([0.25, 0.5, 0.75], ["", "0.5", ""], color="0.4", fontsize=7)
        axes.set_xticks(angles, names)
        axes.spines["polar"].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=3)

    told = {system: [(name, value) for name, value in zip(names, found, strict=True) if value is not None]
            for system, found in values.items()}  # fmt: skip
    words = [
        f"{system}: " + ", ".join(f"{name} {value:.2f}" for name, value in pairs) for system, pairs in told.items()
    ]
    return Plot(title, f"{what}. {'; '.join(words)}.", draw_svg(draw, 5.2, 4.6))


def _name_columns(axes: "Axes", names: Sequence[str]) -> None:
    crowded = max(map(len, names)) > 12 or len(names) > 8
    axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=20 if crowded else 0,
                    ha="right" if crowded else "center")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}\N{HORIZONTAL ELLIPSIS}"
