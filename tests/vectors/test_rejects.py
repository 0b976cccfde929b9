"""Rows that were left out lie where no reader of the others meets them."""

import glob
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import KMeans, apply, dedup, run
from daskmeans.steps.assign import assign_files
from daskmeans.steps.embed import embed
from daskmeans.steps.fit import fit
from daskmeans.steps.leak import leak
from daskmeans.steps.settings import Storing
from daskmeans.storage import signature
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source
from helpers import blobs, write_embeddings

SKIP = ReadOptions(on_bad_row="skip")
BAD = [3, 50, 199]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Files of 200 rows, three of which are bad."""
    X = blobs(n=200, d=8, k=3)
    X[BAD] = np.nan
    ids = [f"row-{i}" for i in range(200)]
    write_embeddings(tmp_path / "in" / "a.parquet", X[:120], ids[:120])
    write_embeddings(tmp_path / "in" / "b.parquet", X[120:], ids[120:])
    return tmp_path / "in"


def clusters_of(spoilt: Path, layout: str) -> Path:
    out = spoilt.parent
    fit(spoilt, out / "model", KMeans(3), SKIP)
    assign_files(spoilt, out / "model", out / "clusters", SKIP, Storing(layout))
    return out / "clusters"


@pytest.mark.parametrize(("layout", "data"), [("bucketed", "*.parquet"), ("hive", "centroid=*/*.parquet")])
def test_readers_of_a_glob_meet_the_rows_alone(spoilt, layout: str, data: str) -> None:
    clusters = clusters_of(spoilt, layout)
    expected = sorted(f"row-{i}" for i in range(200) if i not in BAD)
    names = glob.glob(f"{clusters}/{data}")
    read = {
        "pandas": pd.read_parquet(names),
        "arrow": ds.dataset(names, partitioning="hive").to_table().to_pandas(),
        "dask": dd.read_parquet(f"{clusters}/{data}").compute(),
        "daskmeans": open_source(f"{clusters}/{data}").frame().compute(scheduler="threads"),
        "daskmeans, directory": open_source(clusters).frame().compute(scheduler="threads"),
        "daskmeans, all below": open_source(f"{clusters}/**").frame().compute(scheduler="threads"),
    }
    assert {name: sorted(frame["id"]) == expected for name, frame in read.items()} == dict.fromkeys(read, True)
    assert pq.read_table(clusters / "_rejects" / "rejects")["row"].to_pylist() == [3, 50, 79]


def test_every_step_lists_them_in_one_place(spoilt) -> None:
    clusters, out = clusters_of(spoilt, "bucketed"), spoilt.parent
    dedup(clusters, 0.9, out=out / "dedup")
    apply(out / "dedup", spoilt, out / "kept", on_bad_row="skip")
    leak(spoilt, spoilt, out / "leaks", 0.9, SKIP)
    for step, rows in {"model": 3, "clusters": 3, "kept": 3, "leaks": 6}.items():
        lists = [file.relative_to(out / step) for file in (out / step).rglob("*rejects*") if file.is_file()]
        assert list(map(str, lists)) == ["_rejects/rejects"]
        assert pq.read_metadata(out / step / lists[0]).num_rows == rows
    kept = pd.read_parquet(glob.glob(f"{out}/kept/*.parquet"))
    assert set(kept["id"]) == set(dedup(clusters, 0.9).kept["id"].compute())


def test_lists_among_the_rows_of_an_older_output_are_no_data(tmp_path) -> None:
    data = write_embeddings(tmp_path / "part-0.parquet", blobs(100, 4))
    table = pa.table({"id": ["x"], "file": ["f"], "row": [3], "reason": ["the text is null"]})
    signature.write_table(table, UPath(tmp_path / "rejects.parquet"), "embed")
    for given in ("", "/*.parquet", "/*"):
        assert find_files(f"{tmp_path}{given}") == [UPath(data)]


def test_a_file_of_rows_may_have_their_name(tmp_path) -> None:
    data = write_embeddings(tmp_path / "rejects.parquet", blobs(100, 4))
    assert find_files(tmp_path) == [UPath(data)]


def many(path: Path, bad: int) -> Path:
    """A file of 200 rows of which so many are bad, most of them for one reason."""
    X = blobs(n=200, d=8, k=3)
    X[:bad] = np.nan
    X[0] = 0
    return write_embeddings(path, X, text=["a text"] * (200 - bad) + [""] * bad)


def test_every_step_tells_of_many(tmp_path, caplog) -> None:
    given = many(tmp_path / "in.parquet", 20)
    told = "20 of 200 rows (10 %) were left out, most of them (19) for this reason: the vector holds NaN"
    expected = {
        "model": told,
        "clusters": told,
        "leaks": told.replace("20 of 200", "40 of 400").replace("(19)", "(38)"),
        "texts": "20 of 200 rows (10 %) were left out, most of them (20) for this reason: the text is empty",
        "kept": "20 of 200 rows (10 %) were left out, most of them (20) for this reason: no decision",
    }
    fit(given, tmp_path / "model", KMeans(3), SKIP)
    assign_files(given, tmp_path / "model", tmp_path / "clusters", SKIP)
    leak(given, given, tmp_path / "leaks", 0.9, SKIP)
    embed(given, tmp_path / "texts", on_bad_row="skip")
    dedup(tmp_path / "clusters", 0.9, out=tmp_path / "dedup")
    apply(tmp_path / "dedup", given, tmp_path / "kept", on_bad_row="skip")
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == len(expected)
    for line, (step, start) in zip(lines, expected.items(), strict=True):
        assert line.startswith(start)
        assert line.endswith(f"{tmp_path}/{step}/_rejects/rejects")


def test_few_are_no_matter(tmp_path, caplog) -> None:
    given = many(tmp_path / "in.parquet", 19)
    fit(given, tmp_path / "model", KMeans(3), SKIP)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert pq.read_metadata(tmp_path / "model" / "_rejects" / "rejects").num_rows == 19


def test_a_file_of_data_is_no_list_because_of_its_name(tmp_path):
    """Also when we have written it: what was applied keeps its names and columns."""
    (tmp_path / "in").mkdir()
    for name in ("a", "rejects"):
        columns = {"id": [f"{name}{i}" for i in range(5)], "v": [[1.0, float(i)] for i in range(5)]}
        pq.write_table(pa.table(columns | {"reason": ["x"] * 5}), tmp_path / "in" / f"{name}.parquet")
    result = run(tmp_path / "in", tmp_path / "work", KMeans(2), threshold=1.0)
    apply(result.path, tmp_path / "in", tmp_path / "out")
    assert [file.name for file in find_files(tmp_path / "out")] == ["a.parquet", "rejects.parquet"]
