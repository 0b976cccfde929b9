"""Decide on the rows of one cluster, in the search inside clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from daskmeans.duplicates.greedy import RankedDecisions
from daskmeans.kernels.within_cluster import NearestEarlier, find_copies, nearest_earlier, select_rows


def decide_cluster(
    X: np.ndarray, threshold: np.float32, rule: str, tile_bytes: int, runs: Sequence[NearestEarlier] = ()
) -> RankedDecisions:
    """Decide which rows stay.

    Copies are taken out first; the first of them in rank represents all. ``best`` is given whatever its score is. The
    first row has no earlier one, so its ``best`` is itself with a score of 0.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        Unit rows in rank order.
    threshold : float32
    rule : {"survivors", "semdedup"}
    tile_bytes : int
        Most bytes of the score matrix that are held at a time.
    runs : sequence of NearestEarlier, optional
        Result of :func:`find_nearest_in_run` for each run of these rows. Default: it is computed here.

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    >>> decide_cluster(X, np.float32(0.9), "survivors", 1 << 20).keep.tolist()
    [True, True, False]
    """
    first, unique, rows = _find_distinct(X)
    runs = runs or [nearest_earlier(rows, 0, len(rows), tile_bytes)]
    found = NearestEarlier(*map(np.concatenate, zip(*runs, strict=True)))
    settled = select_rows(rows, found, threshold, rule, tile_bytes)
    found.best[:1], found.score[:1] = 0, 0
    # The row of `found` that represents each row: a decision on the first of several copies holds for all of them.
    group, copy = np.searchsorted(unique, first), first != np.arange(len(X))
    stays, kept, kept_score = (values[group] for values in settled)
    score = found.score[group]
    exact = copy & stays  # if the first copy is dropped, so are the others, for a row that is no copy
    return RankedDecisions(
        stays & ~copy,
        np.where(exact, first, np.where(kept < 0, -1, unique[kept])),
        np.where(exact, np.float32(1), kept_score),
        # The best of a copy is the row it copies, unless a still earlier row scores 1 with that row as well.
        np.where(copy & (score < 1), first, unique[found.best][group]),
        np.where(copy, np.float32(1), score),
        exact,
    )


def find_nearest_in_run(X: np.ndarray, run: int, runs: int, tile_bytes: int) -> NearestEarlier:
    """Find the most similar earlier rows for one run of the rows, for :func:`decide_cluster`; runs are equal work.

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    >>> runs = [find_nearest_in_run(X, i, 2, 1 << 20) for i in range(2)]
    >>> decide_cluster(X, np.float32(0.9), "survivors", 1 << 20, runs).keep.tolist()
    [True, True, False]
    """
    _, _, rows = _find_distinct(X)
    first, last = (round(len(rows) * math.sqrt(i / runs)) for i in (run, run + 1))
    return nearest_earlier(rows, first, last, tile_bytes)


def _find_distinct(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first copy of each row, see :func:`find_copies`; then the distinct rows, as numbers and as vectors."""
    first = find_copies(X)
    unique = np.flatnonzero(first == np.arange(len(X)))
    return first, unique, X if len(unique) == len(X) else X[unique]
