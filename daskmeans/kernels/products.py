"""Products in one fixed order, and how far a BLAS may be from them."""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import kernel

LANES = 8


@kernel
def dot64(x, y):  # type: ignore[no-untyped-def]
    """Dot product of two float32 vectors in float64, summed in eight lanes that are added at the end.

    Each product is exact, so the result is the same with and without fused multiply-add; the lanes let it use vector
    registers without leaving the fixed order.
    """
    d = x.shape[0]
    whole = d - d % LANES
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for i in range(0, whole, LANES):
        s0 += np.float64(x[i]) * np.float64(y[i])
        s1 += np.float64(x[i + 1]) * np.float64(y[i + 1])
        s2 += np.float64(x[i + 2]) * np.float64(y[i + 2])
        s3 += np.float64(x[i + 3]) * np.float64(y[i + 3])
        s4 += np.float64(x[i + 4]) * np.float64(y[i + 4])
        s5 += np.float64(x[i + 5]) * np.float64(y[i + 5])
        s6 += np.float64(x[i + 6]) * np.float64(y[i + 6])
        s7 += np.float64(x[i + 7]) * np.float64(y[i + 7])
    tail = 0.0
    for i in range(whole, d):
        tail += np.float64(x[i]) * np.float64(y[i])
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)) + tail


@kernel
def squared_distance64(x, y):  # type: ignore[no-untyped-def]
    """Squared Euclidean distance of two float32 vectors in float64, in a fixed order; zero for equal vectors."""
    d = x.shape[0]
    whole = d - d % LANES
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for i in range(0, whole, LANES):
        t0 = np.float64(x[i]) - np.float64(y[i])
        t1 = np.float64(x[i + 1]) - np.float64(y[i + 1])
        t2 = np.float64(x[i + 2]) - np.float64(y[i + 2])
        t3 = np.float64(x[i + 3]) - np.float64(y[i + 3])
        t4 = np.float64(x[i + 4]) - np.float64(y[i + 4])
        t5 = np.float64(x[i + 5]) - np.float64(y[i + 5])
        t6 = np.float64(x[i + 6]) - np.float64(y[i + 6])
        t7 = np.float64(x[i + 7]) - np.float64(y[i + 7])
        s0 += t0 * t0
        s1 += t1 * t1
        s2 += t2 * t2
        s3 += t3 * t3
        s4 += t4 * t4
        s5 += t5 * t5
        s6 += t6 * t6
        s7 += t7 * t7
    tail = 0.0
    for i in range(whole, d):
        t = np.float64(x[i]) - np.float64(y[i])
        tail += t * t
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)) + tail


@kernel
def squared_norms64(X):  # type: ignore[no-untyped-def]
    """Squared norm of each row of a float32 matrix, float64."""
    out = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        out[i] = dot64(X[i], X[i])
    return out


@kernel
def normalize_rows(X):  # type: ignore[no-untyped-def]
    """Scale the rows of a float32 matrix to unit length in place; a zero row stays as it is."""
    for i in range(X.shape[0]):
        norm = np.sqrt(dot64(X[i], X[i]))
        if norm > 0.0:
            for j in range(X.shape[1]):
                X[i, j] = np.float32(np.float64(X[i, j]) / norm)


def rounding_bound(n_features: int) -> float:
    """Factor g such that a float32 dot product, summed in any order, is within g·‖x‖·‖y‖ of the true one.

    Notes
    -----
    γ_n = n·u / (1 − n·u) with u = 2⁻²⁴; Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section
    3.1. Two units more cover what a caller does with the product afterwards (one subtraction, one rounding).

    Examples
    --------
    >>> 2.2e-5 < rounding_bound(384) < 2.4e-5
    True
    """
    nu = (n_features + 2) * 2.0**-24
    return nu / (1.0 - nu)
