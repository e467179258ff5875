"""Copies that are planted, and repetition and silence by plain arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.corpus.indexed import IndexedSource, IndexedWriter
from megatron_music.errors import InputError
from megatron_music.evaluation.copying import (
    ReferenceDocument,
    compare,
    copied_ngrams,
    longest_common_run,
    reference_copying,
    reference_documents,
)
from megatron_music.evaluation.variety import longest_hold, repeated_ngrams, silent_codes, variety
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import Vocabulary

EOD, SOA, EOA, MARKER, FIRST = 300, 301, 302, 305, 306


@pytest.fixture
def grammar(tmp_path, tiny_vocabulary) -> AudioGrammar:
    (tmp_path / "vocabulary.yaml").write_text(yaml.safe_dump(tiny_vocabulary))
    return AudioGrammar(Vocabulary.load(tmp_path / "vocabulary.yaml"))


def test_the_longest_common_run_is_that_of_all_pairs_of_places():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = rng.integers(0, 3, rng.integers(0, 30)), rng.integers(0, 3, rng.integers(0, 30))
        runs = [
            length
            for start in range(len(ours))
            for length in range(1, len(ours) - start + 1)
            if any((theirs[at : at + length] == ours[start : start + length]).all()
                   for at in range(len(theirs) - length + 1))
        ]  # fmt: skip
        assert longest_common_run(ours, theirs) == max(runs, default=0)


def test_copied_groups_are_counted():
    reference = np.arange(20)
    assert copied_ngrams(np.arange(5, 15), reference, 4) == (7, 7)
    assert copied_ngrams(np.array([5, 6, 7, 8, 5, 6, 7, 9]), reference, 4) == (1, 5)
    assert copied_ngrams(np.arange(3), reference, 4) == (0, 0)


def test_a_planted_copy_is_found_beside_a_song_that_does_not_copy(grammar):
    """Vocals copied from the reference, accompaniment of its own, behind 5 dual-track references."""
    rng, samples = np.random.default_rng(1), []
    for number in range(5):
        vocals, others = rng.permutation(16)[None].repeat(4, 0).reshape(-1), rng.integers(0, 16, 64)
        reference = {Kind.VOCAL: vocals, Kind.ACCOMPANIMENT: rng.integers(0, 16, 64)}
        sampled = FIRST + np.stack([vocals[10:50], others[:40]], axis=1).reshape(-1)
        true = FIRST + rng.integers(0, 16, 90)
        samples.append((sampled.tolist(), ReferenceDocument([], reference, true), number))
    found = compare(samples, grammar)
    # 33 groups of 8 in each of two tracks, all of the vocals' copied and none of what is random.
    assert (found["copied"], found["copied_true"], found["documents"]) == (0.5, 0.0, 5)
    assert found["copied_excess"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    # The same vocals as the only reference: a mix is compared with both tracks, vocals with vocals alone.
    for kind, copied in ((Kind.MIX, 0.5), (Kind.VOCAL, 1.0)):
        single = [
            (ids, replace(document, reference={kind: document.reference[Kind.VOCAL]}), number)
            for ids, document, number in samples
        ]
        assert compare(single, grammar)["copied"] == copied
    assert compare(single, grammar)["longest"] == 40.0


def test_a_song_that_goes_on_as_its_reference_is_no_copy(grammar):
    codes = np.arange(64) % 16
    ids = FIRST + np.repeat(codes, 2)
    document = ReferenceDocument([], {Kind.VOCAL: codes}, ids)
    found = compare([(ids.tolist(), document, 0), (ids.tolist(), document, 1)], grammar)
    assert (found["copied"], found["copied_true"], found["copied_excess"]["value"]) == (1.0, 1.0, 0.0)
    with pytest.raises(InputError, match="none behind a reference has 8 frames"):
        compare([(ids[:6].tolist(), document, 0)], grammar)


def reference_song(rng, words, reference_frames, frames):
    ids = [*range(words), SOA, MARKER, *(FIRST + rng.integers(0, 16, reference_frames)), EOA, 7]
    kinds = [Kind.TEXT] * words + [Kind.SPECIAL] * 2 + [Kind.ACCOMPANIMENT] * reference_frames
    kinds += [Kind.SPECIAL, Kind.TEXT]
    ids += [SOA, MARKER, *(FIRST + rng.integers(0, 16, 2 * frames)), EOA, EOD]
    kinds += [Kind.SPECIAL] * 2 + [Kind.VOCAL, Kind.ACCOMPANIMENT] * frames + [Kind.SPECIAL] * 2
    return np.array(ids, dtype=np.int32), np.array(kinds, dtype=np.uint8)


def test_a_reference_counts_as_far_as_the_model_reads_it(tmp_path, grammar, make_model):
    rng = np.random.default_rng(2)
    songs = [reference_song(rng, 5, 30, 20), reference_song(rng, 3, 12, 10)]
    with IndexedWriter(tmp_path / "reference") as writer:
        for song in songs:
            writer.add(*song)
    source = IndexedSource(tmp_path / "reference")
    whole, short = reference_documents(source, grammar, 512, [0, 1])
    assert whole.prompt == songs[0][0][: 5 + 2 + 30 + 2 + 2].tolist()
    assert (whole.reference[Kind.ACCOMPANIMENT] == songs[0][0][7:37] - FIRST).all()
    assert (whole.true_ids == songs[0][0][41:81]).all() and len(short.true_ids) == 20
    cut, _ = reference_documents(source, grammar, 40, [0, 1])
    assert len(cut.prompt) == 20 and (cut.reference[Kind.ACCOMPANIMENT] == songs[0][0][21:37] - FIRST).all()
    found = reference_copying(make_model("model", positions=96), source.prefix, frames=16)
    # Spans that the random network ends early hold no group.
    assert found["documents"] in (1, 2) and 0 <= found["copied"] <= 1
    with pytest.raises(InputError, match="no reference stands in the 3 tokens"):
        reference_copying(make_model("short", positions=6), source.prefix)


def test_repeats_and_holds():
    assert repeated_ngrams(np.array([1, 2, 3, 4] * 3), 4) == (5, 9)
    assert repeated_ngrams(np.arange(12), 4) == (0, 9)
    assert repeated_ngrams(np.arange(3), 4) == (0, 0)
    assert [longest_hold(np.array(codes)) for codes in ([], [3], [1, 1, 2, 2, 2, 1], [5] * 9)] == [0, 1, 3, 9]


def test_a_collapsed_sample_stands_out_beside_the_songs_own():
    sampled, true = [np.full(20, 3), np.full(12, 4), np.arange(2)], [np.arange(20), np.arange(12), np.arange(2)]
    found = variety(sampled, true, frozenset([3]))
    # The third track is too short to have a group of 4 frames.
    assert (found["repeated"], found["repeated_true"], found["tracks"]) == (24 / 26, 0.0, 2)
    assert (found["longest_hold"], found["longest_hold_true"], found["hold_ratio"]["value"]) == (16.0, 1.0, 16.0)
    assert (found["distinct"], found["distinct_true"]) == (2, 20)
    assert (found["silent"], found["silent_true"]) == (20 / 32, 2 / 32)
    assert found["silent_excess"]["value"] == pytest.approx(18 / 32)
    same = variety(true, true)
    assert same["repeated_excess"] == {"value": 0.0, "low": 0.0, "high": 0.0} and "silent" not in same
    with pytest.raises(ValueError, match="no sample has 4 frames"):
        variety([np.arange(3)], [np.arange(3)])


def test_the_codes_of_silence_are_those_that_the_codec_gives_it(tmp_path):
    rng = np.random.default_rng(0)
    sound = (0.3 * np.sin(np.cumsum(rng.uniform(0.01, 0.3, 64_000)))).astype(np.float32)
    codec = EmbeddedCodec.fit([sound, np.zeros(16_000, dtype=np.float32)], codebooks=1, codebook_size=16)
    codec.save(tmp_path / "codec")
    silent = silent_codes("embedded", tmp_path / "codec")
    assert silent == set(codec.encode(np.zeros(32_000, dtype=np.float32))[0].tolist())
    assert np.abs(codec.decode(np.full((1, 50), next(iter(silent))))).max() < 0.01
    assert silent_codes("xcodec", None) is None
    with pytest.raises(InputError, match="gone"):
        silent_codes("embedded", tmp_path / "gone")
