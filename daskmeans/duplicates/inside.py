"""The search inside clusters: rows are compared with those of their own cluster only, and decided there and then."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans import config, forecast, provenance, runtime
from daskmeans.duplicates import recall
from daskmeans.duplicates.decide import decide, to_table
from daskmeans.duplicates.decisions import summarize
from daskmeans.duplicates.rank import columns_of, rank
from daskmeans.duplicates.settings import Settings
from daskmeans.errors import MemoryForecastError
from daskmeans.kernels.hashing import hash_column
from daskmeans.kernels.products import normalize_rows
from daskmeans.kernels.sampling import sample_limit
from daskmeans.vectors.buckets import Buckets, Cluster, Part, lean_of
from daskmeans.vectors.files import reached
from daskmeans.vectors.matrix import to_matrix


def check_memory(buckets: Buckets, client: Client | None) -> None:
    """Refuse work whose largest cluster does not fit into a task's memory."""
    have = runtime.memory_per_task(client)
    largest = max(buckets.clusters(), key=lambda cluster: cluster.rows)
    need = forecast.dedup_bytes(largest.rows, buckets.dimension)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"cluster {largest.centroid} with {largest.rows:,} rows needs {format_bytes(need)}, "
            f"and a task has {format_bytes(have)}",
            where=str(buckets.path),
            remedy="fit with more --n-clusters, or give workers a higher --memory-limit or fewer --threads-per-worker",
        )


def search_inside(
    buckets: Buckets, settings: Settings, out: UPath, start: float, client: Client | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Decide on all rows; the summary, and the files of decisions with their rows.

    `start` is when the work began, as a performance counter tells it.
    """
    run = uuid.uuid4().hex
    folder = out / "decisions"
    folder.mkdir()
    wanted = config.get("recall-sample")
    limit = sample_limit(buckets.rows, wanted)
    tile_bytes = config.get_bytes("tile-bytes")
    files = [folder / f"part-{i:05d}.parquet" for i in range(len(buckets.parts))]
    task, lean = delayed(decide_part, pure=False), lean_of(buckets)
    tasks = [
        task(lean, part, settings, limit, file, tile_bytes, dask_key_name=f"dedup-{run}-{i}")
        for i, (part, file) in enumerate(zip(buckets.parts, files, strict=True))
    ]
    done = runtime.compute(tasks, label="dedup", client=client)
    sample = recall.join_samples([sample for _, sample in done], wanted)
    found = _measure(buckets, sample, settings, tile_bytes, run, client)
    return summarize(buckets, settings, files, [counts for counts, _ in done], found, start, client)


def decide_part(
    buckets: Buckets, part: Part, settings: Settings, limit: int, file: UPath, tile_bytes: int
) -> tuple[list[int], recall.Sample]:
    """Write the decisions on the rows of `part` to `file`, in the order in which the rows lie in the clusters.

    Returns the numbers of rows kept, of exact copies and of semantic duplicates, and what the recall sample takes
    from here.
    """
    columns = [buckets.id_field, *(c for c in columns_of(settings.keep) if c != buckets.id_field)]
    tables, samples = [], []
    for cluster, table, X in read_clusters(buckets, part, columns):
        ids = table[buckets.id_field].combine_chunks()
        samples.append(recall.take_sample(hash_column(ids, settings.random_state), cluster.centroid, X, limit))
        order = rank(table, settings.keep, buckets.id_field, settings.random_state)
        X = X[order]
        decided = decide(X, np.float32(settings.threshold), settings.rule, tile_bytes)
        tables.append(to_table(ids.take(pa.array(order)), decided, cluster.centroid).take(np.argsort(order)))
        del X  # before the next one is read
    table = pa.concat_tables(tables)
    with reached(file.parent.parent):
        provenance.write_table(table, file, "dedup")
    exact, semantic = (pc.sum(pc.equal(table["reason"], r)).as_py() or 0 for r in ("exact", "semantic"))
    return [len(table) - exact - semantic, exact, semantic], recall.join_samples(samples, len(table))


def read_clusters(buckets: Buckets, part: Part, columns: list[str]) -> Iterator[tuple[Cluster, pa.Table, np.ndarray]]:
    """The clusters of `part`: `columns` of their rows, and their unit vectors (float32, shape (rows, d), a copy)."""

    def unit(cluster: Cluster, table: pa.Table) -> tuple[Cluster, pa.Table, np.ndarray]:
        X = np.array(to_matrix(table[buckets.embedding_field], f"{buckets.path}, cluster {cluster.centroid}"))
        normalize_rows(X)
        return cluster, table.select(columns), X

    # Nothing of a cluster is held here while the next one is read.
    yield from map(unit, part.clusters, buckets.read_each(part.clusters, [*columns, buckets.embedding_field]))


def _measure(
    buckets: Buckets, sample: recall.Sample, settings: Settings, tile_bytes: int, run: str, client: Client | None
) -> dict[str, Any]:
    """Recall of the search inside clusters; the clusters are read once more."""
    shared, lean, threshold = runtime.share(sample, client), lean_of(buckets), np.float32(settings.threshold)
    task = delayed(find_sample_twins, pure=False)
    tasks = [
        task(lean, part, shared, threshold, tile_bytes, dask_key_name=f"dedup-recall-{run}-{i}")
        for i, part in enumerate(buckets.parts if len(sample.rows) else ())
    ]
    seen = np.zeros((2, len(sample.rows)), bool)
    for flags in runtime.compute(tasks, label="recall", client=client):
        seen |= flags
    return recall.summarize(seen)


def find_sample_twins(
    buckets: Buckets, part: Part, sample: recall.Sample, threshold: np.float32, tile_bytes: int
) -> np.ndarray:
    """Which sampled rows have a twin in `part`; see `recall.mark_twins`."""
    seen = np.zeros((2, len(sample.rows)), bool)
    for cluster, _, X in read_clusters(buckets, part, []):
        recall.mark_twins(sample, X, cluster.centroid, threshold, tile_bytes, seen)
    return seen
