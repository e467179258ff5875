"""Tables of what a recipe does, phase by phase and source by source, with the corpus where there is one."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from megatron_music.corpus.blend import Stock, epoch_limits, token_shares, tokens_given
from megatron_music.recipe.mixture import members, solve
from megatron_music.recipe.phase import LearningRate, Phase
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.tables import short_count, table

_LARGEST_DENOMINATOR = 999
"""Shares that come from sizes have long fractions, which tell nobody anything."""


def phase_table(recipe: Recipe) -> str:
    """Steps (numbered from 1, as in ``metrics.jsonl``), tokens, context, batch and learning rate of every phase."""
    rows = [["phase", "learning rate", "steps", "tokens", "context", "batch"]]
    for span in phase_spans(recipe):
        phase = span.phase
        steps = f"{span.first_step + 1:,}-{span.last_step:,}" if span.steps else "none"
        tokens = short_count(span.last_token - span.first_token)
        rows.append([phase.name, _rate(phase.learning_rate), steps, tokens, f"{phase.context_tokens:,}",
                     _batch(phase)])  # fmt: skip
    return table(rows, left=2)


def _batch(phase: Phase) -> str:
    """Sequences of a step, from the first to the last where they grow."""
    return " to ".join(f"{sequences:,}" for sequences in dict.fromkeys((phase.batch_sizes[0], phase.batch_sequences)))


def _rate(rate: LearningRate) -> str:
    if rate.shape == "constant":
        return f"{rate.start:g}"
    return f"{rate.start:g} to {rate.end:g}, {rate.shape}"


def mixture_table(recipe: Recipe, stocks: Mapping[str, Stock] | None) -> str:
    """What every source gives in every phase and in the whole run.

    Epochs are passes over what the corpus holds of the source. Without ``stocks`` there are shares alone, and sources
    that are split by size stand in one row.
    """
    if stocks is None:
        return _shares_alone(recipe)
    spans, shares = phase_spans(recipe), token_shares(recipe, stocks)
    limits = epoch_limits(recipe)
    rows = [["phase", "source", "share", "", "tokens", "hours", "epochs", "so far", "most"]]
    total = dict.fromkeys(recipe.source_names, Fraction(0))
    for span, of_phase, given in zip(spans, shares, tokens_given(spans, shares), strict=True):
        for name, share in of_phase.items():
            total[name] += given[name]
            so_far = f"{float(total[name] / stocks[name].tokens):.2f}"
            rows.append([span.phase.name, name, *_share(share), *_amounts(given[name], stocks[name]), so_far, ""])
    tokens = spans[-1].last_token
    for name, given in total.items():
        most = f"{float(limits[name]):g}" if name in limits else "any"
        rows.append(["all", name, *_share(given / tokens), *_amounts(given, stocks[name]), "", most])
    return table(rows, left=2)


def _shares_alone(recipe: Recipe) -> str:
    rows = [["phase", "source", "share", "", "unit"]]
    for phase in recipe.phases:
        for part, share in solve(phase.mixture, recipe.groups).items():
            rows.append([phase.name, " + ".join(part), *_share(share), phase.mixture.unit])
    return table(rows, left=2)


def _share(share: Fraction) -> list[str]:
    exact = str(share) if share.denominator <= _LARGEST_DENOMINATOR else ""
    return [exact, f"{float(share):.2%}"]


def _amounts(given: Fraction, stock: Stock) -> list[str]:
    """Tokens, hours and epochs that a source gives."""
    hours = f"{float(given / stock.tokens_per_hour):,.1f}" if stock.tokens_per_hour else "-"
    return [short_count(float(given)), hours, f"{float(given / stock.tokens):.2f}"]


def group_table(recipe: Recipe, stocks: Mapping[str, Stock] | None) -> str:
    """Shares of the tokens that groups come to, and the ratios that the recipe names, by phase and in the whole run.

    Without ``stocks`` a phase whose shares depend on the corpus has question marks, and the whole run no column.
    """
    names, columns = _columns(recipe, stocks)
    rules = [rule for phase in recipe.phases for rule in phase.mixture.ratios]
    rows = [["group or ratio, by tokens", *names]]
    for group in dict.fromkeys([*recipe.groups, *(name for rule in rules for name in rule.names)]):
        rows.append([group, *(_group_share(group, shares, recipe) for shares in columns)])
    for sides, each in dict.fromkeys((rule.names, each) for rule in rules for each in rule.each or (None,)):
        label = ":".join(sides) + (f" in {each}" if each else "")
        rows.append([label, *(_ratio(sides, each, shares, recipe) for shares in columns)])
    return table(rows)


def _columns(
    recipe: Recipe, stocks: Mapping[str, Stock] | None
) -> tuple[list[str], list[Mapping[str, Fraction] | None]]:
    """Phases and, where all are known, the whole run, with the shares of their sources, or None where not known."""
    names = [phase.name for phase in recipe.phases]
    known = [phase for phase in recipe.phases if stocks is not None or not phase.mixture.needs_corpus]
    solved = token_shares(recipe.model_copy(update={"phases": known}), stocks or {})
    by_phase = {phase.name: shares for phase, shares in zip(known, solved, strict=True)}
    columns: list[Mapping[str, Fraction] | None] = [by_phase.get(name) for name in names]
    if len(known) == len(names):
        spans = phase_spans(recipe)
        given = tokens_given(spans, solved)
        names.append("all")
        columns.append(
            {
                source: sum((of_phase.get(source, Fraction(0)) for of_phase in given), Fraction(0))
                / spans[-1].last_token
                for source in recipe.source_names
            }
        )
    return names, columns


def _group_share(group: str, shares: Mapping[str, Fraction] | None, recipe: Recipe) -> str:
    if shares is None:
        return "?"
    share = sum(shares[name] for name in members(group, list(shares), recipe.groups))
    return f"{float(share):.2%}" if share else "-"


def _ratio(names: Sequence[str], each: str | None, shares: Mapping[str, Fraction] | None, recipe: Recipe) -> str:
    """The sides of a ratio by what they come to, the last of them as 1."""
    if shares is None:
        return "?"
    sources = list(shares) if each is None else members(each, list(shares), recipe.groups)
    sides = [sum(shares[source] for source in members(name, sources, recipe.groups)) for name in names]
    if not all(sides):
        return "-"
    return ":".join(f"{float(side / sides[-1]):.4g}" for side in sides)
