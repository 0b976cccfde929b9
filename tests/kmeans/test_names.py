"""Columns of frames of numbers are known by their names, as scikit-learn knows them."""

from __future__ import annotations

import json
import re

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans as Reference

from daskmeans import KMeans
from daskmeans.errors import UsageError
from daskmeans.vectors.matrix import to_column
from helpers import blobs

X = pd.DataFrame(blobs(n=60, d=4), columns=list("abcd"))
WAYS = ["predict", "transform", "score", "build_index"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("columns", ["dcba", "abce", "abc", "abcde"])
def test_other_columns_are_refused_in_the_words_of_scikit_learn(way, loaded, columns, tmp_path):
    km = KMeans(3, n_init=1).fit(X)
    if loaded:
        km.save(tmp_path / "model")
        km = KMeans.load(tmp_path / "model")
    other = X.assign(e=0.0)[list(columns)]
    with pytest.raises(ValueError, match="feature names") as theirs:
        Reference(3, n_init=1).fit(X).predict(other)
    with pytest.raises(UsageError, match=re.escape(str(theirs.value).strip())):
        getattr(km, way)(other)


def test_many_other_columns_are_not_all_listed():
    wide = pd.DataFrame(blobs(n=60, d=40), columns=[f"x{i:02}" for i in range(40)])
    with pytest.raises(UsageError) as error:
        KMeans(3).fit(wide).predict(wide.rename(columns=str.upper))
    assert len(str(error.value).splitlines()) == 1 + 2 * 7 + 1


def test_names_are_kept_if_all_are_strings(tmp_path):
    km = KMeans(3).fit(X)
    assert km.feature_names_in_.tolist() == list("abcd")
    np.testing.assert_array_equal(km.predict(X), km.labels_)
    km.save(tmp_path / "model")
    assert KMeans.load(tmp_path / "model").feature_names_in_.tolist() == list("abcd")
    km.fit(X.set_axis([0, 1, 2, "d"], axis=1))
    assert not hasattr(km, "feature_names_in_")
    vectors = pd.DataFrame({"v": to_column(X.to_numpy())})
    for unnamed in (X.to_numpy(), vectors, dd.from_pandas(vectors, npartitions=2)):
        assert not hasattr(KMeans(3).fit(unnamed), "feature_names_in_")


def test_one_side_without_names_is_warned_of():
    named, unnamed = KMeans(3).fit(X), KMeans(3).fit(X.to_numpy())
    with pytest.warns(UserWarning, match="X does not have valid feature names") as found:
        named.predict(X.to_numpy())
    assert [warning.filename for warning in found] == [__file__]
    with pytest.warns(UserWarning, match="KMeans was fitted without feature names"):
        unnamed.transform(X)


def test_models_of_earlier_versions_have_no_names(tmp_path, monkeypatch):
    monkeypatch.setattr("daskmeans.storage.manifest.read_verified", lambda path, name, made: (path / name).read_bytes())
    KMeans(3).fit(X).save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    del facts["feature_names"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    assert not hasattr(KMeans.load(tmp_path / "model"), "feature_names_in_")
