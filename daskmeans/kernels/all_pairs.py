"""All pairs of rows whose product reaches a floor: sketches exclude most pairs, and the others are multiplied exactly.

The sketch of a row is its coordinates along a few directions, and the norm of its residual. The product of two rows is
at most that of their sketches (Cauchy-Schwarz for the residuals), whatever the directions are; good ones only make the
bound tighter. Sketches are compared by the same candidate filter as rows and centroids. The bound includes the error of
that comparison, so no pair is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from daskmeans.kernels.bounds import slack_terms
from daskmeans.kernels.jit import as_readonly, kernel
from daskmeans.kernels.microkernel import COLUMNS, ROWS, has_byte_instructions, score_tile
from daskmeans.kernels.norms import rounding_bound, squared_norms64
from daskmeans.kernels.quantize import Codes, PackedCentroids, encode_rows, pack_centroids
from daskmeans.kernels.within_cluster import is_same_row, product_score

# The residual is spread over this many equal coordinates: one large coordinate would make the steps of bytes coarser.
RESTS = 4
# Numbers of directions that are tried, and the rows of the sample that they are tried on.
DIRECTIONS, TRIAL_ROWS = (32, 64, 128, 256, 512), 1024
# Rows of a sample, and their coordinates, at most: finding directions takes a second or two, however wide the rows are.
SAMPLE_ROWS, SAMPLE_COORDINATES = 8192, 1 << 24
# Up to this dimension all principal axes of a sample are computed, in cubic time; of wider rows only the first ones.
NARROW = 1024
# Cost of multiplying two rows exactly, per coordinate, in coordinates of sketches: as bytes, as float32.
EXACT_COST = (240.0, 60.0)
# Rows that are compared with each group of columns in turn, and pairs that are collected at a time.
CHUNK, ROOM = 1024, 1 << 18


class Sketches(NamedTuple):
    """Rows with their sketches, in both forms that a comparison takes: codes as rows, packed as columns."""

    X: np.ndarray
    """float32, shape (n, d)"""
    codes: Codes
    """Codes of the sketches."""
    columns: PackedCentroids
    """The sketches as columns; their halves are zero."""
    loose: float
    """By how much the product of two rows may exceed that of their sketches, since these are rounded."""


class Pairs(NamedTuple):
    """Pairs of rows, by their indices."""

    rows: np.ndarray
    """int64, shape (m,)"""
    columns: np.ndarray
    """int64, shape (m,)"""
    scores: np.ndarray
    """float32, shape (m,)"""
    copies: np.ndarray
    """bool, shape (m,): whether the rows are bitwise identical, but for the sign of zeros."""


def n_sample_rows(dimension: int) -> int:
    """Return how many rows to sample for finding directions; fewer of wide rows, so that it takes no longer.

    Examples
    --------
    >>> n_sample_rows(384), n_sample_rows(12_288)
    (8192, 1365)
    """
    return max(1, min(SAMPLE_ROWS, SAMPLE_COORDINATES // dimension))


def find_directions(sample: np.ndarray, floor: float) -> np.ndarray:
    """Find directions with which the pairs of rows whose product is at least `floor` are found fastest.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, d)
        Some of the rows, about :func:`n_sample_rows`, sorted by cluster. Any other sample gives the same pairs, in more
        time.
    floor : float

    Returns
    -------
    ndarray of float32, shape (d, p)
        Of norm 1 at most. With ``p = 0`` no directions pay off, and sketches are the rows themselves.
    """
    d = sample.shape[1]
    # A few wide rows fit their own axes better than other rows would, so the rows for the trial are left out of them.
    most = len(sample) if d <= NARROW else len(sample) // 4
    places = np.linspace(0, len(sample) - 1, min(most, TRIAL_ROWS)).astype(int)
    tried = sample[places]
    axes = _principal_axes(sample) if d <= NARROW else _leading_axes(np.delete(sample, places, axis=0))
    cheapest, best = float(d), np.empty((d, 0), np.float32)
    for p in DIRECTIONS:
        if p + RESTS >= d or p > axes.shape[1]:
            break
        P = _scale_axes(axes[:, :p])
        F, loose = sketch_rows(tried, P)
        codes = encode_rows(F, np.zeros(F.shape[1]))
        half = len(tried) // 2  # of the clusters, so that most pairs are of different clusters
        products = F[:half].astype(np.float64) @ F[half:].T + 2.0 * codes.errors[:half, None] + loose
        candidates = np.count_nonzero(products >= floor) / max(1, products.size)
        cost = F.shape[1] + candidates * d * EXACT_COST[not has_byte_instructions()]
        if cost < cheapest:
            cheapest, best = cost, P
    return best


def _principal_axes(X: np.ndarray) -> np.ndarray:
    """Return the principal axes of the rows of `X`, the longest first; float64, shape (d, d)."""
    wide = X.astype(np.float64)
    return np.linalg.eigh(wide.T @ wide)[1][:, ::-1]


def _leading_axes(X: np.ndarray) -> np.ndarray:
    """Approximate the first of :func:`_principal_axes`, as many as may be directions, by random projections."""
    count = min(len(X), DIRECTIONS[-1])
    some = np.random.default_rng(0).standard_normal((X.shape[1], count), np.float32)
    Y = (X.T @ (X @ some)).astype(np.float64)
    squares, turned = np.linalg.eigh(Y.T @ Y)
    there = squares > 2.0**-40 * squares.max(initial=0.0)
    Q = (Y @ (turned[:, there] / np.sqrt(squares[there]))).astype(np.float32)  # as of a QR, in products alone
    return (Q @ _principal_axes(X @ Q).astype(np.float32)).astype(np.float64)


def _scale_axes(axes: np.ndarray) -> np.ndarray:
    """Return `axes` as float32, with norm 1 at most: rounding adds less to the norm than the factor takes away."""
    norm = np.sqrt(np.linalg.eigvalsh(axes.T @ axes)[-1])
    return np.ascontiguousarray(axes * ((1.0 - 2.0**-16) / norm), np.float32)


def sketch_rows(X: np.ndarray, P: np.ndarray) -> tuple[np.ndarray, float]:
    """Return sketches of the rows of `X`, and by how much a product of rows may exceed that of their sketches.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
    P : ndarray of float32, shape (d, p)
        Of norm 1 at most.

    Returns
    -------
    F : ndarray of float32, shape (n, p + 4)
        ``X @ P``, and four times half the norm of the residual; `X` itself if there are no directions.
    loose : float

    Notes
    -----
    With a = Pᵀx, xᵀ(1 − PPᵀ)y ≤ r(x) r(y), where r(x)² = |x|² − |a|². What is computed for a is off by δ at most.
    """
    if P.shape[1] == 0:
        return X, 0.0
    p = P.shape[1]
    squares = squared_norms64(as_readonly(X))
    longest = float(np.sqrt(squares.max(initial=0.0)))
    off = rounding_bound(X.shape[1]) * float(np.linalg.norm(P)) * longest
    A = X @ P
    kept = np.maximum(np.sqrt(squared_norms64(as_readonly(A))) - off, 0.0)
    rest = np.sqrt(np.maximum(squares - kept**2, 0.0) + 2.0**-40 * longest**2)
    F = np.empty((len(X), p + RESTS), np.float32)
    F[:, :p] = A
    F[:, p:] = (0.5 * rest * (1.0 + 2.0**-22))[:, None]
    return F, 2.0 * off * (longest + off)


def make_sketches(X: np.ndarray, P: np.ndarray) -> Sketches:
    """Return sketches of the rows of `X` (float32, shape (n, d), C-contiguous) along the directions `P`."""
    F, loose = sketch_rows(X, P)
    center = np.zeros(F.shape[1])
    columns = pack_centroids(F, center)
    columns.halves.ravel()[: len(X)] = 0.0
    return Sketches(as_readonly(X), encode_rows(F, center), columns._replace(centroids=columns.centroids[:0]), loose)


def find_pairs(
    one: Sketches,
    other: Sketches,
    floor: np.float32,
    rows: slice,
    columns: slice,
    *,
    same: bool = False,
    room: int = ROOM,
) -> Iterator[Pairs]:
    """Yield the pairs of rows whose score is at least `floor`, some at a time.

    Parameters
    ----------
    one, other : Sketches
        Along the same directions.
    floor : float32
    rows, columns : slice
        The rows of `one` that are compared, and those of `other`.
    same : bool, default False
        Whether `one` is `other`. Then each pair is yielded once, the later row first.
    room : int
        About how many pairs are collected at a time.

    Yields
    ------
    Pairs
        In an order that depends on the sketches. Pairs of zero rows are not among them:
        their product is zero.

    Examples
    --------
    >>> X = np.float32([[1, 0], [0.8, 0.6], [0, 1], [0.8, 0.6]])
    >>> rows = make_sketches(X, np.empty((2, 0), np.float32))
    >>> for found in find_pairs(rows, rows, np.float32(0.7), slice(0, 4), slice(0, 4), same=True):
    ...     sorted(zip(found.rows.tolist(), found.columns.tolist(), found.copies.tolist()))
    [(1, 0, False), (3, 0, False), (3, 1, True)]
    """
    picks = np.arange(rows.start, rows.stop, dtype=np.int32)
    jobs = np.array([[0, len(picks), columns.start, columns.stop]])
    return find_pairs_among(one, other, floor, picks, jobs, same=same, room=room)


def find_pairs_among(
    one: Sketches,
    other: Sketches,
    floor: np.float32,
    picks: np.ndarray,
    jobs: np.ndarray,
    *,
    same: bool = False,
    room: int = ROOM,
) -> Iterator[Pairs]:
    """Like :func:`find_pairs`, but among given rows and columns, in several jobs.

    Parameters
    ----------
    one, other, floor, same, room
        As in :func:`find_pairs`.
    picks : ndarray of int32
        Rows of `one`.
    jobs : ndarray of int64, shape (m, 4)
        Rows ``picks[j[0] : j[1]]`` are compared with rows ``j[2]`` to ``j[3]`` of `other`, for each job j.
    """
    if not len(jobs) or not len(other.X):
        return
    state = np.array([0, 0, 0])
    least = _least_scores(one.codes, other.columns, np.float64(floor), one.loose + other.loose)
    counts = jobs[:, 1] - jobs[:, 0]
    most = int((counts * (jobs[:, 3] - jobs[:, 2])).sum())
    room = min(room, most) + min(CHUNK, int(counts.max(initial=0))) * COLUMNS
    while state[0] < len(jobs):
        buffer = Pairs(
            np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float32), np.empty(room, np.bool_)
        )
        n = _collect_pairs(one.X, one.codes, other.X, other.columns, least, floor, picks, jobs, same, state, buffer)
        if n:
            yield Pairs(*(part[:n].copy() for part in buffer))


@kernel
def _least_scores(codes, columns, floor, loose):  # type: ignore[no-untyped-def]
    """Return for each row the lowest filter score that a pair at the floor may have; rounded down."""
    n, d = codes.squares.shape[0], columns.centroids.shape[1]
    out = np.empty(n, np.float32)
    longest, error = columns.longest.max(), columns.error.max()
    for i in range(n):
        rest, by_length, by_error = slack_terms(codes, i, d, longest, columns.rounding)
        # A score is rounded to float32 before it is compared with the floor.
        value = floor * (1.0 - 2.0**-23) - (rest + by_length * longest + by_error * error) - loose
        out[i] = np.float32(value - abs(value) * 2.0**-22 - 2.0**-126)
    return out


@kernel
def _collect_pairs(X, codes, Y, columns, least, floor, picks, jobs, same, state, found):  # type: ignore[no-untyped-def]
    """Continue from `state` until everything is compared or `found` is nearly full; return how many pairs it holds.

    The state is the current job, and how many of its rows and groups of columns are done.
    """
    scores, tops = np.empty((ROWS, COLUMNS), np.float32), np.empty(ROWS, np.float32)
    chunk = np.empty(CHUNK + ROWS, np.int32)
    n = 0
    while state[0] < jobs.shape[0]:
        first, last, left, right = jobs[state[0]]
        while first + state[1] < last:
            count = min(CHUNK, last - first - state[1])
            chunk[:count] = picks[first + state[1] : first + state[1] + count]
            chunk[count:] = chunk[count - 1]
            stop = min(right, chunk[:count].max()) if same else right
            while (left // COLUMNS + state[2]) * COLUMNS < stop:
                if n + count * COLUMNS > found.rows.shape[0]:
                    return n
                g = left // COLUMNS + state[2]
                for start in range(0, count, ROWS):
                    score_tile(
                        codes.codes, codes.scales, codes.biases, chunk, start, columns.packed, g, columns.scales,
                        columns.halves, scores, tops,
                    )  # fmt: skip
                    for r in range(min(ROWS, count - start)):
                        i = chunk[start + r]
                        if tops[r] < least[i]:
                            continue
                        for c in range(COLUMNS):
                            j = g * COLUMNS + c
                            if scores[r, c] < least[i] or j < left or j >= (min(right, i) if same else right):
                                continue
                            copy = is_same_row(X[i], Y[j])
                            score = np.float32(1.0) if copy else product_score(X[i], Y[j])
                            if score >= floor:
                                found.rows[n], found.columns[n] = i, j
                                found.scores[n], found.copies[n] = score, copy
                                n += 1
                state[2] += 1
            state[1], state[2] = state[1] + count, 0
        state[0], state[1] = state[0] + 1, 0
    return n
