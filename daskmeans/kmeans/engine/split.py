"""Oversized clusters, split until none is left.

Each round compares all rows with all centroids, and replaces the centroid of each oversized cluster by several. They
come from k-means on a sample of the cluster's rows, repeated for those that take too large a share of the sample. The
new centroids may attract rows of other clusters, and a sample is only approximate. So rounds are repeated until all
clusters are small enough; for most data that takes two or three.

Copies of a row cannot be separated. So a cluster may stay oversized if one row occurs too often in it; its other rows
are then no more than a cluster may have.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from daskmeans.errors import ClusterSizeWarning
from daskmeans.kernels.distances import nearest_labels
from daskmeans.kernels.hashing import hash_rows
from daskmeans.kernels.sums import add_weighted_rows, compute_means, scale_for
from daskmeans.kmeans.rows.block import Block
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.runtime import executor, progress
from daskmeans.runtime.client import log_event

# Number of new centroids, as a multiple of the fewest that would do; and the most for one cluster in one round.
OVERSPLIT = 1.25
MOST = 64
# Distinct rows that are sampled for each new centroid, and bytes of samples in memory at once.
SAMPLE_PER_CENTROID = 64
SAMPLE_BYTES = 1 << 28
# Fewest rows of the sample from which the size of a new cluster can be estimated.
FEWEST = 8
# Updates of the new centroids on the sample, at most.
UPDATES = 10

_LABELS = "split-labels"
_HASH_ROWS = 8192


class RowSample(NamedTuple):
    """Distinct rows of some clusters: those whose contents have the smallest hashes in their cluster."""

    places: np.ndarray
    """int64, shape (m,): index of the cluster among those sampled; ascending."""
    hashes: np.ndarray
    """uint64, shape (m,): ascending in each cluster."""
    counts: np.ndarray
    """int64, shape (m,): how often the row occurs."""
    numbers: np.ndarray
    """int64, shape (m,): number of the first copy of the row."""


@dataclass(frozen=True)
class OversizedCluster:
    """A cluster that has too many rows."""

    cluster: int
    size: int
    limit: int
    """Rows that it may have at most."""
    counts: np.ndarray
    """int64, shape (m,): how often each of the sampled rows occurs."""
    numbers: np.ndarray
    """int64, shape (m,): their numbers."""

    @property
    def is_copied(self) -> np.ndarray:
        """bool, shape (m,): which of the sampled rows occur more often than the limit."""
        return self.counts > self.limit

    @property
    def others(self) -> int:
        """Number of rows of the cluster that are not copies of such a row."""
        return self.size - int(self.counts[self.is_copied].sum())

    @property
    def is_stuck(self) -> bool:
        """Whether the cluster is oversized only because of the copies of one row."""
        return int(self.is_copied.sum()) == 1 and self.others <= self.limit


def split_clusters(blocks: Blocks, centroids: np.ndarray, max_cluster_size: int, seed: int) -> np.ndarray:
    """Replace the centroids of clusters by several, until none has more than `max_cluster_size` rows.

    Parameters
    ----------
    blocks : Blocks
    centroids : ndarray of float32, shape (k, d)
    max_cluster_size : int
    seed : int
        Seed of the samples. The result depends only on the rows, `centroids` and these two numbers.

    Returns
    -------
    ndarray of float32, shape (k or more, d)
        The first centroid of a split cluster keeps its number; the others are appended.

    Warns
    -----
    ClusterSizeWarning
        A cluster stays oversized because it has too many copies of one row.
    """
    run, most = uuid4().hex, len(centroids) + blocks.n_rows
    with progress.open_line("split clusters") as line:
        while True:
            start = time.perf_counter()
            labelled = centroids, f"{run}-{len(centroids)}"
            sizes = np.sum(blocks.map(_cluster_sizes, *labelled, name="kmeans-split"), axis=0)
            line.advance(f"{len(centroids):,} clusters, {sizes.max():,} rows in the largest")
            large_clusters = list(_find_oversized(blocks, labelled, sizes, max_cluster_size, seed))
            divisible = [oversized for oversized in large_clusters if not oversized.is_stuck]
            if not divisible or len(centroids) >= most:  # then each row could have had a centroid of its own
                break
            centroids = _replace_centroids(centroids, divisible, _divide_clusters(blocks, divisible))
            event = {"n_clusters": len(centroids), "largest": int(sizes.max()), "split": len(divisible)}
            log_event("daskmeans-split", event | {"seconds": time.perf_counter() - start}, blocks.client)
    blocks.map(_drop_labels, name="kmeans-split")
    for oversized in large_clusters:
        _warn_oversized(oversized)
    return centroids


def _find_oversized(
    blocks: Blocks, labelled: tuple[np.ndarray, str], sizes: np.ndarray, limit: int, seed: int
) -> Iterator[OversizedCluster]:
    """Yield the clusters of more than `limit` rows, each with a sample of its rows."""
    large = np.flatnonzero(sizes > limit)
    wanted = SAMPLE_PER_CENTROID * _n_parts(sizes, limit)
    held = 32 * len(blocks.lengths) * wanted[large]  # each block may send a sample as large
    for batch in _batch_by_bytes(held):
        clusters = large[batch]
        found = blocks.map(_sample_clusters, *labelled, clusters, wanted[clusters], seed, name="kmeans-split")
        sample = _smallest_hashes(RowSample(*map(np.concatenate, zip(*found, strict=True))), wanted[clusters])
        ends = np.searchsorted(sample.places, np.arange(len(clusters) + 1))
        for cluster, mine in zip(clusters.tolist(), map(slice, ends[:-1], ends[1:]), strict=True):
            yield OversizedCluster(cluster, int(sizes[cluster]), limit, sample.counts[mine], sample.numbers[mine])


def _divide_clusters(blocks: Blocks, large_clusters: list[OversizedCluster]) -> list[np.ndarray]:
    """Return, for each of `large_clusters`, the centroids that replace its own."""
    made: list[np.ndarray] = []
    for batch in _batch_by_bytes(
        np.array([4 * blocks.dimension * len(oversized.numbers) for oversized in large_clusters])
    ):
        mine = large_clusters[batch]
        rows = blocks.rows(np.concatenate([oversized.numbers for oversized in mine]))
        cuts = np.cumsum([len(oversized.numbers) for oversized in mine])[:-1]
        made += executor.call_in_threads(
            [partial(_divide_cluster, X, c) for X, c in zip(np.split(rows, cuts), mine, strict=True)]
        )
    return made


def _batch_by_bytes(held: np.ndarray) -> Iterator[slice]:
    """Yield slices of items of these sizes: at most SAMPLE_BYTES together, but at least one item."""
    begin = 0
    while begin < len(held):
        end = begin + max(1, int(np.searchsorted(np.cumsum(held[begin:]), SAMPLE_BYTES, side="right")))
        yield slice(begin, end)
        begin = end


def _n_parts(rows: Any, limit: float) -> Any:
    """Return how many centroids to split a cluster of `rows` rows into."""
    return np.minimum(MOST, np.ceil(OVERSPLIT * rows / limit)).astype(np.int64)


def _replace_centroids(
    centroids: np.ndarray, large_clusters: list[OversizedCluster], made: list[np.ndarray]
) -> np.ndarray:
    kept = centroids.copy()
    for oversized, new in zip(large_clusters, made, strict=True):
        kept[oversized.cluster] = new[0]
    return np.concatenate([kept, *(new[1:] for new in made)])


def _warn_oversized(oversized: OversizedCluster) -> None:
    most = int(oversized.counts.max())
    warnings.warn(
        f"cluster {oversized.cluster} keeps {oversized.size:,} rows, more than max_cluster_size={oversized.limit:,}: "
        f"{most:,} of them are copies of one row, which no centroids can separate",
        ClusterSizeWarning,
        stacklevel=5,
    )


# --- on the sample of one cluster ---


def _divide_cluster(X: np.ndarray, oversized: OversizedCluster) -> np.ndarray:
    """Return the centroids that replace one: rows that occur too often, and means of groups of the others."""
    rest = ~oversized.is_copied
    rows, weights = X[rest], oversized.counts[rest]
    if not len(rows):
        return X
    parts = _divide_rows(rows, weights, oversized.limit * weights.sum() / oversized.others)
    return np.concatenate([X[oversized.is_copied], *parts])


def _divide_rows(X: np.ndarray, weights: np.ndarray, limit: float) -> list[np.ndarray]:
    """Return centroids of weighted rows, as a list of matrices; groups that are too heavy are divided again."""
    count = min(len(X), int(_n_parts(weights.sum(), limit)))
    centroids, labels = _k_means(X, weights, count)
    parts: list[np.ndarray] = []
    for label, centroid in enumerate(centroids):
        mine = labels == label
        again = weights[mine].sum() > limit and FEWEST <= mine.sum() < len(X)
        parts += _divide_rows(X[mine], weights[mine], limit) if again else [centroid[None]]
    return parts


def _k_means(X: np.ndarray, weights: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids, float32, shape (n_clusters, d), and labels of weighted rows, no two of which are equal."""
    seeds = centroids = X[_draw_heavy(weights, n_clusters)]
    scale = scale_for(float(np.abs(X).max()), int(weights.sum()))
    labels = nearest_labels(X, centroids)
    for _ in range(UPDATES):
        sums, counts = np.zeros(centroids.shape, np.int64), np.zeros(n_clusters, np.int64)
        add_weighted_rows(X, labels, weights, scale, sums, counts)
        centroids = compute_means(sums, counts, scale, centroids)
        before, labels = labels, nearest_labels(X, centroids)
        if np.array_equal(before, labels):
            break
    # Means of rows that differ only in their last bits may coincide; the rows themselves never do.
    return (centroids, labels) if n_clusters == 1 or np.ptp(labels) else (seeds, nearest_labels(X, seeds))


def _draw_heavy(weights: np.ndarray, count: int) -> np.ndarray:
    """Return indices of `count` rows, evenly spaced over the running sum of the weights, so heavy rows come first."""
    marks = (2 * np.arange(count) + 1) * weights.sum() // (2 * count)
    drawn = np.unique(np.searchsorted(np.cumsum(weights), marks, side="right"))
    others = np.setdiff1d(np.arange(len(weights)), drawn)
    return np.concatenate([drawn, others[: count - len(drawn)]])


# --- on the workers ---


def _cached_labels(block: Block, centroids: np.ndarray, name: str) -> np.ndarray:
    """Return the nearest centroids of the rows of `block`, computed once for each `name`."""
    if block.notes.get(_LABELS) != name:
        block.allocate(_LABELS, (block.n_rows,), np.int32)
        with block.open() as arrays:
            arrays[_LABELS][:] = nearest_labels(arrays["rows"], centroids)
        block.notes[_LABELS] = name
    with block.open() as arrays:
        return np.array(arrays[_LABELS])


def _cluster_sizes(group: list[Block], centroids: np.ndarray, name: str) -> np.ndarray:
    """Return the number of rows of each cluster."""
    return np.sum(
        [np.bincount(_cached_labels(block, centroids, name), minlength=len(centroids)) for block in group], axis=0
    )


def _sample_clusters(
    group: list[Block], centroids: np.ndarray, name: str, clusters: np.ndarray, wanted: np.ndarray, seed: int
) -> RowSample:
    """Return the `wanted` rows of each of `clusters` whose contents have the smallest hashes."""
    place = np.full(len(centroids), -1)
    place[clusters] = np.arange(len(clusters))
    found = [_hash_block(block, place[_cached_labels(block, centroids, name)], wanted, seed) for block in group]
    return _smallest_hashes(RowSample(*map(np.concatenate, zip(*found, strict=True))), wanted)


def _hash_block(block: Block, places: np.ndarray, wanted: np.ndarray, seed: int) -> RowSample:
    mine = np.flatnonzero(places >= 0)
    with block.open() as arrays:
        cuts = range(0, len(mine), _HASH_ROWS)  # so that no copy of all rows is made
        hashes = [hash_rows(arrays["rows"][mine[cut : cut + _HASH_ROWS]], seed) for cut in cuts]
    joined = np.concatenate([np.empty(0, np.uint64), *hashes])
    return _smallest_hashes(RowSample(places[mine], joined, np.ones(len(mine), np.int64), block.numbers[mine]), wanted)


def _smallest_hashes(sample: RowSample, wanted: np.ndarray) -> RowSample:
    """Merge the copies of each row, and keep the `wanted` rows of each cluster with the smallest hashes."""
    order = np.lexsort((sample.numbers, sample.hashes, sample.places))
    places, hashes, counts, numbers = (part[order] for part in sample)
    new = np.ones(len(order), bool)
    new[1:] = (places[1:] != places[:-1]) | (hashes[1:] != hashes[:-1])
    first = np.flatnonzero(new)
    counts = np.add.reduceat(counts, first) if len(first) else counts
    places, hashes, numbers = places[first], hashes[first], numbers[first]
    rank = np.arange(len(places)) - np.searchsorted(places, places)
    kept = rank < wanted[places]
    return RowSample(places[kept], hashes[kept], counts[kept], numbers[kept])


def _drop_labels(group: list[Block]) -> None:
    for block in group:
        block.notes.pop(_LABELS, None)
        block.drop(_LABELS)
