"""Groups of neighboring centroids, and the groups nearest to a row.

Results are bitwise identical on every machine, because the groups that a row is compared with may decide its label.
"""

from __future__ import annotations

import numpy as np

from daskmeans.kernels.jit import as_readonly, kernel
from daskmeans.kernels.microkernel import COLUMNS, ROWS, n_groups, score_tile
from daskmeans.kernels.norms import squared_norms64
from daskmeans.kernels.quantize import pack_floats
from daskmeans.kernels.simd import dot64, squared_distance64
from daskmeans.tuning import DEFAULT

# Times that a cut between two halves is improved, and that centroids are reassigned to nearer groups.
CUTS, CHANGES = 8, 2
# Groups that a centroid may change to.
CHOICES = 8


def n_near(n_clusters: int, groups: int = DEFAULT.near_groups) -> int:
    """Return how many groups a row is compared with while labels need not be exact: `groups`, or 0 for all.

    Examples
    --------
    >>> n_near(1000), n_near(4096)
    (0, 16)
    """
    return groups if n_groups(n_clusters) >= 3 * groups else 0


def order_by_group(centroids: np.ndarray, size: int) -> np.ndarray:
    """Order the centroids so that each run of `size` holds centroids that are near one another.

    Parameters
    ----------
    centroids : ndarray of float32, shape (k, d)
    size : int

    Returns
    -------
    ndarray of int64, shape (k,)

    Notes
    -----
    Recursive balanced 2-means: centroids are sorted along the line between the means of two halves and cut into two new
    halves. Then each centroid moves to the nearest group that is not full, those with the clearest preference first.

    Examples
    --------
    >>> order_by_group(np.float32([[0], [9], [1], [8]]), 2).tolist() in ([0, 2, 1, 3], [1, 3, 0, 2])
    True
    """
    todo, done = [np.arange(len(centroids))], []
    while todo:
        mine = todo.pop()
        if len(mine) <= size:
            done.append(mine)
            continue
        half = max(1, round(len(mine) / (2 * size))) * size
        along = mine[_bisect(as_readonly(centroids[mine]), half)]
        todo += [along[half:], along[:half]]
    order = np.concatenate(done)
    for _ in range(CHANGES if len(order) > size else 0):
        order = _reassign_groups(centroids, order, size)
    return order


def _bisect(C: np.ndarray, half: int) -> np.ndarray:
    """Return the order of the rows of `C` along the line between the means of its first `half` and of the others."""
    one = C[_squared_distances(C, _mean(C, np.arange(len(C)))).argmax()]
    along = C[_squared_distances(C, one).argmax()] - one
    order = np.argsort(_dot_products(C, along), kind="stable")
    for _ in range(CUTS):
        along = _mean(C, order[half:]) - _mean(C, order[:half])
        before, order = order, np.argsort(_dot_products(C, along), kind="stable")
        if np.array_equal(before, order):
            break
    return order


def _reassign_groups(centroids: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    """Return an order with each centroid in the nearest group that is not full; the groups keep their sizes."""
    centers = group_centers(centroids, order, size)
    near, scores = near_groups(centroids, centers, min(CHOICES, len(centers)))
    room = np.bincount(np.arange(len(order)) // size)
    groups = np.full(len(order), -1)
    for i in np.argsort(scores[:, 1] - scores[:, 0], kind="stable"):
        for g in near[i]:
            if room[g]:
                groups[i] = g
                room[g] -= 1
                break
    groups[groups < 0] = np.repeat(np.arange(len(room)), room)
    return np.argsort(groups, kind="stable")


def group_centers(centroids: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    """Return the mean of each run of `size` centroids in this order; float32, shape (groups, d)."""
    return np.stack([_mean(as_readonly(centroids), order[i : i + size]) for i in range(0, len(order), size)])


@kernel
def _mean(C, rows):  # type: ignore[no-untyped-def]
    total = np.zeros(C.shape[1])
    for i in rows:
        for j in range(C.shape[1]):
            total[j] += C[i, j]
    return (total / len(rows)).astype(np.float32)


@kernel
def _dot_products(C, y):  # type: ignore[no-untyped-def]
    return np.array([dot64(C[i], y) for i in range(C.shape[0])])


@kernel
def _squared_distances(C, y):  # type: ignore[no-untyped-def]
    return np.array([squared_distance64(C[i], y) for i in range(C.shape[0])])


def near_groups(X: np.ndarray, centers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the groups whose centers are nearest to each row.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d), C-contiguous
    centers : ndarray of float32, shape (groups, d), groups >= count
    count : int

    Returns
    -------
    near : ndarray of int32, shape (n, count)
        The nearest first.
    scores : ndarray of float32, shape (n, count)
        Larger scores are nearer.

    Examples
    --------
    >>> near_groups(np.float32([[0, 0], [9, 9]]), np.float32([[1, 1], [5, 5], [8, 8]]), 2)[0].tolist()
    [[0, 1], [2, 1]]
    """
    near, scores = np.zeros((len(X), count), np.int32), np.full((len(X), count), -np.inf, np.float32)
    _rank_groups(as_readonly(X), _pack_centers(as_readonly(centers)), near, scores)
    return near, scores


def _pack_centers(centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack `centers` like :func:`pack_floats`, less their mean, which saves precision far from the origin."""
    center = _mean(centers, np.arange(len(centers)))
    apart = centers - center
    packed, scales, halves = pack_floats(apart)
    halves.ravel()[: len(centers)] = 0.5 * squared_norms64(as_readonly(apart)) + _dot_products(
        as_readonly(apart), center
    )
    return packed, scales, halves


@kernel
def _rank_groups(X, columns, near, best):  # type: ignore[no-untyped-def]
    n, count = near.shape
    packed, scales, halves = columns
    row_scales, row_biases = np.ones(n, np.float32), np.zeros(n, np.int32)
    picks = np.zeros(ROWS, np.int32)
    scores, tops = np.empty((ROWS, COLUMNS), np.float32), np.empty((ROWS, 2), np.float32)
    for start in range(0, n, ROWS):
        for r in range(ROWS):
            picks[r] = min(start + r, n - 1)
        for g in range(packed.shape[0]):
            score_tile(X, row_scales, row_biases, picks, 0, packed, g, scales, halves, scores, tops)
            for r in range(min(ROWS, n - start)):
                if tops[r, 0] > best[start + r, count - 1]:
                    _insert_scores(scores[r], g * COLUMNS, near[start + r], best[start + r])


@kernel
def _insert_scores(scores, first, near, best):  # type: ignore[no-untyped-def]
    """Insert scores that are above the last one into the ranking; among equals the earlier one stays ahead."""
    for c in range(scores.shape[0]):
        place = near.shape[0] - 1
        if not scores[c] > best[place]:
            continue
        while place > 0 and scores[c] > best[place - 1]:
            near[place], best[place] = near[place - 1], best[place - 1]
            place -= 1
        near[place], best[place] = first + c, scores[c]
