"""Inputs: their files, columns and rows, cut into partitions that tasks read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from upath import UPath

from daskmeans import config
from daskmeans.errors import DataError
from daskmeans.options import check_choice
from daskmeans.vectors import fields, frames
from daskmeans.vectors.device_reader import DeviceReader
from daskmeans.vectors.files import Input, as_list, open_path
from daskmeans.vectors.formats import FORMATS, format_of
from daskmeans.vectors.listing import find_files, warn_of_added_files
from daskmeans.vectors.looks import SURVEYS, find_dimension, merge_schemas, row_bytes, survey_first, survey_rest
from daskmeans.vectors.numbering import FIELD, FILE_ROW, ID_SOURCES, ROW, choose_numbering
from daskmeans.vectors.partitioning import Partition, balance_partitions, pack_partitions
from daskmeans.vectors.reader import Reader
from daskmeans.vectors.stamps import hash_facts, stamp_files

# Dask's settings are global: two threads that changed one at the same time could leave it changed.
_CONFIG_LOCK = Lock()


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of embeddings or texts, in files.

    Attributes
    ----------
    files : tuple of UPath
        Files in the order of the rows, without empty ones.
    format : {"parquet", "jsonl", "npy"}
    id_field : str
    embedding_field, text_field : str or None
        Exactly one of them is set.
    metadata_fields : tuple of str
    rows : int
        Rows of the files, including those that would be skipped.
    dimension : int
        0 for texts.
    dtype : str
        Type of the elements as stored, ``float16``, ``float32`` or ``float64``; empty for texts.
    partitions : tuple of Partition
    inputs : tuple of UPath
        The files, directories and globs that were named.
    given : tuple of UPath
        All files of `inputs`, including empty ones.
    stamps : tuple of (str, int, str)
        Of all files: name below their common directory, size in bytes, version.
    reader : Reader
    """

    files: tuple[UPath, ...]
    format: str
    id_field: str
    embedding_field: str | None
    text_field: str | None
    metadata_fields: tuple[str, ...]
    rows: int
    dimension: int
    dtype: str
    partitions: tuple[Partition, ...]
    inputs: tuple[UPath, ...]
    given: tuple[UPath, ...]
    stamps: tuple[tuple[str, int, str], ...]
    reader: Reader

    @property
    def id_from(self) -> str:
        """Where ids come from: ``field``, or made as :class:`Numbering` says."""
        return self.reader.numbering.kind if self.reader.numbering else FIELD

    @property
    def n_partitions(self) -> int:
        """Number of tasks that read the input, and of partitions of :meth:`frame`."""
        return len(self.partitions)

    def frame(self) -> dd.DataFrame:
        """Return a Dask dataframe with id, vector or text, and metadata; Arrow-backed, rows in the order of the input.

        Computing it raises DataError for an invalid row, unless such rows are skipped. With Dask's setting
        ``dataframe.backend: cudf`` it is a cuDF dataframe, on devices.

        Raises
        ------
        MissingExtraError, UsageError
            cuDF is configured, but is not installed, has no device, or does not support a column.
        """
        read: Any = self.reader
        empty = read.schema.empty_table()
        if frames.is_cudf_wanted():
            read, meta = DeviceReader(read), frames.make_empty_cudf(empty)
        else:
            meta = empty.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
        with _CONFIG_LOCK, dask.config.set({"dataframe.convert-string": False}):  # strings are Arrow strings already
            return dd.from_map(read, list(self.partitions), meta=meta, label="read-embeddings", enforce_metadata=False)

    def without_metadata(self) -> Source:
        """Return a source of the same rows without their metadata."""
        read = self.reader
        schema = pa.schema([read.schema.field(0), read.schema.field(1)])
        stored = pa.schema([field for field in read.stored if field.name in schema.names])
        return replace(self, metadata_fields=(), reader=replace(read, schema=schema, stored=stored))

    def with_rejects(self, rejects: UPath) -> Source:
        """Return a source of the same rows, with tables of skipped rows written to the directory `rejects`."""
        return replace(self, reader=replace(self.reader, rejects=rejects))

    def ids(self, partition: int) -> pa.ChunkedArray:
        """Return the ids of all rows of a partition, including those that would be skipped, as int64 or string."""
        return self.reader.ids(self.partitions[partition])

    def place(self, partition: int, row: int) -> str:
        """Return the file that row `row` of a partition comes from, and its number within the file."""
        for piece in self.partitions[partition].slices:
            if row < piece.rows:
                return f"{piece.path}, row {piece.first + row}"
            row -= piece.rows
        raise IndexError(row)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names, sizes and versions of the files, the columns and the number of rows."""
        return self.reader.fingerprint

    def identity(self) -> dict[str, Any]:
        """Return the manifest entry for this input."""
        files = {name: f"{size} bytes of version {version or 'unknown'}" for name, size, version in self.stamps}
        return {"fingerprint": self.fingerprint(), "rows": self.rows, "files": files}

    def check_unchanged(self) -> None:
        """Make sure that the files have not changed since the source was opened; steps do so at their end.

        Raises
        ------
        DataError, NotFoundError
            A file has been written or removed since. Added files are reported in a warning.
        """
        for path, before, now in zip(self.given, self.stamps, stamp_files(self.given), strict=True):
            if before != now:
                raise DataError(
                    "the file was written while it was being read",
                    where=str(path),
                    remedy="leave the input alone while it is read, and run the command again",
                )
        warn_of_added_files(self.inputs, self.given)


class PartitionLimits(NamedTuple):
    """How large and how many partitions are; arguments of :func:`open_source`."""

    partition_bytes: int
    min_partitions: int
    workers: int


def open_source(
    inputs: Input | Sequence[Input],
    *,
    id_field: str = "id",
    embedding_field: str | None = None,
    text_field: str | None = None,
    metadata_fields: str | Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    format: str | None = None,
    id_from: str = FIELD,
    on_bad_row: str = "error",
    allow_zero: bool = False,
    rejects: UPath | None = None,
    partition_bytes: int | None = None,
    min_partitions: int = 1,
    workers: int = 1,
    limits: Callable[[], PartitionLimits] | None = None,
) -> Source:
    """Open files of embeddings or texts: read their metadata, but not yet their rows.

    Parameters
    ----------
    inputs : path, URL or list of these
        Files, directories or globs: Parquet, JSON lines (plain, gz, zst) or ``.npy``.
    id_field : str, default "id"
        Column of ids: integers, strings, bytes or decimals. Without a column of this name, and for ``.npy`` files, the
        ids are the numbers of the rows.
    embedding_field : str, optional
        Column of vectors; default: the only one whose values are lists of floats. The dimension is that of most rows of
        a sample; rows with another one are invalid.
    text_field : str, optional
        Column of texts to read instead of vectors.
    metadata_fields : str or iterable of str
        Further columns to read.
    storage_options : mapping, optional
        Options for fsspec.
    format : {"parquet", "jsonl", "npy"}, optional
        Format of the files; default: what their names show, else their first bytes.
    id_from : {"field", "row", "file-row"}, default "field"
        Take ids from the column `id_field`; or make them, of the number of the row, or of its file and its number
        there, such as ``part-0.parquet:17``.
    on_bad_row : {"error", "skip"}, default "error"
        Raise an error for an invalid row, or skip it.
    allow_zero : bool, default False
        Accept zero vectors.
    rejects : UPath, optional
        Directory for tables of skipped rows.
    partition_bytes : int, optional
        Bytes of float32 vectors in one partition; default: ``daskmeans.partition-bytes``.
    min_partitions : int, default 1
        Make partitions smaller where the files can be cut, so that there are about this many.
    workers : int, default 1
        Number of workers to balance the partitions over, with cuDF dataframes.
    limits : callable, optional
        Returns the last three; called once files and columns are known to be right.

    Returns
    -------
    Source

    Raises
    ------
    UsageError
        The path, a column or an option is invalid.
    DataError
        A file is damaged, or files contradict each other.

    Examples
    --------
    >>> import numpy as np
    >>> with UPath("memory://doctest/rows.npy").open("wb") as file:
    ...     np.save(file, np.ones((5, 3), np.float32))
    >>> source = open_source("memory://doctest")
    >>> source.rows, source.dimension, source.dtype
    (5, 3, 'float32')
    """
    check_choice("--on-bad-row", on_bad_row, ("error", "skip"))
    check_choice("--id-from", id_from, (*ID_SOURCES, ROW))
    check_choice("--format", format, (None, *FORMATS))
    opened = tuple(open_path(one, storage_options) for one in as_list(inputs))
    found = find_files(opened, format=format)
    format_ = format_of(found[0], format)
    stamps = stamp_files(found)  # before anything is read, so that files written meanwhile are noticed
    metadata = fields.as_names(metadata_fields)
    named = [name for name in (id_field, embedding_field, text_field, *metadata) if name]
    first = survey_first(found, SURVEYS[format_], named)
    numbering = choose_numbering(id_from, id_field, format_, [survey.schema for _, survey in first], found)
    names = fields.choose_fields(
        merge_schemas(first), first[0][0], id_field, embedding_field, text_field, metadata_fields,
        has_ids=numbering is None,
    )  # fmt: skip
    dimension, like = find_dimension(first, names.embedding, format_) if names.embedding else (0, first[0][0])
    if limits is not None:
        partition_bytes, min_partitions, workers = limits()
    limit = config.get_bytes("partition-bytes") if partition_bytes is None else partition_bytes
    beside = [name for name in (names.text, *names.metadata) if name]
    rows = max(1, limit // row_bytes(first, dimension, beside, format_))
    surveys = survey_rest(found, first, (names.id, names.value, *names.metadata), rows)
    schema, stored = fields.output_schema(names, surveys, dimension, like, numbering and numbering.type)
    dtype = str(schema.types[1].value_type.to_pandas_dtype().__name__) if names.embedding else ""
    n_rows = sum(survey.rows for _, survey in surveys)
    made = [FILE_ROW] if id_from == FILE_ROW else []
    fingerprint = hash_facts([stamps, names.id, names.embedding, names.text, n_rows, *made])
    return Source(
        files=tuple(path for path, _ in surveys),
        format=format_,
        id_field=id_field,
        embedding_field=names.embedding,
        text_field=names.text,
        metadata_fields=names.metadata,
        rows=n_rows,
        dimension=dimension,
        dtype=dtype,
        partitions=(
            balance_partitions(surveys, rows, dimension, workers)
            if frames.is_cudf_wanted()
            else pack_partitions(surveys, min(rows, max(1, -(-n_rows // min_partitions))))
        ),
        inputs=opened,
        given=tuple(found),
        stamps=stamps,
        reader=Reader(format_, schema, stored, fingerprint, on_bad_row, allow_zero, rejects, numbering),
    )
