"""What all tests share: small embeddings on disk, and a cluster of two workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import distributed
import hypothesis
import pytest

from daskmeans import gpus
from daskmeans.kernels.device import Cuda, Device
from helpers import blobs, write_embeddings

# The same cases in every run; the first call of a kernel compiles it, so time per case means nothing.
hypothesis.settings.register_profile("daskmeans", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("daskmeans")


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
    monkeypatch.setattr(gpus, "_cuda", lambda: found)
    return found


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """A Parquet file of 600 rows of 16 dimensions, with a text a row."""
    X = blobs()
    return write_embeddings(tmp_path / "rows.parquet", X, text=[f"text {i}" for i in range(len(X))])


@pytest.fixture(scope="session")
def two_workers() -> Iterator[distributed.LocalCluster]:
    """A cluster of two workers in processes of their own."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
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
