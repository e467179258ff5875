"""How the next id is drawn: guidance, repetition penalty, temperature, top-k, top-p.

The order is the reference program's (transformers' `generate`): guidance and penalty act on log-probabilities over the
whole vocabulary, then the ids that are not allowed fall away, then temperature, top-k and top-p. Of the whole
vocabulary only its normaliser is computed, and that for the penalty alone: no score of an id depends on another id in
any other way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from megatron_music.errors import InputError

SMALLEST_SUM, LARGEST_SUM = 1e-20, 1e30
_OPTIONS = {
    "guidance_first": "--guidance",
    "guidance_rest": "--guidance-after",
    "min_new_tokens": "--min-tokens",
    "max_new_tokens": "--max-tokens",
}
"""Of `generate`, where they are called otherwise than the setting, whose name stands in every song.json."""


@dataclass(frozen=True)
class SamplingSettings:
    """The settings published with YuE are the defaults.

    Attributes:
        temperature: divides the log-probabilities; 0 takes the most probable id.
        top_k: only the k most probable ids are drawn from; 0 is off.
        top_p: only the fewest ids that together reach this probability are drawn from; 1 is off.
        repetition_penalty: factor on the log-probability of ids that are in the context; 1 is off.
        guidance_first: classifier-free guidance scale of the first segment; 1 is off.
        guidance_rest: the same for all further segments.
        min_new_tokens: audio tokens of a segment before it may end.
        max_new_tokens: audio tokens of a segment after which it ends.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.93
    repetition_penalty: float = 1.1
    guidance_first: float = 1.5
    guidance_rest: float = 1.2
    min_new_tokens: int = 100
    max_new_tokens: int = 3000

    def __post_init__(self):
        limits = {
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31),
            "top_p": (1e-6, 1.0),
            "repetition_penalty": (1e-3, 100.0),
            "guidance_first": (0.0, 100.0),
            "guidance_rest": (0.0, 100.0),
            "min_new_tokens": (0, 2**31),
            "max_new_tokens": (2, 2**31),
        }
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), limits[field.name]
            option = option_of(field.name)
            if isinstance(value, bool) or not isinstance(value, int if field.type is int else int | float):
                raise InputError(option, f"{value!r} is not a {field.type.__name__}", "choose a number")
            if not low <= value <= high:
                raise InputError(option, f"{value} is outside {low} to {high}", "choose a value in this range")
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                "--min-tokens",
                f"{self.min_new_tokens} is more than --max-tokens {self.max_new_tokens}",
                "lower it or raise the other",
            )


def option_of(setting: str) -> str:
    """The option of `generate` that a field of ``SamplingSettings`` comes from."""
    return _OPTIONS.get(setting, f"--{setting.replace('_', '-')}")


def normalisers(logits_RV: torch.Tensor) -> torch.Tensor:
    """Logarithms of the sums of exponentials, (R,): what ``torch.logsumexp`` gives, in fewer passes over the rows."""
    # Any number near the largest logit keeps the sums within float32; that of some ids is found sooner.
    peak = logits_RV[:, ::64].max()
    sums = (logits_RV - peak).exp_().sum(dim=-1)
    if not SMALLEST_SUM < sums.min() <= sums.max() < LARGEST_SUM:
        return torch.logsumexp(logits_RV, dim=-1)
    return sums.log_() + peak


def guide(conditional: torch.Tensor, unconditional: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Classifier-free guidance: ``u + scale * (c - u)`` of log-probabilities c and u."""
    return conditional if unconditional is None else unconditional + scale * (conditional - unconditional)


def penalise(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Makes the ids in the boolean mask ``seen`` less probable (Keskar et al. 2019, arXiv 1909.05858)."""
    if penalty == 1:
        return scores
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def choose(scores: torch.Tensor, allowed: Sequence[range], settings: SamplingSettings, drawn: float) -> int:
    """One of the allowed ids by its score, one for each of them in order, after temperature, top-k and top-p.

    Args:
        scores: on the CPU, so that a seed means the same on every device.
        drawn: from [0, 1); where in the cumulated probability the id lies, the most probable one first.
    """
    if settings.temperature == 0:
        return id_at(allowed, int(scores.argmax()))
    count = len(scores) if settings.top_k == 0 else min(settings.top_k, len(scores))
    values, places = torch.topk(scores / settings.temperature, count)
    reached = torch.softmax(values, dim=-1).cumsum(-1).double()
    # An id stays as long as the more probable ones before it do not reach top_p; the first one always stays.
    kept = 1 + int((reached[:-1] < settings.top_p).sum())
    place = int((reached[:kept] <= drawn * reached[kept - 1]).sum())
    return id_at(allowed, int(places[min(place, kept - 1)]))


def id_at(allowed: Sequence[range], place: int) -> int:
    """The id at a place in the order of ``allowed``."""
    for ids in allowed:
        if place < len(ids):
            return ids[place]
        place -= len(ids)
    raise IndexError(place)
