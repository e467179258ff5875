import itertools

import numpy as np
import pytest

from megatron_music.audio.kmeans import k_means, nearest, steadiest


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_nearest_is_the_smallest_distance(generator):
    vectors_ND = generator.standard_normal((10_000, 3)).astype(np.float32)
    centroids_CD = generator.standard_normal((17, 3)).astype(np.float32)
    expected_NC = ((vectors_ND[:, None] - centroids_CD) ** 2).sum(axis=-1)
    indices_N, distances_N = nearest(vectors_ND, centroids_CD)
    np.testing.assert_array_equal(indices_N, expected_NC.argmin(axis=1))
    np.testing.assert_allclose(distances_N, expected_NC.min(axis=1), atol=1e-5)


@pytest.mark.parametrize("change_cost", [0.0, 0.3, 1.0, 100.0])
def test_steadiest_is_the_best_of_all_sequences(generator, change_cost):
    vectors_TD = generator.standard_normal((6, 2)).astype(np.float32)
    centroids_CD = generator.standard_normal((4, 2)).astype(np.float32)
    distances_TC = ((vectors_TD[:, None] - centroids_CD) ** 2).sum(axis=-1)

    def cost(codes):
        return distances_TC[np.arange(6), codes].sum() + change_cost * np.count_nonzero(np.diff(codes))

    best = min((np.array(codes) for codes in itertools.product(range(4), repeat=6)), key=cost)
    np.testing.assert_array_equal(steadiest(vectors_TD, centroids_CD, change_cost), best)


def test_steadiest_without_a_cost_is_nearest(generator):
    vectors_TD = generator.standard_normal((9_000, 2)).astype(np.float32)
    centroids_CD = generator.standard_normal((16, 2)).astype(np.float32)
    np.testing.assert_array_equal(steadiest(vectors_TD, centroids_CD, 0.0), nearest(vectors_TD, centroids_CD)[0])
    assert len(steadiest(vectors_TD[:0], centroids_CD, 1.0)) == 0


def test_k_means_finds_separate_clusters_and_keeps_the_first(generator):
    centres = np.array([[10, 0], [0, 10], [-10, 0]], np.float32)
    vectors_ND = (centres[generator.integers(0, 3, 600)] + 0.1 * generator.standard_normal((600, 2))).astype(np.float32)
    first_D = np.array([0.0, -30.0], np.float32)
    centroids_CD = k_means(vectors_ND, 4, first_D, 5, generator)
    np.testing.assert_array_equal(centroids_CD[0], first_D)
    for centre in centres:
        assert np.linalg.norm(centroids_CD[1:] - centre, axis=1).min() < 0.05


def test_every_centroid_is_used_even_on_skewed_data(generator):
    many_alike = np.zeros((5000, 4), np.float32)
    few_apart = generator.standard_normal((300, 4)).astype(np.float32)
    vectors_ND = np.concatenate([many_alike, few_apart])
    centroids_CD = k_means(vectors_ND, 64, np.zeros(4, np.float32), 8, generator)
    assert len(np.unique(nearest(vectors_ND, centroids_CD)[0])) >= 63


def test_identical_vectors_do_no_harm(generator):
    centroids_CD = k_means(np.ones((100, 4), np.float32), 8, np.ones(4, np.float32), 3, generator)
    np.testing.assert_array_equal(centroids_CD, np.ones((8, 4), np.float32))
