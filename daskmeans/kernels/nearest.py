"""Nearest centroid of each row: screened by a float32 matrix product, settled in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from daskmeans.kernels.jit import kernel
from daskmeans.kernels.products import dot64, rounding_bound, squared_distance64, squared_norms64


def nearest(X: np.ndarray, centroids: np.ndarray, tile_rows: int) -> np.ndarray:
    """Label of the nearest centroid of each row; ties go to the lower label.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d), C-contiguous
    centroids : ndarray of float32, shape (k, d), C-contiguous
    tile_rows : int
        Rows that are scored at once; affects memory and speed, never the labels.

    Returns
    -------
    ndarray of int32, shape (n,)

    Examples
    --------
    >>> X = np.float32([[0, 0], [9, 9], [5, 5]])
    >>> nearest(X, np.float32([[0, 0], [10, 10]]), tile_rows=2).tolist()
    [0, 1, 0]
    """
    half_norms = 0.5 * squared_norms64(centroids)
    screen_norms = half_norms.astype(np.float32)
    longest = float(np.sqrt(2.0 * half_norms.max()))
    labels = np.empty(len(X), np.int32)
    for rows in tiles(len(X), tile_rows):
        # argmin ‖x − c‖² = argmax x·c − ‖c‖²/2
        scores = X[rows] @ centroids.T
        scores -= screen_norms
        labels[rows] = scores.argmax(axis=1)
        _settle(scores, X[rows], centroids, half_norms, longest, rounding_bound(X.shape[1]), labels[rows])
    return labels


def tiles(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover ``range(n)`` in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@kernel
def _settle(scores, X, centroids, half_norms, longest, bound, labels):  # type: ignore[no-untyped-def]
    """Replace labels whose screen score is within the screen's error of another centroid's by the exact choice."""
    k = scores.shape[1]
    for i in range(scores.shape[0]):
        error = bound * (np.sqrt(dot64(X[i], X[i])) * longest + 0.5 * longest * longest)
        error += (X.shape[1] + 2) * 2.0**-126  # what products and norms too small for float32 may lose
        floor = np.float32(np.float64(scores[i, labels[i]]) - 2.0 * error)
        if floor > scores[i, labels[i]] - 2.0 * error:
            floor = np.nextafter(floor, np.float32(-np.inf))
        close = 0
        for j in range(k):
            close += scores[i, j] >= floor
        if close > 1:
            best = -np.inf
            for j in range(k):
                if scores[i, j] >= floor:
                    score = dot64(X[i], centroids[j]) - half_norms[j]
                    if score > best:
                        best = score
                        labels[i] = j


@kernel
def squared_distances(X, centroids, labels):  # type: ignore[no-untyped-def]
    """Squared distance of each row to the centroid of its label, float64."""
    out = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        out[i] = squared_distance64(X[i], centroids[labels[i]])
    return out


def all_distances(X: np.ndarray, centroids: np.ndarray, tile_rows: int) -> np.ndarray:
    """Euclidean distance of each row to each centroid; float32, shape (n, k), computed in float64."""
    wide = centroids.astype(np.float64)
    norms = squared_norms64(centroids)
    out = np.empty((len(X), len(centroids)), np.float32)
    for rows in tiles(len(X), tile_rows):
        squared = squared_norms64(X[rows])[:, None] - 2.0 * (X[rows] @ wide.T) + norms
        out[rows] = np.sqrt(np.maximum(squared, 0.0))
    return out


@kernel
def cosine_distances(X, centroids, labels):  # type: ignore[no-untyped-def]
    """Cosine distance of each row to the centroid of its label, float64; 1 where either is zero."""
    out = np.ones(X.shape[0], np.float64)
    norms = np.sqrt(squared_norms64(centroids))
    for i in range(X.shape[0]):
        scale = np.sqrt(dot64(X[i], X[i])) * norms[labels[i]]
        if scale > 0.0:
            out[i] = 1.0 - dot64(X[i], centroids[labels[i]]) / scale
    return out
