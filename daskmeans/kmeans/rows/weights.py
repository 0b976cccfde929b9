"""Weights of rows: one of 2 counts as the row twice, one of 0 as no row.

A weight stays beside its row as it was given. Where rows are summed, it becomes a whole number by a power of two that
all rows share (:class:`Weighting`). So sums of weights, like those of rows, do not depend on the order of addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.sums import as_number, scale_for
from daskmeans.kmeans.rows.given import is_lazy
from daskmeans.kmeans.rows.inputs import (
    array_to_host,
    is_frame_of_numbers,
    list_partitions,
    name_row,
    refuse_masked,
)

# Weights may be as large as this, and must sum to as much as that: products with squared distances stay in range.
LARGEST, LEAST_SUM = 1e30, 1e-100
# In draws a row never has less than this share of the mean weight, so that a few rounds find any number of rows.
LEAST_RATIO = 2.0**-40


@dataclass(frozen=True)
class Weighting:
    """What all weights of a fit have in common.

    Attributes
    ----------
    scale : float
        The power of two by which weights become whole numbers, whose sum fits into 61 bits.
    total : float
        Sum of the weights, rounded once.
    mean : float

    Examples
    --------
    >>> from daskmeans.kernels.sums import exact_sum
    >>> weighting = Weighting.of(exact_sum(np.array([0.5, 1.5, 4.0])), rows=3)
    >>> weighting.total, weighting.mean, weighting.ratios(np.array([0.5, 4.0])).tolist()
    (6.0, 2.0, [0.25, 2.0])
    >>> (weighting.whole(np.array([0.5, 4.0])) / weighting.scale).tolist()
    [0.5, 4.0]
    """

    scale: float
    total: float
    mean: float

    @classmethod
    def of(cls, total: int, rows: int) -> Weighting:
        """Return the weighting of `rows` rows whose weights have this sum (see :func:`exact_sum`)."""
        return cls(scale_for(1.0, as_number(total)), as_number(total), as_number(total) / rows)

    def whole(self, weights: Any) -> np.ndarray:
        """Return weights as whole numbers from 1 on; float64."""
        return np.maximum(np.rint(weights * self.scale), 1.0)  # type: ignore[no-any-return]

    def ratios(self, weights: Any) -> np.ndarray:
        """Return weights as multiples of their mean."""
        return np.maximum(weights / self.mean, LEAST_RATIO)


def resolve_weights(sample_weight: Any, X: Any, column: str | None) -> Any:
    """Return the argument `sample_weight` as a dask collection or as a float64 array; None stays None.

    Raises
    ------
    UsageError
        It names no column of `X`, or it is not one row of numbers.
    """
    if isinstance(sample_weight, str):
        sample_weight = _weight_column(sample_weight, X, column)
    if sample_weight is None or (is_lazy(X) and isinstance(sample_weight, (da.Array, dd.Series))):
        return sample_weight
    weights = _to_numbers(sample_weight)
    if not is_lazy(X) and len(weights) != len(X):
        raise _wrong_length(len(weights), len(X), "")
    return weights


def _weight_column(name: str, X: Any, column: str | None) -> Any:
    if name not in getattr(X, "columns", ()):
        raise UsageError(
            f"there is no column {name!r}",
            where="sample_weight",
            expected="a number for each row, or the name of a column of the dataframe",
        )
    if is_frame_of_numbers(X, column):
        raise UsageError(
            f"every column of this dataframe is a feature, {name!r} too",
            where="sample_weight",
            remedy=f"pass X.drop(columns={name!r}) and sample_weight=X[{name!r}]",
        )
    return X[name]


def cut_weights(weights: Any, parts: Sequence[Any], lengths: Sequence[int] | None) -> list[Any]:
    """Return the weights of each of the partitions `parts`: arrays or tasks; Nones without `weights`.

    `lengths` are the rows of the partitions, if they are known.

    Raises
    ------
    UsageError
        There are more or fewer weights than rows, or they have other partitions.
    """
    if weights is None:
        return [None] * len(parts)
    if isinstance(weights, np.ndarray):
        ends = np.cumsum([0, *(lengths or [])])
        if len(weights) != ends[-1]:
            raise _wrong_length(len(weights), int(ends[-1]), "")
        return [weights[a:b] for a, b in pairwise(ends)]
    if isinstance(weights, da.Array):
        if weights.ndim != 1:
            raise UsageError(f"the weights have {weights.ndim} dimensions", where="sample_weight", expected="1")
        if lengths is not None and not np.isnan(weights.shape[0]):
            if weights.shape[0] != sum(lengths):
                raise _wrong_length(weights.shape[0], sum(lengths), "")
            weights = weights.rechunk((tuple(lengths),))
        tasks = list(weights.to_delayed(optimize_graph=False))
    else:
        tasks = list_partitions(weights, None)
    if len(tasks) != len(parts):
        raise UsageError(
            f"the weights have {len(tasks)} partitions, and X has {len(parts)}",
            where="sample_weight",
            expected="the same partitions",
            remedy="take both from one dataframe, or compute their chunk sizes: compute_chunk_sizes()",
        )
    return tasks


def check_weights(part: Any, rows: int, where: str, first: int) -> np.ndarray:
    """Return the weights of a partition of `rows` rows, float64; errors name a row as those of its vectors do."""
    weights = _to_numbers(part)
    if len(weights) != rows:
        raise _wrong_length(len(weights), rows, where)
    wrong = np.flatnonzero(~((weights >= 0) & (weights <= LARGEST)))
    if len(wrong):
        raise DataError(
            f"the weight is {weights[wrong[0]]:g}",
            where=name_row(where, first + int(wrong[0])),
            expected=f"a number from 0 to {LARGEST:g}",
            remedy="repair sample_weight, or give the row the weight 0 to leave it out",
        )
    return weights


def check_total(total: float) -> None:
    """Raise UsageError if weights sum to too little, as they do if all are zero."""
    if total < LEAST_SUM:
        raise UsageError(
            f"the weights sum to {total:g}" if total else "all weights are zero",
            where="sample_weight",
            expected=f"at least one weight above 0, and a sum of {LEAST_SUM:g} or more",
        )


def _to_numbers(weights: Any) -> np.ndarray:
    refuse_masked(weights, "sample_weight")
    try:
        if isinstance(weights, pd.Series):
            weights = weights.to_numpy(np.float64, na_value=np.nan)
        found = np.asarray(array_to_host(weights))
        found = found.astype(np.float64, copy=False) if found.dtype.kind in "fiubO" else np.empty((0, 0))
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    if found.ndim != 1:
        raise UsageError(
            f"weights cannot be made of {type(weights).__name__}",
            where="sample_weight",
            expected="one number for each row",
        )
    return np.ascontiguousarray(found)


def _wrong_length(weights: int, rows: int, where: str) -> UsageError:
    place = f"sample_weight, {where}" if where else "sample_weight"
    return UsageError(
        f"there are {weights:,} weights for {rows:,} rows", where=place, expected="one weight for each row"
    )
