"""Nearest centroids, sums and pairs by dense products: GPU arithmetic with the results of the CPU.

Rows become float16, and tensor cores sum their products in float32. The error of such a score is bounded for each row.
Scores that are closer than that are re-ranked in float64, each sum in the order of `daskmeans.kernels.simd`. So labels,
squared distances, sums and pairs are bitwise identical to those of the CPU kernels.

Everything is written for arrays of a :class:`daskmeans.kernels.gpu.device.Device`: cupy's on a GPU, numpy's without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from daskmeans.kernels.all_pairs import Pairs
from daskmeans.kernels.gpu import scores as loops
from daskmeans.kernels.gpu.device import Device
from daskmeans.tuning import DEFAULT, Tuning

# Tensor cores need rows of float16 aligned to 16 bytes.
ALIGNED = 8
# Factor that rounds a norm up, in whatever order its terms were added.
UP = 1.0 + 2.0**-20


class DeviceRows(NamedTuple):
    """Rows on a device, as float32 and as the float16 codes that are multiplied.

    A row less the center is ``scale * codes``, up to an error whose norm is at most ``errors``.
    """

    X: Any
    """float32, shape (n, d)"""
    codes: Any
    """float16, shape (n, d rounded up to 8)"""
    scale: float
    """A power of two."""
    squares: Any
    """float64, shape (n,): squared norms of the rows less the center, to within rounding."""
    errors: Any
    """float64, shape (n,)"""


def row_bytes(n_features: int) -> int:
    """Return the bytes of one row of :class:`DeviceRows`."""
    return 6 * n_features + 2 * ALIGNED + 16


def accumulation_bound(n_features: int) -> float:
    """Factor g such that a product of float16 rows x and y, summed in float32, is within g·‖x‖·‖y‖ of the true one.

    Notes
    -----
    Products of two float16 numbers are exact in float32. Tensor cores add several of them to the running sum at once,
    all truncated (not rounded) at 24 bits of the largest: an error of 2⁻²³ of the sum of magnitudes for each number,
    and one more for each group. With groups of four or more that is less than 2⁻²² for each product.

    Examples
    --------
    >>> 1.8e-4 < accumulation_bound(768) < 1.9e-4
    True
    """
    nu = (n_features + 2 * ALIGNED) * 2.0**-22
    return nu / (1.0 - nu)


def tile_rows(n_columns: int, n_features: int, tuning: Tuning = DEFAULT) -> int:
    """Return how many rows are compared with `n_columns` others at once."""
    return max(1, min(tuning.scores // n_columns, tuning.coordinates // n_features))


def encode_rows(device: Device, X: Any, center: Any) -> DeviceRows:
    """Encode the rows of a matrix on the device (float32, shape (n, d)), less `center` (float64, shape (d,))."""
    xp = device.xp
    n, d = X.shape
    apart = X - center
    scale = _power_above(float(xp.abs(apart).max()) if n else 0.0)
    codes = xp.zeros((n, -(-d // ALIGNED) * ALIGNED), np.float16)
    codes[:, :d] = apart / scale
    lost = apart - scale * codes[:, :d].astype(np.float64)
    return DeviceRows(X, codes, scale, (apart * apart).sum(axis=1), xp.sqrt((lost * lost).sum(axis=1)) * UP)


def _power_above(largest: float) -> float:
    """Return a power of two above `largest`, at least 2⁻¹⁰⁰ so that its square does not underflow."""
    return math.ldexp(1.0, max(-100, math.frexp(largest)[1]))


def _score_slack(device: Device, rows: DeviceRows, longest: float, error: float) -> Any:
    """Return bounds on the errors of scores of `rows`, like `bounds.score_slack`; float64, shape (n,)."""
    d = rows.X.shape[1]
    g = accumulation_bound(d)
    norm = device.xp.sqrt(rows.squares) * UP
    lost = rows.errors * longest + (norm + rows.errors) * error
    summed = g * (norm + rows.errors) * (longest + error) + g * longest * longest
    return lost + summed + (d + 8) * 2.0**-50 * (norm + longest) ** 2 + (d + 2) * 2.0**-126


def _round_down(xp: Any, values: Any) -> Any:
    """Return float32 numbers that are not more than `values`, which are less than 3e38."""
    values = xp.maximum(values, -3e38)
    return (values - xp.abs(values) * 2.0**-22 - 2.0**-126).astype(np.float32)


def sum_in_order(xp: Any, terms: Any) -> Any:
    """Return the sums of the rows of a float64 matrix, added in the order of :mod:`daskmeans.kernels.simd`."""
    m, d = terms.shape
    whole = d // 16 * 16
    streams, tail = xp.zeros((m, 16)), xp.zeros(m)
    for start in range(0, whole, 16):
        streams += terms[:, start : start + 16]
    for j in range(whole, d):
        tail += terms[:, j]
    lanes = streams[:, :8] + streams[:, 8:]
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    return lanes[:, 0] + tail


def range_slices(n: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` that cover ``range(n)`` in order; the last one may be shorter."""
    for start in range(0, n, max(1, size)):
        yield slice(start, min(start + max(1, size), n))


def squared_distances(device: Device, X: Any, Y: Any, rows: Any, columns: Any) -> Any:
    """Return squared distances of pairs of rows of `X` and `Y`; bitwise identical to ``squared_distance64``."""
    out = device.xp.empty(len(rows), np.float64)
    for part in range_slices(len(rows), device.tuning.coordinates // X.shape[1]):
        apart = X[rows[part]].astype(np.float64) - Y[columns[part]]
        out[part] = sum_in_order(device.xp, apart * apart)
    return out


def squares_about(device: Device, X: Any, center: Any) -> Any:
    """Return the squared distance of each row to `center`; bitwise identical to ``quantize.squares_about``."""
    apart = X - center
    return sum_in_order(device.xp, apart * apart)


# --- nearest centroids ---


class DeviceCentroids(NamedTuple):
    """Centroids on a device, ready to be compared with rows."""

    rows: DeviceRows
    center: Any
    """float64, shape (d,): subtracted from centroids and rows."""
    halves: Any
    """float64, shape (k,): half the squared norms, less the center."""
    longest: float
    error: float


def encode_centroids(device: Device, centroids: np.ndarray, center: np.ndarray) -> DeviceCentroids:
    """Encode `centroids` (float32, shape (k, d)) on the device."""
    there = device.xp.asarray(center)
    rows = encode_rows(device, device.xp.asarray(centroids), there)
    longest = math.sqrt(float(rows.squares.max())) * UP
    return DeviceCentroids(rows, there, 0.5 * rows.squares, longest, float(rows.errors.max()))


def closest_labels(device: Device, rows: DeviceRows, to: DeviceCentroids) -> Any:
    """Return the label of the nearest centroid of each row; ties go to the lower label; int32, shape (n,)."""
    xp, n = device.xp, len(rows.X)
    unit = rows.scale * to.rows.scale
    scores = device.product(to.rows.codes, rows.codes)
    halves = xp.minimum(to.halves / unit, 1e38).astype(np.float32)
    slack = _score_slack(device, rows, to.longest, to.error) / unit
    labels, tops, alone = xp.empty(n, np.int32), xp.empty(n, np.float32), xp.empty(n, np.bool_)
    device.each(loops.pick_largest, n, scores, halves, -_round_down(xp, -2.0 * slack), labels, tops, alone)
    unsure = xp.flatnonzero(~alone)
    least = _round_down(xp, tops - 2.0 * slack)
    for part in range_slices(len(unsure), device.tuning.scores // (16 * len(halves))):
        some = unsure[part]
        labels[some] = _rerank_candidates(device, rows, to, some, scores[:, some] - halves[:, None] >= least[some])
    return labels


def _rerank_candidates(device: Device, rows: DeviceRows, to: DeviceCentroids, some: Any, close: Any) -> Any:
    """Return the nearest centroid of `some` rows among those marked in `close`: bool, shape (k, len(some))."""
    xp = device.xp
    columns, which = xp.nonzero(close)
    squares = squared_distances(device, rows.X, to.rows.X, some[which], columns)
    # Sorted by row, distance and number, the first of each row is its nearest.
    order = xp.lexsort(xp.stack([columns.astype(np.float64), squares, which.astype(np.float64)]))
    which = which[order]
    first = xp.flatnonzero(xp.concatenate([xp.ones(1, np.bool_), which[1:] != which[:-1]]))
    return columns[order[first]].astype(np.int32)


def nearest_centroids(
    device: Device, X: np.ndarray, centroids: np.ndarray, *, squares: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Like :func:`daskmeans.kernels.distances.nearest_centroids`; without `squares` the second array is empty."""
    labels, distances = np.empty(len(X), np.int32), np.empty(len(X) if squares else 0)
    with device.turn():
        to = encode_centroids(device, centroids, centroids.mean(axis=0, dtype=np.float64))
        k, d = centroids.shape
        for part, there in device.tiles(X, tile_rows(k, d, device.tuning)):
            found = closest_labels(device, encode_rows(device, there, to.center), to)
            labels[part] = device.to_host(found)
            if squares:
                own = device.xp.arange(len(there))
                distances[part] = device.to_host(squared_distances(device, there, to.rows.X, own, found))
    return labels, distances


# --- sums ---


class DeviceSums:
    """Scaled sum and number of the rows of each cluster, on a device.

    Integers are added by atomic operations, in any order. They are unsigned, since devices have no signed 64-bit atomic
    addition; modulo 2⁶⁴ the sums are the same. The `shape` is that of the centroids.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], scale: float) -> None:
        self._device, self._scale = device, scale
        self._sums = device.xp.zeros(shape, np.uint64)
        self._counts = device.xp.zeros(shape[0], np.int64)

    def move(self, X: Any, before: Any, labels: Any, weights: Any = None) -> int:
        """Like ``sums.move_rows``; return how many rows have changed their label. -1 in `before` stands for none.

        With `weights` (float64, whole numbers) like ``sums.move_weighted_rows``.
        """
        xp = self._device.xp
        changed = xp.flatnonzero(before != labels)
        for part in range_slices(len(changed), self._device.tuning.coordinates // X.shape[1]):
            mine = changed[part]
            each: Any = 1 if weights is None else weights[mine].astype(np.int64)
            factors = self._scale if weights is None else (weights[mine] * self._scale)[:, None]
            values = xp.rint(X[mine].astype(np.float64) * factors).astype(np.int64)
            self._add(labels[mine], values, each)
            had = xp.flatnonzero(before[mine] >= 0)
            self._add(before[mine][had], -values[had], -1 if weights is None else -each[had])
        return len(changed)

    def _add(self, labels: Any, values: Any, each: Any) -> None:
        """Add `values` to the sums of `labels`, and `each` to their counts: one number for all, or one for each."""
        xp = self._device.xp
        xp.add.at(self._sums, labels, values.view(np.uint64))
        if isinstance(each, int):
            self._counts += each * xp.bincount(labels, minlength=len(self._counts))
        else:
            xp.add.at(self._counts.view(np.uint64), labels, each.view(np.uint64))

    def to_host(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums and the numbers of rows; int64, shapes (k, d) and (k,)."""
        return self._device.to_host(self._sums).view(np.int64), self._device.to_host(self._counts)


# --- pairs ---


def encode_unit_rows(device: Device, X: np.ndarray) -> DeviceRows:
    """Encode unit rows (float32, shape (n, d)) on the device, for :func:`find_pairs`."""
    with device.turn():
        return encode_rows(device, device.xp.asarray(X), device.xp.zeros(X.shape[1]))


def find_pairs(
    device: Device, one: DeviceRows, other: DeviceRows, floor: np.float32, *, same: bool = False
) -> Iterator[Pairs]:
    """Like :func:`daskmeans.kernels.all_pairs.find_pairs`, for all rows of `one` and `other`."""
    most = device.tuning.scores // max(1, len(other.X))
    for part in range_slices(len(one.X), most) if len(other.X) else ():
        with device.turn():
            found = list(_find_part_pairs(device, one, other, part, floor, same))
        yield from found


def _find_part_pairs(
    device: Device, one: DeviceRows, other: DeviceRows, part: slice, floor: np.float32, same: bool
) -> Iterator[Pairs]:
    """Yield the pairs of the rows `part` of `one`."""
    xp, m = device.xp, part.stop - part.start
    scores = device.product(other.codes, one.codes[part])
    rows = one._replace(X=one.X[part], squares=one.squares[part], errors=one.errors[part])
    longest, error = math.sqrt(float(other.squares.max())) * UP, float(other.errors.max())
    # A score is rounded to float32 before it is compared with the floor.
    true = float(floor) * (1.0 - 2.0**-23) - _score_slack(device, rows, longest, error)
    least = _round_down(xp, true / (one.scale * other.scale))
    ends = xp.arange(part.start, part.stop) if same else xp.full(m, len(other.X))
    counts = xp.empty(m, np.int64)
    device.each(loops.count_pairs, m, scores, least, ends, counts)
    starts = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(counts)])
    total = int(starts[-1])
    i, j = xp.empty(total, np.int64), xp.empty(total, np.int64)
    device.each(loops.list_pairs, m, scores, least, ends, starts, i, j)
    for some in range_slices(total, device.tuning.coordinates // one.X.shape[1]):
        yield _score_pairs(device, one, other, i[some] + part.start, j[some], floor)


def _score_pairs(device: Device, one: DeviceRows, other: DeviceRows, i: Any, j: Any, floor: np.float32) -> Pairs:
    """Score the pairs of rows `i` and `j`; return those whose score is at least the floor."""
    xp = device.xp
    x, y = one.X[i], other.X[j]
    copies = (x == y).all(axis=1)
    products = sum_in_order(xp, x.astype(np.float64) * y)
    scores = xp.where(copies, 1.0, xp.minimum(products, 1.0)).astype(np.float32)
    high = xp.flatnonzero(scores >= floor)
    return Pairs(*(device.to_host(array[high]) for array in (i, j, scores, copies)))
