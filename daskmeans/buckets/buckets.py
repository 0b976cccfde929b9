"""Rows grouped by cluster on disk, read one cluster at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.buckets.pieces import BucketFiles, Piece
from daskmeans.runtime import executor
from daskmeans.storage import manifest
from daskmeans.storage.result import Result
from daskmeans.vectors.files import open_path

CENTROID, L2, COSINE = "centroid", "l2_dist_to_cent", "cosine_dist_to_cent"


@dataclass(frozen=True)
class Cluster:
    """The location of the rows of one cluster: in one file, or after an append in several."""

    centroid: int
    rows: int
    pieces: tuple[Piece, ...]

    @property
    def file(self) -> str | None:
        """The file that holds all its rows; None if there are several."""
        return self.pieces[0].file if len(self.pieces) == 1 else None


class Part:
    """Adjacent clusters that are worth one task.

    This is not a dataclass: for each task with one as an argument, Dask traverses its fields, down to every piece.
    """

    def __init__(self, clusters: tuple[Cluster, ...]) -> None:
        self.clusters = clusters

    @property
    def rows(self) -> int:
        """Number of rows of all its clusters."""
        return sum(c.rows for c in self.clusters)

    def centroids(self) -> np.ndarray:
        """Return the centroid of each row; int32, shape (rows,)."""
        return np.repeat([np.int32(c.centroid) for c in self.clusters], [c.rows for c in self.clusters])


@dataclass(frozen=True, repr=False)
class Buckets(Result):
    """A finished directory of rows grouped by cluster.

    Attributes
    ----------
    path : UPath
    layout : {"bucketed", "hive"}
    id_field, embedding_field : str
    metadata_fields : tuple of str
    dimension, rows, n_clusters : int
    parts : tuple of Part
        Parts in the order of the centroids; each is worth one task.
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

    def figures(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rows", "n_clusters", "dimension", "layout")}

    def clusters(self) -> Iterator[Cluster]:
        """Yield all clusters that have rows, in the order of the centroids."""
        return (cluster for part in self.parts for cluster in part.clusters)

    def read(self, cluster: Cluster, columns: list[str] | None = None) -> pa.Table:
        """Read the rows of `cluster`, sorted by (``l2_dist_to_cent``, id); no page of another cluster is read.

        Parameters
        ----------
        cluster : Cluster
        columns : list of str, optional
            Default: all.
        """
        return next(self.read_each([cluster], columns))

    def read_slices(self, slices: Iterable[tuple[Cluster, int, int]], columns: list[str]) -> Iterator[pa.Table]:
        """Read `columns` of slices of clusters, each given as (cluster, start, stop).

        A table holds the rows of one file, in the order given, or the rows of a cluster that lies in several files.
        Only row groups with some of the rows are read.
        """
        files = BucketFiles(self.path)
        for name, mine in groupby(slices, lambda piece: piece[0].file):
            if name is None:
                yield from (self._read_merged(files, *each, columns) for each in mine)
            else:
                yield files.read([(cluster.pieces[0], start, stop) for cluster, start, stop in mine], columns)

    def read_each_slice(self, slices: Iterable[tuple[Cluster, int, int]], columns: list[str]) -> Iterator[pa.Table]:
        """Read `columns` as :meth:`read_slices` does, but one table per slice; recently read files stay open."""
        files = BucketFiles(self.path)
        for cluster, start, stop in slices:
            if cluster.file is None:
                yield self._read_merged(files, cluster, start, stop, columns)
            else:
                yield files.read([(cluster.pieces[0], start, stop)], columns)

    def read_each(self, clusters: Iterable[Cluster], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of each of `clusters`, as from :meth:`read`."""
        names = columns or [self.id_field, self.embedding_field, *self.metadata_fields, CENTROID, L2, COSINE]
        given = list(clusters)
        tables = self.read_each_slice([(cluster, 0, cluster.rows) for cluster in given], names)
        for cluster, table in zip(given, tables, strict=True):
            if CENTROID in names and CENTROID not in table.column_names:  # hive: it is in the directory's name
                table = table.append_column(CENTROID, pa.array(np.full(len(table), cluster.centroid, np.int32)))
            yield table.select(names)

    def read_part(self, part: Part, columns: list[str]) -> pa.Table:
        """Read `columns` of all rows of `part`, cluster by cluster."""
        table = pa.concat_tables(self.read_slices([(cluster, 0, cluster.rows) for cluster in part.clusters], columns))
        if CENTROID in columns and CENTROID not in table.column_names:  # hive: it is in the directories' names
            table = table.append_column(CENTROID, pa.array(part.centroids()))
        return table.select(columns)

    def _read_merged(self, files: BucketFiles, cluster: Cluster, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Read `columns` of the rows of `cluster` from `start` to `stop`, which lie in several files."""
        keys = [(L2, "ascending"), (self.id_field, "ascending")]
        stored = [files.read([(piece, 0, piece.rows)], [name for name, _ in keys]) for piece in cluster.pieces]
        order = pc.sort_indices(pa.concat_tables(stored), keys).to_numpy()[start:stop]
        taken = np.sort(order)  # a contiguous range of each piece, as pieces are sorted too
        firsts = np.cumsum([0, *(piece.rows for piece in cluster.pieces)])
        runs = pairwise(np.searchsorted(taken, firsts))
        tables = [
            files.read([(piece, int(taken[low] - first), int(taken[high - 1] - first) + 1)], columns)
            for piece, first, (low, high) in zip(cluster.pieces, firsts, runs, strict=False)
            if low < high
        ]
        return pa.concat_tables(tables).take(pa.array(np.searchsorted(taken, order)))

    def schema(self) -> pa.Schema:
        """Return the columns of the files, in order; files of the hive layout have no ``centroid``."""
        return BucketFiles(self.path).schema(next(self.clusters()).pieces[0].file)


def strip_parts(buckets: Buckets) -> Buckets:
    """Return `buckets` without the list of all clusters, for tasks that are given what to read."""
    return replace(buckets, parts=(), manifest={})


def open_buckets(url: str | UPath, storage_options: dict[str, Any] | None = None) -> Buckets:
    """Open the finished output of ``daskmeans assign`` in the directory `url`.

    Raises
    ------
    NotFoundError, OutputError
        `url` is not such a directory, or is unfinished.
    """
    path = open_path(url, storage_options)
    found = manifest.read_manifest(path, "assign")
    parts = [Part(tuple(_parse_clusters(file))) for file in found["outputs"]]
    if found["layout"] == "hive" or found.get("appended"):
        target = config.get_bytes("bucket-bytes") // (4 * found["dimension"])
        if found["layout"] == "bucketed":  # buckets may be smaller, to occupy many threads
            target = min(target, max(part.rows for part in parts))
        parts = _pack_parts(_merge_clusters(cluster for part in parts for cluster in part.clusters), target)
    names = ("layout", "id_field", "embedding_field", "dimension", "rows", "n_clusters")
    return Buckets(
        path=path,
        metadata_fields=tuple(found["metadata_fields"]),
        parts=tuple(parts),
        manifest=found,
        **{name: found[name] for name in names},
    )


def as_of(buckets: Buckets, made: str) -> Buckets | None:
    """Return `buckets` as of the identity `made`, as recorded by steps that built on them; None if they never had it.

    Later appended batches are left out of the row count and the manifest. The result is not meant for reading rows.
    """
    appended = buckets.manifest.get("appended", [])
    for count in range(len(appended), -1, -1):
        before = buckets.manifest | {"appended": appended[:count]}
        if manifest.identity_hash(before) == made:
            rows = buckets.rows - sum(batch["rows"] for batch in appended[count:])
            return replace(buckets, parts=(), rows=rows, manifest=before)
    return None


def _parse_clusters(file: dict[str, Any]) -> Iterator[Cluster]:
    """Yield the clusters in a file, from its manifest entry."""
    group = 0
    for centroid, rows, groups in file["clusters"]:
        piece = Piece(centroid, rows, file["path"], tuple(range(group, group + groups)))
        yield Cluster(centroid, rows, (piece,))
        group += groups


def _merge_clusters(clusters: Iterable[Cluster]) -> Iterator[Cluster]:
    """Merge those of `clusters` with the same centroid, in the order of the centroids."""
    for centroid, same in groupby(sorted(clusters, key=attrgetter("centroid")), attrgetter("centroid")):
        pieces = tuple(piece for cluster in same for piece in cluster.pieces)
        yield Cluster(centroid, sum(piece.rows for piece in pieces), pieces)


def _pack_parts(clusters: Iterable[Cluster], target: int) -> list[Part]:
    """Group adjacent clusters into parts of about `target` rows each."""
    packed: list[list[Cluster]] = []
    held = target
    for cluster in clusters:
        if held >= target:
            packed.append([])
            held = 0
        packed[-1].append(cluster)
        held += cluster.rows
    return [Part(tuple(each)) for each in packed]


def index_facts(assigned: dict[str, Any]) -> dict[str, Any]:
    """Return what an assign manifest records about an index over the centroids, as ``ann``; empty without an index.

    Examples
    --------
    >>> index_facts({"rows": 7, "ann": {"recall": 0.99}}), index_facts({"rows": 7})
    ({'ann': {'recall': 0.99}}, {})
    """
    return {name: assigned[name] for name in ("ann",) if name in assigned}


def read_ids(buckets: Buckets, client: Client | None = None) -> pa.ChunkedArray:
    """Read the ids of all rows."""
    read, lean = delayed(_read_part_ids, pure=False), strip_parts(buckets)
    columns = executor.compute([read(lean, part) for part in buckets.parts], client=client)
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks])


def find_ids(buckets: Buckets, ids: pa.Array | pa.ChunkedArray, client: Client | None = None) -> pa.Table:
    """Return ``id`` and ``centroid`` of the rows of `buckets` whose ids are among `ids`."""
    find, lean, shared = delayed(_find_part_ids, pure=False), strip_parts(buckets), executor.broadcast(ids, client)
    tables = executor.compute([find(lean, part, shared) for part in buckets.parts if len(ids)], client=client)
    return pa.concat_tables([_id_table(ids.slice(0, 0), np.empty(0, np.int32)), *tables])


def _read_part_ids(buckets: Buckets, part: Part) -> pa.ChunkedArray:
    return buckets.read_part(part, [buckets.id_field])[0]


def _find_part_ids(buckets: Buckets, part: Part, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    column = _read_part_ids(buckets, part).cast(ids.type)
    among = pc.is_in(column, ids)  # once for all clusters: each call hashes the ids
    return _id_table(column.filter(among), part.centroids()[among.to_numpy()])


def _id_table(ids: pa.Array | pa.ChunkedArray, centroids: np.ndarray) -> pa.Table:
    return pa.table({"id": ids, CENTROID: centroids})
