"""Nearest centroid of each row, and distances to centroids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from daskmeans.kernels.bounds import Bounds, zero_drift
from daskmeans.kernels.jit import as_readonly, kernel
from daskmeans.kernels.norms import squared_norms64
from daskmeans.kernels.quantize import codes_layout, encode_rows, is_bytewise, pack_centroids, squares_about
from daskmeans.kernels.simd import dot64, squared_distance64
from daskmeans.kernels.yinyang import ALL_GROUPS, find_nearest

# Rows that are encoded at once, and their coordinates: as bytes they fit into the L2 cache.
BATCH_ROWS, BATCH_COORDINATES = 2048, 3 << 18


def nearest_centroids(X: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centroid of each row and the squared distance to it; ties go to the lower label.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d), C-contiguous
    centroids : ndarray of float32, shape (k, d), C-contiguous

    Returns
    -------
    labels : ndarray of int32, shape (n,)
    squares : ndarray of float64, shape (n,)
        Summed in a fixed order; labels are decided by these numbers.

    Examples
    --------
    >>> X = np.float32([[0, 0], [9, 9], [5, 5]])
    >>> labels, squares = nearest_centroids(X, np.float32([[0, 0], [10, 10]]))
    >>> labels.tolist(), squares.tolist()
    ([0, 1, 0], [0.0, 2.0, 50.0])
    """
    squares = np.empty(len(X))
    return _find_labels(X, centroids, squares), squares


def nearest_labels(X: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return only the labels of :func:`nearest_centroids`, in less time."""
    return _find_labels(X, centroids, np.empty(0))


def _find_labels(X: np.ndarray, centroids: np.ndarray, squares: np.ndarray) -> np.ndarray:
    X, centroids = as_readonly(X), as_readonly(centroids)
    center = centroids.mean(axis=0, dtype=np.float64)
    # Centroids of similar length share a group: the longest one determines the error bound of the group's scores.
    columns = pack_centroids(centroids, center, squares_about(centroids, as_readonly(center)).argsort(kind="stable"))
    labels = np.full(len(X), -1, np.int32)
    unbounded, rest = np.empty((len(X), 0), np.float32), zero_drift(len(centroids), 0)
    size = max(1, min(len(X), max(BATCH_ROWS, BATCH_COORDINATES // max(1, X.shape[1]))))
    # Reused for each batch: touching new memory takes as long as the encoding.
    room: dict[str, np.ndarray] = {
        name: np.zeros(*kind) for name, kind in codes_layout(size, X.shape[1], is_bytewise(X.shape[1])).items()
    }
    for rows in range_slices(len(X), size):
        bounds = Bounds(labels[rows], np.empty(0, np.float32), unbounded[rows])
        codes = encode_rows(X[rows], center, {name: array[: len(X[rows])] for name, array in room.items()})
        find_nearest(X[rows], codes, columns, bounds, rest, 1, ALL_GROUPS, squares[rows])
    return labels


def range_slices(n: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover ``range(n)`` in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@kernel
def squared_distances(X, centroids, labels):  # type: ignore[no-untyped-def]
    """Return the squared distance of each row to the centroid of its label, float64."""
    out = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        out[i] = squared_distance64(X[i], centroids[labels[i]])
    return out


def all_distances(X: np.ndarray, centroids: np.ndarray, tile_rows: int) -> np.ndarray:
    """Return the Euclidean distance of each row to each centroid; float32, shape (n, k), computed in float64."""
    wide = centroids.astype(np.float64)
    norms = squared_norms64(centroids)
    out = np.empty((len(X), len(centroids)), np.float32)
    for rows in range_slices(len(X), tile_rows):
        squared = squared_norms64(X[rows])[:, None] - 2.0 * (X[rows] @ wide.T) + norms
        out[rows] = np.sqrt(np.maximum(squared, 0.0))
    return out


@kernel
def cosine_distances(X, centroids, labels):  # type: ignore[no-untyped-def]
    """Return the cosine distance of each row to the centroid of its label, float64; 1 where either is zero."""
    out = np.ones(X.shape[0], np.float64)
    norms = np.sqrt(squared_norms64(centroids))
    for i in range(X.shape[0]):
        scale = np.sqrt(dot64(X[i], X[i])) * norms[labels[i]]
        if scale > 0.0:
            out[i] = 1.0 - dot64(X[i], centroids[labels[i]]) / scale
    return out
