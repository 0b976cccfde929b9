"""Rows grouped by cluster on disk, read a cluster at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans import config, manifest
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


@contextlib.contextmanager
def _explained(file: UPath) -> Iterator[None]:
    """Turn what Arrow raises about `file` into an error that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the file cannot be read ({error})", where=str(file), remedy="run `daskmeans assign` again"
        ) from None


def _checked(table: pa.Table, cluster: Cluster, file: UPath, names: list[str]) -> pa.Table:
    """The columns `names` of the rows of `cluster`, which are all there."""
    if len(table) != cluster.rows:
        raise DataError(
            f"cluster {cluster.centroid} has {len(table)} rows",
            where=str(file),
            expected=f"{cluster.rows}, as {manifest.NAME} says",
            remedy="run `daskmeans assign` again",
        )
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
