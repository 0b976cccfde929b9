"""The dimension is that of most rows, and rows of others are bad wherever they stand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskmeans.errors import DataError, UsageError
from daskmeans.planner.describe import describe
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.source import open_source

FLOATS = pa.list_(pa.float32())


def write(path: Path, vectors: list | pa.Array, first: int = 0) -> Path:
    """A file of the rows with `vectors`, whose ids count from `first`."""
    ids = range(first, first + len(vectors))
    column = vectors if isinstance(vectors, pa.Array) else pa.array(vectors, FLOATS)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(ids), "v": column}), path)
    else:
        lines = [json.dumps({"id": i, "v": v}) for i, v in zip(ids, column.to_pylist(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    return path


def good(rows: int, d: int = 8) -> list:
    return np.random.default_rng(rows).normal(size=(rows, d)).astype(np.float16).tolist()


def ids(source) -> list[int]:
    return source.frame().compute(scheduler="threads")["id"].to_list()


BAD_FILES = {
    "no type": pa.nulls(50),
    "lists of no type": pa.array([[], None] * 25, pa.list_(pa.null())),
    "nulls": pa.nulls(50, FLOATS),
    "nulls of the dimension": pa.nulls(50, pa.list_(pa.float32(), 8)),
    "short": pa.array([[0.5]] * 50, FLOATS),
    "empty": pa.array([[]] * 50, FLOATS),
}
BAD = {"short": [0.5], "empty": [], "null": None, "long": [0.5] * 9}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("first", [1, 100])
def test_bad_rows_at_the_start_are_bad(tmp_path, suffix: str, kind: str, first: int) -> None:
    path = tmp_path / f"a{suffix.removesuffix('.gz')}"
    vectors = good(1000)
    vectors[:first] = [BAD[kind]] * first
    write(path, vectors)
    if suffix.endswith(".gz"):
        zipped = tmp_path / f"a{suffix}"
        zipped.write_bytes(pa.compress(path.read_bytes(), "gzip", asbytes=True))
        path = zipped
    source = open_source(path, on_bad_row="skip")
    assert source.dimension == 8
    assert ids(source) == list(range(first, 1000))
    with pytest.raises(DataError, match=r"row 0 \(counted from 0\), column 'v'"):
        ids(open_source(path))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_of_bad_rows_is_skipped_wherever_it_stands(tmp_path, suffix: str, at: int, kind: str) -> None:
    rows = good(300)
    for i in range(3):
        vectors = BAD_FILES[kind] if i == at else rows[100 * i : 100 * i + 100]
        write(tmp_path / f"{i}{suffix}", vectors, 100 * i)
    source = open_source(tmp_path, on_bad_row="skip")
    kept = [i for i in range(300) if i // 100 != at]
    frame = source.frame().compute(scheduler="threads")
    assert frame["id"].to_list() == kept
    np.testing.assert_array_equal(to_matrix(frame["v"]), np.float32(rows)[kept])
    with pytest.raises(DataError, match=rf"{at}{suffix}, row 0 \(counted from 0\), column 'v': the vector"):
        ids(open_source(tmp_path))


def test_a_compressed_file_whose_last_line_has_no_end(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", [None, *good(5)])
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(pa.compress(path.read_bytes().rstrip(), "gzip", asbytes=True))
    assert ids(open_source(zipped, on_bad_row="skip")) == [1, 2, 3, 4, 5]


def test_one_good_row_is_enough(tmp_path) -> None:
    write(tmp_path / "a.parquet", [None] * 100_000 + [[1.0, 2.0]])
    write(tmp_path / "b.parquet", [[], None])
    assert ids(open_source(tmp_path, on_bad_row="skip")) == [100_000]


@pytest.mark.parametrize("vectors", [[None] * 3, [[], None]])
def test_no_good_row(tmp_path, vectors: list) -> None:
    write(tmp_path / "a.parquet", vectors)
    with pytest.raises(DataError, match="all vectors are null or empty"):
        open_source(tmp_path)


@pytest.mark.parametrize("field", [None, "v"])
def test_no_file_tells_a_type(tmp_path, field: str | None) -> None:
    write(tmp_path / "a.parquet", pa.nulls(3))
    write(tmp_path / "b.parquet", pa.nulls(3))
    with pytest.raises(UsageError, match="null"):
        open_source(tmp_path, embedding_field=field)


def test_a_file_of_another_declared_dimension_is_named_with_one_of_the_others(tmp_path) -> None:
    write(tmp_path / "a.parquet", [[0.5]])
    write(tmp_path / "b.parquet", good(100))
    write(tmp_path / "c.parquet", pa.array(good(5, 7), pa.list_(pa.float32(), 7)))
    with pytest.raises(DataError, match=rf"of dimension 8 in {tmp_path}/b.parquet, but of dimension 7 here"):
        open_source(tmp_path)


def test_columns_without_a_value_are_counted_as_nulls(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.nulls(7))
    write(tmp_path / "b.parquet", [*good(10), None])
    assert describe(tmp_path)["nulls"] == {"id": 0, "v": 8}
