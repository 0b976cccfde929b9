"""Norms, unit length and cosine distances of rows on a device; bitwise identical to those of the CPU.

Everything is written for arrays of a :class:`~daskmeans.kernels.gpu.device.Device`, as in
:mod:`daskmeans.kernels.gpu.dense`. Sums of float64 are added in the order of :mod:`daskmeans.kernels.simd`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daskmeans.kernels.gpu import dense
from daskmeans.kernels.gpu.device import Device

# Squared norms from which rows may hold numbers whose squares overflow float32; see `kernels.norms.find_unusual_rows`.
LARGE = 1e30


def squared_norms(device: Device, X: Any) -> Any:
    """Like ``kernels.norms.squared_norms64``; float64, shape (n,)."""
    out = device.xp.empty(len(X), np.float64)
    for part in dense.range_slices(len(X), device.tuning.coordinates // max(1, X.shape[1])):
        wide = X[part].astype(np.float64)
        out[part] = dense.sum_in_order(device.xp, wide * wide)
    return out


def is_usual(device: Device, squares: Any, normalize: bool) -> bool:
    """Whether rows with these squared norms can be used: none is infinite, too large or, if to be normalised, zero.

    False only means that ``kernels.norms.find_unusual_rows`` has to decide.
    """
    xp = device.xp
    return bool(xp.isfinite(squares).all()) and not bool((squares == 0.0 if normalize else squares > LARGE).any())


def unit_rows(device: Device, X: Any, squares: Any) -> Any:
    """Like ``kernels.norms.unit_rows``, for rows with known squared norms; return `X` itself if none changes."""
    xp = device.xp
    same = (xp.abs(squares - 1.0) <= 2.0**-21) | (squares == 0.0)
    if bool(same.all()):
        return X
    norms = xp.where(same, 1.0, xp.sqrt(squares))
    out = xp.empty_like(X)
    for part in dense.range_slices(len(X), device.tuning.coordinates // X.shape[1]):
        out[part] = X[part].astype(np.float64) / norms[part, None]
    return out


def cosine_distances(device: Device, X: Any, centroids: Any, labels: Any) -> Any:
    """Like ``distances.cosine_distances``; float64, shape (n,)."""
    xp = device.xp
    out = xp.empty(len(X), np.float64)
    norms = xp.sqrt(squared_norms(device, centroids))
    for part in dense.range_slices(len(X), device.tuning.coordinates // X.shape[1]):
        rows, mine = X[part].astype(np.float64), labels[part]
        scale = xp.sqrt(dense.sum_in_order(xp, rows * rows)) * norms[mine]
        products = dense.sum_in_order(xp, rows * centroids[mine])
        out[part] = xp.where(scale > 0.0, 1.0 - products / xp.where(scale > 0.0, scale, 1.0), 1.0)
    return out


def largest_coordinate(device: Device, X: Any) -> float:
    """Like ``sums.largest_coordinate``."""
    return float(device.xp.abs(X).max()) if len(X) else 0.0
