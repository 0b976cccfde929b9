"""The number of clusters that "auto" stands for; and models that are pickles."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

import daskmeans
from daskmeans import KMeans
from daskmeans.errors import UsageError
from helpers import blobs, write_embeddings


def test_auto_is_a_number_that_follows_from_the_rows(tmp_path):
    X = blobs(950)
    km = KMeans(n_clusters="auto").fit(X)
    assert km.n_clusters == "auto"
    assert len(km.cluster_centers_) == 30
    assert np.array_equal(km.cluster_centers_, KMeans(n_clusters=30).fit(X).cluster_centers_)
    lazy = KMeans(n_clusters="auto").fit(da.from_array(X, chunks=(300, 16)))
    assert np.array_equal(km.cluster_centers_, lazy.cluster_centers_)
    files = daskmeans.fit(write_embeddings(tmp_path / "in.parquet", X), KMeans("auto"), tmp_path / "model")
    assert np.array_equal(km.cluster_centers_, files.cluster_centers_)
    assert KMeans.load(tmp_path / "model").n_clusters == 30
    again = KMeans("auto", init=km, max_iter=0).fit(X[:40])  # as many as there are given centroids
    assert np.array_equal(again.cluster_centers_, km.cluster_centers_)
    with pytest.raises(UsageError, match="'auto'"):
        KMeans(n_clusters="many").fit(X)
