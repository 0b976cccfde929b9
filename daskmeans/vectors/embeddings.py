"""Embeddings in files as a dataframe, for callers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask.dataframe as dd

from daskmeans.runtime.client import client_in_use, n_processes
from daskmeans.vectors.files import Input
from daskmeans.vectors.numbering import FIELD
from daskmeans.vectors.source import open_source


def read_embeddings(
    url: Input | Sequence[Input],
    *,
    id_field: str = "id",
    embedding_field: str | None = None,
    metadata_fields: str | Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    format: str | None = None,
    id_from: str = FIELD,
    on_bad_row: str = "error",
    allow_zero: bool = False,
) -> dd.DataFrame:
    """Read embeddings as a Dask dataframe of ids, vectors and metadata; Arrow-backed, rows in the order of the input.

    Parameters
    ----------
    url : path, URL or list of these
        Files, directories or globs: Parquet, JSON lines (plain, gz, zst) or ``.npy``.
    id_field : str, default "id"
        Column of ids: integers, strings, bytes or decimals. Without a column of this name, and for ``.npy`` files, the
        ids are the numbers of the rows.
    embedding_field : str, optional
        Column of vectors; default: the only one whose values are lists of floats.
    metadata_fields : str or iterable of str
        Further columns to read.
    storage_options : mapping, optional
        Options for fsspec.
    format : {"parquet", "jsonl", "npy"}, optional
        Format of the files; default: what their names show, else their first bytes.
    id_from : {"field", "file-row"}, default "field"
        Take ids from the column `id_field`, or make them of the file and the row, such as ``part-0.parquet:17``.
    on_bad_row : {"error", "skip"}, default "error"
        Raise an error for an invalid row, or skip it.
    allow_zero : bool, default False
        Accept zero vectors.

    Returns
    -------
    dask.dataframe.DataFrame
        The vectors are fixed-size lists of the stored type. With Dask's setting ``dataframe.backend: cudf``, it is a
        dask_cudf dataframe, whose vectors are lists; it refuses the same rows with the same messages.

    Raises
    ------
    UsageError
        The path, a column or an option is invalid.
    DataError
        A file is damaged, or files contradict each other. Raised when the dataframe is computed: a row is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> from upath import UPath
    >>> with UPath("memory://doctest/rows.npy").open("wb") as file:
    ...     np.save(file, np.ones((5, 3), np.float32))
    >>> read_embeddings("memory://doctest").dtypes
    id                                          int64[pyarrow]
    embedding    fixed_size_list<item: float>[3][pyarrow]
    dtype: object
    """
    source = open_source(
        url,
        id_field=id_field,
        embedding_field=embedding_field,
        metadata_fields=metadata_fields,
        storage_options=storage_options,
        format=format,
        id_from=id_from,
        on_bad_row=on_bad_row,
        allow_zero=allow_zero,
        workers=n_processes(client_in_use()),
    )
    return source.frame()
