"""Weights of rows: 2 is the row twice, 0 is no row; against repeated rows and scikit-learn."""

from __future__ import annotations

import copy

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans as Reference
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from daskmeans import KMeans
from daskmeans.errors import DataError, UsageError
from daskmeans.kmeans.engine.state import NoCheckpoints
from daskmeans.tuning import Tuning
from daskmeans.vectors.matrix import to_column
from helpers import blobs, nightly


def weights_for(n: int, kind: str = "plain", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "whole":
        return rng.integers(0, 4, n)
    if kind == "steep":  # a few rows have nearly all the weight
        return np.exp(6 * rng.normal(size=n))
    return np.where(rng.random(n) < 0.1, 0, rng.gamma(1.0, size=n))


def theirs_for(X: np.ndarray, start: np.ndarray, weights: np.ndarray, max_iter: int = 20) -> Reference:
    return Reference(len(start), init=start.astype(float), max_iter=max_iter, tol=0, n_init=1, algorithm="lloyd").fit(
        X.astype(float), sample_weight=weights
    )


def same(one: KMeans, other: KMeans) -> None:
    np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)
    assert one.inertia_ == other.inertia_
    assert one.inertia_history_ == other.inertia_history_


@given(seed=st.integers(0, 50), k=st.integers(1, 12), normalize=st.booleans())
def test_whole_weights_are_repeated_rows(seed, k, normalize):
    X, weights = blobs(n=200, d=7, seed=seed, copies=0), weights_for(200, "whole", seed)
    repeated = np.repeat(np.arange(200), weights)
    X = X / np.linalg.norm(X, axis=1, keepdims=True) if normalize else X
    settings = {"init": X[weights > 0][:k], "max_iter": 20, "tol": 0, "normalize": normalize}
    ours, twice = KMeans(k, **settings).fit(X, sample_weight=weights), KMeans(k, **settings).fit(X[repeated])
    np.testing.assert_array_equal(ours.cluster_centers_, twice.cluster_centers_)
    np.testing.assert_array_equal(ours.labels_[repeated], twice.labels_)
    assert ours.inertia_ == pytest.approx(twice.inertia_, rel=1e-12)
    assert ours.inertia_history_ == pytest.approx(twice.inertia_history_, rel=1e-9)
    assert (ours.n_iter_, ours.converged_) == (twice.n_iter_, twice.converged_)


@given(
    kind=st.sampled_from(["whole", "plain", "steep"]),
    unit=st.sampled_from([1.0, 1e-20, 1e20]),
    seed=st.integers(0, 50),
    k=st.integers(1, 20),
)
def test_same_start_same_result_as_scikit_learn(kind, unit, seed, k):
    X, weights = blobs(n=300, d=7, seed=seed, copies=0), weights_for(300, kind, seed)
    start = X[weights > 0][::20][:k]
    ours = KMeans(len(start), init=start, max_iter=20, tol=0, normalize=False).fit(X, sample_weight=unit * weights)
    theirs = theirs_for(X, start, weights)
    assert ours.inertia_ == pytest.approx(unit * theirs.inertia_, rel=1e-6)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-5)
    other = weights_for(300, "plain", seed + 1)
    score = ours.score(X, sample_weight=other)
    assert score == pytest.approx(theirs.score(X.astype(float), sample_weight=other), rel=1e-5)


def test_empty_clusters_are_refilled_as_scikit_learn_does():
    X, weights = blobs(n=200, d=4, copies=0), weights_for(200) + 0.1
    far = np.full((3, 4), 50, np.float32) + np.arange(3, dtype=np.float32)[:, None]
    start = np.concatenate([X[:2], far])
    ours = KMeans(5, init=start, max_iter=10, tol=0, normalize=False).fit(X, sample_weight=weights)
    theirs = theirs_for(X, start, weights, max_iter=10)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)
    assert len(np.unique(ours.labels_)) == 5


@pytest.mark.parametrize("init", ["auto", "k-means||", "random"])
@pytest.mark.parametrize("weight", [1, 0.1])
def test_rows_without_weight_are_no_rows_but_get_labels(init, weight):
    X, kept = blobs(n=500, k=12), np.random.default_rng(0).random(500) < 0.7
    X[~kept] *= 1e6  # they would decide the scale of sums, draws and refills
    settings = {"n_clusters": 12, "init": init, "normalize": False}
    alone = KMeans(**settings).fit(X[kept], sample_weight=np.full(kept.sum(), weight))
    ours = KMeans(**settings).fit(X, sample_weight=weight * kept)
    same(ours, alone)
    np.testing.assert_array_equal(ours.labels_, ours.predict(X))
    assert ours.score(X, sample_weight=weight * kept) == -ours.inertia_
    if weight == 1:
        same(ours, KMeans(**settings).fit(X[kept]))


def test_weights_of_one_are_the_fit_without_weights(monkeypatch):
    X = blobs(n=700, k=12)
    alone = KMeans(12).fit(X)
    for module in ("daskmeans.kernels.step", "daskmeans.kernels.sums"):
        monkeypatch.setattr(f"{module}.move_weighted_rows", lambda *args: pytest.fail("rows were weighed"))
    for ones in (np.ones(700), [1] * 700, np.ones(700, bool), pd.Series(np.ones(700), dtype="Float32")):
        same(KMeans(12).fit(X, sample_weight=ones), alone)
    assert KMeans(12).fit_predict(X, None, np.ones(700)).tolist() == alone.labels_.tolist()
    np.testing.assert_array_equal(KMeans(12).fit_transform(X, None, np.ones(700)), alone.transform(X))


@pytest.mark.parametrize("factor", [2.0**-30, 4.0])
def test_the_unit_of_weights_does_not_matter(factor):
    X, weights = blobs(n=900, k=12), weights_for(900)
    one, other = (
        KMeans(12)._fit(X, sample_weight=unit * weights, tuning=Tuning(least_sample=0)) for unit in (1.0, factor)
    )
    np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)
    assert factor * one.inertia_ == other.inertia_
    assert one.n_iter_ == other.n_iter_


def test_weights_count_in_the_tolerance():
    """The variance is that of the rows as often as they count; scikit-learn's is not."""
    X, weights = blobs(n=400, d=5), np.r_[np.full(200, 5), np.ones(200)].astype(int)
    X[200:] *= 20
    settings = {"init": X[::40].copy(), "max_iter": 50, "tol": 0.01, "normalize": False}
    ours = KMeans(10, **settings).fit(X, sample_weight=weights)
    assert ours.n_iter_ == KMeans(10, **settings).fit(np.repeat(X, weights, axis=0)).n_iter_


@pytest.mark.parametrize(("init", "kind"), [("auto", "steep"), nightly("auto", "plain"), nightly("random", "plain")])
def test_equal_bits_for_any_partitions_and_workers(init, kind, client, thread_client):
    X, weights = blobs(n=1300, d=24, k=12), weights_for(1300, kind)
    ids = pd.DataFrame({"id": np.arange(1300), "embedding": to_column(X).array, "weight": weights})

    def fitted(X, weights, client=None, **tuning):
        model = KMeans(12, init=init, max_iter=8, random_state=5, n_init=2)
        return model._fit(X, client=client, tuning=Tuning(least_sample=0, **tuning), sample_weight=weights)

    alone = fitted(X, weights)
    frames = {n: dd.from_pandas(ids, npartitions=n) for n in (1, 7)}
    chunks = da.from_array(X, chunks=(131, 10))
    others = {f"{n} partitions": fitted(frames[n], frames[n]["weight"]) for n in frames}
    others |= {
        "pandas": fitted(ids, "weight"),
        "the name of a column": fitted(frames[7], "weight"),
        "lengths that are counted": fitted(frames[7], weights),
        "dask array": fitted(chunks, da.from_array(weights, chunks=97)),
        "dask array, numpy": fitted(chunks, weights.tolist()),
        "on disk": fitted(X, weights, memory=0),
        "4 workers": fitted(frames[7], "weight", client=thread_client(4)),
        "2 processes": fitted(frames[7], "weight", client=client),
        "2 processes, numpy": fitted(X, weights, client=client),
    }
    for name, km in others.items():
        np.testing.assert_array_equal(km.cluster_centers_, alone.cluster_centers_, err_msg=name)
        np.testing.assert_array_equal(np.asarray(km.labels_), alone.labels_, err_msg=name)
        assert (km.inertia_, km.inertia_history_) == (alone.inertia_, alone.inertia_history_), name


def test_many_weights_are_sent_to_workers_beside_the_graph(client):
    """Within it dask warns, which is an error here."""
    X = da.random.default_rng(0).normal(size=(1_400_000, 2), chunks=(350_000, 2))
    weights = np.ones(1_400_000)
    weights[::2] = 3
    km = KMeans(2, normalize=False, max_iter=1, tol=1e9).fit(X, sample_weight=weights, client=client)
    apart = X.compute() - km.cluster_centers_[km.labels_.compute()]
    assert km.inertia_ == pytest.approx(float((weights * (apart**2).sum(axis=1)).sum()), rel=1e-5)


@pytest.mark.parametrize("init", ["random", "k-means||", "auto"])
def test_seeds_are_drawn_in_proportion_to_weight(init):
    """Of two groups of like rows, the one with four fifths of the weight gets as many of the seeds."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 20)).astype(np.float32)  # nearly equal distances
    weights = np.where(np.arange(3000) < 1500, 4.0, 1.0)
    k = 600 if init == "auto" else 40
    drawn = [
        KMeans(k, init=init, max_iter=0, random_state=seed, normalize=False).fit(X, sample_weight=weights)
        for seed in range(1 if init == "auto" else 12)
    ]
    heavy = {*map(tuple, X[:1500])}
    share = np.mean([tuple(seed) in heavy for km in drawn for seed in km.cluster_centers_])
    assert 0.7 < share < (0.95 if init == "auto" else 0.87)  # of eight rows drawn the best is taken: mostly a heavy one


@pytest.mark.parametrize("k", [30, 600])
def test_heavy_rows_are_found_by_growing_samples(k):
    """Weights decide: what is far away and heavy gets a cluster, though samples are small."""
    X, weights = blobs(n=20_000, d=8, k=40, copies=0), np.ones(20_000)
    heavy = np.arange(0, 20_000, 2000)
    X[heavy] = 100 * np.eye(8)[np.arange(10) % 8] + np.arange(10)[:, None]
    weights[heavy] = 1e4
    km = KMeans(k, normalize=False)._fit(X, sample_weight=weights, tuning=Tuning(least_sample=0))
    assert km.iterations_[-1]["phases"] > 1 or k == 600
    own = km.cluster_centers_[km.labels_[heavy]]
    np.testing.assert_allclose(own, X[heavy], atol=1)


def test_quality_is_that_of_scikit_learn():
    X, weights = blobs(n=3000, d=16, k=40, copies=0), weights_for(3000, "steep") ** 0.3
    ours = np.mean(
        [KMeans(40, random_state=s, normalize=False).fit(X, sample_weight=weights).inertia_ for s in range(5)]
    )
    theirs = np.mean(
        [Reference(40, random_state=s, n_init=1).fit(X.astype(float), sample_weight=weights).inertia_ for s in range(5)]
    )
    assert ours < 1.03 * theirs


def test_a_fit_goes_on_from_any_update_to_the_same_bits():
    X, weights, fits = blobs(n=4000, d=12, k=30), weights_for(4000), []
    kept = NoCheckpoints()
    kept.save = lambda run, fit: fits.append(copy.deepcopy(fit))

    def fitted(checkpoints):
        settings = {"checkpoints": checkpoints, "sample_weight": weights, "tuning": Tuning(least_sample=0)}
        return KMeans(25, random_state=3)._fit(X, **settings)

    whole = fitted(kept)
    assert {fit.phase for fit in fits} == {0, 1}
    for fit in fits[::3]:
        again = NoCheckpoints()
        again.last = lambda run, fit=fit: copy.deepcopy(fit)
        same(fitted(again), whole)


def test_a_sample_of_the_rows_keeps_their_weights():
    X, weights = blobs(n=1000, d=8), weights_for(1000)
    settings = {"sample_fraction": 0.3, "max_iter": 3}
    fits = [
        KMeans(5, **settings).fit(da.from_array(X, chunks=(n, -1)), sample_weight=da.from_array(weights, chunks=n))
        for n in (1000, 90)
    ]
    same(*fits)
    assert fits[0].labels_.shape == (1000,)
    assert not np.array_equal(fits[0].cluster_centers_, KMeans(5, **settings).fit(X).cluster_centers_)


def test_weights_reach_the_model_through_a_pipeline():
    X, weights = blobs(), weights_for(600)
    pipeline = make_pipeline(FunctionTransformer(), KMeans(5))
    pipeline.fit(X, kmeans__sample_weight=weights)
    same(pipeline[-1], KMeans(5).fit(X, sample_weight=weights))


def test_weights_stay_as_they_were_given():
    X, weights = blobs(), weights_for(600)
    before = weights.copy()
    KMeans(4).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1, -1, 1], DataError, ["row 1", "weight is -1", "from 0 to"]),
        ([1, 1, np.nan], DataError, ["row 2", "nan"]),
        ([np.inf, 1, 1], DataError, ["row 0", "inf"]),
        ([1, 1e31, 1], DataError, ["row 1", "1e+31", "1e+30"]),
        (pd.Series([1, None, 1], dtype="Int64"), DataError, ["row 1", "nan"]),
        ([0, 0, 0], UsageError, ["weights are zero", "above 0"]),
        ([1e-200, 0, 0], UsageError, ["weights sum to 1e-200", "1e-100"]),
        ([1, 1], UsageError, ["2 weights for 3 rows", "one weight for each row"]),
        ([[1], [1], [1]], UsageError, ["sample_weight", "list", "one number for each row"]),
        (2.0, UsageError, ["sample_weight", "float", "one number for each row"]),
        (["a", "b", "c"], UsageError, ["sample_weight", "list", "one number for each row"]),
        (np.array([1, 2, 3j]), UsageError, ["sample_weight", "ndarray", "one number for each row"]),
        (np.array([1, 2, 3], "M8[s]"), UsageError, ["sample_weight", "ndarray", "one number for each row"]),
        ("weight", UsageError, ["no column 'weight'"]),
        (np.ma.masked_less([1.0, 2.0, 3.0], 2), UsageError, ["sample_weight", "masked"]),
    ],
)
def test_weights_that_are_none_are_refused(weights, error, words):
    X = np.eye(3, dtype=np.float32)
    km = KMeans(1).fit(X)
    for work in (KMeans(1).fit, KMeans(1).fit_predict, km.score):
        with pytest.raises(error) as caught:
            work(X, None, weights)
        for word in words:
            assert word in str(caught.value)


def test_weights_of_dask_input_that_are_none_are_refused():
    X = blobs(n=60)
    chunks, unknown = da.from_array(X, chunks=(20, 16)), da.from_array(X, chunks=(20, 16))[da.ones(60, chunks=20) > 0]
    frame = dd.from_pandas(pd.DataFrame({"v": to_column(X).array, "w": np.r_[np.ones(50), -1, np.ones(9)]}), 3)
    for rows, weights, words in (
        (frame, "w", ["partition 2, row 10", "weight is -1"]),
        (frame, frame["w"].repartition(npartitions=2), ["2 partitions", "X has 3"]),
        (frame, np.ones(59), ["59 weights for 60 rows"]),
        (frame, "x", ["no column 'x'"]),
        (chunks, da.ones(61, chunks=20), ["61 weights for 60 rows"]),
        (chunks, da.ones((60, 1), chunks=20), ["2 dimensions"]),
        (unknown, da.ones(60, chunks=30), ["2 partitions", "X has 3"]),
        (unknown, da.ones(60, chunks=((19, 21, 20),)), ["partition ", "weights for 20 rows"]),
    ):
        with pytest.raises((UsageError, DataError)) as caught:
            KMeans(2).fit(rows, sample_weight=weights)
        for word in words:
            assert word in str(caught.value)


def test_where_weights_have_no_meaning_they_are_refused():
    X = blobs()
    with pytest.raises(UsageError, match="max_cluster_size=9"):
        KMeans(2, max_cluster_size=9).fit(X, sample_weight=np.ones(600))
    with pytest.raises(UsageError, match="cuML gets no weights"):
        KMeans(2, engine="cuml").fit(X, sample_weight=np.ones(600))
    numbers = pd.DataFrame({"a": [1.0, 2.0, 3.0], "w": [1.0, 1.0, 0.0]})
    with pytest.raises(UsageError, match=r"every column(.|\n)*drop"):
        KMeans(2).fit(numbers, sample_weight="w")
    km = KMeans(2, normalize=False).fit(numbers[["a"]], sample_weight=numbers["w"])
    assert sorted(km.cluster_centers_.ravel()) == [1, 2]
    with pytest.raises(UsageError, match="n_samples=2"):
        KMeans(3).fit(numbers[["a"]], sample_weight=numbers["w"])


@pytest.mark.parametrize("room", [0.6, 0.0])
def test_a_device_has_the_bits_of_the_cpu(device, room):
    device.tuning = tuning = Tuning(rows_share=room, least_sample=1000)
    X, weights = blobs(12_000, d=8, k=20), weights_for(12_000, "steep")

    def fitted(where):
        with dask.config.set({"daskmeans.device": where}):
            return KMeans(30, random_state=1)._fit(X, sample_weight=weights, tuning=tuning)

    here, there = fitted("cpu"), fitted("gpu")
    same(here, there)
    np.testing.assert_array_equal(here.labels_, there.labels_)
    assert here.iterations_[0]["phases"] > 1
