"""``trace``: the order of the samples turned round, against a look at every sample."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.corpus.blend import run_stream
from megatron_music.corpus.contents import SCHEMA
from megatron_music.corpus.shuffle import EpochOrder, Mixture, seeded_earlier, seeded_permutation
from megatron_music.corpus.trace import trace_song
from megatron_music.engine.integrity import names_of_files, synced_marks, write_list
from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.recipe.phases import phase_spans, step_at
from megatron_music.songs.rejects import write_rejects
from megatron_music.songs.song import Reject
from megatron_music.training.origin import Origin
from megatron_music.training.run_folder import CheckpointState, write_state

SOURCES = {"songs": 37, "speech": 150, "mix": 5, "late": 20}
PHASES = [
    (9_000, 16, 4, {"songs": 3, "speech": 1}),
    (40_000, 48, 2, {"songs": "29/44", "speech": "1/11", "mix": "1/4"}),
    (300, 16, 4, {"late": 1}),
    (20_000, 100, 3, {"sources": ["speech", "mix", "late"], "ratios": ["speech:mix:late = 1:1:2"]}),
]


def song_of(name: str, document: int) -> list[str]:
    """Songs in a document: three documents a song, speech packed from two clips."""
    return [f"song-{document // 3}"] + ([f"clip-{document}"] if name == "speech" else [])


@pytest.fixture
def corpus(tmp_path, write_source):
    """Sources whose ids tell source, document and place apart."""
    random = np.random.default_rng(7)
    for number, (name, documents) in enumerate(SOURCES.items()):
        write_source(tmp_path / name, random.integers(0, 90, documents).tolist(), first=number * 1_000_000)
        rows = [(document, song) for document in range(documents) for song in song_of(name, document)]
        columns = {"document": [row[0] for row in rows], "id": [row[1] for row in rows]}
        columns |= {"language": ["en"] * len(rows), "genres": [""] * len(rows), "seconds": [1.0] * len(rows)}
        pq.write_table(pa.table(columns, schema=SCHEMA), tmp_path / f"{name}.songs.parquet", row_group_size=16)
    return tmp_path


def seen_by_looking(stream) -> dict:
    """All (sample, span in its inputs, token of the document) by source and document, from every sample of a run."""
    firsts = {name: np.cumsum([0, *source.source.lengths]) for name, source in stream.sources.items()}
    first_ids = {name: number * 1_000_000 for number, name in enumerate(SOURCES)}
    seen = defaultdict(list)
    for index in range(len(stream)):
        sample = stream.sample(index)
        places = sample.ids[:-1] - first_ids[sample.source]
        documents = np.searchsorted(firsts[sample.source], places, side="right") - 1
        offsets = places - firsts[sample.source][documents]
        # A document that follows itself, at the end of an epoch, starts again at its first token.
        edges = np.flatnonzero((np.diff(documents) != 0) | (np.diff(offsets) != 1)) + 1
        for start, stop in zip([0, *edges], [*edges, len(places)], strict=True):
            seen[sample.source, int(documents[start])].append((index, int(start), int(stop), int(offsets[start])))
    return seen


def test_the_inverse_finds_exactly_what_a_look_at_every_sample_finds(corpus, make_recipe):
    recipe = make_recipe(PHASES)
    stream, spans = run_stream(recipe), phase_spans(recipe)
    seen = seen_by_looking(stream)
    lengths = {name: stream.sources[name].source.lengths for name in SOURCES}
    checked = 0
    for song in [f"song-{number}" for number in range(50)] + [f"clip-{number}" for number in range(0, 150, 10)]:
        found = trace_song(song, recipe)
        expected = [
            (index, name, document, *rest)
            for name, documents in SOURCES.items()
            for document in range(documents)
            if song in song_of(name, document)
            for index, *rest in seen[name, document]
        ]
        traced = [
            (place.sample, place.source, place.document, place.start, place.stop, place.offset) for place in found
        ]
        assert sorted(traced) == sorted(expected)
        assert [place.sample for place in found] == sorted(place.sample for place in found)
        tokens = defaultdict(int)
        for place in found:
            step = step_at(spans, place.step - 1)
            assert step.span.phase.name == place.phase
            assert 0 <= place.sample - step.first_sequence < step.span.phase.batch_sequences
            tokens[place.source, place.document, place.epoch] += place.tokens
        # Of an epoch that is over every token was an input once.
        given = stream.consumed(len(stream))
        for name, document in {(place.source, place.document) for place in found}:
            for epoch in range(given[name] // int(lengths[name].sum(dtype=np.int64))):
                assert tokens[name, document, epoch] == lengths[name][document]
        checked += len(found)
    assert checked > 3_000
    assert given["mix"] // int(lengths["mix"].sum()) > 20


def test_an_id_is_found_in_either_form_of_unicode(corpus, make_recipe):
    recipe = make_recipe(PHASES)
    expected = trace_song("song-0", recipe)
    path = corpus / "songs.songs.parquet"
    rows = pq.read_table(path).to_pylist()
    for id, asked in (("Cafe\u0301 #1", "Caf\u00e9 #1"), ("Caf\u00e9 #1", "Cafe\u0301 #1")):
        renamed = [row | {"id": id if row["id"] == "song-0" else row["id"]} for row in rows]
        pq.write_table(pa.Table.from_pylist(renamed, schema=SCHEMA), path)
        assert trace_song(asked, recipe) == [place for place in expected if place.source == "songs"] != []


def test_orders_can_be_asked_from_the_other_side():
    places = seeded_permutation(300, "key", 3).tolist()
    for item in range(300):
        earlier = seeded_earlier(300, item, "key", 3)
        assert np.flatnonzero(earlier).tolist() == sorted(places[: places.index(item)])
    lengths = np.random.default_rng(0).integers(1, 9, 1001).astype(np.int32)
    order = EpochOrder(lengths, ("test", 0), block_documents=16)
    for document in range(1001):
        position = order.first_token(document)
        assert order.from_token(position) == (document, 0, lengths[document])
    with pytest.raises(IndexError):
        order.first_token(1001)
    for shares in ([3, 1, 0.5], [1, 1000], [1.0]):
        mixture = Mixture(shares, 5000, ("test",))
        for sample in range(0, 5000, 7):
            assert mixture.sample_of(*mixture.draw(sample)) == sample


def test_a_trillion_tokens_cost_a_song_no_scan(corpus, make_recipe):
    """The run has 427 million samples, of which the source gives one in ten thousand."""
    recipe = make_recipe(
        [(1.75e12, 4096, 64, {"songs": "1/10000", "speech": "9999/10000"})], most_epochs={"songs": 1e6}
    )
    stream = run_stream(recipe)
    assert len(stream) > 4e8
    found = list(stream.samples_with("songs", 10**7, 10**7 + 3 * 4096))
    assert sum(piece.stop - piece.start for piece in found) == 3 * 4096
    for piece in found:
        sample = stream.sample(piece.sample)
        expected = stream.sources["songs"].tokens(piece.position, piece.stop - piece.start)[0]
        np.testing.assert_array_equal(sample.ids[piece.start : piece.stop], expected)


def test_a_song_that_is_not_there_is_told(corpus, make_recipe):
    recipe = make_recipe(PHASES)
    with pytest.raises(
        InputError, match="no source of the run holds the song 1945 .looked at songs, speech, mix, late"
    ):
        trace_song("1945", recipe)
    write_rejects(corpus / "rejects.parquet", [Reject("1945", "too_short", "3 s", "manifest")])
    with pytest.raises(InputError, match="it was rejected by too_short; .*rejects.parquet has the details"):
        trace_song("1945", recipe)
    (corpus / "mix.songs.parquet").unlink()
    with pytest.raises(InputError, match="mix.songs.parquet: no such file; build the source again"):
        trace_song("song-1", recipe)


def test_the_verb_says_how_much_of_it_is_done(corpus, make_recipe):
    recipe = make_recipe(PHASES)
    run = corpus / "run"
    recipe.save(run / "recipe.yaml")
    found = trace_song("song-4", recipe)

    def trace(what) -> str:
        shown = CliRunner().invoke(cli.app, ["trace", "song-4", str(what)])
        assert shown.exit_code == 0, shown.output
        return shown.output

    planned = trace(run / "recipe.yaml").splitlines()
    total = sum(place.tokens for place in found)
    assert planned[0].startswith(
        f"song-4: {total:,} tokens in {len({place.sample for place in found}):,} samples; songs "
    )
    assert "songs" in planned[0] and "(3 documents, up to " in planned[0]
    assert planned[1] == "" and len(planned) == 3 + len(found)
    first = planned[3].split()
    assert first[:2] == [found[0].phase, found[0].source]
    assert first[4:6] == [str(found[0].step), str(found[0].sample)]
    checkpoint = run / "checkpoints" / "step_000100"
    write_state(checkpoint, CheckpointState(100, 6400, "phase-0", False))
    write_list(checkpoint, synced_marks(checkpoint, names_of_files(checkpoint)))
    Origin("other/run", "other", 3, 300, "a", 300, 64, keeps_optimizer=True).write(run)
    done = sum(place.tokens for place in found if place.step <= 100)
    begun = trace(run).splitlines()
    assert begun[1].startswith(f"by the last checkpoint, after step 100: {done:,} tokens in ")
    assert begun[2] == "before its first step the run had learned what other/run has"
    assert begun[3:] == planned[1:]
    # Of a corpus that was built again since, the answer would be another run's.
    write_json(run / "corpus.json", {})
    refused = CliRunner().invoke(cli.app, ["trace", "song-4", str(run)])
    assert isinstance(refused.exception, InputError) and "is not what it was when the run" in str(refused.exception)
