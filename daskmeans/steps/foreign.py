"""Clusters that another tool wrote, in directories ``centroid=<i>``: they are written once more, as ``assign`` does.

What the files lack is worked out: distances are those of the rows, scaled to unit length, to the mean of their cluster.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import CENTROID, COSINE, L2, Buckets, open_buckets
from daskmeans.buckets.external_sort import regroup
from daskmeans.duplicates.decisions import NOTES, make_temporary_folder
from daskmeans.errors import DataError, NotFoundError, UsageError
from daskmeans.kernels.backend import CPU
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.sums import add_rows, compute_means, scale_for
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client, logger, task_key
from daskmeans.storage import manifest
from daskmeans.storage.step import open_step
from daskmeans.vectors.files import Input, refuse_overlap, translate_read_errors
from daskmeans.vectors.formats import format_of
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.matrix import to_column, to_matrix, vector_columns
from daskmeans.vectors.numbering import FIELD
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.partitioning import Partition
from daskmeans.vectors.reader import Reader
from daskmeans.vectors.source import Source

# A directory of one cluster, as NeMo Curator names it today, and did before 0.7.
FOLDER = re.compile(r"(?:centroid|nearest_cent)=(\d+)")
# Column of ids that NeMo Curator adds itself.
NEMO_ID = "_curator_dedup_id"


def find_cluster_folders(path: UPath) -> list[UPath]:
    """Return the directories of the clusters that another tool wrote into `path`; none if daskmeans wrote it."""
    with translate_read_errors(path):
        if not path.is_dir() or manifest.peek_manifest(path):
            return []
        return sorted((child for child in path.iterdir() if FOLDER.fullmatch(child.name)), key=str)


def holds_clusters(inputs: Sequence[Input], reading: ReadOptions) -> bool:
    """Whether `inputs` are the directory of clusters, ours or another tool's; else they are files of embeddings.

    Raises
    ------
    UsageError
        There are clusters among several inputs, or in the output of a run.
    """
    paths = reading.paths(inputs)
    made = [(manifest.peek_manifest(path) or {}).get("step") for path in paths]
    for path, step in zip(paths, made, strict=True):
        if step is None and manifest.peek_manifest(path / "clusters"):
            remedy = f"give {path / 'clusters'}, which it holds"
            raise UsageError("this is the output of a run", where=str(path), expected="clusters", remedy=remedy)
    known = [
        step not in (None, "embed", "apply") or bool(find_cluster_folders(path))
        for path, step in zip(paths, made, strict=True)
    ]
    if any(known) and len(paths) > 1:
        raise UsageError(
            "these are several inputs, and clusters among them",
            where=str(paths[known.index(True)]),
            expected="one directory of clusters, or files of embeddings",
            remedy="give one directory; --against takes others",
        )
    return any(known)


def open_clusters(
    path: UPath, out: UPath | None, reading: ReadOptions, overwrite: bool, client: Client | None
) -> Buckets:
    """Open the clusters in `path`; those of another tool are first written beside `out`, the output of `dedup`.

    Parameters
    ----------
    path : UPath
    out : UPath or None
        The clusters go into the directory beside it that has ``-clusters`` after its name; for None, into a temporary
        one. What an earlier call wrote there from the same files is used again.
    reading : ReadOptions
        How the files of another tool are read.
    overwrite : bool
    client : distributed.Client or None

    Raises
    ------
    NotFoundError, OutputError
        `path` holds no clusters, or unfinished ones.
    UsageError, DataError
        The files of another tool cannot be read as clusters.
    """
    folders = find_cluster_folders(path)
    if not folders:
        _refuse_parent(path)
        return open_buckets(path)
    client = current_client(client)
    target = make_temporary_folder() if out is None else out.parent / f"{out.name}-clusters"
    refuse_overlap(target, [path])
    source = _open_source(folders, reading, client)
    settings = {
        "layout": "bucketed",
        "id_field": source.id_field,
        "embedding_field": source.embedding_field,
        "metadata_fields": list(source.metadata_fields),
    }
    state, _ = manifest.status(manifest.peek_manifest(target), "assign", settings, source.identity())
    if state is manifest.State.DONE:
        logger.info("%s: clusters of another tool, as they were written to %s before", path, target)
    else:
        with _translate_row_errors(path):
            _write_clusters(path, source, target, settings, overwrite, client)
    return open_buckets(target)


@contextlib.contextmanager
def _translate_row_errors(path: UPath) -> Iterator[None]:
    """Name a way that there is for a bad row in the clusters of another tool: they are read without options."""
    try:
        yield
    except DataError as error:
        if "--" not in error.remedy:
            raise
        remedy = f"repair the row, or read all rows as embeddings: daskmeans run {path} --out OUT --on-bad-row skip"
        raise DataError(error.found, where=error.where, expected=error.expected, remedy=remedy) from None


def _refuse_parent(path: UPath) -> None:
    """Name the directory to give instead of `path` if that holds clusters of another tool one level further down."""
    with translate_read_errors(path):
        below = [] if manifest.peek_manifest(path) or not path.is_dir() else sorted(path.iterdir(), key=str)
    for child in below:
        if find_cluster_folders(child):
            raise NotFoundError(
                "the clusters are not here, but one directory further down",
                where=str(path),
                expected="a directory that holds a directory for each cluster",
                remedy=f"give {child}",
            )


def refuse_foreign_references(paths: Sequence[UPath]) -> None:
    """Refuse clusters of another tool where rows are compared with clusters that stay as they are."""
    for path in paths:
        if find_cluster_folders(path):
            raise UsageError(
                "these clusters are of another tool",
                where=f"--against {path}",
                expected="the output directory of `daskmeans assign` or `daskmeans dedup`",
                remedy=f"daskmeans dedup {path} --out OUT, then give OUT to --against",
            )


def _open_source(folders: list[UPath], reading: ReadOptions, client: Client | None) -> Source:
    """Open the files in `folders` with all their columns; metadata includes the distances that are there."""
    first = find_files(folders)[0]
    if format_of(first) != "parquet":
        raise DataError("the cluster is no Parquet", where=str(first), expected="files of Parquet")
    with translate_read_errors(first):
        schema = pq.read_schema(first.path, filesystem=first.fs)
    id_field = NEMO_ID if "id" not in schema.names and NEMO_ID in schema.names else reading.id_field
    if id_field not in schema.names and reading.id_from == FIELD:
        raise UsageError(
            f"there is no column {id_field!r}",
            where=str(first),
            expected=f"a column of ids, one of {', '.join(schema.names)}",
            remedy="rename that column to 'id'",
        )
    found = vector_columns(schema) if reading.embedding_field is None else [reading.embedding_field]
    named = {id_field, CENTROID, "nearest_cent", *found}
    others = tuple(name for name in schema.names if name not in named)
    opened = replace(reading, id_field=id_field, metadata_fields=others, on_bad_row="error")
    return opened.open(folders, client, allow_zero=False)


def _write_clusters(
    path: UPath, source: Source, target: UPath, settings: dict[str, Any], overwrite: bool, client: Client | None
) -> None:
    """Write the rows of `source` into `target`, in the order of their clusters."""
    missing = [name for name in (L2, COSINE) if name not in source.metadata_fields]
    logger.info(
        "%s: clusters of another tool; their %s rows are written to %s%s",
        path,
        f"{source.rows:,}",
        target,
        f", with what they lack: {' and '.join(missing)}, to the mean of the cluster's unit vectors" if missing else "",
    )
    check_ids(source, "error", client)
    with open_step(
        target, "assign", settings, source.identity(), overwrite=overwrite, keep=[NOTES], client=client,
        need=8 * source.rows * source.dimension,
    ) as step:  # fmt: skip
        labels, means = _find_means(source, client) if missing else (np.empty(0, np.int32), np.empty((0, 0)))
        own = [np.flatnonzero(np.isin(labels, _file_labels(each))) for each in source.partitions]
        centers = [(labels[places], means[places]) for places in own]
        frame = dd.from_map(
            _read_clusters, list(source.partitions), centers, reader=source.reader, meta=_make_meta(source),
            label="read-clusters", enforce_metadata=False,
        )  # fmt: skip
        step.facts |= regroup(
            frame, target, layout="bucketed", id_field=source.id_field, embedding_field=source.embedding_field,
            client=client,
        ) | {"rejected": 0}  # fmt: skip
        source.check_unchanged()
        manifest.check_row_counts("assign", source.rows, written=step.facts["rows"])


def _file_labels(partition: Partition) -> np.ndarray:
    """The cluster of each slice of `partition`, from the name of the directory of its file; int32."""
    return np.array([FOLDER.findall(piece.path.path)[-1] for piece in partition.slices], np.int32)


def _row_labels(partition: Partition) -> np.ndarray:
    """The cluster of each row of `partition`; int32."""
    return np.repeat(_file_labels(partition), [piece.rows for piece in partition.slices])


def _find_means(source: Source, client: Client | None) -> tuple[np.ndarray, np.ndarray]:
    """The clusters (int32, ascending) and the mean of the unit vectors of each (float32).

    Sums are integers, so that no order of the rows matters.
    """
    scale, task = scale_for(1.0, source.rows), delayed(_sum_rows, pure=False)
    tasks = [task(source.reader, each, scale, dask_key_name=task_key("cluster-sums")) for each in source.partitions]
    labels = np.unique(np.concatenate([_file_labels(each) for each in source.partitions]))
    sums, counts = np.zeros((len(labels), source.dimension), np.int64), np.zeros(len(labels), np.int64)
    for mine, part_sums, part_counts in executor.compute(tasks, "find means", client):
        places = np.searchsorted(labels, mine)
        sums[places] += part_sums
        counts[places] += part_counts
    return labels, compute_means(sums, counts, scale, np.zeros(sums.shape, np.float32))


def _sum_rows(reader: Reader, partition: Partition, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels in a partition, and the scaled sums and the counts of their unit vectors."""
    X = _read_unit_vectors(reader.table(partition), reader.schema.names[1])
    labels, rows = np.unique(_row_labels(partition), return_inverse=True)
    sums, counts = np.zeros((len(labels), X.shape[1]), np.int64), np.zeros(len(labels), np.int64)
    add_rows(X, rows, scale, sums, counts)
    return labels, sums, counts


def _read_unit_vectors(table: Any, vectors: str) -> np.ndarray:
    X = np.array(to_matrix(table[vectors]))
    normalize_rows(X)
    return X


def _read_clusters(partition: Partition, centers: tuple[np.ndarray, np.ndarray], *, reader: Reader) -> pd.DataFrame:
    """The rows of a partition with their cluster and their distances; `centers` are its clusters and their means."""
    table, vectors, labels = reader.table(partition), reader.schema.names[1], _row_labels(partition)
    found: dict[str, Any] = {CENTROID: labels}
    known, means = centers
    if len(known):
        X, places = _read_unit_vectors(table, vectors), np.searchsorted(known, labels)
        found[L2] = np.sqrt(CPU.squared_distances(X, means, places)).astype(np.float32)
        found[COSINE] = CPU.cosine_distances(X, means, places).astype(np.float32)
    for name in (L2, COSINE):
        if name in table.column_names:
            found[name] = _check_distances(table[name].to_numpy(), name, partition)
    rows = table.drop_columns([name for name in (L2, COSINE) if name in table.column_names])
    frame = rows.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    return frame.assign(**{vectors: to_column(to_matrix(table[vectors]))}, **found)


def _check_distances(values: np.ndarray, name: str, partition: Partition) -> np.ndarray:
    distances = values.astype(np.float32)
    if not np.isfinite(distances).all():
        raise DataError(
            f"column {name!r} has a value that is no distance",
            where=", ".join(dict.fromkeys(str(piece.path) for piece in partition.slices)),
            expected="finite numbers",
            remedy=f"write the files without the column {name!r}: it is then worked out",
        )
    return distances


def _make_meta(source: Source) -> pd.DataFrame:
    """An empty frame with the columns of :func:`_read_clusters`."""
    schema, kept = source.reader.schema, [name for name in source.reader.schema.names if name not in (L2, COSINE)]
    empty = schema.empty_table().select(kept).to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    distances = {name: np.empty(0, np.float32) for name in (L2, COSINE)}
    blank = to_column(np.empty((0, source.dimension), np.float32))
    return empty.assign(**{schema.names[1]: blank, CENTROID: np.empty(0, np.int32)}, **distances)


def describe_folders(path: UPath) -> dict[str, Any]:
    """What `info` says of the clusters of another tool in `path`; empty if there are none."""
    folders = find_cluster_folders(path)
    return {"kind": "clusters of another tool", "clusters_with_rows": len(folders)} if folders else {}
