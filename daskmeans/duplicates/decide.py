"""What happens to each row of one cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from daskmeans.duplicates.greedy import Resolved
from daskmeans.kernels.within_cluster import Nearest, find_copies, nearest_earlier, settle


class Decided(NamedTuple):
    """Decisions on rows in rank order; row numbers are ranks."""

    keep: np.ndarray
    """bool, shape (n,)"""
    kept: np.ndarray
    """int64, shape (n,): the row that stays in place of this one, or -1."""
    kept_score: np.ndarray
    """float32, shape (n,): the score with `kept`; NaN without."""
    best: np.ndarray
    """int64, shape (n,): the most similar earlier row."""
    score: np.ndarray
    """float32, shape (n,): the score with `best`."""
    exact: np.ndarray
    """bool, shape (n,): `kept` is a copy of the row."""


def decide(X: np.ndarray, threshold: np.float32, rule: str, tile_bytes: int, runs: Sequence[Nearest] = ()) -> Decided:
    """Decide which rows stay.

    Copies are taken out first; the first of them in rank stands for all.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        Unit rows in rank order.
    threshold : float32
    rule : {"survivors", "semdedup"}
    tile_bytes : int
        Bound of the score matrix kept at once.
    runs : sequence of Nearest, optional
        What :func:`nearest_in_run` found for each run of these rows.

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    >>> decide(X, np.float32(0.9), "survivors", 1 << 20).keep.tolist()
    [True, True, False]
    """
    first, unique, rows = _distinct(X)
    runs = runs or [nearest_earlier(rows, 0, len(rows), tile_bytes)]
    found = Nearest(*map(np.concatenate, zip(*runs, strict=True)))
    settled = settle(rows, found, threshold, rule, tile_bytes)
    found.best[:1], found.score[:1] = 0, 0
    # Row of `found` that stands for each row: what is decided on the first of some copies holds for all of them.
    group, copy = np.searchsorted(unique, first), first != np.arange(len(X))
    stays, kept, kept_score = (values[group] for values in settled)
    score = found.score[group]
    exact = copy & stays  # if the first goes, its copies go with it for a row that is no copy
    return Decided(
        stays & ~copy,
        np.where(exact, first, np.where(kept < 0, -1, unique[kept])),
        np.where(exact, np.float32(1), kept_score),
        # A copy's best is the row it copies, unless that one met a row which scores 1 as well and comes still earlier.
        np.where(copy & (score < 1), first, unique[found.best][group]),
        np.where(copy, np.float32(1), score),
        exact,
    )


def nearest_in_run(X: np.ndarray, run: int, runs: int, tile_bytes: int) -> Nearest:
    """What :func:`decide` needs to know of one of some runs of the rows, which are the same amount of work each.

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    >>> runs = [nearest_in_run(X, i, 2, 1 << 20) for i in range(2)]
    >>> decide(X, np.float32(0.9), "survivors", 1 << 20, runs).keep.tolist()
    [True, True, False]
    """
    _, _, rows = _distinct(X)
    first, last = (round(len(rows) * math.sqrt(i / runs)) for i in (run, run + 1))
    return nearest_earlier(rows, first, last, tile_bytes)


def _distinct(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first row that is a copy of each, see :func:`find_copies`; the rows that are none, as numbers and vectors."""
    first = find_copies(X)
    unique = np.flatnonzero(first == np.arange(len(X)))
    return first, unique, X if len(unique) == len(X) else X[unique]


def to_table(ids: pa.Array, decided: Decided | Resolved, centroid: int | np.ndarray) -> pa.Table:
    """The rows of a decisions file, in the order of `ids` (rank order); `centroid` is that of all, or of each."""
    reason = np.where(decided.keep, 0, np.where(decided.exact, 1, 2))
    return pa.table(
        {
            "id": ids,
            "keep": decided.keep,
            "kept_id": ids.take(pa.array(decided.kept, mask=decided.kept < 0)),
            "kept_score": pa.array(decided.kept_score, mask=np.isnan(decided.kept_score)),
            "max_id": ids.take(pa.array(decided.best, mask=decided.best < 0)),
            "cosine_sim_score": pa.array(decided.score, mask=np.isnan(decided.score)),
            "reason": pa.array([None, "exact", "semantic"]).take(pa.array(reason)),
            "centroid": pa.array(np.full(len(ids), centroid, np.int32)),
        }
    )
