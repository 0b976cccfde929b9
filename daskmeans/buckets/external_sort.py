"""Regrouping rows by cluster, without a shuffle and without holding more than a partition or a bucket in memory.

Each partition is sorted by cluster and written as a run. As runs are sorted, the rows of a range of clusters form one
slice of each run, and a bucket is merged from these slices. A cluster larger than a bucket is merged in windows of the
distance to its centroid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import dask
import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.buckets.buckets import CENTROID, COSINE, L2, Buckets, open_buckets
from daskmeans.buckets.writer import write_bucket_files
from daskmeans.errors import DataError, UsageError
from daskmeans.runtime import executor
from daskmeans.runtime.client import client_in_use, n_threads
from daskmeans.runtime.memory import partition_bytes
from daskmeans.storage import manifest
from daskmeans.storage.step import open_step
from daskmeans.vectors.files import is_local, open_path
from daskmeans.vectors.frames import frame_schema, to_table, with_fixed_lists
from daskmeans.vectors.matrix import vector_columns

RUNS = "_runs"
LAYOUTS = ("bucketed", "hive")
_RUN_BATCH_ROWS = 1024
_READ_AHEAD_BYTES = 2**20


def write_buckets(
    frame: dd.DataFrame,
    url: str | UPath,
    *,
    layout: str = "bucketed",
    id_field: str = "id",
    embedding_field: str | None = None,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> Buckets:
    """Write assigned rows grouped by cluster.

    Parameters
    ----------
    frame : dask dataframe
        As returned by :func:`daskmeans.assign`, of pandas or of cuDF; the files are the same.
    url : str or UPath
        Directory to create, on any file system that fsspec supports.
    layout : {"bucketed", "hive"}, default "bucketed"
        ``bucket-*.parquet`` with many clusters per file and one or more row groups per cluster, or
        ``centroid=<i>/part-0.parquet``.
    id_field : str, default "id"
    embedding_field : str, optional
        Column of the assigned vectors. Default: the only vector column.
    storage_options : dict, optional
    overwrite : bool, default False
        Replace the output of an earlier call.
    client : distributed.Client, optional

    Returns
    -------
    Buckets

    Raises
    ------
    OutputError
        `url` exists and is not empty.
    UsageError
        `frame` lacks the columns that ``assign`` adds, or has several columns of vectors.
    DataError
        No single type holds the values of a column in all partitions.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-buckets/in/rows.jsonl").write_text(lines)
    >>> rows = dkm.read_embeddings("memory://doctest-buckets/in")
    >>> assigned = dkm.assign(rows, dkm.KMeans(n_clusters=2).fit(rows))
    >>> buckets = dkm.write_buckets(assigned, "memory://doctest-buckets/clusters", overwrite=True)
    >>> sorted(buckets.read(cluster)["id"].to_pylist() for cluster in buckets.clusters())
    [['a', 'b'], ['c']]
    """
    path = open_path(url, storage_options)
    # The origin of the rows is unknown here, and later steps must not mistake them for others.
    inputs = {"rows_from": uuid4().hex}
    with open_step(path, "assign", {"layout": layout}, inputs, overwrite=overwrite, client=client) as step:
        step.facts |= regroup(
            frame, path, layout=layout, id_field=id_field, embedding_field=embedding_field, client=client
        )
    return open_buckets(path)


def regroup(
    frame: dd.DataFrame,
    path: UPath,
    *,
    layout: str,
    id_field: str,
    embedding_field: str | None = None,
    client: Client | None = None,
) -> dict[str, Any]:
    """Write the files of :func:`write_buckets` into `path`; return the facts for its manifest."""
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}", where="layout", expected=" or ".join(LAYOUTS))
    vectors = _check_columns(frame, id_field, embedding_field)
    runs = path / RUNS
    runs.mkdir(parents=True, exist_ok=True)
    write = dask.delayed(_write_run, pure=False)
    tasks = [
        write(part, runs / f"run-{i:05d}", id_field, vectors, dask_key_name=f"assign-{uuid4().hex}")
        for i, part in enumerate(frame.to_delayed())
    ]
    found = executor.compute(tasks, "assign", client)
    sizes, dimension, schema = _cluster_sizes(found), _check_dimension(found, vectors), _unify_schemas(found, id_field)
    row_bytes = 4 * max(1, dimension) + max(written.metadata_bytes for written in found)
    per_bucket = _bucket_rows(sum(sizes.values()), row_bytes, client)
    names = [runs / f"run-{i:05d}" for i, written in enumerate(found) if len(written.labels)]
    merge = dask.delayed(_write_bucket, pure=False)
    tasks = [
        merge(path, layout, b, names, first, last, per_bucket, schema, id_field, vectors,
              dask_key_name=f"bucket-write-{uuid4().hex}")
        for b, (first, last) in enumerate(_split_ranges(sizes, per_bucket))
    ]  # fmt: skip
    files = [file for made in executor.compute(tasks, "write buckets", client) for file in made]
    manifest.remove_tree(runs)
    return {
        "layout": layout,
        "id_field": id_field,
        "embedding_field": vectors,
        "metadata_fields": [c for c in frame.columns if c not in (id_field, vectors, CENTROID, L2, COSINE)],
        "dimension": dimension,
        "rows": sum(sizes.values()),
        "n_clusters": len(sizes),
        "outputs": files,
    }


def _check_columns(frame: dd.DataFrame, id_field: str, embedding_field: str | None) -> str:
    """Return the name of the column of vectors; raise UsageError if a required column is missing."""
    missing = [name for name in (id_field, CENTROID, L2, COSINE) if name not in frame.columns]
    found = vector_columns(frame_schema(frame._meta))
    vectors = found if embedding_field is None else [embedding_field]
    if missing or len(vectors) != 1:
        raise UsageError(
            f"the dataframe has the columns {', '.join(map(str, frame.columns))}",
            expected=f"{id_field}, one column of vectors, {CENTROID}, {L2}, {COSINE}",
            remedy="pass what daskmeans.assign returns, id_field= if the ids have another name, and embedding_field= "
            "if there are several columns of vectors",
        )
    return vectors[0]


def _bucket_rows(rows: int, row_bytes: int, client: Client | None) -> int:
    """Return the rows to merge at once: at most half a partition, and few enough that each thread has some buckets."""
    client = client_in_use(client)
    size = min(config.get_bytes("bucket-bytes"), partition_bytes(client) // 2)
    return max(1, min(size // row_bytes, -(-rows // (4 * n_threads(client)))))


def _sort_rows(table: pa.Table, id_field: str) -> pa.Table:
    # The id makes the order total, so that it does not depend on the partitioning.
    keys = [(CENTROID, "ascending"), (L2, "ascending"), (id_field, "ascending")]
    return table.take(pc.sort_indices(table, keys))


class RunSummary(NamedTuple):
    """Facts about a partition, collected while its run was written."""

    labels: np.ndarray
    """int32: the clusters in it, ascending."""
    counts: np.ndarray
    """int64: the number of rows of each."""
    schema: pa.Schema
    blank: list[str]
    """Columns without values, to which pandas may have given another type than in other partitions."""
    metadata_bytes: int
    """Bytes of the metadata of a row, on average."""


def _write_run(part: Any, run: UPath, id_field: str, vectors: str) -> RunSummary:
    """Write `part` sorted by cluster, with an index of the clusters' ends."""
    table = _sort_rows(with_fixed_lists(to_table(part).replace_schema_metadata(None), vectors), id_field)
    with run.with_suffix(".arrow").open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_RUN_BATCH_ROWS)
    labels, counts = np.unique(table[CENTROID].to_numpy(), return_counts=True)
    run.with_suffix(".index").write_bytes(np.stack([labels, np.cumsum(counts)]).astype(np.int64).tobytes())
    blank = [name for name in table.column_names if table[name].null_count == len(table)]
    metadata = table.drop_columns([id_field, vectors, CENTROID, L2, COSINE])
    return RunSummary(labels, counts, table.schema, blank, -(-metadata.nbytes // max(1, len(table))))


def _unify_schemas(found: list[RunSummary], id_field: str) -> pa.Schema:
    """Return a schema that holds the rows of all partitions; columns without values are ignored."""
    some = [written for written in found if len(written.labels)] or found[:1]
    schemas = [
        pa.schema([field.with_type(pa.null()) if field.name in written.blank else field for field in written.schema])
        for written in some
    ]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise _mixed_types_error(error) from None
    if pa.types.is_floating(common.field(id_field).type):
        raise _mixed_types_error(f"{id_field!r} has numbers with and without a fraction")
    return pa.schema([some[0].schema.field(f.name) if pa.types.is_null(f.type) else f for f in common])


def _mixed_types_error(found: object) -> DataError:
    return DataError(
        f"partitions have values of different types ({found})",
        expected="one type in each column of the dataframe",
        remedy="cast the column, as in frame.astype",
    )


def _check_dimension(found: list[RunSummary], vectors: str) -> int:
    """Return the dimension of the vectors in partitions that have rows; without any, the one that the types show."""
    sizes = [written.schema.field(vectors).type.list_size for written in found]
    dimensions = sorted({size for size, written in zip(sizes, found, strict=True) if len(written.labels)})
    if len(dimensions) > 1:
        raise DataError(
            f"the vectors have {dimensions[0]} dimensions in one partition and {dimensions[1]} in another",
            where=f"column {vectors!r}",
            expected="vectors of one dimension, as daskmeans.assign returns them",
        )
    return dimensions[0] if dimensions else max(sizes)


def _cluster_sizes(found: list[RunSummary]) -> dict[int, int]:
    """Return the rows of each non-empty cluster, by centroid, ascending."""
    labels = np.concatenate([written.labels for written in found])
    counts = np.concatenate([written.counts for written in found])
    known, where = np.unique(labels, return_inverse=True)
    totals = np.zeros(len(known), np.int64)
    np.add.at(totals, where, counts)
    return dict(zip(known.tolist(), totals.tolist(), strict=True))


def _split_ranges(sizes: dict[int, int], target: int) -> list[tuple[int, int]]:
    """Return ranges of centroids (first, last) of about `target` rows each; a larger cluster gets its own range."""
    ranges: list[tuple[int, int]] = []
    held = target
    for centroid, rows in sizes.items():
        if held + rows > target:
            ranges.append((centroid, centroid))
            held = 0
        ranges[-1] = (ranges[-1][0], centroid)
        held += rows
    return ranges


class SortedRun:
    """The rows of a range of clusters in a written run: those from `start` to `stop`."""

    def __init__(self, path: UPath, first: int, last: int) -> None:
        labels, ends = np.frombuffer(path.with_suffix(".index").read_bytes(), np.int64).reshape(2, -1)
        starts = np.concatenate([[0], ends])
        self.start = int(starts[np.searchsorted(labels, first)])
        self.stop = int(starts[np.searchsorted(labels, last, side="right")])
        self._path = path.with_suffix(".arrow")

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Read the rows from `start` to `stop` of the run, as a copy.

        A slice would keep whole batches alive, and mapped pages count as the worker's memory until the file is closed.
        """
        batches = range(start // _RUN_BATCH_ROWS, -(-stop // _RUN_BATCH_ROWS))
        with self._open() as source:
            schema = pa.ipc.open_file(source).schema
            wanted = None if columns is None else [schema.get_field_index(name) for name in columns]
            file = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
            table = pa.Table.from_batches([file.get_batch(i) for i in batches], file.schema)
            first = start - batches.start * _RUN_BATCH_ROWS
            return table.take(pa.array(np.arange(first, first + stop - start)))

    def _open(self) -> Any:
        # Object-store clients read ahead by one block: 50 MB would be most of the run, for every slice.
        return (
            pa.memory_map(self._path.path)
            if is_local(self._path)
            else self._path.open("rb", block_size=_READ_AHEAD_BYTES)
        )

    def distances(self) -> np.ndarray:
        """Return the distances of its rows, ascending if the range is one cluster."""
        return self.read(self.start, self.stop, [L2])[L2].to_numpy()


def _merge_runs(
    names: list[UPath], first: int, last: int, per_bucket: int, schema: pa.Schema, id_field: str
) -> Iterator[pa.Table]:
    """Yield the rows of clusters `first` to `last`, sorted, in tables of about `per_bucket` rows with this `schema`."""
    runs = [SortedRun(name, first, last) for name in names]

    def concat_sorted(tables: list[pa.Table]) -> pa.Table:
        try:
            return _sort_rows(pa.concat_tables([table.cast(schema) for table in tables]), id_field)
        except pa.ArrowInvalid as error:  # an integer that float64 cannot represent
            raise _mixed_types_error(error) from None

    if first < last or sum(run.stop - run.start for run in runs) <= per_bucket:
        yield concat_sorted([run.read(run.start, run.stop) for run in runs])
        return
    distances = [run.distances() for run in runs]
    cuts = np.unique(np.sort(np.concatenate(distances))[per_bucket::per_bucket])
    marks = [
        [run.start, *(run.start + np.searchsorted(d, cuts)), run.stop] for run, d in zip(runs, distances, strict=True)
    ]
    for w in range(len(cuts) + 1):
        pieces = [run.read(int(m[w]), int(m[w + 1])) for run, m in zip(runs, marks, strict=True) if m[w] < m[w + 1]]
        if pieces:
            yield concat_sorted(pieces)


def _split_by_cluster(tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Yield slices of `tables` that hold one cluster each, with its centroid."""
    for table in tables:
        labels, starts = np.unique(table[CENTROID].to_numpy(), return_index=True)
        for label, start, stop in zip(labels.tolist(), starts, [*starts[1:], len(table)], strict=True):
            yield label, table.slice(start, stop - start)


def _write_bucket(
    path: UPath,
    layout: str,
    number: int,
    names: list[UPath],
    first: int,
    last: int,
    per_bucket: int,
    schema: pa.Schema,
    id_field: str,
    vectors: str,
) -> list[dict[str, Any]]:
    tables = _split_by_cluster(_merge_runs(names, first, last, per_bucket, schema, id_field))
    return write_bucket_files(path, tables, layout, vectors, number)
