"""The few closest of many points to each row: candidates by float32 products, re-ranked in float64."""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import kernel
from daskmeans.kernels.norms import dot64, rounding_bound, squared_norms64


def closest_points(X: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` points closest to each row, in ascending order; ties go to the lower ones.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
    points : ndarray of float32, shape (m, d), m >= count
    count : int

    Returns
    -------
    ndarray of int64, shape (n, count)

    Examples
    --------
    >>> points = np.float32([[0, 0], [1, 0], [5, 0], [1, 0]])
    >>> closest_points(np.float32([[1, 0], [9, 0]]), points, 2).tolist()
    [[1, 3], [1, 2]]
    """
    if count == len(points):
        return np.tile(np.arange(count), (len(X), 1))
    half_norms = 0.5 * squared_norms64(points)
    scores = X @ points.T
    scores -= half_norms.astype(np.float32)
    out = np.empty((len(X), count), np.int64)
    _select_closest(scores, X, points, half_norms, np.sqrt(2.0 * half_norms.max()), rounding_bound(X.shape[1]), out)
    return out


@kernel
def _select_closest(scores, X, points, half_norms, longest, bound, out):  # type: ignore[no-untyped-def]
    """Write into each row of `out` the columns of the scores that are largest in float64."""
    m, count = scores.shape[1], out.shape[1]
    close = np.empty(m, np.int64)
    for i in range(scores.shape[0]):
        error = bound * (np.sqrt(dot64(X[i], X[i])) * longest + 0.5 * longest * longest)
        error += (X.shape[1] + 2) * 2.0**-126  # what products and norms too small for float32 may lose
        last = np.float64(np.partition(scores[i], m - count)[m - count])
        taken = contested = 0
        for j in range(m):
            score = np.float64(scores[i, j])
            if score > last + 2.0 * error:
                out[i, taken] = j
                taken += 1
            elif score >= last - 2.0 * error:
                close[contested] = j
                contested += 1
        if taken + contested > count:
            exact = np.empty(contested)
            for c in range(contested):
                exact[c] = dot64(X[i], points[close[c]]) - half_norms[close[c]]
            order = np.argsort(-exact, kind="mergesort")  # stable: the lower point first
            for c in range(count - taken):
                out[i, taken + c] = close[order[c]]
        else:
            out[i, taken:] = close[:contested]
        out[i].sort()


@kernel
def nearest_candidates(X, points, half_norms, candidates, labels):  # type: ignore[no-untyped-def]
    """Write into `labels` the nearest of each row's candidates; ties go to the lower one; -1 if there are none.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
    points : ndarray of float32, shape (k, d)
    half_norms : ndarray of float64, shape (k,)
        Half of the squared norms of `points`.
    candidates : ndarray of int64, shape (n, m)
        Indices of `points`, in any order; -1 stands for none.
    labels : ndarray of int32, shape (n,)
    """
    for i in range(candidates.shape[0]):
        best, label = -np.inf, np.int64(-1)
        for j in candidates[i]:
            if j >= 0:
                score = dot64(X[i], points[j]) - half_norms[j]
                if score > best or (score == best and j < label):
                    best, label = score, j
        labels[i] = label


def own_ranks(X: np.ndarray, points: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return how many of `points` are closer to each row than its own point, or as close and lower.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
    points : ndarray of float32, shape (m, d)
    own : ndarray of int, shape (n,)

    Returns
    -------
    ndarray of int64, shape (n,)

    Examples
    --------
    >>> points = np.float32([[0, 0], [1, 0], [5, 0], [1, 0]])
    >>> own_ranks(np.float32([[1, 0], [1, 0], [9, 0]]), points, np.array([3, 0, 0])).tolist()
    [1, 2, 3]
    """
    return _count_closer(X, points, 0.5 * squared_norms64(points), own)  # type: ignore[no-any-return]


@kernel
def _count_closer(X, points, half_norms, own):  # type: ignore[no-untyped-def]
    out = np.zeros(X.shape[0], np.int64)
    for i in range(X.shape[0]):
        mine = dot64(X[i], points[own[i]]) - half_norms[own[i]]
        for j in range(points.shape[0]):
            score = dot64(X[i], points[j]) - half_norms[j]
            out[i] += score > mine or (score == mine and j < own[i])
    return out
