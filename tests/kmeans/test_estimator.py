"""The estimator against scikit-learn, its contract, and equal bits however the rows are spread."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import KMeans as Reference
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from upath import UPath

from daskmeans import KMeans
from daskmeans.errors import ConvergenceWarning, DataError, NotFoundError, OutputError, UsageError
from daskmeans.kmeans.engine.lloyd import fit_blocks
from daskmeans.kmeans.engine.seeding import seed_plus_plus
from daskmeans.kmeans.engine.state import FitState, NoCheckpoints
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.steps.fit import fit as fit_files
from daskmeans.storage import manifest
from daskmeans.tuning import Tuning
from daskmeans.vectors.matrix import to_column
from helpers import KINDS, adversarial, blobs, nightly, write_embeddings


def frame(X: np.ndarray, npartitions: int) -> dd.DataFrame:
    ids = pd.array([f"r{i}" for i in range(len(X))], dtype="string[pyarrow]")
    return dd.from_pandas(pd.DataFrame({"id": ids, "embedding": to_column(X).array}), npartitions=npartitions)


@given(seed=st.integers(0, 50), k=st.integers(1, 20), normalize=st.booleans())
def test_same_start_same_result_as_scikit_learn(seed, k, normalize):
    X = blobs(n=300, d=7, seed=seed, copies=20)
    wide = X.astype(float)
    wide = wide / np.linalg.norm(wide, axis=1, keepdims=True) if normalize else wide
    start = X[:: len(X) // k][:k]
    ours = KMeans(k, init=start, max_iter=20, tol=0, normalize=normalize).fit(X)
    theirs = Reference(k, init=start.astype(float), max_iter=20, tol=0, n_init=1, algorithm="lloyd").fit(wide)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)
    # Several clusters that run empty at once may be refilled in another order, which changes their numbers only.
    own = theirs.cluster_centers_[theirs.labels_]
    np.testing.assert_allclose(ours.cluster_centers_[ours.labels_], own, atol=1e-5)


def test_empty_clusters_are_refilled_as_scikit_learn_does():
    X = blobs(n=200, d=4, copies=10)
    far = np.full((3, 4), 50, np.float32) + np.arange(3, dtype=np.float32)[:, None]
    start = np.concatenate([X[:2], far])
    ours = KMeans(5, init=start, max_iter=10, tol=0, normalize=False).fit(X)
    theirs = Reference(5, init=start.astype(float), max_iter=10, tol=0, n_init=1, algorithm="lloyd").fit(
        X.astype(float)
    )
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)
    assert len(np.unique(ours.labels_)) == 5


def test_a_cluster_that_is_refilled_stays_among_the_rows():
    """Long steps must not carry a centroid on that has jumped to a row from far away."""
    X = blobs(n=600, d=2, k=6)
    start = np.vstack([X[:5], [[500, -500]]]).astype(np.float32)
    after_the_sample = NoCheckpoints()
    after_the_sample.last = lambda run: FitState(start, start, start, phase=1, phases=2)
    ours, _ = fit_blocks(
        load_blocks(X, None, False, 1.0, 0, None),
        list,
        max_iter=50,
        tol=0,
        seed=0,
        grow=True,
        checkpoints=after_the_sample,
        tuning=Tuning(least_sample=0),
    )
    theirs = Reference(6, init=start.astype(float), tol=0, n_init=1).fit(X.astype(float))
    assert ours.inertia < 1.02 * theirs.inertia_
    assert max(b / a for a, b in pairwise(ours.history)) < 1.01


def test_fewer_distinct_rows_than_clusters_ends_with_zero_inertia():
    X = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    for init in ("auto", "k-means||", "random"):
        km = KMeans(6, init=init, random_state=1).fit(X)
        assert km.inertia_ == pytest.approx(0, abs=1e-9)
        assert km.converged_


@pytest.mark.parametrize("init", ["auto", "k-means||", "random"])
def test_well_separated_clusters_are_found(init):
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(10), 50)
    X = (np.eye(10)[truth] * 10 + rng.normal(scale=0.3, size=(500, 10))).astype(np.float32)
    km = KMeans(10, init=init, n_init=5, random_state=0).fit(X)
    assert adjusted_rand_score(truth, km.labels_) > (0.8 if init == "random" else 0.99)


def test_quality_is_that_of_scikit_learn():
    X = blobs(n=3000, d=16, k=40, copies=0)
    ours = np.mean([KMeans(40, random_state=s, normalize=False).fit(X).inertia_ for s in range(5)])
    theirs = np.mean([Reference(40, random_state=s, n_init=1).fit(X.astype(float)).inertia_ for s in range(5)])
    assert ours < 1.03 * theirs


@pytest.mark.parametrize("init", ["auto", *map(nightly, ("k-means||", "random"))])
def test_equal_bits_for_any_partitions_and_workers(init, client, thread_client):
    X = blobs(n=1300, d=24, k=12)
    settings = {"n_clusters": 12, "init": init, "max_iter": 8, "random_state": 5, "n_init": 2}

    def fitted(X, client=None):
        return KMeans(**settings)._fit(X, client=client, tuning=Tuning(least_sample=0))

    alone = fitted(X)
    others = {f"{n} partitions": fitted(frame(X, n)) for n in (1, 7, 64)}
    others["dask array"] = fitted(da.from_array(X, chunks=(131, 10)))
    for workers in (1, 4):
        others[f"{workers} workers"] = fitted(frame(X, 7), client=thread_client(workers))
    others["2 processes"] = fitted(frame(X, 7), client=client)
    others["2 processes, numpy"] = fitted(X, client=client)
    for name, km in others.items():
        np.testing.assert_array_equal(km.cluster_centers_, alone.cluster_centers_, err_msg=name)
        np.testing.assert_array_equal(np.asarray(km.labels_), alone.labels_, err_msg=name)
        assert km.inertia_ == alone.inertia_, name
        assert km.inertia_history_ == alone.inertia_history_, name


def test_updates_on_near_groups_give_equal_bits_and_exact_labels(client, thread_client):
    def fitted(X, client=None):
        return KMeans(150, random_state=5, max_iter=8)._fit(X, client=client, tuning=Tuning(near_groups=1))

    X = blobs(n=1500, d=24, k=40)
    alone = fitted(X)
    compared = [update["compared"] for update in alone.iterations_]
    assert max(compared[:3]) < 0.8 < compared[3]
    np.testing.assert_array_equal(alone.predict(X), alone.labels_)
    for found in (
        fitted(frame(X, 7)),
        fitted(frame(X, 7), client=thread_client(4)),
        fitted(X, client=client),
    ):
        np.testing.assert_array_equal(found.cluster_centers_, alone.cluster_centers_)
        np.testing.assert_array_equal(np.asarray(found.labels_), alone.labels_)
        assert found.inertia_history_ == alone.inertia_history_


def test_sample_fraction_is_the_same_sample_in_any_partitions():
    X = blobs(n=1000, d=8)
    fits = [KMeans(5, sample_fraction=0.3, max_iter=3).fit(frame(X, n)) for n in (1, 9)]
    np.testing.assert_array_equal(fits[0].cluster_centers_, fits[1].cluster_centers_)
    assert not np.array_equal(fits[0].cluster_centers_, KMeans(5, max_iter=3).fit(X).cluster_centers_)
    assert fits[0].labels_.compute().shape == (1000,)


def test_labels_of_dask_input_are_lazy_and_equal_to_predict():
    X = blobs()
    km = KMeans(6).fit(frame(X, 3))
    assert isinstance(km.labels_, da.Array)
    np.testing.assert_array_equal(km.labels_.compute(), km.predict(X))
    lazy = km.predict(da.from_array(X, chunks=(100, 16)))
    assert lazy.shape == (600,)
    np.testing.assert_array_equal(lazy, km.predict(X))
    np.testing.assert_allclose(km.transform(da.from_array(X, chunks=(100, 16))), km.transform(X))


def test_n_init_keeps_the_best_run():
    X = blobs(n=400, k=20)
    single = [KMeans(20, init="random", random_state=s, max_iter=4).fit(X).inertia_ for s in (7, 8, 9)]
    assert KMeans(20, init="random", random_state=7, n_init=3, max_iter=4).fit(X).inertia_ == min(single)


def test_max_iter_zero_keeps_the_given_centroids(tmp_path):
    X = blobs()
    start = X[:4].copy()
    np.save(tmp_path / "start.npy", start)
    for init in (start, start.tolist(), str(tmp_path / "start.npy")):
        km = KMeans(4, max_iter=0, init=init).fit(X)
        np.testing.assert_array_equal(km.cluster_centers_, start)
        assert km.n_iter_ == 0


def test_warm_start_from_an_estimator_and_from_disk(tmp_path):
    X = blobs()
    first = KMeans(5, max_iter=2).fit(X)
    first.save(tmp_path / "model")
    for init in (first, str(tmp_path / "model")):
        np.testing.assert_array_equal(
            KMeans(5, max_iter=3, init=init).fit(X).cluster_centers_,
            KMeans(5, max_iter=3, init=first.cluster_centers_).fit(X).cluster_centers_,
        )


def test_saved_model_predicts_the_same(tmp_path):
    X = blobs()
    km = KMeans(5, normalize=False).fit(X)
    km.save(tmp_path / "model")
    loaded = KMeans.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(X), km.labels_)
    assert (loaded.inertia_, loaded.n_iter_, loaded.normalize) == (km.inertia_, km.n_iter_, False)
    with pytest.raises(OutputError, match="--overwrite"):
        km.save(tmp_path / "model")
    km.save(tmp_path / "model", overwrite=True)


def test_models_travel_over_any_file_system():
    km = KMeans(3).fit(blobs())
    km.save("memory://models/one")
    np.testing.assert_array_equal(KMeans.load("memory://models/one").cluster_centers_, km.cluster_centers_)


def test_contract_of_scikit_learn():
    km = KMeans(4, tol=0.5, random_state=3)
    assert clone(km).get_params() == km.get_params()
    assert km.set_params(n_clusters=2) is km
    assert repr(km) == "KMeans(n_clusters=2, tol=0.5, random_state=3)"
    assert "tol=0.5" in km._repr_html_()
    X = blobs()
    before = X.copy()
    np.testing.assert_array_equal(km.fit_predict(X), km.predict(X))
    np.testing.assert_array_equal(X, before)
    assert "2 × 16" in km._repr_html_()
    assert km.transform(X).shape == (600, 2)
    np.testing.assert_array_equal(km.transform(X).argmin(1), km.labels_)
    assert km.score(X) == pytest.approx(-km.inertia_)
    assert km.fit_transform(X).shape == (600, 2)
    with pytest.raises(NotFittedError):
        KMeans().predict(X)
    with pytest.raises(UsageError, match="0 sample"):
        km.score(X[:0])
    assert KMeans(4, random_state=2**62 - 1).fit(X).n_iter_
    pipeline = make_pipeline(FunctionTransformer(), KMeans(3))
    assert len(np.unique(pipeline.fit_predict(X))) == 3


@pytest.mark.parametrize(
    ("params", "X", "error", "words"),
    [
        ({"n_clusters": 0}, np.eye(3), UsageError, ["n_clusters=0", ">= 1"]),
        ({"n_clusters": 9}, np.eye(3), UsageError, ["n_samples=3", "n_clusters=9"]),
        ({"init": "nowhere"}, np.eye(3), NotFoundError, ["nowhere", "k-means||"]),
        ({"n_clusters": 2, "init": np.eye(3)}, np.eye(3), UsageError, ["(3, 3)", "(2,"]),
        ({"n_clusters": 2, "init": np.eye(2)}, np.eye(3), DataError, ["3 dimensions", "2"]),
        ({"n_clusters": 1}, [[1.0, np.nan]], DataError, ["row 0", "NaN"]),
        ({"n_clusters": 1}, [[1.0, 1.0], [0.0, 0.0]], DataError, ["row 1", "zeros", "normalize=False"]),
        ({"n_clusters": 1, "normalize": False}, [[1.0, 1.0], [1e30, 1.0]], DataError, ["row 1", "1e15", "scale"]),
        ({"n_clusters": 1}, [1.0, 2.0], UsageError, ["2D"]),
        ({"n_clusters": 1}, np.empty((3, 0)), UsageError, ["0 feature(s)"]),
        ({"n_clusters": True}, np.eye(3), UsageError, ["n_clusters=True"]),
        ({"tol": "x"}, np.eye(3), UsageError, ["tol='x'", "number"]),
        ({"n_clusters": 2, "init": 1e16 * np.eye(2)}, np.eye(2), DataError, ["1e15"]),
        ({"n_clusters": 3, "sample_fraction": 1e-9}, np.eye(3), UsageError, ["n_samples=0", "larger sample_fraction"]),
        ({"n_clusters": 1, "random_state": -1}, np.eye(2), UsageError, ["random_state=-1"]),
        ({"n_clusters": 1, "random_state": 2**62}, np.eye(2), UsageError, ["random_state=4"]),
        ({"n_clusters": 1, "engine": "magic"}, np.eye(2), UsageError, ["magic", "native"]),
        ({"n_clusters": 1, "sample_fraction": 0}, np.eye(2), UsageError, ["sample_fraction", "(0, 1]"]),
        ({"normalize": "no"}, np.eye(9), UsageError, ["normalize='no'", "True or False"]),
        ({"normalize": 0}, np.eye(9), UsageError, ["normalize=0", "True or False"]),
        ({"normalize": None}, np.eye(9), UsageError, ["normalize=None", "True or False"]),
        ({"sample_fraction": "0.5"}, np.eye(9), UsageError, ["sample_fraction='0.5'", "number"]),
        ({"sample_fraction": True}, np.eye(9), UsageError, ["sample_fraction=True", "number"]),
        ({"tol": False}, np.eye(9), UsageError, ["tol=False", "number"]),
        ({"tol": 1j}, np.eye(9), UsageError, ["tol=1j", "number"]),
        ({"oversampling_factor": np.inf}, np.eye(9), UsageError, ["oversampling_factor=inf", "number"]),
        ({"n_init": "many"}, np.eye(9), UsageError, ["n_init='many'", "integer", "auto"]),
        ({"n_init": 2.0}, np.eye(9), UsageError, ["n_init=2.0", "integer"]),
        ({"max_iter": None}, np.eye(9), UsageError, ["max_iter=None", "integer"]),
        ({"max_cluster_size": "9"}, np.eye(9), UsageError, ["max_cluster_size='9'", "integer"]),
        ({"n_clusters": np.timedelta64(2)}, np.eye(9), UsageError, ["n_clusters", "integer"]),
        ({"random_state": True}, np.eye(9), UsageError, ["random_state=True", "integer"]),
        ({"random_state": "42"}, np.eye(9), UsageError, ["random_state='42'", "integer"]),
        ({"engine": np.array(["cuml", "native"])}, np.eye(9), UsageError, ["engine=", "native"]),
        ({"init": KMeans(2)}, np.eye(9), UsageError, ["init", "KMeans", "fitted"]),
        ({"init": [[1.0], [1.0, 2.0]]}, np.eye(9), UsageError, ["init", "list", "array of numbers"]),
        ({"n_clusters": 2, "init": np.ma.masked_less(np.eye(2), 1)}, np.eye(2), UsageError, ["init", "masked"]),
        ({"n_clusters": 2, "init": Path("nowhere.npy")}, np.eye(2), NotFoundError, ["nowhere.npy"]),
        ({"n_clusters": 2}, np.ma.masked_less(np.eye(2), 0), UsageError, ["masked", "filled"]),
    ],
)
def test_wrong_use_says_what_to_do(params, X, error, words):
    with pytest.raises(error) as caught:
        KMeans(**params).fit(np.asarray(X, np.float32) if not isinstance(X, np.ndarray) else X)
    for word in words:
        assert word in str(caught.value)


def test_masked_arrays_are_refused_in_whatever_they_come():
    masked = np.ma.masked_greater(blobs(), 2)
    chunks = da.from_array(blobs(), chunks=(100, 16)).map_blocks(np.ma.masked_greater, 2, meta=np.empty((0, 0), "f4"))
    km = KMeans(2).fit(blobs())
    for X in (masked, da.from_array(masked, chunks=(100, 16)), da.ma.masked_greater(da.ones((9, 16)), 2), chunks):
        for work in (KMeans(2).fit, km.predict, km.transform, km.score):
            with pytest.raises(UsageError, match=r"masked(.|\n)*filled"):
                np.asarray(work(X))


@pytest.mark.parametrize("way", ["fit", "predict", "transform", "score", "build_index"])
def test_a_column_is_that_of_a_frame_and_is_one(way):
    km, X = KMeans(2).fit(blobs()), pd.DataFrame({"v": to_column(blobs())})
    with pytest.raises(UsageError, match=r"ndarray, which has no columns(.|\n)*leave column out"):
        getattr(km, way)(blobs(), column="v")
    with pytest.raises(UsageError, match=r"column=\['v'\](.|\n)*one column"):
        getattr(km, way)(X, column=["v"])


def test_flags_are_true_or_false(tmp_path, embeddings):
    km = KMeans(2).fit(blobs())
    km.save(tmp_path / "model")
    with pytest.raises(UsageError, match="overwrite='no'"):
        km.save(tmp_path / "model", overwrite="no")
    with pytest.raises(UsageError, match="overwrite='no'"):
        fit_files(embeddings, tmp_path / "model", km, overwrite="no")


def test_parameters_may_be_numbers_of_numpy(tmp_path, embeddings):
    here, theirs = {"n_clusters": 2, "max_iter": 9, "tol": 0.5, "normalize": False}, {}
    for name, value in here.items():
        theirs[name] = np.array([value])[0]
    KMeans(**theirs).fit(blobs()).save(tmp_path / "saved")
    fit_files(embeddings, tmp_path / "fitted", KMeans(**theirs))
    for name in ("saved", "fitted"):
        assert KMeans.load(tmp_path / name).get_params() == KMeans(**here).get_params()
    fit_files(embeddings, tmp_path / "again", KMeans(**here))
    settings = [manifest.read_manifest(UPath(tmp_path / name), "fit")["settings"] for name in ("fitted", "again")]
    assert settings[0] == settings[1]


def test_rows_of_another_dimension_are_refused():
    km = KMeans(2).fit(blobs())
    with pytest.raises(DataError, match="features"):
        km.predict(np.ones((3, 5), np.float32))


def test_unknown_parameter_is_named():
    with pytest.raises(UsageError, match="n_cluster"):
        KMeans().set_params(n_cluster=3)


def test_plus_plus_takes_the_row_that_lowers_the_potential_most():
    # Two far groups and one row between: whatever row comes first, the second must lie in the other group.
    X = np.float32([[0, 0], [0, 1], [1, 0], [50, 50], [100, 100], [100, 101], [101, 100]])
    weights = np.array([5, 5, 5, 1, 5, 5, 5])
    for seed in range(20):
        first, second = sorted(seed_plus_plus(X, weights, 2, seed))
        assert first < 3 < second


def test_plus_plus_never_takes_a_row_twice_nor_one_without_weight_while_others_are_left():
    X = np.float32([[0, 0], [0, 0], [1, 0], [0, 2], [9, 9]])
    weights = np.array([1, 1, 1, 1, 0])
    for seed in range(20):
        assert set(seed_plus_plus(X, weights, 3, seed).tolist()) in ({0, 2, 3}, {1, 2, 3})
        assert sorted(seed_plus_plus(X, weights, 5, seed).tolist()) == [0, 1, 2, 3, 4]


def test_a_fit_that_ends_before_it_converges_warns():
    X = np.random.default_rng(0).normal(size=(500, 8))
    with pytest.warns(ConvergenceWarning, match="max_iter = 2"):
        KMeans(20, max_iter=2).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KMeans(6).fit(blobs()).converged_
        KMeans(6, max_iter=0).fit(blobs())


class Kept:
    """Checkpoints of every update, in memory; `at` is the one to go on from."""

    def __init__(self, at: int | None = None, fits: Sequence[FitState] = ()) -> None:
        self.at, self.fits = at, list(fits)

    def last(self, run: int) -> FitState | None:
        return None if self.at is None else copy.deepcopy(self.fits[self.at])

    def save(self, run: int, fit: FitState) -> None:
        self.fits.append(copy.deepcopy(fit))


@pytest.mark.parametrize("init", ["auto", "random"])
def test_a_fit_goes_on_from_any_update_to_the_same_bits(init):
    X = blobs(n=4000, d=12, k=30)
    settings = {"n_clusters": 25, "init": init, "random_state": 3}
    kept, tuning = Kept(), Tuning(least_sample=0)
    whole = KMeans(**settings)._fit(X, checkpoints=kept, tuning=tuning)
    phases = {fit.phase for fit in kept.fits}
    assert phases == ({0, 1} if init == "auto" else {0})
    for at in range(len(kept.fits)):
        again = KMeans(**settings)._fit(X, checkpoints=Kept(at, kept.fits), tuning=tuning)
        np.testing.assert_array_equal(again.cluster_centers_, whole.cluster_centers_, err_msg=str(at))
        np.testing.assert_array_equal(again.labels_, whole.labels_)
        assert (again.inertia_, again.inertia_history_) == (whole.inertia_, whole.inertia_history_)
        assert again.n_iter_ == whole.n_iter_


def test_the_default_ends_lower_than_lloyd_from_the_same_rows_or_nearly():
    X = blobs(n=6000, d=16, k=60, copies=0)
    ratios = [
        KMeans(60, random_state=s).fit(X).inertia_ / KMeans(60, init="k-means||", random_state=s).fit(X).inertia_
        for s in range(5)
    ]
    assert np.mean(ratios) < 1.01


def test_the_last_update_leaves_means_of_rows():
    X = blobs(n=3000, d=8, k=20)
    km = KMeans(20, max_iter=4, normalize=False).fit(X)
    # The labels that these centroids came from are those of the update before; from a converged fit they are the same.
    done = KMeans(20, tol=0, normalize=False).fit(X)
    means = np.stack([X[done.labels_ == c].astype(float).mean(0) for c in range(20)])
    np.testing.assert_allclose(done.cluster_centers_, means, atol=1e-5)
    assert km.inertia_ <= km.inertia_history_[-1] * (1 + 1e-9)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_one_cluster_for_each_row(d):
    X = np.random.default_rng(0).normal(size=(150, d)).astype(np.float32)
    km = KMeans(150, normalize=False).fit(X)
    assert km.inertia_ == pytest.approx(0, abs=1e-9)
    assert len(np.unique(km.labels_)) == 150


@pytest.mark.parametrize("init", ["auto", "random"])
@pytest.mark.parametrize("kind", [*KINDS, "outlier", "far away"])
def test_inertia_is_that_of_the_labels_whatever_the_range_of_the_rows(kind, init):
    X = adversarial(kind, 400, 6, 1, seed=2)[0] if kind in KINDS else adversarial("plain", 400, 6, 1, seed=2)[0]
    if kind == "outlier":
        X[7] *= 1e9
    elif kind == "far away":
        X += 1e5
    km = KMeans(9, normalize=False, init=init, tol=0, max_iter=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        km.fit(X)
    expected = ((X.astype(float) - km.cluster_centers_[km.labels_]) ** 2).sum()
    assert km.inertia_ == pytest.approx(expected, rel=1e-12)
    assert -km.score(X) == km.inertia_
    assert km.inertia_history_[-1] >= 0.99 * expected  # a means' rounding lies between the two
    better = KMeans(9, normalize=False, init=init, tol=0, max_iter=8, n_init=3, random_state=42).fit(X)
    assert better.inertia_ <= km.inertia_


def test_frames_are_read_as_they_are_cut(tmp_path):
    """Dask reads several files at once if only some columns are wanted; labels go by partitions nevertheless."""
    X = blobs(n=300, d=8)
    for i in range(6):
        texts = ["a long text " * 100] * 50
        write_embeddings(tmp_path / f"{i}.parquet", X[50 * i : 50 * i + 50], text=texts, second=texts)
    frame = dd.read_parquet(tmp_path)
    assert frame["embedding"].optimize().npartitions < frame.npartitions == 6
    km = KMeans(5).fit(frame, column="embedding")
    np.testing.assert_array_equal(km.labels_, KMeans(5).fit(X).labels_)
    assert km.predict(frame, column="embedding").npartitions == 6
    assert km.transform(frame, column="embedding").compute().shape == (300, 5)


def test_frames_of_pandas():
    X = blobs(n=60, d=4)
    expected = KMeans(3).fit(X)
    vectors = pd.DataFrame({"name": "a", "vector": list(X)})
    mixed = pd.DataFrame(
        {0: pd.array(X[:, 0], "Float64"), 1: X[:, 1], 2: pd.Series(X[:, 2], dtype="float[pyarrow]"), 3: X[:, 3]}
    )
    for pandas in (pd.DataFrame(X), mixed, vectors):
        np.testing.assert_array_equal(KMeans(3).fit(pandas).labels_, expected.labels_)
        np.testing.assert_array_equal(expected.predict(pandas), expected.labels_)
    np.testing.assert_array_equal(KMeans(3).fit(vectors, column="vector").labels_, expected.labels_)
    with pytest.raises(UsageError, match="name"):
        KMeans(3).fit(vectors, column="other")


def test_partitions_that_a_filter_has_emptied(tmp_path):
    X = blobs(n=90, d=4)
    for i in range(3):
        write_embeddings(tmp_path / f"{i}.parquet", X[30 * i : 30 * i + 30], keep=[i] * 30)
    frame = dd.read_parquet(tmp_path)
    frame = frame[frame.keep != 1]
    km = KMeans(3).fit(frame, column="embedding")
    expected = KMeans(3).fit(np.vstack([X[:30], X[60:]]))
    np.testing.assert_array_equal(km.labels_.compute(), expected.labels_)
    assert km.score(frame, column="embedding") == expected.score(np.vstack([X[:30], X[60:]]))
