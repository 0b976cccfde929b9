"""Rows that float32 cannot tell apart are warned of, in whatever they come; rows that it can are not."""

from __future__ import annotations

import warnings

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskmeans import KMeans
from daskmeans.errors import ConvergenceWarning, PrecisionWarning, ScalingWarning
from daskmeans.kmeans.rounding import measure_rounding
from daskmeans.vectors.matrix import to_column

FAR = 1e8 + np.arange(40.0).reshape(20, 2)
BY_KIND = {
    "array": lambda X: X,
    "columns first": np.asfortranarray,
    "integers": lambda X: X.astype(np.int64),
    "list": lambda X: X.tolist(),
    "frame of numbers": pd.DataFrame,
    "nullable numbers": lambda X: pd.DataFrame(X).convert_dtypes(),
    "numbers of Arrow": lambda X: pd.DataFrame(X).astype("double[pyarrow]"),
    "column": lambda X: pd.DataFrame({"v": to_column(X, "float64")}),
    "column of objects": lambda X: pd.DataFrame({"v": list(X)}),
    "dask array": lambda X: da.from_array(X, chunks=(7, 1)),
    "rows of unknown number": lambda X: da.from_array(X, chunks=(7, 2))[da.ones(len(X), chunks=7, dtype=bool)],
    "dask frame": lambda X: dd.from_pandas(pd.DataFrame({"v": to_column(X, "float64")}), npartitions=3),
}


def fit(X, **params):
    return KMeans(2, normalize=False, **params).fit(X)


@pytest.mark.parametrize("make", BY_KIND.values(), ids=BY_KIND)
@pytest.mark.parametrize("place", ["here", "cluster"])
def test_what_float32_cannot_tell_apart_is_warned_of(make, place, request):
    if place == "cluster":
        request.getfixturevalue("client")
    with pytest.warns(PrecisionWarning, match="float32") as found:
        fit(make(FAR))
    assert [warning.filename for warning in found] == [__file__]
    assert fit(make(FAR - FAR.mean(axis=0).round())).inertia_ > 0  # the remedy, without a warning


@pytest.mark.parametrize("make", BY_KIND.values(), ids=BY_KIND)
def test_partitions_are_judged_together(make):
    """Rows of each partition are close to one another, and those of all are not."""
    apart = np.repeat([[0.0, 1.0], [1e8, 1e8 + 1]], [8, 12], axis=0) + np.arange(20)[:, None] % 3
    assert fit(make(apart)).inertia_ >= 0


@given(st.integers(0, 9), st.sampled_from([0, 1, 10, 100, 1e3, 1e4]), st.sampled_from([1e-20, 1, 1e10]))
def test_usual_rows_are_not_warned_of(seed, away, scale):
    X = scale * (away + np.random.default_rng(seed).normal(size=(50, 3)))
    with warnings.catch_warnings():
        for allowed in (ConvergenceWarning, ScalingWarning):
            warnings.simplefilter("ignore", allowed)
        for rows in (X, np.repeat(X[:1], 5, axis=0), X[:2]):
            fit(rows)
            KMeans(2).fit(rows)


def test_the_error_is_that_of_the_cast():
    rng = np.random.default_rng(0)
    X = 1e6 + rng.normal(size=(100, 3))
    found = measure_rounding(X)
    assert found.error == pytest.approx(((X - X.astype(np.float32)) ** 2).sum())
    assert found.spread == pytest.approx(100 * X.var(axis=0).sum())
    for held in (np.float32, np.float16, np.int16, np.uint8, bool):
        assert measure_rounding(np.eye(3).astype(held)) is None
    assert measure_rounding(to_column(X.astype(np.float32))) is None
    assert measure_rounding(X[:0]) is None


def test_float32_is_taken_as_it_is():
    fit(FAR.astype(np.float32), max_iter=0, init=np.float32([[1, 1], [1e8, 1e8]]))
