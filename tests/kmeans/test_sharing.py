"""Nobody shares memory with a model: neither what a caller gave nor what the model gives away."""

from __future__ import annotations

from itertools import combinations

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from daskmeans import KMeans, assign
from daskmeans.vectors.matrix import to_column
from helpers import blobs


def arrays_of(km: KMeans) -> list[np.ndarray]:
    return [km.cluster_centers_, km.labels_, km.predict(X()), km.transform(X())]


def X(n: int = 90) -> np.ndarray:
    return blobs(n=n, d=4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("max_iter", [0, 20])
@pytest.mark.parametrize("init", ["auto", "random", "array", "estimator"])
def test_models_share_nothing_with_their_callers(normalize, max_iter, init, tmp_path):
    rows, start = X(), X()[:3].copy()
    other = KMeans(3, init=X()[3:6], max_iter=0).fit(rows)
    given = {"array": start, "estimator": other}.get(init, init)
    km = KMeans(3, init=given, max_iter=max_iter, normalize=normalize).fit(rows)
    km.save(tmp_path / "model")
    loaded = KMeans.load(tmp_path / "model")
    held = [rows, start, *arrays_of(other), *arrays_of(km), loaded.cluster_centers_]
    assert not [pair for pair in combinations(held, 2) if np.shares_memory(*pair)]
    np.testing.assert_array_equal(rows, X())
    np.testing.assert_array_equal(start, X()[:3])
    km.cluster_centers_[:] = 7  # it is the caller's to change
    if init == "array" and not max_iter:
        np.testing.assert_array_equal(loaded.cluster_centers_, start)


def test_facts_of_an_index_are_the_models_own():
    pytest.importorskip("faiss")
    km = KMeans(8).fit(X())
    index = km.build_index(X())
    index.facts["recall"] = None
    assert km.ann_["recall"] is not None


def test_a_lazy_result_is_that_of_the_model_it_was_asked_of():
    first, second = X(), X(60) @ np.diag([-1, 1, -1, 1]).astype(np.float32)
    frame = dd.from_pandas(pd.DataFrame({"id": range(90), "v": to_column(first)}), npartitions=2)
    km, right = KMeans(3), KMeans(3).fit(first)
    km.fit(da.from_array(first, chunks=(40, 4)))
    lazy = [km.labels_, km.predict(frame), km.transform(frame), assign(frame, km)["centroid"]]
    km.fit(second)
    km.cluster_centers_ += 1
    expected = [right.labels_, right.labels_, right.transform(first), right.labels_]
    for found, wanted in zip(lazy, expected, strict=True):
        np.testing.assert_array_equal(found.compute(), wanted)


def test_a_model_that_a_lazy_result_holds_is_small():
    n = 300_000
    km = KMeans(2, max_iter=0, init=np.eye(2)).fit(np.tile(np.eye(2, dtype=np.float32), (n // 2, 1)))
    lazy = km.predict(da.ones((4, 2), chunks=(2, 2)))
    held = [value for value in vars(next(iter(_models(lazy)))).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in held) == km.cluster_centers_.nbytes


def _models(lazy: da.Array) -> list[KMeans]:
    return [node.value for node in lazy.dask.values() if isinstance(getattr(node, "value", None), KMeans)]
