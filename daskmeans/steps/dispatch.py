"""The public `fit` and `assign`, which take files or rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed import Client
from upath import UPath

from daskmeans.errors import UsageError
from daskmeans.kmeans.assign import assign as assign_rows
from daskmeans.kmeans.centroid_index import TARGET_RECALL, Index
from daskmeans.kmeans.estimator import KMeans
from daskmeans.steps.assign import assign_files
from daskmeans.steps.fit import fit as fit_files
from daskmeans.steps.settings import Storing
from daskmeans.vectors.files import Input
from daskmeans.vectors.options import DEFAULTS, ReadOptions


def fit(
    inputs: Any,
    model: KMeans,
    out: str | UPath | None = None,
    reading: ReadOptions = DEFAULTS,
    *,
    column: str | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> KMeans:
    """Fit `model` on files of embeddings, and write it into the directory `out`; or fit it on rows in memory.

    An interrupted fit on files resumes from its last checkpoint when it is called again. Its result is bitwise
    identical to that of an uninterrupted fit.

    Parameters
    ----------
    inputs : path, list of paths, array, dataframe or column of vectors
        Files, directories or globs: Parquet, JSONL or ``.npy``. Or rows, as :meth:`KMeans.fit` takes them.
    model : KMeans
    out : path, optional
        Directory to write the model into; required for files, refused for rows in memory.
    reading : ReadOptions, optional
        How files are read.
    column : str, optional
        Column of a dataframe that holds the vectors; default: the only one that does.
    overwrite : bool, default False
        Replace a finished output, or an unfinished one with other settings or another input. An unfinished fit with the
        same settings and input resumes.
    client : distributed.Client, optional
        Where to run. Default: the current client, else this process.

    Returns
    -------
    KMeans
        `model`, fitted; its parameters are unchanged.

    Raises
    ------
    UsageError
        A parameter is out of its range, or an argument does not apply to such an input.
    DataError
        A row cannot be used.
    MemoryForecastError
        The rows do not fit into memory.
    OutputError
        Among others: `out` holds an unfinished fit with other settings or on another input.

    Examples
    --------
    >>> import numpy as np
    >>> km = fit(np.float32([[1, 0], [0.9, 0.1], [0, 1]]), KMeans(n_clusters=2))
    >>> km.cluster_centers_.shape
    (2, 2)
    """
    if not _are_paths(inputs):
        _refuse("rows in memory", out=out, reading=None if reading is DEFAULTS else reading, overwrite=overwrite)
        return model.fit(inputs, column=column, client=client)
    _refuse("files", column=column)
    return fit_files(inputs, _require_out(out), model, reading, overwrite=overwrite, client=client)


def assign(
    inputs: Any,
    model: KMeans | Input,
    out: str | UPath | None = None,
    reading: ReadOptions = DEFAULTS,
    *,
    column: str | None = None,
    dtype: str = "float32",
    assign: str | Index = "exact",
    assign_recall: float = TARGET_RECALL,
    layout: str = "bucketed",
    overwrite: bool = False,
    client: Client | None = None,
) -> Any:
    """Give every row the nearest centroid of `model` and the distances to it.

    Parameters
    ----------
    inputs : dataframe of dask, pandas, Arrow or polars, path or list of paths
        A dataframe with a column of vectors; its other columns are kept. Or files, directories or globs.
    model : KMeans or path
        For rows in memory, a fitted model or the directory of one; for files, the directory.
    out : path, optional
        Directory to write the clusters into; required for files, refused for rows in memory.
    reading : ReadOptions, optional
        How files are read.
    column : str, optional
        Column of a dataframe that holds the vectors; default: the only one that does.
    dtype : {"float32", "float16"}, default "float32"
        How vectors are stored in the result. Distances are computed before this rounding. cuDF has no float16.
    assign : {"exact", "ann"} or Index, default "exact"
        "ann" searches an index over the centroids, which pays off for very many of them; the share of labels that are
        exact is measured. An index from :meth:`KMeans.build_index` can be given for rows in memory only.
    assign_recall : float, default 0.99
        For files: the share of exact labels that an index aims at.
    layout : {"bucketed", "hive"}, default "bucketed"
        For files: few files that hold many clusters each, or one directory per cluster.
    overwrite : bool, default False
        For files: replace a finished output.
    client : distributed.Client, optional
        For files: where to run.

    Returns
    -------
    dataframe of dask or pandas
        For rows in memory: `inputs`, of pandas if they are of Arrow or polars, with vectors as the model compares them
        and the columns ``centroid`` (int32), ``l2_dist_to_cent`` and ``cosine_dist_to_cent`` (float32). Lazy for dask.
    Buckets
        For files: the content of `out`, for :func:`daskmeans.dedup`.

    Raises
    ------
    UsageError
        An argument is unknown, or does not apply to such an input.
    DataError
        A row cannot be assigned, or has another dimension than the model; an id occurs twice in the files.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> km = KMeans(n_clusters=2, max_iter=0, init=np.float32([[1, 0], [0, 1]])).fit(np.eye(2))
    >>> rows = pd.DataFrame({"id": [7], "embedding": [np.float32([0.0, 3.0])]})
    >>> assign(rows, km)[["id", "centroid", "l2_dist_to_cent"]]
       id  centroid  l2_dist_to_cent
    0   7         1              0.0
    """
    if not _are_paths(inputs):
        given = {"out": out, "reading": None if reading is DEFAULTS else reading, "overwrite": overwrite}
        _refuse("rows in memory", **given, client=client, layout=None if layout == "bucketed" else layout)
        fitted = KMeans.load(model) if isinstance(model, Input) else model
        return assign_rows(inputs, fitted, column=column, dtype=dtype, assign=assign)
    _refuse("files", column=column)
    if isinstance(model, KMeans):
        raise UsageError(
            "files are assigned to a model on disk, not to one in memory",
            expected="the directory of a model",
            remedy="save the model, and give its path",
        )
    if not isinstance(assign, str):
        raise UsageError("an index is for rows in memory", where="assign", expected="'exact' or 'ann'")
    storing = Storing(layout, dtype, assign, assign_recall)
    return assign_files(inputs, model, _require_out(out), reading, storing, overwrite=overwrite, client=client)


def _are_paths(inputs: Any) -> bool:
    """Whether `inputs` are files, and not rows in memory."""
    several = isinstance(inputs, Sequence) and len(inputs) > 0 and all(isinstance(each, Input) for each in inputs)
    return isinstance(inputs, Input) or several


def _refuse(inputs: str, **given: Any) -> None:
    """Refuse arguments that do nothing for such `inputs`; one that is None or False was not given."""
    if idle := [name for name, value in given.items() if value is not None and value is not False]:
        raise UsageError("it does nothing here", where=idle[0], expected=f"no such argument with {inputs}")


def _require_out(out: str | UPath | None) -> str | UPath:
    if out is None:
        raise UsageError("no directory for the output is given", where="out", expected="a path, as the input is files")
    return out
