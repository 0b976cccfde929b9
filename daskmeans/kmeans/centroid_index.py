"""An index over very many centroids, for approximate assignment whose share of exact labels is measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import dask
import numpy as np
from distributed import Client

from daskmeans import config
from daskmeans.errors import MissingExtraError, UsageError
from daskmeans.kernels.distances import nearest_labels, range_slices
from daskmeans.kernels.hashing import hash_integers, sample_limit, wilson_interval
from daskmeans.kernels.norms import squared_norms64
from daskmeans.kernels.topk import closest_points, nearest_candidates, own_ranks
from daskmeans.kmeans.rows.given import is_lazy
from daskmeans.kmeans.rows.inputs import as_matrix, list_partitions
from daskmeans.kmeans.values import to_number
from daskmeans.runtime import executor
from daskmeans.runtime.client import check_home, client_in_use

TARGET_RECALL = 0.99
# Number of clusters from which an index may be faster than exact labels.
MANY_CLUSTERS = 4096
TILE = 2048
SHORTLIST = 16
# Measured cost of opening a list, in codes that could be compared in that time.
LIST_COST = 100


class Index:
    """Inverted lists of encoded centroids: a row is compared with a few lists, then exactly with a shortlist.

    The lists come from a k-means of the centroids. The codes take 4 bits for each four coordinates and are compared by
    faiss's fast scan. Which lists a row probes, and which centroid of its shortlist is nearest, is decided in float64.
    So a label depends on the row alone, not on other rows in the batch.

    Parameters
    ----------
    lists : ndarray of float32, shape (nlist, d)
        Centers of the lists.
    packed : ndarray of uint8
        The index, serialised by faiss.
    nprobe, shortlist : int
        Number of lists that a row probes, and of centroids that it is compared with exactly.

    Attributes
    ----------
    facts : dict
        ``nlist``, ``nprobe``, ``shortlist``; ``compared``, the share of the centroids that a row is compared with;
        ``target``; ``recall`` as measured on ``sampled`` rows that the index was not tuned on, and its 95 % confidence
        interval from ``low`` to ``high``.

    Notes
    -----
    Jégou, Douze & Schmid, *Product quantization for nearest neighbor search*, PAMI 2011; André, Kermarrec &
    Le Scouarnec, *Cache locality is not enough*, VLDB 2015.
    """

    def __init__(self, lists: np.ndarray, packed: np.ndarray, nprobe: int, shortlist: int) -> None:
        self.lists, self.packed = lists, packed
        self.nprobe, self.shortlist = nprobe, shortlist
        self.facts: dict[str, Any] = {"nlist": len(lists), "nprobe": nprobe, "shortlist": shortlist}

    def __repr__(self) -> str:
        return f"Index({', '.join(f'{name}={value!r}' for name, value in self.facts.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    @cached_property
    def _index(self) -> Any:
        index = _import_faiss().deserialize_index(self.packed)
        index.nprobe = self.nprobe
        index.implem = 10  # one row at a time: measured faster than batches where each row scans its own lists
        return index

    def candidates(self, X: np.ndarray) -> np.ndarray:
        """Return the shortlist of each row; int64, shape (n, shortlist), filled up with -1."""
        # Lists in ascending order: of equal codes, those that are met first stay on the shortlist.
        probes = closest_points(X, self.lists, self.nprobe)
        with _one_thread():
            return self._index.search_preassigned(X, self.shortlist, probes, np.zeros(probes.shape, np.float32))[1]  # type: ignore[no-any-return]

    def nearest(self, X: np.ndarray, centroids: np.ndarray, tile: int = TILE) -> np.ndarray:
        """Return the label of the nearest centroid that the index finds for each row; ties go to the lower label.

        Parameters
        ----------
        X : ndarray of float32, shape (n, d), C-contiguous
        centroids : ndarray of float32, shape (k, d)
            Those that the index was built from.
        tile : int
            Rows that are compared at once.

        Returns
        -------
        ndarray of int32, shape (n,)
        """
        half_norms = 0.5 * squared_norms64(centroids)
        labels = np.empty(len(X), np.int32)
        for rows in range_slices(len(X), tile):
            nearest_candidates(X[rows], centroids, half_norms, self.candidates(X[rows]), labels[rows])
        if len(lost := np.flatnonzero(labels < 0)):  # all their lists are empty
            labels[lost] = nearest_labels(X[lost], centroids)
        return labels


def check_assign(assign: Any, recall: float = TARGET_RECALL) -> None:
    """Raise UsageError if `assign` is none of the choices, or if `recall` is out of range."""
    if isinstance(assign, str) and assign == "ann":
        _import_faiss()
        if not 0 < to_number(recall) <= 0.999:
            raise UsageError(
                f"recall={recall!r}",
                expected="a number above 0, up to 0.999",
                remedy="let every label be exact: assign='exact' (--assign exact)",
            )
    elif not (isinstance(assign, str) and assign == "exact") and not isinstance(assign, Index):
        raise UsageError(f"assign={assign!r}", expected="'exact', 'ann' or an index from KMeans.build_index")


def tune_index(
    X: Any,
    column: str | None,
    centroids: np.ndarray,
    rows: Callable[[Any], np.ndarray],
    exact: Callable[[np.ndarray], np.ndarray],
    recall: float,
    seed: int,
    client: Client | None = None,
) -> Index:
    """Build an index over `centroids` for the rows of `X`: tuned on some of them, measured on others.

    Parameters
    ----------
    X, column, client
        As in :meth:`daskmeans.KMeans.fit`.
    centroids : ndarray of float32, shape (k, d)
    rows : callable
        Turns a partition of `X` into the matrix that is compared with the centroids.
    exact : callable
        Returns the exact labels of a matrix.
    recall : float
        Target share of rows whose label is exact.
    seed : int

    Raises
    ------
    MissingExtraError
        faiss is not installed.
    UsageError
        `recall` is out of range.
    """
    check_assign("ann", recall)
    found = sample_input(X, column, rows, 2 * config.get("ann-sample"), seed, client)
    labels = exact(found)
    half = (len(found) + 1) // 2
    index = choose_index(centroids, found[:half], labels[:half], recall, seed)
    right = int((index.nearest(found[half:], centroids) == labels[half:]).sum())
    sampled = len(found) - half
    low, high = wilson_interval(right, sampled)
    share = right / sampled if sampled else None
    index.facts |= {"target": recall, "recall": share, "low": low, "high": high, "sampled": sampled}
    return index


def sample_input(
    X: Any, column: str | None, rows: Callable[[Any], np.ndarray], count: int, seed: int, client: Client | None = None
) -> np.ndarray:
    """Return the `count` rows of `X` (all if there are fewer) whose numbers have the smallest hashes, by hash."""
    if not is_lazy(X):
        X = as_matrix(X, column)
        hashes = hash_integers(np.arange(len(X), dtype=np.uint64), seed)
        return rows(X[np.argsort(hashes)[:count]])
    parts = list_partitions(X, column)
    check_home(parts, client_in_use(client))
    lengths = executor.compute([dask.delayed(len, pure=False)(part) for part in parts], "count rows", client)
    limit = sample_limit(sum(lengths), count)
    take, rows = dask.delayed(_take_sample, pure=False), dask.delayed(rows, pure=False)  # `rows` may hold the centroids
    firsts = [0, *accumulate(lengths)][:-1]
    tasks = [take(part, first, rows, seed, limit) for part, first in zip(parts, firsts, strict=True)]
    hashes, found = (
        np.concatenate(pieces) for pieces in zip(*executor.compute(tasks, "sample rows", client), strict=True)
    )
    return found[np.argsort(hashes)[:count]]  # type: ignore[no-any-return]


def _take_sample(
    part: Any, first: int, rows: Callable[[Any], np.ndarray], seed: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    hashes = hash_integers(np.arange(first, first + len(part), dtype=np.uint64), seed)
    taken = np.flatnonzero(hashes <= np.uint64(limit))
    return hashes[taken], rows(part)[taken]


def choose_index(centroids: np.ndarray, X: np.ndarray, labels: np.ndarray, recall: float, seed: int) -> Index:
    """Return the cheapest of some indexes that finds the exact `labels` for at least `recall` of the rows.

    Parameters
    ----------
    centroids : ndarray of float32, shape (k, d)
    X : ndarray of float32, shape (m, d)
    labels : ndarray of int32, shape (m,)
    recall : float
        The lower bound of the confidence interval must reach it, as far as that is possible with so few rows.
    seed : int
    """
    m = len(X)
    limit = wilson_interval(m, m)[0]
    # Probing more lists cannot find what the shortlist loses, so the shortlist may cause half of the allowed loss.
    flat = Index(centroids[:1], _serialize_index(centroids, centroids[:1]), 1, min(SHORTLIST, len(centroids)))
    while wilson_interval(int((listed := _is_shortlisted(flat, X, labels)).sum()), m)[0] < min((1 + recall) / 2, limit):
        flat = Index(flat.lists, flat.packed, 1, min(2 * flat.shortlist, len(centroids)))
    choices = []
    for nlist in _list_counts(len(centroids)):
        lists = _train_lists(centroids, nlist, seed)
        members = nearest_labels(centroids, lists)
        rank = own_ranks(X, lists, members[labels])[listed]
        reached = np.bincount(rank, minlength=nlist).cumsum()
        nprobe = 1 + next(i for i in range(nlist) if wilson_interval(int(reached[i]), m)[0] >= min(recall, limit))
        scanned = np.bincount(members, minlength=nlist)[closest_points(X, lists, nprobe)].sum() / max(1, m)
        choices.append((scanned + LIST_COST * nprobe + nlist, nlist, nprobe, lists, scanned / len(centroids)))
    _, _, nprobe, lists, compared = min(choices, key=lambda choice: choice[:2])
    index = Index(lists, _serialize_index(centroids, lists), nprobe, flat.shortlist)
    index.facts["compared"] = float(compared)
    return index


def _is_shortlisted(index: Index, X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (index.candidates(X) == labels[:, None]).any(axis=1)  # type: ignore[no-any-return]


def _list_counts(k: int) -> list[int]:
    """Return the numbers of lists to try: powers of two around √k."""
    middle = 1 << round(math.log2(k) / 2)
    return sorted({min(k, max(1, size)) for size in (middle // 2, middle, 2 * middle)})


def _train_lists(centroids: np.ndarray, nlist: int, seed: int) -> np.ndarray:
    """Return the centers of `nlist` lists of centroids, float32, shape (nlist, d)."""
    with _one_thread() as faiss:
        # With a minimum of one point for each list, faiss does not warn on stderr.
        km = faiss.Kmeans(centroids.shape[1], nlist, niter=10, seed=seed % 2**31, min_points_per_centroid=1)
        km.train(centroids)
    return np.ascontiguousarray(km.centroids)


def _serialize_index(centroids: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Return an index of `centroids` in these `lists`, serialised by faiss."""
    k, d = centroids.shape
    width = next(w for w in (4, 3, 2, 1) if d % w == 0)
    with _one_thread() as faiss:
        centres = faiss.IndexFlatL2(d)
        centres.add(lists)
        index = faiss.IndexIVFPQFastScan(centres, d, len(lists), d // width, 4, faiss.METRIC_L2)
        index.by_residual = False
        index.pq.cp.min_points_per_centroid = 1
        index.train(np.resize(centroids, (max(k, 16), d)))  # a codebook has 16 entries, and needs as many points
        index.add(centroids)
        return faiss.serialize_index(index)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _one_thread() -> Iterator[Any]:
    """Limit faiss to one thread: tasks use the cores already, and sums in one thread are reproducible."""
    faiss = _import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # of this thread alone
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def _import_faiss() -> Any:
    if find_spec("faiss") is None:
        raise MissingExtraError("faiss", "ann")
    import faiss

    return faiss
