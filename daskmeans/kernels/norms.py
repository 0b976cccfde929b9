"""Norms of rows, and how far a float32 product may be from the true one."""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import kernel
from daskmeans.kernels.simd import dot64


@kernel
def squared_norms64(X):  # type: ignore[no-untyped-def]
    """Return the squared norm of each row of a float32 matrix, float64."""
    out = np.empty(X.shape[0], np.float64)
    for i in range(X.shape[0]):
        out[i] = dot64(X[i], X[i])
    return out


@kernel
def _is_unit(square):  # type: ignore[no-untyped-def]
    """Whether a row of this squared norm has unit length, up to the rounding of normalisation in float32."""
    return abs(square - 1.0) <= 2.0**-21


@kernel
def _norm(row):  # type: ignore[no-untyped-def]
    """Return the norm to divide a row by; 1 for zeros and for rows of unit length, give or take 2⁻²²."""
    square = dot64(row, row)
    return 1.0 if square == 0.0 or _is_unit(square) else np.sqrt(square)


@kernel
def unit_rows(X, out):  # type: ignore[no-untyped-def]
    """Write the rows of a float32 matrix, scaled to unit length, into `out`.

    Rows of zeros are unchanged, and so are rows that have unit length already, give or take 2⁻²². So normalising twice
    changes nothing.
    """
    for i in range(X.shape[0]):
        norm = _norm(X[i])
        for j in range(X.shape[1]):
            out[i, j] = np.float32(np.float64(X[i, j]) / norm)


@kernel
def normalize_rows(X):  # type: ignore[no-untyped-def]
    """Do :func:`unit_rows` in place; unchanged rows are not written."""
    for i in range(X.shape[0]):
        norm = _norm(X[i])
        if norm != 1.0:
            for j in range(X.shape[1]):
                X[i, j] = np.float32(np.float64(X[i, j]) / norm)


@kernel
def find_unusual_rows(X):  # type: ignore[no-untyped-def]
    """Find rows that have to be refused or normalised.

    Returns
    -------
    infinite, large, zero : int
        The first row that holds NaN or infinity, the first with a number above 1e15, the first of zeros; -1 for none.
    unit : bool
        Whether all rows have unit length, as :func:`unit_rows` defines it.
    """
    infinite, large, zero, unit = -1, -1, -1, True
    for i in range(X.shape[0]):
        square = dot64(X[i], X[i])
        unit &= _is_unit(square)
        if zero < 0 and square == 0.0:
            zero = i
        if large < 0 and not square <= 1e30:
            if infinite < 0 and not np.isfinite(square):
                infinite = i
            elif np.abs(X[i]).max() > 1e15:
                large = i
    return infinite, large, zero, unit


def rounding_bound(n_features: int) -> float:
    """Return a factor g such that a float32 dot product, summed in any order, is within g·‖x‖·‖y‖ of the true one.

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
