"""Vector quantisation: k-means whose first centroid is given, and the nearest or the steadiest sequence of codes."""

import numpy as np

_ROWS_AT_ONCE = 8192


def nearest(vectors_ND: np.ndarray, centroids_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of the nearest centroid of each vector (int64 (N,)) and the squared distance to it (float32 (N,))."""
    indices_N = np.empty(len(vectors_ND), np.int64)
    distances_N = _squared_norms(vectors_ND)
    for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances_NC = _distances_less_norm(vectors_ND[rows], centroids_CD)
        indices_N[rows] = distances_NC.argmin(axis=1)
        distances_N[rows] += np.take_along_axis(distances_NC, indices_N[rows, None], axis=1)[:, 0]
    return indices_N, np.maximum(distances_N, 0)


def steadiest(vectors_TD: np.ndarray, centroids_CD: np.ndarray, change_cost: float) -> np.ndarray:
    """The codes (int64 (T,)) that minimise summed squared distance + ``change_cost`` per change of code.

    Dynamic programming over all code sequences (Viterbi); as a change costs the same between any two codes, a step
    takes O(codes) and not O(codes squared).
    """
    frames, codes = len(vectors_TD), len(centroids_CD)
    changed_TC = np.zeros((frames, codes), bool)
    best_before_T = np.zeros(frames, np.int64)
    costs_C = np.zeros(codes)
    for start in range(0, frames, _ROWS_AT_ONCE):
        distances_TC = _distances_less_norm(vectors_TD[start : start + _ROWS_AT_ONCE], centroids_CD)
        for frame, distances_C in enumerate(distances_TC, start):
            best_before_T[frame] = costs_C.argmin()
            cost_of_change = costs_C[best_before_T[frame]] + change_cost
            np.greater(costs_C, cost_of_change, out=changed_TC[frame])
            costs_C = np.minimum(costs_C, cost_of_change) + distances_C
    path_T = np.empty(frames, np.int64)
    code = costs_C.argmin() if frames else 0
    for frame in reversed(range(frames)):
        path_T[frame] = code
        if changed_TC[frame, code]:
            code = best_before_T[frame]
    return path_T


def k_means(
    vectors_ND: np.ndarray, clusters: int, first_D: np.ndarray, iterations: int, generator: np.random.Generator
) -> np.ndarray:
    """Lloyd's algorithm from k-means++ seeds; centroid 0 stays ``first_D``.

    A centroid that has lost all its vectors moves to one of the vectors that are worst represented.

    Returns:
        centroids, float32 (clusters, D).
    """
    centroids_CD = _spread_seeds(vectors_ND, clusters, first_D, generator)
    for _ in range(iterations):
        indices_N, distances_N = nearest(vectors_ND, centroids_CD)
        counts_C = np.bincount(indices_N, minlength=clusters)
        occupied = np.flatnonzero(counts_C)
        starts = (np.cumsum(counts_C) - counts_C)[occupied]
        sums = np.add.reduceat(vectors_ND[np.argsort(indices_N, kind="stable")], starts, axis=0)
        centroids_CD[occupied] = sums / counts_C[occupied, None]
        empty = np.flatnonzero(counts_C[1:] == 0) + 1
        if len(empty):
            centroids_CD[empty] = vectors_ND[np.argsort(distances_N, kind="stable")[-len(empty) :]]
        centroids_CD[0] = first_D
    return centroids_CD


def _spread_seeds(
    vectors_ND: np.ndarray, clusters: int, first_D: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007) on at most 20 vectors a cluster, which keeps it a second's work."""
    candidates_ND = vectors_ND[generator.permutation(len(vectors_ND))[: 20 * clusters]]
    seeds_CD = np.empty((clusters, vectors_ND.shape[1]), np.float32)
    seeds_CD[0] = first_D
    norms_N = _squared_norms(candidates_ND)
    distances_N = np.full(len(candidates_ND), np.inf, np.float32)
    for cluster in range(1, clusters):
        to_newest_N = norms_N + _distances_less_norm(candidates_ND, seeds_CD[cluster - 1 : cluster])[:, 0]
        distances_N = np.maximum(np.minimum(distances_N, to_newest_N), 0)
        cumulative_N = np.cumsum(distances_N, dtype=np.float64)
        drawn = np.searchsorted(cumulative_N, generator.random() * cumulative_N[-1], side="right")
        seeds_CD[cluster] = candidates_ND[min(drawn, len(candidates_ND) - 1)]
    return seeds_CD


def _distances_less_norm(vectors_ND: np.ndarray, centroids_CD: np.ndarray) -> np.ndarray:
    """Squared distances less each vector's own squared norm, which no choice of centroid changes: float32 (N, C)."""
    distances_NC = vectors_ND @ (-2 * centroids_CD).T
    distances_NC += _squared_norms(centroids_CD)
    return distances_NC


def _squared_norms(vectors_ND: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", vectors_ND, vectors_ND)
