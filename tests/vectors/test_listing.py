"""No file of an input is left out or taken in without a word."""

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import KMeans
from daskmeans.errors import DataError, NotFoundError, UsageError
from daskmeans.steps.assign import assign_files
from daskmeans.steps.embed import embed
from daskmeans.steps.fit import fit
from daskmeans.steps.leak import leak
from daskmeans.vectors import lakes
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.source import Source, open_source
from helpers import blobs, write_embeddings

X = blobs(n=100, d=4)


def names(given: object, root: Path) -> list[str]:
    return [str(file.relative_to(UPath(root))) for file in find_files(given)]


@pytest.mark.parametrize("given", ["", "/*", "/**"])
def test_files_of_unknown_names_are_named(tmp_path, caplog, given: str) -> None:
    write_embeddings(tmp_path / "a.parquet", X)
    for name in ("rows.csv", "0.txt", "1.txt", "b/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("id\n1\n")
    with caplog.at_level(logging.WARNING):
        assert names(f"{tmp_path}{given}", tmp_path) == ["a.parquet"]
    assert len(caplog.messages) == 1
    assert "4 of 5 files are left out" in caplog.text
    assert "0.txt, 1.txt, 2.txt and 1 more" in caplog.text
    assert "*.parquet" in caplog.text


@pytest.mark.parametrize("given", ["", "/*"])
def test_what_writers_of_data_leave_beside_it_is_no_data(tmp_path, caplog, given: str) -> None:
    write_embeddings(tmp_path / "a.parquet", X)
    for name in ("_SUCCESS", "_metadata", ".part-0.parquet.crc", "a.parquet.crc", ".DS_Store", "manifest.json"):
        (tmp_path / name).write_bytes(b"PAR1")
    assert names(f"{tmp_path}{given}", tmp_path) == ["a.parquet"]
    assert not caplog.messages


@pytest.mark.parametrize("name", ["b.parquet.snappy", "000000_0", "sub/part-0"])
@pytest.mark.parametrize("given", ["", "/**"])
def test_parquet_under_another_name_beside_others_is_refused(tmp_path, name: str, given: str) -> None:
    write_embeddings(tmp_path / name, X)
    write_embeddings(tmp_path / "a.parquet", X[:10])
    with pytest.raises(UsageError, match=f"Parquet files whose names do not say so: {Path(name).name}") as caught:
        open_source(f"{tmp_path}{given}")
    assert "glob" in caught.value.remedy
    assert "--format parquet" in caught.value.remedy
    assert names(f"{tmp_path}/*.parquet", tmp_path) == ["a.parquet"]
    assert open_source(f"{tmp_path}{given}", format="parquet").rows == 110


def test_a_link_to_nowhere_is_named(tmp_path, caplog) -> None:
    write_embeddings(tmp_path / "a.parquet", X)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path, tmp_path) == ["a.parquet"]
    assert "1 of 2 files are left out, as their names show no format: gone" in caplog.text


def test_a_wildcard_goes_into_no_hidden_directory(tmp_path) -> None:
    for name in ("a.parquet", "_temporary/b.parquet", "c/.d/e.parquet", "c/f.parquet"):
        write_embeddings(tmp_path / name, X)
    for given in ("*", "**/*.parquet"):
        assert names(f"{tmp_path}/{given}", tmp_path) == ["a.parquet", "c/f.parquet"]
    assert names(f"{tmp_path}/_temp*/*.parquet", tmp_path) == ["_temporary/b.parquet"]
    assert names(f"{tmp_path}/_temporary/*.parquet", tmp_path) == ["_temporary/b.parquet"]
    with pytest.raises(NotFoundError, match="matches nothing"):
        find_files(f"{tmp_path}/c/**/e.parquet")


# tables that have a log

LOGS = {
    "Delta": "_delta_log/00000000000000000000.json",
    "Iceberg": "metadata/00000-5f.metadata.json",
    "Hudi": ".hoodie/hoodie.properties",
}


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize(
    ("table", "data", "given"),
    [
        ("in", "a.parquet", "in"),
        ("in", "a.parquet", "in/*.parquet"),
        ("in", "a.parquet", "in/a*"),
        ("in", "data/a.parquet", "in/data/*.parquet"),
        ("in", "day=1/hour=2/a.parquet", "in"),
        ("in", "day=1/hour=2/a.parquet", "in/day=1/hour=2"),
        ("in", "day=1/hour=2/a.parquet", "in/*/*/*.parquet"),
        ("in/lang=en", "a.parquet", "in"),
        ("in/lang=en", "a.parquet", "in/*/*.parquet"),
        ("in/sub/sub", "a.parquet", "in"),
    ],
)
def test_tables_whose_log_tells_the_files_are_refused(tmp_path, monkeypatch, scheme, kind, table, data, given) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)  # not installed
    at = UPath(f"{scheme}{tmp_path}")
    write_embeddings(tmp_path / "a.parquet", X)
    for name, content in {data: (tmp_path / "a.parquet").read_bytes(), LOGS[kind]: b"{}"}.items():
        (at / table / name).parent.mkdir(parents=True, exist_ok=True)
        (at / table / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"a {kind} table") as caught:
        open_source(f"{at}/{given}")
    assert caught.value.where == str(at / table)
    assert open_source([at / table / data]).rows == 100  # as the log tells


class FakeDeltaTable:
    """What a Delta table answers; its log is a file of names, one per line, and of what it asks of readers."""

    def __init__(self, root: str) -> None:
        self._names, self._asks = json.loads((Path(root) / "_delta_log" / "0.json").read_text())

    def get_add_actions(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"path": self._names})

    def protocol(self) -> SimpleNamespace:
        return SimpleNamespace(reader_features=self._asks.get("features"))

    def metadata(self) -> SimpleNamespace:
        return SimpleNamespace(configuration=self._asks.get("configuration", {}))


def write_log(folder: Path, names: list[str], **asks: object) -> None:
    (folder / "_delta_log").mkdir(parents=True, exist_ok=True)
    (folder / "_delta_log" / "0.json").write_text(json.dumps([names, asks]))


@pytest.fixture
def delta(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", SimpleNamespace(DeltaTable=FakeDeltaTable))


def test_the_log_of_a_delta_table_is_followed(tmp_path, delta) -> None:
    folder = tmp_path / "in"
    for name in ("2.parquet", "10.parquet", "gone.parquet", "day=a%20b/3.parquet"):  # as its partitions are called
        write_embeddings(folder / name, X)
    write_log(folder, ["10.parquet", "2.parquet", "day=a%2520b/3.parquet"], features=["timestampNtz"])
    assert names(folder, folder) == ["2.parquet", "10.parquet", "day=a%20b/3.parquet"]
    assert open_source([folder]).rows == 300
    for given in ("in/*.parquet", "in/day=*", ""):
        with pytest.raises(UsageError, match="a Delta table") as caught:
            open_source(f"{tmp_path}/{given}")
        assert "name the directory of the table" in caught.value.remedy


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        ({"features": ["deletionVectors"]}, "deletionVectors"),
        ({"features": ["columnMapping"], "configuration": {"delta.columnMapping.mode": "name"}}, "columnMapping"),
        ({"configuration": {"delta.columnMapping.mode": "id"}}, "columnMapping"),
    ],
)
def test_a_delta_table_whose_files_alone_do_not_show_its_rows(tmp_path, delta, asks: dict, told: str) -> None:
    write_embeddings(tmp_path / "a.parquet", X)
    write_log(tmp_path, ["a.parquet"], **asks)
    with pytest.raises(UsageError, match=f"its files alone do not show its rows \\({told}\\)"):
        open_source(tmp_path)


def test_a_delta_table_whose_log_cannot_be_followed(tmp_path, delta, monkeypatch) -> None:
    write_embeddings(tmp_path / "in" / "a.parquet", X)
    write_embeddings(tmp_path / "b.parquet", X)
    write_log(tmp_path / "in", ["../b.parquet"])
    with pytest.raises(DataError, match="not below it"):
        open_source(tmp_path / "in")
    (tmp_path / "in" / "_delta_log" / "0.json").write_text("no JSON\nat all")
    with pytest.raises(UsageError, match=r"its log cannot be read \(.*\)"):
        open_source(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(UsageError, match="a Delta table") as caught:
        open_source(tmp_path / "in")
    assert 'pip install "daskmeans[lakes]"' in caught.value.remedy


@pytest.fixture(scope="module")
def deltalake(tmp_path_factory):
    """The package, whose threads last."""
    package = pytest.importorskip("deltalake", reason='no deltalake: pip install "daskmeans[lakes]"')
    package.write_deltalake(str(tmp_path_factory.mktemp("first")), pa.table({"id": [1]}))
    return package


def test_a_delta_table_of_its_own_package(tmp_path, deltalake) -> None:
    folder = tmp_path / "with space"
    for first in (0, 10):
        rows = range(first, first + 10)
        table = pa.table({"id": rows, "v": pa.array([[1.0 + i] for i in rows]), "of": [f"{i % 2} é%" for i in rows]})
        deltalake.write_deltalake(str(folder), table, mode="append", partition_by=["of"])
    deltalake.DeltaTable(str(folder)).delete("id < 5")
    assert sorted(open_source(folder).frame().compute(scheduler="threads")["id"]) == list(range(5, 20))


def test_numbers_in_names_sort_as_numbers(tmp_path) -> None:
    expected = ["b2/a.npy", "b10/a.npy", "x_0.npy", "x_1.npy", "x_2.npy", "x_010.npy", "x_10.npy", "x_11.npy"]
    for name in sorted(expected):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, X)
    for given in ("", "/**/*.npy"):
        assert names(f"{tmp_path}{given}", tmp_path) == expected
    assert names([tmp_path / "x_10.npy", tmp_path / "x_2.npy"], tmp_path) == ["x_10.npy", "x_2.npy"]


def test_a_directory_of_metadata_is_no_table(tmp_path) -> None:
    np.save(tmp_path / "a.npy", X)
    write_embeddings(tmp_path / "metadata" / "metadata_0.parquet", X)
    assert names(f"{tmp_path}/*.npy", tmp_path) == ["a.npy"]


def test_a_pipe_is_no_data(tmp_path) -> None:
    """Nor is it opened: nobody writes into it."""
    write_embeddings(tmp_path / "a.parquet", X)
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path, tmp_path) == ["a.parquet"]


@pytest.mark.parametrize("given", ["in/rows.parquet", "in", "in/*"])
def test_a_pipe_among_the_data_is_refused_in_a_sentence(tmp_path, given: str) -> None:
    write_embeddings(tmp_path / "in" / "a.parquet", blobs(80))
    os.mkfifo(tmp_path / "in" / "rows.parquet")
    with pytest.raises(UsageError, match=r"rows\.parquet: this is a pipe"):
        find_files(tmp_path / given)


def test_a_device_is_no_input() -> None:
    with pytest.raises(UsageError, match="this is a device"):
        find_files("/dev/null")


def test_a_glob_over_many_partitions_asks_little_of_a_store(tmp_path, monkeypatch) -> None:
    for i in range(30):
        write_embeddings(tmp_path / f"centroid={i}" / "part-0.parquet", X[:3])
    asked: list[UPath] = []
    monkeypatch.setattr(lakes, "_has_log", lambda folder, ending: asked.append(folder) or False)
    assert len(find_files(f"{tmp_path}/centroid=*/*.parquet")) == 30
    assert {folder.parent for folder in asked} == {
        UPath(p) for p in (tmp_path / "centroid=0", tmp_path, tmp_path.parent)
    }
    assert len(asked) == 9


# a file that comes while a step runs


@pytest.mark.parametrize("name", ["late.parquet", "late.parquet.tmp"])
def test_a_file_that_comes_while_a_step_runs_is_told(tmp_path, caplog, name: str) -> None:
    """What was made is of the files that were there; a step of hours is not lost for one more."""
    write_embeddings(tmp_path / "in/a.parquet", X)
    source = open_source(tmp_path / "in")
    write_embeddings(tmp_path / "late.parquet", X).rename(tmp_path / "in" / name)
    source.check_unchanged()
    told = "1 files were added while the input was being read, and are not in the output: late.parquet"
    assert (told in caplog.text) == (name == "late.parquet")


@pytest.mark.parametrize("step", ["fit", "assign", "leak", "embed"])
def test_every_step_looks_once_more(tmp_path, caplog, monkeypatch, step: str) -> None:
    source = tmp_path / "in"
    write_embeddings(source / "a.parquet", X, text=[f"a text {i}" for i in range(100)])
    looks: list[Source] = []
    monkeypatch.setattr(Source, "check_unchanged", lambda source: looks.append(source))
    KMeans(3).fit(X).save(tmp_path / "model")
    out = tmp_path / "out"
    if step == "fit":
        fit(source, out, KMeans(3))
    elif step == "assign":
        assign_files(source, tmp_path / "model", out)
    elif step == "leak":
        leak(source, source, out, 0.9)
    else:
        embed(source, out)
    assert len(looks) == (2 if step == "leak" else 1)


def test_files_that_come_do_not_matter_where_files_are_named(tmp_path) -> None:
    source = open_source([write_embeddings(tmp_path / "a.parquet", X)])
    write_embeddings(tmp_path / "b.parquet", X)
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "c.parquet")
    source.check_unchanged()
