"""Backends, CPU and GPU: the same methods, with bitwise identical results.

The backend is chosen once, where rows are loaded, by :func:`daskmeans.runtime.gpus.backend`. Rows lie in the memory of
their `home`, which is a backend too: the process's memory for the CPU, its own for a GPU. Methods on rows where they
lie are called on the home.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskmeans.kernels import all_pairs, distances, quantize, sums
from daskmeans.kernels.all_pairs import Pairs, Sketches
from daskmeans.kernels.bounds import Drift, n_bounds
from daskmeans.kernels.gpu import dense, norms
from daskmeans.kernels.gpu.device import Device
from daskmeans.kernels.gpu.memory import pairs_bytes, spare_bytes
from daskmeans.kernels.step import CpuStep, GpuStep

# Share of a device's memory that row blocks may take.
KEEP = 0.5

# The arrays that are kept beside the rows of a block from step to step: their shapes and types.
Layout = dict[str, tuple[tuple[int, ...], Any]]
# Rows in the form in which pairs are compared: sketches on a CPU, whole rows on a device.
Compared = Sketches | dense.DeviceRows


class Cpu:
    """The CPU cores of this process."""

    def turn(self) -> AbstractContextManager[None]:
        """Context around what a thread computes with rows; on a CPU threads do not wait for one another."""
        return contextlib.nullcontext()

    def memory(self) -> int:
        """Bytes of the backend's own memory, used or not: 0 for a CPU, whose memory is budgeted elsewhere."""
        return 0

    # --- k-means ---

    def layout(self, rows: int, n_features: int, n_clusters: int) -> Layout:
        """Return the shapes and types of the arrays that a step keeps beside `rows` rows."""
        bounds: Layout = {
            "labels": ((rows,), np.int32),
            "upper": ((rows,), np.float32),
            "lower": ((rows, n_bounds(n_clusters)), np.float32),
        }
        return quantize.codes_layout(rows, n_features, quantize.is_bytewise(n_features)) | bounds

    def step(self, centroids: np.ndarray, center: np.ndarray, order: np.ndarray, drift: Drift, scale: float) -> CpuStep:
        """Begin an assignment step for `centroids`; see :class:`daskmeans.kmeans.engine.passes.PassState`."""
        return CpuStep(centroids, center, order, drift, scale)

    def nearest(self, X: Any, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :func:`daskmeans.kernels.distances.nearest_centroids`; a GPU also takes rows in its own memory."""
        return distances.nearest_centroids(X, centroids)

    def nearest_labels(self, X: Any, centroids: np.ndarray) -> np.ndarray:
        """Return only the labels of :meth:`nearest`, in less time."""
        return distances.nearest_labels(X, centroids)

    # --- pairs ---

    def make_comparable(self, X: np.ndarray, P: np.ndarray) -> Sketches:
        """Prepare unit rows for :meth:`find_pairs`; on a CPU as sketches along the directions `P`."""
        return all_pairs.make_sketches(X, P)

    def find_pairs(self, one: Any, other: Any, floor: np.float32, *, same: bool = False) -> Iterator[Pairs]:
        """Yield the pairs of rows whose score is at least `floor`, some at a time; `same` if `one` is `other`."""
        return all_pairs.find_pairs(one, other, floor, slice(0, len(one.X)), slice(0, len(other.X)), same=same)

    def room(self, rows: int, most: int, n_features: int) -> int:
        """Return how many of `rows` prepared rows may be kept while two row blocks of up to `most` are compared."""
        return rows

    # --- rows where they lie ---

    def adopt(self, matrix: Callable[[], Any], normalize: bool) -> Any:
        """Return the rows that `matrix` returns if they lie in this memory; None if not, or if a row may be bad."""
        return None

    def place(self, X: np.ndarray) -> Any:
        """Copy rows from the process's memory to this one."""
        return X

    def copy_view(self, X: Any) -> Any:
        """Return rows that keep no others in memory; a view of a larger column is copied."""
        return X if X.base is None else X.copy()

    def to_host(self, X: Any) -> np.ndarray:
        """Copy rows to the process's memory."""
        return X  # type: ignore[no-any-return]

    def take(self, X: Any, which: np.ndarray) -> Any:
        """Return the rows `which`."""
        return X[which]

    def copy_rows(self, X: Any, which: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Copy the rows `which` to `places` of `out`, which ascend."""
        if len(which) and places[-1] - places[0] == len(places) - 1:
            np.take(X, which, axis=0, out=out[places[0] : places[-1] + 1], mode="clip")
        else:
            out[places] = X[which]

    def squared_distances(self, X: Any, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Squared distance of each row to the centroid of its label; float64, shape (n,)."""
        return distances.squared_distances(X, centroids, labels)  # type: ignore[no-any-return]

    def cosine_distances(self, X: Any, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Cosine distance of each row to the centroid of its label; float64, shape (n,)."""
        return distances.cosine_distances(X, centroids, labels)  # type: ignore[no-any-return]

    def largest_coordinate(self, X: Any) -> float:
        """Return the largest absolute coordinate of the rows."""
        return sums.largest_coordinate(X)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Gpu:
    """A GPU; methods without a docstring do the same as those of :class:`Cpu`."""

    device: Device

    def turn(self) -> AbstractContextManager[None]:
        """One thread at a time; see :meth:`Device.turn`."""
        return self.device.turn()

    def memory(self) -> int:
        """Bytes of its memory, used or not."""
        return self.device.memory()

    # --- k-means ---

    def layout(self, rows: int, n_features: int, n_clusters: int) -> Layout:
        """Labels only: on a GPU bounds do not pay."""
        return {"labels": ((rows,), np.int32)}

    def step(self, centroids: np.ndarray, center: np.ndarray, order: np.ndarray, drift: Drift, scale: float) -> GpuStep:
        """Compare with all centroids, so order and drift have no effect."""
        return GpuStep(self.device, centroids, center, scale)

    def nearest(self, X: Any, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dense.nearest_centroids(self.device, X, centroids)

    def nearest_labels(self, X: Any, centroids: np.ndarray) -> np.ndarray:
        return dense.nearest_centroids(self.device, X, centroids, squares=False)[0]

    # --- pairs ---

    def make_comparable(self, X: np.ndarray, P: np.ndarray) -> dense.DeviceRows:
        """Copy whole rows to the device; `P` is not used."""
        return dense.encode_unit_rows(self.device, X)

    def find_pairs(self, one: Any, other: Any, floor: np.float32, *, same: bool = False) -> Iterator[Pairs]:
        return dense.find_pairs(self.device, one, other, floor, same=same)

    def room(self, rows: int, most: int, n_features: int) -> int:
        """As many rows as the device has memory for."""
        room = spare_bytes(self.device.memory(), KEEP, pairs_bytes(most, n_features, self.device.tuning))
        return min(rows, room // dense.row_bytes(n_features))

    # --- rows where they lie ---

    def adopt(self, matrix: Callable[[], Any], normalize: bool) -> Any:
        X = matrix()
        if X is None:
            return None
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinity
            X = self.device.xp.ascontiguousarray(X, np.float32)
        squares = norms.squared_norms(self.device, X)
        if not norms.is_usual(self.device, squares, normalize):
            return None
        return norms.unit_rows(self.device, X, squares) if normalize else X

    def place(self, X: np.ndarray) -> Any:
        return self.device.xp.asarray(X)

    def copy_view(self, X: Any) -> Any:
        """Return the rows unchanged: a column is not copied."""
        return X

    def to_host(self, X: Any) -> np.ndarray:
        return self.device.to_host(X)

    def take(self, X: Any, which: np.ndarray) -> Any:
        return X[self.device.xp.asarray(which)]

    def copy_rows(self, X: Any, which: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        out[places] = self.to_host(self.take(X, which))

    def squared_distances(self, X: Any, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        device, xp = self.device, self.device.xp
        with device.turn():
            own = xp.arange(len(X))
            return device.to_host(dense.squared_distances(device, X, xp.asarray(centroids), own, xp.asarray(labels)))

    def cosine_distances(self, X: Any, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        device, xp = self.device, self.device.xp
        with device.turn():
            return device.to_host(norms.cosine_distances(device, X, xp.asarray(centroids), xp.asarray(labels)))

    def largest_coordinate(self, X: Any) -> float:
        with self.device.turn():
            return norms.largest_coordinate(self.device, X)


Backend = Cpu | Gpu
CPU = Cpu()
