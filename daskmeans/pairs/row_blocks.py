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

# Blocks of all rows at least: enough of them to share among many cores.
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
        What a reader of its input takes.
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
    """All rows in blocks of `most` rows, the last one may have fewer; numbered from `first` on.

    The place of a block are clusters, each with the first of its rows that belong to the block and the one after the
    last. `staying` says which rows are compared; default: all.
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
    """Rows of a block: `least`, or more if there are many, of which no more than `nbytes` are vectors.

    Examples
    --------
    >>> tuple(rows_per_block(rows, 384, 32 << 20) for rows in (10_000, 200_000, 10_000_000))
    (4096, 8334, 21845)
    """
    return max(1, min(max(least, -(-rows // LEAST_BLOCKS)), nbytes // (4 * dimension)))


class ProbeLists(NamedTuple):
    """The clusters with whose rows each row is compared, where it is not with all; clusters by their places in order.

    Rows lie in the order of their own clusters.
    """

    homes: np.ndarray
    """int32, shape (m,): the own cluster of each row."""
    near: np.ndarray
    """int32, shape (m, p): the clusters that each row visits; its own first, and not again; -1 stands for none."""
    clusters: np.ndarray
    """int32, shape (v,): all clusters that are visited, ascending, again for each row that does."""
    rows: np.ndarray
    """int32, shape (v,): the rows that visit these."""


def make_probe_lists(near: np.ndarray) -> ProbeLists:
    """What rows visit, from `near` as :class:`ProbeLists` has it."""
    rows, columns = np.nonzero(near >= 0)
    order = np.argsort(near[rows, columns], kind="stable")
    return ProbeLists(near[:, 0], near, near[rows, columns][order], rows[order].astype(np.int32))


class LoadedBlock(NamedTuple):
    """The rows of a block in memory that are compared; of copies the first one only."""

    first: int
    """Number of the first row."""
    ids: pa.Array
    """Of all rows of the block."""
    numbers: np.ndarray
    """int64, shape (m,): numbers of the distinct rows among all rows, ascending."""
    sketches: Compared
    """Of the distinct rows."""
    backend: Backend
    """What they are compared with."""
    copies: np.ndarray
    """int64, shape (c, 2): numbers of a row and of the first one that is the same bit for bit."""
    zero: int
    """Number of the first row of zeros; -1 for none."""
    probe_lists: ProbeLists | None
    """Of the distinct rows; None if they are compared with all."""


def load_row_block(reader: BlockReader, block: RowBlock, P: np.ndarray, near: UPath | None = None) -> LoadedBlock:
    """The rows of `block`, with sketches along the directions `P`; `near` is a file of what they visit, if they do."""
    return load_rows(partial(reader, block.place), P, block.first, block.staying, near)


def load_rows(
    read: Callable[[], tuple[np.ndarray, pa.Array]],
    P: np.ndarray,
    start: int = 0,
    staying: np.ndarray | None = None,
    near: UPath | None = None,
) -> LoadedBlock:
    """Rows whose unit vectors and ids `read` returns, numbered from `start` on; otherwise as :func:`load_row_block`."""
    X, ids = read()
    numbers = start + np.arange(len(X))
    if staying is not None:
        X, numbers = X[staying], numbers[staying]
    hashes = hash_rows(X)
    first = first_copies(X, hashes, np.argsort(hashes, kind="stable"))
    visited = read_array(near) if near else None
    if visited is not None:  # copies that visit other clusters, as where rows were compared by length too
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
        backend.comparable(X, P),
        backend,
        np.stack([numbers[copies], numbers[first[copies]]], axis=1),
        int(numbers[distinct[zeros[0]]]) if len(zeros) else -1,
        None if visited is None else make_probe_lists(visited[distinct]),
    )


def _choose_backend(visiting: bool) -> Backend:
    """What this process compares blocks with: rows that visit clusters are compared on the cores."""
    return CPU if visiting else gpus.backend()


def read_array(file: UPath) -> np.ndarray:
    """The array in the ``.npy`` file `file`."""
    with translate_read_errors(file), file.open("rb") as opened:
        return npy.load_array(opened.read())  # type: ignore[no-any-return]


def write_array(file: UPath, array: np.ndarray) -> None:
    """Write `array` to the ``.npy`` file `file`."""
    with file.open("wb") as opened:
        np.save(opened, array)


def read_unit_vectors(buckets: Buckets, pieces: Sequence[tuple[Cluster, int, int]]) -> tuple[np.ndarray, pa.Array]:
    """Unit vectors of some rows (float32, shape (rows, d), a copy), and their ids."""
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
    """About `wanted` unit vectors, at most `each` of a cluster, from clusters all over the input."""
    clusters = list(buckets.clusters())
    ends = np.cumsum([cluster.rows for cluster in clusters])
    places = np.linspace(0, buckets.rows - 1, max(1, wanted // each)).astype(np.int64)
    chosen = np.unique(np.searchsorted(ends, places, side="right"))
    return read_unit_vectors(buckets, [(clusters[i], 0, min(each, clusters[i].rows)) for i in chosen])[0]


class RowBlockCache:
    """Blocks in the memory of a process, those that were used last.

    It travels empty: each process that receives one keeps what it has loaded as long as it keeps the cache.

    Parameters
    ----------
    readers : sequence of BlockReader
        One for each source.
    blocks : list of RowBlock
    P : ndarray of float32, shape (d, p)
        Directions of the sketches.
    room : int
        Rows that are kept, beside those in use.
    near : sequence of UPath, optional
        For each block, the file of what its rows visit. Default: rows are compared with all.
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
        """RowBlock number `i`; a thread that asks for what another one loads waits for it."""
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
                    if self._futures.pop(i, None):  # the next one may be able to
                        self._rows -= block.rows
                raise
        return found.result()

    @functools.cached_property
    def _max_rows(self) -> int:
        """Rows that this process keeps."""
        most = max(block.rows for block in self.blocks)
        return _choose_backend(visiting=self.near is not None).room(self.room, most, self.P.shape[0])
