"""What counts in the loss and where documents end, in samples that packing has cut anywhere."""

import numpy as np
import pytest

from megatron_music.corpus.blend import run_stream
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.corpus.references import References
from megatron_music.corpus.stream import PhaseData, SampleStream
from megatron_music.errors import InputError
from megatron_music.training.data import batches_of
from megatron_music.training.marks import marks_of
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import Vocabulary

IN_REFERENCE = int(Kind.CODEBOOK_7)
"""A kind that the test's documents have in their references, and nowhere else."""


def document(rng, header: int, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Text, a reference unless its length is 0, text, and a segment of audio like it."""

    def audio(length):
        return [65, 67, *(68 + rng.integers(0, 32, length)), 66]

    first = audio(reference) if reference else []
    parts = [rng.integers(0, 64, header), first, rng.integers(0, 64, 5), audio(40) if reference else [], [64]]
    ids = np.concatenate(parts).astype(np.int32)
    kinds = np.full(len(ids), Kind.VOCAL, np.uint8)
    kinds[:header] = Kind.TEXT
    kinds[header : header + len(first)] = IN_REFERENCE
    return ids, kinds


@pytest.fixture
def vocabulary(corpus):
    return Vocabulary.load(corpus / "vocabulary.yaml")


@pytest.fixture
def with_references(tmp_path, vocabulary):
    """A corpus of references before and behind a header, too long for one read, and absent; and of songs without."""
    folder = tmp_path / "corpus"
    rng = np.random.default_rng(0)
    vocabulary.save(folder / "vocabulary.yaml")
    with IndexedWriter(folder / "reference", {"vocabulary": "tiny", "task": "reference"}) as writer:
        for header, length in [(7, 60), (0, 90), (12, 300), (9_000, 30), (100, 0), (4, 9_000), (3, 20)]:
            writer.add(*document(rng, header, length))
    with IndexedWriter(folder / "songs", {"vocabulary": "tiny", "task": "lyrics_to_song"}) as writer:
        for length in (50, 70, 20):
            writer.add(*document(rng, 6, length))
    return folder


def test_references_are_found_in_every_sample_however_it_cuts_documents(with_references, vocabulary):
    phases = [PhaseData(48, 900, {"reference": 1.0}), PhaseData(500, 60, {"songs": 1.0})]
    stream = SampleStream(with_references, phases, seed=3)
    references = References(stream, vocabulary)
    masked = 0
    for index in range(900):
        mask = references.mask(index)
        np.testing.assert_array_equal(mask, stream.sample(index).kinds == IN_REFERENCE)
        masked += mask[:-1].sum()
    # 900 samples of 48 tokens are two epochs of the 18,735 tokens and some more.
    assert masked >= 2 * (60 + 90 + 300 + 30 + 9_000 + 20 + 6 * 3)
    assert references and not any(references.mask(index).any() for index in range(900, 960))


def test_kinds_and_references_are_left_out_by_phase(make_recipe, with_references, vocabulary):
    phases = [phase | {"mixture": {"reference": 1, "songs": 1}} for phase in make_recipe().model_dump()["phases"]]
    phases[1]["loss"] = {"without": ["text", "reference"]}
    phases[2]["loss"] = {"without": []}
    fields = {"corpus": str(with_references), "vocabulary": str(with_references / "vocabulary.yaml"), "watch": {}}
    recipe = make_recipe(phases=phases, loss={"without": ["text"]}, **fields)
    stream = run_stream(recipe)
    marks = marks_of(recipe, vocabulary, stream)
    left_out = ([Kind.TEXT], [Kind.TEXT, IN_REFERENCE], None)
    for number, (first, kinds) in enumerate(zip((0, 16, 32), left_out, strict=True)):
        for at, batch in enumerate(batches_of(stream, first, 16, 1, 0, 1, marks[number])):
            assert batch.documents is None
            if kinds is None:
                assert batch.counted is None
                continue
            # Only the source whose task it is has references: the same kind counts in the songs.
            is_song = stream.sample(first + at).source == "songs"
            expected = ~np.isin(batch.kinds, [kind for kind in kinds if not (is_song and kind == IN_REFERENCE)])
            np.testing.assert_array_equal(batch.counted, expected)


def test_documents_end_behind_their_last_token(make_recipe, vocabulary):
    recipe = make_recipe(attention="within_documents")
    stream = run_stream(recipe)
    (marks, *_) = marks_of(recipe, vocabulary, stream)
    several = 0
    for index in range(len(stream)):
        ids = stream.sample(index).ids[:-1]
        lengths = marks.document_lengths(stream.sample(index))
        assert sum(lengths) == len(ids) and min(lengths) > 0
        ends = np.cumsum(lengths) - 1
        # An end in the middle is an <EOD>, and no <EOD> stands anywhere else but at the end of the sequence.
        assert all(ids[end] == 64 for end in ends[:-1])
        assert set(np.flatnonzero(ids == 64)) <= set(ends)
        several += len(lengths) > 1
    assert several > 10


def test_leaving_out_references_where_there_are_none_is_refused(make_recipe, vocabulary):
    recipe = make_recipe(loss={"without": ["reference"]})
    with pytest.raises(InputError, match="loss.without: names `reference`, and no source of the run"):
        marks_of(recipe, vocabulary, run_stream(recipe))
