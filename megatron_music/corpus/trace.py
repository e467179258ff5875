"""When a run sees a song: the order of the samples turned round, so that nothing is logged and nothing is scanned."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_music.corpus.blend import run_stream
from megatron_music.corpus.contents import read_documents_of_song
from megatron_music.corpus.stream import SampleStream
from megatron_music.errors import InputError
from megatron_music.recipe.phases import PhaseSpan, phase_spans, step_of_sequence
from megatron_music.recipe.recipe import Recipe
from megatron_music.songs.rejects import REJECTS, stream_rejects


@dataclass(frozen=True)
class Occurrence:
    """Tokens of a document in a sample of a run.

    Attributes:
        sample: index of the sample in the run (``SampleStream.sample``).
        step: number of the optimizer step that trains on it, from 1, as in ``metrics.jsonl``.
        epoch: passes over the source that were over before.
        start, stop: the span in the sample's inputs (tokens, ``stop`` exclusive).
        offset: token of the document at ``start``.
    """

    sample: int
    step: int
    phase: str
    source: str
    epoch: int
    document: int
    start: int
    stop: int
    offset: int

    @property
    def tokens(self) -> int:
        """Tokens of the document in the sample."""
        return self.stop - self.start


def trace_song(song: str, recipe: Recipe) -> list[Occurrence]:
    """Every sample of a run that holds tokens of a document with ``song`` in it, in the order of training.

    Costs a look into the index of each of the song's sources an epoch; the run's length costs nothing. Raises
    InputError where no source of the run holds the song, or the corpus does not say which songs it holds.
    """
    stream, spans = run_stream(recipe), phase_spans(recipe)
    for id in dict.fromkeys([song, *(unicodedata.normalize(form, song) for form in ("NFC", "NFD"))]):
        documents = {name: read_documents_of_song(recipe.corpus / name, id) for name in recipe.source_names}
        if any(documents.values()):
            break
    else:
        raise _unknown(song, recipe)
    found = (place for name in documents for place in _occurrences(stream, spans, name, documents[name]))
    return sorted(found, key=lambda place: (place.sample, place.start))


def _occurrences(stream: SampleStream, spans: list[PhaseSpan], name: str, documents: list[int]) -> Iterator[Occurrence]:
    source = stream.sources[name]
    given = stream.consumed(len(stream))[name]
    for epoch in range(-(-given // source.source.total_tokens) if documents else 0):
        for document in documents:
            first = epoch * source.source.total_tokens + source.order(epoch).first_token(document)
            for piece in stream.samples_with(name, first, first + int(source.source.lengths[document])):
                span = spans[piece.phase]
                step = step_of_sequence(span, piece.sample) + 1
                offset = piece.position - first
                yield Occurrence(piece.sample, step, span.phase.name, name, epoch, document, piece.start, piece.stop,
                                 offset)  # fmt: skip


def _unknown(song: str, recipe: Recipe) -> InputError:
    """What to tell of a song in none of the sources: the rule that rejected it, where the corpus says so."""
    what = f"no source of the run holds the song {song} (looked at {', '.join(recipe.source_names)})"
    rejects = recipe.corpus / REJECTS
    rules = (
        sorted({reject.rule for reject in stream_rejects(rejects) if reject.id == song}) if rejects.is_file() else []
    )
    if rules:
        return InputError(recipe.corpus, f"{what}; it was rejected by {', '.join(rules)}", f"{rejects} has the details")
    return InputError(recipe.corpus, what, "give the `id` that the song has in its manifest")
