"""The rows of one input as float32 matrices that stay where they were loaded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed
from distributed import Client
from distributed.client import futures_of

from daskmeans import runtime
from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.hashing import hash_integers, uniform
from daskmeans.kernels.products import normalize_rows
from daskmeans.vectors.matrix import to_matrix, vector_columns

# A group of matrices that lie on one worker, each with the number of its first row.
Group = list[tuple[int, np.ndarray]]


class Blocks:
    """Rows as matrices, kept on the workers (or in this process), each row known by its number in the input.

    Parameters
    ----------
    tasks : list of Delayed
        Each gives a float32 matrix; in the order of the rows.
    client : Client, optional

    Attributes
    ----------
    lengths : list of int
        Rows of each matrix.
    n_rows : int
    """

    def __init__(self, tasks: list[Delayed], client: Client | None = None) -> None:
        self.client = runtime.current_client(client)
        self._blocks = runtime.persist(tasks, self.client)
        sizes = [dask.delayed(len, pure=False)(b, dask_key_name=_key("count")) for b in self._blocks]
        self.lengths: list[int] = runtime.compute(sizes, "load vectors", self.client)
        self.n_rows = sum(self.lengths)
        self._offsets = [0, *accumulate(self.lengths)][:-1]
        self._groups = self._group()

    def _group(self) -> list[list[int]]:
        """Indices of blocks, a list for each thread that will work on them; blocks of one list lie on one worker."""
        filled = [i for i, n in enumerate(self.lengths) if n]
        if self.client is None:
            return _split(filled, runtime.n_threads())
        threads = self.client.nthreads()
        places = self.client.who_has(futures_of(self._blocks))
        lying: dict[str, list[int]] = {}
        for i in filled:
            found = places.get(futures_of(self._blocks[i])[0].key) or ("",)
            lying.setdefault(min(found), []).append(i)
        return [part for worker, mine in sorted(lying.items()) for part in _split(mine, threads.get(worker, 1))]

    def map(self, function: Callable[..., Any], *args: Any, name: str) -> list[Any]:
        """Results of ``function(group, *args)``, one per group: one task for each thread of each worker.

        The groups depend on where blocks happen to lie, so a caller may combine the results only in ways that do not
        depend on the grouping.
        """
        tasks = [
            dask.delayed(_on_group, pure=False)(
                function,
                [self._offsets[i] for i in mine],
                [self._blocks[i] for i in mine],
                *args,
                dask_key_name=_key(name),
            )
            for mine in self._groups
        ]
        return runtime.compute(tasks, client=self.client)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` rows (all if there are fewer), those whose numbers have the smallest hashes under `seed`.

        Returns
        -------
        numbers : ndarray of int64, shape (count,)
            Row numbers, ascending.
        X : ndarray of float32, shape (count, d)
        """
        count = min(count, self.n_rows)
        share = 1.2 * count / self.n_rows
        while True:
            found = self.map(_hashed_below, min(share, 1.0), seed, name="kmeans-sample")
            hashes, numbers, X = (np.concatenate(parts) for parts in zip(*found, strict=True))
            if len(numbers) >= count:
                break
            share *= 2
        chosen = np.lexsort((numbers, hashes))[:count]
        chosen = chosen[np.argsort(numbers[chosen])]
        return numbers[chosen], X[chosen]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, in this order; float32, shape (len(numbers), d)."""
        found = self.map(_rows_numbered, np.sort(numbers), name="kmeans-rows")
        lying, X = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(lying)
        return X[order[np.searchsorted(lying, numbers, sorter=order)]]  # type: ignore[no-any-return]


def load(
    X: Any, column: str | None, normalize: bool, sample_fraction: float, seed: int, client: Client | None
) -> Blocks:
    """Blocks of the rows of `X`: a matrix, a dask array, or a dask dataframe with a column of vectors.

    With a `sample_fraction` below 1 only rows are kept whose number's hash is below it.
    """
    if not is_lazy(X):
        check_rows(X := as_matrix(X), normalize)  # here, where row numbers are those of the caller
    parts = partitions(X, column, client)
    offsets: list[int] | list[None] = [None] * len(parts)
    if sample_fraction < 1.0:
        sizes = [dask.delayed(len, pure=False)(p, dask_key_name=_key("count")) for p in parts]
        offsets = [0, *accumulate(runtime.compute(sizes, "count rows", client))][:-1]
    read = dask.delayed(_load_block, pure=False)
    return Blocks(
        [
            read(p, normalize, i, offset, sample_fraction, seed, dask_key_name=_key("load-block"))
            for i, (p, offset) in enumerate(zip(parts, offsets, strict=True))
        ],
        client,
    )


def is_lazy(X: Any) -> bool:
    """Whether `X` is a dask collection."""
    return isinstance(X, (dd.DataFrame, dd.Series, da.Array))


def partitions(X: Any, column: str | None, client: Client | None = None) -> list[Any]:
    """The partitions of `X` in the order of the rows, as tasks or as whatever stands for them in further tasks."""
    if isinstance(X, dd.DataFrame):
        return list(X[vector_column(X, column)].to_delayed())
    if isinstance(X, dd.Series):
        return list(X.to_delayed())
    if isinstance(X, da.Array):
        if X.ndim != 2:
            raise UsageError(f"the array has {X.ndim} dimensions", expected="2: one row a vector")
        return list(X.rechunk({1: -1}).to_delayed().ravel())
    return [runtime.place(part, client) for part in slices(as_matrix(X))]


def slices(X: np.ndarray) -> list[np.ndarray]:
    """`X` cut by rows, a few slices for each thread; one empty slice if there are no rows."""
    cuts = np.linspace(0, len(X), max(1, min(len(X), 4 * runtime.n_threads())) + 1).astype(int)
    return [X[a:b] for a, b in pairwise(cuts)]


def vector_column(frame: dd.DataFrame, column: str | None) -> str:
    """`column`, or the only column of `frame` that holds vectors."""
    schema = pa.Schema.from_pandas(frame._meta, preserve_index=False)
    found = vector_columns(schema)
    if column is None and len(found) == 1:
        return found[0]
    if column is not None and column in frame.columns:
        return column
    raise UsageError(
        f"there is no column {column!r}" if column else f"{len(found)} columns hold vectors ({', '.join(found)})",
        expected="one column of vectors: a list of floats a row",
        remedy=f"pass column=, one of: {', '.join(map(str, frame.columns))}",
    )


def as_matrix(X: Any) -> np.ndarray:
    """`X` as a float32 matrix, C-contiguous; a copy only where that changes something."""
    X = np.asarray(X)
    if X.ndim != 2:
        raise UsageError(
            f"Expected 2D array, got {X.ndim}D array instead",
            expected="2: one row a vector",
            remedy="Reshape your data: X.reshape(1, -1) for a single vector",
        )
    if X.dtype.kind not in "fiub":
        raise UsageError(f"the array holds {X.dtype}", expected="numbers")
    return np.ascontiguousarray(X, np.float32)


def check_rows(X: np.ndarray, normalize: bool, where: str = "") -> None:
    """Raise DataError for a row that k-means cannot place."""
    largest = np.abs(X).max(initial=0.0)  # NaN or infinity if any number is
    if not np.isfinite(largest):
        row = int(np.flatnonzero(~np.isfinite(X).all(axis=1))[0])
        raise DataError(
            "the vector holds NaN or infinity",
            where=_at(where, row),
            expected="finite numbers",
            remedy="repair or remove the row",
        )
    if largest > 1e15 and not normalize:  # squares of these would not fit into float32
        row = int((np.abs(X).max(axis=1) > 1e15).argmax())
        raise DataError("the vector holds a number above 1e15", where=_at(where, row), remedy="scale the vectors down")
    if normalize and not (filled := X.any(axis=1)).all():
        raise DataError(
            "a vector of zeros has no direction",
            where=_at(where, int(np.flatnonzero(~filled)[0])),
            expected="a vector that can be normalised",
            remedy="remove the row, or fit with normalize=False (--no-normalize)",
        )


def prepare(part: Any, normalize: bool, where: str = "") -> np.ndarray:
    """Matrix of a partition, checked and, if asked for, normalised; never changes `part`."""
    X = as_matrix(part) if isinstance(part, np.ndarray) else to_matrix(part, where)
    check_rows(X, normalize, where)
    if normalize:
        given = isinstance(part, np.ndarray) and np.may_share_memory(X, part)
        X = X.copy() if given or not X.flags.writeable else X
        normalize_rows(X)
    return X


def _at(where: str, row: int) -> str:
    return f"{where}, row {row}" if where else f"row {row}"


def _load_block(part: Any, normalize: bool, i: int, offset: int | None, fraction: float, seed: int) -> np.ndarray:
    X = prepare(part, normalize, where=f"partition {i}")
    if offset is None:
        return X
    return X[uniform(hash_integers(_numbers(offset, X), seed)) < fraction]


def _numbers(offset: int, X: np.ndarray) -> np.ndarray:
    return np.arange(offset, offset + len(X), dtype=np.uint64)


def _on_group(function: Callable[..., Any], offsets: list[int], matrices: list[np.ndarray], *args: Any) -> Any:
    return function(list(zip(offsets, matrices, strict=True)), *args)


def _hashed_below(group: Group, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hashes, numbers, rows = [], [], []
    for offset, X in group:
        h = hash_integers(_numbers(offset, X), seed)
        chosen = uniform(h) < share
        hashes.append(h[chosen])
        numbers.append(np.flatnonzero(chosen) + offset)
        rows.append(X[chosen])
    return np.concatenate(hashes), np.concatenate(numbers), np.concatenate(rows)


def _rows_numbered(group: Group, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers, rows = [], []
    for offset, X in group:
        mine = wanted[np.searchsorted(wanted, offset) : np.searchsorted(wanted, offset + len(X))]
        numbers.append(mine)
        rows.append(X[mine - offset])
    return np.concatenate(numbers), np.concatenate(rows)


def _split(items: list[int], n: int) -> list[list[int]]:
    """`items` in at most `n` consecutive lists of nearly equal length, none of them empty."""
    cuts = np.linspace(0, len(items), min(n, len(items)) + 1).astype(int)
    return [items[a:b] for a, b in pairwise(cuts) if b > a]


def _key(name: str) -> str:
    return f"{name}-{uuid4().hex}"
