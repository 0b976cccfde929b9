"""A worker that is killed, or away for a while, whatever it was doing, changes nothing but the time."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import distributed
import numpy as np
import pytest

from daskmeans import KMeans, run
from daskmeans.errors import ConvergenceWarning
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.options import ReadOptions
from faults import Wire, content, outside
from helpers import (
    TESTS,
    Trap,
    add_up,
    blobs,
    count_visits,
    decisions_of,
    different,
    fill_memory,
    make_rows,
    nightly,
    rows_of,
    spare,
    stop,
    tuned_dedup,
    write_clusters,
    write_embeddings,
)

# Seconds for which the network of a worker is away.
AWAY = 5


@pytest.fixture
def replaced() -> Iterator[distributed.Client]:
    """A client of two workers; another takes the place of one that is killed."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def mortal(request, replaced) -> distributed.Client:
    """A client of two workers of which one will be killed; another takes its place, or none does."""
    if request.param == "not replaced":
        for nanny in replaced.cluster.workers.values():
            nanny.auto_restart = False
    return replaced


def everything(blocks) -> list[np.ndarray]:
    """What can be asked of blocks, in an order that does not depend on their groups."""
    numbers, X, _ = zip(*(entry for part in blocks.map(rows_of, name="test-rows") for entry in part), strict=True)
    order = np.argsort(np.concatenate(numbers))
    held = np.concatenate(numbers)[order]
    return [held, np.concatenate(X)[order], *blocks.sample_rows(50, 3), blocks.rows(held[::-7])]


PHASES = [
    (phase, shelf, given, ("replaced", "not replaced")[(i + j) % 2])
    for i, phase in enumerate(["load-block", "count-rows", "subset-block", "kmeans-sample", "test-visits"])
    for j, (shelf, given) in enumerate([("memory", "matrix"), ("disk", "partitions")])
]


# Each phase by both kinds of cluster and on both shelves, though not by all four together.
@pytest.mark.parametrize(
    ("phase", "shelf", "given", "mortal"),
    [PHASES[0], *(nightly(*phase) for phase in PHASES[1:-1]), PHASES[-1]],
    indirect=["mortal"],
)
def test_blocks_outlive_their_worker(phase, shelf, given, mortal, tmp_path):
    X = blobs(n=900)
    alone = load_blocks(X, None, True, 1.0, 0, None)
    tuning = Tuning(memory=0) if shelf == "disk" else DEFAULT
    mortal.register_plugin(Trap(phase, tmp_path / "killed"))
    rows = X if given == "matrix" else da.from_array(X, chunks=(90, -1))
    blocks = load_blocks(rows, None, True, 1.0, 0, mortal, tuning=tuning)
    subset = blocks.subset(300, 1)
    for found, expected in ((blocks, alone), (subset, alone.subset(300, 1))):
        found.map(count_visits, 1, name="test-visits")
        np.testing.assert_equal(everything(found), everything(expected))
        assert found.n_rows == expected.n_rows == sum(found.lengths)
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize(
    ("phase", "nth", "mortal", "weighted"),
    [
        nightly("kmeans-reach", 1, "replaced", True),
        nightly("kmeans-pass", 1, "not replaced", False),
        ("kmeans-pass", 2, "replaced", False),
        nightly("kmeans-pass", 2, "not replaced", True),
        nightly("kmeans-pass", 4, "replaced", False),
        ("kmeans-pass", 9, "not replaced", True),
        nightly("kmeans-inertia", 1, "replaced", True),
    ],
    indirect=["mortal"],
)
def test_a_fit_outlives_a_worker_and_comes_to_the_same_bits(phase, nth, mortal, weighted, tmp_path):
    tuning = Tuning(least_sample=0, near_groups=1)
    X = blobs(n=12_000, d=24, k=120)
    weights = np.random.default_rng(0).gamma(1.0, size=len(X)) if weighted else None
    settings = {"n_clusters": 120, "random_state": 3, "max_iter": 6, "tol": 0}
    with pytest.warns(ConvergenceWarning):
        alone = KMeans(**settings)._fit(X, tuning=tuning, sample_weight=weights)
    mortal.register_plugin(Trap(phase, tmp_path / "killed", nth))
    with pytest.warns(ConvergenceWarning):
        chunks = da.from_array(X, chunks=(1000, -1))
        found = KMeans(**settings)._fit(chunks, client=mortal, tuning=tuning, sample_weight=weights)
    assert (tmp_path / "killed").exists()
    np.testing.assert_array_equal(found.cluster_centers_, alone.cluster_centers_)
    np.testing.assert_array_equal(found.labels_.compute(), alone.labels_)
    assert found.inertia_history_ == alone.inertia_history_
    assert found.inertia_ == alone.inertia_


@pytest.mark.parametrize(
    ("phase", "nth", "mortal"),
    [
        nightly("dedup-compare", 1, "replaced"),
        ("dedup-compare", 4, "not replaced"),
        nightly("dedup-rank", 1, "replaced"),
        nightly("dedup-write", 1, "not replaced"),
    ],
    indirect=["mortal"],
)
def test_an_exact_search_outlives_a_worker(phase, nth, mortal, tmp_path):
    dedup = partial(tuned_dedup, Tuning(rows_per_block=17, task_pairs=600))
    clusters = write_clusters(tmp_path / "clusters", make_rows())
    dedup(clusters, 0.9, out=tmp_path / "alone", search="exact")
    mortal.register_plugin(Trap(phase, tmp_path / "killed", nth))
    dedup(clusters, 0.9, out=tmp_path / "found", search="exact", client=mortal)
    assert (tmp_path / "killed").exists()
    assert decisions_of(tmp_path / "found") == decisions_of(tmp_path / "alone")


def test_arguments_that_went_with_the_only_worker_are_sent_again(tmp_path):
    X = blobs(n=900)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        blocks = load_blocks(X, None, False, 1.0, 0, client)
        client.register_plugin(Trap("test-large", tmp_path / "killed"))
        large = np.arange(2 << 20)
        assert sum(blocks.map(add_up, large, name="test-large")) == 900 * large.sum()
    assert (tmp_path / "killed").exists()


# --- workers that are away, and come back ---


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A file of rows, some of which are alike."""
    X = blobs(n=1500, d=24, k=20, copies=100)
    return write_embeddings(
        tmp_path_factory.mktemp("rows") / "rows.parquet", X, text=[f"text {i}" for i in range(1500)]
    )


def job(rows: Path, out: Path, client: distributed.Client | None = None) -> dict[str, object]:
    """All that the whole job makes, in more tasks than so few rows need."""
    with dask.config.set({"daskmeans.partition-bytes": 6000, "daskmeans.bucket-bytes": 9600}):
        run(rows, out, KMeans(30), 0.9, ReadOptions(metadata_fields=("text",)), client=client)
    return content(out)


@pytest.fixture(scope="module")
def undisturbed(rows, tmp_path_factory) -> dict[str, object]:
    """What the job makes in this process."""
    return job(rows, tmp_path_factory.mktemp("undisturbed") / "out")


def test_a_job_outlives_a_worker_that_stops_for_a_while(rows, undisturbed, replaced, tmp_path):
    replaced.register_plugin(Trap("kmeans-pass", tmp_path / "stopped", 2, stop))
    found = job(rows, tmp_path / "out", replaced)
    assert (tmp_path / "stopped").exists()
    assert different(found, undisturbed) == set()


@pytest.mark.nightly
def test_a_job_outlives_a_worker_that_is_paused_because_its_memory_is_full(rows, undisturbed, tmp_path):
    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="600MiB", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(Trap("bucket-write", tmp_path / "full", 2, fill_memory))
        found = job(rows, tmp_path / "out", client)
        told = [event for _, event in client.get_events((tmp_path / "full").read_text())]
    assert "paused" in [event["status"] for event in told if event["action"] == "worker-status-change"]
    assert different(found, undisturbed) == set()


@pytest.fixture
def wired(tmp_path, monkeypatch) -> Iterator[tuple[distributed.Client, list[Wire]]]:
    """A client of two workers, and the wires that one of them hangs on."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, sys.path)]))
    with (
        outside(tmp_path, wired=True) as (_, wires, flags),
        distributed.Client(scheduler_file=flags[-1]) as client,
    ):
        yield client, wires


@contextlib.contextmanager
def when(flag: Path, act: Callable[[], object]) -> Iterator[None]:
    """Call `act`, in a thread, as soon as `flag` is there, if that happens in the ``with`` block."""
    ended = threading.Event()

    def watch() -> None:
        while not flag.exists():
            if ended.wait(0.005):
                return
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.nightly
def test_a_job_outlives_a_worker_that_nothing_reaches_for_a_while(rows, undisturbed, wired, tmp_path):
    client, wires = wired

    def away() -> None:
        for wire in wires:
            wire.hold()
        time.sleep(AWAY)
        for wire in wires:
            wire.release()

    client.register_plugin(Trap("kmeans-pass", tmp_path / "begun", 2, spare))
    with when(tmp_path / "begun", away):
        found = job(rows, tmp_path / "out", client)
    assert (tmp_path / "begun").exists()
    assert different(found, undisturbed) == set()
    assert wires[1].address in client.nthreads()


@pytest.mark.nightly
def test_a_job_outlives_a_worker_that_is_cut_off_for_good(rows, undisturbed, wired, tmp_path):
    client, wires = wired
    client.register_plugin(Trap("dedup-compare", tmp_path / "begun", 2, spare))
    with when(tmp_path / "begun", lambda: [wire.cut() for wire in wires]):
        found = job(rows, tmp_path / "out", client)
    assert (tmp_path / "begun").exists()
    assert different(found, undisturbed) == set()
    assert list(client.nthreads()) and wires[1].address not in client.nthreads()
