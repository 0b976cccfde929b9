"""What is public in Python: one name for a step on files and on rows, and results that say what they are."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from upath import UPath

import daskmeans as dkm
from daskmeans.errors import UsageError
from daskmeans.steps.assign import assign_files
from daskmeans.steps.settings import Storing
from daskmeans.storage.result import StepResult, html_table
from daskmeans.vectors.matrix import to_column, to_matrix
from daskmeans.vectors.options import ReadOptions
from helpers import blobs, write_embeddings

X = blobs(200)
PARAMS = {"n_clusters": 4, "init": "random", "random_state": None, "max_iter": 5}


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return write_embeddings(tmp_path / "in.parquet", X, [f"row {i}" for i in range(200)])


def frame() -> pd.DataFrame:
    rows = pd.DataFrame({"id": [f"row {i}" for i in range(200)], "embedding": to_column(X)})
    return rows.set_index(pd.Index(np.arange(200)[::-1] * 3))


def test_a_fit_on_files_is_that_on_rows_and_leaves_the_parameters(tmp_path, given) -> None:
    of_files, of_rows, of_frame = (dkm.KMeans(**PARAMS | {"random_state": 7}) for _ in range(3))
    assert dkm.fit(given, of_files, tmp_path / "model") is of_files
    assert dkm.fit(X, of_rows) is of_rows
    dkm.fit(frame(), of_frame, column="embedding")
    for km in (of_rows, of_frame, dkm.KMeans.load(tmp_path / "model")):
        np.testing.assert_array_equal(km.cluster_centers_, of_files.cluster_centers_)
    drawn = dkm.KMeans(**PARAMS)
    for inputs, out in ((given, tmp_path / "drawn"), ([str(given)], tmp_path / "again"), (X, None)):
        dkm.fit(inputs, drawn, out)
        assert drawn.get_params() == dkm.KMeans(**PARAMS).get_params()


def test_initial_centroids_that_were_given_stay_what_they_are(tmp_path, given) -> None:
    init = X[:4].copy()
    km = dkm.KMeans(4, init=init, max_iter=3)
    dkm.fit(given, km, tmp_path / "model")
    assert km.init is init
    np.testing.assert_array_equal(init, X[:4])
    np.save(tmp_path / "init.npy", init)
    km = dkm.KMeans(4, init=str(tmp_path / "init.npy"))
    dkm.run(given, tmp_path / "run", km, 0.9)
    assert km.init == str(tmp_path / "init.npy")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_pandas_are_assigned_as_those_of_dask_and_of_files(tmp_path, given, dtype) -> None:
    km = dkm.fit(given, dkm.KMeans(4), tmp_path / "model")
    rows = frame()
    before = rows.copy(deep=True)
    found = dkm.assign(rows, km, dtype=dtype)
    pd.testing.assert_frame_equal(rows, before)
    with dask.config.set({"dataframe.convert-string": False}):
        lazy = dkm.assign(dd.from_pandas(rows, npartitions=3, sort=False), tmp_path / "model", dtype=dtype)
        pd.testing.assert_frame_equal(lazy.compute(), found)
    assert found.index.equals(rows.index)
    distances = np.linalg.norm(X[:, None].astype(float) / np.linalg.norm(X, axis=1)[:, None, None]
                               - km.cluster_centers_, axis=2)  # fmt: skip
    np.testing.assert_array_equal(found["centroid"], distances.argmin(axis=1))
    made = dkm.assign(given, tmp_path / "model", tmp_path / "clusters", dtype=dtype, layout="hive")
    theirs = assign_files(given, tmp_path / "model", tmp_path / "theirs", storing=Storing("hive", dtype))
    stored = pd.concat([made.read(cluster).to_pandas() for cluster in made.clusters()]).set_index("id")
    assert (made.rows, made.layout) == (theirs.rows, theirs.layout) == (200, "hive")
    both = stored.loc[found["id"]]
    np.testing.assert_array_equal(both["centroid"], found["centroid"])
    np.testing.assert_array_equal(np.stack(both["embedding"]), to_matrix(found["embedding"]))
    assert np.stack(both["embedding"]).dtype == dtype


@pytest.mark.parametrize(
    ("call", "where", "told"),
    [
        (lambda at, km: dkm.fit(at, km), "out", "a path"),
        (lambda at, km: dkm.fit(at, km, at / "model", column="v"), "column", "with files"),
        (lambda at, km: dkm.fit(X, km, at / "model"), "out", "with rows in memory"),
        (lambda at, km: dkm.fit(X, km, reading=ReadOptions(id_field="key")), "reading", "with rows in memory"),
        (lambda at, km: dkm.fit(X, km, overwrite=True), "overwrite", "with rows in memory"),
        (lambda at, km: dkm.assign(at, at / "model"), "out", "a path"),
        (lambda at, km: dkm.assign([at], at / "model", at / "out", column="v"), "column", "with files"),
        (lambda at, km: dkm.assign(at, km, at / "out"), "in memory", "directory of a model"),
        (lambda at, km: dkm.assign(frame(), km, at / "out"), "out", "with rows in memory"),
        (lambda at, km: dkm.assign(frame(), km, layout="hive"), "layout", "with rows in memory"),
        (lambda at, km: dkm.assign(X, km), "ndarray", "dataframe of dask, pandas"),
        (lambda at, km: dkm.assign(frame(), X), "ndarray", "fitted KMeans"),
    ],
)
def test_what_does_nothing_or_lacks_is_told(tmp_path, call, where: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        call(tmp_path, dkm.KMeans(2))
    assert where in str(caught.value)
    assert not list(tmp_path.iterdir())


class Cells(HTMLParser):
    """The text of each cell and caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def cells(result: object) -> list[str]:
    text = result._repr_html_()  # type: ignore[attr-defined]
    ElementTree.fromstring(text)  # each tag is closed, in its order
    return Cells(text).found


def test_results_are_tables_for_notebooks(tmp_path, given) -> None:
    km = dkm.KMeans(4)
    result = dkm.run(given, tmp_path / "out", km, 0.9)
    buckets, kept = dkm.open_buckets(tmp_path / "out" / "clusters"), dkm.apply(result.path, given, tmp_path / "kept")
    leaks = dkm.leak(given, given, tmp_path / "leaks", 0.9)
    assert f"DedupResult: {result.path}" in cells(result)
    assert cells(buckets) == [f"Buckets: {buckets.path}", "rows", "200", "n_clusters", str(buckets.n_clusters),
                              "dimension", str(X.shape[1]), "layout", "bucketed"]  # fmt: skip
    for made, name, count in ((kept, "kept", "kept"), (leaks, "leaks", "leaked")):
        assert cells(made)[0] == f"StepResult: {tmp_path / name}"
        assert made.path == UPath(tmp_path / name)
        shown = dict(zip(cells(made)[1::2], cells(made)[2::2], strict=True))
        assert shown[count] == str(made[count])
        assert {*shown} == {*made} == {*made.facts}
    assert kept["kept"] == result.summary["kept"] == pd.read_parquet(tmp_path / "kept" / "in.parquet").shape[0]
    assert leaks["leaked"] == 200
    assert cells(km)[0] == "KMeans(n_clusters=4)"


def test_names_are_escaped() -> None:
    odd = "<script>alert('&')</script>"
    assert cells(StepResult(UPath("memory://a/<b>&c"), {odd: odd, "rows": 1234567, "flag": True})) == [
        "StepResult: memory://a/<b>&c", odd, odd, "rows", "1,234,567", "flag", "True",
    ]  # fmt: skip
    assert "<script" not in html_table(odd, {odd: odd})
    assert cells(dkm.KMeans(2, init=odd))[0] == f"KMeans(n_clusters=2, init={odd!r})"


def test_figures_cannot_be_changed_by_name() -> None:
    made = StepResult(UPath("x"), {"rows": 1})
    with pytest.raises(AttributeError):
        made.path = UPath("y")  # type: ignore[misc]
    with pytest.raises(TypeError):
        made["rows"] = 2  # type: ignore[index]


def test_the_result_of_a_step_is_what_the_next_one_takes(tmp_path) -> None:
    texts = [f"an example of a text, number {i % 40}" for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"id": {i}, "text": "{text}"}}\n' for i, text in enumerate(texts)))
    embedded = dkm.embed(tmp_path / "texts.jsonl", tmp_path / "embedded")
    dkm.fit(embedded, dkm.KMeans(2), tmp_path / "model")
    clusters = dkm.assign(embedded, tmp_path / "model", tmp_path / "clusters")
    assert repr(clusters) == "Buckets(rows=60, n_clusters=2, dimension=256, layout=bucketed)"
    decided = dkm.dedup(clusters, threshold=0.999, out=tmp_path / "dedup")
    kept = dkm.apply(decided, tmp_path / "texts.jsonl", tmp_path / "kept")
    assert kept["rows"] == 60 > kept["kept"] == decided.summary["kept"]
    leaks = dkm.leak(embedded, clusters, tmp_path / "leaks", 0.999)
    assert leaks["leaked"] == 60


def test_no_module_at_the_top_is_called_as_what_is_public() -> None:
    """A module that is imported becomes an attribute of its package, in the place of the function."""
    at_the_top = {path.stem for path in Path(dkm.__file__).parent.iterdir()}
    assert not at_the_top & set(dkm.__all__)


def test_types_are_told() -> None:
    assert (Path(dkm.__file__).parent / "py.typed").is_file()
