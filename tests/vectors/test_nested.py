"""Vectors, texts and metadata that lie inside other columns, and vectors in other layouts than lists."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskmeans import KMeans, apply, run
from daskmeans.errors import DataError, UsageError
from daskmeans.planner.describe import describe
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source

D = 6
X = (np.random.default_rng(0).normal(size=(40, D)) + 4).astype(np.float16).astype(np.float32)
FLOATS = pa.list_(pa.float32())


def write(path: Path, vectors: pa.Array | list, name: str = "v", **columns: list) -> Path:
    pq.write_table(pa.table({"id": range(len(vectors)), name: vectors, **columns}), path, row_group_size=15)
    return path


def read(path: Path, field: str | None = None, **options: object):
    return open_source(path, embedding_field=field, **options).frame().compute(scheduler="threads")


def spark(rows: np.ndarray, sparse: tuple[int, ...] = ()) -> pa.Array:
    """What Spark writes for a column of vectors."""
    kind = pa.struct(
        {"type": pa.int8(), "size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
    )
    dense = [{"type": 1, "size": None, "indices": None, "values": row} for row in rows.tolist()]
    for i in sparse:
        dense[i] = {"type": 0, "size": D, "indices": [0, 3], "values": [1.5, 2.5]}
    return pa.array(dense, kind)


def tensors(rows: np.ndarray, shape: list[int]) -> pa.Array:
    kind = pa.fixed_shape_tensor(pa.float32(), shape)
    return pa.ExtensionArray.from_storage(
        kind, pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    )


NESTED = [[row] for row in X.tolist()]
LAYOUTS = {
    "tensors": tensors(X, [D]),
    "tensors of one row": tensors(X, [1, D]),
    "lists of one list": pa.array(NESTED, pa.list_(FLOATS)),
    "fixed lists of one fixed list": pa.array(NESTED, pa.list_(pa.list_(pa.float32(), D), 1)),
    "large lists of one large list": pa.array(
        [[row] for row in X.tolist()], pa.large_list(pa.large_list(pa.float64()))
    ),
    "spark": spark(X),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows_per_partition", [7, 1000])
@pytest.mark.parametrize("field", [None, "v"])
def test_layouts_of_vectors(tmp_path, layout: str, rows_per_partition: int, field: str | None) -> None:
    path = write(tmp_path / "a.parquet", LAYOUTS[layout])
    source = open_source(path, embedding_field=field, partition_bytes=4 * D * rows_per_partition)
    frame = source.frame().compute(scheduler="threads")
    np.testing.assert_array_equal(to_matrix(frame["v"]), X)
    assert source.dimension == D


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_without_a_vector_in_any_layout(tmp_path, layout: str) -> None:
    bad = [0, 9, 39]
    column = LAYOUTS[layout].take(pa.array(np.arange(40), mask=np.isin(np.arange(40), bad)))
    path = write(tmp_path / "a.parquet", column)
    frame = read(path, on_bad_row="skip")
    np.testing.assert_array_equal(to_matrix(frame["v"]), np.delete(X, bad, axis=0))
    with pytest.raises(DataError, match=r"a.parquet, row 0 \(counted from 0\), column 'v': the vector is null"):
        read(path)


def test_lists_of_one_list_in_json_lines(tmp_path) -> None:
    lines = [json.dumps({"id": i, "v": [row]}) for i, row in enumerate(X.tolist())]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    np.testing.assert_array_equal(to_matrix(read(tmp_path)["v"]), X)


@pytest.mark.parametrize(
    ("values", "found"),
    [([[1.5] * D] * 2, "several vectors"), ([], "an empty list of them"), ([[1.5]], "the vector has 1 elements, but")],
)
def test_a_row_of_several_vectors_is_bad(tmp_path, values: list, found: str) -> None:
    rows = [[row] for row in X.tolist()]
    rows[17] = values
    path = write(tmp_path / "a.parquet", pa.array(rows, pa.list_(FLOATS)))
    with pytest.raises(DataError, match=rf"row 17 \(counted from 0\), column 'v': .*{found}"):
        read(path)
    assert read(path, on_bad_row="skip")["id"].to_list() == [i for i in range(40) if i != 17]


def test_sparse_vectors_of_spark_are_bad_rows(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", spark(X, sparse=(17,)))
    with pytest.raises(DataError, match=r"row 17 \(counted from 0\), column 'v': the vector is sparse") as caught:
        read(path)
    assert "vector_to_array" in str(caught.value)
    assert len(read(path, on_bad_row="skip")) == 39
    with pytest.raises(UsageError, match=r"remedy: --embedding-field v$"):  # where sparse ones would look like others
        read(path, "v.values")


def test_decimals_are_numbers(tmp_path) -> None:
    """DuckDB takes [1.5, 2.5] for a list of decimals."""
    rows = pa.array(np.round(X, 2).astype(str).tolist(), pa.list_(pa.string())).cast(pa.list_(pa.decimal128(8, 2)))
    np.testing.assert_array_equal(to_matrix(read(write(tmp_path / "a.parquet", rows))["v"]), np.round(X, 2))


@pytest.mark.parametrize("element", [pa.int8(), pa.uint8(), pa.int64()], ids=str)
def test_integers_are_vectors_if_they_are_named(tmp_path, element: pa.DataType) -> None:
    whole = X.round().astype(int)
    path = write(tmp_path / "a.parquet", pa.array(whole.tolist(), pa.list_(element)))
    with pytest.raises(UsageError, match=r"remedy: --embedding-field v"):
        read(path)
    np.testing.assert_array_equal(to_matrix(read(path, "v")["v"]), whole)


def bits(rows: np.ndarray) -> np.ndarray:
    """The numbers as bfloat16, which is the upper half of float32."""
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


ENCODED = {
    "binary": pa.array([row.tobytes() for row in X]),
    "fixed_size_binary": pa.array([row.tobytes() for row in X], pa.binary(4 * D)),
    "string": pa.array([base64.b64encode(row.tobytes()).decode() for row in X]),
    "uint16": pa.array(bits(X).tolist(), pa.list_(pa.uint16())),
    "string of JSON": pa.array(list(map(json.dumps, X.tolist()))),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_the_message_tells_how_to_decode(tmp_path, kind: str) -> None:
    path = write(tmp_path / "a.parquet", ENCODED[kind])
    with pytest.raises(UsageError, match=f"the column is .*{kind.split()[0]}") as caught:
        read(path, "v")
    first, last = re.search(r"write the table again with (.*); (table = .*)", str(caught.value)).groups()
    ways = {re.search(r"\(if it holds (.*)\)$", way)[1]: way.rpartition(" (if ")[0] for way in first.split(" or x")}
    way = ways["JSON"] if "JSON" in kind else next(iter(ways.values()))
    names = {"np": np, "pa": pa, "base64": base64, "json": json, "table": pq.read_table(path)}
    exec(f"x = {way.partition(' = ')[2]}; {last}", names)
    pq.write_table(names["table"], tmp_path / "a.parquet")
    expected = (bits(X).astype(np.uint32) << 16).view(np.float32) if kind == "uint16" else X
    np.testing.assert_array_equal(to_matrix(read(path)["v"]), expected)


def test_tensors_of_several_axes_are_refused(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", tensors(X, [2, 3]))
    with pytest.raises(UsageError, match="no column of vectors"):
        read(path)
    with pytest.raises(UsageError, match="fixed_shape_tensor"):
        read(path, "v")


# paths


@pytest.mark.parametrize("rows_per_partition", [7, 1000])
@pytest.mark.parametrize("format_", ["parquet", "jsonl"])
def test_columns_inside_others(tmp_path, format_: str, rows_per_partition: int) -> None:
    rows = [
        {"id": i, "emb": {"model": "m", "values": row}, "meta": {"lang": f"l{i}", "n": {"stars": i}, "other": "x"}}
        for i, row in enumerate(X.tolist())
    ]
    rows[3]["meta"] = None
    rows[4]["meta"] = {"lang": None, "n": None, "other": "y"}
    if format_ == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=15)
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    size = (4 * D + 24) * rows_per_partition
    found = read(tmp_path, "emb.values", metadata_fields=["meta.lang", "meta.n.stars"], partition_bytes=size)
    np.testing.assert_array_equal(to_matrix(found["emb.values"]), X)
    assert pa.array(found["meta.lang"]).to_pylist() == [None if i in (3, 4) else f"l{i}" for i in range(40)]
    assert pa.array(found["meta.n.stars"]).to_pylist() == [None if i in (3, 4) else i for i in range(40)]
    with pytest.raises(UsageError, match=r"remedy: --embedding-field emb.values"):
        read(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean --metadata-field meta.lang"):
        read(tmp_path, "emb.values", metadata_fields=["meta.long"])


@pytest.mark.parametrize("format_", ["parquet", "jsonl"])
def test_results_of_a_batch_of_openai(tmp_path, format_: str) -> None:
    """A line that failed has no embedding: it is a bad row."""
    rows = [
        {
            "custom_id": f"request-{i}",
            "response": {"status_code": 200, "body": {"data": [{"index": 0, "embedding": row}], "model": "m"}},
            "error": None,
        }
        for i, row in enumerate(X.tolist())
    ]
    rows[5]["response"]["body"]["data"] = []
    rows[6]["response"] = None
    if format_ == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=15)
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    field, options = "response.body.data[0].embedding", {"id_field": "custom_id", "on_bad_row": "skip"}
    found = read(tmp_path, field, **options)
    assert found["custom_id"].to_list() == [f"request-{i}" for i in range(40) if i not in (5, 6)]
    np.testing.assert_array_equal(to_matrix(found[field]), np.delete(X, [5, 6], axis=0))
    with pytest.raises(UsageError, match=r"remedy: --embedding-field response.body.data\[0\].embedding"):
        read(tmp_path, id_field="custom_id")
    read_options = ReadOptions("custom_id", field, on_bad_row="skip")
    done = run(tmp_path, tmp_path.with_suffix(".work"), KMeans(3), 0.99, read_options)
    kept = apply(done.path, tmp_path / f"a.{format_}", tmp_path.with_suffix(".kept"), on_bad_row="skip")
    assert kept["kept"] == len(done.kept)
    assert kept["rejected"] == 2


def test_a_column_whose_name_is_a_path_comes_first(tmp_path) -> None:
    other = pa.array([{"values": [9.0] * D}] * 40)
    column = pa.array(X.tolist(), FLOATS)
    path = write(tmp_path / "a.parquet", other, "emb", **{"emb.values": column, "a[0]": [*range(40)]})
    found = read(path, "emb.values", metadata_fields=["a[0]"])
    np.testing.assert_array_equal(to_matrix(found["emb.values"]), X)
    assert found["a[0]"].to_list() == list(range(40))


@pytest.mark.parametrize("path", ["emb.", "emb..values", "emb[x]", "emb[0]", "emb.value", "[0]", "id.x"])
def test_paths_that_lead_nowhere(tmp_path, path: str) -> None:
    write(tmp_path / "a.parquet", pa.array([{"values": row} for row in X.tolist()]), "emb")
    with pytest.raises(UsageError, match="there is no column"):
        read(tmp_path, path)


def test_vectors_inside_a_column_that_a_file_has_no_values_of(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.nulls(3), "emb")
    write(tmp_path / "b.parquet", pa.array([{"values": row} for row in X.tolist()]), "emb")
    assert len(read(tmp_path, "emb.values", on_bad_row="skip")) == 40
    with pytest.raises(DataError, match=r"a.parquet, row 0 .*the vector is null"):
        read(tmp_path, "emb.values")


@pytest.mark.parametrize("format_", ["parquet", "jsonl"])
def test_ids_inside_another_column(tmp_path, format_: str) -> None:
    rows = [
        {"meta": {"id": f"row-{i % 30}" if i < 30 else f"copy-{i}", "n": i}, "v": X[i % 30].tolist()} for i in range(40)
    ]
    if format_ == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=15)
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(tmp_path, tmp_path.with_suffix(".work"), KMeans(3), 0.9999, ReadOptions("meta.id"))
    assert apply(done.path, tmp_path / f"a.{format_}", tmp_path.with_suffix(".kept"))["kept"] == 30
    kept = open_source(tmp_path.with_suffix(".kept"), id_field="meta.id").frame().compute(scheduler="threads")
    assert sorted(kept["meta.id"]) == sorted(done.kept["id"].compute())


def test_the_message_tells_how_to_join_numbered_columns(tmp_path) -> None:
    wide = np.arange(1, 401, dtype=np.float32).reshape(40, 10)
    columns = {f"emb (x).{i}": wide[:, i] for i in range(10)}
    pq.write_table(pa.table({"id": range(40), **columns, "score": wide[:, 0]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="there is no column of vectors") as caught:
        read(tmp_path)
    names = {"np": np, "pa": pa, "re": re, "table": pq.read_table(tmp_path / "a.parquet")}
    exec(str(caught.value).partition("write the table again with ")[2], names)
    pq.write_table(names["table"], tmp_path / "a.parquet")
    np.testing.assert_array_equal(to_matrix(read(tmp_path)["embedding"]), wide)


def test_no_row_has_a_single_vector(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([[row, row] for row in X.tolist()], pa.list_(FLOATS)))
    with pytest.raises(DataError, match=r"all vectors are null or empty \(or there are several in each row\)"):
        read(path)


def test_info_does_not_count_nulls_inside_others(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.array([{"values": row} for row in X.tolist()]), "emb")
    found = describe(tmp_path, embedding_field="emb.values")
    assert (found["rows"], found["dimension"], found["nulls"]) == (40, D, None)
