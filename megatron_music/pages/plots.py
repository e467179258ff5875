"""Plots: one palette, figures as SVG that stands in a page itself, and pictures as PNG files."""

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00"
"""Okabe and Ito's, told apart by all kinds of eyes (https://jfly.uni-koeln.de/color/)."""


@dataclass(frozen=True)
class Plot:
    """A picture for a page: its heading, what it shows in words, and its address, which holds the picture itself."""

    title: str
    alt: str
    address: str


def draw_svg(draw: Callable[["Figure"], None], width: float, height: float) -> str:
    """A ``data:`` address of what ``draw`` puts on a figure of so many inches; the same drawing gives the same text.

    Words stay words, in the fonts of who reads, so that names in any script are legible; none is read as mathematics.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # of a figure of its own: pyplot would look for a screen

    settings = {"svg.hashsalt": "megatron-music", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9}
    stream = io.BytesIO()
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts have what matplotlib's lack
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def draw_png(path: Path, height: float, draw: Callable[["Axes"], None]) -> Path:
    """Writes what ``draw`` puts on a pair of axes as a picture of 9.6 x ``height`` inches; returns ``path``."""
    from matplotlib.figure import Figure  # of a figure of its own: pyplot would look for a screen

    figure = Figure(figsize=(9.6, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return path


def png_address(path: Path) -> str:
    """A ``data:`` address of a picture."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
