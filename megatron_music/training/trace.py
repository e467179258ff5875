"""`trace`: when a run has seen, or will see, a song, as a table."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megatron_music.corpus.trace import Occurrence, trace_song
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.tables import table
from megatron_music.training.origin import read_origin
from megatron_music.training.run_folder import RunFolder


def trace_text(song: str, run: str | Path) -> str:
    """Every sample of a run that holds the song, below how often it comes and how much of that is done.

    ``run`` is a run folder, or a recipe for a run that was never started. Raises InputError where it is neither, or
    the song is in no source of it, or the corpus is no longer the run's.
    """
    run = Path(run)
    recipe_file = run / "recipe.yaml" if run.is_dir() else run
    if run.is_dir() and not recipe_file.is_file():
        raise InputError(run, "is not a run: no recipe.yaml", "name a run folder or a recipe file")
    recipe = Recipe.load(recipe_file)
    RunFolder(run).check_corpus(recipe)
    occurrences = trace_song(song, recipe)
    lines = [f"{song}: {_extent(occurrences)}" if occurrences else f"{song}: no sample of this run holds it"]
    newest = RunFolder(run).newest_checkpoint()
    if newest is not None:
        step = newest[1].step
        done = [place for place in occurrences if place.step <= step]
        lines.append(f"by the last checkpoint, after step {step:,}: {_extent(done)}")
    origin = read_origin(run)
    if origin is not None:
        lines.append(f"before its first step the run had learned what {origin.checkpoint} has")
    heading = ["phase", "source", "document", "epoch", "step", "sample", "tokens of it", "at token of the sample"]
    rows = [
        [place.phase, place.source, *(f"{number:,}" for number in (place.document, place.epoch, place.step)),
         f"{place.sample:,}", f"{place.offset:,}-{place.offset + place.tokens:,}", f"{place.start:,}-{place.stop:,}"]
        for place in occurrences
    ]  # fmt: skip
    return "\n".join([*lines, "", table([heading, *rows], left=2)] if rows else lines)


def _extent(occurrences: Sequence[Occurrence]) -> str:
    """Tokens, samples and passes of some occurrences, by source."""
    if not occurrences:
        return "none of it"
    tokens = Counter[str]()
    passes: dict[str, set[tuple[int, int]]] = {}
    for place in occurrences:
        tokens[place.source] += place.tokens
        passes.setdefault(place.source, set()).add((place.document, place.epoch))
    by_source = []
    for name, count in tokens.items():
        times = Counter(document for document, _ in passes[name])
        documents = f"{len(times):,} document" + ("s" if len(times) > 1 else "")
        by_source.append(f"{name} {count:,} ({documents}, up to {max(times.values()):,} times)")
    samples = len({place.sample for place in occurrences})
    return f"{tokens.total():,} tokens in {samples:,} samples; {', '.join(by_source)}"
