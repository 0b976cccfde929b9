"""Copy the kept rows of one file, block by block, in its own format."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.utils import format_bytes
from upath import UPath

from daskmeans.duplicates.lookup import DecisionIndex, check_id_type
from daskmeans.duplicates.memory import check_rewrite
from daskmeans.errors import DataError
from daskmeans.storage import signature
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors import jsonl, npy
from daskmeans.vectors.files import public_name, translate_read_errors
from daskmeans.vectors.formats import sniff_codec
from daskmeans.vectors.id_types import ids_to_text, quote_id
from daskmeans.vectors.json_survey import survey_jsonl
from daskmeans.vectors.nested import find_field, select_fields, wrap_schema
from daskmeans.vectors.numbering import Numbering
from daskmeans.vectors.parquet import BUFFER_BYTES, cast_table, schema_without_views
from daskmeans.vectors.partitioning import Slice

BLOCK_BYTES = 8 * 2**20
# Bytes of a row group that are rewritten at a time. Bytes that are decoded at a time, according to the footer, and most
# rows of these, since dictionary-encoded columns decode to more.
GROUP_BYTES, STEP_BYTES, STEP_ROWS = 32 * 2**20, 4 * 2**20, 4096
REJECTS_SCHEMA = pa.schema({"id": pa.string(), "file": pa.string(), "row": pa.int64(), "reason": pa.string()})


class RewriteResult(NamedTuple):
    """Counts of the rows of one file."""

    rows: int
    kept: int
    removed: int
    checksum: int
    """Sum of the hashes of the decisions that were used, modulo 2⁶⁴."""
    rejects: pa.Table
    met: np.ndarray
    """int64: places of the decisions that were used; empty unless rows without a decision are skipped."""


class RowFilter:
    """Filter the rows of `file`, which come in their order, by the decisions in `lookup`, and count them.

    A row without a decision is an error or, if `skip` is set, a reject. With `skip`, a row whose id an earlier row had,
    in this file or in an earlier one, is a reject too; `taken` has the places in `lookup` of ids in earlier files.
    Ids are in the column `id_field`; or `numbering` makes them, where `first` is the number of the first row.
    """

    def __init__(
        self,
        file: UPath,
        id_field: str,
        numbering: Numbering | None,
        first: int,
        lookup: DecisionIndex,
        skip: bool,
        taken: np.ndarray | None = None,
    ) -> None:
        self.file, self.id_field, self._lookup, self._skip = file, id_field, lookup, skip
        self._field = pa.field(id_field, lookup.ids.type)
        self._numbering, self._piece = numbering, Slice(file, first=0, rows=0, number=first)
        self._rows = self._kept = self._removed = self._checksum = 0
        self._rejects = [REJECTS_SCHEMA.empty_table()]
        self._met = [np.empty(0, np.int64)]
        self._seen = np.zeros(len(lookup.hashes) if skip else 0, bool)
        if taken is not None:
            self._seen[taken] = True

    def id_columns(self) -> pa.Schema:
        """Columns of lines that ids are read from."""
        if self._numbering:
            return pa.schema([])
        known = survey_jsonl(self.file, None).schema
        self._field = (find_field(known, self.id_field) or self._field).with_type(self._lookup.ids.type)
        return wrap_schema(pa.schema([self._field]))

    def check_schema(self, schema: pa.Schema) -> None:
        """Make sure that `schema` has an id column of the right type, if ids are in one."""
        if self._numbering:
            return
        field = find_field(schema, self.id_field)
        if field is None:
            raise DataError(
                f"no column {self.id_field!r}",
                where=str(self.file),
                expected="one of " + ", ".join(schema.names),
                remedy="pass the files from which the decisions were made",
            )
        check_id_type(self._lookup, field.type, self.file, self.id_field)
        self._field = field

    def keep(self, table: pa.Table) -> np.ndarray:
        """Which of the next rows, those of `table`, are kept."""
        if self._numbering:
            ids = self._numbering.make_ids(self._piece, self._rows, len(table))
        else:
            ids = select_fields(table, pa.schema([self._field])).column(0).combine_chunks()
            with translate_read_errors(self.file):
                ids.validate(full=True)  # files may hold bytes that are not UTF-8
        places = self._lookup.find(ids)
        self._reject(ids, np.flatnonzero(places < 0), "no decision")
        if self._skip and self._lookup.each_once:
            repeated = self._find_repeated(places)
            self._reject(ids, repeated, "duplicate id")
            places[repeated] = -1
            self._met.append(places[places >= 0])
        keep = self._lookup.keep[places] & (places >= 0)
        met = self._lookup.hashes[places[places >= 0]].sum(dtype=np.uint64)
        self._rows += len(ids)
        self._kept += int(keep.sum())
        self._removed += int((~self._lookup.keep[places] & (places >= 0)).sum())
        self._checksum = (self._checksum + int(met)) % 2**64
        return keep

    def _find_repeated(self, places: np.ndarray) -> np.ndarray:
        """Which of these rows have a decision that an earlier row has used; mark the decisions used now."""
        fresh = np.zeros(len(places), bool)
        fresh[np.unique(places, return_index=True)[1]] = True
        fresh &= (places < 0) | ~self._seen[places]
        self._seen[places[places >= 0]] = True
        return np.flatnonzero(~fresh & (places >= 0))

    def _reject(self, ids: pa.Array, rows: np.ndarray, reason: str) -> None:
        if not len(rows):
            return
        ids = ids.take(pa.array(rows))
        if not self._skip:
            found = (
                f"no decision on the row with id {quote_id(ids[0].as_py())}" if ids[0].is_valid else "the row has no id"
            )
            raise DataError(
                found,
                where=f"{self.file}, row {self._rows + int(rows[0])} (counted from 0)",
                expected="the files that were deduplicated",
                remedy="deduplicate these rows too, or add --on-bad-row skip to leave out rows without a decision",
            )
        columns = {
            "id": ids_to_text(ids),
            "file": pa.repeat(public_name(self.file), len(rows)),
            "row": pa.array(self._rows + rows),
            "reason": pa.repeat(reason, len(rows)),
        }
        self._rejects.append(pa.table(columns, REJECTS_SCHEMA))

    def result(self) -> RewriteResult:
        """The counts so far."""
        rejects, met = pa.concat_tables(self._rejects), np.concatenate(self._met)
        return RewriteResult(self._rows, self._kept, self._removed, self._checksum, rejects, met)


def rewrite_file(
    file: UPath,
    target: UPath,
    format: str,
    id_field: str,
    numbering: Numbering | None,
    first: int,
    lookup: DecisionIndex,
    skip: bool,
    free_bytes: int | None = None,
    taken: np.ndarray | None = None,
) -> RewriteResult:
    """Write the kept rows of `file` to `target`.

    Parameters
    ----------
    file, target : UPath
    format : {"parquet", "jsonl", "npy"}
    id_field : str
    numbering : Numbering or None
        How ids are made; None if they are in the column `id_field`.
    first : int
        Number of the first row in the whole input, where ids are made of that.
    lookup : DecisionIndex
    skip : bool
        Leave out rows without a decision, instead of refusing them.
    free_bytes : int, optional
        Bytes that a task has besides the decisions.
    taken : ndarray of int64, optional
        Places of decisions that rows of earlier files have used.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    row_filter = RowFilter(file, id_field, numbering, first, lookup, skip, taken)
    if format == "parquet":
        _rewrite_parquet(file, target, row_filter, free_bytes)
    elif format == "jsonl":
        _rewrite_jsonl(file, target, row_filter)
    else:
        _rewrite_npy(file, target, row_filter)
    return row_filter.result()


def _rewrite_parquet(file: UPath, target: UPath, row_filter: RowFilter, free_bytes: int | None) -> None:
    with translate_read_errors(file):
        metadata = pq.read_metadata(file.path, filesystem=file.fs)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = _check_groups(groups, free_bytes, file)
    # Pages of a row group that is too large for memory are read through a small buffer.
    stream = {"buffer_size": BUFFER_BYTES, "pre_buffer": False} if largest > GROUP_BYTES else {}
    with translate_read_errors(file):
        source = pq.ParquetFile(file.path, filesystem=file.fs, metadata=metadata, **VERIFY_PAGES, **stream)
    with source:
        schema = source.schema_arrow
        if metadata.num_rows:  # a file without rows may have any schema: reading leaves it out
            row_filter.check_schema(schema)
        plain = schema_without_views(schema)
        with signature.open_writer(target, schema, "apply", compression=_read_codecs(metadata)) as writer:
            for number, group in enumerate(groups):
                step = min(STEP_ROWS, max(1, STEP_BYTES * group.num_rows // max(1, group.total_byte_size)))
                for table in _read_tables(source, number, step, file):
                    table = cast_table(table, plain)
                    keep = row_filter.keep(table)
                    if keep.any():
                        writer.write_table(cast_table(table.filter(pa.array(keep)), schema), row_group_size=len(table))


def _check_groups(groups: list[pq.RowGroupMetaData], free_bytes: int | None, file: UPath) -> int:
    """Bytes of the largest row group; what is rewritten of it at a time must fit into memory."""
    largest, number = max(((group.total_byte_size, i) for i, group in enumerate(groups)), default=(0, 0))
    where = f"{file}, row group {number} of {format_bytes(largest)}"
    check_rewrite(min(largest, GROUP_BYTES), free_bytes, where)
    return largest


def _read_tables(source: pq.ParquetFile, group: int, step: int, file: UPath) -> Iterator[pa.Table]:
    """Read a row group, whole or in tables of about GROUP_BYTES; `step` rows are decoded at a time."""
    held: list[pa.RecordBatch] = []
    size = 0
    with translate_read_errors(file):
        for batch in source.iter_batches(step, [group], use_threads=False):
            held.append(batch)
            size += batch.nbytes
            if size >= GROUP_BYTES:
                yield pa.Table.from_batches(held)
                held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _read_codecs(metadata: pq.FileMetaData) -> Any:
    """Codec of each column, in the form that a writer takes; the writer's default for a file without rows."""
    if not metadata.num_row_groups:
        return "snappy"
    columns = (metadata.row_group(0).column(i) for i in range(metadata.num_columns))
    codecs = {column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE") for column in columns}
    # The writer names the items of a list "element", whatever their name is in the file.
    return codecs | {re.sub(r"\.list\.\w+", ".list.element", path): codec for path, codec in codecs.items()}


def _rewrite_jsonl(file: UPath, target: UPath, row_filter: RowFilter) -> None:
    with _open_writer(target, sniff_codec(file)) as write:
        for block, table in _parse_blocks(file, row_filter.id_columns() or jsonl.ANY_OBJECT):
            keep = row_filter.keep(table)
            write(_select_lines(block, jsonl.line_starts(block), keep))


def _parse_blocks(file: UPath, schema: pa.Schema) -> Iterator[tuple[bytes, pa.Table]]:
    """Read `file` in blocks of whole lines, with the columns of `schema` parsed from them."""
    row = 0
    with translate_read_errors(file), jsonl.open_text(file) as read:
        for block in jsonl.read_blocks(read, BLOCK_BYTES):
            table = jsonl.parse_or_refuse(block, schema, file, row)
            row += len(table)
            if len(table):
                yield block, table


def _select_lines(block: bytes, starts: np.ndarray, keep: np.ndarray) -> bytes:
    """The lines of `block` that `keep` marks, with their line ends."""
    bounds = np.append(starts, len(block))
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    return b"".join(block[bounds[begin] : bounds[end]] for begin, end in edges.reshape(-1, 2))


@contextlib.contextmanager
def _open_writer(target: UPath, codec: str | None) -> Iterator[Any]:
    """Open a writer of bytes to `target`, compressed with `codec`."""
    with target.open("wb") as file:
        if codec:
            with pa.CompressedOutputStream(pa.PythonFile(file, "w"), codec) as stream:
                yield stream.write
        else:
            yield file.write


def _rewrite_npy(file: UPath, target: UPath, row_filter: RowFilter) -> None:
    rows, dimension, dtype, start = npy.read_header(file)
    keep = row_filter.keep(pa.table({"row": np.arange(rows)}))
    shape = (int(keep.sum()), dimension)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    row_bytes = dimension * dtype.itemsize
    step = max(1, BLOCK_BYTES // row_bytes)
    with file.open("rb") as source, target.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        source.seek(start)
        for begin in range(0, rows, step):
            with translate_read_errors(file):
                block = np.frombuffer(source.read(min(step, rows - begin) * row_bytes), dtype).reshape(-1, dimension)
            out.write(block[keep[begin : begin + step]].tobytes())
