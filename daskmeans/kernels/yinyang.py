"""Nearest centroids: bounds skip rows, a candidate filter scores the others, close ones are re-ranked exactly.

Each row has an upper bound on the distance to its own centroid, and for each group of centroids a lower bound on the
distance to the nearest other one. Both are adjusted as centroids move. A row whose upper bound is below all lower
bounds keeps its label without a comparison. Any other row is compared only with the groups whose bound fails (Ding et
al., *Yinyang K-Means*, ICML 2015). The labels are those of a comparison in float64 with every centroid, or with every
centroid of the groups that the caller gives for a row.
"""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.bounds import has_failed_bound, round_up, score_slack, slack_terms, update_bounds
from daskmeans.kernels.jit import kernel
from daskmeans.kernels.microkernel import COLUMNS, ROWS, score_tile
from daskmeans.kernels.simd import squared_distance64

# Value of `near` where rows are compared with all groups.
ALL_GROUPS = np.empty((0, 0), np.int32)


@kernel
def find_nearest(X, codes, columns, bounds, drift, per_bound, near, nearest):  # type: ignore[no-untyped-def]
    """Find the nearest centroid of each row; ties go to the lowest number.

    Lower bounds of rows without a label must hold for any row, as zeros do.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d), C-contiguous
    codes : Codes
        Codes of `X`.
    columns : PackedCentroids
        The centroids, packed with the same center.
    bounds : Bounds
        Read and written.
    drift : Drift
    per_bound : int
        Groups that share a bound.
    near : ndarray of int32, shape (n, m) or (0, 0)
        The groups that each row is compared with, including that of its label. Without elements: all groups.
    nearest : ndarray of float64, shape (n,) or (0,)
        Unless it is empty, it gets the squared distance to the nearest centroid of each row that is not skipped.

    Returns
    -------
    compared : int
        Pairs of rows and centroids that were scored.
    """
    n, groups = X.shape[0], columns.ids.shape[0]
    size = max(64, min(2048, (1 << 18) // groups))
    lists = np.empty((groups, size + ROWS), np.int32)
    counts = np.empty(groups, np.int64)
    top = np.empty((size, groups), np.float32)
    rows = np.empty(size, ROW)
    compared = 0
    for begin in range(0, n, size):
        end = min(begin + size, n)
        _filter_rows(codes, columns, bounds, drift, X.shape[1], begin, end, lists, counts, top, rows)
        compared += _score_own_groups(codes, columns, begin, lists, counts, top, rows)
        _filter_groups(X, codes, columns, bounds, drift, per_bound, near, begin, end, lists, counts, rows)
        compared += _score_groups(codes, columns, begin, lists, counts, top)
        _select_candidates(columns, bounds.labels, begin, end, lists, counts, top, rows)
        compared += _rerank_candidates(X, codes, columns, begin, lists, counts, rows)
        update_bounds(X, codes, columns, bounds, drift, per_bound, begin, end, top, rows)
        if nearest.shape[0]:
            for i in range(begin, end):
                if rows[i - begin].label >= 0:
                    nearest[i] = _nearest_square(X, columns, i, rows[i - begin])
    return compared


# State of a row in a search: the nearest centroid so far (-1: the row is skipped; k: none yet), its squared distance
# (-1: not computed, as no other centroid came close), the score that another centroid must reach to be nearer, the
# terms of the error of a score, the score of the nearest centroid and the second largest score of its group.
ROW = np.dtype(
    [
        ("label", np.int64),
        ("square", np.float64),
        ("floor", np.float64),
        ("rest", np.float64),
        ("by_length", np.float64),
        ("by_error", np.float64),
        ("score", np.float32),
        ("second", np.float32),
    ]
)


@kernel
def _filter_rows(codes, columns, bounds, drift, d, begin, end, lists, counts, top, rows):  # type: ignore[no-untyped-def]
    """Select the rows whose label may change, and put each that has a label into the list of its own group."""
    labels, upper, lower = bounds
    longest = columns.longest.max()
    counts[:] = 0
    for i in range(begin, end):
        row = rows[i - begin]
        label = labels[i]
        row.label = -1
        if label >= 0 and not has_failed_bound(lower[i], drift.groups, upper[i] + drift.each[label]):
            continue
        row.label, row.square, row.floor = columns.centroids.shape[0], np.inf, -np.inf
        row.score, row.second = -np.inf, -np.inf
        row.rest, row.by_length, row.by_error = slack_terms(codes, i, d, longest, columns.rounding)
        top[i - begin, :] = np.inf
        if label >= 0:
            row.label, row.square = label, -1.0
            g = columns.groups[label]
            lists[g, counts[g]] = i
            counts[g] += 1


@kernel
def _score_own_groups(codes, columns, begin, lists, counts, top, rows):  # type: ignore[no-untyped-def]
    """Score the listed rows in their own groups, which tightens the upper bounds."""
    scores, tops = np.empty((ROWS, COLUMNS), np.float32), np.empty((ROWS, 2), np.float32)
    compared = 0
    for g in range(lists.shape[0]):
        picked, count = lists[g], counts[g]
        _pad_tile(picked, count)
        for start in range(0, count, ROWS):
            score_tile(
                codes.codes, codes.scales, codes.biases, picked, start, columns.packed, g, columns.scales,
                columns.halves, scores, tops,
            )  # fmt: skip
            for r in range(min(ROWS, count - start)):
                t = picked[start + r] - begin
                row = rows[t]
                row.score, row.second = scores[r, columns.places[row.label]], tops[r, 1]
                top[t, g] = tops[r, 0]
        compared += count * COLUMNS
    return compared


@kernel
def _filter_groups(X, codes, columns, bounds, drift, per_bound, near, begin, end, lists, counts, rows):  # type: ignore[no-untyped-def]
    """Put each row into the lists of the other groups that may contain its nearest centroid."""
    labels, upper, lower = bounds
    few = near.shape[1]
    counts[:] = 0
    for i in range(begin, end):
        row = rows[i - begin]
        if row.label < 0:
            continue
        label, own, reach = labels[i], -1, np.float32(np.inf)
        if label >= 0:
            own = columns.groups[label]
            square = max(codes.squares[i] - 2.0 * (row.score - score_slack(row, columns, own)), 0.0)
            reach = min(round_up(np.sqrt(square)), round_up(upper[i] + drift.each[label]))
            upper[i] = round_up(reach - drift.each[label])
        for t in range(few if few else columns.ids.shape[0]):
            g = near[i, t] if few else t
            b = g if per_bound == 1 else g // per_bound  # a division takes longer than the rest
            if g != own and (label < 0 or lower[i, b] - drift.groups[b] < reach):
                lists[g, counts[g]] = i
                counts[g] += 1


@kernel
def _score_groups(codes, columns, begin, lists, counts, top):  # type: ignore[no-untyped-def]
    """Find the largest score of each listed row in each group."""
    scores, tops = np.empty((ROWS, COLUMNS), np.float32), np.empty(ROWS, np.float32)
    compared = 0
    for g in range(lists.shape[0]):
        picked, count = lists[g], counts[g]
        _pad_tile(picked, count)
        for start in range(0, count, ROWS):
            score_tile(
                codes.codes, codes.scales, codes.biases, picked, start, columns.packed, g, columns.scales,
                columns.halves, scores, tops,
            )  # fmt: skip
            for r in range(ROWS):
                top[picked[start + r] - begin, g] = tops[r]
        compared += count * COLUMNS
    return compared


@kernel
def _pad_tile(picked, count):  # type: ignore[no-untyped-def]
    """Repeat the last row so that the last tile is full."""
    if count:
        picked[count : count + ROWS] = picked[count - 1]


@kernel
def _select_candidates(columns, labels, begin, end, lists, counts, top, rows):  # type: ignore[no-untyped-def]
    """List for each group only the rows whose nearest centroid may be in it and is not their own."""
    most = np.empty(top.shape[1])
    counts[:] = 0
    for i in range(begin, end):
        row, tops, label = rows[i - begin], top[i - begin], labels[i]
        if row.label < 0:
            continue
        floor = -np.inf
        for g in range(tops.shape[0]):
            slack = score_slack(row, columns, g)
            most[g] = tops[g] + slack
            floor = max(floor, tops[g] - slack if tops[g] != np.inf else -np.inf)
        row.floor = floor
        if label >= 0:
            g = columns.groups[label]
            slack = score_slack(row, columns, g)
            most[g] = (row.second if row.score == tops[g] else tops[g]) + slack
            if row.score + slack < floor:  # some other one is nearer
                row.label, row.square = columns.centroids.shape[0], np.inf
        for g in range(tops.shape[0]):
            if floor <= most[g] < np.inf:
                lists[g, counts[g]] = i
                counts[g] += 1


@kernel
def _rerank_candidates(X, codes, columns, begin, lists, counts, rows):  # type: ignore[no-untyped-def]
    """Compare, in float64, the centroids whose scores may be the largest."""
    scores, tops = np.empty((ROWS, COLUMNS), np.float32), np.empty((ROWS, 2), np.float32)
    compared = 0
    for g in range(lists.shape[0]):
        picked, count = lists[g], counts[g]
        _pad_tile(picked, count)
        for start in range(0, count, ROWS):
            score_tile(
                codes.codes, codes.scales, codes.biases, picked, start, columns.packed, g, columns.scales,
                columns.halves, scores, tops,
            )  # fmt: skip
            for r in range(min(ROWS, count - start)):
                i = picked[start + r]
                row = rows[i - begin]
                slack = score_slack(row, columns, g)
                least = row.floor - slack
                for c in range(COLUMNS):
                    if scores[r, c] < least:
                        continue
                    j = columns.ids[g, c]
                    if row.square == np.inf:
                        row.label, row.square = j, -1.0
                    elif j != row.label:
                        row.square = _nearest_square(X, columns, i, row)
                        square = squared_distance64(X[i], columns.centroids[j])
                        if square > row.square or (square == row.square and j > row.label):
                            continue
                        row.label, row.square = j, square
                        row.floor = max(row.floor, 0.5 * (codes.squares[i] - square))
                        least = row.floor - slack
                    row.score, row.second = scores[r, c], tops[r, 1]
        compared += count * COLUMNS
    return compared


@kernel
def _nearest_square(X, columns, i, row):  # type: ignore[no-untyped-def]
    """Return the squared distance of row `i` to the nearest centroid so far."""
    return row.square if row.square >= 0.0 else squared_distance64(X[i], columns.centroids[row.label])
