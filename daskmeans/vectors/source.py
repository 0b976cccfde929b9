"""An input: which files, which columns, how many rows, cut into partitions; read by tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from upath import UPath

from daskmeans import config
from daskmeans.errors import DataError, UsageError
from daskmeans.runtime.client import current_client, n_processes
from daskmeans.vectors import fields, frames
from daskmeans.vectors.device_reader import DeviceReader
from daskmeans.vectors.files import Input, as_list, common_parent, format_of, open_path, stat_file
from daskmeans.vectors.listing import find_files, warn_of_added_files
from daskmeans.vectors.looks import choose_survey, find_dimension, merge_schemas, survey_files, survey_first
from daskmeans.vectors.partitioning import Partition, balance_partitions, pack_partitions
from daskmeans.vectors.reader import Reader

# A text counts as much as a vector of 1024 dimensions: about what an encoder will make of it.
TEXT_BYTES = 4096
# Files whose facts are asked for at once.
STAT_THREADS = 16
# A setting of Dask's is one of the process: two threads that changed it at once would leave it changed.
_CONFIG_LOCK = Lock()


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of embeddings or texts, in files.

    Attributes
    ----------
    files : tuple of UPath
        In the order of the rows; those without rows are left out.
    format : {"parquet", "jsonl", "npy"}
    id_field : str
    embedding_field, text_field : str or None
        One of them is given.
    metadata_fields : tuple of str
    rows : int
        Rows of the files, also those that would be skipped.
    dimension : int
        0 for texts.
    dtype : str
        Type of the elements as stored, ``float16``, ``float32`` or ``float64``; empty for texts.
    partitions : tuple of Partition
    inputs : tuple of UPath
        The files, directories and globs that were named.
    given : tuple of UPath
        All files of these, also those without rows.
    stamps : tuple of (str, int, str)
        Of all files: name below the directory that they have in common, size in bytes, version.
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
    def n_partitions(self) -> int:
        """Number of tasks that read the input, and of partitions of :meth:`frame`."""
        return len(self.partitions)

    def frame(self) -> dd.DataFrame:
        """Dask dataframe with the columns id, vector or text, metadata; Arrow-backed, rows in the order of the input.

        Computing it raises DataError for a row that cannot be worked with, unless such rows are skipped. With Dask's
        setting ``dataframe.backend`` it is one of cuDF, on devices.

        Raises
        ------
        MissingExtraError, UsageError
            It is to be one of cuDF, which is not there, has no device, or cannot hold a column.
        """
        read: Any = self.reader
        empty = read.schema.empty_table()
        if frames.is_cudf_wanted():
            read, meta = DeviceReader(read), frames.make_empty_cudf(empty)
        else:
            meta = empty.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
        with _CONFIG_LOCK, dask.config.set({"dataframe.convert-string": False}):  # strings are Arrow's already
            return dd.from_map(read, list(self.partitions), meta=meta, label="read-embeddings", enforce_metadata=False)

    def without_metadata(self) -> Source:
        """The same rows without their metadata."""
        schema = pa.schema([self.reader.schema.field(0), self.reader.schema.field(1)])
        return replace(self, metadata_fields=(), reader=replace(self.reader, schema=schema))

    def with_rejects(self, rejects: UPath) -> Source:
        """The same rows; tables of those that are skipped go to the directory `rejects`."""
        return replace(self, reader=replace(self.reader, rejects=rejects))

    def ids(self, partition: int) -> pa.ChunkedArray:
        """Ids of all rows of a partition, also of those that would be skipped, as int64 or string."""
        return self.reader.ids(self.partitions[partition])

    def place(self, partition: int, row: int) -> str:
        """Where row `row` of a partition comes from: file and number of the row within it."""
        for piece in self.partitions[partition].slices:
            if row < piece.rows:
                return f"{piece.path}, row {piece.first + row}"
            row -= piece.rows
        raise IndexError(row)

    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes and versions of the files, of the columns and of the number of rows."""
        return self.reader.fingerprint

    def identity(self) -> dict[str, Any]:
        """What a manifest says of this input."""
        files = {name: f"{size} bytes of version {version or 'unknown'}" for name, size, version in self.stamps}
        return {"fingerprint": self.fingerprint(), "rows": self.rows, "files": files}

    def check_unchanged(self) -> None:
        """Make sure that the files are those that were looked at when the source was opened; a step ends with this.

        Raises
        ------
        DataError, NotFoundError
            One has been written or removed since. Files that were added are told of in a warning.
        """
        for path, before, now in zip(self.given, self.stamps, _stamp_files(self.given), strict=True):
            if before != now:
                raise DataError(
                    "the file was written while it was being read",
                    where=str(path),
                    remedy="leave the input alone while it is read, and run the command again",
                )
        warn_of_added_files(self.inputs, self.given)


def open_source(
    inputs: Input | Sequence[Input],
    *,
    id_field: str = "id",
    embedding_field: str | None = None,
    text_field: str | None = None,
    metadata_fields: str | Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    on_bad_row: str = "error",
    allow_zero: bool = False,
    rejects: UPath | None = None,
    partition_bytes: int | None = None,
    min_partitions: int = 1,
    workers: int = 1,
) -> Source:
    """Look at files of embeddings or texts, without reading them yet.

    Parameters
    ----------
    inputs : path, URL or list of these
        Files, directories or globs: Parquet, JSON lines (plain, gz, zst) or ``.npy``.
    id_field : str, default "id"
        Column of integers or strings. The ids of ``.npy`` files are the numbers of the rows.
    embedding_field : str, optional
        Column of vectors; default: the only one whose values are lists of floats. Their dimension is that of most rows
        of a sample; rows of others cannot be worked with.
    text_field : str, optional
        Column of texts, to be read instead of vectors.
    metadata_fields : str or iterable of str
        Further columns to read.
    storage_options : mapping, optional
        For fsspec.
    on_bad_row : {"error", "skip"}, default "error"
        What a task does about a row that cannot be worked with.
    allow_zero : bool, default False
        Take zero vectors.
    rejects : UPath, optional
        Directory for tables of the rows that were skipped.
    partition_bytes : int, optional
        Bytes of float32 vectors in one partition; default: ``daskmeans.partition-bytes``.
    min_partitions : int, default 1
        Make partitions smaller than that, where the files can be cut, so that there are about so many.
    workers : int, default 1
        How many are to have as many rows each, if the frame is to be one of cuDF.

    Returns
    -------
    Source

    Raises
    ------
    UsageError
        The path, a column or an option does not fit.
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
    if on_bad_row not in ("error", "skip"):
        raise UsageError(f"unknown choice {on_bad_row!r}", where="--on-bad-row", expected="error or skip")
    opened = tuple(open_path(one, storage_options) for one in as_list(inputs))
    found = find_files(opened)
    stamps = _stamp_files(found)  # before anything is read, so that a file that is written meanwhile is noticed
    survey_file = choose_survey(found, id_field)
    first = survey_first(found, survey_file)
    names = fields.choose_fields(
        merge_schemas(first), first[0][0], id_field, embedding_field, text_field, metadata_fields
    )
    dimension, like = find_dimension(first, names.embedding) if names.embedding else (0, first[0][0])
    limit = config.get_bytes("partition-bytes") if partition_bytes is None else partition_bytes
    rows = max(1, limit // (4 * dimension or TEXT_BYTES))
    surveys = first if first[0][1].complete else survey_files(found, survey_file, rows)
    schema = fields.output_schema(names, surveys, dimension, like)
    dtype = str(schema.types[1].value_type.to_pandas_dtype().__name__) if names.embedding else ""
    n_rows = sum(survey.rows for _, survey in surveys)
    fingerprint = _hash_facts([stamps, names.id, names.embedding, names.text, n_rows])
    return Source(
        files=tuple(path for path, _ in surveys),
        format=format_of(found[0]),
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
        reader=Reader(format_of(found[0]), schema, fingerprint, on_bad_row, allow_zero, rejects),
    )


def read_embeddings(
    url: Input | Sequence[Input],
    *,
    id_field: str = "id",
    embedding_field: str | None = None,
    metadata_fields: str | Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    on_bad_row: str = "error",
    allow_zero: bool = False,
) -> dd.DataFrame:
    """Dask dataframe of embeddings in files: id, vectors, metadata; Arrow-backed, rows in the order of the input.

    The parameters are those of :func:`open_source`.

    Returns
    -------
    dask.dataframe.DataFrame
        The vectors are fixed-size lists of the type that is stored. With Dask's setting ``dataframe.backend: cudf`` it
        is a dataframe of dask_cudf, whose vectors are lists; the same rows are refused, with the same words.

    Raises
    ------
    UsageError
        The path, a column or an option does not fit.
    DataError
        A file is damaged, or files contradict each other; when the dataframe is computed: a row cannot be worked with.

    Examples
    --------
    >>> import numpy as np
    >>> with UPath("memory://doctest/rows.npy").open("wb") as file:
    ...     np.save(file, np.ones((5, 3), np.float32))
    >>> read_embeddings("memory://doctest").dtypes
    id                                          int64[pyarrow]
    embedding    fixed_size_list<item: float>[3][pyarrow]
    dtype: object
    """
    source = open_source(
        url,
        id_field=id_field,
        embedding_field=embedding_field,
        metadata_fields=metadata_fields,
        storage_options=storage_options,
        on_bad_row=on_bad_row,
        allow_zero=allow_zero,
        workers=n_processes(current_client()),
    )
    return source.frame()


def _hash_facts(facts_: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts_).encode()).hexdigest()


def _stamp_files(files: Sequence[UPath]) -> tuple[tuple[str, int, str], ...]:
    """Name below the common directory, size and version of each file."""
    with ThreadPoolExecutor(min(STAT_THREADS, len(files))) as pool:
        sizes = list(pool.map(stat_file, files))
    common = common_parent([path.path for path in files])
    names = [path.path.removeprefix(common) for path in files]
    return tuple((name, size, version) for name, (size, version) in zip(names, sizes, strict=True))
