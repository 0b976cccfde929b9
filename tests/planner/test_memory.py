"""No task takes more memory than its forecast says, nor so much less that the forecast tells nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

import daskmeans as dkm
from daskmeans.duplicates.lookup import make_decision_index
from daskmeans.duplicates.memory import apply_bytes
from daskmeans.duplicates.rewrite import GROUP_BYTES
from daskmeans.errors import MemoryForecastError
from daskmeans.kmeans.memory import assign_bytes, forecast_fit
from daskmeans.pairs.memory import check_row_blocks, dedup_bytes, search_bytes
from daskmeans.pairs.row_blocks import rows_per_block
from daskmeans.runtime import executor, resources
from daskmeans.steps.apply import _rewrite_files
from daskmeans.steps.assign import assign_files
from daskmeans.steps.fit import fit
from helpers import blobs, resident, write_clusters, write_embeddings

# Of a forecast, what a task takes at least.
LEAST = 0.3
MIB = 1 << 20


@pytest.fixture(scope="module")
def worker(tmp_path_factory, spawned_workers) -> Iterator[distributed.Client]:
    """A client of one worker of one thread that has done all steps once, so that all it needs is imported."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="4GiB", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        at = tmp_path_factory.mktemp("warm")
        path = write_embeddings(at / "rows.parquet", blobs(d=256))
        dkm.run(path, at / "out", dkm.KMeans(50, max_iter=2), 0.9, client=client)
        for probes in (1, 2):
            dkm.dedup(at / "out" / "clusters", 0.9, search="clusters", probes=probes, client=client)
        dkm.apply(at / "out" / "dedup", path, at / "kept", client=client)
        yield client


@contextlib.contextmanager
def measured(client: distributed.Client, taken: dict[str, int], label: str) -> Iterator[None]:
    """Note what the worker takes in the ``with`` block, at most, beside what it has before."""
    (before,) = client.run(resident).values()
    resources.reset_peaks(client)
    yield
    taken[label] = max(taken.get(label, 0), resources.peak_bytes(client)["worker"] - before)
    print(label, taken[label] / MIB)


@pytest.fixture
def taken(worker, monkeypatch) -> dict[str, int]:
    """What each kind of task has taken."""
    found: dict[str, int] = {}
    compute = executor.compute

    def measuring(tasks, label="", client=None, pace=None):
        with measured(worker, found, label):
            return compute(tasks, label, client, pace)

    monkeypatch.setattr(executor, "compute", measuring)
    return found


def rows(n: int, d: int) -> np.ndarray:
    """Unit rows in all directions; float32, shape (n, d)."""
    X = np.random.default_rng(0).standard_normal((n, d), np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def clusters_of(X: np.ndarray, labels: np.ndarray, at, layout: str = "bucketed"):
    """Clusters of the rows of `X`, written below `at`."""
    distances = np.linspace(0, 1, len(X), dtype=np.float32)
    return write_clusters(
        at / "clusters", (X, labels.astype(np.int32), distances, np.zeros(len(X), int)), layout=layout
    )


@pytest.mark.nightly
def test_a_fit(worker, tmp_path):
    X, taken = rows(1 << 17, 256), {}
    path = write_embeddings(tmp_path / "rows.parquet", X, row_group_size=1 << 14)
    foreseen = forecast_fit(*X.shape, 50, worker).worker - resources.BASE_BYTES - resources.COMPILE_BYTES
    with measured(worker, taken, "fit"):
        fit(path, tmp_path / "out", dkm.KMeans(50, max_iter=2), client=worker)
    assert LEAST * foreseen <= taken["fit"] <= foreseen


@pytest.mark.nightly
def test_assigning_rows_and_writing_buckets(worker, taken, tmp_path):
    X = rows(1 << 17, 256)
    path = write_embeddings(tmp_path / "rows.parquet", X, row_group_size=1 << 14)
    dkm.KMeans(50, max_iter=1).fit(X[:2000]).save(tmp_path / "model")
    assign_files(path, tmp_path / "model", tmp_path / "out", client=worker)
    foreseen = assign_bytes(256, 50, 64 * MIB)
    assert LEAST * foreseen <= taken["assign"] <= foreseen
    assert LEAST * foreseen <= taken["write buckets"] <= foreseen  # of half a partition, and no centroids


@pytest.mark.nightly
@pytest.mark.parametrize("layout", ["bucketed", "hive"])
def test_comparing_rows_inside_clusters(layout, worker, taken, tmp_path):
    X = rows(18_000, 1024)
    clusters = clusters_of(X, np.arange(len(X)) >= 8_000, tmp_path, layout)  # the large one comes second
    dkm.dedup(clusters, 0.9, search="clusters", client=worker)
    foreseen = dedup_bytes(10_000, 1024)
    assert LEAST * foreseen <= taken["dedup"] <= foreseen
    assert taken["recall"] <= foreseen


@pytest.mark.nightly
@pytest.mark.parametrize("probes", [0, 4])
def test_comparing_rows_across_clusters(probes, worker, taken, tmp_path):
    X = rows(30_000, 512)
    clusters = clusters_of(X, np.arange(len(X)) % 500, tmp_path)
    search = {"search": "clusters", "probes": probes} if probes else {"search": "exact"}
    dkm.dedup(clusters, 0.99, client=worker, **search)
    band = rows_per_block(len(X), 512, 32 * MIB)
    room = check_row_blocks(band, 512, "", worker, probes)
    foreseen = (
        search_bytes(band, len(X), room, 512, worker, probes, 500) - resources.BASE_BYTES - resources.COMPILE_BYTES
    )
    assert LEAST * foreseen <= taken["compare"] <= foreseen
    for label in ("average clusters", "find near clusters", "order rows", "decide"):
        assert taken.get(label, 0) <= foreseen


@pytest.mark.nightly
@pytest.mark.parametrize("n", [15_000, 100_000])  # fewer and many more than are rewritten at a time
def test_applying_decisions(n, worker, tmp_path):
    ids, taken = [f"a name that is rather long: {i:012d}" for i in range(500_000)], {}
    lookup = make_decision_index(pa.chunked_array([ids]), np.arange(len(ids)) % 2 == 0)
    path = write_embeddings(tmp_path / "rows.parquet", rows(n, 512), ids[:n], row_group_size=n)
    (tmp_path / "out").mkdir()
    group = min(pq.read_metadata(path).row_group(0).total_byte_size, GROUP_BYTES)
    target = UPath(tmp_path / "out" / "rows.parquet")
    with measured(worker, taken, "apply"):
        done = _rewrite_files([UPath(path)], [target], "id", lookup, False, None, worker)
    assert (done[0].kept, done[0].removed) == (n // 2, n // 2)
    foreseen = apply_bytes(lookup.nbytes, group)
    assert LEAST * foreseen <= taken["apply"] <= foreseen


def test_row_groups_that_no_task_can_rewrite_are_refused(embeddings, tmp_path, client, monkeypatch):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(3), 0.9, client=client)
    monkeypatch.setattr(resources, "memory_per_task", lambda client: 60_000)
    with pytest.raises(MemoryForecastError, match=r"rows\.parquet, row group \d of \d(.|\n)*smaller row groups"):
        dkm.apply(tmp_path / "out" / "dedup", embeddings, tmp_path / "kept", client=client)
    assert not (tmp_path / "kept" / "rows.parquet").exists()


def test_decisions_that_no_worker_holds_are_refused(embeddings, tmp_path, client, monkeypatch):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(3), 0.9, client=client)
    monkeypatch.setattr(resources, "memory_per_task", lambda client: 20_000)
    with pytest.raises(
        MemoryForecastError, match=r"decisions on all rows take .* which has 19\.53 kiB(.|\n)*--memory-limit"
    ):
        dkm.apply(tmp_path / "out" / "dedup", embeddings, tmp_path / "kept", client=client)
    assert not (tmp_path / "kept" / "rows.parquet").exists()
