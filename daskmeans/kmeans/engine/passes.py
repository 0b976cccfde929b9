"""One pass over the rows of one worker, and the state that is kept beside the rows from pass to pass.

That state (codes, labels, bounds) only saves work. The rows of a block that has lost it, or never had it, are compared
with every centroid of the groups that the pass is about, and get the same labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from daskmeans.kernels.bounds import Drift
from daskmeans.kernels.center_groups import near_groups
from daskmeans.kernels.distances import squared_distances
from daskmeans.kernels.sums import exact_sum, sum_rows
from daskmeans.kmeans.rows.block import Block
from daskmeans.kmeans.rows.weights import Weighting


@dataclass(frozen=True)
class PassState:
    """The centroids of a pass, and what comparing rows with them takes.

    Attributes
    ----------
    fit : str
        Name of the series of passes. State from another series is not used.
    number : int
        Counts the passes of the series.
    centroids : ndarray of float32, shape (k, d)
    center : ndarray of float64, shape (d,)
        Subtracted from rows and centroids. The same in all passes of a series.
    order : ndarray of int64, shape (k,)
        Centroids that are neighbors in this order share bounds. The same in all passes of a series.
    group_centers : ndarray of float32, shape (groups, d)
        Mean of each run of 48 centroids in this order. The same in all passes of a series.
    near : int
        Number of groups that a row is compared with, those whose centers are nearest; 0: all groups.
    drift : Drift
        How far centroids have moved since the first pass of the series.
    scale : float
        Factor that turns coordinates into integers; with weights, coordinates times whole weights.
    weighting : Weighting or None
        None: each row counts once.
    """

    fit: str
    number: int
    centroids: np.ndarray
    center: np.ndarray
    order: np.ndarray
    group_centers: np.ndarray
    near: int
    drift: Drift
    scale: float
    weighting: Weighting | None = None

    def count_rows(self, block: Block) -> np.ndarray | None:
        """Return how often each row of `block` counts: whole numbers, float64; None: once."""
        return None if self.weighting is None else self.weighting.whole(block.weights)


class PassDelta(NamedTuple):
    """Changes that a pass has made in one group of blocks."""

    sums: np.ndarray
    """int64, shape (k, d): change of the scaled sums of the rows of each cluster."""
    counts: np.ndarray
    """int64, shape (k,): change of the number of rows of each cluster, or of their whole weights."""
    total_ss: int
    """Exact sum of squared distances to the center, of rows whose state was made anew."""
    moved: int
    """Rows whose label has changed."""
    compared: int
    """Pairs of rows and centroids that were scored."""
    anew: int
    """Rows without state from the previous pass."""


def assign_step(group: list[Block], now: PassState) -> PassDelta:
    """Find the nearest centroid of each row."""
    backend, anew = group[0].backend, 0
    with backend.turn():
        step = backend.step(now.centroids, now.center, now.order, now.drift, now.scale)
        for block in group:
            begins = _prepare_block(block, now)
            _choose_groups(block, now)
            weights = now.count_rows(block)
            with block.open() as arrays:
                if weights is not None:
                    arrays["weights"] = weights
                block.copy = step.add(block.rows_at_home(arrays), arrays, begins, block.copy)
            anew += block.n_rows if begins else 0
            block.notes["series"] = now.fit
            block.notes["pass"] = now.fit, now.number
        return PassDelta(*step.totals(), step.total_ss, step.moved, step.compared, anew)


def _prepare_block(block: Block, now: PassState) -> str:
    """Return what state of `block` to make anew: "" none, "labels" labels and bounds, "all" the codes of rows too."""
    fit, number = block.notes.pop("pass", ("", 0))
    if (fit, number) == (now.fit, now.number - 1):
        return ""
    if block.notes.pop("series", "") == now.fit:
        return "labels"
    block.copy = None
    layout = block.backend.layout(block.n_rows, block.dimension, len(now.centroids))
    for name, (shape, dtype) in layout.items():
        block.allocate(name, shape, dtype)
    return "all"


def _choose_groups(block: Block, now: PassState) -> None:
    """Find the near groups of each row of `block`, and keep them while passes need them."""
    if not now.near:
        block.drop("near")
        block.notes.pop("near", None)
    elif block.notes.get("near") != now.fit:
        block.allocate("near", (block.n_rows, now.near), np.int32)
        with block.open() as arrays:
            arrays["near"][:] = near_groups(arrays["rows"], now.group_centers, now.near)[0]
        block.notes["near"] = now.fit


def _catch_up(group: list[Block], now: PassState) -> None:
    """Repeat the pass for blocks that were lost after it."""
    if late := [block for block in group if block.notes.get("pass") != (now.fit, now.number)]:
        assign_step(late, now)


def cluster_sums(group: list[Block], now: PassState) -> tuple[np.ndarray, np.ndarray]:
    """Return the scaled sum and the number of the rows of each cluster."""
    _catch_up(group, now)
    sums, counts = np.zeros(now.centroids.shape, np.int64), np.zeros(len(now.centroids), np.int64)
    for block in group:
        weights = now.count_rows(block)
        with block.open() as arrays:
            sum_rows(arrays["rows"], arrays["labels"], weights, now.scale, sums, counts)
    return sums, counts


def exact_inertia(group: list[Block], now: PassState, centroids: np.ndarray, ends: bool) -> int:
    """Return the exact sum of squared distances of the rows to `centroids`, each to that of its label.

    If the fit `ends`, the copies of rows on a device are released.
    """
    _catch_up(group, now)
    total = 0
    for block in group:
        with block.open() as arrays:
            squares = block.home.squared_distances(block.rows_at_home(arrays), centroids, arrays["labels"])
        weights = now.count_rows(block)
        total += exact_sum(squares if weights is None else weights * squares)
        if ends:
            block.copy = None
    return total


def read_labels(group: list[Block], now: PassState) -> list[tuple[int, np.ndarray]]:
    """Return the labels of each block, with the number of its first row."""
    _catch_up(group, now)
    found = []
    for block in group:
        with block.open() as arrays:
            found.append((block.first, arrays["labels"].copy()))
    return found


def farthest_rows(group: list[Block], now: PassState, count: int) -> tuple[np.ndarray, ...]:
    """Return the `count` rows of each block that are farthest from their centroid.

    The arrays are their squared distances, numbers and labels, and how often each counts.
    """
    _catch_up(group, now)
    found = []
    for block in group:
        with block.open() as arrays:
            mine = arrays["labels"].copy()
            far = squared_distances(arrays["rows"], now.centroids, mine)
        top = np.lexsort((block.numbers, -far))[:count]
        weights = now.count_rows(block)
        found.append((far[top], block.numbers[top], mine[top], np.ones(len(top)) if weights is None else weights[top]))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def max_coordinate(group: list[Block]) -> float:
    """Return the largest absolute coordinate of the rows."""
    return max((_block_max(block) for block in group), default=0.0)


def _block_max(block: Block) -> float:
    with block.open() as arrays:
        return block.home.largest_coordinate(block.rows_at_home(arrays))
