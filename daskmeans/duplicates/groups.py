"""Groups of duplicates, and rows looked up by id, for people to review."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.buckets.buckets import Buckets, Cluster
from daskmeans.errors import DataError
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.within_cluster import pair_score
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.matrix import to_matrix


@dataclass(frozen=True)
class Duplicate:
    """A row that was dropped, with its similarity to the row that stays in its place."""

    id: Any
    score: float
    """Similarity to the row that stays."""
    reason: str
    """``exact`` or ``semantic``."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A row that stays, and the rows that were dropped for it, the least similar first."""

    id: Any
    centroid: int
    metadata: dict[str, Any]
    duplicates: tuple[Duplicate, ...]


class ClusterRow(NamedTuple):
    """A row as stored in the clusters."""

    vector: np.ndarray
    """float32, shape (d,), of unit length."""
    centroid: int
    metadata: dict[str, Any]


def read_decisions(file: UPath, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the decisions in `file`, or some `columns` of them."""
    with translate_read_errors(file):
        table = with_kept_score(pq.read_table(file.path, filesystem=file.fs, **VERIFY_PAGES))
    return table if columns is None else table.select(list(columns))


def with_kept_score(table: pa.Table) -> pa.Table:
    """Add ``kept_score`` where an earlier version did not store it; null unless ``max_id`` is the row that stays."""
    if "kept_score" in table.column_names:
        return table
    same = pc.equal(table["kept_id"], table["max_id"])
    score = pc.if_else(same, table["cosine_sim_score"], pa.scalar(None, pa.float32()))
    return table.add_column(table.column_names.index("kept_id") + 1, "kept_score", score)


def find_first_groups(file: UPath, limit: int) -> pa.Table:
    """The `limit` most instructive groups of `file`, as far as its rows alone show."""
    return select_first_groups(read_decisions(file), limit)


def select_first_groups(table: pa.Table, limit: int) -> pa.Table:
    """The `limit` most instructive groups of the decisions in `table`."""
    rows = table.filter(table["kept_id"].is_valid())
    semantic = pc.if_else(pc.equal(rows["reason"], "semantic"), rows["kept_score"], pa.scalar(None, pa.float32()))
    return group_rows(pa.table({"kept_id": rows["kept_id"], "score": semantic})).slice(0, limit)


def group_rows(scored: pa.Table) -> pa.Table:
    """Each kept_id of `scored` with its smallest score, ascending; those without a score (copies only) come last."""
    in_order = scored.take(pc.sort_indices(scored, [("score", "ascending"), ("kept_id", "ascending")]))
    ids = in_order["kept_id"].combine_chunks()
    return in_order.take(pc.index_in(pc.unique(ids), ids))


def find_members(file: UPath, heads: pa.Array) -> pa.Table:
    """The rows of `file` that were dropped for one of `heads`."""
    table = read_decisions(file)
    return table.filter(pc.is_in(table["kept_id"], heads))


def find_rows(file: UPath, ids: pa.Array) -> pa.Table:
    """Id and cluster of the rows of `file` whose ids are among `ids`."""
    with translate_read_errors(file):
        table = pq.read_table(file.path, filesystem=file.fs, **VERIFY_PAGES, columns=["id", "centroid"])
    return table.filter(pc.is_in(table["id"], ids))


def look_up_rows(buckets: Buckets, rows: pa.Table) -> dict[Any, ClusterRow]:
    """Read the rows of `buckets` with the ids and clusters in `rows`; the result is keyed by id."""
    found: dict[Any, ClusterRow] = {}
    clusters = {cluster.centroid: cluster for cluster in buckets.clusters()}
    for centroid, ids in rows.to_pandas().groupby("centroid")["id"].agg(list).items():
        table = _take_cluster_rows(buckets, clusters.get(centroid), pa.array(ids, rows["id"].type))
        X = np.array(to_matrix(table[buckets.embedding_field]))
        normalize_rows(X)
        metadata = table.select(list(buckets.metadata_fields)).to_pylist()
        found |= {id_: ClusterRow(x, int(centroid), facts) for id_, x, facts in zip(ids, X, metadata, strict=True)}
    return found


def _take_cluster_rows(buckets: Buckets, cluster: Cluster | None, ids: pa.Array) -> pa.Table:
    """Read the rows of `cluster` with these ids."""
    columns = [buckets.id_field, buckets.embedding_field, *buckets.metadata_fields]
    table = buckets.read(cluster, columns) if cluster else pa.table({name: pa.nulls(0) for name in columns})
    places = pc.index_in(ids, table[buckets.id_field].cast(ids.type))
    if places.null_count:
        raise DataError(
            f"rows of the decisions are not in cluster {cluster.centroid if cluster else '?'}",
            where=str(buckets.path),
            expected="the clusters that the decisions were made from",
            remedy="run `daskmeans dedup` again",
        )
    return table.take(places)


def describe_group(head: Any, rows: list[dict[str, Any]], known: dict[Any, ClusterRow]) -> Group:
    """The group of `head`, for which `rows` were dropped; scores are computed with `head`."""
    duplicates = [
        Duplicate(row["id"], float(pair_score(known[head].vector, mine.vector)), row["reason"], mine.metadata)
        for row in rows
        for mine in [known[row["id"]]]
    ]
    in_order = tuple(sorted(duplicates, key=lambda d: d.score))
    return Group(head, known[head].centroid, known[head].metadata, in_order)
