"""The kept rows of the original files, in their format."""

import datetime
import gzip
import json
import shlex
from decimal import Decimal
from uuid import uuid4

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

from daskmeans import KMeans, apply, dedup, open_decisions, run
from daskmeans.buckets.external_sort import write_buckets
from daskmeans.cli.main import main
from daskmeans.duplicates.lookup import DecisionIndex, make_decision_index
from daskmeans.duplicates.rewrite import BLOCK_BYTES
from daskmeans.errors import DataError, NotFoundError, OutputError, UsageError
from daskmeans.report.review import write_review
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.storage import manifest
from daskmeans.vectors.id_types import id_to_text
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.matrix import to_column
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source
from helpers import nightly

N = 60


@pytest.fixture
def vectors():
    """Every row but each third copies the row before it."""
    X = np.random.default_rng(0).standard_normal((N // 3, 8)).repeat(3, axis=0).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True).astype(np.float32)


def decide(tmp_path, X, ids):
    """Decisions on rows with `ids`, and the ids that are kept."""
    frame = pd.DataFrame(
        {
            "id": pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(ids)]))),
            "embedding": to_column(X),
            "centroid": pd.Series(np.arange(len(X)) // 3 % 4, dtype="int32[pyarrow]"),
            "l2_dist_to_cent": pd.Series(np.zeros(len(X)), dtype="float[pyarrow]"),
            "cosine_dist_to_cent": pd.Series(np.zeros(len(X)), dtype="float[pyarrow]"),
        }
    )
    write_buckets(dd.from_pandas(frame, npartitions=2, sort=False), tmp_path / "clusters")
    result = dedup(tmp_path / "clusters", 0.9999, out=tmp_path / "decisions", keep="random")
    kept = set(result.kept.id.compute())
    assert 0 < len(kept) < len(X)
    return tmp_path / "decisions", kept


@pytest.fixture
def text_ids():
    return [f"é{i}" for i in range(N)]


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "none", "lz4"])
def test_parquet(tmp_path, vectors, text_ids, codec):
    table = pa.table(
        {
            "id": text_ids,
            "n": pa.array(range(N), pa.int16()),
            "vector": pa.array(list(vectors.astype(np.float16)), pa.list_(pa.float16())),
            "tag": pa.array(["a", None] * (N // 2)).dictionary_encode(),
        },
        metadata={"made by": "a test"},
    )
    source = tmp_path / "in" / "deep"
    source.mkdir(parents=True)
    mixed = {"id": codec, "n": "snappy", "vector.list.element": codec, "tag": codec}
    pq.write_table(table[:40], source / "a.parquet", row_group_size=7, compression=mixed)
    pq.write_table(table[40:], tmp_path / "in" / "b.parquet", compression=mixed)
    decisions, kept = decide(tmp_path, vectors, text_ids)
    facts = apply(decisions, tmp_path / "in", tmp_path / "out")
    assert facts == {"rows": N, "kept": len(kept), "removed": N - len(kept), "rejected": 0, "files": 2}
    written = []
    for name in ("deep/a.parquet", "b.parquet"):
        before, after = pq.ParquetFile(tmp_path / "in" / name), pq.ParquetFile(tmp_path / "out" / name)
        assert after.schema_arrow.equals(before.schema_arrow)
        told = {name: value for name, value in after.schema_arrow.metadata.items() if b"daskmeans." not in name}
        assert told == before.schema_arrow.metadata
        groups = [[f.metadata.row_group(0).column(i).compression for i in range(4)] for f in (before, after)]
        assert groups[0] == groups[1]
        written.append(after.read())
    assert pa.concat_tables(written).to_pylist() == [row for row in table.to_pylist() if row["id"] in kept]
    made = manifest.read_manifest(UPath(tmp_path / "out"), "apply")
    assert made["counts"]["kept"] == len(kept)


def test_a_large_row_group_becomes_several_with_the_same_rows(tmp_path):
    n = 6000
    X = np.random.default_rng(0).standard_normal((n // 3, 8)).repeat(3, axis=0).astype(np.float32)
    ids, texts = pa.array([f"row {i}" for i in range(n)]), pa.array([20_000 * letter for letter in "abcdefg"])
    table = pa.table({"id": ids, "text": texts.take(pa.array(np.arange(n) % 7))})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=n)  # 120 MB, in a file of little more than its ids
    decisions, kept = decide(tmp_path, X, ids.to_pylist())
    for name, type_ in {"plain": pa.string(), "dictionary": pa.dictionary(pa.int32(), pa.string())}.items():
        given = table.set_column(0, "id", ids.cast(type_))
        pq.write_table(given, tmp_path / "in.parquet", row_group_size=n)
        apply(decisions, tmp_path / "in.parquet", tmp_path / name)
        with pq.ParquetFile(tmp_path / name / "in.parquet") as file:
            assert 1 < file.num_row_groups < 8
            found = file.read()
        assert found.schema.remove_metadata() == given.schema
        assert found["id"].to_pylist() == [one for one in ids.to_pylist() if one in kept]
        assert found["text"] == table.filter(pa.array([one in kept for one in ids.to_pylist()]))["text"]


def test_a_file_without_kept_rows_is_written_empty(tmp_path, vectors):
    decisions, kept = decide(tmp_path, vectors, np.arange(N))
    gone = next(i for i in range(N) if i not in kept)
    table = pa.table({"id": np.arange(N)})
    (tmp_path / "in").mkdir()
    pq.write_table(table[:gone], tmp_path / "in" / "1.parquet")
    pq.write_table(table[gone : gone + 1], tmp_path / "in" / "2.parquet")
    pq.write_table(table[:0], tmp_path / "in" / "3.parquet")
    pq.write_table(table[gone + 1 :], tmp_path / "in" / "4.parquet")
    apply(decisions, tmp_path / "in", tmp_path / "out")
    sizes = [pq.read_metadata(tmp_path / "out" / f"{i}.parquet").num_rows for i in (1, 2, 3, 4)]
    assert sizes[1:3] == [0, 0]
    assert sum(sizes) == len(kept)
    assert find_files(tmp_path / "out") == [UPath(tmp_path / "out" / f"{i}.parquet") for i in (1, 2, 3, 4)]


def opener(name):
    if name.endswith(".gz"):
        return gzip.open
    return pa.output_stream if name.endswith(".zst") else open


@pytest.mark.parametrize("name", ["ROWS.JSONL.GZ", "rows.jsonl.ZST"])
def test_json_lines_are_compressed_whatever_the_case_of_the_name(tmp_path, applied, name):
    decisions, kept, _ = applied
    codec = "gzip" if name.endswith(".GZ") else "zstd"
    with pa.CompressedOutputStream(str(tmp_path / name), codec) as file:
        file.write(b"".join(b'{"id": %d}\n' % i for i in range(N)))
    apply(decisions, tmp_path / name, tmp_path / "out")
    with pa.CompressedInputStream(str(tmp_path / "out" / name), codec) as file:
        assert [json.loads(line)["id"] for line in file.read().splitlines()] == sorted(kept)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.ndjson"])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_json_lines_keep_their_bytes(tmp_path, vectors, text_ids, name, last):
    width = BLOCK_BYTES // (2 * N)  # so that there are several blocks
    lines = [
        json.dumps({"n": i, "id": one, "t": {"x": "é" * width}}, ensure_ascii=i % 2 == 0).encode()
        for i, one in enumerate(text_ids)
    ]
    lines[3] = lines[3].replace(b": ", b" :   ") + b"  \r"
    with (
        opener(name)(tmp_path / name, "wb")
        if not name.endswith(".zst")
        else pa.output_stream(str(tmp_path / name)) as file
    ):
        file.write(b"\n\n" + b"\n".join(lines) + last)
    decisions, kept = decide(tmp_path, vectors, text_ids)
    apply(decisions, tmp_path / name, tmp_path / "out")
    with pa.input_stream(str(tmp_path / "out" / name)) as file:
        written = file.read()
    expected = [line for line, one in zip(lines, text_ids, strict=True) if one in kept]
    assert written.rstrip(b"\n") == b"\n".join(expected)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f8"])
def test_numpy_files_are_numbered_through(tmp_path, vectors, dtype):
    np.save(tmp_path / "b.npy", vectors[:25].astype(dtype))
    np.save(tmp_path / "a.npy", vectors[25:].astype(dtype))
    decisions, kept = decide(tmp_path, vectors, np.arange(N))
    apply(decisions, [tmp_path / "b.npy", tmp_path / "a.npy"], tmp_path / "out")
    b, a = np.load(tmp_path / "out" / "b.npy"), np.load(tmp_path / "out" / "a.npy")
    assert b.dtype == a.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.concatenate([b, a]), vectors.astype(dtype)[sorted(kept)])


def test_numpy_files_whose_ids_have_a_name(tmp_path, vectors):
    """The decisions know the name, which is part of what tells the input from another."""
    np.save(tmp_path / "a.npy", vectors)
    run(tmp_path / "a.npy", tmp_path / "all", KMeans(2), threshold=0.9, reading=ReadOptions(id_field="row"))
    assert apply(tmp_path / "all" / "dedup", tmp_path / "a.npy", tmp_path / "out")["rows"] == N
    np.save(tmp_path / "b.npy", vectors)
    with pytest.raises(DataError, match="remedy: give the input as it was given there"):
        apply(tmp_path / "all" / "dedup", tmp_path / "b.npy", tmp_path / "other")


def test_on_workers(tmp_path, vectors):
    np.save(tmp_path / "a.npy", vectors)
    decisions, kept = decide(tmp_path, vectors, np.arange(N))
    with open_cluster(ClusterSettings(n_workers=1, dashboard_address=":0")) as client:
        assert apply(decisions, tmp_path / "a.npy", tmp_path / "out", client=client)["kept"] == len(kept)


def test_on_a_filesystem_that_is_not_local(tmp_path, vectors, memory):
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(N)}), buffer)
    (memory / "in").mkdir()
    (memory / "in" / "rows.parquet").write_bytes(buffer.getvalue().to_pybytes())
    decisions, kept = decide(memory, vectors, np.arange(N))
    apply(decisions, memory / "in", memory / "out")
    assert apply(str(decisions), str(memory / "in"), str(memory / "out"), overwrite=True)["kept"] == len(kept)
    with (memory / "out" / "rows.parquet").open("rb") as file:
        assert pq.read_table(file)["id"].to_pylist() == sorted(kept)


@pytest.fixture
def memory():
    """A directory of an object store."""
    folder = UPath("memory://apply-test")
    yield folder
    manifest.remove_tree(folder)


@pytest.fixture
def applied(tmp_path, vectors):
    """Decisions on the ids 0 to N - 1, and a function that writes an input with any ids."""
    decisions, kept = decide(tmp_path, vectors, np.arange(N))

    def write(ids, name="rows.parquet"):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids}), tmp_path / "in" / name)
        return tmp_path / "in"

    return decisions, kept, write


def test_a_row_without_a_decision(tmp_path, applied):
    decisions, kept, write = applied
    source = write([*range(10), 777, *range(10, N)])
    with pytest.raises(DataError, match=r"rows.parquet, row 10 \(counted from 0\): no decision on the row with id 777"):
        apply(decisions, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    facts = apply(decisions, source, tmp_path / "out", on_bad_row="skip")
    assert (facts["rows"], facts["kept"], facts["rejected"]) == (N + 1, len(kept), 1)
    rejects = pq.read_table(tmp_path / "out" / "_rejects/rejects").to_pylist()
    assert rejects == [{"id": "777", "file": str(source / "rows.parquet"), "row": 10, "reason": "no decision"}]
    assert set(pq.read_table(tmp_path / "out" / "rows.parquet")["id"].to_pylist()) == kept


def test_a_row_without_an_id(tmp_path, applied):
    decisions, _, write = applied
    with pytest.raises(DataError, match=r"row 2 .*: the row has no id"):
        apply(decisions, write([0, 1, None, 2]), tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (range(N - 1), "59 rows for 60 decisions\n"),
        ([*range(N), 0], "61 rows for 60 decisions: some ids repeat"),
        ([*range(N - 1), 0], "60 rows for 60 decisions: some ids repeat"),
    ],
)
def test_decisions_that_do_not_meet_one_row_each(tmp_path, applied, ids, message):
    decisions, _, write = applied
    with pytest.raises(DataError, match=message):
        apply(decisions, write(list(ids)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_of_the_rows_can_be_asked_for(tmp_path, applied):
    decisions, kept, write = applied
    apply(decisions, write(list(range(20))), tmp_path / "out", on_bad_row="skip")
    assert pq.read_table(tmp_path / "out" / "rows.parquet")["id"].to_pylist() == [i for i in range(20) if i in kept]
    assert not (tmp_path / "out" / "_rejects").exists()


def test_integer_ids_of_another_width(tmp_path, applied):
    decisions, kept, write = applied
    apply(decisions, write(pa.array(range(N), pa.uint8())), tmp_path / "out")
    assert set(pq.read_table(tmp_path / "out" / "rows.parquet")["id"].to_pylist()) == kept


def test_numbers_that_no_decision_can_be_on(tmp_path, applied):
    decisions, kept, write = applied
    write(list(range(N)), "a.parquet")
    large = pa.array([2**63, None, 2**63 + 5, 2**64 - 1], pa.uint64())
    source = write(large, "b.parquet")
    with pytest.raises(DataError, match=f"no decision on the row with id {2**63}"):
        apply(decisions, source, tmp_path / "out")
    counts = apply(decisions, source, tmp_path / "out", on_bad_row="skip")
    assert counts == {"rows": N + 4, "kept": len(kept), "removed": N - len(kept), "rejected": 4, "files": 2}
    rejects = pq.read_table(tmp_path / "out" / "_rejects/rejects")
    assert rejects["id"].to_pylist() == large.cast(pa.string()).to_pylist()


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int32()])
def test_a_lookup_finds_no_number_that_it_cannot_hold(kind):
    lookup = make_decision_index(pa.chunked_array([pa.array([5, 7], kind)]), np.array([True, False]))
    ids = pa.array([7, -1, None, 2**40, 5], pa.int64())
    places = lookup.find(ids)
    assert lookup.find(ids.dictionary_encode()).tolist() == places.tolist()
    assert (places >= 0).tolist() == [True, False, False, False, True]
    assert lookup.keep[places[[0, 4]]].tolist() == [False, True]


def test_integers_in_a_dictionary(tmp_path, applied):
    decisions, kept, write = applied
    apply(decisions, write(pa.array(range(N)).dictionary_encode()), tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "rows.parquet")["id"].to_pylist() == sorted(kept)


@pytest.mark.parametrize("empty", [{}, {"id": pa.nulls(0)}, {"other": pa.array([], pa.string())}])
@pytest.mark.parametrize("groups", [0, 1])
def test_a_file_without_rows_may_have_any_schema(tmp_path, applied, empty, groups):
    decisions, kept, write = applied
    source = write(list(range(N)))
    table = pa.table(empty)
    with pq.ParquetWriter(source / "empty.parquet", table.schema) as writer:
        for _ in range(groups):
            writer.write_table(table)
    assert apply(decisions, source, tmp_path / "out")["kept"] == len(kept)
    assert pq.read_table(tmp_path / "out" / "empty.parquet").equals(table)


def test_a_file_whose_ids_are_all_null(tmp_path, applied):
    decisions, kept, write = applied
    write(list(range(N)), "a.parquet")
    source = write(pa.nulls(3), "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet, row 0 .*: the row has no id"):
        apply(decisions, source, tmp_path / "out")
    counts = apply(decisions, source, tmp_path / "out", on_bad_row="skip")
    assert (counts["kept"], counts["rejected"]) == (len(kept), 3)
    rejects = pq.read_table(tmp_path / "out" / "_rejects/rejects").to_pydict()
    assert (rejects["id"], rejects["row"]) == ([None] * 3, [0, 1, 2])


def test_views_of_strings_and_bytes(tmp_path, vectors, text_ids):
    text, view = [None if i % 7 == 0 else f"{i} " * 9 for i in range(N)], pa.string_view()
    table = pa.table(
        {
            "id": pa.array(text_ids, view),
            "text": pa.array(text, view),
            "bytes": pa.array([one and one.encode() for one in text], pa.binary_view()),
            "list": pa.array([[one] for one in text], pa.list_(view)),
            "large": pa.array([[one] for one in text], pa.large_list(view)),
            "fixed": pa.array([[one] for one in text], pa.list_(view, 1)),
            "struct": pa.array([{"a": one} for one in text], pa.struct({"a": view})),
            "map": pa.array([[("a", one)] for one in text], pa.map_(pa.string(), view)),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "rows.parquet")
    decisions, kept = decide(tmp_path, vectors, text_ids)
    apply(decisions, tmp_path / "in", tmp_path / "out")
    before, after = (pq.read_table(tmp_path / name / "rows.parquet") for name in ("in", "out"))
    assert after.schema.equals(before.schema)
    assert after.to_pylist() == [row for row in table.to_pylist() if row["id"] in kept]


@pytest.mark.parametrize(
    ("values", "kind"), [([["x"]], "list<element: string>"), ([True], "bool"), ([datetime.date(2026, 1, 1)], "date32")]
)
def test_a_column_that_cannot_be_ids(tmp_path, vectors, text_ids, values, kind):
    pq.write_table(pa.table({"id": values * N}), tmp_path / "rows.parquet")
    decisions, _ = decide(tmp_path, vectors, text_ids)
    message = f"rows.parquet, column 'id': the id is {kind}.*\n  expected: integers, strings, bytes, "
    with pytest.raises(UsageError, match=message):
        apply(decisions, tmp_path / "rows.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("values", "kind"), [([b"x"], "binary"), ([0.5], "double"), ([Decimal(1)], r"decimal128\(.*")])
def test_a_column_of_other_ids(tmp_path, vectors, text_ids, values, kind):
    pq.write_table(pa.table({"id": values * N}), tmp_path / "rows.parquet")
    decisions, _ = decide(tmp_path, vectors, text_ids)
    with pytest.raises(DataError, match=f"column 'id' is {kind}, and the ids of the decisions are large_string"):
        apply(decisions, tmp_path / "rows.parquet", tmp_path / "out")


KINDS = {
    "uint64": pa.array([2**64 - 1 - i for i in range(N)], pa.uint64()),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid4().bytes for _ in range(N)], pa.binary(16))),
    "binary": pa.array([b"\xff%d" % i for i in range(N)]),
    "decimal": pa.array([Decimal(10**30 + i) for i in range(N)], pa.decimal128(35, 0)),
    "double": pa.array(np.arange(N, dtype=float)),
}
STORED = {"uuid": pa.binary(16), "decimal": pa.decimal128(38, 0), "double": pa.int64()}


@pytest.mark.parametrize("search", ["exact", "clusters"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_every_kind(tmp_path, vectors, kind, search):
    """Decisions name rows by what the files call them, and pages show what people can read."""
    ids, noise = KINDS[kind], np.random.default_rng(1).normal(0, 1e-3, vectors.shape).astype(np.float32)
    table = pa.table({"id": ids, "v": list(vectors + noise), "text": [f"text {i}" for i in range(N)]})
    pq.write_table(table.slice(0, 7), tmp_path / "a.parquet")
    pq.write_table(table.slice(7), tmp_path / "b.parquet")
    given, reading = [tmp_path / "a.parquet", tmp_path / "b.parquet"], ReadOptions(metadata_fields="text")
    result = run(given, tmp_path / "w", KMeans(2), 0.9, reading, search=search)
    decided = pq.read_table(tmp_path / "w" / "dedup" / "decisions")
    assert decided["id"].type == decided["kept_id"].type == decided["max_id"].type == STORED.get(kind, ids.type)
    plain = pa.chunked_array([ids.storage if kind == "uuid" else ids])
    assert set(decided["id"].to_pylist()) == set(plain.to_pylist())
    apply(result.path, given, tmp_path / "kept")
    kept = [pq.read_table(tmp_path / "kept" / f"{name}.parquet") for name in "ab"]
    stays = set(decided.filter(decided["keep"])["id"].to_pylist())
    mask = pa.array([value in stays for value in plain.to_pylist()])
    assert pa.concat_tables(kept) == table.filter(mask)
    assert 0 < len(stays) < N
    shown = id_to_text(result.groups()[0].id)
    assert shown in write_review(result, N, tmp_path / "review").read_text()


@pytest.mark.parametrize("id_from", ["field", "file-row"])
@pytest.mark.parametrize("format", ["parquet", "jsonl", "jsonl.gz"])
def test_rows_without_ids(tmp_path, vectors, format, id_from):
    """The very files that were deduplicated, in their order, and no others."""
    for i, first in enumerate(range(0, N, 5)):  # 10 comes after 9
        rows = pa.table({"v": list(vectors[first : first + 5]), "row": range(first, first + 5)})
        if format == "parquet":
            (tmp_path / "in").mkdir(exist_ok=True)
            pq.write_table(rows, tmp_path / "in" / f"{i}.parquet")
        else:
            (tmp_path / "in").mkdir(exist_ok=True)
            with pa.output_stream(str(tmp_path / "in" / f"{i}.{format}")) as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows.to_pylist()).encode())
    reading = ReadOptions(id_from=id_from, metadata_fields="row")
    result = run(tmp_path / "in", tmp_path / "w", KMeans(2), 0.9, reading)
    decided = pq.read_table(result.path / "decisions")
    apply(result.path, tmp_path / "in", tmp_path / "kept")
    kept = open_source(tmp_path / "kept", metadata_fields="row").frame().compute(scheduler="threads")["row"].to_list()
    numbers = [int(id_.split(".")[0]) * 5 + int(id_.split(":")[1]) if id_from == "file-row" else id_
               for id_ in decided.filter(decided["keep"])["id"].to_pylist()]  # fmt: skip
    assert kept == sorted(numbers)
    assert 0 < len(kept) < N
    (tmp_path / "in" / f"0.{format}").rename(tmp_path / "in" / f"20.{format}")
    with pytest.raises(DataError, match="give the input as it was given there"):
        apply(result.path, tmp_path / "in", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_ids_that_are_not_utf8(tmp_path, vectors, text_ids):
    ids = pa.array([one.encode("latin1") for one in text_ids]).view(pa.string())
    pq.write_table(pa.table({"id": ids}), tmp_path / "rows.parquet")
    decisions, _ = decide(tmp_path, vectors, text_ids)
    for choice in ("error", "skip"):
        with pytest.raises(DataError, match=r"rows\.parquet: the file is damaged .*UTF"):
            apply(decisions, tmp_path / "rows.parquet", tmp_path / "out", on_bad_row=choice)


def test_wrong_inputs(tmp_path, applied):
    decisions, _, write = applied
    source = write([str(i) for i in range(N)])
    with pytest.raises(DataError, match="'id' is string, and the ids of the decisions are int64"):
        apply(decisions, source, tmp_path / "out")
    pq.write_table(pa.table({"key": range(N)}), tmp_path / "keys.parquet")
    with pytest.raises(DataError, match=r"no column 'id'\n  expected: one of key\n  remedy: pass the files from which"):
        apply(decisions, tmp_path / "keys.parquet", tmp_path / "out")
    with pytest.raises(UsageError, match="error or skip"):
        apply(decisions, source, tmp_path / "out", on_bad_row="ignore")
    with pytest.raises(NotFoundError):
        apply(tmp_path / "clusters", source, tmp_path / "out")
    with pytest.raises(NotFoundError):
        apply(decisions, tmp_path / "nothing", tmp_path / "out")
    (source / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"rows\.parquet"):
        apply(decisions, source, tmp_path / "out")
    (tmp_path / "rows.jsonl").write_text('{"id": 0}\n{"id": 1\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1"):
        apply(decisions, tmp_path / "rows.jsonl", tmp_path / "out")
    (tmp_path / "other.jsonl").write_text('{"key": 0}\n')
    with pytest.raises(DataError, match=r"other\.jsonl.* no "):
        apply(decisions, tmp_path / "other.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_in_the_way(tmp_path, applied):
    decisions, _, write = applied
    source = write(list(range(N)))
    for out in (source, source / "out", tmp_path, decisions):
        with pytest.raises(OutputError):
            apply(decisions, source, out)
    with pytest.raises(OutputError, match="contains the input"):
        apply(decisions, source / "rows.parquet", source)
    with pytest.raises(OutputError, match="lies inside the input"):  # a repeated dedup would remove it
        apply(decisions, source / "rows.parquet", UPath(decisions) / "kept")
    assert sorted(p.name for p in source.iterdir()) == ["rows.parquet"]
    apply(decisions, source, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        apply(decisions, source, tmp_path / "out")
    apply(decisions, source, tmp_path / "out", overwrite=True)
    apply(decisions, source / "rows.parquet", source / "out")


def test_files_of_several_directories_keep_their_places(tmp_path, applied):
    decisions, kept, write = applied
    write(list(range(30)), "a.parquet")
    (tmp_path / "more").mkdir()
    pq.write_table(pa.table({"id": range(30, N)}), tmp_path / "more" / "a.parquet")
    apply(decisions, [tmp_path / "in", tmp_path / "more" / "a.parquet"], tmp_path / "out")
    found = [pq.read_table(tmp_path / "out" / d / "a.parquet")["id"].to_pylist() for d in ("in", "more")]
    assert found == [[i for i in range(30) if i in kept], [i for i in range(30, N) if i in kept]]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_ids_with_the_same_hash_are_told_apart(kind):
    ids = pa.array(range(100)).cast(kind)
    honest = make_decision_index(pa.chunked_array([ids]), np.arange(100) % 2 == 0)
    order = honest.hashes.argsort()
    # Each id takes the hash of another one: a lookup by hash alone would answer, and be wrong.
    wrong = DecisionIndex(honest.hashes[order], honest.ids.take(pa.array(np.roll(order, 1))), honest.keep)
    assert (wrong.find(ids) == -1).all()
    same = DecisionIndex(np.full(100, honest.hashes[50]), honest.ids, honest.keep)
    at_50 = honest.ids.slice(50, 1)
    assert same.find(at_50).tolist() == [50]
    places = honest.find(ids)
    assert honest.ids.take(pa.array(places)).equals(ids.cast(honest.ids.type))
    assert honest.find(pa.array([None, 5, 1000]).cast(kind)).tolist() == [-1, places[5], -1]


def test_many_blocks(tmp_path, vectors):
    """Rows are copied as they are, however wide: these are four blocks."""
    wide = np.random.default_rng(0).random((N, 4 * BLOCK_BYTES // (N * 4)), np.float32)
    np.save(tmp_path / "a.npy", wide)
    decisions, kept = decide(tmp_path, vectors, np.arange(N))
    with dask.config.set(scheduler="sync"):
        apply(decisions, tmp_path / "a.npy", tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), wide[sorted(kept)])


def test_rows_that_repeat_an_id_are_left_out_as_they_were_when_deciding(tmp_path):
    """The first row of an id is the one that was decided, in a file and across files."""
    rng = np.random.default_rng(0)
    names = [["a", "b", "a"], ["c", "b", "d"]]
    for number, ids in enumerate(names):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=12).astype(np.float32)), 4)
        table = pa.table({"id": ids, "embedding": vectors, "n": [10 * number + i for i in range(3)]})
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    reading = ReadOptions(on_bad_row="skip")
    run(tmp_path / "in", tmp_path / "out", KMeans(1), threshold=1.0, reading=reading)
    counts = apply(tmp_path / "out" / "dedup", tmp_path / "in", tmp_path / "kept", on_bad_row="skip")
    assert counts == {"rows": 6, "kept": 4, "removed": 0, "rejected": 2, "files": 2}
    kept = pa.concat_tables([pq.read_table(tmp_path / "kept" / f"{i}.parquet") for i in range(2)])
    assert kept["n"].to_pylist() == [0, 1, 10, 12]
    rejects = pq.read_table(tmp_path / "kept" / "_rejects/rejects").to_pydict()
    assert (rejects["row"], rejects["reason"]) == ([2, 1], ["duplicate id"] * 2)
    with pytest.raises(DataError, match="some ids repeat"):
        apply(tmp_path / "out" / "dedup", tmp_path / "in", tmp_path / "again")


def test_rows_go_by_the_column_that_decided(tmp_path, vectors):
    """There are two columns of ids; the command that a run prints knows which one it was."""
    keys = [f"key-{i}" for i in range(N)]
    table = pa.table({"id": range(1000, 1000 + N), "key": keys, "embedding": list(vectors)})
    pq.write_table(table, tmp_path / "v.parquet")
    ran = CliRunner().invoke(
        main, ["run", str(tmp_path / "v.parquet"), "--id-field", "key", "--n-clusters", "2", "--threshold", "0.9",
               "--out", str(tmp_path / "w")], catch_exceptions=False,
    )  # fmt: skip
    command = shlex.split(ran.stderr.splitlines()[-1].partition("apply: daskmeans ")[2])
    command[command.index("KEPT")] = str(tmp_path / "kept")
    assert CliRunner().invoke(main, [*command, "--quiet"], catch_exceptions=False).exit_code == 0
    result = open_decisions(tmp_path / "w" / "dedup")
    kept = set(result.kept["id"].compute())
    assert 0 < len(kept) < N
    assert pq.read_table(tmp_path / "kept" / "v.parquet")["key"].to_pylist() == [key for key in keys if key in kept]
    with pytest.raises(
        UsageError, match=r"--id-field: .* another column than 'id'\n  expected: 'key'\n  remedy: leave"
    ):
        apply(result.path, tmp_path / "v.parquet", tmp_path / "out", id_field="id")
    assert not (tmp_path / "out").exists()


def test_decisions_of_before_their_column_was_noted(tmp_path, vectors):
    table = pa.table({"id": range(1000, 1000 + N), "key": range(N), "embedding": list(vectors)})
    pq.write_table(table, tmp_path / "v.parquet")
    run(tmp_path / "v.parquet", tmp_path / "w", KMeans(2), threshold=0.9, reading=ReadOptions(id_field="key"))
    path = UPath(tmp_path / "w" / "dedup")
    made = manifest.read_manifest(path, "dedup")
    manifest.write_manifest(path, {name: value for name, value in made.items() if name != "id_field"})
    assert apply(path, tmp_path / "v.parquet", tmp_path / "out")["kept"] == made["kept"]


@pytest.mark.parametrize("flags", [nightly([]), ["--storage-options", '{"auto_mkdir": true}']])
def test_the_printed_command_is_whole(tmp_path, vectors, flags):
    """After rows were skipped, which have no decisions; values of storage options may be secrets."""
    vectors[7] = 0
    pq.write_table(pa.table({"id": [*range(N - 1), 3], "v": list(vectors)}), tmp_path / "v w.parquet")
    url = f"file://{tmp_path}/v w.parquet" if flags else str(tmp_path / "v w.parquet")
    settings = ["--n-clusters", "2", "--threshold", "0.9", "--on-bad-row", "skip", *flags]
    ran = CliRunner().invoke(main, ["run", url, *settings, "--out", str(tmp_path / "w")], catch_exceptions=False)
    printed = ran.stderr.splitlines()[-1].partition("apply: daskmeans ")[2]
    assert ("--storage-options '{...}'" in printed) == bool(flags)
    assert "auto_mkdir" not in printed
    command = shlex.split(printed.replace("{...}", '{"auto_mkdir": true}').replace("KEPT", str(tmp_path / "kept")))
    applied = CliRunner().invoke(main, [*command, "--json"], catch_exceptions=False)
    assert json.loads(applied.stdout)["rejected"] == 2
