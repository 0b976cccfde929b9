"""Which rows stay, from the pairs of rows that are similar."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daskmeans.kernels.jit import kernel


class Resolved(NamedTuple):
    """Decisions on rows in rank order; row numbers are ranks."""

    keep: np.ndarray
    """bool, shape (n,)"""
    kept: np.ndarray
    """int64, shape (n,): the row that stays in place of this one, or -1."""
    kept_score: np.ndarray
    """float32, shape (n,): the score with `kept`; NaN without."""
    best: np.ndarray
    """int64, shape (n,): the most similar earlier row of those it is paired with, or -1."""
    score: np.ndarray
    """float32, shape (n,): the score with `best`; NaN without."""
    exact: np.ndarray
    """bool, shape (n,): `kept` is a copy of the row."""


def resolve(
    n: int,
    rows: np.ndarray,
    twins: np.ndarray,
    scores: np.ndarray,
    copies: np.ndarray,
    threshold: np.float32,
    rule: str,
    staying: int = 0,
) -> Resolved:
    """Decide which of `n` rows stay.

    Parameters
    ----------
    n : int
    rows, twins : ndarray of int64, shape (m,)
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
    >>> [resolve(3, *pairs, np.float32(0.9), rule).keep.tolist() for rule in ("survivors", "semdedup")]
    [[True, False, True], [True, False, False]]
    """
    head = _heads(n, rows[copies], twins[copies])
    a, b = head[rows[~copies]], head[twins[~copies]]
    later, earlier = np.maximum(a, b), np.minimum(a, b)
    # Copies link rows that stay with one another, through rows that are decided.
    open_ = (later != earlier) & (later >= staying)
    later, earlier, score = later[open_], earlier[open_], scores[~copies][open_]
    order = np.lexsort((earlier, -score, later))
    starts = np.searchsorted(later[order], np.arange(n + 1))
    decided = _resolve(starts, earlier[order], score[order], threshold, rule == "survivors")
    # What is decided on the first of some copies holds for all of them, as their scores with other rows are the same.
    keep, kept, kept_score, best, found = (values[head] for values in decided)
    copy = head != np.arange(n)
    exact = copy & keep  # if the first goes, its copies go with it for a row that is no copy
    # The first is the nearest of a copy, unless a row that comes still earlier scores 1 too.
    nearest = np.where(copy & (found != 1), head, best)
    return Resolved(
        keep & ~copy,
        np.where(exact, head, kept),
        np.where(exact, np.float32(1), kept_score),
        nearest,
        np.where(copy, np.float32(1), found),
        exact,
    )


@kernel
def _heads(n, rows, twins):  # type: ignore[no-untyped-def]
    """The lowest number among those that are linked with each number, by any chain."""
    head = np.arange(n)
    for e in range(rows.shape[0]):
        i, j = rows[e], twins[e]
        while head[i] != i:
            head[i] = head[head[i]]
            i = head[i]
        while head[j] != j:
            head[j] = head[head[j]]
            j = head[j]
        head[max(i, j)] = min(i, j)
    for i in range(n):
        head[i] = head[head[i]]
    return head


@kernel
def _resolve(starts, earlier, scores, threshold, survivors):  # type: ignore[no-untyped-def]
    """Decide on one row after the other; the pairs of each come with the largest score first."""
    n = starts.shape[0] - 1
    keep, kept, best = np.ones(n, np.bool_), np.full(n, -1), np.full(n, -1)
    kept_score, found = np.full(n, np.float32(np.nan)), np.full(n, np.float32(np.nan))
    for i in range(n):
        for e in range(starts[i], starts[i + 1]):
            if e == starts[i]:
                best[i], found[i] = earlier[e], scores[e]
            if scores[e] < threshold:
                break
            stays = keep[earlier[e]]
            keep[i] = keep[i] and survivors and not stays
            if stays and kept[i] < 0:
                kept[i], kept_score[i] = earlier[e], scores[e]
    return keep, kept, kept_score, best, found
