"""Assigned rows and their buckets against brute force, and equal files however the rows were cut."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import KMeans, assign, open_buckets, write_buckets
from daskmeans.errors import DataError, NotFoundError, OutputError, UsageError
from daskmeans.vectors.matrix import to_column, to_matrix
from helpers import blobs

NAMES = ["id", "embedding", "text", "centroid", "l2_dist_to_cent", "cosine_dist_to_cent"]


def frame(X: np.ndarray, npartitions: int = 3, ids: list | None = None) -> dd.DataFrame:
    ids = [f"r{i:05d}" for i in range(len(X))] if ids is None else ids
    rows = pd.DataFrame({
        "id": pd.array(ids, dtype=pd.ArrowDtype(pa.array(ids).type)),
        "embedding": to_column(X).array,
        "text": pd.array([f"text {i}" for i in ids], dtype=pd.ArrowDtype(pa.string())),
    })  # fmt: skip
    return dd.from_pandas(rows, npartitions=npartitions, sort=False)


@pytest.fixture
def model() -> KMeans:
    return KMeans(8, max_iter=5).fit(blobs())


def everything(buckets) -> pa.Table:
    return pa.concat_tables([buckets.read(c) for c in buckets.clusters()])


@pytest.mark.parametrize("normalize", [True, False])
def test_distances_are_as_defined(normalize):
    X = blobs(n=300)
    km = KMeans(6, max_iter=3, normalize=normalize).fit(X)
    out = assign(frame(X), km).compute()
    unit = X.astype(float) / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    rows, C = (unit if normalize else X.astype(float)), km.cluster_centers_.astype(float)
    every = np.linalg.norm(rows[:, None] - C[None], axis=2)
    np.testing.assert_array_equal(out["centroid"], every.argmin(1))
    np.testing.assert_allclose(out["l2_dist_to_cent"], every.min(1), atol=1e-5)
    own = C[every.argmin(1)]
    cosine = 1 - (unit * own).sum(1) / np.linalg.norm(own, axis=1)
    np.testing.assert_allclose(out["cosine_dist_to_cent"], cosine, atol=1e-5)
    np.testing.assert_allclose(to_matrix(out["embedding"]), rows, atol=1e-6)
    assert [str(t) for t in out.dtypes[["centroid", "l2_dist_to_cent", "cosine_dist_to_cent"]]] == [
        "int32",
        "float32",
        "float32",
    ]


def test_unseen_rows_and_half_precision(model):
    new = blobs(n=50, seed=9, copies=5)
    out = assign(frame(new, 1), model, dtype="float16").compute()
    np.testing.assert_array_equal(out["centroid"], model.predict(new))
    assert "halffloat" in str(out["embedding"].dtype)


def test_rows_of_another_dimension_are_refused(model):
    with pytest.raises(DataError, match=r"5 features.*16 features"):
        assign(frame(np.ones((4, 5), np.float32)), model).compute()


def test_texts_count_when_rows_are_gathered(tmp_path, model):
    """No more than 20 rows of 10 kB are merged at once; a row group is made of these."""
    ddf = frame(blobs(n=600))
    long = ddf.assign(text=ddf["text"].str.ljust(10_000))
    with dask.config.set({"daskmeans.bucket-bytes": 200_000}):
        buckets = write_buckets(assign(long, model), tmp_path / "c")
    groups = [pq.read_metadata(file) for file in (tmp_path / "c").glob("*.parquet")]
    assert max(footer.row_group(i).num_rows for footer in groups for i in range(footer.num_row_groups)) <= 20
    assert everything(buckets).num_rows == 600


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
@pytest.mark.parametrize("bucket_bytes", ["1kB", "8kB", "64MiB"])
def test_every_row_lies_in_its_cluster_sorted_by_distance(tmp_path, model, layout, bucket_bytes):
    X = blobs()
    expected = assign(frame(X, 1), model).compute()
    with dask.config.set({"daskmeans.bucket-bytes": bucket_bytes}):
        buckets = write_buckets(assign(frame(X, 7), model), tmp_path / "out", layout=layout)
    table = everything(buckets)
    assert table.column_names == NAMES
    rows = table.to_pandas().set_index("id")
    assert sorted(rows.index) == sorted(expected["id"])
    pd.testing.assert_series_equal(
        rows.loc[expected["id"], "centroid"].reset_index(drop=True), expected["centroid"].reset_index(drop=True)
    )
    assert rows.index.map(dict(zip(expected["id"], expected["text"], strict=True))).tolist() == rows["text"].tolist()
    for cluster in buckets.clusters():
        own = buckets.read(cluster)
        assert set(own["centroid"].to_pylist()) == {cluster.centroid}
        keys = list(zip(own["l2_dist_to_cent"].to_pylist(), own["id"].to_pylist(), strict=True))
        assert keys == sorted(keys)
    assert sum(c.rows for c in buckets.clusters()) == buckets.rows == 600


def test_files_are_equal_for_any_partitions(tmp_path, model):
    X = blobs()
    tables = [everything(write_buckets(assign(frame(X, n), model), tmp_path / f"{n}")) for n in (1, 7, 64)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_a_cluster_larger_than_a_bucket_is_whole_in_one_file(tmp_path):
    X = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    km = KMeans(1).fit(X)
    with dask.config.set({"daskmeans.bucket-bytes": "1kB"}):
        buckets = write_buckets(assign(frame(X, 9), km), tmp_path / "out")
    (cluster,) = buckets.clusters()
    assert len(cluster.pieces[0].row_groups) > 5
    distances = buckets.read(cluster)["l2_dist_to_cent"].to_numpy()
    assert len(distances) == 500
    assert (np.diff(distances) >= 0).all()
    assert [p.name for p in (tmp_path / "out").glob("*.parquet")] == ["bucket-00000.parquet"]


def test_one_cluster_is_read_without_the_pages_of_the_others(tmp_path):
    buckets = write_buckets(assign(frame(blobs()), KMeans(60).fit(blobs())), tmp_path / "out")
    first, second = buckets.parts[0].clusters[:2]
    assert first.file == second.file
    file = tmp_path / "out" / first.file
    footer = pq.ParquetFile(file).metadata
    spoilt = bytearray(file.read_bytes())
    for g in second.pieces[0].row_groups:
        for c in range(footer.num_columns):
            column = footer.row_group(g).column(c)
            start = column.dictionary_page_offset or column.data_page_offset
            spoilt[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(bytes(spoilt))
    assert len(buckets.read(first)) == first.rows
    with pytest.raises(DataError, match="cannot be read"):
        buckets.read(second)


def test_row_groups_tell_their_cluster_to_other_readers(tmp_path, model):
    buckets = write_buckets(assign(frame(blobs()), model), tmp_path / "out")
    cluster = next(c for c in buckets.clusters() if c.centroid == 3)
    by_filter = pq.read_table(tmp_path / "out" / cluster.file, filters=[("centroid", "=", 3)])
    assert by_filter.equals(buckets.read(cluster))


def test_hive_layout_is_read_by_other_tools(tmp_path, model):
    X = blobs()
    buckets = write_buckets(assign(frame(X), model), tmp_path / "out", layout="hive")
    dataset = ds.dataset(
        [str(p) for p in (tmp_path / "out").rglob("*.parquet")],
        partitioning=ds.HivePartitioning(pa.schema([("centroid", pa.int32())])),
    )
    table = dataset.to_table().to_pandas().set_index("id")
    ours = everything(buckets).to_pandas().set_index("id")
    assert (table.loc[ours.index, "centroid"] == ours["centroid"]).all()


def test_integer_ids_and_other_file_systems(model):
    X = blobs(n=100)
    url = UPath("memory://buckets/integer")
    buckets = write_buckets(assign(frame(X, 2, ids=list(range(100))), model), url)
    assert sorted(everything(buckets)["id"].to_pylist()) == list(range(100))
    assert open_buckets("memory://buckets/integer").rows == 100
    assert not (url / "_runs").exists()


def test_same_files_from_two_processes(tmp_path, model, client):
    X = blobs()
    here = everything(write_buckets(assign(frame(X, 1), model), tmp_path / "one", client=client))
    there = everything(write_buckets(assign(frame(X, 9), model), tmp_path / "nine", client=client))
    assert here.equals(there)


def parts_of(*values: object) -> dd.DataFrame:
    """A frame with a partition of eight rows for each of `values`, its column ``m``."""
    X = blobs(n=8 * len(values), copies=0)
    parts = [
        pd.DataFrame({"id": range(8 * i, 8 * i + 8), "embedding": to_column(X[8 * i : 8 * i + 8]).array, "m": m})
        for i, m in enumerate(values)
    ]
    return dd.from_map(lambda part: part, parts, meta=parts[0].iloc[:0])


@pytest.mark.parametrize(
    ("one", "other", "type_"),
    [
        (np.arange(8), np.full(8, np.nan), pa.int64()),  # as pandas has integers of which none is there
        (np.arange(8) + 0.5, np.arange(8), pa.float64()),
        (np.array([True] * 8), np.full(8, None), pa.bool_()),
        (np.full(8, np.nan), np.full(8, np.nan), pa.float64()),
    ],
)
def test_a_column_has_one_type_in_all_files(tmp_path, model, one, other, type_):
    with dask.config.set({"daskmeans.bucket-bytes": 1}):
        buckets = write_buckets(assign(parts_of(one, other), model), str(tmp_path / "clusters"))
    assert {pq.read_schema(file).field("m").type for file in (tmp_path / "clusters").glob("*.parquet")} == {type_}
    found = everything(buckets).sort_by("id")["m"].to_pylist()
    assert found == pa.array(np.concatenate([one, other]).tolist(), type_, from_pandas=True).to_pylist()


@pytest.mark.parametrize("other", [np.array(["a"] * 8, object), np.full(8, 2**60 + 1)])
def test_values_that_no_one_type_holds_are_refused(tmp_path, model, other):
    with pytest.raises(DataError, match=r"different types(.|\n)*cast"):
        write_buckets(assign(parts_of(np.arange(8) + 0.5, other), model), str(tmp_path / "clusters"))
    assert not (tmp_path / "clusters").exists()


def test_one_of_two_columns_of_vectors_is_told(tmp_path, model):
    rows = frame(blobs(n=40, copies=0)).assign(other=lambda part: part.embedding)
    assigned = assign(rows, model, column="embedding")
    with pytest.raises(UsageError, match="embedding_field="):
        write_buckets(assigned, str(tmp_path / "clusters"))
    assert write_buckets(assigned, str(tmp_path / "clusters"), embedding_field="embedding").metadata_fields == (
        "text",
        "other",
    )


def test_wrong_use(tmp_path, model):
    out = assign(frame(blobs()), model)
    with pytest.raises(UsageError, match="bucketed or hive"):
        write_buckets(out, tmp_path / "a", layout="piles")
    with pytest.raises(UsageError, match=r"daskmeans\.assign"):
        write_buckets(frame(blobs()), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    write_buckets(out, tmp_path / "b")
    with pytest.raises(OutputError, match="--overwrite"):
        write_buckets(out, tmp_path / "b")
    with pytest.raises(NotFoundError, match="no such path"):
        open_buckets(tmp_path / "a")
    with pytest.raises(UsageError, match="float16"):
        assign(frame(blobs()), model, dtype="int8")
