"""Bounds on the distances of rows to groups of centroids, adjusted by how far centroids have moved."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from daskmeans.kernels.jit import as_readonly, kernel
from daskmeans.kernels.microkernel import n_groups
from daskmeans.kernels.simd import squared_distance64

# Lower bounds of a row, at most: with more groups of centroids, several groups share one.
MOST_BOUNDS = 96


class Bounds(NamedTuple):
    """State of each row before a search, which updates it.

    Bounds are stored less (`upper`) or plus (`lower`) the drift of the centroids until then. So nothing has to be
    written for a row that is skipped.
    """

    labels: np.ndarray
    """int32, shape (n,): the nearest centroid of the last search; -1 for none."""
    upper: np.ndarray
    """float32, shape (n,): upper bound on the distance to the centroid of the label."""
    lower: np.ndarray
    """float32, shape (n, bounds): lower bounds on the distances to the other centroids, by groups that share one."""


class Drift(NamedTuple):
    """Total distance that centroids have moved since the first search that wrote the bounds."""

    each: np.ndarray
    """float64, shape (k,)"""
    groups: np.ndarray
    """float64, shape (bounds,): the sum over updates of the largest step in the group."""


def n_bounds(n_clusters: int) -> int:
    """Number of lower bounds of a row for `n_clusters` centroids.

    Examples
    --------
    >>> n_bounds(1000), n_bounds(100_000)
    (21, 95)
    """
    return math.ceil(n_groups(n_clusters) / groups_per_bound(n_clusters))


def groups_per_bound(n_clusters: int) -> int:
    """Number of groups of centroids that share a bound."""
    return math.ceil(n_groups(n_clusters) / MOST_BOUNDS)


def zero_drift(n_clusters: int, bounds: int) -> Drift:
    """Drift of centroids that have not moved."""
    return Drift(as_readonly(np.zeros(n_clusters)), as_readonly(np.zeros(bounds)))


@kernel
def slack_terms(codes, i, d, longest, rounding):  # type: ignore[no-untyped-def]
    """Terms r, a, b of the error bound of a score of row `i`: r + a * longest + b * error in each group."""
    norm, lost = np.sqrt(codes.squares[i]), codes.errors[i]
    rest = rounding * longest * longest
    rest += (d + 8) * 2.0**-50 * (norm + longest) ** 2  # the comparison in float64
    rest += (d + 2) * 2.0**-126  # what products and norms too small for float32 may lose
    return rest, lost + rounding * norm, norm + lost


@kernel
def score_slack(row, columns, g):  # type: ignore[no-untyped-def]
    """Bound on the error of a score of the row in the group."""
    return row.rest + row.by_length * columns.longest[g] + row.by_error * columns.error[g]


@kernel
def has_failed_bound(lower, drift, reach):  # type: ignore[no-untyped-def]
    """Whether any lower bound is below `reach`."""
    failed = lower.shape[0] == 0
    for b in range(lower.shape[0]):
        failed |= lower[b] - drift[b] < reach
    return failed


@kernel
def round_up(value):  # type: ignore[no-untyped-def]
    """Return a float32 that is not less than `value`."""
    return np.float32(value + abs(value) * 2.0**-22 + 2.0**-126)


@kernel
def round_down(value):  # type: ignore[no-untyped-def]
    """Return a float32 that is not more than `value`."""
    return np.float32(value - abs(value) * 2.0**-22 - 2.0**-126)


@kernel
def update_bounds(X, codes, columns, bounds, drift, per_bound, begin, end, top, rows):  # type: ignore[no-untyped-def]
    """Write the labels, and the bounds that follow from the scores."""
    labels, upper, lower = bounds
    for i in range(begin, end):
        row, tops = rows[i - begin], top[i - begin]
        if row.label < 0:
            continue
        before, labels[i] = labels[i], row.label
        if lower.shape[1] == 0:
            continue
        group = columns.groups[row.label]
        if row.score == tops[group]:  # not where it is infinite: the group was not compared
            tops[group] = row.second
        if before >= 0 and before != row.label:
            _bound_former(X, columns, i, before, columns.groups[before] // per_bound, per_bound, tops, drift, lower)
        _update_lower(codes.squares[i], row, columns, tops, per_bound, drift.groups, lower[i])
        if before != row.label or row.square >= 0.0:
            square = (
                row.square
                if row.square >= 0.0
                else codes.squares[i] - 2.0 * (row.score - score_slack(row, columns, group))
            )
            upper[i] = round_up(round_up(np.sqrt(max(square, 0.0))) - drift.each[row.label])


@kernel
def _bound_former(X, columns, i, before, bound, per_bound, tops, drift, lower):  # type: ignore[no-untyped-def]
    """Lower the bound of the group of the row's former centroid, which is now one of its other centroids."""
    known = True
    for g in range(bound * per_bound, min((bound + 1) * per_bound, tops.shape[0])):
        known &= tops[g] != np.inf
    if not known:
        distance = np.sqrt(squared_distance64(X[i], columns.centroids[before]))
        lower[i, bound] = min(lower[i, bound], round_down(distance + drift.groups[bound]))


@kernel
def _update_lower(square, row, columns, tops, per_bound, drift, lower):  # type: ignore[no-untyped-def]
    """Write the lower bounds of the groups that were compared."""
    if per_bound == 1:  # a loop for vector registers
        for b in range(lower.shape[0]):
            lower[b] = _lower_bound(square, tops[b] + score_slack(row, columns, b), drift[b], lower[b])
        return
    for b in range(lower.shape[0]):
        score = -np.inf
        for g in range(b * per_bound, min((b + 1) * per_bound, tops.shape[0])):
            score = max(score, tops[g] + score_slack(row, columns, g))
        lower[b] = _lower_bound(square, score, drift[b], lower[b])


@kernel
def _lower_bound(square, score, drift, lower):  # type: ignore[no-untyped-def]
    distance = np.sqrt(min(max(square - 2.0 * score, 0.0), 1e37))
    return lower if score == np.inf else round_down(distance + drift)
