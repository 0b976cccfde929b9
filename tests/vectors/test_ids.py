"""Duplicate ids, against a dictionary."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.vectors import ids as ids_module
from daskmeans.vectors.ids import check_ids, find_duplicate_ids
from daskmeans.vectors.source import Source, open_source


def source_of(path, ids: list, rows_per_partition: int = 3, **options) -> Source:
    X = [[1.0 + i, 2.0] for i in range(len(ids))]
    half = len(ids) // 2
    for name, part in {"a.parquet": slice(0, half), "b.parquet": slice(half, None)}.items():
        if ids[part]:
            type_ = pa.string() if isinstance(next((i for i in ids if i is not None), 0), str) else pa.int64()
            columns = {"id": pa.array(ids[part], type_), "v": pa.array(X[part], pa.list_(pa.float32()))}
            pq.write_table(pa.table(columns), path / name)
        else:
            (path / name).unlink(missing_ok=True)
    return open_source(path, partition_bytes=8 * rows_per_partition, **options)


def truth(source: Source, ids: list) -> list[tuple[int, int, str, int, int]]:
    places = [(p.number, row) for p in source.partitions for row in range(p.rows)]
    first: dict = {}
    found = []
    for place, value in zip(places, ids, strict=True):
        if value is not None and first.setdefault(value, place) != place:
            found.append((*place, str(value), *first[value]))
    return found


def as_rows(found: pa.Table) -> list[tuple]:
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    ids=st.one_of(
        st.lists(st.integers(-4, 12) | st.none(), min_size=1, max_size=30),
        st.lists(st.text("ab", max_size=3) | st.none(), min_size=1, max_size=30),
    ),
    ranges=st.sampled_from([1, 4, 100]),
)
def test_all_later_occurrences_are_found(tmp_path, ids: list, ranges: int) -> None:
    source = source_of(tmp_path, ids)
    found = find_duplicate_ids(source, rows_per_range=max(1, len(ids) // ranges))
    assert as_rows(found) == truth(source, ids)


def test_equal_hashes_of_different_ids_are_no_duplicates(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ids_module, "hash_column", lambda column: np.zeros(len(column), np.uint64))
    values = ["a", "b", "c", "b", "d", "e", "a"]
    source = source_of(tmp_path, values)
    assert as_rows(find_duplicate_ids(source)) == truth(source, values)


def test_unique_ids_pass(tmp_path) -> None:
    source = source_of(tmp_path, [f"id{i}" for i in range(20)])
    assert check_ids(source) is source
    np.save(tmp_path / "x.npy", np.ones((5, 2), np.float32))
    numbered = open_source(tmp_path / "x.npy")
    assert check_ids(numbered) is numbered


def test_duplicates_are_refused_with_both_places(tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        check_ids(source_of(tmp_path, ["a", "b", "a", "c", "c", "a", "d", "d", "e", "e"]))
    text = str(caught.value)
    assert "4 ids occur more than once" in text
    assert f"'a' ({tmp_path}/a.parquet, row 0, and {tmp_path}/a.parquet, row 2)" in text
    assert f"'c' ({tmp_path}/a.parquet, row 3, and {tmp_path}/a.parquet, row 4)" in text
    assert f"'d' ({tmp_path}/b.parquet, row 1, and {tmp_path}/b.parquet, row 2)" in text
    assert "'e'" not in text
    assert "--id-field" in text
    assert "--on-bad-row skip" in text


def test_duplicates_are_left_out_and_recorded(tmp_path) -> None:
    values = [1, 2, 1, None, 3, 2, 4, 1, 5, 5]
    rejects = UPath(tmp_path / "rejects")
    source = check_ids(source_of(tmp_path, values, on_bad_row="skip", rejects=rejects), "skip")
    got = source.frame().compute(scheduler="threads")
    assert got["id"].to_list() == [1, 2, 3, 4, 5]
    assert source.rows == 10
    found = pa.concat_tables(pq.read_table(file.path) for file in sorted(rejects.iterdir())).to_pydict()
    assert found["id"] == ["1", None, "2", "1", "5"]
    assert found["reason"] == ["duplicate id", "the id is null", *["duplicate id"] * 3]
    assert found["row"] == [2, 3, 0, 2, 4]


def test_on_a_cluster(tmp_path) -> None:
    values = [i % 37 for i in range(60)]
    source = source_of(tmp_path, values)
    with LocalCluster(processes=False, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        assert as_rows(find_duplicate_ids(source, client)) == truth(source, values)
