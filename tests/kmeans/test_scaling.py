"""Rows that scaling to unit length makes alike are warned of, in whatever they come; embeddings are not."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from daskmeans import KMeans
from daskmeans.errors import ScalingWarning
from daskmeans.kmeans.scaling import measure_moments
from daskmeans.vectors.matrix import to_column
from helpers import write_embeddings

POINTS, TRUTH = make_blobs(600, 2, centers=6, cluster_std=0.4, random_state=5)
POINTS = POINTS.astype(np.float32)
BY_KIND: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda X: X,
    "float64": lambda X: X.astype(float),
    "list": lambda X: X.tolist(),
    "frame of numbers": lambda X: pd.DataFrame(X, columns=["x", "y"]),
    "column": lambda X: pd.DataFrame({"v": to_column(X)}),
    "dask array": lambda X: da.from_array(X, chunks=(70, 1)),
    "dask frame": lambda X: dd.from_pandas(pd.DataFrame({"v": to_column(X)}), npartitions=4),
}


@pytest.mark.parametrize("make", BY_KIND.values(), ids=BY_KIND)
@pytest.mark.parametrize("place", ["here", "cluster"])
def test_points_in_a_plane_are_warned_of(make: Callable[..., Any], place: str, request: pytest.FixtureRequest) -> None:
    if place == "cluster":
        request.getfixturevalue("client")
    with pytest.warns(ScalingWarning, match="normalize=False") as found:
        scaled = KMeans(6).fit(make(POINTS))
    assert [warning.filename for warning in found] == [__file__]
    as_they_are = KMeans(6, normalize=False).fit(make(POINTS))  # the remedy, without a warning
    worse, better = (adjusted_rand_score(TRUTH, np.asarray(km.labels_)) for km in (scaled, as_they_are))
    assert worse < 0.9 < better


@pytest.mark.parametrize("dimensions", [2, 3, 4, 16, 384])
def test_rows_that_directions_tell_apart_are_not_warned_of(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    X, truth = make_blobs(400, dimensions, centers=5, cluster_std=0.5, random_state=1)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    about = unit * (1 + 0.1 * rng.normal(size=(400, 1)))  # as models leave them that do not scale
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScalingWarning)
        KMeans(5).fit(unit)
        KMeans(5).fit(7 * unit)
        KMeans(5).fit(about)
        KMeans(1).fit(X)
        KMeans(2).fit(X[:30])  # a first try with a handful of rows
        if dimensions > 3:
            assert adjusted_rand_score(truth, KMeans(5).fit(X).labels_) > 0.95


def test_partitions_are_judged_together() -> None:
    """Rows of each partition are equally long, and those of all are not."""
    angles = np.linspace(0, 1, 200)
    rows = np.repeat([1.0, 9.0], 100)[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    with pytest.warns(ScalingWarning):
        KMeans(2).fit(da.from_array(rows, chunks=(100, 2)))


def test_the_length_counts_as_a_column() -> None:
    found = measure_moments(POINTS[:200], 2)
    assert found is not None
    wide = np.column_stack([POINTS[:200], np.hypot(*POINTS[:200].T)]).astype(float)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0))
    np.testing.assert_allclose(found.squares, 200 * wide.var(axis=0))
    assert measure_moments(np.eye(4, dtype=np.float32), 4) is None
    assert measure_moments(POINTS[:0], 2) is None


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "in.parquet", POINTS)
    words = "-m daskmeans fit in.parquet --model model --n-clusters 6 --n-workers 1"
    done = subprocess.run([sys.executable, *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--no-normalize" in done.stderr
    assert "ScalingWarning" not in done.stderr  # nor the line of code that it comes from
