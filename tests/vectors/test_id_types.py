"""Ids of every type: order, hash and equality agree with pyarrow's, and none is another."""

from __future__ import annotations

import re
from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskmeans.duplicates.lookup import make_decision_index
from daskmeans.duplicates.ranking import rank
from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.hashing import hash_column
from daskmeans.vectors.embeddings import read_embeddings
from daskmeans.vectors.id_types import cast_ids, id_type, ids_to_text
from daskmeans.vectors.ids import check_ids, find_duplicate_ids
from daskmeans.vectors.source import open_source

VALUES = {
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(2**63 - 3, 2**64 - 1),
    pa.float64(): st.integers(-(2**53), 2**53).map(float),
    pa.float32(): st.integers(-(2**24), 2**24).map(float),
    pa.string(): st.text(max_size=4),
    pa.binary(): st.binary(max_size=4),
    pa.large_binary(): st.binary(max_size=4),
    pa.binary(16): st.binary(min_size=16, max_size=16),
    pa.uuid(): st.uuids().map(lambda each: each.bytes),
    pa.decimal128(38, 0): st.integers(-(10**37), 10**37).map(Decimal),
    pa.decimal128(20, 0): st.integers(-9, 9).map(Decimal),
}


def array(values: list, type_: pa.DataType) -> pa.Array:
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))
    return pa.array(values, type_)


@pytest.mark.parametrize("type_", VALUES, ids=str)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_order_hash_and_equality_agree_with_those_of_arrow(type_: pa.DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[type_], min_size=1, max_size=20))
    ids = cast_ids(array(values, type_), id_type(type_, ""))
    assert ids.to_pylist() == values
    distinct = pc.unique(ids)
    assert len(np.unique(hash_column(distinct))) == len(distinct)
    np.testing.assert_array_equal(
        hash_column(ids)[:, None] == hash_column(ids), np.array([[a == b for a in values] for b in values])
    )
    ranked = ids.take(pa.array(rank(pa.table({"id": ids, "x": [0] * len(ids)}), ("x:asc",), "id", 0)))
    assert ranked.to_pylist() == sorted(values)
    lookup = make_decision_index(pa.chunked_array([distinct]), np.arange(len(distinct)) % 2 == 0)
    stays = {value: i % 2 == 0 for i, value in enumerate(distinct.to_pylist())}
    assert lookup.keep[lookup.find(array(values, type_))].tolist() == [stays[value] for value in values]


@pytest.mark.parametrize("type_", VALUES, ids=str)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_repeated_ids_are_found(tmp_path, type_: pa.DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[type_], min_size=1, max_size=9))
    values += data.draw(st.lists(st.sampled_from(values), max_size=4))
    vectors = pa.array([[1.0, float(i + 1)] for i in range(len(values))], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": array(values, type_), "v": vectors}), tmp_path / "a.parquet")
    found = find_duplicate_ids(open_source(tmp_path / "a.parquet", partition_bytes=24))
    assert len(found) == len(values) - len(set(values))


def write(path, ids: pa.Array) -> None:
    pq.write_table(pa.table({"id": ids, "v": pa.array([[1.0]] * len(ids), pa.list_(pa.float32()))}), path)


@pytest.mark.parametrize(
    ("values", "told"),
    [([1.0, 1.5], r"1\.5 is no integer"), ([2.0**53 + 2], "beyond 2^53"), ([float("inf")], "inf is no integer")],
)
def test_doubles_that_are_no_integers_are_refused(tmp_path, values: list[float], told: str) -> None:
    write(tmp_path / "a.parquet", pa.array(values))
    with pytest.raises(DataError, match=told.replace("^", r"\^")) as caught:
        check_ids(open_source(tmp_path / "a.parquet"))
    assert "column 'id'" in caught.value.where
    assert "--id-from file-row" in caught.value.remedy


def test_a_number_that_is_none_is_a_missing_id(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.array([1.0, float("nan"), 3.0]))
    with pytest.raises(DataError, match="the id is null"):
        read_embeddings(tmp_path / "a.parquet").compute(scheduler="threads")
    kept = read_embeddings(tmp_path / "a.parquet", on_bad_row="skip").compute(scheduler="threads")
    assert kept["id"].to_list() == [1, 3]


@pytest.mark.parametrize("type_", [pa.bool_(), pa.date32(), pa.list_(pa.int64()), pa.decimal128(9, 2)], ids=str)
def test_types_that_are_no_ids(type_: pa.DataType) -> None:
    with pytest.raises(UsageError, match=re.escape(f"a.parquet: the id is {type_}")) as caught:
        id_type(type_, "a.parquet")
    assert "--id-field" in caught.value.remedy


def test_files_with_signed_and_unsigned_integers(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.array([1, 2], pa.uint64()))
    write(tmp_path / "b.parquet", pa.array([-3, 4], pa.int32()))
    assert read_embeddings(tmp_path).compute(scheduler="threads")["id"].to_list() == [1, 2, -3, 4]
    write(tmp_path / "a.parquet", pa.array([2**63], pa.uint64()))
    with pytest.raises(DataError, match="cannot be read as int64"):
        read_embeddings(tmp_path).compute(scheduler="threads")


def test_ids_for_people() -> None:
    name = UUID(int=2**127 + 5)
    assert ids_to_text(array([name.bytes, None], pa.uuid())).to_pylist() == [str(name), None]
    assert ids_to_text(pa.chunked_array([pa.array([b"a", b"\x00"])])).to_pylist() == ["a", "00"]
    assert ids_to_text(pa.array([2**64 - 1], pa.uint64())).to_pylist() == [str(2**64 - 1)]
    assert ids_to_text(pa.array(["é"])).to_pylist() == ["é"]


def test_rejects_and_messages_show_uuids_as_such(tmp_path) -> None:
    names = [UUID(int=2**127 + i) for i in (1, 2, 1)]
    write(tmp_path / "a.parquet", pa.array([name.bytes for name in names], pa.binary(16)))
    with pytest.raises(DataError, match=f"'{names[0]}'"):
        check_ids(open_source(tmp_path))
