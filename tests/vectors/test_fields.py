"""Columns that files do not agree on: keys of partitions, types that differ, and fields that come late."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json as pj
import pyarrow.parquet as pq
import pytest

from daskmeans import KMeans, apply, run
from daskmeans.errors import DataError, UsageError
from daskmeans.vectors.json_survey import HEAD_BYTES
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source

CATEGORIES = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4]), pa.array(["a", "b", "a", "b"]).dictionary_encode())
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def write(path: Path, first: int = 0, rows: int = 4, **columns: object) -> Path:
    """A file of rows whose ids count from `first`."""
    vectors = [[1.0, float(i)] for i in range(first, first + rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(first, first + rows), "v": vectors, **columns}), path)
    return path


def values(path: object, *names: str, **options: object) -> dict[str, list]:
    """The metadata `names` of the rows of a path."""
    frame = open_source(path, metadata_fields=names, **options).frame().compute(scheduler="threads")
    return {name: pa.array(frame[name]).to_pylist() for name in names}


# keys of partitions


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["key=en", "key=de"], ["de", "en"]),
        (["key=1", "key=23"], [1, 23]),
        (["key=01", "key=-2"], [-2, 1]),
        (["key=1", "key=b"], ["1", "b"]),
        (["key=1", "key=__HIVE_DEFAULT_PARTITION__"], [1, None]),
        (["key=a%2Fb%20c", "key=%C3%A9"], ["é", "a/b c"]),
        (["key=a=b", "key=c"], ["a=b", "c"]),
    ],
)
def test_keys_of_partitions_are_columns(tmp_path, folders: list[str], expected: list) -> None:
    for i, folder in enumerate(folders):
        write(tmp_path / "year=2026" / folder / "0.parquet", 4 * i)
    found = values(tmp_path, "key", "year")
    assert sorted(set(found["key"]), key=str) == sorted(expected, key=str)
    assert set(found["year"]) == {2026}
    theirs = ds.dataset(tmp_path, partitioning="hive").to_table().sort_by("id")
    frame = open_source(tmp_path, metadata_fields=["key"]).frame().compute(scheduler="threads").sort_values("id")
    assert pa.array(frame["key"]).to_pylist() == theirs["key"].to_pylist()


def test_keys_of_json_lines(tmp_path) -> None:
    for name, lines in {"en": ['{"id": 1, "v": [1.5]}'], "de": ['{"id": 2, "v": [1.5], "lang": "at"}']}.items():
        (tmp_path / f"lang={name}").mkdir()
        (tmp_path / f"lang={name}" / "0.jsonl").write_text("\n".join(lines))
    assert values(tmp_path, "lang") == {"lang": ["at", "en"]}


def test_keys_of_numpy_files(tmp_path) -> None:
    for lang in ("de", "en"):
        (tmp_path / f"lang={lang}").mkdir()
        np.save(tmp_path / f"lang={lang}" / "0.npy", np.eye(3, dtype=np.float32))
    assert values(tmp_path, "lang") == {"lang": ["de"] * 3 + ["en"] * 3}
    frame = open_source(tmp_path, metadata_fields=["lang"]).frame().compute(scheduler="threads")
    assert frame["id"].to_list() == list(range(6))


def test_a_column_of_the_file_comes_before_a_key(tmp_path) -> None:
    write(tmp_path / "lang=en" / "0.parquet", lang=["a", "b", "c", "d"])
    write(tmp_path / "lang=de" / "0.parquet", 4)
    assert values(tmp_path, "lang") == {"lang": ["de"] * 4 + ["a", "b", "c", "d"]}


def test_a_key_may_be_the_id(tmp_path) -> None:
    for i in range(3):
        pq.write_table(pa.table({"v": [[1.0, float(i)]]}), write(tmp_path / f"doc={i}" / "0.parquet", rows=1))
    frame = open_source(tmp_path, id_field="doc").frame().compute(scheduler="threads")
    assert frame["doc"].to_list() == [0, 1, 2]


def test_apply_keeps_directories(tmp_path) -> None:
    for i, lang in enumerate(("en", "de")):
        write(tmp_path / "in" / f"lang={lang}" / "0.parquet", 4 * i)
    reading = ReadOptions(metadata_fields="lang")
    done = run(tmp_path / "in", tmp_path / "work", KMeans(2), 0.999, reading, keep="lang:asc")
    counts = apply(done.path, tmp_path / "in", tmp_path / "kept")
    kept = pd.read_parquet(tmp_path / "kept")
    assert len(kept) == counts["kept"] < 8
    assert {str(file.relative_to(tmp_path / "kept")) for file in (tmp_path / "kept").rglob("*.parquet")} == {
        "lang=en/0.parquet",
        "lang=de/0.parquet",
    }


# types that differ


@pytest.mark.parametrize(
    ("one", "other", "type_"),
    [
        (pa.array([1] * 4, pa.int32()), pa.array([2**40] * 4), pa.int64()),
        (pa.array([1] * 4, pa.int8()), pa.array([200] * 4, pa.uint8()), pa.int16()),
        (pa.array([1] * 4), pa.array([1.5] * 4), pa.float64()),
        (pa.array([2**40] * 4), pa.array([1.5] * 4, pa.float32()), pa.float64()),
        (pa.array([WHEN] * 4, pa.timestamp("us")), pa.array([WHEN] * 4, pa.timestamp("ns")), pa.timestamp("ns")),
        (pa.nulls(4), pa.array([WHEN] * 4), pa.timestamp("us", "UTC")),
        (pa.nulls(4), pa.array(["a"] * 4), pa.string()),
        (pa.array(["a"] * 4).dictionary_encode(), pa.array(["a"] * 4, pa.large_string()), pa.string()),
        (pa.array([[1]] * 4), pa.array([[1.5, 2.5]] * 4), pa.list_(pa.float64())),
        (pa.array([["a"]] * 4), CATEGORIES, pa.list_(pa.string())),
        (
            pa.array([{"a": 1}] * 4),
            pa.array([{"a": 1.5, "b": "x"}] * 4),
            pa.struct({"a": pa.float64(), "b": pa.string()}),
        ),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
@pytest.mark.parametrize("turned", [False, True])
def test_types_of_metadata_are_promoted(tmp_path, one: pa.Array, other: pa.Array, type_: pa.DataType, turned) -> None:
    arrays = [other, one] if turned else [one, other]
    for i, array in enumerate(arrays):
        write(tmp_path / f"{i}.parquet", 4 * i, x=array)
    source = open_source(tmp_path, embedding_field="v", metadata_fields=["x"])
    assert source.reader.schema.field("x").type.equals(type_)
    frame = source.frame().compute(scheduler="threads")
    chunks = [array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array for array in arrays]
    assert pa.array(frame["x"]).to_pylist() == [v for chunk in chunks for v in chunk.cast(type_).to_pylist()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1] * 4), pa.array(["a"] * 4)),
        (pa.array([True] * 4), pa.array([1] * 4)),
        (pa.array([WHEN] * 4), pa.array([WHEN] * 4, pa.timestamp("us"))),
        (pa.array([{"a": 1}] * 4), pa.array([1] * 4)),
    ],
    ids=lambda array: str(array.type),
)
def test_types_that_do_not_go_together_are_named(tmp_path, one: pa.Array, other: pa.Array) -> None:
    write(tmp_path / "a.parquet", x=one)
    write(tmp_path / "b.parquet", 4, x=other)
    with pytest.raises(DataError) as caught:
        values(tmp_path, "x")
    for part in ("a.parquet", "b.parquet", str(one.type), str(other.type), "remedy: "):
        assert part in str(caught.value)


def test_an_integer_that_no_double_holds_is_refused(tmp_path) -> None:
    write(tmp_path / "a.parquet", x=[1, 2, 2**53 + 1, 4])
    write(tmp_path / "b.parquet", 4, x=[1.5] * 4)
    with pytest.raises(DataError, match=r"a.parquet, column 'x': .*9007199254740993"):
        values(tmp_path, "x")


def test_metadata_that_some_files_lack_are_null_there(tmp_path, caplog) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", 4, x=["p", "q", None, "s"])
    write(tmp_path / "c.parquet", 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert values(tmp_path, "x") == {"x": [None] * 4 + ["p", "q", None, "s"] + [None] * 4}
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{tmp_path}/a.parquet: there is no column 'x' in 2 of 3 files; it is null there"]


# fields of JSON lines


def padded(rows: list[dict], at: int) -> list[str]:
    """Lines of `rows`, with as many others before row `at` that it lies beyond what is looked at first."""
    filler = {"id": 0, "v": [0.5, 1.5], "text": "x" * 1000}
    lines = [json.dumps({"v": [1.0, 2.0]} | row) for row in rows]
    more = [json.dumps(filler | {"id": 1000 + i}) for i in range(3 * HEAD_BYTES // 1000)]
    return [*lines[:at], *more, *lines[at:]]


LATE = {
    "a field that comes late": ([{"id": 1}, {"id": 2, "x": "a"}], ["a"]),
    "a number with a fraction": ([{"id": 1, "x": 1}, {"id": 2, "x": 1.5}], [1.0, 1.5]),
    "a number with an exponent": ([{"id": 1, "x": 1}, {"id": 2, "x": 1e300}], [1.0, 1e300]),
    "nulls, then texts": ([{"id": 1, "x": None}, {"id": 2, "x": "a"}], ["a"]),
    "nulls, then dates": ([{"id": 1, "x": None}, {"id": 2, "x": "2026-01-02"}], ["2026-01-02"]),
    "nulls, integers, then fractions": ([{"id": 1, "x": None}, {"id": 2, "x": 3}, {"id": 3, "x": 1.5}], [3.0, 1.5]),
    "a key more": (
        [{"id": 1, "x": {"p": 1}}, {"id": 2, "x": {"p": 1.5, "q": "b"}}],
        [{"p": 1.0, "q": None}, {"p": 1.5, "q": "b"}],
    ),
    "an empty list, then one of texts": ([{"id": 1, "x": []}, {"id": 2, "x": ["a"]}], [[], ["a"]]),
    "a list of fields with one more": (
        [{"id": 1, "x": [{"p": 1}]}, {"id": 2, "x": [{"q": "b"}]}],
        [[{"p": 1, "q": None}], [{"p": None, "q": "b"}]],
    ),
    "a date, then a text": ([{"id": 1, "x": {"d": "2026-01-02"}}, {"id": 2, "x": {"d": "n/a"}}], None),
}


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_types_of_json_fields_are_those_of_the_whole_file(tmp_path, kind: str, suffix: str) -> None:
    rows, expected = LATE[kind]
    data = ("\n".join(padded(rows, 1)) + "\n").encode()
    (tmp_path / f"a{suffix}").write_bytes(pa.compress(data, "gzip", asbytes=True) if suffix.endswith("gz") else data)
    found = [value for value in values(tmp_path, "x", partition_bytes=8 * 700)["x"] if value is not None]
    assert found == (expected or [row["x"] for row in rows])
    if expected:  # without `expected`, pyarrow would take one value for a date and fail at the other
        (tmp_path / "whole").write_bytes(data)
        whole = pj.read_json(tmp_path / "whole", pj.ReadOptions(block_size=len(data)))["x"].drop_null().to_pylist()
        assert [str(value)[:10] for value in found] == [str(value)[:10] for value in whole]


def test_a_name_with_letters_that_json_escapes(tmp_path) -> None:
    for ascii_ in (True, False):
        lines = padded([{"id": 1}], 1)
        late = json.dumps({"id": 2, "v": [1.0, 2.0], "größe": 1.5}, ensure_ascii=ascii_)
        (tmp_path / "a.jsonl").write_text("\n".join([*lines, late]), "utf-8")
        assert values(tmp_path, "größe")["größe"][-1] == 1.5


def test_what_looks_like_a_field_inside_a_text_is_none(tmp_path) -> None:
    rows = [{"id": 1, "x": 1}, {"id": 2, "x": 2, "text": 'see "x": 1.5'}]
    (tmp_path / "a.jsonl").write_text("\n".join(padded(rows, 1)))
    assert open_source(tmp_path, metadata_fields=["x"]).reader.schema.field("x").type == pa.int64()


def test_files_of_json_lines_that_differ(tmp_path) -> None:
    for name, x in {"a": 1, "b": 1.5, "c": None, "d": 7}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "v": [1.0, 2.0], "x": x}))
    assert values(tmp_path, "x") == {"x": [1.0, 1.5, None, 7.0]}
    (tmp_path / "e.jsonl").write_text(json.dumps({"id": "e", "v": [1.0, 2.0], "x": "seven"}))
    with pytest.raises(DataError, match=r"e.jsonl: column 'x' is double in .*, but string here"):
        values(tmp_path, "x")


@pytest.mark.parametrize("field", [None, "w"])
def test_vectors_that_come_late(tmp_path, field: str | None) -> None:
    lines = [json.dumps({"id": i, "w": None, "text": "x" * 1000}) for i in range(2 * HEAD_BYTES // 1000)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, json.dumps({"id": -1, "w": [1.0, 2.0]})]))
    source = open_source(tmp_path, embedding_field=field, on_bad_row="skip")
    assert source.frame().compute(scheduler="threads")["id"].to_list() == [-1]


def test_a_time_that_no_type_for_all_holds_is_refused(tmp_path) -> None:
    write(tmp_path / "a.parquet", x=pa.array([datetime(9999, 1, 1)] * 4, pa.timestamp("us")))
    write(tmp_path / "b.parquet", 4, x=pa.array([WHEN] * 4, pa.timestamp("ns")))
    with pytest.raises(DataError, match=r"a.parquet, column 'x': the column cannot be read as timestamp\[ns\]"):
        values(tmp_path, "x")


def test_files_whose_vectors_have_different_layouts(tmp_path) -> None:
    X = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 2)
    layouts = [
        flat,
        pa.array(X.tolist(), pa.list_(pa.float16())),
        pa.array([[row] for row in X.tolist()]),
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), flat),
    ]
    for i, column in enumerate(layouts):
        pq.write_table(pa.table({"id": range(6 * i, 6 * i + 6), "v": column}), tmp_path / f"{i}.parquet")
    frame = open_source(tmp_path).frame().compute(scheduler="threads")
    np.testing.assert_array_equal(to_matrix(frame["v"]), np.concatenate([X] * 4))


def test_a_field_that_no_line_has(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(padded([{"id": 1}], 1)))
    with pytest.raises(UsageError, match="there is no column 'y'"):
        values(tmp_path, "y")


# sizes of partitions


@pytest.mark.parametrize("format_", ["parquet", "jsonl"])
def test_texts_count_when_partitions_are_cut(tmp_path, format_: str) -> None:
    texts = [chr(97 + i % 26) * 10_000 for i in range(200)]
    write(tmp_path / "a.parquet", rows=200, text=texts)
    if format_ == "jsonl":
        lines = [json.dumps(row) for row in pq.read_table(tmp_path / "a.parquet").to_pylist()]
        (tmp_path / "a.parquet").unlink()
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
    size = 10**5
    assert open_source(tmp_path, partition_bytes=size).n_partitions == 1
    kept = open_source(tmp_path, metadata_fields=["text"], partition_bytes=size)
    embedded = open_source(tmp_path, text_field="text", partition_bytes=size)
    for source in (kept, embedded):
        parts = [part.compute(scheduler="threads")["text"] for part in source.frame().partitions]
        assert [text for part in parts for text in part] == texts
        assert max(np.sum(part.str.len()) for part in parts) <= size


def test_texts_that_repeat_count_in_full(tmp_path) -> None:
    """Dictionaries are small in a file, and not in memory."""
    write(tmp_path / "a.parquet", rows=200, text=["x" * 10_000] * 200)
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    assert open_source(tmp_path, metadata_fields=["text"], partition_bytes=10**5).n_partitions >= 20
