"""Lloyd's algorithm over blocks: exact labels, integer sums, the same bits however the rows are spread."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from daskmeans import config, progress, runtime
from daskmeans.errors import DataError
from daskmeans.kernels.nearest import nearest, squared_distances
from daskmeans.kernels.products import squared_norms64
from daskmeans.kernels.update import add_numbers, add_rows, means, scale_for
from daskmeans.kmeans.blocks import Block, Blocks


@dataclass
class Fit:
    """What a run of the engine found.

    Attributes
    ----------
    centroids : ndarray of float32, shape (k, d)
    inertia : float
        Sum of squared distances of all rows to their nearest of these centroids.
    history : list of float
        Inertia before each update.
    n_iter : int
    converged : bool
    """

    centroids: np.ndarray
    inertia: float = math.inf
    history: list[float] = field(default_factory=list)
    n_iter: int = 0
    converged: bool = False


@dataclass(frozen=True)
class Scales:
    """Powers of two that turn coordinates and squared distances into integers whose sums cannot overflow."""

    coordinates: float
    distances: float


def tile_rows(n_clusters: int, max_samples_per_batch: int) -> int:
    """Rows whose scores against all centroids fill one tile."""
    return max(16, min(max_samples_per_batch, config.get_bytes("tile-bytes") // (4 * n_clusters)))


def lloyd(blocks: Blocks, centroids: np.ndarray, *, max_iter: int, tol: float, batch: int) -> Fit:
    """Improve `centroids` until they move by less than `tol`, relative to the variance of the rows.

    Parameters
    ----------
    blocks : Blocks
    centroids : ndarray of float32, shape (k, d)
    max_iter : int
        Updates at most; with 0 the centroids stay and only their inertia is found.
    tol : float
        As in scikit-learn: the sum of squared shifts is compared with `tol` times the mean variance of a feature.
    batch : int
        Rows scored at once, at most.

    Raises
    ------
    DataError
        The rows have another dimension than the centroids.
    """
    stats = _stats(blocks)
    if len(stats.mean) != centroids.shape[1]:
        raise DataError(
            f"the rows have {len(stats.mean)} dimensions", expected=f"{centroids.shape[1]}, as the centroids"
        )
    fit = Fit(centroids)
    rows = tile_rows(len(centroids), batch)
    with progress.line("k-means", max_iter or None) as line:
        while fit.n_iter < max_iter and not fit.converged:
            start = time.perf_counter()
            shift = _iterate(blocks, fit, stats, rows)
            fit.converged = shift <= tol * stats.variance
            line.advance(f"inertia {fit.history[-1]:,.6g}")
            event = {"iteration": fit.n_iter, "inertia": fit.history[-1], "shift": shift}
            runtime.log_event("daskmeans-kmeans", event | {"seconds": time.perf_counter() - start}, blocks.client)
    scale = _scales(stats, fit.centroids).distances
    fit.inertia = sum(map(int, blocks.map(_inertia, fit.centroids, scale, rows, name="kmeans-inertia"))) / scale
    return fit


def _iterate(blocks: Blocks, fit: Fit, stats: Stats, rows: int) -> float:
    """One update of `fit`; returns the sum of squared shifts of the centroids."""
    scales = _scales(stats, fit.centroids)
    partial = blocks.map(_step, fit.centroids, scales, rows, name="kmeans-step")
    sums, counts = sum(p[0] for p in partial), sum(p[1] for p in partial)
    fit.history.append(sum(int(p[2]) for p in partial) / scales.distances)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        _refill(blocks, fit.centroids, empty, sums, counts, scales, rows)
    moved = means(sums, counts, scales.coordinates, fit.centroids)
    shift = math.fsum(((moved.astype(np.float64) - fit.centroids) ** 2).ravel())
    fit.centroids, fit.n_iter = moved, fit.n_iter + 1
    return shift


def _refill(
    blocks: Blocks,
    centroids: np.ndarray,
    empty: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
    scales: Scales,
    rows: int,
) -> None:
    """Give each empty cluster the row that is farthest from its centroid, as scikit-learn does.

    Changes `sums` and `counts`. Rows that lie on their centroid are not taken, so with fewer distinct rows than
    clusters some stay empty, where they are.
    """
    found = blocks.map(_farthest, centroids, len(empty), rows, name="kmeans-refill")
    distances, numbers, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((numbers, -distances))[: len(empty)]
    order = order[distances[order] > 0.0]
    if len(order) == 0:
        return
    for cluster, label, row in zip(empty, labels[order], blocks.rows(numbers[order]), strict=False):
        if counts[label] < 2:
            continue
        scaled = np.rint(row.astype(np.float64) * scales.coordinates).astype(np.int64)
        sums[cluster], counts[cluster] = scaled, 1
        sums[label] -= scaled
        counts[label] -= 1


@dataclass(frozen=True)
class Stats:
    """Of all rows: their number, mean, mean variance of a feature, largest coordinate and norm."""

    n_rows: int
    mean: np.ndarray
    variance: float
    largest: float
    longest: float


def _stats(blocks: Blocks) -> Stats:
    n = blocks.n_rows
    extremes = blocks.map(_extremes, name="kmeans-stats")
    largest, longest = (max(column) for column in zip(*extremes, strict=True))
    scales = Scales(scale_for(largest, n), scale_for(longest**2, n))
    moments = blocks.map(_moments, scales, name="kmeans-stats")
    mean = sum(m[0] for m in moments) / (scales.coordinates * n)
    energy = sum(int(m[1]) for m in moments) / scales.distances
    variance = max(0.0, energy / n - math.fsum(mean**2)) / len(mean)
    return Stats(n, mean, variance, largest, longest)


def _scales(stats: Stats, centroids: np.ndarray) -> Scales:
    reach = stats.longest + math.sqrt(squared_norms64(centroids).max())
    return Scales(scale_for(stats.largest, stats.n_rows), scale_for(reach**2, stats.n_rows))


def _extremes(group: list[Block]) -> tuple[float, float]:
    largest, longest = 0.0, 0.0
    for block in group:
        with block.open() as arrays:
            largest = max(largest, float(np.abs(arrays["rows"]).max()))
            longest = max(longest, float(squared_norms64(arrays["rows"]).max()))
    return largest, math.sqrt(longest)


def _moments(group: list[Block], scales: Scales) -> tuple[np.ndarray, int]:
    sums, counts = np.zeros((1, group[0].dimension), np.int64), np.zeros(1, np.int64)
    energy = 0
    for block in group:
        with block.open() as arrays:
            add_rows(arrays["rows"], np.zeros(block.n_rows, np.int32), scales.coordinates, sums, counts)
            energy += add_numbers(squared_norms64(arrays["rows"]), scales.distances)
    return sums[0], energy


def _step(group: list[Block], centroids: np.ndarray, scales: Scales, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    sums, counts = np.zeros(centroids.shape, np.int64), np.zeros(len(centroids), np.int64)
    inertia = 0
    for block in group:
        with block.open() as arrays:
            X = arrays["rows"]
            labels = nearest(X, centroids, rows)
            add_rows(X, labels, scales.coordinates, sums, counts)
            inertia += add_numbers(squared_distances(X, centroids, labels), scales.distances)
    return sums, counts, inertia


def _inertia(group: list[Block], centroids: np.ndarray, scale: float, rows: int) -> int:
    inertia = 0
    for block in group:
        with block.open() as arrays:
            labels = nearest(arrays["rows"], centroids, rows)
            inertia += add_numbers(squared_distances(arrays["rows"], centroids, labels), scale)
    return inertia


def _farthest(
    group: list[Block], centroids: np.ndarray, count: int, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    distances, numbers, labels = [], [], []
    for block in group:
        with block.open() as arrays:
            mine = nearest(arrays["rows"], centroids, rows)
            far = squared_distances(arrays["rows"], centroids, mine)
        top = np.lexsort((np.arange(block.n_rows), -far))[:count]
        distances.append(far[top])
        numbers.append(block.numbers[top])
        labels.append(mine[top])
    return np.concatenate(distances), np.concatenate(numbers), np.concatenate(labels)
