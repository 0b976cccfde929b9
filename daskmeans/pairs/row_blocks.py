"""Row blocks: runs of rows that are read together and compared with other such runs."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from upath import UPath

from daskmeans.buckets.buckets import Buckets, Cluster
from daskmeans.kernels.backend import CPU, Backend, Compared
from daskmeans.kernels.hashing import hash_rows
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.within_cluster import first_copies
from daskmeans.runtime import gpus
from daskmeans.tuning import DEFAULT
from daskmeans.vectors import npy
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.matrix import to_matrix

# Least number of blocks in all: enough to share among many cores.
LEAST_BLOCKS = 24


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read together.

    Attributes
    ----------
    source : int
        Which of several inputs it is from.
    first : int
        Number of its first row among all rows.
    rows : int
        Number of its rows.
    place : object
        What the :data:`BlockReader` of its input takes.
    staying : ndarray of bool, shape (rows,), optional
        Which of the rows are compared. Default: all.
    """

    source: int
    first: int
    rows: int
    place: Any
    staying: np.ndarray | None = field(default=None, compare=False)


# Reads the unit vectors at a place (float32, shape (rows, d), a copy) and their ids.
BlockReader = Callable[[Any], tuple[np.ndarray, pa.Array]]


def cut_row_blocks(
    buckets: Buckets, most: int, source: int = 0, first: int = 0, staying: np.ndarray | None = None
) -> list[RowBlock]:
    """Cut all rows into blocks of `most` rows (the last may have fewer); rows are numbered from `first` on.

    The place of a block is a tuple of clusters, each with the start and stop of its rows that belong to the block.
    `staying` says which rows are compared; default: all.
    """
    blocks: list[list[tuple[Cluster, int, int]]] = []
    free = 0
    for cluster in buckets.clusters():
        start = 0
        while start < cluster.rows:
            if not free:
                blocks.append([])
                free = most
            stop = min(cluster.rows, start + free)
            blocks[-1].append((cluster, start, stop))
            free -= stop - start
            start = stop
    rows = [sum(stop - start for _, start, stop in pieces) for pieces in blocks]
    masks = [None if staying is None else staying[i * most : (i + 1) * most] for i in range(len(blocks))]
    return [RowBlock(source, first + i * most, rows[i], tuple(pieces), masks[i]) for i, pieces in enumerate(blocks)]


def rows_per_block(rows: int, dimension: int, nbytes: int, least: int = DEFAULT.rows_per_block) -> int:
    """Rows of a block: `least`, or more if there are many rows, as long as their vectors take at most `nbytes`.

    Examples
    --------
    >>> tuple(rows_per_block(rows, 384, 32 << 20) for rows in (10_000, 200_000, 10_000_000))
    (4096, 8334, 21845)
    """
    return max(1, min(max(least, -(-rows // LEAST_BLOCKS)), nbytes // (4 * dimension)))


class ProbeLists(NamedTuple):
    """The clusters that each row probes: it is compared with their rows only. Clusters are numbered in their order.

    Rows are sorted by their own cluster.
    """

    homes: np.ndarray
    """int32, shape (m,): the own cluster of each row."""
    near: np.ndarray
    """int32, shape (m, p): the clusters that each row probes; its own first, and only once; -1 stands for none."""
    clusters: np.ndarray
    """int32, shape (v,): the probed cluster of each probe, ascending."""
    rows: np.ndarray
    """int32, shape (v,): the probing row of each probe."""


def make_probe_lists(near: np.ndarray) -> ProbeLists:
    """Make the probe lists from `near`, an array as in :class:`ProbeLists`."""
    rows, columns = np.nonzero(near >= 0)
    order = np.argsort(near[rows, columns], kind="stable")
    return ProbeLists(near[:, 0], near, near[rows, columns][order], rows[order].astype(np.int32))


class LoadedBlock(NamedTuple):
    """A row block in memory, ready to be compared; of copies, only the first is compared."""

    first: int
    """Number of the first row."""
    ids: pa.Array
    """Ids of all rows of the block."""
    numbers: np.ndarray
    """int64, shape (m,): numbers of the distinct rows among all rows, ascending."""
    sketches: Compared
    """Sketches of the distinct rows."""
    backend: Backend
    """The backend that compares them."""
    copies: np.ndarray
    """int64, shape (c, 2): numbers of a row and of the first row that is bitwise identical to it."""
    zero: int
    """Number of the first row of zeros; -1 if there is none."""
    probe_lists: ProbeLists | None
    """Probe lists of the distinct rows; None if they are compared with all."""


def load_row_block(reader: BlockReader, block: RowBlock, P: np.ndarray, near: UPath | None = None) -> LoadedBlock:
    """Load `block`, with sketches along the directions `P`; `near` is the file with its probes, if rows probe."""
    return load_rows(partial(reader, block.place), P, block.first, block.staying, near)


def load_rows(
    read: Callable[[], tuple[np.ndarray, pa.Array]],
    P: np.ndarray,
    start: int = 0,
    staying: np.ndarray | None = None,
    near: UPath | None = None,
) -> LoadedBlock:
    """Load the unit vectors and ids that `read` returns, numbered from `start` on; see :func:`load_row_block`."""
    X, ids = read()
    numbers = start + np.arange(len(X))
    if staying is not None:
        X, numbers = X[staying], numbers[staying]
    hashes = hash_rows(X)
    first = first_copies(X, hashes, np.argsort(hashes, kind="stable"))
    visited = read_array(near) if near else None
    if visited is not None:  # copies may be in different clusters, such as where the model does not normalize rows
        apart = np.flatnonzero(visited[first, 0] != visited[:, 0])
        first[apart] = apart
    distinct = np.flatnonzero(first == np.arange(len(X)))
    copies = np.flatnonzero(first != np.arange(len(X)))
    if len(copies):
        X = X[distinct]
    zeros, backend = np.flatnonzero(~X.any(axis=1)), _choose_backend(visiting=near is not None)
    return LoadedBlock(
        start,
        ids,
        numbers[distinct],
        backend.make_comparable(X, P),
        backend,
        np.stack([numbers[copies], numbers[first[copies]]], axis=1),
        int(numbers[distinct[zeros[0]]]) if len(zeros) else -1,
        None if visited is None else make_probe_lists(visited[distinct]),
    )


def _choose_backend(visiting: bool) -> Backend:
    """The backend of this process: rows that probe clusters are compared on the CPU."""
    return CPU if visiting else gpus.backend()


def read_array(file: UPath) -> np.ndarray:
    """Read the array in the ``.npy`` file `file`."""
    with translate_read_errors(file), file.open("rb") as opened:
        return npy.load_array(opened.read())  # type: ignore[no-any-return]


def write_array(file: UPath, array: np.ndarray) -> None:
    """Write `array` to the ``.npy`` file `file`."""
    with file.open("wb") as opened:
        np.save(opened, array)


def read_unit_vectors(buckets: Buckets, pieces: Sequence[tuple[Cluster, int, int]]) -> tuple[np.ndarray, pa.Array]:
    """Read unit vectors of some rows (float32, shape (rows, d), a copy), and their ids."""
    X = np.empty((sum(stop - start for _, start, stop in pieces), buckets.dimension), np.float32)
    ids: list[pa.Array] = []
    end = 0
    for table in buckets.read_slices(pieces, [buckets.id_field, buckets.embedding_field]):
        mine = to_matrix(table[buckets.embedding_field])
        X[end : end + len(mine)] = mine
        end += len(mine)
        ids += table[buckets.id_field].chunks
    normalize_rows(X)
    return X, pa.chunked_array(ids).combine_chunks()


def sample_vectors(buckets: Buckets, wanted: int, each: int) -> np.ndarray:
    """Sample about `wanted` unit vectors, at most `each` per cluster, from clusters spread over the input."""
    clusters = list(buckets.clusters())
    ends = np.cumsum([cluster.rows for cluster in clusters])
    places = np.linspace(0, buckets.rows - 1, max(1, wanted // each)).astype(np.int64)
    chosen = np.unique(np.searchsorted(ends, places, side="right"))
    return read_unit_vectors(buckets, [(clusters[i], 0, min(each, clusters[i].rows)) for i in chosen])[0]


class RowBlockCache:
    """Cache of the row blocks that a process used last.

    It is pickled empty: each process that receives one fills it with the blocks that it loads.

    Parameters
    ----------
    readers : sequence of BlockReader
        One for each source.
    blocks : list of RowBlock
    P : ndarray of float32, shape (d, p)
        Directions of the sketches.
    room : int
        How many rows are cached, besides those in use.
    near : sequence of UPath, optional
        For each block, the file with its probes. Default: rows are compared with all.
    """

    def __init__(
        self,
        readers: Sequence[BlockReader],
        blocks: Sequence[RowBlock],
        P: np.ndarray,
        room: int,
        near: Sequence[UPath] | None = None,
    ) -> None:
        self.readers, self.blocks, self.P, self.room, self.near = readers, blocks, P, room, near
        self._lock = threading.Lock()
        self._futures: OrderedDict[int, Future[LoadedBlock]] = OrderedDict()
        self._rows = 0  # of those held

    def __reduce__(self) -> tuple[Any, ...]:
        return RowBlockCache, (self.readers, self.blocks, self.P, self.room, self.near)

    def get(self, i: int) -> LoadedBlock:
        """Block number `i`, loaded; a thread that asks for a block that another one is loading waits for it."""
        with self._lock:
            found = self._futures.get(i)
            mine = found is None
            if found is None:
                found = self._futures[i] = Future()
                self._rows += self.blocks[i].rows
            self._futures.move_to_end(i)
            while len(self._futures) > 1 and self._rows > self._max_rows:
                self._rows -= self.blocks[self._futures.popitem(last=False)[0]].rows
        if mine:
            block = self.blocks[i]
            try:
                found.set_result(
                    load_row_block(self.readers[block.source], block, self.P, self.near[i] if self.near else None)
                )
            except BaseException as error:
                found.set_exception(error)
                with self._lock:
                    if self._futures.pop(i, None):  # the next call may succeed
                        self._rows -= block.rows
                raise
        return found.result()

    @functools.cached_property
    def _max_rows(self) -> int:
        """Most rows that this process caches."""
        most = max(block.rows for block in self.blocks)
        return _choose_backend(visiting=self.near is not None).room(self.room, most, self.P.shape[0])
