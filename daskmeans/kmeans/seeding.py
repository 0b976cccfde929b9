"""Initial centroids: k-means|| on a sample, random rows, or what the caller gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from upath import UPath

from daskmeans.errors import DataError, NotFoundError, UsageError
from daskmeans.kernels.hashing import hash_integers, uniform
from daskmeans.kernels.jit import kernel
from daskmeans.kernels.nearest import nearest, squared_distances
from daskmeans.kernels.products import rounding_bound, squared_norms64
from daskmeans.kernels.update import add_rows, means, scale_for
from daskmeans.kmeans.blocks import Blocks
from daskmeans.vectors.files import open_path

SAMPLE_PER_CLUSTER = 32
SAMPLE_BYTES = 1 << 29
ROUNDS = 5
# Updates on the sample: three cost half a pass over 100,000 rows (k = 500) and save two.
POLISH = 3


def seed_centroids(
    blocks: Blocks, init: Any, n_clusters: int, oversampling_factor: float, tile_rows: int, seed: int
) -> np.ndarray:
    """Initial centroids, float32, shape (k, d).

    Parameters
    ----------
    blocks : Blocks
    init : {"k-means||", "random"} or ndarray
    n_clusters, oversampling_factor, tile_rows, seed
        As in :class:`daskmeans.KMeans`.
    """
    if isinstance(init, np.ndarray):
        return init
    if init == "random":
        return blocks.sample(n_clusters, seed)[1]
    affordable = max(4 * n_clusters, SAMPLE_BYTES // (4 * blocks.dimension))
    numbers, X = blocks.sample(min(SAMPLE_PER_CLUSTER * n_clusters, affordable), seed)
    candidates, weights = oversample(X, numbers, n_clusters, oversampling_factor, tile_rows, seed)
    centroids = X[candidates[plus_plus(X[candidates], weights, n_clusters, seed)]]
    for _ in range(POLISH):
        centroids = polish(X, centroids, tile_rows)
    return centroids


def polish(X: np.ndarray, centroids: np.ndarray, tile_rows: int) -> np.ndarray:
    """The means of the rows of `X` that are nearest to each centroid; a centroid without rows stays."""
    labels = nearest(X, centroids, tile_rows)
    scale = scale_for(float(np.abs(X).max()), len(X))
    sums, counts = np.zeros(centroids.shape, np.int64), np.zeros(len(centroids), np.int64)
    add_rows(X, labels, scale, sums, counts)
    return means(sums, counts, scale, centroids)


def oversample(
    X: np.ndarray, numbers: np.ndarray, n_clusters: int, oversampling_factor: float, tile_rows: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of k-means||: rows drawn in a few rounds with probability proportional to their squared distance.

    Parameters
    ----------
    X : ndarray of float32, shape (m, d)
    numbers : ndarray of int64, shape (m,)
        Row numbers; whether a row is drawn depends on its number, the round and the seed.
    n_clusters, oversampling_factor
        Each round draws about ``oversampling_factor * n_clusters / 2`` rows.
    tile_rows, seed : int

    Returns
    -------
    candidates : ndarray of int64
        Indices into `X`, at least `n_clusters` of them.
    weights : ndarray of int64
        Rows of `X` that are nearest to each candidate.

    Notes
    -----
    Bahmani, Moseley, Vattani, Kumar & Vassilvitskii, *Scalable k-means++*, VLDB 2012: five rounds of k/2 to 2k rows
    give seeds as good as k-means++. Every distance is in fixed order and the potential is an exactly rounded sum, so
    the draw is the same on every machine.
    """
    draw = oversampling_factor * n_clusters / 2
    chosen = np.array([hash_integers(numbers.astype(np.uint64), seed).argmin()])
    owner = np.zeros(len(X), np.int64)
    distances = squared_distances(X, X[chosen], owner)
    for turn in range(1, ROUNDS + 1):
        potential = math.fsum(distances)
        if potential == 0.0:
            break
        luck = uniform(hash_integers(numbers.astype(np.uint64), seed + turn))
        drawn = np.flatnonzero(luck * potential < draw * distances)
        if len(drawn) == 0:
            continue
        labels = nearest(X, X[drawn], tile_rows)
        closer_by = squared_distances(X, X[drawn], labels)
        closer = closer_by < distances
        owner[closer] = len(chosen) + labels[closer]
        distances[closer] = closer_by[closer]
        chosen = np.concatenate([chosen, drawn])
    weights = np.bincount(owner, minlength=len(chosen))
    if len(chosen) < n_clusters:  # fewer distinct rows than that, or a small sample: any other row will do
        others = np.setdiff1d(np.arange(len(X)), chosen)[: n_clusters - len(chosen)]
        chosen, weights = np.concatenate([chosen, others]), np.concatenate([weights, np.zeros(len(others), np.int64)])
    return chosen, weights


def plus_plus(X: np.ndarray, weights: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Indices of `n_clusters` rows drawn by weighted, greedy k-means++.

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
    Arthur & Vassilvitskii, *k-means++: the advantages of careful seeding*, SODA 2007; of 2 + ln k rows drawn in each
    turn the one that lowers the potential most is taken, as scikit-learn does.
    """
    trials = 2 + int(math.log(n_clusters))
    luck = uniform(hash_integers(np.arange(n_clusters * trials, dtype=np.uint64), seed)).reshape(n_clusters, trials)
    norms = squared_norms64(X).astype(np.float32)
    return _plus_plus(np.ascontiguousarray(X.T), norms, weights, luck, rounding_bound(X.shape[1]))  # type: ignore[no-any-return]


@kernel
def _plus_plus(XT, norms, weights, luck, bound):  # type: ignore[no-untyped-def]
    _d, m = XT.shape
    n_clusters, trials = luck.shape
    chosen = np.empty(n_clusters, np.int64)
    free = np.ones(m, np.bool_)
    distances = np.full(m, np.float32(np.inf))
    mass = weights.astype(np.float64)
    tried = np.empty(m, np.float32)
    for turn in range(n_clusters):
        total = _sum(mass)
        best, lowest = -1, np.inf
        kept = distances
        for trial in range(trials if turn else 1):
            pick = _draw(mass, free, luck[turn, trial] * total)
            _squared_distances_to(XT, norms, pick, bound, tried)
            potential = 0.0
            for i in range(m):
                tried[i] = min(tried[i], distances[i])
                potential += weights[i] * np.float64(tried[i])
            if potential < lowest:
                best, lowest, kept = pick, potential, tried.copy()
        distances = kept
        chosen[turn], free[best] = best, False
        for i in range(m):
            mass[i] = weights[i] * np.float64(distances[i]) if free[i] else 0.0
    return chosen


@kernel
def _sum(values):  # type: ignore[no-untyped-def]
    """Sum in the order of the values; numpy's own order depends on the machine."""
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i]
    return total


@kernel
def _draw(mass, free, target):  # type: ignore[no-untyped-def]
    """Index at which the running sum of `mass` passes `target`; the first free one if there is no mass left."""
    reached = 0.0
    for i in range(mass.shape[0]):
        reached += mass[i]
        if mass[i] > 0.0 and reached > target:
            return i
    return np.argmax(free)


@kernel
def _squared_distances_to(XT, norms, pick, bound, out):  # type: ignore[no-untyped-def]
    """Squared distances of all columns of `XT` to one of them, float32, summed in the order of the coordinates.

    Distances within the rounding error of zero are zero, so that copies of a row have no mass once it is taken.
    """
    point = XT[:, pick].copy()
    for start in range(0, XT.shape[1], 1024):  # so that the sums stay in the first-level cache
        sums = out[start : start + 1024]
        sums[:] = 0.0
        for j in range(XT.shape[0]):
            row, c = XT[j, start : start + 1024], point[j]
            for i in range(sums.shape[0]):
                sums[i] += row[i] * c
    for i in range(XT.shape[1]):
        size = norms[i] + norms[pick]
        distance = size - np.float32(2.0) * out[i]
        out[i] = distance if distance > np.float32(4.0 * bound) * size else np.float32(0.0)


def resolve_init(init: Any, n_clusters: int, storage_options: Mapping[str, Any] | None = None) -> Any:
    """`init` as "k-means||", "random" or a float32 matrix of centroids.

    Raises
    ------
    UsageError
        Centroids whose number is not `n_clusters`, or a name that is neither of the two nor a path.
    """
    from daskmeans.kmeans import model

    if isinstance(init, str) and init in ("k-means||", "random"):
        return init
    if isinstance(init, (str, UPath)):
        path = open_path(init, storage_options)
        if not path.exists():
            raise NotFoundError(
                f"{init!r} is neither a way to initialise nor a path that exists",
                where="init",
                expected="'k-means||', 'random', a .npy file or a model directory",
            )
        centroids = model.read_centroids(path / model.CENTROIDS if path.is_dir() else path)
    else:
        centroids = np.asarray(getattr(init, "cluster_centers_", init), np.float32)
    if centroids.ndim != 2 or len(centroids) != n_clusters:
        raise UsageError(
            f"the initial centroids have shape {centroids.shape}",
            where="init",
            expected=f"({n_clusters}, number of features)",
            remedy="set n_clusters to their number, or give other centroids",
        )
    if not np.isfinite(centroids).all():
        raise DataError("the initial centroids hold NaN or infinity", where="init", expected="finite numbers")
    return np.ascontiguousarray(centroids)
