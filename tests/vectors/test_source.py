"""Files of all formats, read back against what was written into them."""

import gzip
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster
from upath import UPath

from daskmeans.errors import DaskmeansError, DataError, MissingExtraError, NotFoundError, OutputError, UsageError
from daskmeans.storage import manifest
from daskmeans.vectors import json_survey, jsonl, parquet
from daskmeans.vectors.embeddings import read_embeddings
from daskmeans.vectors.files import open_path, refuse_overlap
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.partitioning import Slice
from daskmeans.vectors.source import Source, open_source
from helpers import write_embeddings

LISTS = {"list": pa.list_, "large_list": pa.large_list, "fixed": lambda t: pa.list_(t, 3)}
JSON_SUFFIXES = [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst"]


def vectors(n: int, d: int = 3, seed: int = 0) -> np.ndarray:
    """Numbers that float16 holds, none of them zero."""
    return (np.random.default_rng(seed).normal(size=(n, d)) + 4).astype(np.float16).astype(np.float32)


def lists(X: np.ndarray, kind: str = "list", element: pa.DataType = pa.float32()) -> pa.Array:  # noqa: B008
    return pa.array(X.astype(element.to_pandas_dtype()).tolist(), LISTS[kind](element))


def table(X: np.ndarray, start: int = 0, kind: str = "list", element: pa.DataType = pa.float32()) -> pa.Table:  # noqa: B008
    ids = np.arange(start, start + len(X))
    return pa.table({"id": ids, "embedding": lists(X, kind, element), "source": [f"s{i}" for i in ids]})


def write_parquet(path, *args, row_group_size: int | None = None, **kwargs) -> None:
    pq.write_table(table(*args, **kwargs), path, row_group_size=row_group_size)


def write_lines(path, lines: list[str]) -> None:
    data = "".join(line + "\n" for line in lines).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data[:100]) + gzip.compress(data[100:])  # members, as `cat a.gz b.gz` leaves them
    elif path.suffix == ".zst":
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.write_bytes(data)


def json_lines(X: np.ndarray, start: int = 0) -> list[str]:
    rows = enumerate(X.tolist(), start)
    return [json.dumps({"id": i, "extra": {"a": 1}, "embedding": row, "source": f"s{i}"}) for i, row in rows]


def check(source: Source, X: np.ndarray, dtype: str = "float32") -> pd.DataFrame:
    """The rows of `source` are those of `X`, numbered, in every respect."""
    frame = source.frame()
    parts = [part.compute(scheduler="threads") for part in frame.partitions]
    assert len(parts) == source.n_partitions
    assert sum(partition.rows for partition in source.partitions) == source.rows == len(X)
    assert (source.dimension, source.dtype) == (X.shape[1], dtype)
    for number, part in enumerate(parts):
        pd.testing.assert_series_equal(part.dtypes, frame.dtypes)
        assert source.ids(number).to_pylist() == part[source.id_field].to_list()
    assert all(isinstance(kind, pd.ArrowDtype) for kind in frame.dtypes)
    assert frame.dtypes["embedding"].pyarrow_dtype == pa.list_(pa.from_numpy_dtype(dtype), X.shape[1])
    got = pd.concat(parts)
    np.testing.assert_array_equal(to_matrix(got["embedding"]), X)
    return got


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("element", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("rows_per_partition", [1, 7, 1000])
def test_parquet_of_every_layout(tmp_path, kind: str, element: pa.DataType, rows_per_partition: int) -> None:
    X = vectors(25)
    write_parquet(tmp_path / "a.parquet", X, kind=kind, element=element, row_group_size=10)
    source = open_source(tmp_path, metadata_fields=["source"], partition_bytes=12 * rows_per_partition)
    got = check(source, X, np.dtype(element.to_pandas_dtype()).name)
    assert got["id"].to_list() == list(range(25))
    assert got["source"].to_list() == [f"s{i}" for i in range(25)]
    assert max(partition.rows for partition in source.partitions) <= rows_per_partition


@pytest.mark.parametrize("suffix", JSON_SUFFIXES)
@pytest.mark.parametrize("rows_per_partition", [1, 7, 1000])
def test_json_lines(tmp_path, suffix: str, rows_per_partition: int) -> None:
    X = vectors(25)
    lines = json_lines(X)
    write_lines(tmp_path / f"a{suffix}", [*lines[:4], "", "  ", *lines[4:16]])
    write_lines(tmp_path / f"b{suffix}", [*lines[16:], "", ""])
    source = open_source(tmp_path, metadata_fields=["source"], partition_bytes=12 * rows_per_partition)
    got = check(source, X)
    assert got["id"].to_list() == list(range(25))
    assert got["source"].to_list() == [f"s{i}" for i in range(25)]
    if suffix in (".jsonl", ".ndjson"):
        assert max(partition.rows for partition in source.partitions) <= rows_per_partition


@pytest.mark.parametrize("block", [1, 50, 333])
def test_json_lines_across_the_bounds_of_blocks(tmp_path, block: int) -> None:
    X = vectors(25)
    text = "\n\n" + "\r\n".join(json_lines(X))  # and no end of line at the end
    path = UPath(tmp_path / "a.jsonl")
    path.write_bytes(text.encode())
    found, rows = json_survey.survey_jsonl(path, 6, block, block), []
    for unit in found.units:
        piece = Slice(path, len(rows), unit.rows, len(rows), unit.start, unit.end)
        rows += pa.concat_tables(jsonl.read_jsonl(piece, found.schema, block)).to_pylist()
    assert rows == [json.loads(line) for line in json_lines(X)]
    assert len(found.units) > 1


def test_integers_in_json_vectors(tmp_path) -> None:
    write_lines(tmp_path / "a.jsonl", ['{"id": "x", "v": [1, 2]}', '{"id": "y", "v": [1.5, 2]}'])
    write_lines(tmp_path / "b.jsonl", ['{"id": "z", "v": [3, 4]}'])
    got = read_embeddings(tmp_path).compute(scheduler="threads")
    np.testing.assert_array_equal(to_matrix(got["v"]), np.float32([[1, 2], [1.5, 2], [3, 4]]))
    assert got["id"].to_list() == ["x", "y", "z"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("rows_per_partition", [4, 1000])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_numpy_files_have_the_numbers_of_the_rows_as_ids(tmp_path, dtype, rows_per_partition: int, where: str) -> None:
    X = vectors(25)
    root = UPath(tmp_path) if where == "local" else UPath(f"memory://npy{dtype}-{rows_per_partition}")
    for name, rows in {"a.npy": X[:10], "b.npy": X[10:]}.items():
        with (root / name).open("wb") as file:
            np.save(file, rows.astype(dtype))
    source = open_source(root, partition_bytes=12 * rows_per_partition)
    got = check(source, X, np.dtype(dtype).newbyteorder("=").name)
    assert got["id"].to_list() == list(range(25))


def test_row_groups_larger_than_a_partition_are_read_in_ranges(tmp_path) -> None:
    X = vectors(100)
    write_parquet(tmp_path / "a.parquet", X, row_group_size=60)
    source = open_source(tmp_path, partition_bytes=12 * 25)
    check(source, X)
    assert [partition.rows for partition in source.partitions] == [20, 20, 20, 20, 20]
    pieces = [piece for partition in source.partitions for piece in partition.slices]
    parts = [part for piece in pieces for part in parquet.read_parquet(piece, table(X).schema, batch_bytes=200)]
    assert pa.concat_tables(parts)["id"].to_pylist() == list(range(100))
    assert len(parts) > len(pieces)


def test_tiny_files_are_packed(tmp_path) -> None:
    X = vectors(200)
    for i in range(100):
        write_parquet(tmp_path / f"{i:03d}.parquet", X[2 * i : 2 * i + 2], start=2 * i)
    source = open_source(tmp_path, partition_bytes=12 * 64)
    got = check(source, X)
    assert got["id"].to_list() == list(range(200))
    assert [partition.rows for partition in source.partitions] == [64, 64, 64, 8]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["a", "b", "a", "c"]).dictionary_encode(),
        pa.array(["a", "b", "a", "c"], pa.large_string()),
        pa.array(["a", "b", "a", "c"], pa.string_view()),
        pa.array([1, 2, 3, 4], pa.uint64()),
        pa.array([1, 2, 3, 4], pa.int8()),
        pa.array([1, 2, 1, 1], pa.int32()).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_and_metadata_have_one_type_however_they_are_stored(tmp_path, ids: pa.Array) -> None:
    pq.write_table(pa.table({"id": ids, "embedding": lists(vectors(4)), "copy": ids}), tmp_path / "a.parquet")
    got = read_embeddings(tmp_path, metadata_fields=["copy"]).compute(scheduler="threads")
    assert got["id"].to_list() == got["copy"].to_list() == ids.to_pylist()
    assert got["id"].dtype.pyarrow_dtype in ({pa.uint64()} & {ids.type} or {pa.int64(), pa.string()})
    assert not pa.types.is_dictionary(got["copy"].dtype.pyarrow_dtype)


def test_texts(tmp_path) -> None:
    texts = [f"text number {i}" for i in range(10)]
    pq.write_table(pa.table({"id": range(10), "text": pa.array(texts).dictionary_encode()}), tmp_path / "a.parquet")
    write_lines(tmp_path / "a.jsonl", [json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)])
    for name in ("a.parquet", "a.jsonl"):
        source = open_source(tmp_path / name, text_field="text", partition_bytes=4096 * 5)
        assert (source.embedding_field, source.dimension, source.n_partitions) == (None, 0, 2)
        got = source.frame().compute(scheduler="threads")
        assert got["text"].to_list() == texts
        assert got["text"].dtype == pd.ArrowDtype(pa.string())


# which files


def test_files_of_a_directory_a_glob_and_a_list(tmp_path) -> None:
    X = vectors(6)
    for name in ("b/2.parquet", "a.pq", "b/1.parquet", ".hidden.parquet", "_temporary/x.parquet", "b/.h/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / name, X)
    (tmp_path / "README.md").write_text("not data")
    names = lambda given: [str(f.relative_to(UPath(tmp_path))) for f in open_source(given).files]  # noqa: E731
    assert names(tmp_path) == ["a.pq", "b/1.parquet", "b/2.parquet"]
    assert names(f"{tmp_path}/b/*.parquet") == ["b/1.parquet", "b/2.parquet"]
    assert names(f"{tmp_path}/*/[2].parquet") == ["b/2.parquet"]
    assert names([tmp_path / "b" / "2.parquet", f"{tmp_path}/a.pq"]) == ["b/2.parquet", "a.pq"]
    assert open_source(tmp_path).rows == 18


def linked(tmp_path):
    """A directory with files of its own, one behind a link in it, and a link to it from outside."""
    for name in ("real/sub/a.npy", "in/a.npy", "in/z/b.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, vectors(5))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "to_in").symlink_to("in")
    return tmp_path / "in"


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("given", ["in", "in/*", "in/**", "in/**/*.npy", "to_in", "to_in/*", "in/link/../in"])
def test_links_to_directories_are_followed_however_they_are_named(tmp_path, scheme: str, given: str) -> None:
    linked(tmp_path)
    found = find_files(f"{scheme}{tmp_path}/{given}")
    below = [file.path.rpartition("in/")[2] for file in found]
    assert below == ["a.npy", "link/sub/a.npy", "z/b.npy"]
    assert open_source(f"{scheme}{tmp_path}/{given}").rows == 15


@pytest.mark.parametrize(("target", "rows"), [("in", 15), ("real", 15), ("real/sub", 15), (".", 20)])
@pytest.mark.parametrize("given", ["in", "in/*", "in/**/*.npy"])
def test_links_that_lead_back_end(tmp_path, given: str, target: str, rows: int) -> None:
    root = linked(tmp_path)
    np.save(tmp_path / "above.npy", vectors(5))
    (tmp_path / "real" / "sub" / "back").symlink_to(tmp_path / target)
    (root / "self").symlink_to(root / "self")
    assert open_source(f"{tmp_path}/{given}").rows == rows


@pytest.mark.parametrize("given", ["in", "in/*", "in/**/*.npy"])
def test_a_link_to_what_is_read_anyhow(tmp_path, given: str) -> None:
    root = linked(tmp_path)
    (root / "again").symlink_to("z")
    text = message(UsageError, f"{tmp_path}/{given}")
    assert f"{root}/z/b.npy: the file is named twice, also as {root}/again/b.npy" in text


def test_all_files_of_a_tree_come_in_one_order(tmp_path) -> None:
    for name in ("b/1.npy", "b-x/1.npy", "b.npy", "b/c/1.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, vectors(3))
    for given in ("", "/*", "/**", "/**/*.npy"):
        assert [str(file) for file in find_files(f"{tmp_path}{given}")] == [
            f"{tmp_path}/{name}" for name in ("b-x/1.npy", "b.npy", "b/1.npy", "b/c/1.npy")
        ]


def test_a_relative_path_is_found_wherever_a_worker_runs(tmp_path, monkeypatch) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(3))
    monkeypatch.chdir(tmp_path)
    source = open_source("a.parquet")
    monkeypatch.chdir("/")
    check(source, vectors(3))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_memory_filesystem(tmp_path, name: str) -> None:
    X = vectors(20)
    if name == "a.parquet":
        write_parquet(tmp_path / name, X)
    else:
        write_lines(tmp_path / name, json_lines(X))
    target = UPath(f"memory://source-test/{name}/{name}")
    target.write_bytes((tmp_path / name).read_bytes())
    for given in (str(target), str(target.parent), f"{target.parent}/*"):
        check(open_source(given, partition_bytes=60, storage_options={}), X)


def test_own_outputs_are_read_when_they_are_finished_and_hold_rows(tmp_path) -> None:
    out = UPath(tmp_path)
    write_parquet(tmp_path / "part-0.parquet", vectors(5))
    manifest.write_json(out / manifest.MANIFEST_NAME, {"step": "embed", "finished": False})
    with pytest.raises(OutputError, match="unfinished"):
        open_source(out)
    manifest.write_json(out / manifest.MANIFEST_NAME, {"step": "embed", "format": manifest.FORMAT, "finished": True})
    check(open_source(out), vectors(5))
    manifest.write_json(out / manifest.MANIFEST_NAME, {"step": "fit", "finished": True})
    with pytest.raises(NotFoundError, match="daskmeans fit"):
        open_source(out)


def test_a_manifest_of_somebody_else_means_nothing(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(3))
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    check(open_source(tmp_path), vectors(3))


# what the plan refuses


def one(tmp_path, columns: dict, name: str = "a.parquet"):
    pq.write_table(pa.table(columns), tmp_path / name)
    return tmp_path / name


def message(kind: type[DaskmeansError], *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        open_source(*args, **kwargs).frame().compute(scheduler="threads")
    return str(caught.value)


def test_paths_that_are_not_there(tmp_path) -> None:
    assert str(tmp_path / "no.parquet") in message(NotFoundError, tmp_path / "no.parquet")
    assert "matches nothing" in message(NotFoundError, f"{tmp_path}/*.parquet")
    assert "no file that can be read" in message(UsageError, tmp_path)
    assert "empty list" in message(UsageError, [])
    assert "the path is empty" in message(UsageError, "")
    (tmp_path / "a.csv").write_text("id\n1\n")
    assert ".parquet" in message(UsageError, tmp_path / "a.csv")
    assert "a.csv" in message(UsageError, tmp_path)
    assert "a.csv" in message(UsageError, f"{tmp_path}/*")


def test_files_that_do_not_go_together(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(3))
    assert "twice" in message(UsageError, [tmp_path, tmp_path / "a.parquet"])
    (tmp_path / "x").mkdir()
    text = message(UsageError, [tmp_path / "a.parquet", f"{tmp_path}/x/../a.parquet"])
    assert f"twice, also as {tmp_path}/a.parquet" in text
    assert "twice" in message(UsageError, [tmp_path / "a.parquet", f"file://{tmp_path}/a.parquet"])
    (tmp_path / "x" / "link.parquet").symlink_to(tmp_path / "a.parquet")
    assert "link.parquet" in message(UsageError, tmp_path)
    (tmp_path / "x" / "link.parquet").unlink()
    np.save(tmp_path / "b.npy", vectors(3))
    text = message(UsageError, tmp_path)
    assert "a.parquet" in text
    assert "b.npy" in text


@pytest.mark.parametrize("out", ["to_in/kept", "x/../in/kept", "in", "to_in", "real/..", "real"])
def test_an_output_that_meets_an_input_behind_a_link(tmp_path, out: str) -> None:
    root = UPath(linked(tmp_path))
    with pytest.raises(OutputError, match=r"the output (lies inside|contains) the input"):
        refuse_overlap(open_path(f"{tmp_path}/{out}"), [root, *find_files(root)])
    refuse_overlap(open_path(f"{tmp_path}/in/link/../kept"), [root, *find_files(root)])  # it lies beside `in`


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_an_output_that_meets_any_file_that_was_looked_at(tmp_path, scheme: str) -> None:
    for name in ("a/1.parquet", "b/2.parquet", "c/3.parquet"):
        write_parquet(tmp_path / "one.parquet", vectors(3))
        (UPath(f"{scheme}{tmp_path}") / name).parent.mkdir(parents=True, exist_ok=True)
        (UPath(f"{scheme}{tmp_path}") / name).write_bytes((tmp_path / "one.parquet").read_bytes())
    source = open_source([f"{scheme}{tmp_path}/{name}" for name in ("a/1.parquet", "b/2.parquet", "c/3.parquet")])
    for folder in "abc":
        with pytest.raises(OutputError, match="contains the input"):
            refuse_overlap(open_path(f"{scheme}{tmp_path}/{folder}"), source.files)
    refuse_overlap(open_path(f"{scheme}{tmp_path}/d"), source.files)
    elsewhere = "" if scheme else "memory://"
    refuse_overlap(open_path(f"{elsewhere}{tmp_path}/a"), source.files)


def test_unknown_urls(monkeypatch) -> None:
    assert "nonsense" in message(UsageError, "nonsense://bucket/a.parquet")
    assert "storage options" in message(UsageError, "memory://a", storage_options={"protocol": "nonsense"})


def test_a_backend_that_is_not_installed(monkeypatch) -> None:
    def missing(*args, **kwargs):
        raise ImportError("Install it")

    monkeypatch.setattr("daskmeans.vectors.files.UPath", missing)
    assert 'pip install "daskmeans[s3]"' in message(MissingExtraError, "s3://bucket/a.parquet")
    assert "pip install gcsfs" in message(UsageError, "gs://bucket/a.parquet")


def test_no_rows(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(0))
    (tmp_path / "a.jsonl").write_text("\n\n")
    np.save(tmp_path / "a.npy", vectors(0))
    for name in ("a.parquet", "a.jsonl", "a.npy"):
        assert "it has no rows" in message(UsageError, tmp_path / name)


def test_files_without_rows_are_passed_over(tmp_path) -> None:
    pq.write_table(pa.table({"other": pa.array([], pa.int8())}), tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", vectors(3))
    check(open_source(tmp_path), vectors(3))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all, but long enough for a footer"])
def test_not_parquet(tmp_path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert f"{tmp_path}/a.parquet: " in message(DataError, tmp_path)


def test_truncated_files(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(1000))
    np.save(tmp_path / "a.npy", vectors(1000))
    write_lines(tmp_path / "a.jsonl.gz", json_lines(vectors(1000)))
    write_lines(tmp_path / "a.jsonl.zst", json_lines(vectors(1000)))
    for name in ("a.parquet", "a.npy", "a.jsonl.gz", "a.jsonl.zst"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        assert name in message(DataError, tmp_path / name)


def test_damaged_pages_are_found_when_read(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(1000))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (tmp_path / "a.parquet").write_bytes(content)
    assert "a.parquet" in message(DataError, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permission_denied(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(3))
    (tmp_path / "a.parquet").chmod(0)
    assert "permission" in message(UsageError, tmp_path)


def test_columns_that_are_missing(tmp_path) -> None:
    path = one(tmp_path, {"doc_id": [1], "embeddings": lists(vectors(1)), "source": ["a"]})
    text = message(UsageError, path, id_field="docid")
    assert "'docid'" in text
    assert "doc_id, embeddings, source" in text
    assert "--id-field doc_id" in text
    assert "--embedding-field embeddings" in message(UsageError, path, id_field="doc_id", embedding_field="embedding")
    text = message(UsageError, path, id_field="doc_id", metadata_fields=["sauce"])
    assert "--metadata-field source" in text
    assert str(path) in text
    assert "--text-field" in message(UsageError, path, id_field="doc_id", text_field="text")


def test_ids_or_vectors_missing_in_a_file(tmp_path) -> None:
    one(tmp_path, {"id": [1], "embedding": lists(vectors(1))})
    for columns in ({"id": [2]}, {"embedding": lists(vectors(1))}):
        for other in ("0.parquet", "b.parquet"):
            path = one(tmp_path, columns, other)
            text = message(UsageError, tmp_path)
            assert f"{path}: there is no column" in text
            assert "other files, such as " + str(tmp_path / "a.parquet") in text
            path.unlink()


def test_columns_of_vectors(tmp_path) -> None:
    path = one(tmp_path, {"id": [1], "a": lists(vectors(1)), "b": lists(vectors(1))})
    text = message(UsageError, path)
    assert "a, b" in text
    assert "--embedding-field" in text
    assert open_source(path, embedding_field="b").embedding_field == "b"
    text = message(UsageError, one(tmp_path, {"id": [1], "text": ["a"]}))
    assert "text (string)" in text
    for wrong in (["a"], [1.5], [["a"]]):
        text = message(UsageError, one(tmp_path, {"id": [1], "v": wrong}), embedding_field="v")
        assert "column 'v'" in text
        assert "--embedding-field" in text
    assert "--id-field" in message(UsageError, one(tmp_path, {"id": [[1]], "v": lists(vectors(1))}))
    assert "--text-field" in message(UsageError, one(tmp_path, {"id": [1], "t": [1]}), text_field="t")


def test_columns_of_one_name(tmp_path) -> None:
    columns = [("id", pa.array([1])), ("v", lists(vectors(1))), ("v", lists(vectors(1))), ("w", lists(vectors(1)))]

    def write(*numbers: int, name: str = "a.parquet"):
        names, arrays = zip(*(columns[i] for i in numbers), strict=True)
        pq.write_table(pa.Table.from_arrays(arrays, names), tmp_path / name)
        return tmp_path / name

    text = message(DataError, write(0, 0, 3))
    assert "a.parquet: there are 2 columns 'id'" in text
    assert "--id-field" in text
    assert "there are 2 columns 'v'" in message(DataError, write(0, 1, 2), embedding_field="v")
    assert "remedy: write the file again with columns of different names" in message(UsageError, write(0, 1, 2))
    path = write(0, 1, 2, 3)
    assert "there are 2 columns 'v'" in message(DataError, path, embedding_field="w", metadata_fields=["v"])
    assert "--embedding-field w" in message(UsageError, path)
    assert open_source(path, embedding_field="w").rows == 1  # those that are not read are no matter
    columns.append(("w", pa.array([1])))
    assert "there are 2 columns 'w'" in message(DataError, write(0, 3, 4))
    write(0, 3)
    write(0, 0, 3, name="b.parquet")
    assert "b.parquet: there are 2 columns 'id'" in message(DataError, tmp_path)


def test_a_column_is_one_thing(tmp_path) -> None:
    text = message(UsageError, one(tmp_path, {"id": ["a"], "text": ["b"]}), id_field="text", text_field="text")
    assert "'text' is named for both the ids and the texts" in text
    assert "--id-field or --text-field" in text
    text = message(UsageError, one(tmp_path, {"id": ["a"], "v": lists(vectors(1))}), id_field="v")
    assert "--id-field or --embedding-field" in text


def test_files_that_contradict_each_other(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(3), kind="fixed")
    one(tmp_path, {"id": [7], "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}, "b.parquet")
    text = message(DataError, tmp_path)
    for part in ("a.parquet", "b.parquet", "dimension 3", "dimension 2"):
        assert part in text
    one(tmp_path, {"id": ["7"], "embedding": lists(vectors(1))}, "b.parquet")
    text = message(DataError, tmp_path)
    for part in ("a.parquet", "b.parquet", "'id'", "int64", "string"):
        assert part in text


def test_the_widest_type_of_all_files_comes_out(tmp_path) -> None:
    X = vectors(6)
    write_parquet(tmp_path / "a.parquet", X[:3], element=pa.float16())
    write_parquet(tmp_path / "b.parquet", X[3:], start=3, element=pa.float64(), kind="fixed")
    check(open_source(tmp_path), X, "float64")


def test_json_lines_that_cannot_be_read(tmp_path) -> None:
    good = json_lines(vectors(40))
    for bad in ('{"id": 1, "embedding": [1', "[1, 2]", '{"id": "x", "embedding": [1, 2, 3]}', good[0] + good[1]):
        for row in (0, 17, 39):
            write_lines(tmp_path / "a.jsonl", [*good[:row], bad, *good[row:]])
            if bad.startswith('{"id": "x"') and row == 0:
                continue  # then the ids are strings, and row 1 is the odd one
            text = message(DataError, tmp_path, partition_bytes=12 * 9)
            assert f"a.jsonl, row {row} (counted from 0)" in text


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_numpy_files_of_bytes(tmp_path, dtype: str) -> None:
    X = np.arange(30, dtype=dtype).reshape(10, 3)
    np.save(tmp_path / "a.npy", X)
    check(open_source(tmp_path), X.astype(np.float32))


@pytest.mark.parametrize("kind", ["bfloat16", "one vector in each row", "integers"])
def test_the_message_tells_how_to_save_an_array_again(tmp_path, kind: str) -> None:
    expected = vectors(5)
    X = {
        "bfloat16": (expected.view(np.uint32) >> 16).astype(np.uint16).view("V2"),
        "one vector in each row": expected[:, None, :],
        "integers": (expected * 8).astype(np.int64),
    }[kind]
    path = tmp_path / "a.npy"
    np.save(path, X)
    code = message(DataError, path).partition("save it again with ")[2]
    exec(code, {"np": np, "X": X, "path": path})
    expected = {
        "bfloat16": (expected.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "integers": np.trunc(expected * 8),
    }.get(kind, expected)
    check(open_source(path), expected)


def test_bytes_that_are_not_text(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "a", "v": [1.5]}\n{"id": "\xff", "v": [1.5]}\n')
    assert "row 1 (counted from 0)" in message(DataError, tmp_path)
    ids = pa.array([b"a", b"\xff"]).view(pa.string())
    one(tmp_path, {"id": ids, "v": [[1.5], [1.5]]})
    assert "column 'id'" in message(DataError, tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.ones(3), "shape (3,)"),
        (np.ones((3, 2), np.int64), "int64"),
        (np.array([[None]], object), "object"),
        (np.asfortranarray(vectors(4)), "ascontiguousarray"),
    ],
)
def test_numpy_files_that_are_no_vectors(tmp_path, array: np.ndarray, found: str) -> None:
    np.save(tmp_path / "a.npy", array)
    text = message(DataError, tmp_path)
    assert found in text
    assert "a.npy" in text
    (tmp_path / "a.npy").write_bytes(b"what is this")
    assert "not a NumPy file" in message(DataError, tmp_path)


# what the tasks refuse

NAN, INF = float("nan"), float("inf")
BAD_VECTORS = [
    (None, "the vector is null"),
    ([1.0, 2.0], "the vector has 2 elements, but the dimension is 3"),
    ([1.0, None, 2.0], "an element of the vector is null"),
    ([1.0, NAN, 2.0], "the vector holds NaN, infinity or a number beyond float32"),
    ([1.0, -INF, 2.0], "the vector holds NaN, infinity or a number beyond float32"),
    ([1.0, 1e300, 2.0], "the vector holds NaN, infinity or a number beyond float32"),
    ([0.0, -0.0, 0.0], "the vector is zero"),
]


def write_values(path, ids: list, values: list, column: str = "v") -> None:
    if path.suffix == ".parquet":
        type_ = pa.string() if column == "text" else pa.list_(pa.float64())
        pq.write_table(pa.table({"id": ids, column: pa.array(values, type_)}), path, row_group_size=8)
    else:
        write_lines(path, [json.dumps({"id": i, column: v}) for i, v in zip(ids, values, strict=True)])


@pytest.mark.parametrize(("value", "found"), BAD_VECTORS, ids=[str(value) for value, _ in BAD_VECTORS])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_a_bad_vector_is_refused_with_its_place(tmp_path, name: str, value, found: str) -> None:
    values = vectors(30).astype(np.float64).tolist()
    values[17] = value
    write_values(tmp_path / name, list(range(30)), values)
    text = message(DataError, tmp_path, partition_bytes=60)
    assert f"{name}, row 17 (counted from 0), column 'v': {found}" in text
    assert "--on-bad-row skip" in text


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_zero_vectors_may_be_allowed(tmp_path, name: str) -> None:
    write_values(tmp_path / name, [1, 2], [[0.0, 0.0], [1.5, 0.0]])
    assert len(read_embeddings(tmp_path, allow_zero=True).compute(scheduler="threads")) == 2


@pytest.mark.parametrize("kind", LISTS)
def test_nulls_in_every_kind_of_list(tmp_path, kind: str) -> None:
    values = [[1.0, 2.0, 3.0], None, [1.0, None, 2.0], [4.0, 5.0, 6.0]]
    path = one(tmp_path, {"id": [1, 2, 3, 4], "v": pa.array(values, LISTS[kind](pa.float32()))})
    assert "row 1 (counted from 0)" in message(DataError, path)
    got = read_embeddings(path, on_bad_row="skip").compute(scheduler="threads")
    assert got["id"].to_list() == [1, 4]
    np.testing.assert_array_equal(to_matrix(got["v"]), np.float32([[1, 2, 3], [4, 5, 6]]))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_ids_and_texts(tmp_path, name: str) -> None:
    texts = ["a", None, "b", " \t\n", "", "c"]
    write_values(tmp_path / name, [1, 2, None, 3, 4, 5], texts, "text")
    assert "row 1 (counted from 0), column 'text': the text is null" in message(DataError, tmp_path, text_field="text")
    rejects = UPath(tmp_path / "rejects")
    source = open_source(tmp_path / name, text_field="text", on_bad_row="skip", rejects=rejects)
    assert source.frame().compute(scheduler="threads")["text"].to_list() == ["a", "c"]
    found = pq.read_table(rejects.path).to_pydict()
    assert found["reason"] == ["the text is null", "the id is null", "the text is empty", "the text is empty"]
    assert found["id"] == ["2", None, "3", "4"]
    write_values(tmp_path / name, [1, None], ["a", "b"], "text")
    text = message(DataError, tmp_path / name, text_field="text")
    assert f"{name}, row 1 (counted from 0), column 'id': the id is null" in text


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_bad_rows_are_skipped_and_recorded(tmp_path, name: str) -> None:
    X = vectors(40).astype(np.float64)
    values = X.tolist()
    bad = {3 * i + 2: pair for i, pair in enumerate(BAD_VECTORS)}
    for row, (value, _) in bad.items():
        values[row] = value
    write_values(tmp_path / name, [f"id{i}" for i in range(40)], values)
    rejects = UPath(tmp_path / "out" / "rejects")
    source = open_source(tmp_path / name, on_bad_row="skip", rejects=rejects, partition_bytes=12 * 10)
    good = [i for i in range(40) if i not in bad]
    for _ in range(2):  # a task may run twice
        got = source.frame().compute(scheduler="threads")
        np.testing.assert_array_equal(to_matrix(got["v"]), X[good].astype(np.float32))
        assert got["id"].to_list() == [f"id{i}" for i in good]
        found = pa.concat_tables(pq.read_table(file.path) for file in sorted(rejects.iterdir()))
        assert found.column_names == ["id", "file", "row", "reason"]
        assert found["row"].to_pylist() == list(bad)
        assert found["id"].to_pylist() == [f"id{i}" for i in bad]
        assert set(found["file"].to_pylist()) == {str(tmp_path / name)}
        assert found["reason"][0].as_py() == "the vector is null"
    assert source.rows == 40


def test_unknown_choice(tmp_path) -> None:
    assert "--on-bad-row" in message(UsageError, tmp_path, on_bad_row="ignore")


# the source as a value


def test_a_source_can_be_sent_and_run_on_a_cluster(tmp_path) -> None:
    X = vectors(50)
    write_parquet(tmp_path / "a.parquet", X, row_group_size=20)
    source = open_source(tmp_path, metadata_fields=["source"], partition_bytes=12 * 12)
    again = pickle.loads(pickle.dumps(source))
    check(again, X)
    assert again.fingerprint() == source.fingerprint()
    with LocalCluster(processes=False, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        got = again.frame().compute()
    np.testing.assert_array_equal(to_matrix(got["embedding"]), X)
    assert got["source"].to_list() == [f"s{i}" for i in range(50)]
    assert all(name.startswith("read-embeddings-") for name, _ in source.frame().dask)


def test_the_fingerprint_tells_inputs_apart(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", vectors(10))
    first, name = open_source(tmp_path).fingerprint(), open_source(tmp_path).frame()._name
    assert first == open_source(tmp_path / "a.parquet", partition_bytes=24).fingerprint()
    with_metadata = open_source(tmp_path, metadata_fields=["source"])
    assert first == with_metadata.fingerprint()
    assert name != with_metadata.frame()._name
    assert name == with_metadata.without_metadata().frame()._name
    write_parquet(tmp_path / "a.parquet", vectors(10, seed=1))
    os.utime(tmp_path / "a.parquet", (1, 1))
    assert first != open_source(tmp_path).fingerprint()
    assert name != open_source(tmp_path).frame()._name


def test_rows_know_their_place(tmp_path) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"{i}.parquet", vectors(5), start=5 * i)
    source = open_source(tmp_path, partition_bytes=12 * 10)
    assert source.place(0, 7) == f"{tmp_path}/1.parquet, row 2"
    assert source.place(1, 4) == f"{tmp_path}/2.parquet, row 4"


def test_a_file_that_changes_under_the_reader(tmp_path) -> None:
    write_lines(tmp_path / "a.jsonl", json_lines(vectors(10)))
    source = open_source(tmp_path, partition_bytes=12 * 3)
    write_lines(tmp_path / "a.jsonl", json_lines(vectors(4)))
    with pytest.raises(DataError, match=r"a\.jsonl"):
        source.frame().compute(scheduler="threads")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(NotFoundError, match="no such file"):
        replace(source).frame().compute(scheduler="threads")


def test_settings_of_dask_stay_while_several_threads_read(tmp_path):
    write_embeddings(tmp_path / "rows.parquet", np.eye(3, dtype=np.float32))
    before = dask.config.get("dataframe.convert-string", None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_embeddings(tmp_path / "rows.parquet"), range(64)))
    assert dask.config.get("dataframe.convert-string", None) == before
