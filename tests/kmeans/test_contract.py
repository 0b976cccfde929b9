"""KMeans stands where scikit-learn's stood: its checks of estimators hold, and its tools work around it."""

from __future__ import annotations

import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import dask.dataframe as dd
import distributed
import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone, is_clusterer
from sklearn.cluster import KMeans as Reference
from sklearn.cluster import kmeans_plusplus
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils import estimator_checks, get_tags

import daskmeans as dkm
from daskmeans import KMeans
from daskmeans.errors import ConvergenceWarning, UsageError
from daskmeans.vectors.matrix import to_column
from helpers import blobs, write_embeddings

# Checks of scikit-learn that fail, and why that is right.
NOT_A_NUMBER = "a cell that is no number raises UsageError, which is a ValueError, not a TypeError"
NUMBERED = "the first centroids are drawn by the numbers of the rows, and its rows are repeated and shuffled"
FAILING = {
    KMeans(normalize=False): {
        "check_dtype_object": NOT_A_NUMBER,
        "check_sample_weight_equivalence_on_dense_data": NUMBERED,
    },
    KMeans(): {
        "check_dtype_object": NOT_A_NUMBER,
        "check_sample_weight_equivalence_on_dense_data": NUMBERED,
        "check_estimators_dtypes": "it has a row of zeros, which has no direction to scale",
    },
}
# What scikit-learn asks of its own estimators only.
OF_ITS_OWN = [
    *("check_clustering", "check_clusterer_compute_labels_predict", "check_dataframe_column_names_consistency"),
    *("check_get_feature_names_out_error", "check_transformer_get_feature_names_out"),
    *("check_transformer_get_feature_names_out_pandas", "check_set_output_transform"),
    *("check_set_output_transform_pandas", "check_global_output_transform_pandas"),
    *("check_set_output_transform_polars", "check_global_set_output_transform_polars"),
    "check_inplace_ensure_writeable",
]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Checks of scikit-learn may warn, and leave files until Python ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("km", FAILING, ids=repr)
def test_the_checks_of_scikit_learn(km: KMeans, quiet: None) -> None:
    found = estimator_checks.check_estimator(km, expected_failed_checks=FAILING[km], on_skip=None, on_fail=None)
    assert len(found) > 40
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}
    assert not failed
    passed = {each["check_name"] for each in found if each["status"] == "passed"}
    assert not passed & FAILING[km].keys()


@pytest.mark.parametrize("name", OF_ITS_OWN)
def test_more_checks_of_scikit_learn(name: str, quiet: None) -> None:
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip(f"this scikit-learn has no {name}")
    check("KMeans", KMeans(3, normalize=False, random_state=0))


X = blobs(n=240, d=5, k=4)
UNIT = X / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
NAMED = pd.DataFrame(X, columns=list("abcde"), index=range(500, 740))


def first_rows(X: np.ndarray, n_clusters: int, random_state: np.random.RandomState) -> np.ndarray:
    assert isinstance(X, np.ndarray)
    assert isinstance(random_state, np.random.RandomState)
    return X[:n_clusters].copy()  # scikit-learn would move the rows with the centroids


class Runs:
    """Checkpoints that count the runs of a fit."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def last(self, run: int) -> None:
        self.begun.append(run)

    def save(self, run: int, fit: object) -> None:
        pass


def runs(**params: Any) -> int:
    counted = Runs()
    KMeans(3, **params).fit(X, checkpoints=counted)
    return len(counted.begun)


@pytest.mark.parametrize(
    ("init", "shown"),
    [
        (X[:3], "<ndarray of shape (3, 5)>"),
        (X[:3].tolist(), "<list of 3>"),
        (da.from_array(X[:3]), "<Array of shape (3, 5)>"),
        (NAMED[:3], "<DataFrame of shape (3, 5)>"),
        (KMeans(3), "KMeans(n_clusters=3)"),
        ("random", "'random'"),
    ],
)
def test_parameters_are_shown_in_short(init: Any, shown: str) -> None:
    km = KMeans(4, init=init)
    assert repr(km) == f"KMeans(n_clusters=4, init={shown})"
    pipeline = make_pipeline(StandardScaler(), km)
    for text in (km._repr_html_(), pipeline._repr_html_()):
        assert shown.replace("<", "&lt;").replace(">", "&gt;") in text.replace("&#x27;", "'")
    assert "".join(shown.split()) in "".join(repr(pipeline).split())


@pytest.mark.parametrize(
    "init", [X[:4].copy(), KMeans(4, random_state=1), first_rows], ids=["array", "model", "callable"]
)
def test_clones_start_where_the_original_does(init: Any) -> None:
    if isinstance(init, KMeans):
        init.fit(da.from_array(X, chunks=(70, 5)))  # labels that depend on futures or tasks are not copied
    km = KMeans(4, init=init, max_iter=2)
    expected = km.fit(X).cluster_centers_
    copied = clone(km.set_output(transform="pandas"))
    if callable(init):
        assert copied.init is init
    else:
        getattr(init, "cluster_centers_", init)[:] = 9  # does not reach the clone
    assert not hasattr(copied, "cluster_centers_")
    np.testing.assert_array_equal(copied.fit(X).cluster_centers_, expected)
    assert isinstance(copied.transform(X), pd.DataFrame)


def test_a_model_that_scikit_learn_has_emptied_says_what_to_give() -> None:
    grid = GridSearchCV(KMeans(3), {"init": [KMeans(3).fit(X)]}, cv=2, error_score="raise")
    with pytest.raises(UsageError, match=r"give km\.cluster_centers_"):
        grid.fit(X)
    grid.param_grid = {"init": [KMeans(3).fit(X).cluster_centers_, "random"]}
    assert grid.fit(X).best_score_ < 0


def test_scores_of_a_search_are_those_of_scikit_learn() -> None:
    start = KMeans(4, max_iter=0, init=UNIT[:4]).fit(X)
    tols = {"max_iter": [1, 2, 300]}
    ours = GridSearchCV(KMeans(4, init=start, tol=0), tols, cv=3).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        theirs = GridSearchCV(Reference(4, init=UNIT[:4], tol=0, n_init=1), tols, cv=3).fit(UNIT)
    assert ours.best_params_ == theirs.best_params_
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-5)
    np.testing.assert_allclose(
        cross_val_score(KMeans(4, init=start), X, cv=3),
        cross_val_score(Reference(4, init=UNIT[:4], n_init=1), UNIT, cv=3),
        rtol=1e-5,
    )


def test_a_search_on_the_workers_of_dask(client: distributed.Client) -> None:
    alone, several = (GridSearchCV(KMeans(3), {"n_clusters": [2, 4]}, cv=2, n_jobs=jobs) for jobs in (1, 2))
    with joblib.parallel_config("dask"):
        several.fit(X)
    assert several.best_params_ == alone.fit(X).best_params_ == {"n_clusters": 4}
    np.testing.assert_array_equal(several.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])


def test_runs_are_as_many_as_make_a_difference() -> None:
    assert [runs(init=init, n_init="auto") for init in ("auto", "k-means++", "k-means||", "random")] == [1, 1, 1, 10]
    assert runs(init=first_rows, n_init="auto") == 10
    assert runs(init=first_rows, n_init=2) == runs(init="random", n_init=2) == 2
    assert [runs(init=init, n_init=5) for init in (X[:3], X[:3].tolist(), KMeans(3).fit(X))] == [1, 1, 1]
    assert runs(init=X[:3], n_init="auto") == 1


def test_k_means_plus_plus_is_another_name() -> None:
    np.testing.assert_array_equal(
        *(KMeans(4, init=init, n_init="auto").fit(X).cluster_centers_ for init in ("k-means++", "k-means||"))
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_a_callable_gets_the_rows_that_are_compared(normalize: bool) -> None:
    theirs = Reference(4, init=first_rows, n_init=1).fit(UNIT if normalize else X.astype(float))
    ours = KMeans(4, init=first_rows, normalize=normalize).fit(X)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
    assert adjusted_rand_score(ours.labels_, theirs.labels_) == 1
    lazy = KMeans(4, init=first_rows, normalize=normalize).fit(da.from_array(X, chunks=(37, 2)))
    np.testing.assert_array_equal(lazy.cluster_centers_, ours.cluster_centers_)


def test_a_callable_may_draw_and_may_change_its_rows() -> None:
    def spoil(X: np.ndarray, n_clusters: int, random_state: np.random.RandomState) -> np.ndarray:
        found, _ = kmeans_plusplus(X, n_clusters, random_state=random_state)
        X[:] = 0
        return found

    fits = [KMeans(4, init=spoil, n_init=3, random_state=seed, normalize=False).fit(X) for seed in (1, 1, 2)]
    assert fits[0].inertia_ == fits[1].inertia_ == -fits[0].score(X)
    for km in fits:
        assert km.inertia_ < 1.5 * Reference(4, n_init=5, random_state=0).fit(X).inertia_


@pytest.mark.parametrize(
    ("returned", "told"),
    [(X[:2], r"shape \(2, 5\)"), (X[:3, :2], "5 dimensions"), (X[:3] * np.nan, "NaN"), ("no", "made of str")],
)
def test_what_a_callable_returns_is_checked(returned: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        KMeans(3, init=lambda X, n_clusters, random_state: returned).fit(X)


def test_a_callable_is_refused_where_a_fit_could_resume(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "in.parquet", X)
    for step in (dkm.fit, lambda files, km, out: dkm.run(files, out, km, 0.9)):
        with pytest.raises(UsageError, match=r"init: (.|\n)*as an array"):
            step(tmp_path / "in.parquet", KMeans(3, init=first_rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_others_ask_about_it() -> None:
    km, theirs = KMeans(3).fit(NAMED), Reference(3, n_init=1).fit(NAMED)
    assert is_clusterer(km)
    assert is_clusterer(make_pipeline(StandardScaler(), km))
    ours, expected = get_tags(km), get_tags(theirs)
    assert ours.transformer_tags.preserves_dtype == ["float32"]
    assert (ours.estimator_type, ours.target_tags) == (expected.estimator_type, expected.target_tags)
    np.testing.assert_array_equal(km.get_feature_names_out(), theirs.get_feature_names_out())
    with pytest.raises(NotFittedError):
        KMeans(3).get_feature_names_out()


def test_frames_through_pipelines() -> None:
    """Kinds, columns and index are those of scikit-learn's KMeans in the same place."""

    def around(of: Callable[[int], Any]) -> list[Any]:
        return [
            make_pipeline(MinMaxScaler(), of(3)),
            ColumnTransformer([("cluster", of(3), ["a", "c"]), ("scale", StandardScaler(), ["b"])]),
            FeatureUnion([("few", of(2)), ("more", of(4))]),
        ]

    def theirs(k: int) -> Reference:
        return Reference(k, init=first_rows, n_init=1)

    def ours(k: int) -> KMeans:
        return KMeans(k, init=first_rows, normalize=False)

    for our, their in zip(around(ours), around(theirs), strict=True):
        np.testing.assert_allclose(our.fit_transform(NAMED), their.fit_transform(NAMED), atol=1e-4)
        found, expected = (each.set_output(transform="pandas").fit_transform(NAMED) for each in (our, their))
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, atol=1e-4)
    labels = (X @ X[0] > 0).astype(int)
    assert cross_val_score(make_pipeline(KMeans(20), LogisticRegression()), X, labels).mean() > 0.8


def test_frames_of_lazy_input() -> None:
    km = KMeans(3).fit(X).set_output(transform="pandas")
    expected = pd.DataFrame(KMeans(3).fit(X).transform(X), columns=["kmeans0", "kmeans1", "kmeans2"])
    vectors = pd.DataFrame({"v": to_column(X).array}, index=NAMED.index)
    found = km.transform(dd.from_pandas(vectors, npartitions=3))
    assert isinstance(found, dd.DataFrame)
    pd.testing.assert_frame_equal(found.compute(), expected.set_index(NAMED.index))
    for rows in (da.from_array(X, chunks=(70, 5)), da.from_array(X, chunks=(70, 5))[da.ones(240, chunks=70) > 0]):
        np.testing.assert_array_equal(km.transform(rows).compute(), expected)
    pd.testing.assert_frame_equal(km.transform(X), expected)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(clone(km).set_output(transform="default").fit(X).transform(X), np.ndarray)


def test_frames_of_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    km = KMeans(3).fit(X)
    with pytest.raises(UsageError, match="'default', 'pandas', 'polars'"):
        km.set_output(transform="arrow")
    assert km.set_output(transform=None) is km.set_output(transform="polars") is km
    with pytest.raises(UsageError, match="transform='pandas'"):
        km.transform(da.from_array(X, chunks=(70, 5)))
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UsageError, match="pip install polars"):
        km.transform(X)
    monkeypatch.setitem(sys.modules, "polars", SimpleNamespace(DataFrame=lambda rows, schema, orient: (rows, schema)))
    rows, schema = km.transform(X)
    np.testing.assert_array_equal(rows, KMeans(3).fit(X).transform(X))
    assert schema == ["kmeans0", "kmeans1", "kmeans2"]


def test_it_does_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="not fitted yet"):
        KMeans(3).predict(X)
    km = KMeans(3, init=KMeans(3).fit(X)).fit(NAMED)
    assert list(km.set_output(transform="pandas").transform(NAMED).columns) == km.get_feature_names_out().tolist()
    assert km.set_output(transform="default").transform(NAMED).shape == (240, 3)
    assert repr(km.__sklearn_clone__()) == repr(km)


def test_pickles_hold_what_assigns_rows(tmp_path: Path) -> None:
    rows = np.tile(X, (400, 1))
    km = KMeans(3, init=da.from_array(X[:3])).fit(da.from_array(rows, chunks=(9000, 5)))
    pickled = pickle.dumps(km)
    assert len(pickled) < 20_000 < rows.nbytes
    again = pickle.loads(pickled)
    assert again.get_params().keys() == km.get_params().keys()  # a lazy parameter is kept
    np.testing.assert_array_equal(again.predict(X), km.predict(X))
    joblib.dump(km, tmp_path / "km")
    mapped = joblib.load(tmp_path / "km", mmap_mode="r")
    parts = joblib.Parallel(2, prefer="threads")(joblib.delayed(mapped.predict)(part) for part in np.array_split(X, 2))
    np.testing.assert_array_equal(np.concatenate(parts), km.predict(X))


@pytest.mark.parametrize("make", [np.asarray, lambda rows: da.from_array(rows, chunks=(4, 3))], ids=["array", "dask"])
@pytest.mark.parametrize("init", ["auto", "random", "k-means||", first_rows, np.eye(6, 3)])
def test_fewer_distinct_rows_than_clusters_are_told_in_numbers(make: Callable[..., Any], init: Any) -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    with pytest.warns(ConvergenceWarning, match="only 3 of n_clusters = 6 ") as found:
        KMeans(6, init=init).fit(make(rows))
    assert [warning.filename for warning in found] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KMeans(3).fit(make(rows))
        KMeans(6, max_iter=0, init=np.eye(6, 3)).fit(make(rows))  # given centroids that are to stay may be far away
