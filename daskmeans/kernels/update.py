"""Sums of rows in integers, so that the order of addition does not matter."""

from __future__ import annotations

import math

import numpy as np

from daskmeans.kernels.jit import kernel


def scale_for(largest: float, count: int) -> float:
    """Power of two by which `count` numbers up to `largest` can be scaled and added in int64 without overflow.

    Examples
    --------
    >>> scale_for(1.0, 1_000_000) == 2.0**41
    True
    """
    _, exponent = math.frexp(largest * max(count, 1))  # largest * count < 2^exponent
    return math.ldexp(1.0, min(61 - exponent, 1000))


@kernel
def add_rows(X, labels, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Add each row, scaled and rounded to integers, to the sum of its label."""
    for i in range(X.shape[0]):
        label = labels[i]
        counts[label] += 1
        for j in range(X.shape[1]):
            sums[label, j] += np.int64(np.rint(np.float64(X[i, j]) * scale))


def means(sums: np.ndarray, counts: np.ndarray, scale: float, centroids: np.ndarray) -> np.ndarray:
    """The centroids that scaled integer sums give, float32; one of a cluster without rows stays where it is."""
    held = counts > 0
    moved = centroids.copy()
    moved[held] = sums[held] / (counts[held, None] * scale)
    return moved


@kernel
def add_numbers(values, scale):  # type: ignore[no-untyped-def]
    """Sum of float64 numbers, each scaled and rounded to an integer."""
    total = np.int64(0)
    for i in range(values.shape[0]):
        total += np.int64(np.rint(values[i] * scale))
    return total
