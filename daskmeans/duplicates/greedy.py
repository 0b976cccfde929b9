"""Which rows stay, from the pairs of rows that are similar."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daskmeans.kernels.greedy import select_greedily, union_find_roots


class RankedDecisions(NamedTuple):
    """Decisions on rows in rank order; row numbers are ranks."""

    keep: np.ndarray
    """bool, shape (n,)"""
    kept: np.ndarray
    """int64, shape (n,): the row that stays in place of this one, or -1."""
    kept_score: np.ndarray
    """float32, shape (n,): the score with `kept`; NaN without."""
    best: np.ndarray
    """int64, shape (n,): the most similar earlier row that is known, or -1."""
    score: np.ndarray
    """float32, shape (n,): the score with `best`; NaN without."""
    exact: np.ndarray
    """bool, shape (n,): `kept` is a copy of the row."""


def greedy_select(
    n: int,
    rows: np.ndarray,
    neighbors: np.ndarray,
    scores: np.ndarray,
    copies: np.ndarray,
    threshold: np.float32,
    rule: str,
    staying: int = 0,
) -> RankedDecisions:
    """Decide which of `n` rows stay.

    Parameters
    ----------
    n : int
    rows, neighbors : ndarray of int64, shape (m,)
        Ranks of the rows of each pair, in either order.
    scores : ndarray of float32, shape (m,)
    copies : ndarray of bool, shape (m,)
        The two rows are the same. Where some rows are, pairs of any one of them stand for all.
    threshold : float32
    rule : {"survivors", "semdedup"}
    staying : int, default 0
        So many rows of the lowest ranks stay, whatever they are paired with.

    Examples
    --------
    >>> pairs = np.array([1, 2]), np.array([0, 1]), np.float32([0.95, 0.92]), np.array([False, False])
    >>> [greedy_select(3, *pairs, np.float32(0.9), rule).keep.tolist() for rule in ("survivors", "semdedup")]
    [[True, False, True], [True, False, False]]
    """
    root = union_find_roots(n, rows[copies], neighbors[copies])
    a, b = root[rows[~copies]], root[neighbors[~copies]]
    later, earlier = np.maximum(a, b), np.minimum(a, b)
    # Copies link rows that stay with one another, through rows that are decided.
    open_ = (later != earlier) & (later >= staying)
    later, earlier, score = later[open_], earlier[open_], scores[~copies][open_]
    order = np.lexsort((earlier, -score, later))
    starts = np.searchsorted(later[order], np.arange(n + 1))
    decided = select_greedily(starts, earlier[order], score[order], threshold, rule == "survivors")
    # What is decided on the first of some copies holds for all of them, as their scores with other rows are the same.
    keep, kept, kept_score, best, found = (values[root] for values in decided)
    copy = root != np.arange(n)
    exact = copy & keep  # if the first goes, its copies go with it for a row that is no copy
    # The first is the nearest of a copy, unless a row that comes still earlier scores 1 too.
    nearest = np.where(copy & (found != 1), root, best)
    return RankedDecisions(
        keep & ~copy,
        np.where(exact, root, kept),
        np.where(exact, np.float32(1), kept_score),
        nearest,
        np.where(copy, np.float32(1), found),
        exact,
    )
