"""An assignment step over blocks of rows: each row gets its nearest centroid, and the cluster sums are updated.

The state that is kept beside the rows from step to step only saves work. A block that has lost it is compared anew,
with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from daskmeans.kernels.bounds import Bounds, Drift, groups_per_bound
from daskmeans.kernels.gpu import dense
from daskmeans.kernels.gpu.device import Copy, Device
from daskmeans.kernels.gpu.memory import nearest_bytes, spare_bytes
from daskmeans.kernels.jit import as_readonly
from daskmeans.kernels.quantize import Codes, encode_rows, is_bytewise, pack_centroids, squares_about
from daskmeans.kernels.sums import exact_sum, move_rows, move_weighted_rows
from daskmeans.kernels.yinyang import ALL_GROUPS, find_nearest


class CpuStep:
    """A step on the CPU with bounds: codes, labels and bounds of the rows are kept.

    Attributes
    ----------
    total_ss : int
        Exact sum of squared distances to the center, of rows that begin anew.
    moved : int
        Rows whose label has changed.
    compared : int
        Pairs of rows and centroids that were scored.
    """

    def __init__(
        self, centroids: np.ndarray, center: np.ndarray, order: np.ndarray, drift: Drift, scale: float
    ) -> None:
        self._center, self._scale = center, scale
        self._columns, self._travel = pack_centroids(centroids, center, order), Drift(*map(as_readonly, drift))
        self._together = groups_per_bound(len(centroids))
        self._sums, self._counts = np.zeros(centroids.shape, np.int64), np.zeros(len(centroids), np.int64)
        self.total_ss = self.moved = self.compared = 0

    def add(self, X: np.ndarray, arrays: dict[str, np.ndarray], begins: str, copy: Copy | None) -> Copy | None:
        """Update the labels of a block, and the sums by the rows whose label has changed.

        Parameters
        ----------
        X : ndarray of float32, shape (n, d)
        arrays : dict of ndarray
            The state that is kept: as in :meth:`Cpu.layout`, and "near" if rows are compared with near groups only.
            With weights also "weights": how often each row counts, in whole numbers; float64, shape (n,).
        begins : {"", "labels", "all"}
            The state to make anew: none, labels and bounds, or codes too.
        copy : Copy or None
            The result of the last step for this block.

        Returns
        -------
        Copy or None
            The rows that a device keeps, to be passed to the next step; None on a CPU.
        """
        codes = Codes(*(arrays.get(name, X) for name in Codes._fields))
        bounds, weights = Bounds(arrays["labels"], arrays["upper"], arrays["lower"]), arrays.get("weights")
        if begins:
            if begins == "all":
                encode_rows(X, self._center, arrays)
            bounds.labels[:], bounds.lower[:] = -1, 0.0
            squares = codes.squares if is_bytewise(X.shape[1]) else squares_about(X, as_readonly(self._center))
            self.total_ss += exact_sum(squares if weights is None else weights * squares)
        before, near = bounds.labels.copy(), arrays.get("near", ALL_GROUPS)
        self.compared += find_nearest(X, codes, self._columns, bounds, self._travel, self._together, near, np.empty(0))
        sums = self._scale, self._sums, self._counts
        if weights is None:
            self.moved += move_rows(X, before, bounds.labels, *sums)
        else:
            self.moved += move_weighted_rows(X, before, bounds.labels, weights, *sums)
        return None

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the changes of each cluster's scaled sum and number of rows; int64, shapes (k, d) and (k,)."""
        return self._sums, self._counts


class GpuStep:
    """Like :class:`CpuStep`, on a device. Bounds would not pay there, so only labels are kept."""

    def __init__(self, device: Device, centroids: np.ndarray, center: np.ndarray, scale: float) -> None:
        self._device = device
        self._sums = dense.DeviceSums(device, centroids.shape, scale)
        self._to = dense.encode_centroids(device, centroids, center)
        self.total_ss = self.moved = self.compared = 0

    def add(self, X: Any, arrays: dict[str, np.ndarray], begins: str, copy: Copy | None) -> Copy | None:
        """Like :meth:`CpuStep.add`, for rows in memory or on the device."""
        device, to, labels, weights = self._device, self._to, arrays["labels"], arrays.get("weights")
        if begins:
            labels[:] = -1
        tiles, copy = (copy.tiles, copy) if copy else self._sent(X)
        for part, rows in tiles:
            if begins:
                squares = device.to_host(dense.squares_about(device, rows.X, to.center))
                self.total_ss += exact_sum(squares if weights is None else weights[part] * squares)
            found = dense.closest_labels(device, rows, to)
            mine = None if weights is None else device.xp.asarray(weights[part])
            self.moved += self._sums.move(rows.X, device.xp.asarray(labels[part]), found, mine)
            labels[part] = device.to_host(found)
        self.compared += len(labels) * len(to.rows.X)
        return copy

    def _sent(self, X: Any) -> tuple[Iterable[tuple[slice, dense.DeviceRows]], Copy | None]:
        """Return the rows of a block on the device, tile by tile, and the copy to keep if memory suffices for it."""
        device, to = self._device, self._to
        k, d = to.rows.X.shape
        size = dense.tile_rows(k, d, device.tuning)
        sent = ((part, dense.encode_rows(device, tile, to.center)) for part, tile in device.tiles(X, size))
        need = nearest_bytes(len(X), k, d, device.tuning)
        room = spare_bytes(device.memory(), device.tuning.rows_share, need)
        nbytes = len(X) * dense.row_bytes(d)
        if device.copied() + nbytes > room:
            return sent, None
        # Rows in a transfer buffer are copied before the next tile overwrites it.
        kept = [(part, rows if device.holds(X) else rows._replace(X=rows.X.copy())) for part, rows in sent]
        return kept, Copy(device, kept, nbytes)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Like :meth:`CpuStep.totals`."""
        return self._sums.to_host()
