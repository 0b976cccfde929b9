"""The engine: Lloyd's updates on growing samples, then on all rows; bitwise identical however rows are distributed.

The state of a fit is its centroids and a few numbers (:class:`FitState`). What the workers keep beside their rows only
saves work. So a fit can be stopped after any update, or lose a worker, and still reach the same result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple
from uuid import uuid4

import numpy as np

from daskmeans.errors import DataError
from daskmeans.kernels.bounds import Drift, groups_per_bound, n_bounds
from daskmeans.kernels.center_groups import group_centers, n_near, order_by_group
from daskmeans.kernels.distances import squared_distances
from daskmeans.kernels.jit import as_readonly
from daskmeans.kernels.microkernel import COLUMNS
from daskmeans.kernels.sums import as_number, compute_means, overrelax, scale_for, squared_shift, within_ss
from daskmeans.kmeans.engine import passes
from daskmeans.kmeans.engine.passes import PassState
from daskmeans.kmeans.engine.state import CANCELLED, Checkpoints, FitState, NoCheckpoints, StopRule
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.runtime import progress
from daskmeans.runtime.client import log_event
from daskmeans.tuning import DEFAULT, Tuning

# The first sample holds this many rows for each cluster, each further one GROWTH times as many, while that is less than
# 1 / GROWTH of all rows: updates on a sample nearly as large as the whole would cost more than they save.
FIRST_SAMPLE, GROWTH = 32, 3
# Updates on a sample, at most; and the gain, times the rows per cluster, below which a sample is left. With n rows a
# cluster, means are off by about 1 / n of the inertia, so smaller gains are gains on the sample only. (Measured: see
# benchmarks/NOTES.md.)
SAMPLE_UPDATES, SAMPLE_GAIN = 25, 0.3
# As long as the inertia falls, centroids go beyond the means of their rows: by this share of the way there, and by this
# share of their previous step.
RELAXATION, MOMENTUM = 0.85, 0.4
# With thousands of clusters, this many updates of a phase compare each row only with the groups of centroids near it.
NEAR_UPDATES = 3
# Rows whose mean approximates that of all rows.
CENTER_ROWS = 1024


def sample_sizes(n_rows: int, n_clusters: int, least: int = DEFAULT.least_sample) -> list[int]:
    """Return the sizes of the growing samples of a fit, at least `least` in the first; none if all rows are few enough.

    Examples
    --------
    >>> sample_sizes(1_000_000, 1000)
    [32768, 98304, 294912]
    >>> sample_sizes(50_000, 1000)
    []
    """
    sizes = []
    size = max(FIRST_SAMPLE * n_clusters, least)
    while GROWTH * size < n_rows:
        sizes.append(size)
        size *= GROWTH
    return sizes


def fit_blocks(
    blocks: Blocks,
    seeds: Callable[[], np.ndarray],
    *,
    max_iter: int,
    tol: float,
    seed: int,
    grow: bool,
    run: int = 0,
    checkpoints: Checkpoints | None = None,
    tuning: Tuning = DEFAULT,
) -> tuple[FitState, Callable[[], np.ndarray]]:
    """Improve centroids until they converge.

    Parameters
    ----------
    blocks : Blocks
    seeds : callable
        Returns the initial centroids. Not called if the run resumes from a checkpoint.
    max_iter : int
        Updates on all rows, at most. With 0 the centroids stay and only their inertia is computed.
    tol : float
        As in scikit-learn: the sum of squared shifts is compared with `tol` times the mean variance of a feature.
    seed : int
        Chooses the samples.
    grow : bool
        Whether to begin on samples and to overrelax. Otherwise every update is a plain Lloyd update on all rows.
    run : int, default 0
        Which of several runs this is.
    checkpoints : Checkpoints, optional
        Where the state is saved after updates, and where it is resumed from.
    tuning : Tuning

    Returns
    -------
    fit : FitState
        The final state.
    labels : callable
        Returns the labels of the rows; int32, shape (n_rows,).

    Raises
    ------
    DataError
        The dimension of the rows differs from that of the centroids.
    """
    checkpoints = checkpoints or NoCheckpoints()
    fit = checkpoints.last(run)
    if fit is None:
        start = time.perf_counter()
        centroids = seeds()
        fit = FitState(centroids, centroids, centroids)
        facts = {"phase": "seed", "rows": blocks.n_rows, "seconds": time.perf_counter() - start, "run": run}
        log_event("daskmeans-kmeans", facts | {"n_clusters": len(fit.centroids)}, blocks.client)
    if blocks.dimension != fit.centroids.shape[1]:
        raise DataError(
            f"the rows have {blocks.dimension} dimensions", expected=f"{fit.centroids.shape[1]}, as the centroids"
        )
    sizes = sample_sizes(blocks.n_rows, len(fit.centroids), tuning.least_sample) if grow and max_iter else []
    fit.phases = len(sizes) + 1
    with progress.open_line("k-means", None) as line:

        def report(fit: FitState) -> None:
            line.advance(progress.format_note(fit.iterations))
            facts = fit.iterations[-1] | {"run": run, "n_clusters": len(fit.centroids)}
            log_event("daskmeans-kmeans", facts, blocks.client)
            checkpoints.save(run, fit)

        span = _measure_span(blocks, seed)
        # A device compares rows with all centroids just as fast.
        near = n_near(len(fit.centroids), tuning.near_groups) if grow and not blocks.on_gpus else 0
        while fit.phase < len(sizes):
            size = sizes[fit.phase]
            stop = StopRule(SAMPLE_UPDATES, -1.0, SAMPLE_GAIN * len(fit.centroids) / size)
            with blocks.subset(size, seed) as sample:
                _LloydLoop(sample, fit, span, relax=True, near=near).improve(stop, report)
        loop = _LloydLoop(blocks, fit, span, relax=grow, near=near)
        if math.isinf(fit.inertia):
            loop.improve(StopRule(max_iter, tol), report)
            fit.inertia, fit.occupied = loop.inertia(), int(np.count_nonzero(loop.counts))
            checkpoints.save(run, fit)
    return fit, loop.labels


def measure_centroids(blocks: Blocks, centroids: np.ndarray) -> tuple[FitState, Callable[[], np.ndarray]]:
    """Return the state of a fit that ends with `centroids`, such as its inertia, and a function for the labels."""
    return fit_blocks(blocks, lambda: centroids, max_iter=0, tol=0.0, seed=0, grow=False)


class _Span(NamedTuple):
    """Location and extent of the rows."""

    center: np.ndarray
    """float64, shape (d,): about the mean of all rows."""
    largest: float
    """Largest absolute coordinate."""


def _measure_span(blocks: Blocks, seed: int) -> _Span:
    center = blocks.sample_rows(CENTER_ROWS, seed)[1].mean(axis=0, dtype=np.float64)
    return _Span(center, max(blocks.map(passes.max_coordinate, name="kmeans-reach")))


class _LloydLoop:
    """Passes over the same rows; each builds on the state that the previous one left beside the rows."""

    def __init__(self, blocks: Blocks, fit: FitState, span: _Span, relax: bool, near: int) -> None:
        self.blocks, self.fit, self.relax, self.near = blocks, fit, relax, near
        k, weighting = len(fit.centroids), blocks.weighting
        # Inertia in whole weights, divided by this, is that in weights as they were given.
        self.unit, total = (weighting.scale, weighting.total) if weighting else (1.0, blocks.n_rows)
        order = order_by_group(fit.origin, COLUMNS)
        centers = group_centers(fit.origin, order, COLUMNS)
        self.now = PassState(
            fit=uuid4().hex,
            number=-1,
            centroids=fit.centroids,
            center=span.center,
            order=order,
            group_centers=centers,
            near=0,
            drift=Drift(np.zeros(k), np.zeros(n_bounds(k))),
            scale=scale_for(span.largest, total) / self.unit,
            weighting=weighting,
        )
        self.sums, self.counts = np.zeros(fit.centroids.shape, np.int64), np.zeros(k, np.int64)
        self.total_ss = 0.0

    def improve(self, stop: StopRule, report: Callable[[FitState], None]) -> None:
        """Update the centroids of the fit until `stop` applies; then they are means of rows."""
        fit = self.fit
        phase, last = fit.phase, fit.phase == fit.phases - 1
        inertias = [update["inertia"] for update in fit.iterations if update["phase"] == phase]
        while len(inertias) < stop.updates and not fit.converged and fit.phase == phase:
            start = time.perf_counter()
            near = self.near if len(inertias) < NEAR_UPDATES else 0
            moved, compared = self._assign_step(fit.centroids, near)
            centroids, held = self._update_means()
            inertia = self._within_ss(centroids)
            shift = squared_shift(as_readonly(fit.centroids), as_readonly(centroids))
            gain = _gain(inertias, inertia)
            inertias.append(inertia)
            ends = not near and (shift <= stop.shift * self._variance() or gain < stop.gain)
            before = centroids
            # Seeds have no step behind them, so the first update is a plain one. Centroids from a sample may overrelax.
            first = phase == 0 and len(inertias) == 1
            if self.relax and gain > 0.0 and not (first or ends or len(inertias) == stop.updates):
                before = np.where(held[:, None], fit.centroids, centroids)  # one that was empty has no previous step
                centroids = np.where(held[:, None], _overrelax(fit, centroids), centroids)
            fit.before, fit.centroids = before, centroids
            fit.iterations.append(
                {
                    "phase": phase,
                    "phases": fit.phases,
                    "rows": self.blocks.n_rows,
                    "iteration": len(inertias),
                    "inertia": inertia,
                    "shift": shift,
                    "relabelled": moved,
                    "compared": compared / (self.blocks.n_rows * len(centroids)),
                    "seconds": time.perf_counter() - start,
                }
            )
            if last:
                fit.n_iter, fit.converged = len(inertias), ends
                fit.history.append(inertia)
            elif ends or len(inertias) == stop.updates:
                fit.phase += 1
                fit.before = fit.origin = centroids
            report(fit)

    def inertia(self) -> float:
        """Make a last pass; return the sum of squared distances of the rows to the nearest of the fit's centroids."""
        self._assign_step(self.fit.centroids)
        return self._exact_inertia(self.fit.centroids, ends=True)

    def labels(self) -> np.ndarray:
        """Return the labels of the rows, once :meth:`inertia` was called; int32, shape (n_rows,)."""
        found = [
            part for parts in self.blocks.map(passes.read_labels, self.now, name="kmeans-labels") for part in parts
        ]
        return np.concatenate([mine for _, mine in sorted(found, key=lambda part: part[0])])

    def _assign_step(self, centroids: np.ndarray, near: int = 0) -> tuple[int, int]:
        """Make a pass; return how many rows have changed their cluster, and how many pairs were scored."""
        self.now = replace(
            self.now,
            number=self.now.number + 1,
            centroids=centroids,
            near=near,
            drift=_add_drift(self.now, centroids),
        )
        parts = self.blocks.map(passes.assign_step, self.now, name="kmeans-pass")
        anew, moved, compared = (sum(getattr(part, name) for part in parts) for name in ("anew", "moved", "compared"))
        if self.now.number == 0:
            self.total_ss = as_number(sum(part.total_ss for part in parts))
        changes = [(part.sums, part.counts) for part in parts]
        if 0 < anew < self.blocks.n_rows:  # what lost rows had added to the sums is unknown
            changes = self.blocks.map(passes.cluster_sums, self.now, name="kmeans-totals")
        if anew:
            self.sums[:], self.counts[:] = 0, 0
        for sums, counts in changes:
            self.sums += sums
            self.counts += counts
        return moved, compared

    def _within_ss(self, means: np.ndarray) -> float:
        """Return the sum of squared distances of the rows to the means of their clusters."""
        found = within_ss(self.sums, self.counts, self.now.scale, self.now.center, self.total_ss)
        # A small difference of far larger numbers is mostly rounding error.
        return found / self.unit if found > CANCELLED * self.total_ss else self._exact_inertia(means)

    def _exact_inertia(self, centroids: np.ndarray, ends: bool = False) -> float:
        """See :func:`passes.exact_inertia`."""
        parts = self.blocks.map(passes.exact_inertia, self.now, centroids, ends, name="kmeans-inertia")
        return as_number(sum(parts)) / self.unit

    def _update_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of the rows of each cluster, and whether the cluster had rows.

        An empty cluster gets the row that is farthest from its centroid, as in scikit-learn. Rows that coincide with
        their centroid are not taken. So with fewer distinct rows than clusters, some clusters stay empty and unmoved.
        """
        sums, counts = self.sums, self.counts
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            sums, counts = sums.copy(), counts.copy()
            self._refill_empty(empty, sums, counts)
        return compute_means(sums, counts, self.now.scale, self.now.centroids), self.counts > 0

    def _refill_empty(self, empty: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
        found = self.blocks.map(passes.farthest_rows, self.now, len(empty), name="kmeans-refill")
        distances, numbers, labels, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((numbers, -distances))[: len(empty)]
        order = order[distances[order] > 0.0]
        if len(order) == 0:
            return
        rows = self.blocks.rows(numbers[order])
        for cluster, label, weight, row in zip(empty, labels[order], weights[order], rows, strict=False):
            if counts[label] <= weight:  # it is the only row
                continue
            scaled = np.rint(row.astype(np.float64) * (weight * self.now.scale)).astype(np.int64)
            sums[cluster], counts[cluster] = scaled, weight
            sums[label] -= scaled
            counts[label] -= int(weight)

    def _variance(self) -> float:
        """Mean variance of a feature over the rows."""
        n = int(self.counts.sum())
        off_center = self.sums.sum(axis=0) / (self.now.scale * n) - self.now.center
        return max(0.0, self.total_ss / n - math.fsum(off_center**2)) / len(off_center)


def _gain(before: list[float], inertia: float) -> float:
    """Return the share by which `inertia` is below the last one; infinite for the first, 0 after an inertia of 0."""
    if not before:
        return math.inf
    return 1.0 - inertia / before[-1] if before[-1] else 0.0


def _overrelax(fit: FitState, means: np.ndarray) -> np.ndarray:
    """Return the centroids of `fit` after a step to `means` and beyond."""
    out = np.empty_like(means)
    overrelax(as_readonly(fit.centroids), as_readonly(means), as_readonly(fit.before), RELAXATION, MOMENTUM, out)
    return out


def _add_drift(now: PassState, centroids: np.ndarray) -> Drift:
    """Return the drift once the centroids have moved on to `centroids`; rounded up."""
    own = np.arange(len(centroids), dtype=np.int32)
    steps = np.sqrt(squared_distances(as_readonly(centroids), as_readonly(now.centroids), own)) * (1.0 + 2.0**-40)
    together = COLUMNS * groups_per_bound(len(centroids))
    widest = np.maximum.reduceat(steps[now.order], np.arange(0, len(steps), together))
    up = 1.0 + 2.0**-50
    return Drift((now.drift.each + steps) * up, (now.drift.groups + widest) * up)
