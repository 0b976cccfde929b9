"""Integer sums of rows, so that the order of addition does not matter."""

from __future__ import annotations

import math

import numpy as np

from daskmeans.kernels.jit import kernel
from daskmeans.kernels.simd import largest64, squared_distance64


@kernel
def mean_rows(table: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean of ``table[rows[starts[i]:starts[i + 1]]]`` for every i, added in order."""
    n, d = len(starts) - 1, table.shape[1]
    out = np.zeros((n, d), np.float32)
    for i in range(n):
        total = np.zeros(d, np.float64)
        for row in rows[starts[i] : starts[i + 1]]:
            total += table[row]
        if starts[i + 1] > starts[i]:
            out[i] = total / (starts[i + 1] - starts[i])
    return out


def scale_for(largest: float, count: float) -> float:
    """Return a power of two by which `count` numbers up to `largest` can be scaled and added in int64 without overflow.

    For numbers with weights, `count` is the sum of the weights.

    Examples
    --------
    >>> scale_for(1.0, 1_000_000) == 2.0**41
    True
    """
    _, exponent = math.frexp(largest * count)  # largest * count < 2^exponent
    return math.ldexp(1.0, min(61 - exponent, 1000))


@kernel
def add_rows(X, labels, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Add each row, scaled and rounded to integers, to the sum of its label."""
    for i in range(X.shape[0]):
        label = labels[i]
        counts[label] += 1
        for j in range(X.shape[1]):
            sums[label, j] += np.int64(np.rint(np.float64(X[i, j]) * scale))


@kernel
def move_rows(X, before, labels, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Move each row whose label has changed from the sum of its old label to that of the new; -1 stands for no sum.

    Returns
    -------
    moved : int
        Rows whose label has changed.
    """
    moved = 0
    for i in range(X.shape[0]):
        old, new = before[i], labels[i]
        if old == new:
            continue
        moved += 1
        counts[new] += 1
        if old >= 0:
            counts[old] -= 1
        for j in range(X.shape[1]):
            value = np.int64(np.rint(np.float64(X[i, j]) * scale))
            sums[new, j] += value
            if old >= 0:
                sums[old, j] -= value
    return moved


@kernel
def move_weighted_rows(X, before, labels, weights, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Like :func:`move_rows`, for rows that count as often as their `weights` say: whole numbers, as float64.

    The product of a row and its weight is rounded once. So a weight takes none of the bits of the coordinates.
    """
    moved = 0
    for i in range(X.shape[0]):
        old, new = before[i], labels[i]
        if old == new:
            continue
        moved += 1
        weight, factor = np.int64(weights[i]), weights[i] * scale
        counts[new] += weight
        if old >= 0:
            counts[old] -= weight
        for j in range(X.shape[1]):
            value = np.int64(np.rint(np.float64(X[i, j]) * factor))
            sums[new, j] += value
            if old >= 0:
                sums[old, j] -= value
    return moved


def sum_rows(
    X: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, scale: float, sums: np.ndarray, counts: np.ndarray
) -> None:
    """Add each row, as often as its weight says (once without `weights`), to the sum of its label."""
    if weights is None:
        add_rows(X, labels, scale, sums, counts)
    else:
        move_weighted_rows(X, np.full_like(labels, -1), labels, weights, scale, sums, counts)


@kernel
def within_ss(sums, counts, scale, center, total_ss):  # type: ignore[no-untyped-def]
    """Return the sum of squared distances of rows to the means of their clusters.

    Parameters
    ----------
    sums : ndarray of int64, shape (k, d)
        Sums of the rows of each cluster, times `scale`.
    counts : ndarray of int64, shape (k,)
    center : ndarray of float64, shape (d,)
        A point near the mean of the rows, so that subtraction loses little precision.
    total_ss : float
        Sum of squared distances of all rows to `center`.
    """
    total = total_ss
    for label in range(sums.shape[0]):
        if counts[label] == 0:
            continue
        square = 0.0
        for j in range(sums.shape[1]):
            mean = np.float64(sums[label, j]) / (scale * counts[label]) - center[j]
            square += mean * mean
        total -= counts[label] * square
    return max(total, 0.0)


@kernel
def largest_coordinate(X):  # type: ignore[no-untyped-def]
    """Largest absolute coordinate of a float32 matrix, float64."""
    largest = np.float32(0.0)
    for i in range(X.shape[0]):
        largest = max(largest, largest64(X[i]))
    return np.float64(largest)


@kernel
def squared_shift(old, new):  # type: ignore[no-untyped-def]
    """Return the sum of squared distances between the rows of two float32 matrices, added in a fixed order."""
    total = 0.0
    for i in range(old.shape[0]):
        total += squared_distance64(old[i], new[i])
    return total


def compute_means(sums: np.ndarray, counts: np.ndarray, scale: float, centroids: np.ndarray) -> np.ndarray:
    """Return the means of scaled integer sums, float32; the centroid of a cluster without rows stays."""
    moved = centroids.copy()
    _divide_sums(sums, counts, scale, moved)
    return moved


@kernel
def _divide_sums(sums, counts, scale, out):  # type: ignore[no-untyped-def]
    for label in range(sums.shape[0]):
        if counts[label]:
            total = counts[label] * scale
            for j in range(sums.shape[1]):
                out[label, j] = sums[label, j] / total


@kernel
def overrelax(old, means, before, far, momentum, out):  # type: ignore[no-untyped-def]
    """Write centroids that step from `old` to the means, `far` times further, plus `momentum` from `before`."""
    for label in range(old.shape[0]):
        for j in range(old.shape[1]):
            start, end = np.float64(old[label, j]), np.float64(means[label, j])
            out[label, j] = end + far * (end - start) + momentum * (start - before[label, j])


def exact_sum(values: np.ndarray) -> int:
    """Return the exact sum of nonnegative float64 numbers, as a multiple of the smallest one: see :func:`as_number`.

    Examples
    --------
    >>> as_number(exact_sum(np.array([1e30, 0.25, 0.5])) - exact_sum(np.array([1e30])))
    0.75
    """
    sums = np.zeros((2, 256), np.int64)
    _add_bits(np.ascontiguousarray(values).view(np.int64), sums)
    return sum((int(high) << 27) + int(low) << 8 * i for i, (high, low) in enumerate(sums.T))


@kernel
def _add_bits(bits, sums):  # type: ignore[no-untyped-def]
    """Add numbers by their bits: each half of the mantissa to one of two sums for each eight exponents."""
    for i in range(bits.shape[0]):
        exponent, mantissa = bits[i] >> 52 & 0x7FF, bits[i] & ((1 << 52) - 1)
        if exponent:
            mantissa |= 1 << 52
            exponent -= 1
        sums[0, exponent >> 3] += mantissa >> 27 << (exponent & 7)
        sums[1, exponent >> 3] += (mantissa & ((1 << 27) - 1)) << (exponent & 7)


def as_number(total: int) -> float:
    """Convert a sum of :func:`exact_sum` to a float, rounded once."""
    return total / (1 << 1074)


@kernel
def add_weighted_rows(X, labels, weights, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Add each row, scaled and rounded to integers, to the sum of its label as often as its weight says."""
    for i in range(X.shape[0]):
        label, weight = labels[i], weights[i]
        counts[label] += weight
        for j in range(X.shape[1]):
            sums[label, j] += weight * np.int64(np.rint(np.float64(X[i, j]) * scale))
