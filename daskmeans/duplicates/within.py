"""The search inside clusters: compare rows with those of their own cluster only, and decide at once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from dask import delayed
from dask.delayed import Delayed
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.buckets.buckets import Buckets, Cluster, Part, strip_parts
from daskmeans.duplicates.decide import decide_cluster, find_nearest_in_run
from daskmeans.duplicates.decisions import summarize_decisions
from daskmeans.duplicates.ranking import columns_to_read, rank
from daskmeans.duplicates.settings import DedupSettings
from daskmeans.duplicates.table import to_table, write_table
from daskmeans.errors import MemoryForecastError
from daskmeans.kernels.hashing import hash_column, sample_limit
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.within_cluster import NearestEarlier
from daskmeans.pairs import recall
from daskmeans.pairs.memory import dedup_bytes
from daskmeans.runtime import executor, resources
from daskmeans.runtime.client import n_threads, task_key
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.matrix import to_matrix

# A cluster, and the start and stop of a range of its rows.
ClusterSlice = tuple[Cluster, int, int]


def check_largest_cluster(buckets: Buckets, client: Client | None) -> None:
    """Refuse clusters of which the largest does not fit into a task's memory."""
    have = resources.memory_per_task(client)
    largest = max(buckets.clusters(), key=lambda cluster: cluster.rows)
    need = dedup_bytes(largest.rows, buckets.dimension)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"cluster {largest.centroid} with {largest.rows:,} rows needs {format_bytes(need)}, "
            f"and a task has {format_bytes(have)}",
            where=str(buckets.path),
            remedy="fit with more --n-clusters, or give workers a higher --memory-limit or fewer --threads-per-worker",
        )


def search_clusters(
    buckets: Buckets, settings: DedupSettings, out: UPath, start: float, client: Client | None, tuning: Tuning = DEFAULT
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Decide on all rows; return the summary, and the files of decisions with their row counts.

    `start` is the value of :func:`time.perf_counter` when the work began.
    """
    run = uuid.uuid4().hex
    folder = out / "decisions"
    folder.mkdir()
    wanted = config.get("recall-sample")
    limit = sample_limit(buckets.rows, wanted)
    tile_bytes = config.get_bytes("tile-bytes")
    files = [folder / f"part-{i:05d}.parquet" for i in range(len(buckets.parts))]
    task, lean = delayed(decide_part, pure=False), strip_parts(buckets)
    precomputed = _split_large_clusters(buckets, settings, tile_bytes, client, tuning)
    tasks = [
        task(
            lean, part, settings, limit, file, tile_bytes,
            {c.centroid: precomputed[c.centroid] for c in part.clusters if c.centroid in precomputed},
            dask_key_name=f"dedup-{run}-{i}",
        )
        for i, (part, file) in enumerate(zip(buckets.parts, files, strict=True))
    ]  # fmt: skip
    done = executor.compute(tasks, label="dedup", client=client)
    sample = recall.join_samples([sample for _, sample in done], wanted)
    found = _measure_recall(buckets, sample, settings, tile_bytes, run, client, tuning)
    return summarize_decisions(buckets, settings, files, [counts for counts, _ in done], found, start, client)


def _split_large_clusters(
    buckets: Buckets, settings: DedupSettings, tile_bytes: int, client: Client | None, tuning: Tuning
) -> dict[int, list[Delayed]]:
    """Tasks that compare the rows of large clusters, by centroid, so that no thread works on one when others are idle.

    Each task reads its cluster again, which is cheap beside comparing. Without a client, there are no more tasks than
    fit into the memory of this process; for workers, :func:`check_largest_cluster` has checked the memory.
    """
    threads, total = n_threads(client), sum(cluster.rows**2 for cluster in buckets.clusters())
    task, lean = delayed(find_nearest_in_cluster, pure=False), strip_parts(buckets)
    found = {}
    for cluster in buckets.clusters() if threads > 1 else ():
        runs = -(-2 * threads * cluster.rows**2 // total)
        if client is None:
            runs = min(runs, resources.memory_to_keep() // dedup_bytes(cluster.rows, buckets.dimension))
        if runs > 1 and cluster.rows >= tuning.task_rows:
            found[cluster.centroid] = [
                task(lean, cluster, settings, i, runs, tile_bytes, dask_key_name=task_key("dedup-nearest"))
                for i in range(runs)
            ]
    return found


def find_nearest_in_cluster(
    buckets: Buckets, cluster: Cluster, settings: DedupSettings, run: int, runs: int, tile_bytes: int
) -> NearestEarlier:
    """Read `cluster`, and call :func:`find_nearest_in_run` on its ranked rows."""
    ((_, table, X),) = read_clusters(
        buckets, [(cluster, 0, cluster.rows)], columns_to_read(settings.keep, buckets.id_field)
    )
    order = rank(table, settings.keep, buckets.id_field, settings.random_state)
    return find_nearest_in_run(X[order], run, runs, tile_bytes)


def decide_part(
    buckets: Buckets,
    part: Part,
    settings: DedupSettings,
    limit: int,
    file: UPath,
    tile_bytes: int,
    precomputed: dict[int, list[NearestEarlier]],
) -> tuple[list[int], recall.RowSample]:
    """Write the decisions on the rows of `part` to `file`, in the order of the clusters.

    `precomputed` has the results of :func:`find_nearest_in_cluster` for large clusters, by centroid.

    Returns the numbers of rows kept, of exact copies and of semantic duplicates, and the part's rows for the recall
    sample.
    """
    whole = [(cluster, 0, cluster.rows) for cluster in part.clusters]
    tables, samples = [], []
    for (cluster, _, _), table, X in read_clusters(buckets, whole, columns_to_read(settings.keep, buckets.id_field)):
        ids = table[buckets.id_field].combine_chunks()
        samples.append(recall.take_sample(hash_column(ids, settings.random_state), cluster.centroid, X, limit))
        order = rank(table, settings.keep, buckets.id_field, settings.random_state)
        X = X[order]
        decided = decide_cluster(
            X, np.float32(settings.threshold), settings.rule, tile_bytes, precomputed.get(cluster.centroid, ())
        )
        tables.append(to_table(ids.take(pa.array(order)), decided, cluster.centroid).take(np.argsort(order)))
        del X  # before the next cluster is read
    table = pa.concat_tables(tables)
    return write_table(table, file), recall.join_samples(samples, len(table))


def read_clusters(
    buckets: Buckets, slices: Sequence[ClusterSlice], columns: list[str]
) -> Iterator[tuple[ClusterSlice, pa.Table, np.ndarray]]:
    """Read rows of clusters: `columns` of them, and their unit vectors (float32, shape (rows, d), a copy)."""

    def to_unit(of: ClusterSlice, table: pa.Table) -> tuple[ClusterSlice, pa.Table, np.ndarray]:
        X = np.array(to_matrix(table[buckets.embedding_field], f"{buckets.path}, cluster {of[0].centroid}"))
        normalize_rows(X)
        return of, table.select(columns), X

    # No reference to a cluster is held here while the next one is read.
    yield from map(to_unit, slices, buckets.read_each_slice(slices, [*columns, buckets.embedding_field]))


def _measure_recall(
    buckets: Buckets,
    sample: recall.RowSample,
    settings: DedupSettings,
    tile_bytes: int,
    run: str,
    client: Client | None,
    tuning: Tuning,
) -> dict[str, Any]:
    """Measure the recall of the search inside clusters; this reads the clusters once more."""
    shared, lean, threshold = executor.broadcast(sample, client), strip_parts(buckets), np.float32(settings.threshold)
    task = delayed(find_sample_neighbors, pure=False)
    most = max(tuning.task_rows, buckets.rows // (2 * n_threads(client)))
    tasks = [
        task(lean, slices, shared, threshold, tile_bytes, dask_key_name=f"dedup-recall-{run}-{i}")
        for i, slices in enumerate(_slice_clusters(buckets, most) if len(sample.rows) else ())
    ]
    seen = np.zeros((2, len(sample.rows)), bool)
    for flags in executor.compute(tasks, label="recall", client=client):
        seen |= flags
    return recall.summarize_recall(seen)


def _slice_clusters(buckets: Buckets, most: int) -> Iterator[list[ClusterSlice]]:
    """Slice all rows for tasks: those of a part together, but large clusters `most` rows at a time."""
    for part in buckets.parts:
        small = [(cluster, 0, cluster.rows) for cluster in part.clusters if cluster.rows <= most]
        if small:
            yield small
        for cluster in part.clusters:
            if cluster.rows > most:
                yield from ([(cluster, i, min(i + most, cluster.rows))] for i in range(0, cluster.rows, most))


def find_sample_neighbors(
    buckets: Buckets, slices: Sequence[ClusterSlice], sample: recall.RowSample, threshold: np.float32, tile_bytes: int
) -> np.ndarray:
    """Which sampled rows have a near-duplicate in `slices`; see :func:`recall.mark_neighbors`."""
    seen = np.zeros((2, len(sample.rows)), bool)
    for (cluster, start, _), _, X in read_clusters(buckets, slices, []):
        recall.mark_neighbors(sample, X, cluster.centroid, start, threshold, tile_bytes, seen)
    return seen
