"""One pass over the rows of one worker: what the rows know of the centroids, kept beside them from pass to pass.

Everything that is kept (codes, labels, bounds) only saves work. A block that has lost it, or never had it, compares its
rows with every centroid of the groups that the pass is about, and finds the same labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from daskmeans.kernels.bounds import Drift
from daskmeans.kernels.center_groups import near_groups
from daskmeans.kernels.distances import squared_distances
from daskmeans.kernels.sums import add_rows, exact_sum
from daskmeans.kmeans.rows.block import Block


@dataclass(frozen=True)
class PassState:
    """What all rows are compared with.

    Attributes
    ----------
    fit : str
        Name of the series of passes; what rows know from another series is not used.
    number : int
        Counts the passes of the series.
    centroids : ndarray of float32, shape (k, d)
    center : ndarray of float64, shape (d,)
        The same in all passes of a series.
    order : ndarray of int64, shape (k,)
        Likewise; neighbours in this order share bounds.
    group_centers : ndarray of float32, shape (groups, d)
        Likewise; of each run of forty-eight centroids in this order.
    near : int
        Rows are compared with so many groups of centroids, those whose centers are nearest; 0: with all.
    drift : Drift
        How far centroids have moved since the first pass of the series.
    scale : float
        Makes integers of coordinates.
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


class PassDelta(NamedTuple):
    """What a pass has changed in one group of blocks."""

    sums: np.ndarray
    """int64, shape (k, d): change of the scaled sums of the rows of each cluster."""
    counts: np.ndarray
    """int64, shape (k,): change of their number."""
    total_ss: int
    """Exact sum of squared distances to the center, of rows that begin anew."""
    moved: int
    """Rows whose label has changed."""
    compared: int
    """Pairs of rows and centroids that were scored."""
    anew: int
    """Rows that knew nothing of the pass before."""


def assign_step(group: list[Block], now: PassState) -> PassDelta:
    """Find the nearest centroid of each row."""
    backend, anew = group[0].backend, 0
    with backend.turn():
        step = backend.step(now.centroids, now.center, now.order, now.drift, now.scale)
        for block in group:
            begins = _prepare_block(block, now)
            _choose_groups(block, now)
            with block.open() as arrays:
                block.copy = step.add(block.lying(arrays), arrays, begins, block.copy)
            anew += block.n_rows if begins else 0
            block.notes["series"] = now.fit
            block.notes["pass"] = now.fit, now.number
        return PassDelta(*step.totals(), step.total_ss, step.moved, step.compared, anew)


def _prepare_block(block: Block, now: PassState) -> str:
    """What of `block` has to begin anew: "" nothing, "labels" its labels and bounds, "all" what is made of its rows."""
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
    """Keep the groups that each row of `block` is compared with as long as passes need them."""
    if not now.near:
        block.drop("near")
        block.notes.pop("near", None)
    elif block.notes.get("near") != now.fit:
        block.allocate("near", (block.n_rows, now.near), np.int32)
        with block.open() as arrays:
            arrays["near"][:] = near_groups(arrays["rows"], now.group_centers, now.near)[0]
        block.notes["near"] = now.fit


def _catch_up(group: list[Block], now: PassState) -> None:
    """Bring blocks that were lost after the pass to where the others are."""
    if late := [block for block in group if block.notes.get("pass") != (now.fit, now.number)]:
        assign_step(late, now)


def cluster_sums(group: list[Block], now: PassState) -> tuple[np.ndarray, np.ndarray]:
    """Scaled sums and number of the rows of each cluster."""
    _catch_up(group, now)
    sums, counts = np.zeros(now.centroids.shape, np.int64), np.zeros(len(now.centroids), np.int64)
    for block in group:
        with block.open() as arrays:
            add_rows(arrays["rows"], arrays["labels"], now.scale, sums, counts)
    return sums, counts


def exact_inertia(group: list[Block], now: PassState, centroids: np.ndarray, ends: bool) -> int:
    """Exact sum of squared distances of the rows to `centroids`, each to that of its label.

    If the fit `ends`, others want the memory of a device.
    """
    _catch_up(group, now)
    total = 0
    for block in group:
        with block.open() as arrays:
            squares = block.home.squared_distances(block.lying(arrays), centroids, arrays["labels"])
        total += exact_sum(squares)
        if ends:
            block.copy = None
    return total


def read_labels(group: list[Block], now: PassState) -> list[tuple[int, np.ndarray]]:
    """The labels of each block, with the number of its first row."""
    _catch_up(group, now)
    found = []
    for block in group:
        with block.open() as arrays:
            found.append((block.first, arrays["labels"].copy()))
    return found


def farthest_rows(group: list[Block], now: PassState, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the `count` rows of each block that are farthest from their centroid: squared distances, numbers, labels."""
    _catch_up(group, now)
    distances, numbers, labels = [], [], []
    for block in group:
        with block.open() as arrays:
            mine = arrays["labels"].copy()
            far = squared_distances(arrays["rows"], now.centroids, mine)
        top = np.lexsort((block.numbers, -far))[:count]
        distances.append(far[top])
        numbers.append(block.numbers[top])
        labels.append(mine[top])
    return np.concatenate(distances), np.concatenate(numbers), np.concatenate(labels)


def max_coordinate(group: list[Block]) -> float:
    """Largest absolute coordinate of the rows."""
    return max((_block_max(block) for block in group), default=0.0)


def _block_max(block: Block) -> float:
    with block.open() as arrays:
        return block.home.largest_coordinate(block.lying(arrays))
