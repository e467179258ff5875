"""What the work behind a recipe found to fail: warnings, each with where it was told.

From the slide deck on YuE, MERT and ChatMusician [deck], and the YuE paper, https://arxiv.org/abs/2503.08638 [paper].
They are for recipes that make songs (stage 1): those with a source of conditional music. Sources are known by the names
of their tasks (``lyrics_to_song_en`` is one of ``lyrics_to_song``), or by groups of these names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_music.recipe.flops import parameter_count
from megatron_music.recipe.mixture import members
from megatron_music.recipe.phase import Phase
from megatron_music.recipe.recipe import Recipe

Shares = Mapping[tuple[str, ...], Fraction]
"""Of a phase's tokens, by source, or by sources whose shares only the corpus tells apart."""

SPEECH_SHARE = Fraction(1, 11)
"""Music to speech is 10 to 1 [deck]."""
UNCONDITIONAL_SHARE = Fraction(1, 4)
"""Conditional to unconditional is 3 to 1 [deck]."""
REFERENCE_SHARE = Fraction(1, 3)
"""In annealing lyrics-to-song to in-context documents is 2 to 1 [deck]."""
LARGE_PARAMETERS = 5 * 10**9
"""Without embeddings: unconditional pretraining worked at 0.5B and 2B and failed at 7B, which has 5.5B [deck]."""
_TASKS = {
    "songs": ("lyrics_to_song", "cot"),
    "reference": ("reference", "icl"),
    "speech": ("speech",),
    "single track": ("mix",),
    "unconditional": ("unconditional", "mix", "dual_track"),
}


@dataclass(frozen=True)
class Lesson:
    """Something that a recipe does against what was learned: where, what came of it, and who says so."""

    where: str
    what: str
    source: str


def forgotten_lessons(recipe: Recipe, shares: Sequence[Shares]) -> list[Lesson]:
    """What the recipe should not do, given every phase's shares of the tokens."""
    if not any(_share(recipe, of_phase, "songs") or _share(recipe, of_phase, "reference") for of_phase in shares):
        return []
    found = _of_the_run(recipe, shares)
    for phase, of_phase in zip(recipe.phases, shares, strict=True):
        found += _of_a_phase(recipe, phase, of_phase)
    return found + _of_learning_rates(recipe)


def _share(recipe: Recipe, shares: Shares, task: str) -> Fraction:
    """Share of a task in a phase; sources that are known only together count where all of them are of the task."""
    sources = recipe.source_names
    named = {source for name in _TASKS[task] for source in members(name, sources, recipe.groups)}
    return sum((share for part, share in shares.items() if named.issuperset(part)), Fraction(0))


def _anneals(phase: Phase) -> bool:
    return phase.learning_rate.end < phase.learning_rate.start


def _of_the_run(recipe: Recipe, shares: Sequence[Shares]) -> list[Lesson]:
    found = []
    if not any(_share(recipe, of_phase, "speech") for of_phase in shares):
        found.append(Lesson("all phases", "no speech at all: speech is the key to following lyrics", "deck, lessons"))
    without_words = all(_share(recipe, of_phase, "unconditional") == 1 for of_phase in shares[:-1])
    if len(shares) > 1 and without_words and parameter_count(recipe.network, 0) >= LARGE_PARAMETERS:
        what = "unconditional music alone before the last phase: it worked at 0.5B and 2B and failed at 7B"
        found.append(Lesson("all phases", what, "deck, lessons"))
    return found


def _of_a_phase(recipe: Recipe, phase: Phase, shares: Shares) -> list[Lesson]:
    task = {name: _share(recipe, shares, name) for name in _TASKS}
    found = []

    def warn(what: str, source: str) -> None:
        found.append(Lesson(phase.name, what, source))

    if _anneals(phase):
        for name in ("speech", "unconditional"):
            if task[name]:
                warn(f"{name} data while the learning rate falls: it was dropped there", "paper, annealing")
        if task["reference"] > REFERENCE_SHARE:
            warn(f"in-context documents are {_percent(task['reference'])}: CoT to ICL was 2:1", "deck, annealing")
    else:
        if task["reference"]:
            warn("in-context documents (ICL) before annealing: too early, they give a copy machine", "deck, lessons")
        if task["speech"] > SPEECH_SHARE:
            what = f"speech is {_percent(task['speech'])}, above 1/11: too much gives a rap machine"
            warn(what, "deck, mixture and lessons")
        if task["unconditional"] > UNCONDITIONAL_SHARE:
            what = f"unconditional data is {_percent(task['unconditional'])}, above 1/4: it hurts the lyrics"
            warn(what, "deck, mixture and lessons")
    is_longer = phase.context_tokens > recipe.phases[0].context_tokens
    if is_longer and task["single track"] and not _anneals(phase):
        warn("single-track unconditional data at the longer context: it was dropped there", "paper, third phase")
    return found


def _of_learning_rates(recipe: Recipe) -> list[Lesson]:
    found = []
    for before, phase in zip(recipe.phases, recipe.phases[1:], strict=False):
        end, start = before.learning_rate.end, phase.learning_rate.start
        if end == start:
            continue
        changed = [name for name, field in (("context", "context_tokens"), ("batch", "batch_sequences"))
                   if getattr(before, field) != getattr(phase, field)]  # fmt: skip
        also = f" as the {' and the '.join(changed)} changes" if changed else ""
        what = f"the learning rate jumps from {end:g} to {start:g}{also}: the phases joined at one rate"
        found.append(Lesson(phase.name, what, "deck, phases"))
    return found


def _percent(share: Fraction) -> str:
    return f"{float(share):.1%}"
