"""One pass over the rows of one worker: what the rows know of the centroids, kept beside them from pass to pass.

Everything that is kept (codes, labels, bounds) only saves work. A block that has lost it, or never had it, compares its
rows with every centroid of the groups that the pass is about, and finds the same labels.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from daskmeans.kernels.bounds import Bounds, Drift, groups_per_bound, n_bounds
from daskmeans.kernels.center_groups import near_groups
from daskmeans.kernels.distances import squared_distances
from daskmeans.kernels.gpu import dense, norms
from daskmeans.kernels.gpu.device import Device
from daskmeans.kernels.gpu.memory import nearest_bytes
from daskmeans.kernels.jit import frozen
from daskmeans.kernels.quantize import Codes, as_bytes, encode, layout, screen, squares_about
from daskmeans.kernels.sums import add_rows, exact_sum, largest_coordinate, move_rows
from daskmeans.kernels.yinyang import ALL_GROUPS, search
from daskmeans.kmeans.rows.block import Block
from daskmeans.runtime import gpus
from daskmeans.runtime.memory import device_room


@dataclass(frozen=True)
class Pass:
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
    middles : ndarray of float32, shape (groups, d)
        Likewise; of each run of forty-eight centroids in this order.
    near : int
        Rows are compared with so many groups of centroids, those whose middles are nearest; 0: with all.
    travel : Travel
        How far centroids have moved since the first pass of the series.
    scale : float
        Makes integers of coordinates.
    on_device : bool
        Rows are compared on the device of each worker, with all centroids.
    """

    fit: str
    number: int
    centroids: np.ndarray
    center: np.ndarray
    order: np.ndarray
    middles: np.ndarray
    near: int
    travel: Drift
    scale: float
    on_device: bool = False


# Share of a device's memory that rows may take.
KEEP = 0.6
# Bytes of the rows of each block that stay there. What is free is no measure: a pool of rmm takes all it may at once.
_held: dict[int, int] = {}


class Advance(NamedTuple):
    """What a pass has changed in one group of blocks."""

    sums: np.ndarray
    """int64, shape (k, d): change of the scaled sums of the rows of each cluster."""
    counts: np.ndarray
    """int64, shape (k,): change of their number."""
    energy: int
    """Exact sum of squared distances to the center, of rows that begin anew."""
    moved: int
    """Rows whose label has changed."""
    compared: int
    """Pairs of rows and centroids that were scored."""
    anew: int
    """Rows that knew nothing of the pass before."""


def advance(group: list[Block], now: Pass) -> Advance:
    """Find the nearest centroid of each row."""
    if now.on_device:
        return _advance_on(gpus.needed(), group, now)
    k, d = now.centroids.shape
    sums, counts = np.zeros((k, d), np.int64), np.zeros(k, np.int64)
    energy = moved = compared = anew = 0
    columns = screen(now.centroids, now.center, now.order)
    travel = Drift(*map(frozen, now.travel))
    unwanted = np.empty(0)
    for block in group:
        begins = _prepare(block, now)
        _choose_groups(block, now)
        with block.open() as arrays:
            X, codes = arrays["rows"], _codes(arrays)
            bounds = Bounds(arrays["labels"], arrays["upper"], arrays["lower"])
            if begins:
                if begins == "all":
                    encode(X, now.center, arrays)
                    block.notes["codes"] = now.fit
                bounds.labels[:], bounds.lower[:] = -1, 0.0
                anew += block.n_rows
                squares = codes.squares if as_bytes(block.dimension) else squares_about(X, frozen(now.center))
                energy += exact_sum(squares)
            before = bounds.labels.copy()
            near = arrays["near"] if now.near else ALL_GROUPS
            compared += search(X, codes, columns, bounds, travel, groups_per_bound(k), near, unwanted)
            moved += move_rows(X, before, bounds.labels, now.scale, sums, counts)
        block.notes["pass"] = now.fit, now.number
    return Advance(sums, counts, energy, moved, compared, anew)


def _advance_on(device: Device, group: list[Block], now: Pass) -> Advance:
    """As :func:`advance`, on a device. Bounds would not pay there: rows keep their labels alone."""
    energy = moved = compared = anew = 0
    with device.turn():
        sums = dense.Sums(device, now.centroids.shape, now.scale)
        to = dense.centroids_on(device, now.centroids, now.center)
        for block in group:
            begins = block.notes.pop("pass", ("", 0)) != (now.fit, now.number - 1)
            if begins:
                block.allocate("labels", (block.n_rows,), np.int32)
                anew += block.n_rows
            with block.open() as arrays:
                labels = arrays["labels"]
                if begins:
                    labels[:] = -1
                for part, rows in _rows_on(device, block, arrays, to, now.fit):
                    if begins:
                        squares = dense.squares_about(device, rows.X, to.center)
                        energy += exact_sum(device.host(squares))
                    found = dense.closest(device, rows, to)
                    moved += sums.move(rows.X, device.xp.asarray(labels[part]), found)
                    labels[part] = device.host(found)
            compared += block.n_rows * len(now.centroids)
            block.notes["pass"] = now.fit, now.number
        return Advance(*sums.host(), energy, moved, compared, anew)


def _rows_on(
    device: Device, block: Block, arrays: dict[str, np.ndarray], to: dense.Centroids, fit: str
) -> Iterable[tuple[slice, dense.Rows]]:
    """The rows of a block on the device: kept there for the passes of a fit if there is room, else sent again."""
    name, kept = block.notes.get("device", ("", None))
    if name == fit:
        return kept  # type: ignore[no-any-return]
    _let_go(block)
    k, d = to.rows.X.shape
    X = arrays["rows"] if block.there is None else block.there
    sent = ((part, dense.encode(device, tile, to.center)) for part, tile in device.tiles(X, dense.tile_rows(k, d)))
    room = device_room(device.memory(), KEEP, nearest_bytes(block.n_rows, k, d))
    held = block.n_rows * dense.row_bytes(d)
    if sum(_held.values()) + held > room:
        return sent
    # What has come through a buffer is copied from it, before the next comes.
    kept = [(part, rows if X is block.there else rows._replace(X=rows.X.copy())) for part, rows in sent]
    block.notes["device"] = fit, kept
    _held[id(block)] = held
    weakref.finalize(block, _held.pop, id(block), None)
    return kept


def _let_go(block: Block) -> None:
    """Keep the rows of a block on the device no longer."""
    block.notes.pop("device", None)
    _held.pop(id(block), None)


def _prepare(block: Block, now: Pass) -> str:
    """What of `block` has to begin anew: "" nothing, "labels" its labels and bounds, "all" its codes too."""
    fit, number = block.notes.pop("pass", ("", 0))
    if (fit, number) == (now.fit, now.number - 1):
        return ""
    if block.notes.get("codes") == now.fit:
        return "labels"
    arrays = layout(block.n_rows, block.dimension, as_bytes(block.dimension))
    arrays |= {"labels": ((block.n_rows,), np.int32), "upper": ((block.n_rows,), np.float32)}
    arrays |= {"lower": ((block.n_rows, n_bounds(len(now.centroids))), np.float32)}
    for name, (shape, dtype) in arrays.items():
        block.allocate(name, shape, dtype)
    return "all"


def _choose_groups(block: Block, now: Pass) -> None:
    """Keep the groups that each row of `block` is compared with as long as passes need them."""
    if not now.near:
        block.drop("near")
        block.notes.pop("near", None)
    elif block.notes.get("near") != now.fit:
        block.allocate("near", (block.n_rows, now.near), np.int32)
        with block.open() as arrays:
            arrays["near"][:] = near_groups(arrays["rows"], now.middles, now.near)[0]
        block.notes["near"] = now.fit


def _codes(arrays: dict[str, np.ndarray]) -> Codes:
    return Codes(*(arrays[name] if name in arrays else arrays["rows"] for name in Codes._fields))


def _at_pass(group: list[Block], now: Pass) -> None:
    """Bring blocks that were lost after the pass to where the others are."""
    if late := [block for block in group if block.notes.get("pass") != (now.fit, now.number)]:
        advance(late, now)


def totals(group: list[Block], now: Pass) -> tuple[np.ndarray, np.ndarray]:
    """Scaled sums and number of the rows of each cluster."""
    _at_pass(group, now)
    sums, counts = np.zeros(now.centroids.shape, np.int64), np.zeros(len(now.centroids), np.int64)
    for block in group:
        with block.open() as arrays:
            add_rows(arrays["rows"], arrays["labels"], now.scale, sums, counts)
    return sums, counts


def inertia(group: list[Block], now: Pass, centroids: np.ndarray, ends: bool) -> int:
    """Exact sum of squared distances of the rows to `centroids`, each to that of its label.

    If the fit `ends`, others want the memory of a device.
    """
    _at_pass(group, now)
    total = 0
    for block in group:
        total += exact_sum(_squares(block, centroids))
        if ends:
            _let_go(block)
    return total


def _squares(block: Block, centroids: np.ndarray) -> np.ndarray:
    """Squared distance of each row of a block to the centroid of its label; float64."""
    with block.open() as arrays:
        if block.device is None:
            return squared_distances(arrays["rows"], centroids, arrays["labels"])  # type: ignore[no-any-return]
        device, xp = block.device, block.device.xp
        with device.turn():
            own, labels = xp.arange(block.n_rows), xp.asarray(arrays["labels"])
            return device.host(dense.squared_distances(device, block.there, xp.asarray(centroids), own, labels))


def labels(group: list[Block], now: Pass) -> list[tuple[int, np.ndarray]]:
    """The labels of each block, with the number of its first row."""
    _at_pass(group, now)
    found = []
    for block in group:
        with block.open() as arrays:
            found.append((block.first, arrays["labels"].copy()))
    return found


def farthest(group: list[Block], now: Pass, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the `count` rows of each block that are farthest from their centroid: squared distances, numbers, labels."""
    _at_pass(group, now)
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


def reach(group: list[Block]) -> float:
    """Largest absolute coordinate of the rows."""
    return max((_largest(block) for block in group), default=0.0)


def _largest(block: Block) -> float:
    if block.device is not None:
        with block.device.turn():
            return norms.largest_coordinate(block.device, block.there)
    with block.open() as arrays:
        return largest_coordinate(arrays["rows"])  # type: ignore[no-any-return]
