"""`predict gate`: go, no-go or not yet for a predictor run, with the reasons, from its folder alone.

Losses come from ``metrics.jsonl``; all else is measured on the newest complete checkpoint, exported to a temporary
folder. The run may train meanwhile: nothing is written into its folder.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.cluster.run_lines import RunLines
from megatron_music.corpus.indexed import prefix_file
from megatron_music.errors import InputError
from megatron_music.evaluation.bigram import BIGRAM_TOKENS, fit_bigram
from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.model import Effort, measure
from megatron_music.files import read_json
from megatron_music.generation.models import check_device, refuse_stage_2
from megatron_music.progress import console
from megatron_music.recipe.flops import parameter_count
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.curve import RESTORE, LossCurve, loss_curves
from megatron_music.scaling.newest import newest_exported
from megatron_music.scaling.thresholds import Thresholds
from megatron_music.scaling.verdict import Report, decide
from megatron_music.tables import short_count
from megatron_music.training.events import METRICS
from megatron_music.training.origin import read_origin
from megatron_music.vocabulary.kinds import COARSE_GROUPS
from megatron_music.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sources:
    """Prefixes of what is measured on; None where the corpus has none."""

    train: Path | None
    held_out: Path | None
    reference: Path | None


def gate(
    run: Path,
    thresholds: Thresholds,
    effort: Effort,
    *,
    budget_tokens: int | None = None,
    corpus: Path | None = None,
    train: str | None = None,
    held_out: str | None = None,
    reference: str | None = None,
) -> Report:
    """Judges a run as it stands.

    Args:
        budget_tokens: in place of the thresholds' tokens a parameter.
        corpus: where the run's corpus lies now, if no longer where the recipe has it.
        train, held_out, reference: names of its sources, in place of those that ``sources_of`` takes.

    Raises:
        InputError: the folder is no run, or one of stage 2; or a source that is named is not there.
    """
    check_device(effort.device)
    if not (run / "recipe.yaml").is_file():
        raise InputError(run, "is not a run: no recipe.yaml", "name the run folder of a recipe")
    recipe = Recipe.load(run / "recipe.yaml")
    origin = read_origin(run)
    corpus = recipe.corpus if corpus is None else corpus
    refuse_stage_2(run, _tasks(run, recipe, corpus))
    before = origin.tokens_in_all if origin else 0
    report = Report(str(run), recipe.name, corpus=str(corpus), tokens_before=before)
    has_moved = not (corpus / "vocabulary.yaml").is_file()
    # A recipe names its vocabulary beside the corpus, which holds a copy.
    words = recipe.vocabulary if has_moved else corpus / "vocabulary.yaml"
    if words.is_file():
        _add_budget(report, recipe, Vocabulary.load(words), thresholds, budget_tokens)
    _add_losses(report, run, recipe)
    if has_moved:
        how = "name the folder where it lies now (--corpus)"
        report.lacks("all measures of the model", f"{corpus} has no vocabulary.yaml: the corpus has moved", how)
    else:
        sources = sources_of(recipe, corpus, train, held_out, reference)
        _add_model(report, run, recipe, corpus, sources, thresholds, effort)
    return decide(report, thresholds)


def _tasks(run: Path, recipe: Recipe, corpus: Path) -> set[str | None]:
    """What the run trains on: the tasks of its sources; where those have moved, of the losses of its last step."""
    about = [read_json(path) for name in recipe.source_names if (path := prefix_file(corpus / name, ".json")).is_file()]
    if about or not (run / METRICS).is_file():
        return {one.get("task") for one in about}
    names = [name for line in RunLines(run).steps for name in line]
    return {name.removeprefix("task/") for name in names if name.startswith("task/")}


def _add_budget(
    report: Report, recipe: Recipe, vocabulary: Vocabulary, thresholds: Thresholds, budget_tokens: int | None
) -> None:
    """What follows from the network and the codec: size, budget, class and the limit of its losses."""
    codec = vocabulary.codec()
    report.parameters = parameter_count(recipe.network, vocabulary.padded_size)
    report.budget_tokens = budget_tokens or round(thresholds.budget.tokens_per_parameter * report.parameters)
    report.budget_source = "--budget" if budget_tokens else thresholds.budget.source
    report.codec = {"name": codec.name, "codebook_size": codec.codebook_size}
    try:
        report.codec["class"] = thresholds.class_of(codec)
        report.loss_limit = thresholds.loss_limit(codec)
    except InputError as error:
        report.lacks("limits of losses", f"{error.where} {error.what}", error.mend)


def sources_of(
    recipe: Recipe, corpus: Path, train: str | None = None, held_out: str | None = None, reference: str | None = None
) -> Sources:
    """The sources of a corpus that a run is measured on.

    Held out: the first of ``watch.validation`` and ``watch.invalid_tokens``, then of those that no phase names, that
    holds songs, those of the task lyrics_to_song before others. Train: the first of the recipe's of the same task, or
    with songs. Reference: the first of the task reference, those that no phase names before others.
    """
    about = {path.stem: read_json(path) for path in sorted(corpus.glob("*.json")) if path.with_suffix(".bin").is_file()}
    for name in filter(None, (train, held_out, reference)):
        if name not in about:
            raise InputError(corpus, f"has no source {name}", f"choose from {', '.join(about) or 'none'}")
    songs = [name for name in about if any(about[name].get("tokens_by_kind", {}).get(kind) for kind in COARSE_GROUPS)]
    task = {name: about[name].get("task") for name in about}
    trained = [name for name in recipe.source_names if name in songs]
    watched = list(recipe.watch.validation.source) if recipe.watch.validation else []
    watched += [recipe.watch.invalid_tokens.source] if recipe.watch.invalid_tokens else []
    unseen = [name for name in (*watched, *songs) if name in songs and name not in trained]
    if held_out is None:
        unread = [name for name in unseen if task[name] != "reference"]
        held_out = min(unread, key=lambda name: task[name] != "lyrics_to_song", default=None)
    if train is None:
        wanted = "lyrics_to_song" if held_out is None else task[held_out]
        train = min(trained, key=lambda name: task[name] != wanted, default=None)
    if reference is None:
        references = [name for name in songs if task[name] == "reference"]
        reference = min(references, key=lambda name: name in trained, default=None)
    return Sources(*(None if name is None else corpus / name for name in (train, held_out, reference)))


def _add_losses(report: Report, run: Path, recipe: Recipe) -> None:
    """Losses by kind and their slopes, of ``metrics.jsonl``."""
    try:
        curves, unread = loss_curves(run, recipe)
    except InputError as error:
        report.lacks("loss", error.what, error.mend)
        return
    if unread:
        report.lacks("a part of the losses", f"{METRICS}: {unread}", RESTORE)
    report.tokens = report.tokens_before + int(curves[0].tokens_N[-1])
    for curve in curves:
        _add_loss(report, curve)
    if not curves[0].held_out:
        how = "name held-out songs in watch.validation"
        report.lacks("held-out loss", "the run logs none: the losses are of its own training data", how)


def _add_loss(report: Report, curve: LossCurve) -> None:
    where = "held out" if curve.held_out else "training"
    slope = curve.slope()
    line = report.add(f"loss/{curve.kind}", f"loss, {curve.kind}, {where}", curve.last, "nats", report.loss_limit)
    if math.isnan(curve.last.value):
        finite_N = curve.tokens_N[np.isfinite(curve.loss_N)]
        before = f"the last finite one after {short_count(int(finite_N[-1]))} tokens" if len(finite_N) else "none is"
        report.lacks(f"slope/{curve.kind}", f"its losses are not finite ({before})", "find out why the run diverged")
        return
    if slope is None:
        report.lacks(f"slope/{curve.kind}", "fewer than 4 losses in the last doubling of its tokens", "wait for more")
        return
    report.add(f"slope/{curve.kind}", "  a doubling of tokens", slope, "nats")
    # No later than its budget, and no lower than a straight line: curves flatten as they fall.
    doublings = max(0.0, math.log2(max(1, report.budget_tokens) / max(1, report.tokens)))
    line.reach = line.found.value + min(0.0, slope.low) * doublings


def _add_model(
    report: Report,
    run: Path,
    recipe: Recipe,
    corpus: Path,
    sources: Sources,
    thresholds: Thresholds,
    effort: Effort,
) -> None:
    """All that takes the network, on the newest checkpoint."""
    if sources.held_out is None:
        why = f"{corpus} has no source with songs that the run does not train on"
        report.lacks("all measures of the model", why, "build one with split: held_out, or name one (--held-out)")
        return
    try:
        with newest_exported(run, recipe, corpus) as exported:
            report.checkpoint, report.held_out = exported.checkpoint, sources.held_out.name
            report.tokens = report.tokens_before + exported.state.tokens
            console.print(f"measuring {exported.checkpoint} of {run} on {sources.held_out.name}")
            bigram = None
            if sources.train is not None:
                codec = Vocabulary.load(exported.folder / "vocabulary.yaml").codec()
                bigram = fit_bigram([sources.train], codec, most_tokens=BIGRAM_TOKENS, seed=effort.seed)
            found = measure(exported.folder, sources.held_out, bigram, sources.reference, effort)
    except InputError as error:
        report.lacks("all measures of the model", f"{error.where}: {error.what}", error.mend)
        return
    report.model = found
    for lack in found["missing"]:
        report.lacks(lack["measure"], lack["why"], lack["how"])
    if bigram is None:
        report.lacks("gain_over_bigram", "no source of the recipe holds songs", "name one (--train)")
    if sources.reference is not None and sources.reference.name in recipe.source_names:
        report.lacks("copying of unseen songs", f"{sources.reference.name} is trained on",
                     "build a reference source with split: held_out")  # fmt: skip
    _add_measures(report, found, thresholds)


def _add_measures(report: Report, found: dict[str, Any], thresholds: Thresholds) -> None:
    """The lines of what was measured, in the order of the table."""

    def add(name: str, title: str, value: dict[str, Any] | None, unit: str) -> None:
        if value is not None:
            report.add(name, title, _interval(value), unit, thresholds.measures.get(name))

    def parts(of: str, table: dict[str, dict[str, Any]], unit: str) -> None:
        for name, value in table.items():
            report.add(f"{of}/{name}", f"  {name}", _interval(value), unit)

    add("gain_over_bigram", "loss saved against a bigram", found.get("gain_over_bigram"), "share")
    add("order", "loss with frames in another order", found["order"], "nats more")
    add("invalid", "invalid tokens in free samples", found["invalid"], "share")
    parts("invalid", found["invalid_by_position"], "share")
    if following := found.get("following"):
        add("following", "loss with another song's text", following["rise"], "nats more")
        parts("following", following["by_kind"], "nats more")
        parts("following", following["by_position"], "nats more")
        add("following_far", "  from 3,000 audio tokens on", following.get("far"), "nats more")
    if copying := found.get("copying"):
        add("copying", "copied from the reference, excess", copying["copied_excess"], "share")
    if variety := found.get("variety"):
        add("repetition", "repeated groups of codes, excess", variety["repeated_excess"], "share")
        add("hold", "longest hold, times the songs' own", variety["hold_ratio"], "times")
        add("silence", "silent frames, excess", variety.get("silent_excess"), "share")


def _interval(value: dict[str, Any]) -> Interval:
    return Interval(value=value["value"], low=value.get("low"), high=value.get("high"))
