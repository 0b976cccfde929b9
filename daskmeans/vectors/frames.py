"""Dataframes of pandas and of cuDF: all code that differs between the two.

A cuDF dataframe lies on a device. Whatever is not known to work there is done in host memory, on an Arrow-backed pandas
dataframe, and copied back.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import dask
import pandas as pd
import pyarrow as pa

from daskmeans.errors import MissingExtraError, UsageError
from daskmeans.vectors.matrix import is_list, to_fixed_lists, to_matrix


def is_cudf(frame: Any) -> bool:
    """Whether a dataframe or a column belongs to cuDF.

    Examples
    --------
    >>> is_cudf(pd.DataFrame({"id": [1]}))
    False
    """
    return hasattr(type(frame), "to_arrow") and hasattr(type(frame), "iloc")  # polars has no rows by place


def to_table(frame: Any) -> pa.Table:
    """Return the columns of `frame` as a table, without its index."""
    if is_cudf(frame):
        return frame.to_arrow(preserve_index=False)
    return _from_pandas(pa.Table, frame)


def _from_pandas(kind: Any, frame: pd.DataFrame) -> Any:
    """Return `frame` as a table, or its schema, whichever `kind` is; raise UsageError for objects of several types."""
    try:
        return kind.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, OverflowError) as error:
        raise UsageError(
            f"a column holds objects of several types ({'; '.join(map(str, error.args))})",
            expected="one type in each column",
            remedy='for vectors: X[column] = [numpy.asarray(v, "float32") for v in X[column]]',
        ) from None


def frame_schema(frame: Any) -> pa.Schema:
    """Return the schema of `frame`; types of Python objects are inferred from the rows."""
    if is_cudf(frame):
        return to_table(frame.iloc[:0]).schema
    return _from_pandas(pa.Schema, frame)  # type: ignore[no-any-return]


def frame_to_host(frame: Any) -> pd.DataFrame:
    """Return `frame` in host memory, Arrow-backed; a pandas dataframe is returned unchanged."""
    if not is_cudf(frame):
        return frame
    made = to_table(frame).to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    made.index = frame.index.to_pandas()
    return made


def frame_to_device(frame: pd.DataFrame) -> Any:
    """Return `frame` as a cuDF dataframe, with its index."""
    made = to_cudf(to_table(frame))
    made.index = frame.index
    return made


def match_kind(frame: Any, made: pd.DataFrame) -> Any:
    """Return `made` as a dataframe of the same kind as `frame`."""
    return frame_to_device(made) if is_cudf(frame) else made


def to_cudf(table: pa.Table) -> Any:
    """Return a cuDF dataframe with the columns of `table`.

    cuDF has neither fixed-size lists nor float16: they become lists and float32.
    """
    import cudf

    return cudf.DataFrame.from_arrow(table.cast(cudf_schema(table.schema)))


def is_cudf_wanted() -> bool:
    """Whether Dask is configured to create cuDF dataframes."""
    return dask.config.get("dataframe.backend", "pandas") == "cudf"


def make_empty_cudf(table: pa.Table) -> Any:
    """Return the cuDF dataframe of `table`, which has no rows.

    Raises
    ------
    MissingExtraError
        cuDF is not installed.
    UsageError
        cuDF has no device here, or does not support a column.
    """
    if find_spec("cudf") is None:
        raise MissingExtraError("cudf", "gpu")
    try:
        return to_cudf(table)
    except (RuntimeError, TypeError, ValueError) as error:  # from CUDA, cuDF or Arrow
        raise UsageError(
            f"cuDF cannot create a dataframe with the columns {', '.join(table.column_names)} ({error})",
            where="Dask's setting dataframe.backend",
            expected="a device in this process too, and columns of types that cuDF supports",
            remedy="set DASK_DATAFRAME__BACKEND=pandas, or leave the metadata out",
        ) from error


def cudf_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema that `schema` becomes in cuDF.

    Examples
    --------
    >>> cudf_schema(pa.schema({"id": pa.int64(), "v": pa.list_(pa.float16(), 2)})).types
    [DataType(int64), ListType(list<item: float>)]
    """
    return pa.schema([(field.name, _cudf_type(field.type)) for field in schema])


def _cudf_type(type_: pa.DataType) -> pa.DataType:
    if is_list(type_):
        return pa.list_(_cudf_type(type_.value_type))
    return pa.float32() if pa.types.is_float16(type_) else type_


def with_fixed_lists(table: pa.Table, column: str) -> pa.Table:
    """Return `table` with the vectors of `column` as fixed-size lists, as in files.

    Raises
    ------
    DataError
        A vector or an element is null, or a length differs.

    Examples
    --------
    >>> table = pa.table({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))})
    >>> str(with_fixed_lists(table, "v").schema.field("v").type)
    'fixed_size_list<item: float>[2]'
    """
    vectors = table[column]
    if pa.types.is_fixed_size_list(vectors.type):
        return table
    X = to_matrix(vectors, f"column {column!r}")
    made = to_fixed_lists(pa.array(X.reshape(-1)), X.shape[1], len(X))
    return table.set_column(table.column_names.index(column), column, made)


def to_cupy_matrix(column: Any) -> Any:
    """Return the elements of a cuDF column as a CuPy matrix, shape (n, d), without a copy.

    None if that is impossible: a vector or an element is null, lengths differ, or the elements are not numbers.
    """
    lists = getattr(column, "list", None)
    if lists is None or not len(column) or column.null_count:
        return None
    lengths, elements = lists.len().values, lists.leaves
    d = int(lengths[0])
    alike = d > 0 and bool((lengths == d).all()) and len(elements) == d * len(column)
    if not alike or elements.null_count or getattr(elements.dtype, "kind", "") not in "fiu":
        return None
    return elements.values.reshape(-1, d)


def to_cudf_column(X: Any, index: Any) -> Any:
    """Return a cuDF column of the rows of a CuPy matrix (C-contiguous), without a copy."""
    import cudf
    import pylibcudf

    return cudf.Series.from_pylibcudf(pylibcudf.Column.from_cuda_array_interface(X), metadata={"index": index})
