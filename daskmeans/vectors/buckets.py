"""Rows grouped by cluster on disk, read a cluster at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans import config, manifest, runtime
from daskmeans.errors import DataError

CENTROID, L2, COSINE = "centroid", "l2_dist_to_cent", "cosine_dist_to_cent"


@dataclass(frozen=True)
class Cluster:
    """Where the rows of one cluster lie."""

    centroid: int
    rows: int
    file: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Clusters that lie together and are worth one task."""

    clusters: tuple[Cluster, ...]

    @property
    def rows(self) -> int:
        """Rows of all its clusters."""
        return sum(c.rows for c in self.clusters)


@dataclass(frozen=True)
class Buckets:
    """A finished directory of rows grouped by cluster.

    Attributes
    ----------
    path : UPath
    layout : {"bucketed", "hive"}
    id_field, embedding_field : str
    metadata_fields : tuple of str
    dimension, rows, n_clusters : int
    parts : tuple of Part
        In the order of the centroids; each is worth one task.
    manifest : dict
    """

    path: UPath
    layout: str
    id_field: str
    embedding_field: str
    metadata_fields: tuple[str, ...]
    dimension: int
    rows: int
    n_clusters: int
    parts: tuple[Part, ...]
    manifest: dict[str, Any]

    def clusters(self) -> Iterator[Cluster]:
        """All clusters that have rows, in the order of the centroids."""
        return (cluster for part in self.parts for cluster in part.clusters)

    def read(self, cluster: Cluster, columns: list[str] | None = None) -> pa.Table:
        """Rows of `cluster`, sorted by (``l2_dist_to_cent``, id); no page of another cluster is read.

        Parameters
        ----------
        cluster : Cluster
        columns : list of str, optional
            Default: all.
        """
        return next(self.read_each([cluster], columns))

    def read_slices(self, slices: Iterable[tuple[Cluster, int, int]], columns: list[str]) -> Iterator[pa.Table]:
        """`columns` of some rows of clusters, each given with the first of them and the one after the last.

        A table holds what lies in one file, in the order given. No row group is read that has none of the rows.
        """
        for name, mine in groupby(slices, lambda piece: piece[0].file):
            file = self.path / name
            with _explained(file):
                stored = pq.ParquetFile(file.path, filesystem=file.fs, memory_map=True)
            groups: list[int] = []
            taken: list[np.ndarray] = []
            held = 0
            for cluster, start, stop in mine:
                there = range(stored.metadata.num_row_groups)
                sizes = [stored.metadata.row_group(g).num_rows if g in there else 0 for g in cluster.row_groups]
                _check_rows(sum(sizes), cluster, file)
                ends = np.cumsum(sizes)
                first, last = np.searchsorted(ends, [start, stop - 1], side="right")
                groups += cluster.row_groups[first : last + 1]
                begin = held + start - int(ends[first]) + sizes[first]
                taken.append(np.arange(begin, begin + stop - start))
                held += sum(sizes[first : last + 1])
            with _explained(file):
                table = stored.read_row_groups(groups, columns)
            rows = np.concatenate(taken)
            yield table if len(rows) == len(table) else table.take(pa.array(rows))

    def read_each(self, clusters: Iterable[Cluster], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of each of `clusters`, as :meth:`read` gives them; each file is opened once."""
        names = columns or [self.id_field, self.embedding_field, *self.metadata_fields, CENTROID, L2, COSINE]
        for name, mine in groupby(clusters, attrgetter("file")):
            file = self.path / name
            with _explained(file):
                stored = pq.ParquetFile(file.path, filesystem=file.fs, memory_map=True)
            held = [column for column in names if column in stored.schema_arrow.names]
            for cluster in mine:
                with _explained(file):
                    table = stored.read_row_groups(list(cluster.row_groups), held)
                yield _checked(table, cluster, file, names)


def lean_of(buckets: Buckets) -> Buckets:
    """`buckets` for tasks that are told what to read: without the list of all clusters."""
    return replace(buckets, parts=(), manifest={})


@contextlib.contextmanager
def _explained(file: UPath) -> Iterator[None]:
    """Turn what Arrow raises about `file` into an error that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the file cannot be read ({error})", where=str(file), remedy="run `daskmeans assign` again"
        ) from None


def _check_rows(rows: int, cluster: Cluster, file: UPath) -> None:
    if rows != cluster.rows:
        raise DataError(
            f"cluster {cluster.centroid} has {rows} rows",
            where=str(file),
            expected=f"{cluster.rows}, as {manifest.NAME} says",
            remedy="run `daskmeans assign` again",
        )


def _checked(table: pa.Table, cluster: Cluster, file: UPath, names: list[str]) -> pa.Table:
    """The columns `names` of the rows of `cluster`, which are all there."""
    _check_rows(len(table), cluster, file)
    if CENTROID in names and CENTROID not in table.column_names:  # hive: the directory's name holds it
        table = table.append_column(CENTROID, pa.array(np.full(len(table), cluster.centroid, np.int32)))
    return table.select(names)


def open_buckets(url: str | UPath, storage_options: dict[str, Any] | None = None) -> Buckets:
    """The finished output of ``daskmeans assign`` in the directory `url`.

    Raises
    ------
    NotFoundError, OutputError
        `url` is not such a directory, or is unfinished.
    """
    path = UPath(url, **(storage_options or {}))
    found = manifest.read(path, "assign")
    parts = []
    for file in found["outputs"]:
        clusters, group = [], 0
        for centroid, rows, groups in file["clusters"]:
            clusters.append(Cluster(centroid, rows, file["path"], tuple(range(group, group + groups))))
            group += groups
        parts.append(Part(tuple(clusters)))
    if found["layout"] == "hive":
        parts = _packed(parts, config.get_bytes("bucket-bytes") // (4 * found["dimension"]))
    names = ("layout", "id_field", "embedding_field", "dimension", "rows", "n_clusters")
    return Buckets(
        path=path,
        metadata_fields=tuple(found["metadata_fields"]),
        parts=tuple(parts),
        manifest=found,
        **{name: found[name] for name in names},
    )


def _packed(parts: list[Part], target: int) -> list[Part]:
    """Neighbouring parts joined until each has about `target` rows."""
    packed: list[list[Cluster]] = []
    held = target
    for part in parts:
        if held >= target:
            packed.append([])
            held = 0
        packed[-1].extend(part.clusters)
        held += part.rows
    return [Part(tuple(clusters)) for clusters in packed]


def index_facts(assigned: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of an assign step tells of an index over the centroids, as ``ann``; nothing if it used none.

    Examples
    --------
    >>> index_facts({"rows": 7, "ann": {"recall": 0.99}}), index_facts({"rows": 7})
    ({'ann': {'recall': 0.99}}, {})
    """
    return {name: assigned[name] for name in ("ann",) if name in assigned}


def read_ids(buckets: Buckets, client: Client | None = None) -> pa.ChunkedArray:
    """Ids of all rows."""
    read, lean = delayed(_ids_of, pure=False), lean_of(buckets)
    columns = runtime.compute([read(lean, part) for part in buckets.parts], client=client)
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks])


def find_ids(buckets: Buckets, ids: pa.Array | pa.ChunkedArray, client: Client | None = None) -> pa.Table:
    """``id`` and ``centroid`` of the rows of `buckets` whose ids are among `ids`."""
    find, lean = delayed(_find_in, pure=False), lean_of(buckets)
    tables = runtime.compute([find(lean, part, ids) for part in buckets.parts if len(ids)], client=client)
    return pa.concat_tables([_located(ids.slice(0, 0), 0), *tables])


def _ids_of(buckets: Buckets, part: Part) -> pa.ChunkedArray:
    return pa.concat_tables(buckets.read_each(part.clusters, [buckets.id_field]))[0]


def _find_in(buckets: Buckets, part: Part, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    tables = buckets.read_each(part.clusters, [buckets.id_field])
    columns = [
        (cluster.centroid, table[0].cast(ids.type)) for cluster, table in zip(part.clusters, tables, strict=True)
    ]
    return pa.concat_tables([_located(column.filter(pc.is_in(column, ids)), centroid) for centroid, column in columns])


def _located(ids: pa.Array | pa.ChunkedArray, centroid: int) -> pa.Table:
    return pa.table({"id": ids, CENTROID: np.full(len(ids), centroid, np.int32)})
