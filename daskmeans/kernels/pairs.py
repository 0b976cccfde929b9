"""Pairs of unit rows in rank order: exact copies, the most similar earlier row, and who stays.

A pair's score is one float32 number: the float64 dot product of the two rows, rounded once, at most 1. Rows that are
the same bit for bit (a negative zero counts as zero) score exactly 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daskmeans.kernels.hashing import hash_rows
from daskmeans.kernels.jit import kernel
from daskmeans.kernels.lanes import dot64
from daskmeans.kernels.products import rounding_bound

BATCH_ROWS = 256


@kernel
def same_row(x, y):  # type: ignore[no-untyped-def]
    """Whether two rows are the same bit for bit, but for the sign of zeros."""
    for i in range(x.shape[0]):  # noqa: SIM110 - numba compiles the loop
        if x[i] != y[i]:
            return False
    return True


@kernel
def product_score(x, y):  # type: ignore[no-untyped-def]
    """Score of two unit rows that are not copies of each other."""
    return np.float32(min(dot64(x, y), 1.0))


@kernel
def pair_score(x, y):  # type: ignore[no-untyped-def]
    """Score of two unit rows."""
    return np.float32(1.0) if same_row(x, y) else product_score(x, y)


def find_copies(X: np.ndarray) -> np.ndarray:
    """First row that is a copy of each row; a row without an earlier copy is its own.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)

    Returns
    -------
    ndarray of int64, shape (n,)

    Examples
    --------
    >>> find_copies(np.array([[0, 1], [1, 0], [-0.0, 1]], np.float32)).tolist()
    [0, 1, 0]
    """
    hashes = hash_rows(X)
    return first_copies(X, hashes, np.argsort(hashes, kind="stable"))


@kernel
def first_copies(X, hashes, order):  # type: ignore[no-untyped-def]
    """First copy of each row; `order` sorts `hashes` stably. Rows with the same hash are compared bit for bit."""
    first = np.arange(X.shape[0])
    start = 0
    for p in range(1, X.shape[0]):
        i = order[p]
        if hashes[i] != hashes[order[p - 1]]:
            start = p
        for q in range(start, p):
            j = order[q]
            if first[j] == j and same_row(X[i], X[j]):
                first[i] = j
                break
    return first


class Earlier(NamedTuple):
    """What each row of a matrix in rank order found among the rows before it."""

    best: np.ndarray
    """int64: the most similar earlier row, first in rank among equals; 0 for row 0."""
    score: np.ndarray
    """float32: the score with `best`; 0 for row 0."""
    kept: np.ndarray
    """int64: for a row that goes, the most similar earlier row that stays and is similar enough, or -1."""
    stays: np.ndarray
    """bool"""


def compare_earlier(X: np.ndarray, threshold: np.float32, rule: str, tile_bytes: int) -> Earlier:
    """Compare each row with all rows before it and decide which stay.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        Unit (or zero) rows in rank order, no two of them copies.
    threshold : float32
        Similar enough is a score of at least this.
    rule : {"survivors", "semdedup"}
        A row goes when an earlier row that itself stays is similar enough, or when any earlier row is.
    tile_bytes : int
        Bound of the score matrix kept at once; the result does not depend on it.

    Notes
    -----
    A float32 product lies within g = `rounding_bound` of the true one. So a row whose score is the largest (or equal
    to it after rounding and clipping) has a product of at least min(largest product so far, 1) - 2g, and only such
    rows are scored again in float64. This takes n²·d operations but never n² memory.
    """
    n, d = X.shape
    found = Earlier(np.full(n, -1), np.full(n, -np.inf, np.float32), np.full(n, -1), np.ones(n, np.bool_))
    kept_score = np.full(n, -np.inf, np.float32)
    margin = 2 * rounding_bound(d)
    height = max(1, min(BATCH_ROWS, tile_bytes // 4))
    width = max(height, tile_bytes // (4 * height))
    for begin in range(0, n, height):
        rows = X[begin : begin + height]
        tops = np.full((2, len(rows)), -np.inf, np.float32)
        # The last tile holds the batch itself, so that every earlier batch is decided before it is met.
        for left in [*range(0, begin, width), begin]:
            right = begin + len(rows) if left == begin else min(left + width, begin)
            tile = rows @ X[left:right].T
            _scan(tile, X, begin, left, margin, threshold, rule == "survivors", tops, *found, kept_score)
    found.best[:1], found.score[:1] = 0, 0
    return found


@kernel
def _scan(  # type: ignore[no-untyped-def]
    tile, X, begin, left, margin, threshold, survivors, tops, best, score, kept, stays, kept_score
):
    """Take one tile of products, rows from `begin` and columns from `left`, into what the rows have found so far."""
    for r in range(tile.shape[0]):
        i = begin + r
        width = min(tile.shape[1], i - left)
        for c in range(width):
            tops[0, r] = max(tops[0, r], tile[r, c])
            if stays[left + c]:
                tops[1, r] = max(tops[1, r], tile[r, c])
        cut = min(np.float64(tops[0, r]), 1.0) - margin
        kept_cut = min(np.float64(tops[1, r]), 1.0) - margin
        for c in range(width):
            j = left + c
            if tile[r, c] >= cut or (stays[j] and tile[r, c] >= kept_cut):
                s = product_score(X[i], X[j])
                if s > score[i]:
                    best[i], score[i] = j, s
                if stays[j] and s > kept_score[i]:
                    kept[i], kept_score[i] = j, s
        if left == begin:
            stays[i] = (kept_score[i] if survivors else score[i]) < threshold
            if stays[i] or kept_score[i] < threshold:
                kept[i] = -1


@kernel
def find_twins(tile, rows, X, own, skip, threshold, margin, anywhere, here):  # type: ignore[no-untyped-def]
    """Note which sampled rows have a twin (a score of at least `threshold`) among the rows of one cluster.

    Parameters
    ----------
    tile : ndarray of float32, shape (m, n)
        Products of `rows` (sampled unit rows) and `X` (rows of the cluster).
    own : ndarray of bool, shape (m,)
        Whether the sampled row belongs to this cluster.
    skip : ndarray of int64, shape (m,)
        The sampled row's own place in `X`, or any number outside it.
    margin : float
        Bound of the error of `tile`; products further than this from the threshold are not scored again.
    anywhere, here : ndarray of bool, shape (m,)
        Set to True for rows with a twin, and for those with a twin in their own cluster.
    """
    low, high = np.float64(threshold) - margin, np.float64(threshold) + margin
    for i in range(tile.shape[0]):
        if anywhere[i] and (here[i] or not own[i]):
            continue
        # Zero rows are copies of one another, which no product tells.
        zero = not rows[i].any()
        for j in range(tile.shape[1]):
            s = tile[i, j]
            if j == skip[i] or (s < low and not zero):
                continue
            if s > high or pair_score(rows[i], X[j]) >= threshold:
                anywhere[i] = True
                here[i] = here[i] or own[i]
                break
