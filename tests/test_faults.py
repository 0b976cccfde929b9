"""A worker that is killed, whatever it was doing, changes nothing but the time."""

from __future__ import annotations

from collections.abc import Iterator

import dask.array as da
import distributed
import numpy as np
import pytest

from daskmeans import KMeans, dedup, runtime
from daskmeans.duplicates import bands, plan
from daskmeans.errors import ConvergenceWarning
from daskmeans.kernels import groups
from daskmeans.kmeans import native
from daskmeans.kmeans.loading import load
from helpers import Killer, add_up, blobs, count_visits, decisions_of, make_rows, rows_of, write_clusters


@pytest.fixture(scope="module")
def restarting() -> Iterator[distributed.LocalCluster]:
    """A cluster of two workers; one that is killed is started anew."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(params=["replaced", "not replaced"])
def mortal(request, restarting) -> Iterator[distributed.Client]:
    """A client of two workers of which one will be killed; another takes its place, or none does."""
    if request.param == "replaced":
        with distributed.Client(restarting) as client:
            yield client
            for name in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins)):
                client.unregister_worker_plugin(name)
            client.wait_for_workers(2)
        return
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        for nanny in cluster.workers.values():
            nanny.auto_restart = False
        yield client


def everything(blocks) -> list[np.ndarray]:
    """What can be asked of blocks, in an order that does not depend on their groups."""
    numbers, X, _ = zip(*(entry for part in blocks.map(rows_of, name="test-rows") for entry in part), strict=True)
    order = np.argsort(np.concatenate(numbers))
    held = np.concatenate(numbers)[order]
    return [held, np.concatenate(X)[order], *blocks.sample(50, 3), blocks.rows(held[::-7])]


@pytest.mark.parametrize(("shelf", "given"), [("memory", "matrix"), ("disk", "partitions")])
@pytest.mark.parametrize("phase", ["load-block", "count-rows", "subset-block", "kmeans-sample", "test-visits"])
def test_blocks_outlive_their_worker(phase, shelf, given, mortal, tmp_path, monkeypatch):
    X = blobs(n=900)
    alone = load(X, None, True, 1.0, 0, None)
    if shelf == "disk":
        monkeypatch.setattr(runtime, "memory_to_keep", lambda client: 0)
    mortal.register_plugin(Killer(phase, tmp_path / "killed"))
    blocks = load(X if given == "matrix" else da.from_array(X, chunks=(90, -1)), None, True, 1.0, 0, mortal)
    subset = blocks.subset(300, 1)
    for found, expected in ((blocks, alone), (subset, alone.subset(300, 1))):
        found.map(count_visits, 1, name="test-visits")
        np.testing.assert_equal(everything(found), everything(expected))
        assert found.n_rows == expected.n_rows == sum(found.lengths)
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize(
    ("phase", "nth"),
    [
        ("kmeans-reach", 1),
        ("kmeans-pass", 1),
        ("kmeans-pass", 2),
        ("kmeans-pass", 4),
        ("kmeans-pass", 9),
        ("kmeans-inertia", 1),
    ],
)
def test_a_fit_outlives_a_worker_and_comes_to_the_same_bits(phase, nth, mortal, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "NEAR", 1)
    monkeypatch.setattr(native, "LEAST_SAMPLE", 0)
    X = blobs(n=12_000, d=24, k=120)
    settings = {"n_clusters": 120, "random_state": 3, "max_iter": 6, "tol": 0}
    with pytest.warns(ConvergenceWarning):
        alone = KMeans(**settings).fit(X)
    mortal.register_plugin(Killer(phase, tmp_path / "killed", nth))
    with pytest.warns(ConvergenceWarning):
        found = KMeans(**settings).fit(da.from_array(X, chunks=(1000, -1)), client=mortal)
    assert (tmp_path / "killed").exists()
    np.testing.assert_array_equal(found.cluster_centers_, alone.cluster_centers_)
    np.testing.assert_array_equal(found.labels_.compute(), alone.labels_)
    assert found.inertia_history_ == alone.inertia_history_
    assert found.inertia_ == alone.inertia_


@pytest.mark.parametrize(
    ("phase", "nth"), [("dedup-compare", 1), ("dedup-compare", 4), ("dedup-rank", 1), ("dedup-write", 1)]
)
def test_an_exact_search_outlives_a_worker(phase, nth, mortal, tmp_path, monkeypatch):
    monkeypatch.setattr(bands, "LEAST_ROWS", 17)
    monkeypatch.setattr(plan, "LEAST_PAIRS", 600)
    clusters = write_clusters(tmp_path / "clusters", make_rows())
    dedup(clusters, 0.9, out=tmp_path / "alone", search="exact")
    mortal.register_plugin(Killer(phase, tmp_path / "killed", nth))
    dedup(clusters, 0.9, out=tmp_path / "found", search="exact", client=mortal)
    assert (tmp_path / "killed").exists()
    assert decisions_of(tmp_path / "found") == decisions_of(tmp_path / "alone")


def test_arguments_that_went_with_the_only_worker_are_sent_again(tmp_path):
    X = blobs(n=900)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        blocks = load(X, None, False, 1.0, 0, client)
        client.register_plugin(Killer("test-large", tmp_path / "killed"))
        large = np.arange(2 << 20)
        assert sum(blocks.map(add_up, large, name="test-large")) == 900 * large.sum()
    assert (tmp_path / "killed").exists()
