"""What a fit will take is told before it starts, and it takes no more; what no disk can hold is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import dask
import distributed
import numpy as np
import psutil
import pytest
from upath import UPath

import daskmeans as dkm
from daskmeans.buckets.buckets import open_buckets
from daskmeans.errors import MemoryForecastError
from daskmeans.kernels.quantize import is_bytewise
from daskmeans.kmeans.engine.lloyd import fit_blocks
from daskmeans.kmeans.engine.state import NoCheckpoints
from daskmeans.kmeans.memory import check_fit, forecast_fit
from daskmeans.kmeans.memory import note_bytes as note_bytes_of_memory
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.pairs.plan import try_exact
from daskmeans.runtime import resources
from daskmeans.steps.fit import fit as fit_files
from helpers import blobs, note_bytes, write_clusters, write_embeddings

pytestmark = pytest.mark.usefixtures("spawned_workers")

DISK = resources.Disk("here", "/scratch", "ext4", free=1 << 40)


@pytest.fixture
def disk(monkeypatch):
    """A function that puts another disk in the place of this machine's."""

    def use(**facts):
        monkeypatch.setattr(resources, "list_disks", lambda client: [replace(DISK, **facts)])

    use()
    return use


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))


@pytest.mark.parametrize("n_clusters", [20, 2300, 4800])
def test_the_notes_beside_the_rows_are_those_that_a_fit_makes(n_clusters):
    X = blobs(n=5000, d=8)
    blocks = load_blocks(X, None, False, 1.0, 0, None, n_clusters)
    found = []

    class Looking(NoCheckpoints):
        def save(self, run, fit):
            found.append(sum(blocks.map(note_bytes, name="test")))

    fit_blocks(blocks, lambda: X[:n_clusters], max_iter=1, tol=0, seed=0, grow=True, checkpoints=Looking())
    foreseen = note_bytes_of_memory(5000, 8, n_clusters)
    if not is_bytewise(8):  # a machine without byte instructions makes no codes of the rows
        foreseen -= X.size
    assert 0.9 * foreseen <= max(found) <= foreseen


def test_what_fits_into_memory_needs_no_disk(disk):
    found = forecast_fit(1000, 64, 10, None)
    assert (found.spilled, found.disks) == (0, ())
    assert found.blocks >= 1000 * 64 * 5
    assert found.worker >= found.blocks


def test_what_does_not_fit_is_cached_and_told(disk, little_memory, caplog):
    with caplog.at_level(logging.INFO, "daskmeans"):
        found = check_fit(1_000_000, 256, 1000, 0.5, None)
    assert found.spilled == found.blocks == forecast_fit(500_000, 256, 1000, None).blocks
    assert found.worker < forecast_fit(500_000, 256, 1000, None).blocks
    for words in ("/scratch", "ext4", "1.00 TiB", dask.utils.format_bytes(found.spilled), "until it ends"):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("facts", "words"), [({"free": 1 << 20}, r"1\.00 MiB"), ({"kind": "tmpfs"}, r"is memory \(tmpfs\)")]
)
def test_a_fit_that_no_disk_can_hold_is_refused_before_it_starts(tmp_path, disk, little_memory, facts, words):
    path = write_embeddings(tmp_path / "rows.parquet", np.ones((1000, 300), np.float32))
    disk(**facts)
    with pytest.raises(MemoryForecastError, match=rf"/scratch on here(.|\n)*{words}(.|\n)*--local-directory"):
        fit_files(path, tmp_path / "out", dkm.KMeans(3))
    assert not (tmp_path / "out").exists()


def test_disks_are_those_of_the_workers(client):
    (found,) = resources.list_disks(client)
    assert found.processes == 2
    assert found.free > 0
    assert found.kind
    assert "worker" in found.path
    (own,) = resources.list_disks()
    assert own.processes == 1


@pytest.mark.nightly
@pytest.mark.timeout(200)
def test_a_fit_larger_than_memory_takes_no_more_than_forecast_and_gives_the_same(tmp_path, caplog):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150_000, 256)).astype(np.float32)  # 146 MiB
    path = write_embeddings(tmp_path / "rows.parquet", X, row_group_size=5000)
    found, models = {}, {}
    for limit in ("600MiB", "4GiB"):
        with (
            dask.config.set({"daskmeans.partition-bytes": "4MiB", "daskmeans.tile-bytes": "1MiB"}),
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, memory_limit=limit, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            found[limit] = forecast_fit(*X.shape, 20, client)
            model = fit_files(path, tmp_path / limit, dkm.KMeans(20, max_iter=2), client=client)
        models[limit] = model.cluster_centers_.tobytes(), model.inertia_
        peak = json.loads((tmp_path / limit / "_manifest.json").read_text())["peak_bytes"]["worker"]
        print(limit, peak >> 20, found[limit].worker >> 20, found[limit].spilled >> 20)
        assert peak <= found[limit].worker
    assert models["600MiB"] == models["4GiB"]
    assert found["600MiB"].spilled > 0 == found["4GiB"].spilled


@pytest.mark.nightly
@pytest.mark.timeout(200)
def test_a_search_takes_no_more_than_forecast_with_half_of_the_rows_in_one_cluster(tmp_path):
    X = blobs(n=40_000, d=256, k=50)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    labels = (np.arange(len(X)) % 50).astype(np.int32)
    labels[: len(X) // 2] = 0
    rows = X, labels, np.linspace(0, 1, len(X), dtype=np.float32), np.zeros(len(X), np.int64)
    clusters = write_clusters(tmp_path / "clusters", rows)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="900MiB", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        foreseen = try_exact([open_buckets(UPath(clusters))], 0.999, client).nbytes
        client.restart()
        made = dkm.dedup(clusters, 0.999, search="exact", client=client).summary
    assert made["rows"] == len(X)
    assert made["peak_bytes"]["worker"] <= foreseen
