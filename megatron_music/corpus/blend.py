"""A recipe's mixtures over the sources that are there: shares of the tokens, how long each source lasts, the stream."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from megatron_music.corpus.indexed import prefix_file
from megatron_music.corpus.stream import PhaseData, SampleStream, missing_source
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.recipe.mixture import members, solve
from megatron_music.recipe.phases import PhaseSpan, phase_spans
from megatron_music.recipe.recipe import Recipe


@dataclass(frozen=True)
class Stock:
    """What a corpus holds of one source; ``seconds`` of audio and ``fingerprint`` where its sidecar has them."""

    tokens: int
    documents: int
    seconds: float | None = None
    fingerprint: str | None = None

    @property
    def tokens_per_hour(self) -> Fraction | None:
        """Tokens that an hour of the source's audio came to, texts included."""
        return self.tokens * 3600 / Fraction(self.seconds) if self.seconds else None


def read_stock(corpus: Path, name: str) -> Stock:
    """Reads the sidecar of a source; raises InputError where it is missing, not a sidecar, or of an empty source."""
    path = prefix_file(corpus / name, ".json")
    if not path.is_file():
        raise missing_source(corpus, name)
    about: Any = read_json(path)
    try:
        seconds = about.get("seconds")
        seconds = None if seconds is None else float(seconds)
        stock = Stock(int(about["tokens"]), int(about["documents"]), seconds, about.get("fingerprint"))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(path, "is not the sidecar of a source", "build the source again") from None
    if stock.tokens < 1:
        raise InputError(path, "counts no tokens", "build the source again or leave it out of the mixture")
    return stock


def read_stocks(recipe: Recipe) -> dict[str, Stock]:
    """What the recipe's corpus holds of every source that a phase names."""
    return {name: read_stock(recipe.corpus, name) for name in recipe.source_names}


def token_shares(recipe: Recipe, stocks: Mapping[str, Stock]) -> list[dict[str, Fraction]]:
    """For each phase every source's share of the tokens.

    ``stocks`` may be empty where no mixture ``needs_corpus``. Raises InputError where hours are asked for and a
    source's were never measured.
    """
    shares = []
    for index, phase in enumerate(recipe.phases):
        mixture, of_tokens = phase.mixture, {}
        for part, share in solve(mixture, recipe.groups).items():
            if mixture.unit == "hours":
                _require_seconds(recipe, stocks, part, f"phases[{index}].mixture.unit")
            # By size, the tokens of sources stand to each other as those that are there, whichever the unit.
            sizes = {name: stocks[name].tokens if len(part) > 1 else 1 for name in part}
            scale = Fraction(1)
            if mixture.unit == "hours":
                hours = sum(Fraction(sizes[name]) / stocks[name].tokens_per_hour for name in part)
                scale = sum(sizes.values()) / hours
            of_tokens |= {name: share * scale * size / sum(sizes.values()) for name, size in sizes.items()}
        total = sum(of_tokens.values())
        shares.append({name: of_tokens[name] / total for name in mixture.names})
    return shares


def _require_seconds(recipe: Recipe, stocks: Mapping[str, Stock], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if not stocks[name].seconds:
            what = f"is hours, which {prefix_file(recipe.corpus / name, '.json')} does not count (`seconds`)"
            raise InputError(where, what, f"build {name} again, or state the ratios in tokens")


def tokens_given(spans: list[PhaseSpan], shares: list[dict[str, Fraction]]) -> list[dict[str, Fraction]]:
    """Tokens that each source gives in each phase: its share of the phase's (the stream's to a sample)."""
    return [
        {name: share * (span.last_token - span.first_token) for name, share in of_phase.items()}
        for span, of_phase in zip(spans, shares, strict=True)
    ]


def epoch_limits(recipe: Recipe) -> dict[str, Fraction]:
    """How often each source may repeat, where the recipe says so; the least of all that name it."""
    limits: dict[str, Fraction] = {}
    for name, most in recipe.most_epochs.items():
        for source in members(name, recipe.source_names, recipe.groups):
            limits[source] = min(most, limits.get(source, most))
    return limits


def check_supply(recipe: Recipe, stocks: Mapping[str, Stock], shares: list[dict[str, Fraction]]) -> None:
    """Raises InputError naming the first source to run out: its phase, and after how many tokens of the run."""
    shortages = list(_shortages(recipe, stocks, shares))
    if not shortages:
        return
    at, name, span, needed = min(shortages, key=lambda shortage: shortage[0])
    stock, most = stocks[name], epoch_limits(recipe)[name]
    also = sorted({other for _, other, _, _ in shortages} - {name})
    times = f"{float(most):g} epoch" + ("s" if most != 1 else "")
    what = (f"{name} runs out in phase {span.phase.name} after {at:,} tokens of the run: it has {stock.tokens:,} "
            f"tokens and may give {times} of them, the run needs {float(needed / stock.tokens):.4g}"
            + (f" (as do, later, {', '.join(also)})" if also else ""))  # fmt: skip
    raise InputError("most_epochs", what, "raise its limit, lower its share, shorten the run or build more of it")


def _shortages(
    recipe: Recipe, stocks: Mapping[str, Stock], shares: list[dict[str, Fraction]]
) -> Iterator[tuple[int, str, PhaseSpan, Fraction]]:
    """For each source that runs out: tokens of the run until then, its name, the phase, tokens that the run needs."""
    spans = phase_spans(recipe)
    given = tokens_given(spans, shares)
    for name, most in epoch_limits(recipe).items():
        limit, before = most * stocks[name].tokens, Fraction(0)
        for span, of_phase, share in zip(spans, given, shares, strict=True):
            if before + of_phase.get(name, 0) > limit:
                needed = sum(tokens.get(name, Fraction(0)) for tokens in given)
                yield span.first_token + int((limit - before) / share[name]), name, span, needed
                break
            before += of_phase.get(name, 0)


def run_stream(recipe: Recipe) -> SampleStream:
    """The ordered samples of the whole run; raises InputError where the corpus can't give them as the recipe asks."""
    stocks = read_stocks(recipe)
    shares = token_shares(recipe, stocks)
    check_supply(recipe, stocks, shares)
    phases = [
        PhaseData(
            context_tokens=span.phase.context_tokens,
            samples=span.last_sequence - span.first_sequence,
            weights={source: float(share) for source, share in of_phase.items()},
        )
        for span, of_phase in zip(phase_spans(recipe), shares, strict=True)
    ]
    return SampleStream(recipe.corpus, phases, recipe.seed)
