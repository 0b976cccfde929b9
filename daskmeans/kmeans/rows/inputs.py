"""Rows that were given, as partitions and as matrices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask._task_spec import GraphNode
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from distributed import Future

from daskmeans import config
from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.backend import Backend
from daskmeans.kernels.jit import as_readonly
from daskmeans.kernels.norms import find_unusual_rows, unit_rows
from daskmeans.kmeans.rows.given import to_numbers
from daskmeans.kmeans.rows.refusals import check_matrix, refuse_masked
from daskmeans.runtime.client import n_threads, task_key
from daskmeans.vectors.frames import frame_schema, frame_to_host, to_cupy_matrix
from daskmeans.vectors.matrix import to_matrix, vector_columns

# Rows of Python objects from which the type of a column is inferred.
PEEK_ROWS = 64


def list_partitions(X: Any, column: str | None) -> list[Any]:
    """Return the partitions of `X` in the order of the rows: tasks, or slices of a matrix.

    Tasks keep references to what they depend on, so they can be computed even if `X` itself is gone.
    """
    if isinstance(X, dd.DataFrame) and not is_frame_of_numbers(X, column):
        X = X[vector_column(X, column)]
    if isinstance(X, (dd.DataFrame, dd.Series)):
        # Only simplified: full optimization would fuse several files into one partition where few columns are read.
        return _hold_futures(X.simplify().to_delayed(optimize_graph=False), X)
    if isinstance(X, da.Array):
        # An optimized graph refers to futures by key only, so nothing would keep them alive.
        return list(X.rechunk({1: -1}).to_delayed(optimize_graph=False).ravel())
    return slice_rows(as_matrix(X, column))


def _hold_futures(tasks: list[Delayed], X: dd.DataFrame | dd.Series) -> list[Delayed]:
    """Return `tasks` with the futures that `X` was made from (dd.from_delayed): their graph holds only the keys."""
    futures = {f.key: f for node in X.expr.walk() for f in node.operands if isinstance(f, Future)}
    if not futures:
        return tasks
    name = task_key("partitions")
    graph = HighLevelGraph.from_collections(name, {**tasks[0].dask, **futures})
    return [Delayed(task.key, graph, layer=name) for task in tasks]


def join_chunks(X: da.Array, least: int) -> da.Array:
    """Merge small consecutive chunks of `X`, if its number of rows is known, into at least `least` larger ones.

    Every block costs a tenth of a millisecond in each update, as much as hundreds of rows.
    """
    if X.ndim != 2 or math.isnan(X.shape[0]):
        return X
    room = min(config.get_bytes("partition-bytes") // (4 * max(1, X.shape[1])), X.shape[0] // least)
    rows: list[int] = []
    for size in X.chunks[0]:
        if rows and rows[-1] + size <= room:
            rows[-1] += size
        else:
            rows.append(size)
    return X.rechunk((tuple(rows), -1)) if len(rows) < len(X.chunks[0]) else X


def fuse_tasks(tasks: Sequence[Delayed], places: Sequence[AbstractContextManager[Any]]) -> list[Delayed]:
    """Fuse each of `tasks` with everything that no other task needs; create it in its context of `places`.

    Data are then read where they are needed instead of being sent there. A task costs two milliseconds on a cluster,
    more than reading a small chunk, and none of dask's own optimizations fuses several inputs into one task.
    """
    graph: dict[Any, Any] = dict(dask.optimize(*tasks)[0].dask) if tasks else {}
    uses = Counter(key for node in graph.values() if isinstance(node, GraphNode) for key in node.dependencies)
    whole = [node.fuse(node, *_pop_exclusive(node, graph, uses)) for node in [graph.pop(task.key) for task in tasks]]
    others, made = task_key("shared"), []
    for node, place in zip(whole, places, strict=True):
        with place:
            layers, needs = {node.key: {node.key: node}, others: graph}, {node.key: {others}, others: set()}
            made.append(Delayed(node.key, HighLevelGraph(layers, needs)))
    return made


def _pop_exclusive(node: GraphNode, graph: dict[Any, Any], uses: Counter[Any]) -> list[GraphNode]:
    """Remove from `graph` what only this node needs, and return it; futures and data are left in the graph."""
    taken: list[GraphNode] = []
    ahead, mine = [node], Counter[Any]()
    while ahead:
        for key in ahead.pop().dependencies:
            mine[key] += 1
            if mine[key] == uses[key] and isinstance(graph.get(key), GraphNode):
                ahead.append(graph.pop(key))
                taken.append(ahead[-1])
    return taken


def slice_rows(X: np.ndarray) -> list[np.ndarray]:
    """Cut `X` into slices of rows: a few for each thread, none larger than a partition; one if `X` is empty."""
    wanted = max(4 * n_threads(), math.ceil(X.nbytes / config.get_bytes("partition-bytes")))
    cuts = np.linspace(0, len(X), max(1, min(len(X), wanted)) + 1).astype(int)
    return [X[a:b] for a, b in pairwise(cuts)]


def vector_column(frame: dd.DataFrame | pd.DataFrame, column: str | None) -> str:
    """Return `column`, or the only column of `frame` with vectors, by its type or, if need be, its first rows."""
    if column is not None and column in frame.columns:
        return column
    head = frame.head(PEEK_ROWS) if isinstance(frame, pd.DataFrame) else frame._meta
    found = vector_columns(frame_schema(head))
    if column is None and len(found) == 1:
        return found[0]
    raise UsageError(
        f"there is no column {column!r}"
        if column
        else f"{len(found)} columns hold vectors: {', '.join(found)}"
        if found
        else "no column is known to hold vectors",
        expected="one column of vectors: a list of floats a row",
        remedy=f"pass column=, one of: {', '.join(map(str, frame.columns))}",
    )


def is_frame_of_numbers(X: Any, column: str | None) -> bool:
    """Whether `X` is a dataframe of numbers, with one feature per column."""
    if column is not None or not isinstance(X, (pd.DataFrame, dd.DataFrame)):
        return False
    return all(map(pd.api.types.is_numeric_dtype, X.dtypes))


def as_matrix(X: Any, column: str | None = None) -> np.ndarray:
    """Return `X`, from :func:`open_rows`, as a float32 matrix, C-contiguous; copied only if necessary.

    For a dataframe that is not a frame of numbers: its `column`, or its only column of vectors.
    """
    if is_frame_of_numbers(X, column):
        X = X.to_numpy(np.float32, na_value=np.nan)
    elif isinstance(X, pd.DataFrame):
        X = to_matrix(X[vector_column(X, column)], "the dataframe")
    elif isinstance(X, pd.Series):
        X = to_matrix(X)
    refuse_masked(X)
    X = np.asarray(array_to_host(X))
    if X.dtype == object:
        X = to_numbers(X)
    check_matrix(X)
    return np.ascontiguousarray(X, np.float32)


def array_to_host(X: Any) -> Any:
    """Return `X`, copied to memory if it lies on a device (a cupy array, or a column or a dataframe of cuDF)."""
    if hasattr(X, "to_arrow"):
        return frame_to_host(X) if hasattr(X, "columns") else X.to_arrow()
    if hasattr(X, "__cuda_array_interface__"):
        import cupy

        return cupy.asnumpy(X)
    return X


def check_rows(X: np.ndarray, normalize: bool, where: str, first: int) -> bool:
    """Return whether all rows have unit length; raise DataError for a row that k-means cannot place."""
    infinite, large, zero, unit = find_unusual_rows(as_readonly(X))
    if infinite >= 0:
        raise DataError(
            "the vector holds NaN or infinity",
            where=name_row(where, first + infinite),
            expected="finite numbers",
            remedy="repair or remove the row",
        )
    if large >= 0 and not normalize:  # their squares would overflow float32
        raise DataError(
            "the vector holds a number above 1e15",
            where=name_row(where, first + large),
            remedy="scale the vectors down",
        )
    if zero >= 0 and normalize:
        raise DataError(
            "a vector of zeros has no direction",
            where=name_row(where, first + zero),
            expected="a vector that can be normalised",
            remedy="remove the row, or fit with normalize=False (--no-normalize)",
        )
    return bool(unit)


def prepare_rows(part: Any, normalize: bool, where: str = "", first: int = 0) -> np.ndarray:
    """Return the matrix of a partition, checked and, if asked for, normalised; `part` is never changed.

    Errors name a row by `where` and its number, counted from `first`.
    """
    part = array_to_host(part)
    X = as_matrix(part) if isinstance(part, (np.ndarray, pd.DataFrame)) else to_matrix(part, where)
    if not check_rows(X, normalize, where, first) and normalize:
        given = isinstance(part, pd.DataFrame) or (isinstance(part, np.ndarray) and np.may_share_memory(X, part))
        unit = np.empty_like(X) if given or not X.flags.writeable else X
        unit_rows(as_readonly(X), unit)
        return unit
    return X


def prepare_on_device(home: Backend, part: Any, normalize: bool, where: str = "", first: int = 0) -> Any:
    """Like :func:`prepare_rows`, but the matrix lies in the memory of `home`, which is a GPU only for cuDF columns.

    Rows are checked there. If any is bad, :func:`prepare_rows` gets the column and raises the error.
    """
    X = home.adopt(partial(to_cupy_matrix, part), normalize)
    return home.place(prepare_rows(part, normalize, where, first)) if X is None else X


def name_row(where: str, row: int) -> str:
    """Return how errors name a row: by its number in the partition `where`, or in the whole input."""
    return f"{where}, row {row}" if where else f"row {row}"
