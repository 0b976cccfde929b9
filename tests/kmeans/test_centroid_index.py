"""An index over the centroids finds the share of nearest centroids that it claims, the same ones every time."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskmeans import errors
from daskmeans.kernels.distances import nearest_centroids
from daskmeans.kernels.topk import closest_points, nearest_candidates, own_ranks
from daskmeans.kmeans import centroid_index
from daskmeans.kmeans.centroid_index import Index, choose_index, sample_input, tune_index
from helpers import blobs

needs_faiss = pytest.mark.skipif(
    centroid_index.find_spec("faiss") is None, reason='no faiss: pip install "daskmeans[ann]"'
)


def distances(X: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared distances in float64, exact for small integers."""
    return ((X[:, None].astype(np.float64) - points[None].astype(np.float64)) ** 2).sum(axis=2)


def spread(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    """Rows that have no more than a few directions to speak of, as embeddings have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * np.linspace(1.5, 0.1, d)).astype(np.float32)


def tune(X: np.ndarray, centroids: np.ndarray, recall: float = 0.95, seed: int = 0) -> Index:
    return tune_index(X, None, centroids, as_is, lambda rows: distances(rows, centroids).argmin(1), recall, seed)


def as_is(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part, np.float32)


integers = st.integers(0, 2**32).map(np.random.default_rng)


@given(
    rng=integers, n=st.integers(0, 9), m=st.integers(1, 30), d=st.integers(1, 5), reach=st.sampled_from([1, 3, 1000])
)
def test_the_closest_points_are_those_of_brute_force(rng, n, m, d, reach):
    X, points = (rng.integers(-reach, reach + 1, (size, d)).astype(np.float32) for size in (n, m))
    count = int(rng.integers(1, m + 1))
    order = np.argsort(distances(X, points), axis=1, kind="stable")  # of equals the lower first
    assert closest_points(X, points, count).tolist() == np.sort(order[:, :count], axis=1).tolist()
    own = rng.integers(0, m, n)
    assert own_ranks(X, points, own).tolist() == [list(row).index(mine) for row, mine in zip(order, own, strict=True)]


@given(rng=integers, n=st.integers(0, 9), k=st.integers(1, 30), d=st.integers(1, 5))
def test_the_nearest_of_some_candidates(rng, n, k, d):
    X, points = (rng.integers(-2, 3, (size, d)).astype(np.float32) for size in (n, k))
    candidates = rng.integers(-1, k, (n, 4))
    labels = np.empty(n, np.int32)
    nearest_candidates(X, points, 0.5 * (points.astype(np.float64) ** 2).sum(1), candidates, labels)
    for row, mine, label in zip(distances(X, points), candidates, labels, strict=True):
        known = sorted(mine[mine >= 0])
        assert label == (min(known, key=lambda j: row[j]) if known else -1)


@needs_faiss
def test_the_recall_is_that_of_brute_force():
    X, centroids = spread(6000), spread(700, seed=1)
    index = tune(X, centroids)
    facts, labels = index.facts, index.nearest(X, centroids)
    exact = distances(X, centroids).argmin(1)
    checked = sample_input(X, None, as_is, len(X), 0)[3000:]
    right = index.nearest(checked, centroids) == distances(checked, centroids).argmin(1)
    assert facts["sampled"] == 3000
    assert facts["recall"] == right.mean()
    assert facts["low"] < (labels == exact).mean() < facts["high"]
    assert 0.95 - 0.01 < (labels == exact).mean() < 1
    assert 0 < facts["compared"] < 1
    assert 1 < facts["nprobe"] < facts["nlist"]


@needs_faiss
def test_more_recall_takes_more_comparisons():
    X, centroids = spread(4000), spread(700, seed=1)
    found = [tune(X, centroids, target).facts for target in (0.5, 0.9, 0.99)]
    compared = [facts["compared"] for facts in found]
    assert compared == sorted(compared) and compared[0] < compared[-1]
    assert [facts["recall"] > facts["target"] - 0.01 for facts in found] == [True] * 3


@needs_faiss
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(0, 40, 4), (1, 40, 4), (2, 1, 1), (50, 2, 3), (300, 16, 7), (300, 17, 50), (300, 90, 1), (100, 64, 5)],
)
def test_every_shape_has_an_index(n, k, d):
    X, centroids = spread(n, d), spread(k, d, seed=1)
    index = tune(X, centroids, 0.9)
    facts, labels = index.facts, index.nearest(X, centroids)
    assert labels.shape == (n,) and labels.dtype == np.int32
    assert (labels == distances(X, centroids).argmin(1)).mean() > 0.8 if n else facts["recall"] is None
    assert facts["sampled"] == n // 2


@needs_faiss
def test_equal_centroids_and_rows_on_them():
    centroids = np.repeat(spread(60, 8), 5, axis=0)
    X = np.concatenate([centroids, np.zeros((40, 8), np.float32)])
    index = tune(X, centroids, 0.9)
    labels = index.nearest(X, centroids)
    found = distances(X, centroids)
    assert (found[np.arange(len(X)), labels] == found.min(1)).mean() > 0.85


@needs_faiss
def test_a_label_depends_on_the_row_alone():
    X, centroids = spread(5000), spread(700, seed=1)
    index, again = tune(X, centroids), tune(X, centroids)
    labels = index.nearest(X, centroids)
    assert again.facts == index.facts and again.packed.tobytes() == index.packed.tobytes()
    sent = pickle.loads(pickle.dumps(index))
    order = np.random.default_rng(0).permutation(len(X))
    pieces = np.split(order, [1, 2, 30, 31, 2500])
    assert np.concatenate([sent.nearest(X[rows], centroids) for rows in pieces]).tolist() == labels[order].tolist()
    assert index.nearest(X[:100], centroids, tile=7).tolist() == labels[:100].tolist()


@needs_faiss
def test_rows_that_meet_empty_lists_are_compared_with_all_centroids():
    X, centroids = spread(50, 8), spread(40, 8, seed=1)
    lists = np.concatenate([centroids[:1] + 1000, centroids[:1]])
    index = Index(lists, centroid_index._serialize_index(centroids, lists), 1, 4)
    far = np.float32(X + 1000)
    assert index.nearest(far, centroids).tolist() == distances(far, centroids).argmin(1).tolist()


def test_the_sample_does_not_depend_on_the_chunks():
    X = blobs(2000, 8)
    whole = sample_input(X, None, as_is, 100, 5)
    assert whole.shape == (100, 8)
    for chunks in (37, 500, 2000):
        parts = da.from_array(X, chunks=(chunks, 8))
        assert sample_input(parts, None, as_is, 100, 5).tobytes() == whole.tobytes()
    assert sample_input(X, None, as_is, 5000, 5).shape == (2000, 8)
    assert sample_input(X, None, as_is, 100, 6).tobytes() != whole.tobytes()


@needs_faiss
@pytest.mark.parametrize("recall", [0, 1, -0.5, 1.5])
def test_a_recall_that_cannot_be_aimed_at(recall):
    with pytest.raises(errors.UsageError, match=r"recall=.*(.|\n)*--assign exact"):
        tune(spread(50), spread(20), recall)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(centroid_index, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtraError, match=r'pip install "daskmeans\[ann\]"'):
        tune(spread(50), spread(20))


@needs_faiss
def test_the_index_is_built_from_what_it_is_given():
    X, centroids = spread(800), spread(300, seed=1)
    labels = nearest_centroids(X, centroids)[0]
    index = choose_index(centroids, X, labels, 0.9, 0)
    assert (index.nearest(X, centroids) == labels).mean() >= 0.9
    assert 0 < index.facts["compared"] <= 1
