"""What all tests share: small embeddings on disk, and a cluster of two workers."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path

import dask
import distributed
import hypothesis
import pytest
from distributed.deploy.spec import SpecCluster

from daskmeans import KMeans, dedup
from daskmeans.kernels.gpu.device import Cuda, Device
from daskmeans.runtime import gpus
from daskmeans.runtime.cluster import QUIET_CONFIG
from helpers import NIGHTLY, blobs, make_rows, write_clusters, write_embeddings

# The same cases in every run; the first call of a kernel compiles it, so time per case means nothing.
hypothesis.settings.register_profile("daskmeans", deadline=None, derandomize=True, max_examples=200 if NIGHTLY else 25)
hypothesis.settings.load_profile("daskmeans")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the nightly lane runs, unless this is it."""
    late = [] if NIGHTLY else [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=late)
    items[:] = [item for item in items if item not in late]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a CUDA device where there is none, and say what is missing.

    The arguments of the marker are the packages that the test needs; default: all of the extra `gpu`.
    """
    mark = item.get_closest_marker("gpu")
    if mark is None:
        return
    if missing := [name for name in mark.args or gpus.PACKAGES if find_spec(name) is None]:
        pytest.skip(f'no {missing[0]}: pip install "daskmeans[gpu]"')
    if not Path("/proc/driver/nvidia/gpus").is_dir():
        pytest.skip("no CUDA device on this machine")


@pytest.fixture(params=["processor", pytest.param("cuda", marks=pytest.mark.gpu("cupy"))])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device; with ``daskmeans.device`` set to gpu, this process computes on it."""
    found = Cuda() if request.param == "cuda" else Device()
    monkeypatch.setattr(gpus, "_open_cuda", lambda: found)
    return found


# Threads that serve the process until it ends, once something has asked for them: of daskmeans, of dask, of fsspec. A
# client that finds no scheduler leaves its loop running, which is distributed's doing; clients are counted apart.
LASTING = ("daskmeans_", "IO loop", "Dask-", "fsspecIO", "Profile", "asyncio_", "ThreadPoolExecutor-", "QueueFeeder")
# Files that stay by intention until Python ends: those of a result that was given no directory, and dask's own.
KEPT = ("daskmeans-", "dask-scratch-space")
# How distributed starts the processes of workers.
METHOD = "distributed.worker.multiprocessing-method"
# Clusters that all tests use.
SHARED: list[distributed.LocalCluster] = []


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of our own for temporary files of this process and of those that it starts."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def forked_workers(temporary: Path) -> Iterator[None]:
    """Workers are forked from a process that has imported everything, which saves each of them 1.5 s.

    Those of users are spawned, as they are in the nightly lane and where a test asks for `spawned_workers`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed.nanny", "distributed.worker", "daskmeans.steps.run"])
    forkserver.ensure_running()
    with dask.config.set({METHOD: "spawn" if NIGHTLY else "forkserver"}):
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> None:
    """Kernels are compiled once, by two of the processes that test; else each would compile most of them for itself."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not number:
        return
    shared, work = tmp_path_factory.getbasetemp().parent, [fit_few_rows, search_few_rows]
    for compile_some in work if int(number) % 2 == 0 else reversed(work):
        with (shared / compile_some.__name__).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not file.tell():
                with tempfile.TemporaryDirectory() as folder:
                    compile_some(Path(folder))
                file.write("done")


def fit_few_rows(folder: Path) -> None:
    """Run the kernels of a fit."""
    KMeans(8).fit(blobs())


def search_few_rows(folder: Path) -> None:
    """Run the kernels of each search."""
    clusters = write_clusters(folder / "clusters", make_rows())
    for how in ({"search": "exact"}, {"search": "clusters"}, {"search": "clusters", "probes": 2}):
        dedup(clusters, 0.9, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spawned_workers() -> Iterator[None]:
    """Workers have the environment and the memory of those that users start."""
    with dask.config.set({METHOD: "spawn"}):
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(temporary: Path) -> Iterator[None]:
    """Fail a test that leaves open files, sockets, threads, clients, clusters or temporary files behind.

    It comes before the other fixtures of a test and so ends after them, but not before those of a module or a session.
    """
    before, clusters = held(temporary), len(SHARED)
    yield
    if len(SHARED) > clusters:  # made for all tests, while this one ran
        return
    for seconds in (0, 0.05, 0.2, 1, 5, 20):  # processes end, and connections close, a little later
        time.sleep(seconds)
        left = held(temporary) - before
        if not left:
            return
        gc.collect()
    pytest.fail(f"left behind: {', '.join(sorted(left.elements()))}")


def held(temporary: Path) -> Counter[str]:
    """What this process holds that somebody has to give back."""
    clusters = [cluster for cluster in SpecCluster._instances if cluster.status != distributed.Status.closed]
    found = Counter(f"thread {t.name}" for t in threading.enumerate() if not t.name.startswith(LASTING))
    found.update(f"client {client.id}" for client in distributed.Client._instances if client.status != "closed")
    found.update(f"cluster {cluster.name}" for cluster in clusters)
    found.update(f"temporary {name}" for name in os.listdir(temporary) if not name.startswith(KEPT))
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # that of the listing
            continue
        if target.startswith("socket:"):  # clusters of a module or a session open more of them when they are used
            found["socket"] += not clusters
        elif not target.startswith(("/dev/", "/proc/", "anon_inode:", "pipe:")):
            found[f"file {target}"] += 1
    # A loop has a pair of them, to be woken by.
    found["socket"] -= 2 * sum(t.name == "IO loop" for t in threading.enumerate()) * (not clusters)
    return found


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """A Parquet file of 600 rows of 16 dimensions, with a text a row."""
    X = blobs()
    return write_embeddings(tmp_path / "rows.parquet", X, text=[f"text {i}" for i in range(len(X))])


@pytest.fixture(scope="session")
def two_workers() -> Iterator[distributed.LocalCluster]:
    """A cluster of two workers in processes of their own, which do little as long as nobody uses them."""
    with (
        dask.config.set(QUIET_CONFIG),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        SHARED.append(cluster)
        yield cluster


@pytest.fixture
def client(two_workers: distributed.LocalCluster) -> Iterator[distributed.Client]:
    """A client of that cluster, current for the length of the test."""
    with distributed.Client(two_workers) as connected:
        yield connected


@pytest.fixture
def thread_client() -> Iterator[Callable[[int], distributed.Client]]:
    """A function that gives a client with as many workers as asked for, all in this process."""
    opened: list = []

    def connect(workers: int) -> distributed.Client:
        cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=":0"
        )
        opened.extend([cluster, distributed.Client(cluster)])
        return opened[-1]

    yield connect
    for each in reversed(opened):
        each.close()
