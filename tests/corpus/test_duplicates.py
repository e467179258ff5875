"""Similarity of code n-grams: signatures against exact Jaccard, pairs against all pairs, and what is kept."""

from pathlib import Path

import numpy as np
import pytest

from megatron_music.corpus.duplicates import (
    Pairs,
    SignatureFile,
    band_rows,
    distinct_ngrams,
    found_share,
    greedy_choice,
    near_pairs,
    signature,
    typical_similarity,
)

PERMUTATIONS = 512


def exact_ngrams(codes_T: np.ndarray, ngram: int) -> set[tuple[int, ...]]:
    collapsed = [code for at, code in enumerate(codes_T.tolist()) if at == 0 or code != codes_T[at - 1]]
    return {tuple(collapsed[at : at + ngram]) for at in range(len(collapsed) - ngram + 1)}


def jaccard(first: set, second: set) -> float:
    return len(first & second) / len(first | second)


def songs_of_known_similarity(shares: list[float], size: int = 2000, seed: int = 0) -> list[np.ndarray]:
    """For each share two neighbouring songs of ``size`` n-grams that have this share of all their n-grams in common."""
    random = np.random.default_rng(seed)
    songs = []
    for share in shares:
        common = round(2 * size * share / (1 + share))
        numbers = random.choice(1 << 32, 2 * size - common, replace=False).astype(np.uint32)
        songs += [numbers[:size], numbers[size - common :]]
    return songs


def written(path: Path, songs: list[np.ndarray]) -> SignatureFile:
    file = SignatureFile(path, PERMUTATIONS, len(songs))
    for start in range(0, len(songs), 7):
        file.append(np.stack([signature(song, PERMUTATIONS) for song in songs[start : start + 7]]))
    return file


@pytest.mark.parametrize("ngram", [1, 2, 3, 5])
def test_hashes_are_one_for_each_distinct_ngram_of_the_collapsed_codes(ngram):
    random = np.random.default_rng(ngram)
    first_T, second_T = (np.repeat(random.integers(0, 9, 400), random.integers(1, 4, 400)) for _ in range(2))
    ours = [set(distinct_ngrams(codes_T.astype(np.int16), ngram).tolist()) for codes_T in (first_T, second_T)]
    exact = [exact_ngrams(codes_T, ngram) for codes_T in (first_T, second_T)]
    assert [len(some) for some in ours] == [len(some) for some in exact]
    assert len(ours[0] & ours[1]) == len(exact[0] & exact[1]) > 0


def test_held_codes_count_once_and_short_tracks_have_none():
    codes_T = np.array([5, 5, 5, 7, 7, 9], np.int16)
    np.testing.assert_array_equal(distinct_ngrams(codes_T, 3), distinct_ngrams(np.array([5, 7, 9], np.int16), 3))
    assert len(distinct_ngrams(codes_T, 3)) == 1 and len(distinct_ngrams(codes_T, 4)) == 0


@pytest.mark.parametrize("similarity", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_signatures_estimate_the_exact_similarity(similarity):
    estimates = []
    for seed in range(20):
        first, second = songs_of_known_similarity([similarity], seed=seed)
        exact = jaccard(set(first.tolist()), set(second.tolist()))
        estimates.append(np.mean(signature(first, PERMUTATIONS) == signature(second, PERMUTATIONS)) - exact)
    spread = np.sqrt(similarity * (1 - similarity) / PERMUTATIONS)
    assert abs(np.mean(estimates)) < 4 * spread / np.sqrt(20) and np.max(np.abs(estimates)) < 4 * spread


def test_bands_find_what_they_promise():
    for similarity in (0.1, 0.2, 0.5, 0.9):
        rows = band_rows(PERMUTATIONS, similarity)
        assert found_share(similarity, PERMUTATIONS, rows) >= 0.9 > found_share(similarity, PERMUTATIONS, rows + 1)
    assert found_share(0.5, 6, 2) == pytest.approx(1 - 0.75**3)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_pairs_are_those_that_a_comparison_of_all_with_all_finds(tmp_path, threshold):
    shares = [0.0, 0.05, 0.2, 0.3, 0.45, 0.55, 0.7, 0.9, 1.0] * 6
    songs = songs_of_known_similarity(shares)
    signatures_NP = np.stack([signature(song, PERMUTATIONS) for song in songs])
    estimates = {
        (first, second): np.mean(signatures_NP[first] == signatures_NP[second])
        for second in range(len(songs))
        for first in range(second)
    }
    with written(tmp_path / "signatures", songs) as file:
        pairs = near_pairs(file, threshold)
    found = dict(
        zip(zip(pairs.first_M.tolist(), pairs.second_M.tolist(), strict=True), pairs.similarity_M, strict=True)
    )
    assert found == {pair: np.float32(estimates[pair]) for pair in found}
    assert min(found.values()) >= threshold
    expected = {(2 * at, 2 * at + 1) for at, share in enumerate(shares) if share >= threshold + 0.05}
    assert expected <= set(found) and len(expected) >= 24
    assert all(second == first + 1 and shares[first // 2] > threshold - 0.1 for first, second in found)


def test_all_copies_in_a_large_bucket_are_left_out_for_the_first(tmp_path):
    song, other = songs_of_known_similarity([0.0])
    with written(tmp_path / "signatures", [other, *[song] * 200, other]) as file:
        left_out = greedy_choice(near_pairs(file, 0.5), lambda first, second: True)
        assert left_out == {**dict.fromkeys(range(2, 201), (1, 1.0)), 201: (0, 1.0)}
        assert typical_similarity(file) == 1.0
        # Read in the opposite order, the last copies are the first ones.
        file.reorder(np.arange(202)[::-1])
        left_out = greedy_choice(near_pairs(file, 0.5), lambda first, second: True)
        assert left_out == {**dict.fromkeys(range(2, 201), (1, 1.0)), 201: (0, 1.0)}


def test_rows_on_disk_are_the_signatures_columns(tmp_path):
    songs = songs_of_known_similarity([0.5] * 10)
    signatures_NP = np.stack([signature(song, PERMUTATIONS) for song in songs])
    order_N = np.random.default_rng(0).permutation(len(songs))
    with written(tmp_path / "signatures", songs) as file:
        np.testing.assert_array_equal(np.stack([file.row(row) for row in range(PERMUTATIONS)], 1), signatures_NP)
        file.reorder(order_N)
        np.testing.assert_array_equal(file.row(17), signatures_NP[order_N, 17])


def test_a_chain_does_not_fall_together():
    pairs = Pairs(np.array([0, 1, 2, 2]), np.array([1, 2, 3, 4]), np.full(4, 0.5, np.float32))
    assert greedy_choice(pairs, lambda first, second: True) == {1: (0, 0.5), 3: (2, 0.5), 4: (2, 0.5)}
    assert greedy_choice(pairs, lambda first, second: first != 0) == {2: (1, 0.5)}
