"""A comparison as a folder: JSON, pictures, and one page with the pictures in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_music.files import write_json, write_text
from megatron_music.pages import render
from megatron_music.pages.plots import COLOURS, draw_png, png_address
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.comparison import CAVEATS, MEASURES, codec_rows, reconstruction_rows, verdict_rows
from megatron_music.scaling.curve import loss_curves
from megatron_music.scaling.side_by_side import ComparedRun, notes, runs_rows
from megatron_music.tables import short_count
from megatron_music.vocabulary.kinds import COARSE_GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, RUNS_FORMAT = "comparison.html", "megatron-music runs side by side"
_TEMPLATE = Path(__file__).parent / "page" / "comparison.html"
_COLOURS = [COLOURS[at] for at in (5, 6, 2, 3, 1, 0)]
"""Those that are easiest to tell from white first, and no yellow: lines are thin."""
_STYLES = "-", "--", "-.", ":"


def write_comparison(comparison: dict[str, Any], out: Path) -> Path:
    """Writes the pictures and the page of a bake-off into ``out``, where its JSON already lies; returns the page."""
    codecs, track = comparison["codecs"], comparison["tracks"][0]
    pictures = [draw_png(out / "rate.png", 4.2, lambda axes: _rate(axes, codecs, track)),
                draw_png(out / "bands.png", 3.6, lambda axes: _bands(axes, codecs, track))]  # fmt: skip
    if any("language_model" in codec for codec in codecs.values()):
        pictures.append(draw_png(out / "loss.png", 3.6, lambda axes: _bits(axes, codecs)))
    tables = [("Verdict", "The deck's table, in brackets, below these codecs. `go below` is the class' limit at this "
               "size of codebook; guessing is what the same tokens cost a model that knows nothing.",
               verdict_rows(codecs), 2),
              ("Codecs", "Bits a second as the codes are stored, and as often as each code was used.",
               codec_rows(codecs), 2)]  # fmt: skip
    explained = "; ".join(f"{title}: {meaning}" for title, meaning in MEASURES.values())
    note = f"In the mean over songs. {explained}; LSD: log-spectral distance by band in Hz, in dB."
    tables += [(f"Reconstruction, {name}", note if number == 0 else "", reconstruction_rows(codecs, name), 1)
               for number, name in enumerate(comparison["tracks"])]  # fmt: skip
    missing = [f"{one['measure']}: {one['why']}; {one['how']}" for one in comparison["missing"]]
    songs = f"{len(comparison['songs'])} songs at {comparison['sample_rate']:,} Hz"
    return _page(out, "Codecs side by side", songs, tables, pictures, missing, CAVEATS)


def write_runs(runs: Sequence[ComparedRun], out: Path) -> Path:
    """Writes ``comparison.json``, a picture of the losses and the page of runs side by side; returns the page."""
    content = {"format": RUNS_FORMAT, "version": 1, "runs": [run.as_dict() for run in runs]}
    write_json(out / "comparison.json", content)
    curves = [(run.name, curve) for run in runs if set(run.losses) & set(COARSE_GROUPS)
              for curve in loss_curves(Path(run.run), Recipe.load(Path(run.run) / "recipe.yaml"))[0]]  # fmt: skip
    kinds = list(dict.fromkeys(curve.kind for _, curve in curves))
    pictures = [draw_png(out / f"{kind}.png", 4.2, lambda axes, kind=kind: _losses(axes, curves, kind))
                for kind in kinds]  # fmt: skip
    return _page(
        out, "Runs side by side", f"{len(runs)} runs", [("Runs", "", runs_rows(runs), 2)], pictures, [], notes(runs)
    )


def _page(out: Path, title: str, subtitle: str, tables, pictures: list[Path], missing, caveats) -> Path:
    addresses = [(path.stem, png_address(path)) for path in pictures]
    values = {"title": title, "subtitle": subtitle, "tables": tables, "pictures": addresses}
    write_text(out / PAGE, render(_TEMPLATE, **values, missing=missing, caveats=caveats))
    return out / PAGE


def _rate(axes: "Axes", codecs: dict[str, Any], track: str) -> None:
    for number, (name, codec) in enumerate(codecs.items()):
        colour, distance = _COLOURS[number % len(_COLOURS)], codec["tracks"][track]["measures"]["mel_distance_db"]
        rates = [codec["entropy_bits_per_second"] / 1000, codec["bits_per_second"] / 1000]
        axes.plot(rates, [distance] * 2, "-", color=colour, linewidth=1)
        axes.plot(rates[:1], [distance], "o", color=colour)
        axes.plot(rates[1:], [distance], "o", color=colour, markerfacecolor="white")
        axes.annotate(name, (rates[1], distance), xytext=(7, 0), textcoords="offset points", fontsize=9, va="center")
    axes.margins(x=0.15, y=0.2)
    axes.set_xlabel("kbit/s: filled by entropy of the codes, hollow as stored", fontsize=9)
    axes.set_ylabel("mel distance, dB", fontsize=9)
    axes.set_title(f"What bits buy ({track}): nearer to the lower left is better", fontsize=10, loc="left")


def _bands(axes: "Axes", codecs: dict[str, Any], track: str) -> None:
    bands = list(dict.fromkeys(band for codec in codecs.values() for band in codec["tracks"][track]["bands"]))
    width = 0.8 / len(codecs)
    for number, (name, codec) in enumerate(codecs.items()):
        places = [at - 0.4 + (number + 0.5) * width for at in range(len(bands))]
        heights = [codec["tracks"][track]["bands"].get(band, 0.0) for band in bands]
        axes.bar(places, heights, width * 0.92, color=_COLOURS[number % len(_COLOURS)], label=name)
    axes.set_xticks(range(len(bands)), [f"{band} Hz" for band in bands])
    axes.margins(y=0.25)
    axes.set_ylabel("log-spectral distance, dB", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False, ncols=4, loc="upper right")
    axes.set_title(f"What is lost where ({track})", fontsize=10, loc="left")


def _bits(axes: "Axes", codecs: dict[str, Any]) -> None:
    trained = {name: codec["language_model"] for name, codec in codecs.items() if "language_model" in codec}
    for at, (name, model) in enumerate(trained.items()):
        colour = _COLOURS[list(codecs).index(name) % len(_COLOURS)]
        axes.barh(at, model["guessing_bits_per_second"], color=colour, alpha=0.25)
        axes.barh(at, model["bits_per_second"], color=colour)
        axes.annotate(f"{model['bits_per_second']:.0f}", (model["bits_per_second"], at), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(trained)), list(trained))
    axes.invert_yaxis()
    axes.set_xlabel("bits a second of audio: held-out loss; pale, of a model that guesses", fontsize=9)
    axes.set_title("What the language model still has to be told", fontsize=10, loc="left")


def _losses(axes: "Axes", curves: list, kind: str) -> None:
    from matplotlib.ticker import FuncFormatter

    of_kind = [(name, curve) for name, curve in curves if curve.kind == kind]
    for number, (name, curve) in enumerate(of_kind):
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number // len(_COLOURS) % len(_STYLES)]
        axes.plot(curve.tokens_N, curve.loss_N, style, color=colour, linewidth=1.6, label=name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.set_xlabel("tokens", fontsize=9)
    axes.set_ylabel("nats a token", fontsize=9)
    axes.legend(fontsize=8.5, frameon=False, loc="upper right")
    axes.set_title(f"Held-out loss, {kind}", fontsize=10, loc="left")
