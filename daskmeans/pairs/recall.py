"""Measure the recall of a search inside clusters, on a sample of rows that are compared with all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from daskmeans.kernels.all_pairs import Sketches, find_pairs
from daskmeans.kernels.hashing import wilson_interval
from daskmeans.kernels.norms import rounding_bound
from daskmeans.kernels.within_cluster import flag_neighbors
from daskmeans.pairs.row_blocks import LoadedBlock


@dataclass(frozen=True)
class RowSample:
    """Sampled rows: their vectors, and their places in the clusters."""

    hashes: np.ndarray
    """uint64, shape (m,): hash of the id."""
    centroids: np.ndarray
    """int32, shape (m,)"""
    places: np.ndarray
    """int64, shape (m,): place of the row in its cluster."""
    rows: np.ndarray
    """float32, shape (m, d)"""


def take_sample(hashes: np.ndarray, centroid: int, X: np.ndarray, limit: int) -> RowSample:
    """Rows of one cluster whose hash is at most `limit`."""
    places = np.flatnonzero(hashes <= np.uint64(limit))
    return RowSample(hashes[places], np.full(len(places), centroid, np.int32), places, X[places])


def join_samples(samples: list[RowSample], size: int) -> RowSample:
    """The rows with the `size` smallest hashes of all `samples`."""
    hashes, centroids, places, rows = (
        np.concatenate([getattr(s, field) for s in samples]) for field in ("hashes", "centroids", "places", "rows")
    )
    smallest = np.argsort(hashes, kind="stable")[:size]
    return RowSample(hashes[smallest], centroids[smallest], places[smallest], rows[smallest])


def mark_neighbors(
    sample: RowSample,
    X: np.ndarray,
    centroid: int,
    first: int,
    threshold: np.float32,
    tile_bytes: int,
    seen: np.ndarray,
) -> None:
    """Compare `sample` with rows of one cluster.

    Parameters
    ----------
    sample : RowSample
    X : ndarray of float32, shape (n, d)
        In the order that `sample.places` refers to.
    centroid, first : int
        The cluster, and the place of the first row in it.
    threshold : float32
    tile_bytes : int
    seen : ndarray of bool, shape (2, m)
        Output: row 0 becomes True for sampled rows with a near-duplicate in X, row 1 for those with one in their own
        cluster.
    """
    own = sample.centroids == centroid
    places = np.where(own, sample.places - first, -1)
    margin = rounding_bound(X.shape[1])
    width = max(1, tile_bytes // (4 * max(1, len(sample.rows))))
    for left in range(0, len(X), width):
        block = X[left : left + width]
        flag_neighbors(
            sample.rows @ block.T, sample.rows, block, own, places - left, threshold, margin, seen[0], seen[1]
        )


@dataclass(frozen=True)
class RecallSample:
    """Sampled rows, to be compared with all rows by their sketches."""

    numbers: np.ndarray
    """int64, shape (m,): row numbers among all rows."""
    sketches: Sketches
    """Sketches of these rows."""
    near: np.ndarray
    """int32, shape (m, p): the clusters that they probe, see :class:`ProbeLists`."""

    def best_scores(self, block: LoadedBlock, floor: np.float32) -> np.ndarray:
        """The best score of each sampled row with the other rows of a block; float32, shape (2, m).

        Row 0 is over all pairs that score at least `floor`, row 1 over those of them that the search finds. Without any
        such pair it is minus infinity.
        """
        assert block.probe_lists is not None
        best_scores = np.full((2, len(self.numbers)), -np.inf, np.float32)
        whole = slice(0, len(self.numbers)), slice(0, len(block.numbers))
        for found in find_pairs(self.sketches, cast(Sketches, block.sketches), floor, *whole):
            near, theirs = self.near[found.rows], block.probe_lists.near[found.columns]
            met = (near == theirs[:, :1]).any(axis=1) | (theirs == near[:, :1]).any(axis=1)
            others = self.numbers[found.rows] != block.numbers[found.columns]
            for seen, which in zip(best_scores, (others, others & met), strict=True):
                np.maximum.at(seen, found.rows[which], found.scores[which])
        # The first of several copies represents all, and it may be the row itself; zero rows have no useful product.
        best_scores[:, np.isin(self.numbers, block.copies[:, 1])] = 1
        if block.zero >= 0:
            best_scores[:, ~self.sketches.X.any(axis=1) & (self.numbers != block.zero)] = 1
        return best_scores


def summarize_recall(seen: np.ndarray) -> dict[str, Any]:
    """Recall with its 95 % interval, from flags as :func:`mark_neighbors` sets them.

    Examples
    --------
    >>> summarize_recall(np.array([[False], [False]]))
    {'recall': None, 'low': 0.0, 'high': 1.0, 'sampled': 1, 'with_twin': 0}
    """
    with_twin, found = int(seen[0].sum()), int(seen[1].sum())
    recall = found / with_twin if with_twin else None
    low, high = wilson_interval(found, with_twin)
    return {"recall": recall, "low": low, "high": high, "sampled": seen.shape[1], "with_twin": with_twin}


def complete_recall(rows: int, with_twin: int) -> dict[str, Any]:
    """Recall of a search that compared all rows, in the form of :func:`summarize_recall`.

    Examples
    --------
    >>> complete_recall(7, 2)
    {'recall': 1.0, 'low': 1.0, 'high': 1.0, 'sampled': 7, 'with_twin': 2, 'why': 'all pairs of rows were compared'}
    """
    why = "all pairs of rows were compared"
    return {"recall": 1.0, "low": 1.0, "high": 1.0, "sampled": rows, "with_twin": with_twin, "why": why}
