"""The task that reads one partition: from slices of files to checked rows with uniform types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.storage import objectstore, signature
from daskmeans.vectors import jsonl, npy, parquet, validate
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.hive import fill_keys
from daskmeans.vectors.id_types import ID_REMEDY, cast_ids
from daskmeans.vectors.matrix import is_list, is_untyped
from daskmeans.vectors.numbering import Numbering
from daskmeans.vectors.partitioning import Partition, Slice

SLICE_READERS = {"parquet": parquet.read_parquet, "jsonl": jsonl.read_jsonl, "npy": npy.read_npy}


@dataclass(frozen=True)
class Reader:
    """How partitions are read.

    Attributes
    ----------
    format : {"parquet", "jsonl", "npy"}
    schema : pyarrow.Schema
        Columns of the result: the id, the vector (a fixed-size list) or the text, and metadata.
    stored : pyarrow.Schema
        The same columns as they are read from files: with paths and layouts, and without ids that are made.
    fingerprint : str
        Fingerprint of the input, so that tasks that read a changed file have other keys.
    on_bad_row : {"error", "skip"}
    allow_zero : bool
        Whether zero vectors are valid.
    rejects : UPath or None
        Directory for a table of the rows left out.
    numbering : Numbering or None
        How ids are made; None if they are in the files.
    """

    format: str
    schema: pa.Schema
    stored: pa.Schema
    fingerprint: str
    on_bad_row: str = "error"
    allow_zero: bool = False
    rejects: UPath | None = None
    numbering: Numbering | None = None

    def __call__(self, partition: Partition) -> pd.DataFrame:
        """Return the rows of `partition`, Arrow-backed."""
        return self.table(partition).to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)

    def table(self, partition: Partition) -> pa.Table:
        """Return the valid rows of `partition`."""
        kept, begin = [self.schema.empty_table()], 0
        rejects: list[pa.Table] = []
        for path, first, raw in self._read_blocks(partition):
            ids = self._cast_column(raw, 0, path)
            problems = self._find_problems(raw, ids, _rows_within(partition.left_out, begin, len(raw)), path)
            if problems.any():
                if self.on_bad_row == "error":
                    raise self._row_error(problems, raw, path, first)
                rejects.append(validate.make_rejects(problems, ids, path, first))
                raw, ids = (column.filter(pa.array(problems == 0)) for column in (raw, ids))
            kept.append(self._finish_block(raw, ids, path))
            begin += len(problems)
        if begin != partition.rows:  # some formats raise an error, others return the present rows
            where = ", ".join(dict.fromkeys(str(piece.path) for piece in partition.slices))
            found = f"the file had {partition.rows:,} rows, and has {begin:,} now"
            raise DataError(found, where=where, remedy="leave the input alone while it is read, and run again")
        if rejects and self.rejects is not None:
            _write_rejects(pa.concat_tables(rejects), self.rejects / f"part-{partition.number:05d}.parquet")
        return pa.concat_tables(kept)

    def ids(self, partition: Partition) -> pa.ChunkedArray:
        """Return the ids of all rows of `partition`, including invalid ones; no other column is read."""
        type_ = self.schema.types[0]
        if self.numbering:
            made = [self.numbering.make_ids(piece, piece.first, piece.rows) for piece in partition.slices]
            return pa.chunked_array(made, type_)
        stored = pa.schema([self.stored.field(0)])
        columns = [
            self._cast_column(raw, 0, piece.path) for piece in partition.slices for raw in self._read(piece, stored)
        ]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type_)

    def _read(self, piece: Slice, stored: pa.Schema) -> Iterator[pa.Table]:
        """Yield blocks of the rows of `piece`, with the keys of its directories."""
        for raw in SLICE_READERS[self.format](piece, stored):
            yield fill_keys(raw, piece.path)

    def _read_blocks(self, partition: Partition) -> Iterator[tuple[UPath, int, pa.Table]]:
        """Yield blocks of rows as stored: file, number of the first row within it, rows."""
        value = self.stored.field(self.schema.names[1])
        for piece in partition.slices:
            first = piece.first
            for raw in self._read(piece, self.stored):
                if is_untyped(raw.schema.field(value.name).type):  # no row of the file has a value
                    column = raw[value.name].cast(value.type)
                    raw = raw.set_column(raw.column_names.index(value.name), value.name, column)
                if self.numbering:
                    raw = raw.add_column(0, self.schema.names[0], self.numbering.make_ids(piece, first, len(raw)))
                yield piece.path, first, raw
                first += len(raw)

    def _find_problems(self, raw: pa.Table, ids: pa.ChunkedArray, duplicates: np.ndarray, path: UPath) -> np.ndarray:
        if is_list(self.schema.types[1]):
            chunks = raw.column(self.schema.names[1]).chunks
            dimension = self.schema.types[1].list_size
            found = np.concatenate([validate.vector_problems(chunk, dimension, self.allow_zero) for chunk in chunks])
        else:
            found = validate.text_problems(self._cast_column(raw, 1, path))
        found[duplicates[found[duplicates] == 0]] = validate.Problem.DUPLICATE
        null = validate.id_problems(ids)
        return np.where(null, null, found)

    def _row_error(self, problems: np.ndarray, raw: pa.Table, path: UPath, first: int) -> DataError:
        row = int(np.flatnonzero(problems)[0])
        problem = validate.Problem(problems[row])
        column = self.schema.names[0 if problem in (validate.Problem.NULL_ID, validate.Problem.DUPLICATE) else 1]
        where = f"{path}, row {first + row} (counted from 0), column {column!r}"
        values = raw.column(column).slice(row, 1).combine_chunks()
        return validate.problem_error(problem, where, values, self.schema.types[1])

    def _finish_block(self, raw: pa.Table, ids: pa.ChunkedArray, path: UPath) -> pa.Table:
        """Return `raw`, whose rows are valid, with the types of the schema."""
        columns = [ids, *(self._cast_column(raw, i, path) for i in range(1, len(self.schema)))]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _cast_column(self, raw: pa.Table, number: int, path: UPath) -> pa.ChunkedArray:
        """Return column `number` of the schema, from `raw`."""
        name, type_ = self.schema.names[number], self.schema.types[number]
        with translate_read_errors(path):
            column = raw.column(name)
            if is_list(type_) and number == 1:
                return pa.chunked_array([validate.cast_vectors(chunk, type_) for chunk in column.chunks], type_)
            try:
                column = cast_ids(column, type_) if number == 0 else column.cast(type_)
                column.validate(full=True)  # files may hold bytes that are not UTF-8
            except pa.ArrowInvalid as error:
                found = f"the column cannot be read as {type_} ({error})"
                remedy = ID_REMEDY if number == 0 else "write the file again"
                raise DataError(found, where=f"{path}, column {name!r}", remedy=remedy) from None
            return column


def _rows_within(rows: np.ndarray | None, begin: int, length: int) -> np.ndarray:
    """Return those of the sorted `rows` within `length` rows from `begin`, counted from `begin`."""
    if rows is None:
        return np.empty(0, np.int64)
    low, high = np.searchsorted(rows, [begin, begin + length])
    return rows[low:high] - begin


def _write_rejects(table: pa.Table, path: UPath) -> None:
    """Write `table` to `path` atomically, so that a task that runs twice, even at once, leaves one file."""
    sink = pa.BufferOutputStream()
    signature.write_table(table, sink, "read")
    with translate_read_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        objectstore.replace_file(path, sink.getvalue().to_pybytes(), uuid4().hex)
