"""Decide greedily which rows stay, from the similar pairs."""

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
    """float32, shape (n,): the score with `kept`; NaN if there is none."""
    best: np.ndarray
    """int64, shape (n,): the most similar earlier row among the known pairs, or -1."""
    score: np.ndarray
    """float32, shape (n,): the score with `best`; NaN if there is none."""
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
        Whether the two rows are identical. Of identical rows, the pairs of any one represent all.
    threshold : float32
    rule : {"survivors", "semdedup"}
    staying : int, default 0
        This many rows of the lowest ranks stay, whatever they are paired with.

    Examples
    --------
    >>> pairs = np.array([1, 2]), np.array([0, 1]), np.float32([0.95, 0.92]), np.array([False, False])
    >>> [greedy_select(3, *pairs, np.float32(0.9), rule).keep.tolist() for rule in ("survivors", "semdedup")]
    [[True, False, True], [True, False, False]]
    """
    root = union_find_roots(n, rows[copies], neighbors[copies])
    a, b = root[rows[~copies]], root[neighbors[~copies]]
    later, earlier = np.maximum(a, b), np.minimum(a, b)
    # Through copies, a pair may link two rows that stay in any case: it decides nothing.
    open_ = (later != earlier) & (later >= staying)
    later, earlier, score = later[open_], earlier[open_], scores[~copies][open_]
    order = np.lexsort((earlier, -score, later))
    starts = np.searchsorted(later[order], np.arange(n + 1))
    decided = select_greedily(starts, earlier[order], score[order], threshold, rule == "survivors")
    # A decision on the first of several copies holds for all of them, since their scores with other rows are equal.
    keep, kept, kept_score, best, found = (values[root] for values in decided)
    copy = root != np.arange(n)
    exact = copy & keep  # if the first copy is dropped, so are the others, for a row that is no copy
    # The nearest row of a copy is the first copy, unless a still earlier row scores 1 too.
    nearest = np.where(copy & (found != 1), root, best)
    return RankedDecisions(
        keep & ~copy,
        np.where(exact, root, kept),
        np.where(exact, np.float32(1), kept_score),
        nearest,
        np.where(copy, np.float32(1), found),
        exact,
    )
