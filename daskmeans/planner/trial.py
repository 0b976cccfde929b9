"""Measure what the steps cost on this machine, by running them on a sample of the input.

Each trial clusters and deduplicates the same sample. It has as many rows per cluster as the whole input would have with
some number of clusters. So rows are compared as they will be in the real run, and fits take about as many updates.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client

from daskmeans import config
from daskmeans.buckets.buckets import open_buckets
from daskmeans.duplicates.decide import decide_cluster
from daskmeans.duplicates.settings import DEFAULT_THRESHOLD
from daskmeans.errors import ConvergenceWarning, DataError, UsageError
from daskmeans.kernels.distances import nearest_centroids
from daskmeans.kernels.jit import warm_seconds
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kmeans import model
from daskmeans.kmeans.cluster_count import FEWEST_ROWS
from daskmeans.kmeans.estimator import KMeans
from daskmeans.pairs.plan import n_pairs, try_exact
from daskmeans.runtime import blas, executor, progress
from daskmeans.runtime.client import logger, n_threads
from daskmeans.steps.dedup import dedup
from daskmeans.steps.run import run
from daskmeans.storage import manifest
from daskmeans.vectors.files import open_path
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.partitioning import Partition
from daskmeans.vectors.reader import Reader
from daskmeans.vectors.source import Source

# Most rows of the sample, and most bytes of its float32 vectors; rows of the trial that measures fixed costs.
SAMPLE_ROWS, SAMPLE_BYTES = 16_384, 32 << 20
FEW_ROWS = 256
# Seconds that loading compiled kernels adds to the first run, at most: 0 to 0.2 s were measured. Anything more is
# compilation, which is not repeated.
LOADING = 0.3
# Rows that are compared with one another, to time it.
COMPARED_ROWS = 4096
# Fewest clusters of a trial: smaller fits are not informative.
LEAST_CLUSTERS = 8
# Most partitions that are read at the same time, to time it.
READERS = 4


@dataclass(frozen=True)
class StepsTrial:
    """All steps over a sample.

    Attributes
    ----------
    rows, n_clusters : int
    seconds : dict
        By step.
    updates : list of dict
        For each update of the fit: rows, share of pairs compared and seconds, as in :attr:`KMeans.iterations_`.
    sizes : ndarray of int64
        Rows of each cluster that is not empty.
    """

    rows: int
    n_clusters: int
    seconds: dict[str, float]
    updates: list[dict[str, float]]
    sizes: np.ndarray

    @property
    def density(self) -> float:
        """Rows per cluster."""
        return self.rows / self.n_clusters

    @property
    def pairs(self) -> int:
        """Ordered pairs of rows in the same cluster."""
        return int((self.sizes**2).sum())


@dataclass(frozen=True)
class ExactCosts:
    """What an exact search, and the decisions after it, cost.

    Attributes
    ----------
    fixed : float
        Seconds, however few the rows are.
    row : float
        Seconds per row, with all threads.
    pair : float
        Seconds per pair of rows, with one thread.
    """

    fixed: float
    row: float
    pair: float


@dataclass(frozen=True)
class Costs:
    """Measured costs.

    Attributes
    ----------
    read : float
        Seconds to read a row of the input, beyond those for a row of a trial; with all threads.
    compare, pair : float
        Seconds per row and centroid, and per ordered pair of rows; with one thread.
    loading : float
        Seconds in which workers first load their compiled kernels.
    fixed : StepsTrial
        The trial on very few rows.
    trials : tuple of StepsTrial
        The trials on the sample, with more and more clusters.
    rejected : float
        Share of the rows that cannot be used.
    exact : ExactCosts
    """

    read: float
    compare: float
    pair: float
    loading: float
    fixed: StepsTrial
    trials: tuple[StepsTrial, ...]
    rejected: float
    exact: ExactCosts


def measure_costs(source: Source, reading: ReadOptions, client: Client | None) -> Costs:
    """Run the steps on a sample of `source`, and measure them.

    Parameters
    ----------
    source : Source
        The input; it must skip bad rows.
    reading : ReadOptions
        How `source` was opened.
    client : Client or None
        Its workers must see the temporary files of this machine.
    """
    table, read, rejected = _sample_source(source, client)
    if len(table) < LEAST_CLUSTERS:
        raise UsageError(
            f"a trial with {len(table)} of {source.rows} rows is not informative",
            where=str(source.files[0]),
            expected=f"at least {LEAST_CLUSTERS} usable rows",
            remedy="choose any number of clusters: with so few rows, all steps take a moment",
        )
    n_clusters = _choose_trials(len(table), source.rows)
    # First let every worker compile or load its kernels: those for few clusters, and those that only many need.
    warm = dict.fromkeys([n_clusters[0], n_clusters[-1]])
    with (
        tempfile.TemporaryDirectory(prefix="daskmeans-") as folder,
        progress.open_line("trials", len(warm) + len(n_clusters) + 2) as line,
    ):

        def try_steps(path: Path, k: int) -> StepsTrial:
            made = _run_trial(path, k, reading, client)
            line.advance()
            return made

        few, rows = Path(folder) / "few", Path(folder) / "rows"
        _write_sample(table.slice(0, FEW_ROWS), few, client)
        _write_sample(table, rows, client)
        again = reading.open(f"{rows}.parquet", client, allow_zero=False)
        read -= _time_reading(again, again.partitions, 0, client)[1]
        first, *_ = [try_steps(rows, k) for k in warm]
        trials = tuple(try_steps(rows, k) for k in n_clusters)
        fixed = try_steps(few, 2)
        exact = _measure_exact(few, rows, client)
        line.advance()
    X = np.array(to_matrix(table[source.embedding_field])[:COMPARED_ROWS])
    compare, pair = executor.compute([delayed(_measure_rates, pure=False)(X)], client=client)[0]
    loading = min(LOADING, max(0.0, first.seconds["fit"] - trials[0].seconds["fit"]))
    return Costs(max(0.0, read), compare, pair, loading, fixed, trials, rejected, exact)


@contextlib.contextmanager
def _hide_progress() -> Iterator[None]:
    """Show no progress and log nothing below a warning."""
    level = logger.level
    logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
    try:
        with progress.show_on(progress.SilentDisplay()):
            yield
    finally:
        logger.setLevel(level)


def _measure_exact(few: Path, many: Path, client: Client | None) -> ExactCosts:
    """Time exact searches over few rows and over many."""
    buckets = {path: open_buckets(open_path(str(path / "clusters"))) for path in (few, many)}
    with _hide_progress():
        # The first search makes the workers that take part in the last one load their kernels.
        took = [_run_exact(path, client) for path in (many, few, many)]
        pair = try_exact([buckets[many]], DEFAULT_THRESHOLD, client).pair
    comparing = n_pairs([buckets[many]]) * pair / n_threads(client)
    rest = max(0.0, took[2] - took[1] - comparing)
    return ExactCosts(took[1], rest / buckets[many].rows, pair)


def _run_exact(path: Path, client: Client | None) -> float:
    made = dedup(
        path / "clusters", DEFAULT_THRESHOLD, search="exact", out=path / "exact", overwrite=True, client=client
    )
    manifest.remove_tree(made.path)  # with its pairs, which another search would reuse
    return float(made.summary["seconds"])


def _choose_trials(sampled: int, rows: int) -> list[int]:
    """Numbers of clusters for a sample: each eight times the last, the first with up to 8·√`rows` rows per cluster.

    Examples
    --------
    >>> _choose_trials(16_384, 1_000_000)
    [8, 64, 512]
    """
    densest = min(8 * math.sqrt(rows), sampled / LEAST_CLUSTERS)
    densities = [densest / 8**i for i in range(3)]
    return sorted({max(1, round(sampled / d)) for i, d in enumerate(densities) if i == 0 or d >= FEWEST_ROWS})


def _sample_source(source: Source, client: Client | None) -> tuple[pa.Table, float, float]:
    """Sample some rows; also return the seconds to read a row, and the share of rows that are skipped."""
    count = min(n_threads(client), READERS, source.n_partitions)
    chosen = [source.partitions[(2 * i + 1) * source.n_partitions // (2 * count)] for i in range(count)]
    wanted = max(FEW_ROWS, min(SAMPLE_ROWS, SAMPLE_BYTES // (4 * source.dimension)))
    table, seconds, kept = _time_reading(source, chosen, wanted // count, client)
    if not len(table):
        raise DataError(
            "no row of the sample can be used",
            where=str(source.files[0]),
            remedy="run `daskmeans fit`: it names the first bad row, and what is wrong with it",
        )
    return table, seconds, 1 - kept / sum(part.rows for part in chosen)


def _time_reading(
    source: Source, partitions: Sequence[Partition], wanted: int, client: Client | None
) -> tuple[pa.Table, float, int]:
    """Read `partitions`: up to `wanted` rows of each, seconds per row with all threads, and the number of good rows."""
    tasks = [delayed(_time_part, pure=False)(source.reader, part, wanted) for part in partitions]
    tables, seconds, kept = zip(*executor.compute(tasks, client=client), strict=True)
    rows = sum(part.rows for part in partitions)
    return pa.concat_tables(tables), sum(seconds) / rows / n_threads(client), sum(kept)


def _time_part(reader: Reader, partition: Partition, wanted: int) -> tuple[pa.Table, float, int]:
    start = time.perf_counter()
    table = reader.table(partition)
    seconds = time.perf_counter() - start
    places = np.linspace(0, max(0, len(table) - 1), min(wanted, len(table))).astype(np.int64)
    return table.take(pa.array(places)), seconds, len(table)


def _measure_rates(X: np.ndarray) -> tuple[float, float]:
    """Seconds per row and centroid, and per ordered pair of rows of a cluster, with one thread."""
    normalize_rows(X := X.copy())
    few, many = X[: max(1, len(X) // 64)], X[: max(1, len(X) // 4)]
    head, tile = X[:FEW_ROWS], config.get_bytes("tile-bytes")
    compare = warm_seconds(partial(nearest_centroids, centroids=many), head, X)
    compare -= warm_seconds(partial(nearest_centroids, centroids=few), head, X)
    with blas.limit_blas_threads():
        pair = warm_seconds(
            lambda rows: decide_cluster(rows, np.float32(DEFAULT_THRESHOLD), "survivors", tile), head, X
        )
    return max(0.0, compare) / (len(X) * max(1, len(many) - len(few))), pair / len(X) ** 2


def _write_sample(table: pa.Table, path: Path, client: Client | None) -> None:
    pq.write_table(table, f"{path}.parquet", row_group_size=math.ceil(len(table) / (4 * n_threads(client))))


def _run_trial(path: Path, n_clusters: int, reading: ReadOptions, client: Client | None) -> StepsTrial:
    """Run all steps on the rows in `path`.parquet."""
    with warnings.catch_warnings(), _hide_progress():
        warnings.simplefilter("ignore", ConvergenceWarning)
        km, out = KMeans(n_clusters), open_path(str(path))
        result = run(
            f"{path}.parquet", out, km, DEFAULT_THRESHOLD, reading, search="clusters", overwrite=True, client=client
        )
    seconds = {name: step["seconds"] for name, step in result.summary["steps"].items()}
    updates = model.read_model(out / "model")[1]["iterations"]
    sizes = np.array([cluster.rows for cluster in open_buckets(out / "clusters").clusters()])
    return StepsTrial(result.summary["rows"], n_clusters, seconds, updates, sizes)
