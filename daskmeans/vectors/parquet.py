"""Parquet files: units are row groups, and part of a row group is read as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.frames import is_cudf_wanted
from daskmeans.vectors.matrix import is_list
from daskmeans.vectors.nested import column_names, select_fields
from daskmeans.vectors.partitioning import FileSurvey, Slice, Unit

BATCH_BYTES = 4 * 2**20
BUFFER_BYTES = 2**20
VIEWLESS_TYPES = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def survey_parquet(path: UPath, rows: int | None = None) -> FileSurvey:
    """Survey `path`: its schema and row groups, from its footer; `rows` is ignored."""
    with translate_read_errors(path), pq.ParquetFile(path.path, filesystem=path.fs) as file:
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        # Columns of row groups are read only if needed: on a damaged footer, Arrow would crash the process.
        values = _count_values if is_cudf_wanted() else lambda group: 0
        units = tuple(Unit(group.num_rows, values=values(group)) for group in groups if group.num_rows)
        return FileSurvey(file.schema_arrow.remove_metadata(), units)


def _count_values(group: pq.RowGroupMetaData) -> int:
    return max(group.column(i).num_values for i in range(group.num_columns))


def read_parquet(piece: Slice, schema: pa.Schema, batch_bytes: int = BATCH_BYTES) -> Iterator[pa.Table]:
    """Read the rows of `piece` in order, with the fields of `schema`, in the types of the file; null if missing."""
    path, columns = piece.path, column_names(schema)
    with translate_read_errors(path):
        metadata = pq.read_metadata(path.path, filesystem=path.fs)
        groups, skipped = _find_groups(metadata, piece)
        numbers = [group for group, _ in groups]
        if sum(rows for _, rows in groups) == piece.rows:
            with pq.ParquetFile(
                path.path, filesystem=path.fs, metadata=metadata, pre_buffer=True, **VERIFY_PAGES
            ) as file:
                yield _select_fields(file.read_row_groups(numbers, columns=columns, use_threads=False), schema)
            return
        # Pages come through a small buffer, so that a row group too large for memory can be read in parts.
        stream = {"buffer_size": BUFFER_BYTES, "pre_buffer": False}
        with pq.ParquetFile(path.path, filesystem=path.fs, metadata=metadata, **VERIFY_PAGES, **stream) as file:
            size = min(_batch_rows(metadata, batch_bytes), skipped + piece.rows)
            batches = file.iter_batches(size, numbers, columns=columns, use_threads=False)
            yield from (_select_fields(table, schema) for table in _cut_batches(batches, skipped, piece.rows))


def _cut_batches(batches: Iterable[pa.RecordBatch], skipped: int, rows: int) -> Iterator[pa.Table]:
    """Yield `rows` rows of `batches`, after the first `skipped`."""
    for batch in batches:
        wanted = batch.slice(skipped, rows)
        skipped = max(0, skipped - len(batch))
        rows -= len(wanted)
        if len(wanted):
            yield pa.Table.from_batches([wanted])
        if not rows:
            return


def _select_fields(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return select_fields(cast_table(table, schema_without_views(table.schema)), schema)


def schema_without_views(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with plain strings and bytes instead of views, from which pyarrow cannot select rows."""
    return pa.schema([field.with_type(_viewless_type(field.type)) for field in schema])


def _viewless_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_viewless_type(field.type)) for field in type_])
    if pa.types.is_map(type_):
        key, item = (field.with_type(_viewless_type(field.type)) for field in (type_.key_field, type_.item_field))
        return pa.map_(key, item, type_.keys_sorted)
    if is_list(type_):
        value = type_.value_field.with_type(_viewless_type(type_.value_type))
        if pa.types.is_fixed_size_list(type_):
            return pa.list_(value, type_.list_size)
        return pa.large_list(value) if pa.types.is_large_list(type_) else pa.list_(value)
    return VIEWLESS_TYPES.get(type_, type_)


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `table` with the types of `schema`; columns that have their type are not cast, as some cannot be."""
    pairs = zip(table.columns, schema.types, strict=True)
    return pa.Table.from_arrays([column if column.type == t else column.cast(t) for column, t in pairs], schema=schema)


def _find_groups(metadata: pq.FileMetaData, piece: Slice) -> tuple[list[tuple[int, int]], int]:
    """Return the row groups that `piece` overlaps, with their rows, and the rows of the first that precede it."""
    touched: list[tuple[int, int]] = []
    begin = skipped = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if begin < piece.first + piece.rows and begin + rows > piece.first:
            if not touched:
                skipped = piece.first - begin
            touched.append((group, rows))
        begin += rows
    return touched, skipped


def _batch_rows(metadata: pq.FileMetaData, nbytes: int) -> int:
    """Return the rows of a batch of about `nbytes`, from the total size of all columns in the footer."""
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return max(1, nbytes * metadata.num_rows // max(1, size))
