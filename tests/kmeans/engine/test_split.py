"""Clusters that are too large are split until none is, to the same bits however the rows are spread."""

from __future__ import annotations

import warnings

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskmeans import KMeans, assign
from daskmeans.errors import ClusterSizeWarning, UsageError
from daskmeans.kernels.distances import nearest_centroids
from daskmeans.kmeans.engine.split import split_clusters
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.vectors.matrix import to_column
from helpers import blobs


def frame(X: np.ndarray, npartitions: int) -> dd.DataFrame:
    rows = pd.DataFrame({"id": np.arange(len(X)), "embedding": to_column(X).array})
    return dd.from_pandas(rows, npartitions=npartitions)


def skewed(n: int, d: int, seed: int) -> np.ndarray:
    """A dense core, a wide cloud around it, and a small blob far off."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.exp(2 * rng.normal(size=(n, 1)))
    X[: n // 3] *= 0.01
    X[-n // 20 :] += 30
    return X.astype(np.float32)


def sizes(X: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.bincount(nearest_centroids(X, centroids)[0], minlength=len(centroids))


def is_split(X: np.ndarray, centroids: np.ndarray, limit: int) -> np.ndarray:
    blocks = load_blocks(X, None, False, 1.0, 0, None)
    found = split_clusters(blocks, centroids, limit, seed=0)
    blocks.release()
    return found


@given(
    n=st.integers(1, 400), d=st.integers(1, 6), k=st.integers(1, 5), limit=st.integers(1, 500), seed=st.integers(0, 9)
)
def test_no_cluster_is_larger_than_asked_for(n, d, k, limit, seed):
    X = skewed(n, d, seed)
    X = np.unique(X, axis=0)  # copies are another case
    start = X[: min(k, len(X))]
    found = is_split(X, start, limit)
    assert sizes(X, found).max() <= limit
    assert len(found) >= len(start)


@settings(max_examples=25)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8), limit=st.integers(1, 30), noise=st.booleans())
def test_only_copies_of_one_row_may_be_too_many(counts, limit, noise):
    rng = np.random.default_rng(len(counts))
    X = np.repeat(rng.normal(size=(len(counts), 3)).astype(np.float32), counts, axis=0)
    if noise:
        X = np.concatenate([X, (X[:1] + 0.01 * rng.normal(size=(15, 3))).astype(np.float32)])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = is_split(X, X[:1], limit)
    labels = nearest_centroids(X, found)[0]
    large = np.flatnonzero(np.bincount(labels) > limit)
    for cluster in large:
        _, copies = np.unique(X[labels == cluster], axis=0, return_counts=True)
        assert (copies > limit).sum() == 1
        assert copies.sum() - copies.max() <= limit
    assert sorted(str(w.message).split()[1] for w in said) == sorted(map(str, large))
    assert all(w.category is ClusterSizeWarning for w in said)


def test_rows_that_differ_in_their_last_bit_are_parted():
    X = np.full((40, 16), 0.25, np.float32)
    X[::2, 3] = np.nextafter(np.float32(0.25), np.float32(1))
    assert sizes(X, is_split(X, X[:1], 20)).tolist() == [20, 20]


def test_clusters_that_are_small_enough_stay_as_they_are():
    X = blobs()
    start = KMeans(8).fit(X).cluster_centers_
    np.testing.assert_array_equal(is_split(X, start, len(X)), start)


def test_clusters_that_are_not_split_keep_their_numbers():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(30, 4)), rng.normal(size=(200, 4)) + 50]).astype(np.float32)
    start = np.float32([[0] * 4, [50] * 4])
    found = is_split(X, start, 100)
    np.testing.assert_array_equal(found[0], start[0])
    assert (nearest_centroids(X, found)[0][:30] == 0).all()


def test_equal_bits_for_any_partitions_and_workers(client, thread_client):
    X = skewed(900, 24, 1)
    X[100:140] = X[:40]
    chosen = {"n_clusters": 6, "max_cluster_size": 40, "normalize": False}
    alone = KMeans(**chosen).fit(X)
    assert np.bincount(alone.labels_).max() <= 40
    others = {f"{n} partitions": KMeans(**chosen).fit(frame(X, n)) for n in (1, 7, 64)}
    for workers in (1, 4):
        others[f"{workers} workers"] = KMeans(**chosen).fit(frame(X, 7), client=thread_client(workers))
    others["2 processes"] = KMeans(**chosen).fit(frame(X, 7), client=client)
    for name, km in others.items():
        np.testing.assert_array_equal(km.cluster_centers_, alone.cluster_centers_, err_msg=name)
        np.testing.assert_array_equal(np.asarray(km.labels_), alone.labels_, err_msg=name)
        assert km.inertia_ == alone.inertia_, name


def test_the_model_knows_what_was_asked_for_and_what_came_of_it(tmp_path):
    X = skewed(500, 8, 2)
    km = KMeans(4, max_cluster_size=60).fit(X)
    k = len(km.cluster_centers_)
    assert k >= 9
    assert km.n_clusters == 4
    assert km.transform(X).shape == (500, k)
    km.save(tmp_path / "model")
    again = KMeans.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(X), km.labels_)
    assert assign(frame(X, 3), again).compute()["centroid"].value_counts().max() <= 60


def test_inertia_is_that_of_the_centroids_after_splitting():
    X = skewed(300, 5, 3)
    km = KMeans(3, max_cluster_size=50, normalize=False).fit(X)
    apart = X.astype(float) - km.cluster_centers_[km.labels_]
    assert km.inertia_ == pytest.approx((apart**2).sum(), rel=1e-6)
    assert -km.score(X) == pytest.approx(km.inertia_)


@pytest.mark.parametrize("limit", [0, -3, 2.5, "many"])
def test_a_size_that_is_none(limit):
    with pytest.raises(UsageError, match="max_cluster_size"):
        KMeans(2, max_cluster_size=limit).fit(blobs())
