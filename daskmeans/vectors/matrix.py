"""Conversion between columns of vectors and matrices, without an object per row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from daskmeans.errors import DataError


def is_list(type_: pa.DataType) -> bool:
    """Whether `type_` is a list, large_list or fixed_size_list."""
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def is_untyped(type_: pa.DataType) -> bool:
    """Whether `type_` is that of a column without values, or of lists without elements.

    Examples
    --------
    >>> is_untyped(pa.null()), is_untyped(pa.list_(pa.null())), is_untyped(pa.list_(pa.float32()))
    (True, True, False)
    """
    return pa.types.is_null(type_) or (is_list(type_) and is_untyped(type_.value_type))


def to_storage(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return `array`; one of tensors, which is an extension of Arrow, as the lists that store it, without a copy.

    Examples
    --------
    >>> tensors = pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)).cast(pa.fixed_shape_tensor(pa.float32(), [2]))
    >>> str(to_storage(tensors).type)
    'fixed_size_list<item: float>[2]'
    """
    if not isinstance(array.type, pa.BaseExtensionType):
        return array
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([chunk.storage for chunk in array.chunks], array.type.storage_type)
    return array.storage


def vector_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns of `schema` whose values are lists of floating-point numbers.

    Examples
    --------
    >>> vector_columns(pa.schema({"id": pa.int64(), "embedding": pa.list_(pa.float32(), 3)}))
    ['embedding']
    """
    stored = {field.name: getattr(field.type, "storage_type", field.type) for field in schema}
    return [name for name, type_ in stored.items() if is_list(type_) and pa.types.is_floating(type_.value_type)]


def to_matrix(column: pd.Series | pa.Array | pa.ChunkedArray, where: str = "") -> np.ndarray:
    """Convert a column of vectors to a matrix.

    Parameters
    ----------
    column : pandas.Series, pyarrow.Array or pyarrow.ChunkedArray
        Lists, large lists or fixed-size lists of numbers, all of the same length.
    where : str, optional
        Name of the column's place, for messages.

    Returns
    -------
    ndarray of float32, shape (n, d), C-contiguous
        A read-only view where the column holds float32 in one piece, a copy otherwise. A column of no rows has d = 0,
        unless its type says otherwise.

    Raises
    ------
    DataError
        A vector or an element is null, a length differs, or the column does not hold lists of numbers.

    Examples
    --------
    >>> to_matrix(pa.array([[1, 2], [3, 4]]))
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    array = to_storage(_to_arrow(column, where) if isinstance(column, pd.Series) else column)
    chunks = [chunk for chunk in array.chunks if len(chunk)] if isinstance(array, pa.ChunkedArray) else [array]
    if len(array) == 0:  # without values, pandas knows no type
        return np.empty((0, max(0, getattr(array.type, "list_size", 0))), np.float32)
    if not is_list(array.type) or not _is_number(array.type.value_type):
        raise DataError(f"the column is {array.type}", where=where, expected="a column of lists of numbers")
    dimension = _first_length(chunks[0])
    blocks, first = [], 0
    for chunk in chunks:
        blocks.append(_dense_elements(chunk, dimension, first, where))
        first += len(chunk)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the reader refuses
        if len(blocks) == 1:
            return np.ascontiguousarray(blocks[0], np.float32)
        out = np.empty((len(array), dimension), np.float32)
        return np.concatenate(blocks, out=out, casting="unsafe")


def to_column(X: np.ndarray, dtype: str = "float32") -> pd.Series:
    """Convert the rows of a matrix to an Arrow-backed column.

    Parameters
    ----------
    X : ndarray, shape (n, d)
    dtype : {"float32", "float16"}, default "float32"
        Type of the elements as stored.

    Returns
    -------
    pandas.Series
        Of dtype ``ArrowDtype(fixed_size_list)``; float32 rows are not copied.

    Examples
    --------
    >>> to_column(np.eye(2)).dtype
    fixed_size_list<item: float>[2][pyarrow]
    """
    values = pa.array(np.ascontiguousarray(X, dtype).reshape(-1))
    column = to_fixed_lists(values, X.shape[1], X.shape[0])
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([column])))


def to_fixed_lists(values: pa.Array, dimension: int, rows: int) -> pa.FixedSizeListArray:
    """Return `values` as `rows` lists of `dimension` elements each, without a copy."""
    type_ = pa.list_(values.type, dimension)
    return pa.Array.from_buffers(type_, rows, [None], children=[values])


def list_lengths(vectors: pa.Array) -> np.ndarray:
    """Return the length of each list of `vectors`; 0 for a null. Shape (n,), integers."""
    return pc.list_value_length(vectors).fill_null(0).to_numpy(zero_copy_only=False)


def null_mask(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return whether each value of `array` is null. Shape (n,), bool."""
    return array.is_null().to_numpy(zero_copy_only=False) if isinstance(array, pa.Array) else array.is_null().to_numpy()


def _to_arrow(column: pd.Series, where: str) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(column)
    except (pa.ArrowException, TypeError, ValueError) as error:
        found = f"the column's values are of several types, or of one that Arrow does not know ({error})"
        raise DataError(found, where=where, expected="lists or 1D arrays of numbers") from None


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_) or pa.types.is_integer(type_)


def _first_length(vectors: pa.Array) -> int:
    if pa.types.is_fixed_size_list(vectors.type):
        return int(vectors.type.list_size)
    return int(list_lengths(vectors.slice(0, 1))[0])


def _dense_elements(vectors: pa.Array, dimension: int, first: int, where: str) -> np.ndarray:
    """Return the elements of `vectors`, shape (n, dimension), in their own type; `first` numbers the first row."""

    def refuse(mask: np.ndarray, found: str) -> None:
        if mask.any():
            row = f"row {first + int(mask.argmax())}"
            place = f"{where}, {row}" if where else row
            raise DataError(found, where=place, expected=f"{dimension} numbers in every row")

    refuse(null_mask(vectors), "the vector is null")
    if not pa.types.is_fixed_size_list(vectors.type):
        refuse(list_lengths(vectors) != dimension, "the vector has another length than the first")
    elements = vectors.flatten()
    if elements.null_count:
        refuse(np.any(null_mask(elements).reshape(-1, dimension), axis=1), "an element of the vector is null")
    return elements.to_numpy(zero_copy_only=False).reshape(len(vectors), dimension)
