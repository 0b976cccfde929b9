"""Greedy decisions on which rows stay, in rank order, and groups of linked rows."""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import kernel


@kernel
def union_find_roots(n, rows, neighbors):  # type: ignore[no-untyped-def]
    """Return the lowest number in each number's connected component (union-find)."""
    root = np.arange(n)
    for e in range(rows.shape[0]):
        i, j = rows[e], neighbors[e]
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        while root[j] != j:
            root[j] = root[root[j]]
            j = root[j]
        root[max(i, j)] = min(i, j)
    for i in range(n):
        root[i] = root[root[i]]
    return root


@kernel
def select_greedily(starts, earlier, scores, threshold, for_survivors):  # type: ignore[no-untyped-def]
    """Decide on one row after the other; the pairs of each row are sorted by descending score.

    Returns whether each row stays, the row that it went for with their score, and the most similar earlier row with
    theirs; -1 and NaN stand for none. With `for_survivors`, rows go only for rows that stay.
    """
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
            keep[i] = keep[i] and for_survivors and not stays
            if stays and kept[i] < 0:
                kept[i], kept_score[i] = earlier[e], scores[e]
    return keep, kept, kept_score, best, found
