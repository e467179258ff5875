"""What a language model makes of a codec's codes: loss by second of audio, invalid tokens, and what that comes to.

A loss in nats a token does not compare between codecs: one of half the frames may pay twice for each. Nats a second of
audio do: the held-out loss of each kind of audio token, by how many of them the held-out songs have a second.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_music.cluster.run_lines import RunLines
from megatron_music.cluster.status import status_of
from megatron_music.corpus.indexed import prefix_file
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.files import read_json
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.contenders import Contender
from megatron_music.scaling.side_by_side import held_out_losses
from megatron_music.scaling.thresholds import Limit, Thresholds
from megatron_music.vocabulary.kinds import AUDIO_GROUPS, AUDIO_KINDS, LOSS_GROUPS, Kind

Verdict = Literal["learns", "does not learn", "open"]
VERDICTS: dict[str, Verdict] = {"good": "learns", "bad": "does not learn", "open": "open"}


@dataclass(frozen=True)
class HeldOut:
    """Held-out songs of a run: audio tokens of each kind, and seconds of audio."""

    tokens: dict[Kind, int]
    seconds: float


def code_losses(path: Path, one: Contender) -> dict[str, Any]:
    """``class`` and its ``limits``; where a run is named also ``language_model`` and ``verdict``.

    Args:
        path: of the bake-off's file, for errors.

    Raises InputError where the run has no held-out loss yet, or was trained on codes of another codec.
    """
    thresholds = Thresholds.load()
    tokens = one.entry.tokens or _class_of(path, one, thresholds)
    limit = thresholds.loss_limit(one.range, tokens)
    invalid = thresholds.measures["invalid"]
    about = {"class": tokens, "limits": {"loss": _limits(limit), "invalid": _limits(invalid)}}
    if one.entry.run is None:
        return about
    where = f"{path}: codecs.{one.name}.run"
    model = _language_model(where, one)
    judged = [limit.judge(Interval(value=model["nats_per_token"]))]
    if "invalid_token_share" in model:
        judged.append(invalid.judge(Interval(value=model["invalid_token_share"])))
    verdict = "bad" if "bad" in judged else "good" if judged == ["good", "good"] else "open"
    return about | {"language_model": model, "verdict": VERDICTS[verdict]}


def _class_of(path: Path, one: Contender, thresholds: Thresholds) -> str:
    try:
        return thresholds.class_of(one.range)
    except InputError as error:
        mend = f"add `class`: {' or '.join(thresholds.loss.classes)}"
        raise InputError(f"{path}: codecs.{one.name}", error.what, mend) from None


def _limits(limit: Limit) -> dict[str, Any]:
    return {name: value for name, value in limit.model_dump().items() if value is not None}


def _language_model(where: str, one: Contender) -> dict[str, Any]:
    run = one.entry.run
    if not (run / "recipe.yaml").is_file():
        raise InputError(where, f"{run} is not a run", "name the folder of a run, or take it out")
    lines, recipe = RunLines(run), Recipe.load(run / "recipe.yaml")
    status, losses = status_of(lines, 0.0), held_out_losses(lines)
    if recipe.watch.validation is None or not losses:
        what = f"{run} has no held-out loss"
        mend = "wait for it" if recipe.watch.validation else "add `watch.validation` to its recipe and train again"
        raise InputError(where, what, mend)
    if any(losses.get(group, 0.0) is None for group in AUDIO_GROUPS):
        raise InputError(where, f"the last held-out loss of {run} is not finite: it has diverged", "name another run")
    held_out = _held_out(where, recipe, one)
    nats = {
        group: losses[group] * sum(held_out.tokens.get(kind, 0) for kind in LOSS_GROUPS[group])
        for group in AUDIO_GROUPS
        if group in losses
    }
    tokens = sum(held_out.tokens.get(kind, 0) for group in nats for kind in LOSS_GROUPS[group])
    by_second = sum(nats.values()) / held_out.seconds
    found = {
        "run": str(run),
        "state": status.state if status.state in ("done", "stopped") else "running",
        "tokens": status.tokens,
        "losses": losses,
        "nats_per_token": sum(nats.values()) / tokens,
        "nats_per_second": by_second,
        "bits_per_second": by_second / math.log(2),
        "tokens_per_second": tokens / held_out.seconds,
        "guessing_bits_per_second": tokens / held_out.seconds * math.log2(one.range.codebook_size),
    }
    if status.invalid_token_share is not None:
        found |= {name: getattr(status, name) for name in ("invalid_token_share", "invalid_token_step")}
    return found


def _held_out(where: str, recipe: Recipe, one: Contender) -> HeldOut:
    """What the run's held-out sources hold; checked to be codes of this codec."""
    tokens: dict[Kind, int] = {}
    seconds = 0.0
    for source in recipe.watch.validation.source:
        path = prefix_file(recipe.corpus / source, ".json")
        about = read_json(path)
        codec = about.get("codec") or {}
        if codec.get("name", one.range.name) != one.range.name:
            raise InputError(where, f"was trained on {codec['name']} codes, not {one.range.name}", "name another run")
        fitted = codec.get("fingerprint")
        if fitted and one.weights is not None and fitted != one.weights:
            raise InputError(where, f"was trained on codes of another {one.range.name} codec", "name another run")
        if not about.get("seconds"):
            raise InputError(path, "does not tell the seconds of its audio", "build the source again")
        seconds += about["seconds"]
        for name, count in about["tokens_by_kind"].items():
            if (kind := Kind[name.upper()]) in AUDIO_KINDS:
                tokens[kind] = tokens.get(kind, 0) + count
    if not tokens:
        raise InputError(where, "its held-out sources hold no audio tokens", "name a run on songs")
    return HeldOut(tokens, seconds)
