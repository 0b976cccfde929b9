"""Lazy results hold the input that they are computed from, and models do not take it along."""

from __future__ import annotations

import copy
import gc
import pickle

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from daskmeans import KMeans, assign
from daskmeans.vectors.matrix import to_column
from helpers import blobs

ROWS = blobs(n=200, d=4)


def rows_frame() -> pd.DataFrame:
    return pd.DataFrame({"id": np.arange(len(ROWS)), "embedding": to_column(ROWS).array})


def array(client):
    return da.from_array(ROWS, chunks=(50, 2)).persist()


def computed_from_an_array(client):
    return array(client) * 1


def array_of_a_future(client):
    return da.from_delayed(client.submit(np.copy, ROWS), ROWS.shape, ROWS.dtype)


def array_of_scattered_rows(client):
    return da.from_delayed(dask.delayed(client.scatter(ROWS)), ROWS.shape, ROWS.dtype)


def frame(client):
    return dd.from_pandas(rows_frame(), npartitions=3).persist()


def series(client):
    return frame(client)["embedding"].persist()


def frame_of_a_future(client):
    return dd.from_delayed([client.submit(copy.copy, rows_frame())])  # workers cannot import this file


ARRAYS = [array, computed_from_an_array, array_of_a_future, array_of_scattered_rows]
FRAMES = [frame, frame_of_a_future]


@pytest.mark.parametrize("make", [*ARRAYS, *FRAMES, series])
def test_results_outlive_the_input_on_a_cluster(make, client):
    here = KMeans(3).fit(ROWS)
    X = make(client)
    km = KMeans(3).fit(X)
    lazy = [km.labels_, km.predict(X), km.transform(X)]
    del X
    gc.collect()
    for found, expected in zip(lazy, [here.labels_, here.labels_, here.transform(ROWS)], strict=True):
        np.testing.assert_array_equal(found.compute(), expected)


@pytest.mark.parametrize("make", FRAMES)
def test_assigned_rows_outlive_the_input_on_a_cluster(make, client):
    km = KMeans(3).fit(ROWS)
    X = make(client)
    lazy = assign(X, km)
    del X
    gc.collect()
    np.testing.assert_array_equal(lazy.compute()["centroid"], km.labels_)


def test_a_model_travels_without_its_lazy_labels(client):
    X = array(client)
    km = KMeans(3).fit(X)
    found = client.submit(pickle.loads, pickle.dumps(km)).result()
    assert not hasattr(found, "labels_")
    np.testing.assert_array_equal(X.rechunk((50, 4)).map_blocks(km.predict, drop_axis=1, dtype="i4"), km.labels_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(km.fit(ROWS))).labels_, km.labels_)
