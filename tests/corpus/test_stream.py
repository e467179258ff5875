"""The ordered sample stream: its counts, its order, and that no token is lost or seen twice."""

import pickle

import numpy as np
import pytest

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.shuffle import EpochOrder, Mixture, seeded_permutation
from megatron_music.corpus.stream import PhaseData, SampleStream
from megatron_music.errors import InputError

LENGTHS = [[7, 30, 1, 0, 12, 5], [40, 3, 3, 9]]
PHASES = [
    PhaseData(16, 700, {"songs": 2.0, "speech": 1.0}),
    PhaseData(16, 500, {"songs": 1.0}),
    PhaseData(64, 300, {"songs": 0.3, "speech": 0.7, "unused": 0.0}),
]


@pytest.fixture
def corpus(tmp_path, write_source):
    write_source(tmp_path / "songs", LENGTHS[0])
    write_source(tmp_path / "speech", LENGTHS[1], first=1000)
    return tmp_path


def same(one, other) -> bool:
    return one.source == other.source and (one.ids == other.ids).all() and (one.kinds == other.kinds).all()


def test_permutations_are_permutations():
    assert sorted(seeded_permutation(1000, "key", 3)) == list(range(1000))


def test_orders_have_known_answers():
    """The order of a run must not change with a version of numpy or of this project."""
    assert seeded_permutation(8, "known", 1).tolist() == [7, 1, 4, 6, 2, 3, 5, 0]
    order = EpochOrder(np.arange(1, 13, dtype=np.int32), ("known", 1), block_documents=4)
    assert order.documents().tolist() == [10, 5, 3, 8, 11, 6, 1, 4, 9, 2, 7, 0]
    mixture = Mixture([2, 1], 12, ("known", 1))
    assert [mixture.draw(sample)[0] for sample in range(12)] == [1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("documents,block", [(1, 4), (5, 8), (64, 8), (1001, 16), (997, 997)])
def test_an_epoch_holds_every_document_once_at_its_place(documents, block):
    lengths = np.random.default_rng(0).integers(0, 9, documents).astype(np.int32)
    lengths[0] = 5
    order = EpochOrder(lengths, ("test", 0), block_documents=block)
    listed = order.documents()
    assert sorted(listed) == list(range(documents))
    expected = [(doc, at, lengths[doc] - at) for doc in listed for at in range(lengths[doc])]
    assert [order.from_token(position) for position in range(int(lengths.sum()))] == expected


def test_epochs_and_seeds_differ():
    lengths = np.full(100, 3, np.int32)
    orders = [EpochOrder(lengths, ("test", key), 16).documents().tolist() for key in range(3)]
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("shares", [[1.0], [29 / 44, 1 / 8, 1 / 8, 1 / 11], [2, 1], [1, 1000], [0.1] * 7])
@pytest.mark.parametrize("samples", [0, 1, 5, 1023, 1024, 5000])
def test_mixtures_keep_their_shares_to_a_sample(shares, samples):
    mixture = Mixture(shares, samples, ("test",))
    total = mixture.counts(samples)
    assert total.sum() == samples
    assert (np.abs(total - samples * np.array(shares) / sum(shares)) < 1).all()
    for boundary in range(0, mixture._last * mixture._size + 1, mixture._size):
        assert (np.abs(mixture.counts(boundary) - boundary * np.array(shares) / sum(shares)) < 1).all()


def test_every_draw_continues_its_source(corpus):
    mixture = Mixture([3, 1, 0.5], 2500, ("test",))
    seen = np.zeros(3, np.int64)
    for sample in range(2500):
        if sample % 97 == 0:
            np.testing.assert_array_equal(mixture.counts(sample), seen)
        source, before = mixture.draw(sample)
        assert before == seen[source]
        seen[source] += 1
    np.testing.assert_array_equal(mixture.counts(2500), seen)


def test_samples_do_not_depend_on_who_asks_and_when(corpus):
    straight = [SampleStream(corpus, PHASES, seed=1).sample(index) for index in range(1500)]
    stream = pickle.loads(pickle.dumps(SampleStream(str(corpus), PHASES, seed=1)))
    for index in np.random.default_rng(0).permutation(1500):
        assert same(stream.sample(int(index)), straight[index])
    reordered = [PhaseData(p.context_tokens, p.samples, dict(reversed(p.weights.items()))) for p in PHASES]
    assert all(same(SampleStream(corpus, reordered, 1).sample(i), straight[i]) for i in range(0, 1500, 100))
    other = SampleStream(corpus, PHASES, seed=2)
    assert not all(same(other.sample(index), straight[index]) for index in range(20))


def test_a_source_is_one_stream_of_whole_epochs_across_phases(corpus):
    stream = SampleStream(corpus, PHASES, seed=3)
    given = {"songs": 0, "speech": 0}
    first = 0
    for phase in PHASES:
        pieces = {"songs": [], "speech": []}
        for index in range(first, first + phase.samples):
            length = phase.context_tokens
            assert stream.consumed(index) == {name: given[name] + length * len(pieces[name]) for name in given}
            sample = stream.sample(index)
            np.testing.assert_array_equal(sample.kinds, sample.ids % 5)
            pieces[sample.source].append(sample.ids.tolist())
        for name, seen in pieces.items():
            # Every piece of the stream from where the phase before left it, each once, but not in the stream's order.
            starts = range(given[name], given[name] + length * len(seen), length)
            in_order = [stream.sources[name].tokens(start, length + 1)[0].tolist() for start in starts]
            assert sorted(seen) == sorted(in_order)
            if len(seen) > 20 and stream.sources[name].source.total_tokens >= 2 * length:
                assert seen != in_order
            given[name] += length * len(seen)
        first += phase.samples
    assert stream.consumed(len(stream)) == given
    for number, (name, tokens) in enumerate(given.items()):
        source = IndexedSource(corpus / name)
        every_token = np.concatenate([source.document(index)[0] for index in range(len(source))])
        ids, _ = stream.sources[name].tokens(0, tokens)
        epochs = tokens // sum(LENGTHS[number])
        assert epochs > 100
        for epoch in range(epochs):
            seen = ids[epoch * len(every_token) : (epoch + 1) * len(every_token)]
            assert sorted(seen) == sorted(every_token)


def test_the_mixture_of_each_phase_is_exact(corpus):
    stream = SampleStream(corpus, PHASES, seed=3)
    assert len(stream) == 1500
    first = 0
    for phase in PHASES:
        last = first + phase.samples
        before, after = stream.consumed(first), stream.consumed(last)
        for name in before:
            share = phase.weights.get(name, 0) / sum(phase.weights.values())
            tokens = after[name] - before[name]
            assert abs(tokens - share * phase.samples * phase.context_tokens) < phase.context_tokens
        first = last


def test_bad_requests_are_told(corpus, write_source):
    stream = SampleStream(corpus, PHASES, seed=0)
    with pytest.raises(IndexError):
        stream.sample(1500)
    for weights, words in [
        ({"sings": 1}, "no source sings .there: songs, speech"),
        ({"songs": -1, "speech": 2}, "can't be shares"),
        ({}, "can't be shares"),
        ({"songs": 1, "speech": 1e-9}, "speech a share of"),
        ({"songs": 1, "empty": 1}, "empty.bin: holds no tokens"),
        ({"songs": 1, "foreign": 1}, "with the vocabulary"),
    ]:
        write_source(corpus / "empty", []) if "empty" in weights else None
        write_source(corpus / "foreign", [3], vocabulary="two") if "foreign" in weights else None
        with pytest.raises(InputError, match=words):
            SampleStream(corpus, [PhaseData(16, 10, weights)], seed=0)
