"""What a deduplication has found."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from upath import UPath

from daskmeans import manifest, runtime
from daskmeans.errors import DataError, NotFoundError
from daskmeans.kernels.pairs import pair_score
from daskmeans.kernels.products import normalize_rows
from daskmeans.vectors.buckets import Buckets, open_buckets
from daskmeans.vectors.files import Input, open_path, reading
from daskmeans.vectors.matrix import to_matrix


@dataclass(frozen=True)
class Duplicate:
    """A row that was dropped, next to the one that stays in its place."""

    id: Any
    score: float
    """Similarity to the row that stays."""
    reason: str
    """``exact`` or ``semantic``."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A row that stays, and the rows that it stands for, the least similar first."""

    id: Any
    centroid: int
    metadata: dict[str, Any]
    duplicates: tuple[Duplicate, ...]


class DedupResult:
    """Decisions of a deduplication, read from its directory when they are asked for.

    Attributes
    ----------
    path : UPath
        The directory.
    summary : dict
        Content of ``summary.json``.

    See Also
    --------
    open_decisions
    """

    def __init__(self, path: UPath, clusters: UPath) -> None:
        self.path, self._clusters = path, clusters
        self.summary: dict[str, Any] = manifest.read_json(path / "summary.json")

    @property
    def recall(self) -> dict[str, Any]:
        """How much the search could find: of the rows ``sampled``, those ``with_twin`` anywhere; the share of the
        latter with a twin in their own cluster (``recall``, None without any), and its 95 % interval (``low``,
        ``high``)."""
        return dict(self.summary["recall"])

    @property
    def decisions(self) -> dd.DataFrame:
        """All decisions, one row per input row, a partition a file."""
        return self._frame(None)

    @property
    def kept(self) -> dd.DataFrame:
        """Decisions on the rows that stay."""
        return self._frame(True)

    @property
    def removed(self) -> dd.DataFrame:
        """Decisions on the rows that go."""
        return self._frame(False)

    def groups(self, limit: int = 10) -> list[Group]:
        """Rows that stay with the rows they stand for, the most instructive groups first.

        Groups come in the order of their least similar semantic duplicate (by `cosine_sim_score`), those closest to the
        threshold first; groups of exact copies alone come last. Metadata, and the scores with the row that stays, come
        from the clusters.

        Parameters
        ----------
        limit : int, default 10
            Number of groups.

        Returns
        -------
        list of Group

        Raises
        ------
        NotFoundError
            The clusters are no longer there.
        """
        buckets = open_buckets(self._clusters)
        found = runtime.compute([delayed(_find_groups, pure=False)(file, limit) for file in decision_files(self.path)])
        rows = pa.concat_tables(found)
        heads = _heads(rows).slice(0, limit)
        clusters = {cluster.centroid: cluster for cluster in buckets.clusters()}
        return [
            _describe(
                buckets, clusters.get(head["centroid"]), head, rows.filter(pc.equal(rows["kept_id"], head["kept_id"]))
            )
            for head in heads.to_pylist()
        ]

    def _frame(self, keep: bool | None) -> dd.DataFrame:
        files = decision_files(self.path)
        with reading(files[0]):
            schema = pq.read_schema(files[0].path, filesystem=files[0].fs)
        return dd.from_map(_read_frame, files, keep=keep, meta=_to_pandas(schema.empty_table()))

    def __repr__(self) -> str:
        return f"DedupResult({', '.join(f'{name}={value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._facts().items())
        return f"<table>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        s, recall = self.summary, self.recall
        share = "not measured" if not recall["sampled"] else "no row of the sample has a twin"
        if recall["recall"] is not None:
            share = f"{recall['recall']:.2%} ({recall['low']:.2%} to {recall['high']:.2%})"
        return {
            "rows": f"{s['rows']:,}",
            "kept": f"{s['kept']:,}",
            "exact": f"{s['removed']['exact']:,}",
            "semantic": f"{s['removed']['semantic']:,}",
            "threshold": str(s["threshold"]),
            "rule": s["rule"],
            "keep": str(s["keep"]),
            "recall": share,
        }


def open_decisions(path: Input, storage_options: Mapping[str, Any] | None = None) -> DedupResult:
    """Result of an earlier deduplication.

    Parameters
    ----------
    path : path
        Directory that `dedup` wrote.
    storage_options : dict, optional
        Options of the filesystem.

    Raises
    ------
    NotFoundError
        The directory is not there, or is something else.
    OutputError
        It is unfinished.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-result/in/rows.jsonl").write_text(lines)
    >>> km = dkm.KMeans(n_clusters=2)
    >>> result = dkm.run("memory://doctest-result/in", "memory://doctest-result/out", km, threshold=0.9, overwrite=True)
    >>> again = dkm.open_decisions("memory://doctest-result/out/dedup")
    >>> again.summary["kept"], [d.id for d in again.groups()[0].duplicates]
    (2, ['a'])
    """
    folder = open_path(path, storage_options)
    made = manifest.read(folder, "dedup")
    return DedupResult(folder, open_path(made["inputs"]["clusters"], storage_options))


def decision_files(path: UPath) -> list[UPath]:
    """Files of the decisions in directory `path`, in the order of the clusters."""
    files = sorted((path / "decisions").glob("part-*.parquet"), key=lambda file: file.name)
    if not files:
        raise NotFoundError("the decisions are no longer there", where=str(path), remedy="run `daskmeans dedup` again")
    return files


def _read_frame(file: UPath, keep: bool | None) -> pd.DataFrame:
    with reading(file):
        table = pq.read_table(file.path, filesystem=file.fs)
    return _to_pandas(table if keep is None else table.filter(pc.equal(table["keep"], keep)))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def _find_groups(file: UPath, limit: int) -> pa.Table:
    """Dropped rows of the `limit` most instructive groups of `file`."""
    with reading(file):
        table = pq.read_table(file.path, filesystem=file.fs)
    rows = table.filter(table["kept_id"].is_valid())
    return rows.filter(pc.is_in(rows["kept_id"], _heads(rows)["kept_id"].slice(0, limit)))


def _heads(rows: pa.Table) -> pa.Table:
    """Groups in `rows`: kept_id, centroid and the smallest semantic score, in order."""
    semantic = pc.if_else(pc.equal(rows["reason"], "semantic"), rows["cosine_sim_score"], pa.scalar(None, pa.float32()))
    heads = rows.append_column("score", semantic).group_by("kept_id").aggregate([("score", "min"), ("centroid", "min")])
    heads = heads.rename_columns({"score_min": "score", "centroid_min": "centroid"})
    return heads.sort_by([("score", "ascending"), ("kept_id", "ascending")])


def _describe(buckets: Buckets, cluster: Any, head: dict[str, Any], rows: pa.Table) -> Group:
    """Scores and metadata of the group of `head`, whose dropped rows are `rows`."""
    ids = pa.concat_arrays([pa.array([head["kept_id"]], rows["id"].type), *rows["id"].chunks])
    columns = [buckets.id_field, buckets.embedding_field, *buckets.metadata_fields]
    table = buckets.read(cluster, columns) if cluster else pa.table({name: pa.nulls(0) for name in columns})
    places = pc.index_in(ids, table[buckets.id_field])
    if places.null_count:
        raise DataError(
            f"rows of the decisions are not in cluster {head['centroid']}",
            where=str(buckets.path),
            expected="the clusters that the decisions were made from",
            remedy="run `daskmeans dedup` again",
        )
    table = table.take(places)
    X = np.array(to_matrix(table[buckets.embedding_field]))
    normalize_rows(X)
    scores = [float(pair_score(X[0], x)) for x in X[1:]]
    metadata = table.select(list(buckets.metadata_fields)).to_pylist()
    duplicates = map(Duplicate, rows["id"].to_pylist(), scores, rows["reason"].to_pylist(), metadata[1:])
    return Group(head["kept_id"], head["centroid"], metadata[0], tuple(sorted(duplicates, key=lambda d: d.score)))
