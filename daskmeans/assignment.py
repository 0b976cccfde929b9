"""Assign: every row gets the nearest centroid of a model and its distances to it."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from daskmeans.errors import UsageError
from daskmeans.kernels.nearest import cosine_distances, nearest, squared_distances
from daskmeans.kmeans.blocks import vector_column
from daskmeans.kmeans.estimator import KMeans
from daskmeans.kmeans.native import tile_rows
from daskmeans.vectors.buckets import CENTROID, COSINE, L2
from daskmeans.vectors.matrix import to_column


def assign(frame: dd.DataFrame, model: KMeans, *, column: str | None = None, dtype: str = "float32") -> dd.DataFrame:
    """Add the nearest centroid and the distances to it to every row, lazily.

    Parameters
    ----------
    frame : dask dataframe
        With a column of vectors; the other columns travel along.
    model : KMeans
        Fitted or loaded; the rows may be ones it has never seen.
    column : str, optional
        Column of the vectors; default: the only one that holds lists of floats.
    dtype : {"float32", "float16"}, default "float32"
        How vectors are stored in the result. Distances are computed before this rounding.

    Returns
    -------
    dask dataframe
        `frame` with its vectors as the model compares them (normalised, unless the model was fitted without), and

        - ``centroid`` int32: the nearest centroid by Euclidean distance, ties to the lower label;
        - ``l2_dist_to_cent`` float32: ‖u − c‖;
        - ``cosine_dist_to_cent`` float32: 1 − u·c / (‖u‖ ‖c‖).

    Raises
    ------
    UsageError
        `column` is missing, or `dtype` is neither of the two.
    DataError
        When computed: a row that cannot be placed, or of another dimension than the model.

    Examples
    --------
    >>> import dask.dataframe as dd, numpy as np, pandas as pd
    >>> km = KMeans(n_clusters=2, max_iter=0, init=np.float32([[1, 0], [0, 1]])).fit(np.eye(2))
    >>> rows = pd.DataFrame({"id": [7], "embedding": to_column(np.float32([[0.0, 3.0]]))})
    >>> assign(dd.from_pandas(rows, npartitions=1), km).compute()[["id", "centroid", "l2_dist_to_cent"]]
       id  centroid  l2_dist_to_cent
    0   7         1              0.0
    """
    if dtype not in ("float32", "float16"):
        raise UsageError(f"unknown dtype {dtype!r}", where="embedding dtype", expected="float32 or float16")
    column = vector_column(frame, column)
    empty = frame._meta.drop(columns=[CENTROID, L2, COSINE], errors="ignore").iloc[:0]
    blank = {column: to_column(np.empty((0, model.n_features_in_), np.float32), dtype), CENTROID: np.empty(0, np.int32)}
    meta = empty.assign(**blank, **{name: np.empty(0, np.float32) for name in (L2, COSINE)})
    return frame.map_partitions(
        _assign, dask.delayed(model, pure=False), column, dtype, meta=meta, token="assign", enforce_metadata=False
    )


def _assign(part: pd.DataFrame, model: KMeans, column: str, dtype: str) -> pd.DataFrame:
    X = model.rows(part[column])
    centroids = model.cluster_centers_
    labels = nearest(X, centroids, tile_rows(len(centroids), model.max_samples_per_batch))
    stored = to_column(X, dtype)
    stored.index = part.index
    return part.assign(
        **{
            column: stored,
            CENTROID: labels,
            L2: np.sqrt(squared_distances(X, centroids, labels)).astype(np.float32),
            COSINE: cosine_distances(X, centroids, labels).astype(np.float32),
        }
    )
