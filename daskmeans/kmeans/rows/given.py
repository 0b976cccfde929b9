"""Rows as callers give them: all that can hold vectors becomes an array, a column or a dataframe; the rest is refused.

Other libraries are recognised by their protocols, so that none of them is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa

from daskmeans.errors import UsageError
from daskmeans.kmeans.rows.refusals import (
    array_error,
    check_column,
    conversion_of,
    describe_type,
    refusal,
    refuse_masked,
    shape_error,
    sparse_error,
)
from daskmeans.vectors.frames import frame_to_host, is_cudf
from daskmeans.vectors.matrix import is_list, to_storage


def is_lazy(X: Any) -> bool:
    """Whether `X` is a dask collection of rows."""
    return isinstance(X, (dd.DataFrame, dd.Series, da.Array))


def open_rows(X: Any, column: Any = None) -> Any:
    """Return `X` as a numpy or cupy array, a column or a dataframe of pandas, or a dask collection of these.

    Parameters
    ----------
    X : array, tensor, dataframe or column
        Of numpy, dask, pandas, cuDF, cupy, or a library that speaks one of the protocols of Arrow, numpy or DLPack.
    column : str, optional
        Column of a dataframe.

    Raises
    ------
    UsageError
        `X` cannot hold vectors; the message says what to type. Or `column` cannot name a column, or `X` has none.
    """
    if dask.is_dask_collection(X):
        opened = _open_lazy(X)
    elif isinstance(X, (pd.DataFrame, pd.Series)) or is_cudf(X):
        opened = frame_to_host(X) if hasattr(X, "columns") else _open_column(X)
    elif _is_arrow(X):
        opened = open_arrow(X)
    else:
        opened = _open_array(X)
    check_column(opened, column)
    return _convert_objects(opened) if isinstance(opened, pd.DataFrame) and column is None else opened


def open_frame(X: Any) -> Any:
    """Return `X`, a dataframe of any kind, as one of pandas, cuDF or dask.

    Raises
    ------
    UsageError
    """
    if isinstance(X, (dd.DataFrame, pd.DataFrame)) or (is_cudf(X) and hasattr(X, "columns")):
        return X
    if _is_arrow(X) and isinstance(opened := open_arrow(X), pd.DataFrame):
        return opened
    raise UsageError(
        f"{describe_type(X)} is no dataframe",
        expected="a dataframe of dask, pandas, Arrow or polars, with a column of vectors",
        remedy="read_embeddings(path)"
        if isinstance(X, (str, os.PathLike))
        else conversion_of(X) or 'pandas.DataFrame({"id": range(len(X)), "embedding": list(X)})',
    )


def to_numbers(values: np.ndarray) -> np.ndarray:
    """Return an array of Python objects as one of numbers, of the same shape; None and NA become NaN.

    Raises
    ------
    UsageError

    Examples
    --------
    >>> to_numbers(np.array([[1, None], [2.5, 3]], object))
    array([[1. , nan],
           [2.5, 3. ]])
    """
    try:
        found = pa.array(values.ravel(), from_pandas=True)
        if _is_number(found.type):
            whole = not found.null_count and not pa.types.is_decimal(found.type)
            numbers = found if whole else found.cast("float64", safe=False)
            return numbers.to_numpy(zero_copy_only=False).reshape(values.shape)  # type: ignore[no-any-return]
        reason = str(found.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        reason = str(error)
    raise UsageError(f"the array holds Python objects that are no numbers ({reason})", expected="numbers")


def _is_number(type_: pa.DataType) -> bool:
    kinds = ("integer", "floating", "boolean", "decimal", "null")
    return any(getattr(pa.types, f"is_{kind}")(type_) for kind in kinds)


def _is_arrow(X: Any) -> bool:
    streams = hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__")
    return streams and not hasattr(X, "dims")  # those of xarray have a row for each element


def open_arrow(X: Any) -> pd.DataFrame | pd.Series:
    """Return a table or a column of Arrow, polars or any library with Arrow's C interface, Arrow-backed, not copied."""
    if isinstance(X, pa.RecordBatchReader):  # it can be read once, but is for several passes
        raise refusal(X)
    found = pa.chunked_array(X) if hasattr(X, "__arrow_c_stream__") else pa.chunked_array([pa.array(X)])
    if not pa.types.is_struct(found.type):
        return _open_column(pd.Series(pd.arrays.ArrowExtensionArray(found)))
    table = pa.Table.from_struct_array(found)
    columns = {i: pd.arrays.ArrowExtensionArray(to_storage(column)) for i, column in enumerate(table.columns)}
    return pd.DataFrame(columns).set_axis(table.column_names, axis=1)


def _open_column(X: Any) -> pd.Series:
    """Return a column of vectors, Arrow-backed."""
    try:
        found = X.to_arrow() if is_cudf(X) else pa.array(X, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"the column cannot be read as vectors ({error})",
            expected="lists or 1D arrays of numbers, one a row",
            remedy="numpy.stack(X)",
        ) from None
    found = to_storage(found)
    if len(found) and not is_list(found.type):
        raise UsageError(
            f"Expected 2D array, got 1D array instead: the column is {found.type}",
            expected="a column of vectors, or several columns of numbers",
            remedy="Reshape your data: X.to_numpy().reshape(-1, 1) for vectors of one number"
            if _is_number(found.type)
            else "",
        )
    return pd.Series(
        pd.arrays.ArrowExtensionArray(found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found]))
    )


def _convert_objects(X: pd.DataFrame) -> pd.DataFrame:
    """Return `X` with numbers in place of Python objects, if all that it holds is numbers."""
    objects = [i for i, type_ in enumerate(X.dtypes) if type_ == np.dtype(object)]
    if not len(X) or not all(i in objects or pd.api.types.is_numeric_dtype(type_) for i, type_ in enumerate(X.dtypes)):
        return X
    made = X.copy(deep=False) if objects else X
    try:
        for i in objects:
            made.isetitem(i, to_numbers(X.iloc[:, i].to_numpy()))
    except UsageError:  # then it has columns of another kind, such as vectors
        return X
    return made


def _open_lazy(X: Any) -> Any:
    data = getattr(X, "data", None)
    if isinstance(data, da.Array):  # as xarray holds it
        X = data
    if not is_lazy(X):
        raise refusal(X)
    if isinstance(X, dd.Series) and pd.api.types.is_numeric_dtype(X.dtype):
        raise UsageError(
            f"the dask Series holds one number a row ({X.dtype})",
            expected="a column of vectors, or several columns of numbers",
            remedy="X.to_frame() for vectors of one number",
        )
    if isinstance(X, da.Array):
        _check_chunks(X)
    return X


def _check_chunks(X: da.Array) -> None:
    if X.ndim != 2:
        raise shape_error(X.ndim)
    refuse_masked(X._meta)
    if is_sparse(X._meta):
        raise UsageError(
            "the dask array has sparse chunks",
            expected="dense chunks",
            remedy="X.map_blocks(lambda chunk: chunk.toarray())",
        )


def is_sparse(X: Any) -> bool:
    """Whether `X` is a sparse matrix: of scipy, cupy, PyData or torch."""
    return (
        hasattr(X, "toarray")
        or hasattr(X, "todense")
        or any(getattr(X, name, False) is True for name in ("is_sparse", "is_sparse_csr"))
    )


def _open_array(X: Any) -> Any:
    """Return `X` as an array of numpy or cupy."""
    if is_sparse(X):
        raise sparse_error(X)
    if isinstance(X, (str, bytes, os.PathLike, Mapping, Iterator, set, frozenset)):
        raise refusal(X)
    for part in [X, *(X if isinstance(X, (list, tuple)) else ())]:
        refuse_masked(part)
    if hasattr(X, "detach") and hasattr(X, "numpy"):
        return _open_tensor(X)
    if hasattr(X, "__cuda_array_interface__"):
        return X
    try:
        array = np.from_dlpack(X) if hasattr(X, "__dlpack__") and not hasattr(X, "__array__") else np.asarray(X)
    except Exception as error:  # whatever another library raises
        raise array_error(X, error) from None
    if array.dtype == object and array.ndim == 0:
        raise refusal(X)
    if array.dtype == object:
        return to_numbers(array) if array.ndim > 1 else _open_column(pd.Series(array))
    extended = array.dtype.kind == "V" and np.can_cast(array.dtype, np.float32)  # bfloat16, as JAX has it
    return array.astype(np.float32) if extended else array


def _open_tensor(X: Any) -> np.ndarray:
    """Return a tensor of PyTorch as an array; numpy has no bfloat16, which float32 holds exactly."""
    X = X.detach().cpu()
    try:
        return np.asarray(X.numpy())
    except TypeError:
        return np.asarray(X.float().numpy())
