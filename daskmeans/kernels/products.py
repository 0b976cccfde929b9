"""Norms of rows, and how far a float32 product may be from the true one."""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import frozen, kernel
from daskmeans.kernels.lanes import dot64


@kernel
def squared_norms64(X):  # type: ignore[no-untyped-def]
    """Squared norm of each row of a float32 matrix, float64."""
    out = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        out[i] = dot64(X[i], X[i])
    return out


@kernel
def unit_rows(X, out):  # type: ignore[no-untyped-def]
    """Write the rows of a float32 matrix, scaled to unit length, into `out`; a zero row stays as it is."""
    for i in range(X.shape[0]):
        norm = np.sqrt(dot64(X[i], X[i]))
        for j in range(X.shape[1]):
            out[i, j] = np.float32(np.float64(X[i, j]) / norm) if norm > 0.0 else X[i, j]


def normalize_rows(X: np.ndarray) -> None:
    """Scale the rows of a float32 matrix to unit length in place; a zero row stays as it is."""
    unit_rows(frozen(X), X)


@kernel
def unusual_rows(X):  # type: ignore[no-untyped-def]
    """The first row that holds NaN or infinity, the first with a number above 1e15, the first of zeros; -1 for none."""
    infinite, large, zero = -1, -1, -1
    for i in range(X.shape[0]):
        square = dot64(X[i], X[i])
        if zero < 0 and square == 0.0:
            zero = i
        if large < 0 and not square <= 1e30:
            if infinite < 0 and not np.isfinite(square):
                infinite = i
            elif np.abs(X[i]).max() > 1e15:
                large = i
    return infinite, large, zero


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
