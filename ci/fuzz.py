"""Feed daskmeans files and command lines that are wrong in ways that nobody has thought of.

python ci/fuzz.py [--cases 10000] [--seed 0] [--first 0] [--kinds parquet-bytes ...] [--verbose]

Each case has to end in the right result or in an error of daskmeans that says what and where. A traceback, a case that
takes longer than a minute, and a result that another reading of the same input does not confirm, are faults: they are
printed with the number of the case, which `--seed S --first NUMBER --cases 1` makes again.
"""

import argparse
import contextlib
import datetime
import faulthandler
import gzip
import io
import json
import math
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from click.testing import CliRunner
from upath import UPath

from daskmeans.cli import session
from daskmeans.cli.main import main as command
from daskmeans.errors import DaskmeansError
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.source import open_source

LIMIT = 60
ROWS, DIMENSION = 24, 4
# What a damaged file may make a library ask for.
MEMORY = 8 << 30


class Fault(Exception):
    """What must not come of any input."""


@dataclass
class Case:
    """One input that is to be made: its random numbers, and a new directory for it."""

    rng: np.random.Generator
    path: Path
    notes: list[str] = field(default_factory=list)

    def pick(self, choices: list) -> object:
        """One of `choices`, which stay what they are."""
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        """True for a `share` of the cases."""
        return bool(self.rng.random() < share)

    def note(self, *words: object) -> None:
        """Remember what was done, for the report of a fault."""
        self.notes.append(" ".join(map(str, words)))


# --- bytes ---


def mutated(case: Case, data: bytes) -> bytes:
    """`data` with some bytes changed, lost, repeated or cut off."""
    rng, changed = case.rng, bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        if not changed:
            break
        how = case.pick(["flip", "flip", "set", "set", "set", "cut", "drop", "repeat", "insert", "tail"])
        # Half of the changes meet the last bytes, or the first: that is where formats keep what they are.
        span = len(changed) if case.chance(0.6) else min(len(changed), 200)
        at = int(rng.integers(span))
        at = len(changed) - 1 - at if case.chance(0.5) else at
        size = int(rng.integers(1, 30))
        case.note(how, at, size)
        if how == "flip":
            changed[at] ^= 1 << int(rng.integers(8))
        elif how == "set":
            changed[at] = int(case.pick([0, 1, 9, 10, 32, 34, 44, 45, 48, 57, 91, 93, 123, 125, 127, 128, 255]))
        elif how == "cut":
            del changed[at:]
        elif how == "drop":
            del changed[at : at + size]
        elif how == "repeat":
            changed[at:at] = changed[at : at + size]
        elif how == "insert":
            changed[at:at] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        else:
            changed += rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    return bytes(changed)


def vectors(rng: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    """Rows of which some are copies, and some near-copies, of others."""
    X = rng.normal(size=(rows, DIMENSION))
    X[rows // 2 :: 3] = X[0]
    X[rows // 2 + 1 :: 3] = X[1] + 0.01 * rng.normal(size=X[rows // 2 + 1 :: 3].shape)
    return X.astype(np.float32)


# --- what reading should find ---


@dataclass
class Truth:
    """What another reading says of an input: its rows, or None if it cannot be read; `sure` if it cannot be wrong."""

    rows: list[tuple[object, list | None, object]] | None
    dimension: int | None = None
    sure: bool = False

    def judged(self) -> tuple[list[tuple], bool]:
        """The rows that can be worked with, as (id, vector, metadata), and whether that is all of them."""
        lengths = Counter(len(v) for _, v, _ in self.rows if v)
        dimension = self.dimension or (lengths.most_common(1)[0][0] if lengths else 0)
        seen: set = set()
        good = []
        for id_, vector, meta in self.rows:
            fresh = id_ not in seen
            seen.add(id_)
            if id_ is None or not fresh or vector is None or len(vector) != dimension or None in vector:
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                x = np.array(vector, np.float64).astype(np.float32)
            if np.isfinite(x).all() and x.any():
                good.append((id_, x, meta))
        return good, len(good) == len(self.rows)


def read_and_compare(case: Case, where: str | list[str], truth: Truth, **options: object) -> str:
    """Read `where` with daskmeans, partitioned at random, and compare what comes out with `truth`."""
    on_bad_row = case.pick(["error", "skip"])
    case.note("on_bad_row", on_bad_row, options)
    try:
        source = open_source(
            where,
            on_bad_row=on_bad_row,
            partition_bytes=case.pick([16, 100, 1 << 20]),
            min_partitions=case.pick([1, 3]),
            **options,
        )
        source = check_ids(source, on_bad_row)
        table = pa.concat_tables([source.reader.table(partition) for partition in source.partitions])
    except DaskmeansError as error:
        if not error.found or not str(error).strip():
            raise Fault("an error that says nothing") from error
        if truth.sure and truth.rows:
            good, all_good = truth.judged()
            if all_good or (on_bad_row == "skip" and good):
                raise Fault(f"refused what can be read: {error}") from error
        return "refused"
    if truth.rows is None:
        raise Fault(f"read {len(table)} rows of what another reader refuses")
    good, all_good = truth.judged()
    if on_bad_row == "error" and not all_good:
        raise Fault(f"accepted bad rows: {len(good)} of {len(truth.rows)} are good")
    ids = table.column(0).to_pylist()
    if ids != [id_ for id_, *_ in good]:
        raise Fault(f"ids {ids} instead of {[id_ for id_, *_ in good]}")
    X = np.array(table.column(1).to_pylist(), np.float64).astype(np.float32)
    if len(good) and not np.allclose(X, np.array([x for _, x, _ in good]), rtol=2e-7, atol=1e-44):
        raise Fault("other vectors")
    if table.num_columns > 2 and list(map(repr, table.column(2).to_pylist())) != [repr(meta) for *_, meta in good]:
        raise Fault("other metadata")
    return "right"


# --- Parquet ---


def parquet_file(rng: np.random.Generator) -> bytes:
    """A good file in one of many shapes."""
    X = vectors(rng)
    element = [np.float16, np.float32, np.float64][int(rng.integers(3))]
    flat = pa.array(X.astype(element).ravel())
    offsets = np.arange(0, X.size + 1, DIMENSION)
    column = [
        lambda: pa.FixedSizeListArray.from_arrays(flat, DIMENSION),
        lambda: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
        lambda: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat),
    ][int(rng.integers(3))]()
    ids = [list(range(ROWS)), [f"row-{i}" for i in range(ROWS)]][int(rng.integers(2))]
    table = pa.table({"id": ids, "embedding": column, "text": [f"text {i}" for i in range(ROWS)]})
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        row_group_size=int(rng.choice([5, 10, 100])),
        compression=str(rng.choice(["none", "snappy", "zstd", "gzip"])),
        use_dictionary=bool(rng.integers(2)),
        data_page_version=str(rng.choice(["1.0", "2.0"])),
        write_page_checksum=bool(rng.integers(2)),
    )
    return file.getvalue()


def parquet_truth(data: bytes) -> Truth:
    """What pyarrow reads at once."""
    try:
        schema = pq.read_schema(io.BytesIO(data))
        (column,) = [field.name for field in schema if "list" in str(field.type)]  # whatever it is called by now
        table = pq.ParquetFile(io.BytesIO(data)).read(["id", column]).select(["id", column])
        table.validate(full=True)
        rows = [(*each.values(), None) for each in table.to_pylist()]
    except Exception:
        return Truth(None)
    type_ = table.schema.field(column).type
    return Truth(rows, type_.list_size if pa.types.is_fixed_size_list(type_) else None)


def parquet_bytes(case: Case) -> str:
    """A Parquet file, a few bytes of which are others."""
    data = parquet_file(np.random.default_rng(case.rng.integers(12)))
    # Mostly the end stays, which says where the footer is: else little more is read.
    data = mutated(case, data[:-8]) + data[-8:] if case.chance(0.8) else mutated(case, data)
    return read_and_compare(case, put(case, "rows.parquet", data), parquet_truth(data))


def put(case: Case, name: str, data: bytes) -> str:
    """`data` as a file on disk, or in the memory of fsspec; where it is."""
    root = UPath("memory://fuzz") if case.chance(0.2) else UPath(case.path)
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    return str(root / name)


ID_TYPES = [
    pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.string(), pa.large_string(), pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64()), pa.float64(), pa.bool_(), pa.binary(),
    pa.binary(6), pa.date32(), pa.timestamp("us"), pa.decimal128(20, 2), pa.null(), pa.list_(pa.int64()),
    pa.struct([("a", pa.int64())]),
]  # fmt: skip
ELEMENTS = [
    pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint8(), pa.int64(), pa.bool_(), pa.string(),
    pa.decimal128(10, 3), pa.list_(pa.float32()), pa.null(), pa.dictionary(pa.int8(), pa.float32()),
]  # fmt: skip
META_TYPES = [
    pa.string(), pa.large_binary(), pa.binary_view(), pa.bool_(), pa.timestamp("ns", "UTC"), pa.duration("s"),
    pa.decimal128(12, 3), pa.list_(pa.string()), pa.struct([("a", pa.int8()), ("b", pa.string())]), pa.null(),
    pa.dictionary(pa.int8(), pa.string()), pa.map_(pa.string(), pa.int64()), pa.time64("us"), pa.float16(),
]  # fmt: skip
ODD = [None, math.nan, math.inf, -math.inf, 0.0, -0.0, 1e39, 1e-46, 3.5e38, 65505.0, 1e-320, 2**53 + 1]


def id_values(case: Case, type_: pa.DataType) -> list:
    """Ids for a column of `type_`, of which some may be null or the same."""
    values: list = list(range(ROWS))
    bare = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_uint64(bare) and case.chance(0.3):
        values[int(case.rng.integers(ROWS))] = 2**63 + int(case.rng.integers(2**60))
    if any(is_(bare) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        values = [case.pick([f"row-{i}", f"{i}", f"ü{i}", f"{i}\n\t\0", f" {i} "]) for i in range(ROWS)]
        values[0] = case.pick(["", "row"])
    elif not pa.types.is_integer(bare):
        made = {"bool": bool, "binary": lambda i: b"%06d" % i, "list<item: int64>": lambda i: [i]}
        name = str(bare).replace("fixed_size_binary[6]", "binary")
        values = [None if pa.types.is_null(bare) else made.get(name, lambda i: i)(i) for i in values]
        values = [{"a": i} for i in values] if pa.types.is_struct(bare) else values
    for _ in range(int(case.rng.choice([0, 0, 1, 3]))):
        i, j = case.rng.integers(ROWS, size=2)
        values[i] = case.pick([None, values[j]])
    return values


def vector_values(case: Case, element: pa.DataType) -> list:
    """Vectors of which some may be odd."""
    X = vectors(case.rng)
    rows: list = [list(map(float, x)) for x in X]
    if not pa.types.is_floating(element):
        cast = {"string": str, "bool": lambda x: x > 0, "list<item: float>": lambda x: [x], "null": lambda x: None}
        rows = [[cast.get(str(element), lambda x: int(abs(x) * 10) + 1)(x) for x in row] for row in rows]
    for _ in range(int(case.rng.choice([0, 0, 1, 2, 5]))):
        i, j = int(case.rng.integers(ROWS)), int(case.rng.integers(DIMENSION))
        how = case.pick(["null", "element", "short", "long", "empty", "zero"])
        if rows[i] and how == "element" and j < len(rows[i]):
            odd = case.pick(ODD) if pa.types.is_floating(element) else None
            rows[i][j] = odd
        elif rows[i]:
            rows[i] = {
                "null": None,
                "short": rows[i][:j],
                "long": rows[i] + rows[i][:1],
                "empty": [],
                "zero": [type(rows[i][0])() if rows[i][0] is not None else None] * DIMENSION,
            }.get(how, rows[i])
    return rows


def meta_values(case: Case, type_: pa.DataType) -> pa.Array:
    """Any values of `type_`, some of them null."""
    try:
        whole = pa.array(np.arange(ROWS)).cast(type_)
    except pa.ArrowException:
        whole = {
            "list<item: string>": lambda: pa.array([[str(i)] * (i % 3) for i in range(ROWS)], type_),
            "struct<a: int8, b: string>": lambda: pa.array([{"a": i, "b": str(i)} for i in range(ROWS)], type_),
            "map<string, int64>": lambda: pa.array([[(str(i), i)] for i in range(ROWS)], type_),
        }.get(str(type_), lambda: pa.array([str(i).encode() for i in range(ROWS)]).cast(type_))()
    return whole.take(pa.array([None if case.chance(0.1) else i for i in range(ROWS)], pa.int64()))


def parquet_values(case: Case) -> str:
    """A good Parquet file of columns of any type, with any values."""
    id_type = case.pick(ID_TYPES[:10] if case.chance(0.7) else ID_TYPES)
    element = case.pick(ELEMENTS[:3] if case.chance(0.6) else ELEMENTS)
    make = case.pick([pa.list_, pa.large_list, lambda item: pa.list_(item, DIMENSION), pa.list_view])
    meta_type = case.pick(META_TYPES)
    type_ = make(element)
    case.note(id_type, type_, meta_type)
    ids, rows = id_values(case, id_type), vector_values(case, element)
    if pa.types.is_fixed_size_list(type_):
        rows = [None if row is None or len(row) != DIMENSION else row for row in rows]
    try:
        columns = {"id": build(ids, id_type), "embedding": build(rows, type_), "meta": meta_values(case, meta_type)}
        table, file = pa.table(columns), io.BytesIO()
        pq.write_table(table, file, row_group_size=case.pick([5, 100]))
        stored = pq.read_table(io.BytesIO(file.getvalue()))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return "not to be had in Parquet"
    named = case.chance(0.5)
    metadata = ["meta"] if case.chance(0.5) else []
    options = {"metadata_fields": metadata, "embedding_field": "embedding" if named else None}
    metas = stored["meta"].to_pylist()
    truth = Truth(
        list(zip(stored["id"].to_pylist(), stored["embedding"].to_pylist(), metas, strict=True)),
        DIMENSION if pa.types.is_fixed_size_list(stored.schema.field("embedding").type) else None,
        sure=pa.types.is_floating(element) and "view" not in str(type_) and is_id(stored.schema.field("id").type)
        and not any(isinstance(id_, int) and id_ >= 2**63 for id_ in stored["id"].to_pylist()),
    )  # fmt: skip
    truth.sure &= any(stored["embedding"].to_pylist())
    return read_and_compare(case, put(case, "rows.parquet", file.getvalue()), truth, **options)


def build(values: list, type_: pa.DataType) -> pa.Array:
    """Values of `type_`, through the plain type where pyarrow cannot make it at once."""
    if pa.types.is_dictionary(type_):
        return pa.array(values, type_.value_type).dictionary_encode().cast(type_)
    if "halffloat" in str(type_):
        wide = pa.large_list(pa.float64()) if pa.types.is_large_list(type_) else pa.list_(pa.float64())
        with np.errstate(over="ignore"):
            return pa.array(values, wide).cast(type_)
    return pa.array(values, type_)


def is_id(type_: pa.DataType) -> bool:
    """Whether values of `type_` may be ids."""
    bare = type_.value_type if pa.types.is_dictionary(type_) else type_
    return pa.types.is_integer(bare) or str(bare) in ("string", "large_string", "string_view")


# --- JSON lines ---


def packed(data: bytes, packing: str) -> bytes:
    """`data` as the suffix says."""
    if packing == ".gz":
        return gzip.compress(data, mtime=0)
    if packing == ".zst":
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, "zstd") as stream:
            stream.write(data)
        return out.getvalue().to_pybytes()
    return data


def jsonl_truth(data: bytes, packing: str, read: tuple[str, ...] = ("id", "v")) -> Truth:
    """What Python's own parsers read; what is wrong with other fields than those that are `read` does not matter."""
    try:
        if packing == ".gz":
            data = gzip.decompress(data)
        elif packing == ".zst":
            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
                data = stream.read()
        text = data.decode(errors="surrogateescape")
        rows = []
        for line in text.split("\n"):
            if line.strip(" \t\r\f\v\n"):
                found = json.loads(line, object_pairs_hook=partial(_once, read=read)) or {}
                rows.append((found.get("id"), found.get("v"), found.get("meta") if "meta" in read else None))
                json.dumps(rows[-1], ensure_ascii=False).encode()
        if any(v is not None and not isinstance(v, list) for _, v, _ in rows):
            return Truth(None)
        if any(type(x) not in (int, float, type(None)) for _, v, _ in rows for x in v or []):
            return Truth(None)
    except Exception:
        return Truth(None)
    return Truth(rows)


def _once(pairs: list[tuple[str, object]], read: tuple[str, ...]) -> dict:
    names = [name for name, _ in pairs if name in read]
    if len(set(names)) < len(names):
        raise ValueError("a field is there twice")
    return dict(pairs)


def jsonl_lines(case: Case) -> list[str]:
    """Good lines."""
    name = (lambda i: i) if case.chance(0.5) else (lambda i: f"row-{i}")
    X = vectors(case.rng)
    return [json.dumps({"id": name(i), "v": [float(x) for x in X[i]], "meta": f"text {i}"}) for i in range(ROWS)]


def jsonl_bytes(case: Case) -> str:
    """A file of JSON lines, perhaps compressed, a few bytes of which are others, before or after packing."""
    packing = case.pick(["", "", ".gz", ".zst"])
    data = "\n".join(jsonl_lines(case)).encode() + case.pick([b"", b"\n", b"\r\n", b"\n\n \n"])
    data = packed(mutated(case, data), packing) if case.chance(0.5) else mutated(case, packed(data, packing))
    return read_and_compare(case, put(case, f"rows.jsonl{packing}", data), jsonl_truth(data, packing))


WORDS = [
    "null", "true", "1", "-1", "1.5", "1e400", "-0", "1E-400", "NaN", "Infinity", '""', '"x"', '"2020-01-01"', "[]",
    "[1]", "[1.0,2.0,3.0,4.0]", "[1,2,3,4]", "[null,1,2,3]", '["1","2","3","4"]', "[[1,2,3,4]]", "{}", '{"a": 1}',
    "9223372036854775807", "9223372036854775808", "1e3", '"\\ud800"', '"\\u0000"', "[0,0,0,0]", "[1e39,0,0,1]",
    "[1.0,2.0,3.0]", "01", "+1", ".5", "1.", "'x'", "[1,2,3,4", "", '"a\\nb"', "[1.0,2.0,3.0,4.0,]", '"row-1"',
]  # fmt: skip


def jsonl_values(case: Case) -> str:
    """JSON lines with odd values in some fields, fields that come twice or not at all, or odd lines."""
    lines = jsonl_lines(case)
    for _ in range(int(case.rng.integers(1, 4))):
        i, word = int(case.rng.integers(ROWS)), case.pick(WORDS)
        key = case.pick(["id", "v", "meta", "other"])
        fields = {"id": str(i), "v": "[1.0, 2.0, 3.0, 4.0]", "meta": '"t"'} | {key: word}
        line = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"
        how = case.pick(["value", "value", "value", "twice", "gone", "line", "blank", "two", "space"])
        case.note(how, i, key, word)
        lines[i] = {
            "twice": lines[i][:-1] + f', "{key}": {word}}}',
            "gone": f'{{"id": {i}}}',
            "line": word,
            "blank": case.pick(["", " ", "\t", "\r", "\x0b", "\ufeff"]),
            "two": lines[i] + lines[i],
            "space": case.pick([" ", "\t", "\r"]) + lines[i] + case.pick([" ", "\r"]),
        }.get(how, line)
    packing = case.pick(["", "", ".gz", ".zst"])
    data = packed("\n".join(lines).encode(), packing)
    metadata = ["meta"] if case.chance(0.3) else []
    options = {"metadata_fields": metadata, "embedding_field": "v" if case.chance(0.5) else None}
    truth = jsonl_truth(data, packing, ("id", "v", *metadata))
    return read_and_compare(case, put(case, f"rows.jsonl{packing}", data), truth, **options)


# --- npy ---


def npy_truth(data: bytes) -> Truth:
    """What numpy loads."""
    try:
        X = np.load(io.BytesIO(data), allow_pickle=False)
        if X.ndim != 2 or X.dtype.kind != "f" or X.itemsize > 8 or not isinstance(X, np.ndarray):
            return Truth(None)
    except Exception:
        return Truth(None)
    return Truth([(i, x.tolist(), None) for i, x in enumerate(X)], X.shape[1])


def npy_bytes(case: Case) -> str:
    """A ``.npy`` file, a few bytes of which are others, or of an odd header."""
    rng = case.rng
    if case.chance(0.5):
        X = vectors(rng).astype(case.pick(["<f2", "<f4", "<f8", ">f4", ">f8", "<i4", "<c8", "|b1", "<f4"]))
        X = np.asfortranarray(X) if case.chance(0.2) else X
        file = io.BytesIO()
        np.lib.format.write_array(file, X, version=case.pick([(1, 0), (2, 0), (3, 0)]))
        data = mutated(case, file.getvalue())
    else:
        descr = case.pick(["'<f4'", "'>f8'", "'|O'", "[('a', '<f4')]", "'f'", "'<f16'", "'<f3'", "''", "None",
                           "'<M8[s]'", "'<f4'", "'<f4'", "('<f4', (4,))"])  # fmt: skip
        shape = case.pick(["(24, 4)", "(-1, 4)", "(24, -4)", "(24,)", "()", "(6, 4, 4)", "(24.0, 4)", "(0, 4)",
                           "(24, 0)", "(True, 4)", "(99999999999999999999, 4)", "(2**3, 4)", "24",
                           "(9223372036854775807, 4)", "(1, 9223372036854775807)", "(4, 24)", "(25, 4)",
                           "('24', 4)", "(23, 4)"])  # fmt: skip
        order = case.pick(["False", "False", "False", "True", "1", "None"])
        head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
        head = case.pick([head, head, head, head[:-3], head + " " * 100000, "(" * 5000, "{}", head[:-1] + "'x': 1}"])
        case.note(head[:120])
        size = len(head) + 1
        data = b"\x93NUMPY" + bytes([case.pick([1, 2, 3, 4, 0]), 0])
        data += size.to_bytes(2, "little") if data[6] == 1 and size < 65536 else size.to_bytes(4, "little")
        data += head.encode() + b"\n" + vectors(rng).tobytes()
    return read_and_compare(case, put(case, "rows.npy", data), npy_truth(data))


# --- command lines, configurations and damaged outputs ---


@contextlib.contextmanager
def at_home() -> Iterator[None]:
    """Let commands run in this process, without a cluster."""

    @contextlib.contextmanager
    def nowhere(settings: object) -> Iterator[None]:
        yield None

    with (
        mock.patch.object(session, "start_cluster", nowhere),
        mock.patch.object(session, "describe_dashboard", lambda client: "none"),
    ):
        yield


def call(case: Case, words: list[str]) -> bool:
    """Whether the command succeeds; a fault if it ends in anything but success or a message."""
    case.note("daskmeans", *words)
    with at_home(), contextlib.chdir(case.path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = CliRunner().invoke(command, words)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise Fault(f"{type(found.exception).__name__}: {found.exception}") from found.exception
    if found.exit_code not in (0, 1, 2) or "Traceback" in found.output:
        raise Fault(f"exit status {found.exit_code}: {found.output}")
    if found.exit_code and not found.stderr.strip():
        raise Fault("a failure without a message")
    return found.exit_code == 0


def write_rows(path: Path, X: np.ndarray, name: str = "row") -> None:
    """A good file of vectors with a text and a number a row."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), DIMENSION)
    ids = [f"{name}-{i:02d}" for i in range(len(X))]
    pq.write_table(pa.table({"id": ids, "embedding": column, "text": ids, "stars": np.arange(len(X)) % 5}), path)


def check_run(out: Path, X: np.ndarray) -> None:
    """Compare what a run has left with float64 arithmetic on `X`."""
    check_clusters(out / "model", out / "clusters", X)
    check_decisions(out / "dedup", X)


def check_clusters(model: Path, clusters: Path, X: np.ndarray) -> None:
    """Each row is there once, with its nearest centroid and the distance to it."""
    C = np.load(model / "centroids.npy").astype(np.float64)
    normalize = json.loads((model / "model.json").read_text())["normalize"]
    hive = any(clusters.glob("centroid=*"))
    tables = [pq.ParquetFile(file).read() for file in sorted(clusters.rglob("*.parquet"))]
    table = pa.concat_tables([each.select(["id", "embedding", "l2_dist_to_cent"]) for each in tables])
    rows = [int(id_[4:]) for id_ in table["id"].to_pylist()]
    if sorted(rows) != list(range(len(X))):
        raise Fault("the clusters hold other rows")
    U = X[rows].astype(np.float64)
    U = U / np.linalg.norm(U, axis=1, keepdims=True) if normalize else U
    if not np.allclose(np.array(table["embedding"].to_pylist(), np.float64), U, rtol=2e-3, atol=1e-3):
        raise Fault("the clusters hold other vectors")
    distances = np.linalg.norm(U[:, None] - C[None], axis=2)
    if not np.allclose(table["l2_dist_to_cent"].to_numpy(), distances.min(axis=1), atol=1e-5):
        raise Fault("other distances")
    if not hive:
        labels = pa.concat_tables([each.select(["centroid"]) for each in tables])["centroid"].to_numpy()
        if not np.allclose(distances[np.arange(len(rows)), labels], distances.min(axis=1), atol=1e-6):
            raise Fault("other labels")


def check_decisions(dedup: Path, X: np.ndarray) -> None:
    """Each row has one decision, which its scores bear out."""
    settings = json.loads((dedup / "_manifest.json").read_text())["settings"]
    summary = json.loads((dedup / "_summary.json").read_text())
    files = sorted((dedup / "decisions").iterdir())
    found = pa.concat_tables([pq.ParquetFile(file).read() for file in files]).to_pylist()
    if sorted(int(row["id"][4:]) for row in found) != list(range(len(X))):
        raise Fault("decisions on other rows")
    if summary["kept"] != sum(row["keep"] for row in found) or summary["rows"] != len(X):
        raise Fault("the summary counts other rows")
    U = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    place = {row["id"]: int(row["id"][4:]) for row in found}
    by_id = {row["id"]: row for row in found}
    for row in found:
        if row["kept_id"] is not None:
            score = U[place[row["id"]]] @ U[place[row["kept_id"]]]
            if abs(score - row["kept_score"]) > 1e-3 or (row["reason"] == "exact" and score < 1 - 1e-3):
                raise Fault(f"{row['id']} stands beside {row['kept_id']} with {row['kept_score']}, not {score}")
        other = row["kept_id"] if settings["rule"] == "survivors" else row["max_id"]
        if not row["keep"]:
            score = U[place[row["id"]]] @ U[place[other]]
            if score < settings["threshold"] - 1e-3 or (settings["rule"] == "survivors" and not by_id[other]["keep"]):
                raise Fault(f"{row['id']} goes for {other}, score {score}")
    kept = [row for row in found if row["keep"]]
    for i, one in enumerate(kept):
        for other in kept[:i]:
            met = settings["search"] == "exact" or one["centroid"] == other["centroid"]
            if met and U[place[one["id"]]] @ U[place[other["id"]]] > settings["threshold"] + 1e-3:
                raise Fault(f"{one['id']} and {other['id']} both stay")


VALUES = [
    "", "0", "1", "2", "3", "-1", "25", "1000000", "99999999999999999999", "1.5", "0.9", "0.5", "1.0", "1e-3", "nan",
    "inf", "-inf", "1e400", "0x10", "true", "no", "null", "id", "text", "stars", "embedding", "centroid", "hard",
    "easy", "random", "text:asc", "stars:desc", "embedding:asc", ":asc", "auto", "exact", "clusters", "hive", "float16",
    "..", "k-means||", "a b", "ü", "{}", '{"anon": 1}', "[]", "\n", "*", "[", "x" * 300, "file:///proc/none",
    "model", "rows.parquet", "--out", "-", "\u0661", "1_000", "memory://m", "/proc/none", "rows.parquet/x",
    "\udcff",
]  # fmt: skip
# Not given at random: where it runs, and how often it is done again.
FIXED = {"scheduler", "scheduler_file", "device", "n_init", "dashboard_address", "help", "encoder", "system", "advise"}


def commands(case: Case) -> str:
    """A good command line, some words of which are others."""
    X = vectors(case.rng)
    write_rows(case.path / "rows.parquet", X)
    verb = case.pick(["run", "run", "run", "fit", "info", "leak", "embed"])
    words = {
        "run": ["rows.parquet", "--out", "out", "--n-clusters", "3", "--threshold", "0.9"],
        "fit": ["rows.parquet", "--model", "out", "--n-clusters", "3"],
        "info": ["rows.parquet"],
        "leak": ["rows.parquet", "rows.parquet", "--out", "out"],
        "embed": ["rows.parquet", "--out", "out"],
    }[verb]
    options = [p for p in command.commands[verb].params if p.name not in FIXED and p.param_type_name == "option"]
    for _ in range(int(case.rng.integers(1, 4))):
        option = case.pick(options)
        how = case.pick(["add", "add", "add", "replace", "drop", "unknown"])
        if how == "add":
            words += [case.pick(option.opts), *([] if option.is_flag else [case.pick(VALUES)])]
        elif how == "replace":
            words[int(case.rng.integers(len(words)))] = case.pick(VALUES)
        elif how == "drop" and words:
            del words[int(case.rng.integers(len(words)))]
        elif how == "unknown":
            words += [case.pick(["--frob", "-x", "--n-cluster", "--threshold=", "--", "---"])]
        words = words or ["rows.parquet"]
    if not call(case, [verb, *words]):
        return "refused"
    out = case.path / "out"
    if verb == "run" and (out / "dedup").exists() and not set(words) & {"--id-field", "--embedding-field"}:
        check_run(out, X)
    return "right"


NODES = [
    None, True, False, 0, 1, 3, -1, 2.5, 3.0, 0.9, math.nan, math.inf, 10**30, "", "3", "0.9", "x", "true", "1e-4", [],
    [3], ["text"], ["stars:desc", "text:asc"], {}, {"a": 1}, [[1]], "2020-01-01", "hard", "hive", "exact", "clusters",
    datetime.date(2020, 1, 1), "a\0b", "../x", [None], "a\nb",
]  # fmt: skip


SAYABLE = [node for node in NODES if not isinstance(node, datetime.date)]  # in JSON


def configurations(case: Case) -> str:
    """``daskmeans run config.yaml`` with odd keys and values, or a text that is hardly YAML."""
    X = vectors(case.rng)
    write_rows(case.path / "rows.parquet", X)
    given: dict = {"input": "rows.parquet", "n_clusters": 3, "threshold": 0.9}
    names = [p.name for p in command.commands["run"].params if p.name not in FIXED | {"inputs"}]
    for _ in range(int(case.rng.integers(1, 4))):
        key = case.pick([*names, *given, "n-clusters", "thresold", 3, None, "metadata_field"])
        if case.chance(0.1):
            given.pop(key, None)
        else:
            given[key] = case.pick(NODES)
    text = yaml.safe_dump(given)
    if case.chance(0.2):
        text = mutated(case, text.encode()).decode(errors=case.pick(["replace", "surrogateescape"]))
    elif case.chance(0.05):
        odd = ["x: !!python/object/apply:os.system ['true']", "a: &a [*a]", "? {a: 1}\n: 2", "<<: 3", "a: 2020-02-30"]
        text += case.pick(odd) + "\n"
    case.note(repr(text))
    (case.path / "job.yaml").write_text(text, errors="surrogateescape")
    if not call(case, ["run", "job.yaml", "--out", "out"]):
        return "refused"
    if (case.path / "out" / "dedup").exists():
        check_settings(case.path / "out", yaml.safe_load(text))
        if not {"id_field", "embedding_field", "input"} & {k for k in given if given[k] not in ("rows.parquet", None)}:
            check_run(case.path / "out", X)
    return "right"


def check_settings(out: Path, given: dict) -> None:
    """What a run says of its settings is what the file said."""
    made = {}
    for step in ("model", "clusters", "dedup"):
        made |= json.loads((out / step / "_manifest.json").read_text())["settings"]
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if made.get(name) is not None and value is not None and not isinstance(made[name], list | dict):
            same = str(made[name]) == str(value) or (name in ("search", "floor", "init"))
            with contextlib.suppress(TypeError, ValueError):
                same |= not isinstance(value, bool) and np.float32(value) == np.float32(made[name])
            if not same:
                raise Fault(f"{key} was {value!r}, and {made[name]!r} was taken")


_WHOLE: dict[str, Path] = {}


def whole(layout: str) -> Path:
    """The outputs of a good run, made once."""
    if layout not in _WHOLE:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-whole-"))
        X = vectors(np.random.default_rng(1))
        write_rows(folder / "rows.parquet", X)
        np.save(folder / "X.npy", X)
        write_rows(folder / "batch.parquet", X[::-1] + np.float32(0.01), "new")
        case, here = Case(np.random.default_rng(0), folder), ["--layout", layout]
        for words in (
            ["run", "rows.parquet", "--out", "out", "--n-clusters", "3", "--threshold", "0.9", *here],
            ["assign", "batch.parquet", "--model", "out/model", "--out", "batch", *here],
        ):
            if not call(case, words):
                raise SystemExit("a good run fails")
        _WHOLE[layout] = folder
    return _WHOLE[layout]


def leaves(value: object, place: tuple = ()) -> Iterator[tuple]:
    """Places of all values in a JSON document."""
    yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from leaves(each, (*place, key))


def outputs(case: Case) -> str:
    """A file of an earlier output is damaged, or says something else; then the steps that read it."""
    source = whole(case.pick(["bucketed", "hive"]))
    shutil.copytree(source, case.path, dirs_exist_ok=True)
    X = np.load(case.path / "X.npy")
    files = sorted(file for file in (case.path / "out").rglob("*") if file.is_file())
    file = case.pick(files)
    case.note(file.relative_to(case.path))
    if file.suffix == ".json" and case.chance(0.8):
        found = json.loads(file.read_text())
        *way, last = case.pick([place for place in leaves(found) if place])
        inner = found
        for key in way:
            inner = inner[key]
        if case.chance(0.2):
            del inner[last]
        else:
            inner[last] = case.pick([*SAYABLE, "../x", "../../rows.parquet", "/etc/passwd", 10**9])
        case.note([*way, last], inner.get(last) if isinstance(inner, dict) else inner)
        file.write_text(json.dumps(found))
    elif case.chance(0.1):
        file.unlink()
    else:
        file.write_bytes(mutated(case, file.read_bytes()))
    step = case.pick(["assign", "dedup", "apply", "info", "run", "append"])
    words = {
        "assign": ["assign", "rows.parquet", "--model", "out/model", "--out", "new"],
        "dedup": ["dedup", "out/clusters", "--threshold", "0.9", "--out", "new"],
        "apply": ["apply", "out/dedup", "rows.parquet", "--out", "new"],
        "info": ["info", case.pick(["out", "out/model", "out/clusters", "out/dedup"])],
        "run": ["run", "rows.parquet", "--out", "out", "--n-clusters", "3", "--threshold", "0.95", "--overwrite"],
        "append": ["dedup", "batch", "--threshold", "0.9", "--out", "new", "--against", "out/clusters", "--append"],
    }[step]
    if not call(case, words):
        return "refused"
    if file.suffix == ".json" or step in ("info", "append"):
        return "went on"
    if step == "dedup":  # a file of rows with other values is another file of rows, unless its checksums tell
        return "went on"
    if step == "apply":
        kept = pq.ParquetFile(case.path / "new" / "rows.parquet").read()
        if not set(kept["id"].to_pylist()) <= {f"row-{i:02d}" for i in range(len(X))}:
            raise Fault("apply has written other rows")
    return "right"


KINDS: dict[str, tuple[float, Callable[[Case], str]]] = {
    "parquet-bytes": (0.2, parquet_bytes),
    "parquet-values": (0.2, parquet_values),
    "jsonl-bytes": (0.12, jsonl_bytes),
    "jsonl-values": (0.12, jsonl_values),
    "npy": (0.12, npy_bytes),
    "commands": (0.1, commands),
    "configurations": (0.07, configurations),
    "outputs": (0.07, outputs),
}


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise a fault in the ``with`` block if it takes too long; end the process if even that is not heard."""

    def late(*_: object) -> None:
        raise Fault(f"hangs: {seconds} s have passed")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def one(seed: int, number: int, kinds: dict, verbose: bool = False) -> tuple[str, str, str]:
    """Kind and outcome of a case, and the report of its fault if it has one."""
    rng = np.random.default_rng([seed, number])
    weights = np.array([weight for weight, _ in kinds.values()])
    kind = list(kinds)[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        case = Case(rng, Path(folder) / "case")
        case.path.mkdir()
        if verbose:
            print(number, kind, file=sys.stderr, flush=True)
        try:
            with limited(LIMIT):
                return kind, kinds[kind][1](case), ""
        except Exception:
            told = "\n".join([f"case {number} of seed {seed}, {kind}:", *case.notes, traceback.format_exc()])
            return kind, "FAULT", told


def fuzz(
    cases: int, seed: int = 0, first: int = 0, kinds: dict = KINDS, verbose: bool = False
) -> tuple[Counter, list[str]]:
    """How often each kind had each outcome, and the reports of all faults."""
    counts: Counter = Counter()
    faults = []
    whole("bucketed")  # compiles the kernels, which is no hang
    for number in range(first, first + cases):
        kind, outcome, told = one(seed, number, kinds, verbose)
        counts[kind, outcome] += 1
        if told:
            faults.append(told)
            print(told, file=sys.stderr, flush=True)
    while _WHOLE:
        shutil.rmtree(_WHOLE.popitem()[1])
    return counts, faults


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments.add_argument("--verbose", action="store_true", help="Name each case before it runs.")
    args = arguments.parse_args()
    faulthandler.enable()
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    kinds = {name: KINDS[name] for name in args.kinds}
    counts, faults = fuzz(args.cases, args.seed, args.first, kinds, args.verbose)
    print("| kind | cases | right | refused | other | faults |\n|---|---:|---:|---:|---:|---:|")
    for kind in kinds:
        mine = Counter({outcome: count for (name, outcome), count in counts.items() if name == kind})
        known = [mine.pop(outcome, 0) for outcome in ("right", "refused", "FAULT")]
        total = sum(known) + sum(mine.values())
        print(f"| {kind} | {total} | {known[0]} | {known[1]} | {sum(mine.values())} | {known[2]} |")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
