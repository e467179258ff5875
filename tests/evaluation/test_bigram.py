"""The bigram against the same definition written with loops, and against answers known without computing."""

import math
from collections import Counter

import numpy as np
import pytest

from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.errors import InputError
from megatron_music.evaluation.bigram import InterpolatedBigram, bigram_loss, fit_bigram
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import CodecRange

SIZE = 6
CODEC = CodecRange("tiny", "<tiny>", first=20, codebooks=2, codebook_size=SIZE)


def document(vocals, accompaniment, header=5):
    """A header, interleaved tracks, an end."""
    ids = [*range(header), *(20 + code for pair in zip(vocals, accompaniment, strict=True) for code in pair), 19]
    kinds = [Kind.TEXT] * header + [Kind.VOCAL, Kind.ACCOMPANIMENT] * len(vocals) + [Kind.SPECIAL]
    return np.array(ids, dtype=np.int32), np.array(kinds, dtype=np.uint8)


def random_documents(number, seed, frames=40):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        vocals = np.cumsum(rng.choice([0, 0, 1, 2], frames)) % SIZE
        made.append(document(vocals, rng.integers(0, rng.integers(2, SIZE + 1), frames)))
    return made


def pairs_of(documents, kind):
    for song, (ids, kinds) in enumerate(documents):
        previous = SIZE
        for id in ids[kinds == kind]:
            yield song, previous, int(id) - 20
            previous = int(id) - 20


def brute_force(train, held_out, kind, songs):
    """Total nats of ``held_out``: counts in dictionaries, one token after the other."""
    tokens = [(songs[song], previous, code) for song, previous, code in pairs_of(train, kind)]

    def estimates(previous, code, left_out):
        kept = [(p, c) for song, p, c in tokens if song != left_out]
        seen, total = sum(p == previous for p, _ in kept), len(kept)
        bigram = sum((p, c) == (previous, code) for p, c in kept) / seen if seen else 0.0
        unigram = sum(c == code for _, c in kept) / total if total else 0.0
        return seen.bit_length(), (bigram, unigram, 1 / SIZE)

    events = Counter()
    for song, previous, code in tokens:
        events[estimates(previous, code, song)] += 1
    weights = {bucket: ([0, 0.5, 0.5] if bucket == 0 else [1 / 3] * 3) for bucket in {b for b, _ in events}}
    for _ in range(2000):
        expected = {bucket: [0.0] * 3 for bucket in weights}
        for (bucket, shares), count in events.items():
            weighted = [weight * share for weight, share in zip(weights[bucket], shares, strict=True)]
            for index in range(3):
                expected[bucket][index] += count * weighted[index] / sum(weighted)
        weights = {bucket: [value / sum(values) for value in values] for bucket, values in expected.items()}
    nats = 0.0
    for _, previous, code in pairs_of(held_out, kind):
        bucket, shares = estimates(previous, code, left_out=None)
        nearest = min((b for b in weights if b > 0), key=lambda b: (abs(b - bucket), b)) if bucket else 0
        used = weights[bucket if bucket in weights else nearest]
        nats -= math.log(sum(weight * share for weight, share in zip(used, shares, strict=True)))
    return nats


@pytest.mark.parametrize("songs", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2]])
def test_loss_equals_the_definition_written_with_loops(songs):
    train, held_out = random_documents(5, seed=1), random_documents(2, seed=2, frames=30)
    bigram = InterpolatedBigram.fit(train, CODEC, songs)
    loss = bigram.loss(held_out)
    assert loss.tokens == {"vocal": 60, "accompaniment": 60}
    for kind in (Kind.VOCAL, Kind.ACCOMPANIMENT):
        expected = brute_force(train, held_out, kind, songs)
        # The fit stops once a round gains less than 1e-10 of the likelihood; the loops go on for 2,000 rounds.
        assert loss.nats[kind.name.lower()] == pytest.approx(expected, rel=2e-4)
    assert loss.per_token == pytest.approx(sum(loss.nats.values()) / 120)


def test_probabilities_sum_to_one_behind_every_previous_code():
    bigram = InterpolatedBigram.fit(random_documents(4, seed=3), CODEC)
    track = bigram._tracks[Kind.VOCAL]
    for previous in range(SIZE + 1):
        assert track.probabilities(np.full(SIZE, previous), np.arange(SIZE)).sum() == pytest.approx(1, abs=1e-9)


def test_a_track_that_always_moves_on_by_one_costs_almost_nothing():
    cycle = np.arange(600) % SIZE
    train = [document(cycle, cycle) for _ in range(4)]
    assert InterpolatedBigram.fit(train, CODEC).loss(train[:1]).per_token < 1e-3


def test_independent_codes_cost_their_entropy():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.25, 0.125, 0.125, 0, 0])
    documents = [document(*rng.choice(SIZE, (2, 4000), p=shares)) for _ in range(6)]
    loss = InterpolatedBigram.fit(documents[:5], CODEC).loss(documents[5:]).per_token
    assert loss == pytest.approx(1.75 * math.log(2), abs=0.02)


def test_tracks_do_not_see_each_other():
    """The accompaniment repeats the vocals' code; only its own previous code may help to tell it."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(6):
        vocals = rng.integers(0, SIZE, 2000)
        documents.append(document(vocals, vocals))
    loss = InterpolatedBigram.fit(documents[:5], CODEC).loss(documents[5:])
    assert loss.nats["accompaniment"] / loss.tokens["accompaniment"] == pytest.approx(math.log(SIZE), abs=0.02)


def test_songs_that_share_nothing_fall_back_to_the_uniform_estimate():
    """Each song stays on a code of its own: what other songs did says nothing, and the weights find that out."""
    train = [document([code] * 50, [code] * 50) for code in range(SIZE - 1)]
    held_out = [document([SIZE - 1] * 50, [SIZE - 1] * 50)]
    loss = InterpolatedBigram.fit(train, CODEC, songs=range(SIZE - 1)).loss(held_out)
    assert loss.per_token == pytest.approx(math.log(SIZE), abs=0.05)


def test_kinds_that_training_lacks_cost_the_uniform_estimate():
    ids, kinds = document([1, 2, 3], [1, 2, 3], header=0)
    mix = (ids[:3], np.full(3, Kind.MIX, dtype=np.uint8))
    bigram = InterpolatedBigram.fit(random_documents(3, seed=0), CODEC)
    assert bigram.loss([mix]).nats == {"mix": pytest.approx(3 * math.log(SIZE))}


def test_indexed_sources(tmp_path):
    train, held_out = random_documents(6, seed=5), random_documents(2, seed=6)
    for name, documents in (("train", train), ("held_out", held_out), ("text", [document([], [])])):
        with IndexedWriter(tmp_path / name) as writer:
            for ids, kinds in documents:
                writer.add(ids, kinds)
    bigram = fit_bigram([tmp_path / "train"], CODEC)
    found = bigram_loss(bigram, [tmp_path / "held_out"])
    assert found == InterpolatedBigram.fit(train, CODEC).loss(held_out)
    with pytest.raises(InputError, match="no audio tokens to fit"):
        fit_bigram([tmp_path / "text"], CODEC)
    with pytest.raises(InputError, match="text holds no audio tokens|text: holds no audio tokens"):
        bigram_loss(bigram, [tmp_path / "text"])


def test_songs_must_be_named_for_all_documents():
    with pytest.raises(ValueError, match="2 songs are named for 3 documents"):
        InterpolatedBigram.fit(random_documents(3, seed=0), CODEC, songs=[1, 2])
