"""Initial centroids: hierarchical k-means++ or k-means|| on a sample, random rows, or given ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from upath import UPath

from daskmeans.errors import DataError, NotFoundError, UsageError
from daskmeans.kernels.distances import BATCH_ROWS, nearest_centroids, nearest_labels, range_slices, squared_distances
from daskmeans.kernels.hashing import hash_integers, to_uniform
from daskmeans.kernels.jit import as_readonly
from daskmeans.kernels.microkernel import ROWS
from daskmeans.kernels.norms import rounding_bound
from daskmeans.kernels.plus_plus import draw_plus_plus, sum_values
from daskmeans.kernels.sums import as_number, compute_means, exact_sum, largest_coordinate, scale_for, sum_rows
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.kmeans.rows.refusals import refuse_masked
from daskmeans.runtime import executor
from daskmeans.runtime.client import n_threads
from daskmeans.vectors.files import open_path

# Rows of the sample for each cluster: twice as many take twice the time and save at most one update.
SAMPLE_PER_CLUSTER = 16
OVERSAMPLED_PER_CLUSTER, OVERSAMPLED_AT_LEAST = 32, 1 << 15
# Up to this many clusters k-means|| costs little beside the updates, and it never cuts through a cluster.
OVERSAMPLE_UP_TO = 512
SAMPLE_BYTES = 1 << 29
ROUNDS = 5
# Other names of ways to initialise: the draw among the candidates of k-means|| is scikit-learn's greedy k-means++.
ALIASES = {"k-means++": "k-means||"}
# Clusters that are seeded within one region; rows for each region, and updates, with which regions are found.
PER_REGION, ROWS_PER_REGION, REGION_UPDATES = 16, 64, 4


def seed_centroids(blocks: Blocks, init: Any, n_clusters: int, oversampling_factor: float, seed: int) -> np.ndarray:
    """Return initial centroids, float32, shape (k, d).

    Parameters
    ----------
    blocks : Blocks
    init : {"auto", "k-means||", "random"}, callable or ndarray
    n_clusters, oversampling_factor, seed
        As in :class:`daskmeans.KMeans`.
    """
    if isinstance(init, np.ndarray):
        return init
    if init == "random":
        return blocks.sample_rows(n_clusters, seed)[1]
    regional = init == "auto" and n_clusters > OVERSAMPLE_UP_TO
    oversampled = max(OVERSAMPLED_PER_CLUSTER * n_clusters, OVERSAMPLED_AT_LEAST)
    affordable = max(4 * n_clusters, SAMPLE_BYTES // (4 * blocks.dimension))
    numbers, X, counts = blocks.sample_rows(
        min(SAMPLE_PER_CLUSTER * n_clusters if regional else oversampled, affordable), seed
    )
    if callable(init):
        return check_centroids(init(X, n_clusters, random_state=np.random.RandomState(seed % 2**32)), n_clusters)
    weights = _whole_weights(counts)
    if regional:
        return X[seed_hierarchical(X, weights, n_clusters, seed)]
    candidates, weights = oversample(X, numbers, weights, n_clusters, oversampling_factor, seed)
    return X[candidates[seed_plus_plus(X[candidates], weights, n_clusters, seed)]]


def _whole_weights(counts: np.ndarray) -> np.ndarray:
    """Return numbers as integers, int64, whose sums are exact in float64 too."""
    if (counts == 1.0).all():
        return np.ones(len(counts), np.int64)
    scale = scale_for(2.0**8, as_number(exact_sum(counts)))
    return np.maximum(np.rint(counts * scale), 1.0).astype(np.int64)


def seed_hierarchical(X: np.ndarray, weights: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return indices of `n_clusters` rows of `X`, drawn by k-means++ within regions that share them by inertia.

    Parameters
    ----------
    X : ndarray of float32, shape (m, d), m >= n_clusters
    weights : ndarray of int64, shape (m,)
    n_clusters, seed : int

    Returns
    -------
    ndarray of int64, shape (n_clusters,)

    Notes
    -----
    k-means++ over all rows takes ``m * k`` distances. With regions it takes far fewer, for seeds that are as good: each
    row is compared with the centers of k/16 regions and with about 16 seeds. A region's share of the seeds is its share
    of the inertia about the region centers.
    """
    if n_clusters <= 2 * PER_REGION:
        return _draw_members(X, np.arange(len(X)), weights, n_clusters, seed)
    regions = round(n_clusters / PER_REGION)
    chosen = _spaced_indices(weights, ROWS_PER_REGION * regions)
    fewer = chosen[_spaced_indices(weights[chosen], ROWS_PER_REGION // 4 * regions)]
    centers = X[fewer[seed_hierarchical(X[fewer], weights[fewer], regions, seed)]]
    slices = _thread_slices(len(chosen))
    few = executor.call_in_threads([partial(X.take, chosen[rows], axis=0) for rows in slices])
    counts = None if (weights == 1).all() else [weights[chosen[rows]].astype(np.float64) for rows in slices]
    scale = scale_for(max(largest_coordinate(as_readonly(part)) for part in few), int(weights[chosen].sum()))
    for _ in range(REGION_UPDATES):
        centers = _update_means(few, counts or [None] * len(few), centers, scale)
    labels, squares = _nearest_parallel(X, centers)
    sizes = np.bincount(labels, minlength=regions)
    shares = _share_out(np.bincount(labels, weights * squares, regions), sizes, n_clusters)
    order, ends = np.argsort(labels, kind="stable"), np.cumsum(sizes)
    members = np.split(order, ends[:-1])

    def draw(i: int) -> np.ndarray:
        mine = members[i]
        return mine[_draw_members(X, mine, weights[mine], int(shares[i]), seed + 1 + i)]

    drawn = executor.call_in_threads([partial(draw, i) for i in range(regions) if shares[i]])
    return np.concatenate(drawn)


def _spaced_indices(weights: np.ndarray, count: int) -> np.ndarray:
    """Return `count` indices, evenly spaced over the running sum of the weights; all of them if there are fewer."""
    n = len(weights)
    if count >= n:
        return np.arange(n)
    if (weights == weights[0]).all():
        return np.arange(count) * n // count
    reached = np.cumsum(weights)
    drawn = np.unique(np.searchsorted(reached, np.arange(count) * (reached[-1] / count), side="right"))
    others = np.setdiff1d(np.arange(n), drawn)  # heavy rows are drawn several times
    return np.sort(np.concatenate([drawn, others[_spaced_indices(np.ones(len(others)), count - len(drawn))]]))


def _thread_slices(n: int) -> list[slice]:
    """Return slices of `n` rows: two for each thread, fewer where they would be too small."""
    return list(range_slices(n, max(BATCH_ROWS, -(-n // (2 * n_threads())))))


def _nearest_parallel(X: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = executor.call_in_threads(
        [partial(nearest_centroids, X[rows], centroids) for rows in _thread_slices(len(X))]
    )
    labels, squares = zip(*parts, strict=True)
    return np.concatenate(labels), np.concatenate(squares)


def _update_means(
    parts: list[np.ndarray], weights: Sequence[np.ndarray | None], centroids: np.ndarray, scale: float
) -> np.ndarray:
    """Return the mean of the rows that are nearest to each centroid; a centroid without rows stays."""

    def add(X: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        sums, counts = np.zeros(centroids.shape, np.int64), np.zeros(len(centroids), np.int64)
        sum_rows(as_readonly(X), nearest_labels(X, centroids), weights, scale, sums, counts)
        return sums, counts

    found = executor.call_in_threads([partial(add, X, w) for X, w in zip(parts, weights, strict=True)])
    return compute_means(sum(sums for sums, _ in found), sum(counts for _, counts in found), scale, centroids)


def _share_out(inertia: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """Share `total` out in proportion to `inertia`: from one to `rows` for each region that has rows."""
    weights = np.where(rows > 0, inertia, 0.0)
    weights = weights / weights.sum() if weights.sum() > 0 else rows / rows.sum()
    shares = np.clip(np.floor(weights * total), np.minimum(rows, 1), rows).astype(np.int64)
    while (missing := total - shares.sum()) != 0:
        step = 1 if missing > 0 else -1
        free = shares < rows if missing > 0 else shares > 1
        wish = np.where(free, step * (weights * total - shares), -np.inf)
        shares[np.argsort(-wish, kind="stable")[: min(abs(missing), free.sum())]] += step
    return shares


def oversample(
    X: np.ndarray, numbers: np.ndarray, weights: np.ndarray, n_clusters: int, oversampling_factor: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw candidates for k-means||, in a few rounds, with probability proportional to weight and squared distance.

    Parameters
    ----------
    X : ndarray of float32, shape (m, d)
    numbers : ndarray of int64, shape (m,)
        Row numbers. The number, the round and the seed decide the random number of a row.
    weights : ndarray of int64, shape (m,)
    n_clusters, oversampling_factor
        Each round draws about ``oversampling_factor * n_clusters / 2`` rows.
    seed : int

    Returns
    -------
    candidates : ndarray of int64
        Indices into `X`, at least `n_clusters` of them.
    weights : ndarray of int64
        Sums of the weights of the rows of `X` that are nearest to each candidate.

    Notes
    -----
    Bahmani, Moseley, Vattani, Kumar & Vassilvitskii, *Scalable k-means++*, VLDB 2012: five rounds of k/2 to 2k rows
    give seeds as good as k-means++. Distances and potential are summed in a fixed order, so the draw is the same on
    every machine.
    """
    draw = oversampling_factor * n_clusters / 2
    chosen = np.array([(hash_integers(numbers.astype(np.uint64), seed) / weights).argmin()])
    owner = np.zeros(len(X), np.int64)
    distances = squared_distances(X, X[chosen], owner)
    for turn in range(1, ROUNDS + 1):
        mass = weights * distances
        potential = sum_values(mass)
        if potential == 0.0:
            break
        luck = to_uniform(hash_integers(numbers.astype(np.uint64), seed + turn))
        drawn = np.flatnonzero(luck * potential < draw * mass)
        if len(drawn) == 0:
            continue
        labels, closer_by = _nearest_parallel(X, X[drawn])
        closer = closer_by < distances
        owner[closer] = len(chosen) + labels[closer]
        distances[closer] = closer_by[closer]
        chosen = np.concatenate([chosen, drawn])
    weights = np.bincount(owner, weights, len(chosen)).astype(np.int64)
    if len(chosen) < n_clusters:  # few distinct rows, or a small sample: any other row will do
        others = np.setdiff1d(np.arange(len(X)), chosen)[: n_clusters - len(chosen)]
        chosen, weights = np.concatenate([chosen, others]), np.concatenate([weights, np.zeros(len(others), np.int64)])
    return chosen, weights


def seed_plus_plus(X: np.ndarray, weights: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return indices of `n_clusters` rows drawn by weighted, greedy k-means++.

    Parameters
    ----------
    X : ndarray of float32, shape (m, d), m >= n_clusters
    weights : ndarray of int64, shape (m,)
    n_clusters, seed : int

    Returns
    -------
    ndarray of int64, shape (n_clusters,)

    Notes
    -----
    Arthur & Vassilvitskii, *k-means++: the advantages of careful seeding*, SODA 2007. Each turn draws eight rows, which
    are scored at once, and takes the one that lowers the potential most. scikit-learn is greedy in the same way.
    """
    return _draw_members(X, np.arange(len(X)), weights, n_clusters, seed)


def _draw_members(X: np.ndarray, members: np.ndarray, weights: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Like :func:`seed_plus_plus`, for the rows `members` of `X`; return indices into `members`."""
    luck = to_uniform(hash_integers(np.arange(n_clusters * ROWS, dtype=np.uint64), seed)).reshape(n_clusters, ROWS)
    return draw_plus_plus(as_readonly(X), members, weights, luck, rounding_bound(X.shape[1]))  # type: ignore[no-any-return]


def is_path(init: Any) -> bool:
    """Whether `init` is a path to stored centroids."""
    return isinstance(init, (str, os.PathLike, UPath))


def _copy_init(init: Any) -> np.ndarray:
    """Return a copy of given centroids, so that the caller's array is never changed."""
    refuse_masked(init, "init")
    try:
        return np.array(init, np.float32, order="C")
    except (TypeError, ValueError):
        raise UsageError(
            f"initial centroids cannot be made of {type(init).__name__}",
            where="init",
            expected="'auto', 'k-means||', 'random', a path, an array of numbers, a function or a fitted KMeans",
            remedy="give km.cluster_centers_: scikit-learn empties models among the values of a grid"
            if hasattr(init, "get_params")
            else "",
        ) from None


def resolve_init(init: Any, n_clusters: int | str, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Return `init` as "auto", "k-means||", "random", a function or a float32 matrix of centroids.

    Raises
    ------
    UsageError
        The number of centroids is not `n_clusters` (unless that is "auto"), or they are not numbers. Or a path is that
        of a pickle.
    NotFoundError
        A string is neither one of these names, or "k-means++", nor a path that exists.
    DataError
        The centroids are not finite or too large, or their file cannot be read.
    """
    from daskmeans.kmeans import model

    if isinstance(init, str) and (name := ALIASES.get(init, init)) in ("auto", "k-means||", "random"):
        return name
    if callable(init):
        return init
    if is_path(init):
        path = open_path(init, storage_options)
        model.refuse_pickle(path)
        if not path.exists():
            raise NotFoundError(
                f"{init!r} is neither a way to initialise nor a path that exists",
                where="init",
                expected="'auto', 'k-means||', 'random', a .npy file or a model directory",
            )
        return check_centroids(model.read_centroids(path / model.CENTROIDS if path.is_dir() else path), n_clusters)
    return check_centroids(getattr(init, "cluster_centers_", init), n_clusters)


def check_centroids(given: Any, n_clusters: int | str) -> np.ndarray:
    """Return a copy of initial centroids as a float32 matrix, or raise as :func:`resolve_init` does."""
    centroids = _copy_init(given)
    if centroids.ndim != 2 or n_clusters not in ("auto", len(centroids)):
        raise UsageError(
            f"the initial centroids have shape {centroids.shape}",
            where="init",
            expected=f"({n_clusters}, number of features)",
            remedy="set n_clusters to their number, or give other centroids",
        )
    if not np.isfinite(centroids).all():
        raise DataError("the initial centroids hold NaN or infinity", where="init", expected="finite numbers")
    if np.abs(centroids).max() > 1e15:
        raise DataError("the initial centroids hold a number above 1e15", where="init", remedy="scale vectors down")
    return centroids
