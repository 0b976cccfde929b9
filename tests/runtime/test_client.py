"""Clients of every kind: a fit on them gives the bits of a fit in this process, or one sentence that says why not."""

from __future__ import annotations

import asyncio

import dask
import dask.array as da
import distributed
import numpy as np
import pytest

from daskmeans import KMeans, errors
from daskmeans.runtime import client as clients
from daskmeans.runtime import executor
from daskmeans.vectors.files import translate_read_errors
from helpers import blobs

X = blobs(n=60, d=4)
HERE = KMeans(3).fit(X).cluster_centers_


def lazy() -> da.Array:
    return da.from_array(X, chunks=(10, 4))


def fit_centers(client, rows=X) -> np.ndarray:
    return KMeans(3).fit(rows, client=client).cluster_centers_


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda k: k.cluster, errors.UsageError, r"it is of type LocalCluster(.|\n)*distributed\.Client\(cluster\)"),
        (lambda k: "tcp://a:1", errors.UsageError, r"client: 'tcp://a:1' is an address(.|\n)*Client\('tcp://a:1'\)"),
        (lambda k: distributed.Client, errors.UsageError, "it is of type type"),
        (lambda k: k.close() or k, errors.ClusterError, r"the client is closed(.|\n)*Client\(address\)"),
    ],
)
def test_what_is_no_open_client_is_named(make, error, words, thread_client, tmp_path):
    given = make(thread_client(1))
    for call in (
        lambda: KMeans(3).fit(X, client=given),
        lambda: KMeans(3).fit(X).score(X, client=given),
    ):
        with pytest.raises(error, match=words):
            call()


def test_an_asynchronous_client_works_in_a_thread_and_is_refused_in_its_loop(two_workers):
    async def fit_both() -> np.ndarray:
        async with distributed.Client(two_workers.scheduler_address, asynchronous=True) as client:
            for given in (client, None):  # it is the current client too
                with pytest.raises(errors.UsageError, match=r"asynchronous(.|\n)*asyncio\.to_thread"):
                    fit_centers(given)
            return await asyncio.to_thread(fit_centers, client)

    np.testing.assert_array_equal(asyncio.run(fit_both()), HERE)


def test_a_client_inside_a_task_leaves_room_for_its_tasks(thread_client):
    def fit_in_a_task(context: bool) -> np.ndarray:
        if context:
            with distributed.worker_client() as client:
                return fit_centers(client)
        return fit_centers(distributed.get_client())

    client = thread_client(1)  # with one thread
    for context in (True, False):
        np.testing.assert_array_equal(client.submit(fit_in_a_task, context).result(timeout=60), HERE)


def test_rows_of_another_cluster_are_named_with_both(thread_client):
    one, other = thread_client(1), thread_client(1)
    with one.as_current():
        rows = lazy().persist()
    for call in (lambda: fit_centers(other, rows), lambda: KMeans(3).fit(rows), lambda: KMeans(3).fit(rows[:30])):
        with pytest.raises(errors.UsageError) as caught:
            call()
        assert one.scheduler.address in str(caught.value)
        assert other.scheduler.address in str(caught.value)
    np.testing.assert_array_equal(fit_centers(one, rows), HERE)
    with distributed.Client(one.cluster, set_as_default=False) as again:  # of the same cluster
        np.testing.assert_array_equal(fit_centers(again, rows), HERE)


@pytest.mark.parametrize("end", ["closed", "cancelled"])
def test_rows_that_are_gone_are_called_that(end, thread_client):
    client = thread_client(1)
    with client.as_current():
        rows = lazy().persist()
    if end == "cancelled":
        client.cancel(rows)
    else:
        client.close()
    for given in (None, client) if end == "cancelled" else (None,):
        with pytest.raises(errors.ClusterError, match=rf"{end}(.|\n)*persist the rows again"):
            KMeans(3).fit(rows, client=given)


@pytest.mark.parametrize("rows", [X, "lazy"], ids=["array", "lazy"])
def test_a_cluster_without_workers_grows(rows, thread_client, caplog):
    client = thread_client(0)
    client.cluster.adapt(minimum=0, maximum=1, interval="50ms", wait_count=1000)
    found = fit_centers(client, lazy() if isinstance(rows, str) else rows)
    np.testing.assert_array_equal(found, HERE)
    assert "the cluster has no workers; waiting" in caplog.text


def test_a_cluster_that_stays_empty_ends_the_wait(thread_client, tmp_path, caplog):
    client = thread_client(0)
    with dask.config.set({"daskmeans.workers-timeout": 0.5}):
        for call in (lambda: fit_centers(client, lazy()), lambda: KMeans(3).fit(X)):
            with pytest.raises(errors.ClusterError, match=r"no worker is left \(for 0\.5 s"):
                call()


@pytest.mark.parametrize("rows", [X, "lazy"], ids=["array", "lazy"])
def test_annotations_say_where_rows_lie(rows, thread_client, monkeypatch):
    client, rows = thread_client(2), lazy() if isinstance(rows, str) else rows
    client.wait_for_workers(2)
    chosen = sorted(client.nthreads())[1]
    held: set[str] = set()
    gather = executor.gather_or_lost

    def note(*args: object) -> list:
        held.update(worker for workers in client.who_has().values() for worker in workers)
        return gather(*args)

    monkeypatch.setattr(executor, "gather_or_lost", note)
    with dask.annotate(workers=chosen):
        np.testing.assert_array_equal(fit_centers(client, rows), HERE)
    assert held == {chosen}
    with (
        dask.annotate(workers=["tcp://10.9.9.9:1"]),
        pytest.raises(errors.UsageError, match=r"10\.9\.9\.9(.|\n)*names no worker(.|\n)*" + chosen),
    ):
        fit_centers(client, rows)


def test_a_worker_without_daskmeans_is_named(thread_client, monkeypatch):
    client = thread_client(1)
    versions = {"workers": {"tcp://10.0.0.7:1": {"packages": {"daskmeans": None}}}}
    monkeypatch.setattr(distributed.Client, "get_versions", lambda self, packages: versions)

    def miss() -> None:
        raise ModuleNotFoundError("No module named 'daskmeans'", name="daskmeans")

    with pytest.raises(errors.ClusterError, match=r"10\.0\.0\.7(.|\n)*no daskmeans"):
        executor.compute([dask.delayed(miss)()], "", client)

    told = Exception("ModuleNotFoundError(\"No module named 'daskmeans'\")")  # in the words of distributed
    monkeypatch.setattr(distributed.Client, "run", lambda *_, **__: {"tcp://10.0.0.7:1": told})
    with pytest.raises(errors.ClusterError, match=r"10\.0\.0\.7(.|\n)*no daskmeans"):
        clients.run_on_workers(int, client)


def test_a_file_that_workers_do_not_see_is_named_with_one_of_them(client, tmp_path, monkeypatch):
    path = tmp_path / "rows.npy"
    path.write_bytes(b"")

    def miss(path: str) -> np.ndarray:
        raise FileNotFoundError(2, "No such file or directory", path)

    rows = da.from_delayed(dask.delayed(miss)(str(path)), (5, 4), np.float32)
    worker = sorted(client.nthreads())[0]
    monkeypatch.setattr(executor, "run_on_workers", lambda function, client: {worker: False})
    with pytest.raises(errors.NotFoundError) as caught:
        KMeans(3).fit(rows)
    assert worker in str(caught.value)
    assert caught.value.where == str(path)

    def read() -> None:
        with translate_read_errors(path):
            raise FileNotFoundError

    with pytest.raises(errors.NotFoundError, match=r"on the worker tcp://(.|\n)*all workers can read"):
        executor.compute([dask.delayed(read)()], "", client)
    with pytest.raises(errors.NotFoundError, match=r"no such file$"):
        read()
