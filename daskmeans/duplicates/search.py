"""Find near-duplicates inside every cluster and decide which rows stay."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans import config, forecast, manifest, runtime
from daskmeans.duplicates import recall
from daskmeans.duplicates.decide import RULES, decide, to_table
from daskmeans.duplicates.rank import check_columns, columns_of, parse_keep, rank
from daskmeans.duplicates.result import DedupResult
from daskmeans.errors import MemoryForecastError, OutputError, UsageError
from daskmeans.kernels.hashing import hash_column
from daskmeans.kernels.products import normalize_rows
from daskmeans.kernels.sampling import sample_limit
from daskmeans.vectors.buckets import COSINE, L2, Buckets, Cluster, Part, open_buckets
from daskmeans.vectors.files import Input, open_path, refuse_overlap
from daskmeans.vectors.matrix import to_matrix


@dataclass(frozen=True)
class Settings:
    """What determines the decisions, besides the clusters."""

    threshold: float
    keep: tuple[str, ...]
    rule: str
    search: str
    random_state: int


def dedup(
    clusters: Input,
    threshold: float | None = None,
    *,
    eps: float | None = None,
    out: Input | None = None,
    keep: str | Sequence[str] = "hard",
    rule: str = "survivors",
    search: str = "clusters",
    random_state: int = 42,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> DedupResult:
    """Find near-duplicates and decide which rows stay.

    Rows of a cluster are ranked; of two duplicates the earlier-ranked one stays. A pair's score is the float64 dot
    product of the two normalised rows, rounded to float32, at most 1 (exactly 1 for copies); duplicates score at
    least the threshold, rounded to float32 too.

    Parameters
    ----------
    clusters : path
        Directory that `assign` wrote, in either layout.
    threshold : float
        Cosine similarity in [0, 1] from which two rows are duplicates. Give this or `eps`.
    eps : float
        1 - threshold.
    out : path, optional
        Directory for the decisions. Default: a temporary one on this machine, for as long as Python runs.
    keep : str or sequence of str, default "hard"
        How rows are ranked: ``hard`` (farthest from the centroid first), ``easy`` (nearest first), ``random``, or
        columns as ``COLUMN:asc`` or ``COLUMN:desc``. Ids break ties.
    rule : {"survivors", "semdedup"}, default "survivors"
        ``survivors`` drops a row when an earlier-ranked row that itself stays is similar enough, so that every dropped
        row has a living twin; ``semdedup`` when any earlier-ranked row is (Abbas et al., arXiv:2303.09540).
    search : {"clusters"}, default "clusters"
        Rows are compared inside their cluster. The share of duplicates that this finds is measured on a sample of
        ``daskmeans.recall-sample`` rows.
    random_state : int, default 42
        Seed of the order ``random`` and of the sample.
    storage_options : dict, optional
        Options of the filesystem.
    overwrite : bool, default False
        Replace finished decisions in `out`.
    client : distributed.Client, optional
        Where to run. Default: the current client, else this process.

    Returns
    -------
    DedupResult

    Raises
    ------
    UsageError
        An argument is out of its range or unknown; `clusters` is not an output of `assign`; `out` is in the way.
    MemoryForecastError
        The largest cluster would not fit into a worker's memory.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-dedup/in/rows.jsonl").write_text(lines)
    >>> rows = dkm.read_embeddings("memory://doctest-dedup/in")
    >>> assigned = dkm.assign(rows, dkm.KMeans(n_clusters=2).fit(rows))
    >>> _ = dkm.write_buckets(assigned, "memory://doctest-dedup/clusters", overwrite=True)
    >>> sorted(dkm.dedup("memory://doctest-dedup/clusters", threshold=0.9).kept["id"].compute())
    ['b', 'c']
    """
    settings = dedup_settings(threshold, eps, keep, rule, search, random_state)
    buckets = open_buckets(open_path(clusters, storage_options))
    if not buckets.rows:
        raise UsageError("the clusters hold no rows", where=str(buckets.path))
    check_columns(settings.keep, _orderable(buckets))
    client = runtime.current_client(client)
    _check_memory(buckets, client)
    target = _temporary() if out is None else open_path(out, storage_options)
    refuse_overlap(target, [buckets.path])
    with manifest.step(
        target, "dedup", asdict(settings), dedup_inputs(buckets), overwrite=overwrite, client=client
    ) as step:
        summary, outputs = _search(buckets, settings, target, client)
        manifest.write_json(target / "summary.json", summary)
        step.facts |= {key: summary[key] for key in ("rows", "kept", "removed")} | {"outputs": outputs}
    return DedupResult(target, buckets.path)


def _temporary() -> UPath:
    """A directory that is removed when Python ends; dask frames made from a result may outlive the result."""
    path = tempfile.mkdtemp(prefix="daskmeans-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return UPath(path)


def dedup_settings(
    threshold: float | None, eps: float | None, keep: str | Sequence[str], rule: str, search: str, random_state: int
) -> Settings:
    """Checked arguments of `dedup`."""
    if (threshold is None) == (eps is None):
        found = "neither threshold nor eps is given" if threshold is None else "both threshold and eps are given"
        raise UsageError(found, where="--threshold, --eps", expected="one of the two, in [0, 1]")
    name, value = ("--threshold", threshold) if eps is None else ("--eps", eps)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise UsageError(f"{value!r} is out of range", where=name, expected="a number in [0, 1]")
    if rule not in RULES:
        raise UsageError(f"unknown rule {rule!r}", where="--rule", expected=" or ".join(RULES))
    if search == "exact":
        raise UsageError(
            "exact search across clusters comes in a later version",
            where="--search exact",
            remedy="use --search clusters, whose recall is measured",
        )
    if search != "clusters":
        raise UsageError(f"unknown search {search!r}", where="--search", expected="clusters")
    # The shortest number that rounds to the same float32, so that files show 0.9 and not 0.8999999761581421.
    shown = float(str(np.float32(value if eps is None else 1 - value)))
    return Settings(shown, parse_keep(keep), rule, search, random_state)


def dedup_inputs(buckets: Buckets) -> dict[str, Any]:
    """What decisions are made from."""
    made_from = {"fingerprint": buckets.manifest["inputs"].get("fingerprint"), "rows": buckets.rows}
    return {"clusters": str(buckets.path), "made": manifest.identity(buckets.manifest)} | made_from


def _orderable(buckets: Buckets) -> pa.Schema:
    """Schema of the columns by which rows can be ranked."""
    names = [buckets.id_field, *buckets.metadata_fields, L2, COSINE]
    return buckets.read(min(buckets.clusters(), key=lambda cluster: cluster.rows), names).schema


def _check_memory(buckets: Buckets, client: Client | None) -> None:
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


def _search(
    buckets: Buckets, settings: Settings, out: UPath, client: Client | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and the files of decisions with their rows."""
    start = time.perf_counter()
    run = uuid.uuid4().hex
    folder = out / "decisions"
    folder.mkdir()
    wanted = config.get("recall-sample")
    limit = sample_limit(buckets.rows, wanted)
    tile_bytes = config.get_bytes("tile-bytes")
    files = [folder / f"part-{i:05d}.parquet" for i in range(len(buckets.parts))]
    task, lean = delayed(decide_part, pure=False), _lean(buckets)
    tasks = [
        task(lean, part, settings, limit, file, tile_bytes, dask_key_name=f"dedup-{run}-{i}")
        for i, (part, file) in enumerate(zip(buckets.parts, files, strict=True))
    ]
    done = runtime.compute(tasks, label="dedup", client=client)
    counts = np.array([counts for counts, _ in done]).reshape(-1, 3).sum(axis=0).tolist()
    sample = recall.join_samples([sample for _, sample in done], wanted)
    outputs = [
        {"path": f"{folder.name}/{file.name}", "rows": sum(rows)} for file, (rows, _) in zip(files, done, strict=True)
    ]
    summary = {
        "rows": sum(counts),
        "kept": counts[0],
        "removed": {"exact": counts[1], "semantic": counts[2]},
        "threshold": settings.threshold,
        "rule": settings.rule,
        "keep": settings.keep[0] if len(settings.keep) == 1 else list(settings.keep),
        "search": settings.search,
        "recall": _measure(buckets, sample, settings, tile_bytes, run, client),
        "seconds": round(time.perf_counter() - start, 3),
        "peak_bytes": runtime.peaks(client),
    }
    return summary, outputs


def _lean(buckets: Buckets) -> Buckets:
    """`buckets` for a task, which is told its part: without the list of all clusters."""
    return replace(buckets, parts=(), manifest={})


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
    table = pa.concat_tables(tables)
    try:
        pq.write_table(table, file.path, filesystem=file.fs)
    except FileNotFoundError:
        raise OutputError(
            "a worker cannot see the output directory",
            where=str(file.parent.parent),
            remedy="give an --out that all workers reach",
        ) from None
    exact, semantic = (pc.sum(pc.equal(table["reason"], r)).as_py() or 0 for r in ("exact", "semantic"))
    return [len(table) - exact - semantic, exact, semantic], recall.join_samples(samples, len(table))


def read_clusters(buckets: Buckets, part: Part, columns: list[str]) -> Iterator[tuple[Cluster, pa.Table, np.ndarray]]:
    """The clusters of `part`: `columns` of their rows, and their unit vectors (float32, shape (rows, d), a copy)."""
    tables = buckets.read_each(part.clusters, [*columns, buckets.embedding_field])
    for cluster, table in zip(part.clusters, tables, strict=True):
        X = np.array(to_matrix(table[buckets.embedding_field], cluster.file))
        normalize_rows(X)
        yield cluster, table.select(columns), X


def _measure(
    buckets: Buckets, sample: recall.Sample, settings: Settings, tile_bytes: int, run: str, client: Client | None
) -> dict[str, Any]:
    """Recall of the search inside clusters; the clusters are read once more."""
    shared, lean, threshold = runtime.share(sample, client), _lean(buckets), np.float32(settings.threshold)
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
