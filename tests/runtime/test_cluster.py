"""Clusters of this machine do not oversubscribe it; schedulers that are there are used, or their absence explained."""

from __future__ import annotations

import os

import dask
import distributed
import pytest

from daskmeans import errors
from daskmeans.runtime import client as client_module
from daskmeans.runtime import gpus
from daskmeans.runtime.client import cores
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from helpers import blas_threads, square

pytestmark = pytest.mark.usefixtures("spawned_workers")


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (2, 1), (1, 2)])
def test_worker_threads_times_kernel_threads_is_the_number_of_cores(workers, threads):
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    settings = ClusterSettings(n_workers=workers, threads_per_worker=threads, dashboard_address=":0")
    with open_cluster(settings) as client:
        assert client.nthreads() and set(client.nthreads().values()) == {threads}
        assert len(client.nthreads()) == workers
        found = set(client.run(blas_threads).values())
    assert found == {max(1, cores() // (workers * threads))}
    assert {name: os.environ.get(name) for name in before} == before


def test_workers_respect_omp_num_threads(monkeypatch):
    monkeypatch.setattr(client_module, "_allowed", "1")
    with open_cluster(ClusterSettings(dashboard_address=":0")) as client:
        assert len(client.nthreads()) == 1
        assert set(client.run(blas_threads).values()) == {1}


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_options_of_gpu_workers_are_refused_where_none_are_started(device):
    settings = ClusterSettings(device=device, rmm_pool_size="1GB", enable_nvlink=False)
    with pytest.raises(errors.UsageError, match="--rmm-pool-size, --enable-nvlink"), open_cluster(settings):
        pass


def test_a_scheduler_that_is_there_is_used_and_left_running(two_workers):
    for _ in range(2):
        with open_cluster(ClusterSettings(scheduler=two_workers.scheduler_address)) as client:
            assert client.submit(square, 3).result() == 9


def test_an_unreachable_scheduler_is_an_error_within_the_timeout(tmp_path):
    with (
        dask.config.set({"daskmeans.connect-timeout": 0.3}),
        pytest.raises(errors.ClusterError, match=r"no scheduler answered(.|\n)*dask scheduler"),
        open_cluster(ClusterSettings(scheduler="tcp://127.0.0.1:9")),
    ):
        pass
    with pytest.raises(errors.NotFoundError), open_cluster(ClusterSettings(scheduler_file=str(tmp_path / "no"))):
        pass


def test_a_gpu_without_its_packages_is_a_missing_extra():
    with pytest.raises(errors.MissingExtraError, match="gpu"), open_cluster(ClusterSettings(device="gpu")):
        pass


def test_a_scheduler_without_workers_is_an_error_within_the_timeout(monkeypatch):
    wait = distributed.Client.wait_for_workers
    monkeypatch.setattr(distributed.Client, "wait_for_workers", lambda self, n, timeout: wait(self, n, timeout / 100))
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty,
        dask.config.set({"daskmeans.connect-timeout": 30}),
        pytest.raises(errors.ClusterError, match=r"no workers(.|\n)*dask worker"),
        open_cluster(ClusterSettings(scheduler=empty.scheduler_address)),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"n_workers": 2}, "--n-workers"),
        ({"rmm_pool_size": "1GB", "memory_limit": "1GB"}, "--memory-limit, --rmm-pool-size"),
    ],
)
def test_what_workers_are_is_not_asked_of_a_scheduler_that_is_there(settings, where):
    with (
        pytest.raises(errors.UsageError, match=f"{where}: the workers"),
        open_cluster(ClusterSettings(scheduler="tcp://127.0.0.1:9", **settings)),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "there", "words"),
    [
        ("gpu", None, "2 of 2 workers compute on the CPU"),
        ("cpu", gpus.GpuInfo("a", 1), "1 of 2 workers compute on a GPU"),
    ],
)
def test_workers_of_a_scheduler_compute_on_what_is_asked_for(two_workers, monkeypatch, device, there, words):
    monkeypatch.setattr(gpus, "query_gpus", lambda client: [None, there])
    with (
        pytest.raises(errors.UsageError, match=f"--device {device}: {words}"),
        open_cluster(ClusterSettings(device=device, scheduler=two_workers.scheduler_address)),
    ):
        pass
    monkeypatch.setattr(gpus, "query_gpus", lambda client: [gpus.GpuInfo("a", 1) if device == "gpu" else None])
    with open_cluster(ClusterSettings(device=device, scheduler=two_workers.scheduler_address)):
        pass


@pytest.mark.parametrize(("theirs", "words"), [(None, "no daskmeans"), ("9.9.9", r"daskmeans 9\.9\.9")])
def test_workers_that_could_not_run_our_tasks_are_named(two_workers, monkeypatch, theirs, words):
    told = {"workers": {"tcp://10.0.0.7:1234": {"packages": {"daskmeans": theirs}}}}
    monkeypatch.setattr(distributed.Client, "get_versions", lambda self, packages: told)
    with (
        pytest.raises(errors.ClusterError, match=rf"10\.0\.0\.7(.|\n)*{words}"),
        open_cluster(ClusterSettings(scheduler=two_workers.scheduler_address)),
    ):
        pass
