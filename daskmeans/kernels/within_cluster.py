"""Pairs of unit rows in rank order: exact copies, the most similar earlier row, and which rows stay.

The score of a pair is a float32 number: the float64 dot product of the two rows, rounded once, at most 1. Bitwise
identical rows (a negative zero counts as zero) score exactly 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daskmeans.kernels.hashing import hash_rows
from daskmeans.kernels.jit import kernel
from daskmeans.kernels.norms import rounding_bound
from daskmeans.kernels.simd import dot64

BATCH_ROWS = 256


@kernel
def is_same_row(x, y):  # type: ignore[no-untyped-def]
    """Whether two rows are bitwise identical, but for the sign of zeros."""
    for i in range(x.shape[0]):  # noqa: SIM110 - numba compiles the loop
        if x[i] != y[i]:
            return False
    return True


@kernel
def product_score(x, y):  # type: ignore[no-untyped-def]
    """Return the score of two unit rows that are not copies of each other."""
    return np.float32(min(dot64(x, y), 1.0))


@kernel
def pair_score(x, y):  # type: ignore[no-untyped-def]
    """Return the score of two unit rows."""
    return np.float32(1.0) if is_same_row(x, y) else product_score(x, y)


def find_copies(X: np.ndarray) -> np.ndarray:
    """Return the first copy of each row; for a row without an earlier copy, the row itself.

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
    """Return the first copy of each row; `order` sorts `hashes` stably. Rows with equal hashes are compared in full."""
    first = np.arange(X.shape[0])
    start = 0
    for p in range(1, X.shape[0]):
        i = order[p]
        if hashes[i] != hashes[order[p - 1]]:
            start = p
        for q in range(start, p):
            j = order[q]
            if first[j] == j and is_same_row(X[i], X[j]):
                first[i] = j
                break
    return first


class NearestEarlier(NamedTuple):
    """The most similar earlier row of some rows of a matrix in rank order."""

    best: np.ndarray
    """int64: that row, the first in rank among equals; -1 for row 0."""
    score: np.ndarray
    """float32: the score with `best`; minus infinity for row 0."""


class Selection(NamedTuple):
    """Which rows of a matrix in rank order stay, and for which row each of the others goes."""

    stays: np.ndarray
    """bool"""
    kept: np.ndarray
    """int64: for a row that goes, the most similar earlier row that stays and reaches the threshold, or -1."""
    score: np.ndarray
    """float32: the score with `kept`; NaN without."""


def nearest_earlier(X: np.ndarray, first: int, last: int, tile_bytes: int) -> NearestEarlier:
    """Compare each of the rows from `first` to `last` with all rows before it.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        Unit (or zero) rows in rank order, no two of them copies.
    first, last : int
        The range of rows; the result for a row does not depend on it.
    tile_bytes : int
        Bytes of the score matrix at a time, at most; the result does not depend on it.

    Notes
    -----
    A float32 product lies within g = `rounding_bound` of the true one. So a row whose score is the largest (or equal
    to it after rounding and clipping) has a product of at least min(largest product so far, 1) - 2g, and only such
    rows are scored again in float64. This takes n²·d operations but never n² memory.
    """
    found = NearestEarlier(np.full(last - first, -1), np.full(last - first, -np.inf, np.float32))
    (height, width), margin = _tile_shape(tile_bytes), 2 * rounding_bound(X.shape[1])
    for begin in range(first, last, height):
        end = min(begin + height, last)
        mine = slice(begin - first, end - first)
        tops = np.full(end - begin, -np.inf, np.float32)
        for left in range(0, end, width):
            columns = np.arange(left, min(left + width, end))
            tile = X[begin:end] @ X[left : left + len(columns)].T
            _scan_tile(tile, X, np.arange(begin, end), columns, margin, tops, found.best[mine], found.score[mine])
    return found


def select_rows(X: np.ndarray, found: NearestEarlier, threshold: np.float32, rule: str, tile_bytes: int) -> Selection:
    """Decide which rows stay.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        As for :func:`nearest_earlier`.
    found : NearestEarlier
        The result of that function for all rows.
    threshold : float32
        Rows are similar enough if their score is at least this.
    rule : {"survivors", "semdedup"}
        When a row goes: "survivors", if an earlier row that itself stays is similar enough; "semdedup", if any earlier
        row is.
    tile_bytes : int

    Notes
    -----
    A row stays if its nearest row is not similar enough, and goes if its nearest row stays. The undecided rows, few
    unless many are alike, are compared with the rows that stay, which are few if many are alike.
    """
    stays, kept = found.score < threshold, np.full(len(X), -1)
    kept_score = np.full(len(X), np.float32(np.nan))
    (height, width), margin = _tile_shape(tile_bytes), 2 * rounding_bound(X.shape[1])
    similar = np.flatnonzero(~stays)
    for start in range(0, len(similar), height):
        batch = similar[start : start + height]
        # `stays` is still False for the rows of this batch; rows that stay already do so whatever is decided on these.
        clear = stays[found.best[batch]]
        kept[batch[clear]], kept_score[batch[clear]] = found.best[batch[clear]], found.score[batch[clear]]
        unclear = batch[~clear]
        tops = np.full(len(unclear), threshold, np.float32)
        best, score = np.full(len(unclear), -1), np.full(len(unclear), -np.inf, np.float32)
        staying = np.flatnonzero(stays[: batch[-1]])
        for left in range(0, len(staying) if len(unclear) else 0, width):
            columns = staying[left : left + width]
            _scan_tile(X[unclear] @ X[columns].T, X, unclear, columns, margin, tops, best, score)
        if rule == "survivors":
            _select_survivors(X[unclear] @ X[unclear].T, X, unclear, threshold, margin, best, score, stays)
        near = score >= threshold
        kept[unclear[near]], kept_score[unclear[near]] = best[near], score[near]
    return Selection(stays, kept, kept_score)


def _tile_shape(tile_bytes: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of a tile of products."""
    height = max(1, min(BATCH_ROWS, tile_bytes // 4))
    return height, max(height, tile_bytes // (4 * height))


@kernel
def _scan_tile(tile, X, rows, columns, margin, tops, best, score):  # type: ignore[no-untyped-def]
    """Update the best of `rows` by their products with earlier rows among `columns`, which ascend."""
    for r in range(tile.shape[0]):
        width = np.searchsorted(columns, rows[r])
        for c in range(width):
            tops[r] = max(tops[r], tile[r, c])
        cut = min(np.float64(tops[r]), 1.0) - margin
        for c in range(width):
            if tile[r, c] >= cut:
                _keep_best(X, rows[r], columns[c], r, best, score)


@kernel
def _keep_best(X, row, column, r, best, score):  # type: ignore[no-untyped-def]
    """Make `column` the best of `row`, the `r`-th of some, if it is; ties go to the first in rank."""
    s = product_score(X[row], X[column])
    if s > score[r] or (s == score[r] and column < best[r]):
        best[r], score[r] = column, s


@kernel
def _select_survivors(tile, X, rows, threshold, margin, best, score, stays):  # type: ignore[no-untyped-def]
    """Decide on `rows` in their order; `best` already covers all other rows that stay."""
    for r in range(tile.shape[0]):
        for c in range(r):
            if stays[rows[c]] and tile[r, c] >= max(np.float64(threshold), np.float64(score[r])) - margin:
                _keep_best(X, rows[r], rows[c], r, best, score)
        stays[rows[r]] = score[r] < threshold


@kernel
def flag_neighbors(tile, rows, X, own, skip, threshold, margin, anywhere, here):  # type: ignore[no-untyped-def]
    """Find which sampled rows have a neighbor (a score of at least `threshold`) among the rows of one cluster.

    Parameters
    ----------
    tile : ndarray of float32, shape (m, n)
        Products of `rows` (sampled unit rows) and `X` (rows of the cluster).
    own : ndarray of bool, shape (m,)
        Whether the sampled row belongs to this cluster.
    skip : ndarray of int64, shape (m,)
        The sampled row's own index in `X`, or any number that is no index.
    margin : float
        Bound on the error of `tile`; products further than this from the threshold are not scored again.
    anywhere, here : ndarray of bool, shape (m,)
        Set to True for rows with a neighbor, and for those with a neighbor in their own cluster.
    """
    low, high = np.float64(threshold) - margin, np.float64(threshold) + margin
    for i in range(tile.shape[0]):
        if anywhere[i] and (here[i] or not own[i]):
            continue
        # Zero rows are copies of one another, but their product is zero.
        zero = not rows[i].any()
        for j in range(tile.shape[1]):
            s = tile[i, j]
            if j == skip[i] or (s < low and not zero):
                continue
            if s > high or pair_score(rows[i], X[j]) >= threshold:
                anywhere[i] = True
                here[i] = here[i] or own[i]
                break
