"""Ids that are made: the numbers of rows, or their files and rows."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import KMeans, ReadOptions
from daskmeans.errors import UsageError
from daskmeans.planner.describe import describe
from daskmeans.steps.fit import fit
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.source import Source, open_source
from helpers import blobs, write_embeddings

X = blobs(n=120, d=4)
WIDTHS = [1, 7, 1000]


def ids_of(source: Source) -> list:
    got = source.frame().compute(scheduler="threads")[source.id_field].to_list()
    assert [id_ for number in range(source.n_partitions) for id_ in source.ids(number).to_pylist()] == got
    assert check_ids(source) is source
    return got


def write_files(folder, format: str, n_files: int = 12, rows: int = 10) -> None:
    """Files of rows without ids, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, block in enumerate(X.reshape(n_files, rows, -1)):
        name = f"part.{i}.{format}"
        if format == "npy":
            np.save(folder / name, block)
        elif format == "jsonl":
            (folder / name).write_text("".join(json.dumps({"v": row}) + "\n" for row in block.tolist()))
        else:
            pq.write_table(pa.table({"v": pa.array(block.tolist(), pa.list_(pa.float32()))}), folder / name)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("format", ["parquet", "jsonl", "npy"])
def test_rows_without_ids_are_numbered_in_the_order_of_numbers(tmp_path, caplog, format: str, width: int) -> None:
    write_files(tmp_path / "in", format)
    for given in (tmp_path / "in", f"{tmp_path}/in/*"):
        source = open_source(given, partition_bytes=16 * width)
        assert ids_of(source) == list(range(120))
        got = source.frame().compute(scheduler="threads")[source.embedding_field].to_list()
        np.testing.assert_array_equal(np.array(got), X)
    assert [message.count("no column 'id'") for message in caplog.messages] == [1] * (format != "npy")  # said once


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("format", ["parquet", "jsonl", "npy"])
def test_ids_of_file_and_row(tmp_path, format: str, width: int) -> None:
    for side in "ab":
        write_files(tmp_path / "in" / side, format, 6, 20)
    source = open_source(tmp_path / "in", id_from="file-row", partition_bytes=16 * width)
    expected = [f"{side}/part.{i}.{format}:{row}" for side in "ab" for i in range(6) for row in range(20)]
    assert ids_of(source) == expected
    again = open_source([tmp_path / "in" / "a", tmp_path / "in" / "b"], id_from="file-row")
    assert ids_of(again) == expected
    assert again.fingerprint() == source.fingerprint()
    assert again.fingerprint() != open_source(tmp_path / "in").fingerprint()
    alone = open_source(tmp_path / "in" / "b" / f"part.0.{format}", id_from="file-row")
    assert ids_of(alone)[:2] == [f"part.0.{format}:0", f"part.0.{format}:1"]


def test_ids_that_restart_in_each_file(tmp_path) -> None:
    for name in "ab":
        write_embeddings(tmp_path / f"{name}.parquet", X[:3], [0, 1, 2])
    with pytest.raises(Exception, match=r"3 ids occur more than once") as caught:
        check_ids(open_source(tmp_path))
    assert "--id-from file-row (such as 'a.parquet:0')" in caught.value.remedy
    assert ids_of(open_source(tmp_path, id_from="file-row"))[2:4] == ["a.parquet:2", "b.parquet:0"]


def test_made_ids_need_a_name_of_their_own(tmp_path) -> None:
    write_embeddings(tmp_path / "a.parquet", X[:3], [0, 0, 0])
    with pytest.raises(UsageError, match="--id-field row"):
        open_source(tmp_path, id_from="file-row", metadata_fields="id")
    source = open_source(tmp_path, id_from="file-row", id_field="row", metadata_fields="id")
    assert ids_of(source) == ["a.parquet:0", "a.parquet:1", "a.parquet:2"]
    assert source.frame().compute(scheduler="threads")["id"].to_list() == [0, 0, 0]
    for made in ({}, {"id_from": "file-row"}):
        with pytest.raises(UsageError, match="for both the ids and the vectors"):
            open_source(tmp_path, id_field="embedding", **made)


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_column_of_ids_in_some_files_only_is_refused(tmp_path, missing: str) -> None:
    for name in "ab":
        table = pq.read_table(write_embeddings(tmp_path / f"{name}.parquet", X[:3]))
        if name == missing:
            pq.write_table(table.drop_columns("id"), tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError, match="there is no column 'id'"):
        open_source(tmp_path)


def test_a_column_that_is_named_must_be_there(tmp_path) -> None:
    write_files(tmp_path, "parquet")
    with pytest.raises(UsageError, match="there is no column 'key'"):
        open_source(tmp_path, id_field="key")


def test_bad_rows_keep_their_numbers(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.float32([[1, 2], [0, 0], [3, 4]]))
    rejects = UPath(tmp_path / "rejects")
    source = open_source(tmp_path / "a.npy", id_from="file-row", on_bad_row="skip", rejects=rejects)
    assert source.frame().compute(scheduler="threads")["id"].to_list() == ["a.npy:0", "a.npy:2"]
    assert [pq.read_table(file.path)["id"].to_pylist() for file in rejects.iterdir()] == [["a.npy:1"]]


def test_fit_and_info_need_no_ids(tmp_path, caplog) -> None:
    write_files(tmp_path / "in", "parquet")
    with caplog.at_level(logging.WARNING):
        assert describe(tmp_path / "in")["id_from"] == "row"
        made = fit(tmp_path / "in", tmp_path / "model", KMeans(3, random_state=0))
    np.testing.assert_array_equal(made.cluster_centers_, KMeans(3, random_state=0).fit(X).cluster_centers_)
    assert "the columns are v" in caplog.text


def test_choices_are_checked(tmp_path) -> None:
    write_files(tmp_path, "npy")
    for options, flag in (({"id_from": "row-file"}, "--id-from"), ({"format": "csv"}, "--format")):
        with pytest.raises(UsageError, match=flag):
            open_source(tmp_path, **options)
    with pytest.raises(UsageError, match="--id-from"):
        ReadOptions(id_from="x").open(tmp_path, None, allow_zero=False)
