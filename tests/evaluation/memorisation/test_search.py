"""Planted copies, and brute force over all stretches of small corpora."""

import numpy as np
import pytest
from planted_copies import SMALL, XCODEC, random_songs, write_songs

from megatron_music.evaluation.memorisation.fingerprints import GUARANTEE
from megatron_music.evaluation.memorisation.index import open_index
from megatron_music.evaluation.memorisation.search import find_copies


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Songs of X-Codec's codes, and their index."""
    songs = random_songs(20, 1000, XCODEC)
    return songs, open_index([write_songs(tmp_path_factory.mktemp("corpus") / "songs", songs, XCODEC)], XCODEC)


def fresh(count, seed=100):
    return np.random.default_rng(seed).integers(0, 1024, count).astype(np.int16)


def changed(codes_T, mismatches, rng):
    """A copy of which that many tokens, drawn at random, are others."""
    copy = np.array(codes_T, np.int16)
    at = rng.permutation(len(copy))[:mismatches]
    copy[at] = (copy[at] + rng.integers(1, 1024, len(at))) % 1024
    return copy


def test_a_planted_exact_copy_is_found_with_its_place_and_length(corpus):
    songs, index = corpus
    sample = fresh(2000)
    sample[700:1137] = songs[13][1][200:637]
    sample[699], sample[1137] = (songs[13][1][[199, 637]] + 1) % 1024
    found = find_copies(index, sample)
    assert (found.tokens, found.window, found.judged, found.longest) == (2000, 250, 2000, 437)
    assert found.longest_distinct == len(set(sample[700:1137].tolist()))
    place = index.place(found.longest_at)
    assert (place.document, place.kind, place.first_frame) == (13, "accompaniment", 200)
    assert (found.exact, found.closest, found.cut) == (437, 1.0, 0)
    assert 437 <= found.near <= 437 + 2 * 50


@pytest.mark.parametrize("whole", [True, False])
def test_80_percent_is_a_near_copy_and_79_percent_is_none(corpus, whole):
    """The whole sample, or a window in a longer one whose neighbours do not match at all."""
    songs, index = corpus
    rng = np.random.default_rng(1)
    for song in range(20):
        for mismatches, near in ((50, True), (51, False), (52, False)):
            copy = changed(songs[song][0][300:550], mismatches, rng)
            sample = copy if whole else np.concatenate([fresh(400, 200 + song), copy, fresh(400, 300 + song)])
            found = find_copies(index, sample)
            assert (found.near >= 250) == near and found.exact == 0
            assert found.closest == pytest.approx((250 - mismatches) / 250, abs=0.004 if not whole else 1e-9)


def test_new_music_has_no_copies(corpus):
    found = find_copies(corpus[1], fresh(3000))
    assert (found.longest, found.longest_at, found.exact, found.near, found.judged) == (0, None, 0, 0, 3000)
    for count in (0, 1, 5):
        assert find_copies(corpus[1], fresh(count)).longest == 0


def test_a_copy_does_not_reach_across_tracks(corpus):
    songs, index = corpus
    assert find_copies(index, np.concatenate([songs[3][0][-300:], songs[3][1][:200]])).longest == 300


def test_held_codes_are_neither_copied_nor_judged(tmp_path):
    silence = np.full((2, 600), 7)
    silence[:, 300:] = np.random.default_rng(0).integers(0, 1024, (2, 300))
    index = open_index([write_songs(tmp_path / "songs", [silence], XCODEC)], XCODEC)
    held = find_copies(index, np.full(400, 7, np.int16))
    assert (held.longest, held.judged, held.near) == (0, 0, 0)
    # With what follows it the held code is part of an exact run, and still only windows of many codes are judged.
    mixed = find_copies(index, silence[0, :400].astype(np.int16))
    assert mixed.longest == 400 and 0 < mixed.judged < 400 and mixed.exact == mixed.judged


def by_brute_force(index, sample, window):
    """Longest run; most matches of each window; the same over stretches that share a run of the guaranteed length."""
    corpus = np.concatenate([np.full(len(sample), -3), index.codes, np.full(len(sample), -3)])
    longest, most = 0, np.zeros(len(sample) - window + 1, int)
    sure = most.copy()
    for shift in range(len(corpus) - len(sample) + 1):
        equal = corpus[shift : shift + len(sample)] == sample
        ends = np.flatnonzero(~np.concatenate([[False], equal, [False]]))
        longest = max(longest, int(np.diff(ends).max()) - 1)
        counts = np.convolve(equal, np.ones(window, int), "valid")
        runs = np.convolve(equal, np.ones(GUARANTEE, int), "valid") == GUARANTEE
        held = np.convolve(runs, np.ones(window - GUARANTEE + 1, int), "valid") > 0
        most, sure = np.maximum(most, counts), np.maximum(sure, np.where(held, counts, 0))
    return longest, most, sure


@pytest.mark.parametrize("seed", range(6))
def test_brute_force_finds_the_same_above_the_guarantee_and_never_less(tmp_path, seed):
    rng = np.random.default_rng(seed)
    songs = random_songs(4, 150, SMALL, seed)
    index = open_index([write_songs(tmp_path / "songs", songs, SMALL)], SMALL)
    sample = rng.integers(0, 16, 120)
    at, length = rng.integers(0, 60), rng.integers(8, 60)
    sample[at : at + length] = songs[rng.integers(4)][rng.integers(2)][40 : 40 + length]
    noise = rng.permutation(120)[: rng.integers(0, 15)]
    sample[noise] = rng.integers(0, 16, len(noise))
    for window in (20, 40):
        longest, most, sure = by_brute_force(index, sample, window)
        found = find_copies(index, sample, window)
        assert found.longest == longest if longest >= GUARANTEE else found.longest <= longest

        def tokens(matches, share, window=window):
            covered = np.zeros(120, bool)
            for first in np.flatnonzero(matches >= share * window):
                covered[first : first + window] = True
            return int(covered.sum())

        assert tokens(sure, 0.8) <= found.near <= tokens(most, 0.8)
        assert found.exact == tokens(most, 1)
        assert found.judged == 120
