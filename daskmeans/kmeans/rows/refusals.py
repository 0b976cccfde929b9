"""What cannot be used as rows: messages that say what was given, and what to type."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from dask.delayed import Delayed

from daskmeans.errors import UsageError

EXPECTED = "an array of shape (rows, dimensions), a dataframe, or a column of vectors"
# What to type to get rows from an object of one of these types, or else from one that has this attribute; the first
# that fits counts.
REMEDIES: dict[Any, str] = {
    (str, os.PathLike): "daskmeans.fit(path, model, out), or daskmeans.read_embeddings(path)",
    bytes: "numpy.frombuffer(X, dtype).reshape(rows, -1)",
    (set, frozenset): "numpy.array(list(X))",
    Delayed: "dask.array.from_delayed(X, shape, dtype)",
    dict: "pandas.DataFrame(X)",
}
CONVERSIONS = {
    "data_vars": "X[name], one of the variables",
    "toarray": "X.toarray(), which is dense",
    "todense": "X.todense()",
    "to_dense": "X.to_dense()",
    "collect": "X.collect()",
    "to_dataframe": "X.to_dataframe()",
    "read_all": "X.read_all()",
    "to_table": "X.to_table()",
    "to_pandas": "X.to_pandas()",
    "result": "X.result()",
    "compute": "X.compute(), or a dask array or dataframe of it",
}


def check_column(X: Any, column: Any) -> None:
    """Raise UsageError if `column` cannot name a column, or if `X` has none."""
    if column is None:
        return
    if not isinstance(column, Hashable):
        raise UsageError(f"column={column!r}", expected="the name of one column")
    if not hasattr(X, "columns"):
        raise UsageError(
            f"column={column!r} was given with {type(X).__name__}, which has no columns",
            expected="a dataframe",
            remedy="leave column out",
        )


def refuse_masked(X: Any, where: str = "") -> None:
    """Raise UsageError for a masked array: the values under its mask would be used as numbers."""
    if isinstance(X, np.ma.MaskedArray):
        raise UsageError(
            "the array is masked",
            where=where,
            expected="an array without a mask",
            remedy="leave masked rows out (np.ma.compress_rows), or fill them in (X.filled)",
        )


def check_matrix(X: np.ndarray) -> None:
    """Raise UsageError if `X` is not a matrix of numbers with at least one column."""
    if X.dtype.names:
        raise UsageError(
            f"the array is structured ({', '.join(X.dtype.names)})",
            expected=EXPECTED,
            remedy="numpy.lib.recfunctions.structured_to_unstructured(X)",
        )
    if X.ndim != 2:
        raise shape_error(X.ndim)
    if X.dtype.kind not in "fiub":
        complex_ = "Complex data not supported: " if X.dtype.kind == "c" else ""
        raise UsageError(f"{complex_}the array holds {X.dtype}", expected="real numbers")
    if X.shape[1] == 0:
        raise UsageError(f"Found array with 0 feature(s) (shape={X.shape}) while a minimum of 1 is required for a row")


def shape_error(dimensions: int) -> UsageError:
    one = "X.reshape(1, -1) for a single vector, X.reshape(-1, 1) for vectors of one number"
    ways = "X.reshape(len(X), -1)" if dimensions > 2 else one
    return UsageError(
        f"Expected 2D array, got {dimensions}D array instead",
        expected="2 dimensions: each row a vector",
        remedy=f"Reshape your data: {ways}" if dimensions else "",
    )


def array_error(X: Any, error: Exception) -> UsageError:
    if isinstance(X, (list, tuple)):
        lengths = [len(row) if hasattr(row, "__len__") else 0 for row in X]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
        if other is not None:
            return UsageError(f"row {other} has {lengths[other]} elements", expected=f"{lengths[0]}, as row 0 has")
    return UsageError(
        f"{describe_type(X)} does not become an array ({error})", expected=EXPECTED, remedy=conversion_of(X)
    )


def sparse_error(X: Any) -> UsageError:
    return UsageError(f"sparse input is not supported ({describe_type(X)})", expected=EXPECTED, remedy=conversion_of(X))


def refusal(X: Any) -> UsageError:
    return UsageError(f"{describe_type(X)} is no array of rows", expected=EXPECTED, remedy=conversion_of(X))


def describe_type(X: Any) -> str:
    """Describe what `X` is.

    Examples
    --------
    >>> describe_type([1]), describe_type(np.eye(2)), describe_type(dict)
    ('X of type list', 'X of type ndarray (numpy)', 'the class dict')
    """
    type_ = X if isinstance(X, type) else type(X)
    package = type_.__module__.partition(".")[0]
    name = f"the class {type_.__name__}" if X is type_ else f"X of type {type_.__name__}"
    return name if package == "builtins" else f"{name} ({package})"


def conversion_of(X: Any) -> str:
    """Return what to type to get rows from `X`, as far as that is known."""
    if isinstance(X, type):
        return ""
    for kind, text in REMEDIES.items():
        if isinstance(X, kind):
            return text
    known = [text for name, text in CONVERSIONS.items() if hasattr(X, name)]
    if not known and isinstance(X, Iterator):
        return "numpy.stack(list(X))"
    return known[0] if known else ""
