"""k-means++: the probability of the next centroid is proportional to its squared distance to those drawn so far."""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import kernel
from daskmeans.kernels.microkernel import COLUMNS, ROWS, score_tile
from daskmeans.kernels.quantize import subtract_center
from daskmeans.kernels.simd import dot64


@kernel
def _pack_rows(X, members):  # type: ignore[no-untyped-def]
    """Pack rows of `X` as columns, less their mean, which saves float32 precision; with half their squared norms.

    Returns
    -------
    center : ndarray of float64, shape (d,)
    packed : ndarray of float32, shape (groups, d, 48)
    halves : ndarray of float32, shape (groups, 48)
    """
    m, d = members.shape[0], X.shape[1]
    center, row = np.zeros(d, np.float64), np.empty(d, np.float32)
    for i in members:
        for j in range(d):
            center[j] += np.float64(X[i, j])
    center /= m
    groups = (m + COLUMNS - 1) // COLUMNS
    packed, halves = np.zeros((groups, d, COLUMNS), np.float32), np.full((groups, COLUMNS), np.float32(np.inf))
    for p in range(m):
        g, c = p // COLUMNS, p % COLUMNS
        subtract_center(X[members[p]], center, row)
        for j in range(d):
            packed[g, j, c] = row[j]
        halves[g, c] = np.float32(0.5 * dot64(row, row))
    return center, packed, halves


@kernel
def draw_plus_plus(X, members, weights, luck, bound):  # type: ignore[no-untyped-def]
    m = members.shape[0]
    center, packed, halves = _pack_rows(X, members)
    chosen, free = np.empty(luck.shape[0], np.int64), np.ones(m, np.bool_)
    mass = weights.astype(np.float64)
    distances = np.full(packed.shape[0] * COLUMNS, np.float32(np.inf))
    tried = np.empty((ROWS, len(distances)), np.float32)
    picks, numbers = np.zeros(ROWS, np.int64), np.arange(ROWS).astype(np.int32)
    rows, scales = np.zeros((ROWS, X.shape[1]), np.float32), np.ones(halves.shape, np.float32)
    row_scales, row_biases = np.ones(ROWS, np.float32), np.zeros(ROWS, np.int32)
    scores, tops = np.empty((ROWS, COLUMNS), np.float32), np.empty((ROWS, 2), np.float32)
    for turn in range(luck.shape[0]):
        total = sum_values(mass)
        for t in range(ROWS):
            picks[t] = _draw_index(mass, free, luck[turn, t] * total)
            subtract_center(X[members[picks[t]]], center, rows[t])
        for g in range(packed.shape[0]):
            score_tile(rows, row_scales, row_biases, numbers, 0, packed, g, scales, halves, scores, tops)
            here = slice(g * COLUMNS, (g + 1) * COLUMNS)
            for t in range(ROWS):
                norm = np.float32(2.0) * halves[picks[t] // COLUMNS, picks[t] % COLUMNS]
                _update_distances(scores[t], norm, bound, distances[here], tried[t, here])
        best, lowest = 0, np.inf
        for t in range(ROWS if turn else 1):
            potential = 0.0
            for i in range(m):
                potential += weights[i] * np.float64(tried[t, i])
            if potential < lowest:
                best, lowest = t, potential
        distances[:] = tried[best]
        chosen[turn], free[picks[best]] = picks[best], False
        for i in range(m):
            mass[i] = weights[i] * np.float64(distances[i]) if free[i] else 0.0
    return chosen


@kernel
def _update_distances(scores, norm, bound, distances, tried):  # type: ignore[no-untyped-def]
    """Write the lesser of `distances` and the squared distances to a row with these scores.

    Distances within rounding error of zero become zero, so copies of a row have no mass once it is drawn.
    """
    for c in range(scores.shape[0]):
        distance = norm - np.float32(2.0) * scores[c]
        distance = distance if distance > np.float32(8.0 * bound) * norm else np.float32(0.0)
        tried[c] = min(distance, distances[c])


@kernel
def sum_values(values):  # type: ignore[no-untyped-def]
    """Return the sum in the order of the values; numpy's order depends on the machine."""
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i]
    return total


@kernel
def _draw_index(mass, free, target):  # type: ignore[no-untyped-def]
    """Return the index where the running sum of `mass` passes `target`; the first free one if no mass is left."""
    reached = 0.0
    for i in range(mass.shape[0]):
        reached += mass[i]
        if mass[i] > 0.0 and reached > target:
            return i
    return np.argmax(free)
