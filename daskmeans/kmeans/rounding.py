"""Precision that rows of wider types lose in float32, in which rows are compared."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from daskmeans.errors import PrecisionWarning
from daskmeans.kmeans.rows.inputs import is_frame_of_numbers, vector_column
from daskmeans.vectors.matrix import is_list

# Rows and columns of a partition that are checked, at most.
ROWS, COLUMNS = 256, 1024
# Rounding error, as a share of the spread, from which on to warn. Numbers that lie 30,000 times as far from zero as
# from one another reach it.
SHARE = 1e-3


class Rounding(NamedTuple):
    """Rounding error and spread of some rows."""

    rows: int
    mean: np.ndarray
    """float64, shape (columns,)."""
    spread: float
    """Sum of squared distances to the mean."""
    error: float
    """Sum of squared distances to the same rows in float32."""


def measure_rounding(X: Any, column: str | None = None) -> Rounding | None:
    """Measure what float32 loses of an evenly spaced sample of rows; None where it holds the type of `X` exactly.

    Parameters
    ----------
    X : array, column of vectors or pandas DataFrame
        Already checked to be a matrix of numbers.
    column : str, optional
        Column of vectors of a DataFrame.

    Examples
    --------
    >>> measure_rounding(2**24 + np.arange(3)[:, None])
    Rounding(rows=3, mean=array([16777217.]), spread=2.0, error=1.0)
    >>> measure_rounding(np.eye(3, dtype=np.float32))
    """
    if isinstance(X, pd.DataFrame) and not is_frame_of_numbers(X, column):
        X = X[vector_column(X, column)]
    found = None if _is_exact(getattr(X, "dtype", None)) else pick_rows(X)
    if found is None or not found.size:
        return None
    wide = found[:, :: math.ceil(found.shape[1] / COLUMNS)].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are refused elsewhere
        error = np.square(wide - wide.astype(np.float32)).sum()
        apart = wide - wide[0]
        middle = apart.mean(axis=0)
        return Rounding(len(wide), wide[0] + middle, float(np.square(apart - middle).sum()), float(error))


def pick_rows(X: Any) -> np.ndarray | None:
    """Return an evenly spaced sample of the rows of a matrix or a column of vectors; None if empty or on a device."""
    if hasattr(X, "__cuda_array_interface__") or hasattr(X, "to_arrow"):
        return None
    X = X if hasattr(X, "__len__") else np.asarray(X)
    if not len(X):
        return None
    rows = np.unique(np.linspace(0, len(X) - 1, min(len(X), ROWS)).astype(int))
    if isinstance(X, pd.DataFrame):
        return X.iloc[rows].to_numpy(np.float64, na_value=np.nan)  # type: ignore[no-any-return]
    if isinstance(X, pd.Series):
        lists = pa.chunked_array([pa.array(X.iloc[rows])]).combine_chunks()
        return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)  # type: ignore[no-any-return]
    return np.asarray([X[i] for i in rows] if isinstance(X, (list, tuple)) else np.asarray(X)[rows])


def _is_exact(type_: Any) -> bool:
    """Whether float32 holds numbers of this type, or lists of them, exactly."""
    if isinstance(type_, pd.ArrowDtype) and is_list(type_.pyarrow_dtype):
        type_ = type_.pyarrow_dtype.value_type.to_pandas_dtype()
    return isinstance(type_, (np.dtype, type)) and np.can_cast(type_, np.float32)


def warn_of_rounding(parts: Sequence[Rounding]) -> None:
    """Warn the caller of a fit if float32 loses too much of the spread of all rows that `parts` describe."""
    if not parts:
        return
    rows = sum(part.rows for part in parts)
    mean = sum(part.rows * (part.mean - parts[0].mean) for part in parts) / rows + parts[0].mean
    between = sum(part.rows * float(np.square(part.mean - mean).sum()) for part in parts)
    spread, error = (
        math.sqrt(total / rows) for total in (_sum_field("spread", parts) + between, _sum_field("error", parts))
    )
    if error > SHARE * spread > 0:
        warnings.warn(
            f"rows are compared in float32, which rounds these by {error:.2g} on average, while they lie only "
            f"{spread:.2g} from their mean; rows that differ by less than the rounding cannot be told apart. Subtract "
            "the mean before the fit, in the original type: X - X.mean(axis=0)",
            PrecisionWarning,
            stacklevel=4,
        )


def _sum_field(name: str, parts: Sequence[Rounding]) -> float:
    return math.fsum(getattr(part, name) for part in parts)
