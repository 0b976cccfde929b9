"""Assignment: every row gets the nearest centroid of a model and its distances to that centroid."""

from __future__ import annotations

from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from daskmeans.buckets.buckets import CENTROID, COSINE, L2
from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.backend import CPU, Gpu
from daskmeans.kmeans.centroid_index import Index
from daskmeans.kmeans.estimator import KMeans
from daskmeans.kmeans.memory import check_compare
from daskmeans.kmeans.rows.given import open_frame
from daskmeans.kmeans.rows.inputs import vector_column
from daskmeans.kmeans.rows.refusals import check_column
from daskmeans.runtime import gpus
from daskmeans.vectors.frames import frame_to_host, is_cudf, match_kind, to_cudf_column
from daskmeans.vectors.matrix import to_column, to_matrix


def assign(
    frame: Any,
    model: KMeans,
    *,
    column: str | None = None,
    dtype: str = "float32",
    assign: str | Index = "exact",
) -> dd.DataFrame | pd.DataFrame:
    """Add the nearest centroid and the distances to it to every row; lazily for a dask dataframe.

    Parameters
    ----------
    frame : dataframe of dask, pandas, Arrow or polars
        With a column of vectors; the other columns are kept. The partitions of a dask dataframe are pandas or cuDF, and
        those of the result are the same.
    model : KMeans
        Fitted or loaded. The rows need not be those it was fitted on.
    column : str, optional
        Column that holds the vectors; default: the only one that holds lists of floats.
    dtype : {"float32", "float16"}, default "float32"
        Type of the stored vectors. Distances are computed before this rounding. cuDF has no float16.
    assign : {"exact", "ann"} or Index, default "exact"
        As in :meth:`KMeans.predict`; "ann" reads some rows immediately. Distances are always exact; they are those to
        the assigned centroid.

    Returns
    -------
    dataframe of dask or pandas
        `frame`, of pandas if it is of Arrow or polars, with its vectors as the model compares them (normalised, unless
        the model is fitted without), and

        - ``centroid`` int32: the nearest centroid by Euclidean distance, ties to the lower label (with an index: nearly
          always);
        - ``l2_dist_to_cent`` float32: ‖u − c‖;
        - ``cosine_dist_to_cent`` float32: 1 − u·c / (‖u‖ ‖c‖).

    Raises
    ------
    UsageError
        `column` is missing, `frame` already has a column with one of these names, or `dtype` is neither of the two, or
        float16 for a cuDF frame.
    DataError
        When computed: a row cannot be placed, or its dimension differs from the model's.

    Examples
    --------
    >>> import dask.dataframe as dd, numpy as np, pandas as pd
    >>> km = KMeans(n_clusters=2, max_iter=0, init=np.float32([[1, 0], [0, 1]])).fit(np.eye(2))
    >>> rows = pd.DataFrame({"id": [7], "embedding": to_column(np.float32([[0.0, 3.0]]))})
    >>> assign(dd.from_pandas(rows, npartitions=1), km).compute()[["id", "centroid", "l2_dist_to_cent"]]
       id  centroid  l2_dist_to_cent
    0   7         1              0.0
    """
    frame = open_frame(frame)
    if not isinstance(model, KMeans):
        raise UsageError(
            f"assign was given {type(model).__name__} as its model",
            expected="a fitted KMeans",
            remedy="KMeans.load(path)",
        )
    if not isinstance(dtype, str) or dtype not in ("float32", "float16"):
        raise UsageError(f"unknown dtype {dtype!r}", where="embedding dtype", expected="float32 or float16")
    if dtype == "float16" and isinstance(frame, dd.DataFrame) and is_cudf(frame._meta):
        raise UsageError(
            "cuDF has no float16",
            where="embedding dtype",
            expected="float32 for a dataframe of cuDF",
            remedy='pass frame.to_backend("pandas"), or store float32 (--embedding-dtype float32)',
        )
    check_column(frame, column)
    column = vector_column(frame, column)
    refuse_reserved_columns(list(frame.columns))
    index = model.index_for(frame, assign, column=column)
    if isinstance(frame, pd.DataFrame):
        return _assign_partition(frame, model.placer(), index, column, dtype)  # type: ignore[no-any-return]
    empty = frame_to_host(frame._meta.iloc[:0])
    blank = {column: to_column(np.empty((0, model.n_features_in_), np.float32), dtype), CENTROID: np.empty(0, np.int32)}
    meta = match_kind(frame._meta, empty.assign(**blank, **{name: np.empty(0, np.float32) for name in (L2, COSINE)}))
    return frame.map_partitions(
        _assign_partition,
        dask.delayed(model.placer(), pure=False),
        dask.delayed(index, pure=False),
        column,
        dtype,
        meta=meta,
        token="assign",
        enforce_metadata=False,
    )


def refuse_reserved_columns(columns: list[str]) -> None:
    """Raise UsageError if one of `columns` has the name of a column that :func:`assign` adds."""
    if taken := [name for name in (CENTROID, L2, COSINE) if name in columns]:
        raise UsageError(
            f"the input has a column {taken[0]!r} already, which assigning adds",
            expected=f"other names than {CENTROID}, {L2}, {COSINE}",
            remedy="drop the column or give it another name",
        )


def _assign_partition(part: Any, model: KMeans, index: Index | None, column: str, dtype: str) -> Any:
    backend, centroids = CPU if index is not None else gpus.backend(), model.cluster_centers_
    check_compare(len(part), len(centroids), centroids.shape[1], backend.memory())
    if is_cudf(part):
        if isinstance(backend, Gpu) and len(part):
            return _assign_on_device(backend, part, model, column)
        return match_kind(part, _assign_partition(frame_to_host(part), model, index, column, dtype))
    X = model.rows(part[column])
    if index is not None:
        labels = index.nearest(X, centroids)
        squares = CPU.squared_distances(X, centroids, labels)
    else:
        labels, squares = backend.nearest(X, centroids)
    with np.errstate(over="ignore"):
        stored = to_column(X, dtype)
    if dtype == "float16" and not model.normalize:
        _check_float16(X, to_matrix(stored))
    stored.index = part.index
    return part.assign(
        **{
            column: stored,
            CENTROID: labels,
            L2: np.sqrt(squares).astype(np.float32),
            COSINE: CPU.cosine_distances(X, centroids, labels).astype(np.float32),
        }
    )


def _assign_on_device(home: Gpu, part: Any, model: KMeans, column: str) -> Any:
    """Like :func:`_assign_partition`, for a cuDF frame, whose vectors do not leave the device."""
    with home.turn():
        X, centroids = model.rows(part[column], home=home), model.cluster_centers_
        labels, squares = home.nearest(X, centroids)
        cosines = home.cosine_distances(X, centroids, labels)
        return part.assign(
            **{
                column: to_cudf_column(X, part.index),
                CENTROID: labels,
                L2: np.sqrt(squares).astype(np.float32),
                COSINE: cosines.astype(np.float32),
            }
        )


def _check_float16(X: np.ndarray, stored: np.ndarray) -> None:
    """Raise DataError for a vector that float16 turns into zeros or infinity."""
    lost = ~np.isfinite(stored).all(axis=1) | (X.any(axis=1) & ~stored.any(axis=1))
    if lost.any():
        raise DataError(
            "the vector's numbers are too large or too small for float16",
            where=f"row {int(lost.argmax())} of a partition",
            expected="numbers between 6e-8 and 65504",
            remedy="store float32 (--embedding-dtype float32), or normalise the vectors",
        )
