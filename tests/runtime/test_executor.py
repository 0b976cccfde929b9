"""Tasks run in this process or on a cluster alike, kernels do not oversubscribe, errors arrive as they were."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import dask
import distributed
import numpy as np
import pytest
from rich.console import Console

from daskmeans import config, errors
from daskmeans.cli.displays import RichProgress
from daskmeans.runtime import executor, progress, resources
from daskmeans.runtime.client import current_client, log_event, run_on_workers
from helpers import DeadlyOnce, blas_threads, die, die_once, miss_a_file, nightly, square, take_memory


def tasks(numbers):
    return [dask.delayed(square, pure=False)(x) for x in numbers]


class Recorder:
    def __init__(self):
        self.lines = []

    def start(self, label, total):
        self.lines.append([label, total, 0, False])
        return len(self.lines) - 1

    def advance(self, line, note=""):
        self.lines[line][2] += 1

    def finish(self, line):
        self.lines[line][3] = True


@pytest.fixture(params=["here", "cluster"])
def place(request):
    return None if request.param == "here" else request.getfixturevalue("client")


def test_results_come_in_order_and_progress_counts_them(place):
    recorder = Recorder()
    with progress.show_on(recorder):
        assert executor.compute(tasks(range(20)), "squares", place) == [x * x for x in range(20)]
    assert recorder.lines == [["squares", 20, 20, True]]


def test_an_error_arrives_as_it_was_raised(place):
    with pytest.raises(errors.DataError, match="number -3: negative"):
        executor.compute(tasks([1, -3, 2]), "squares", place)


def test_shared_values_arrive_whole(place):
    for value in (np.arange(5), (1, "two"), [1, 2], {"a": 1}):
        shared = executor.broadcast(value, place)
        (found,) = executor.compute([dask.delayed(lambda v: repr(v), pure=False)(shared)], client=place)
        assert found == repr(value)


def test_held_results_stand_for_themselves_in_tasks(place):
    held = executor.persist(tasks([2, 3]), client=place)
    total = dask.delayed(sum, pure=False)(held)
    assert executor.compute([total], client=place) == [13]


def test_blas_has_one_thread_while_tasks_take_the_cores():
    before = blas_threads()
    assert executor.compute([dask.delayed(blas_threads, pure=False)()]) == [1]
    assert blas_threads() == before


def test_blas_has_its_threads_again_once_the_last_of_several_callers_is_done():
    before, ways = (
        blas_threads(),
        [lambda f: executor.call_in_threads([f, int]), lambda f: executor.compute([dask.delayed(f)()])],
    )

    def caller(way, arrived, leave):
        def work():
            arrived.set()
            assert leave.wait(60)
            return blas_threads()

        return way(work)

    with ThreadPoolExecutor(2) as pool:
        for way in ways:
            events = [(threading.Event(), threading.Event()) for _ in range(2)]
            found = []
            for arrived, leave in events:  # the second comes while the first is there, and stays longer
                found.append(pool.submit(caller, way, arrived, leave))
                assert arrived.wait(60)
            for (_, leave), answer in zip(events, found, strict=True):
                leave.set()
                assert answer.result()[0] == 1
            assert blas_threads() == before


def test_inside_a_task_there_is_no_client(client):
    assert current_client() is client
    (found,) = executor.compute([dask.delayed(lambda: current_client() is None, pure=False)()])
    assert found


def test_peak_memory_is_measured_anew():
    resources.reset_peaks()
    before = resources.peak_bytes()["client"]
    block = np.ones(40_000_000)
    assert resources.peak_bytes()["client"] > before + 300e6
    del block
    resources.reset_peaks()
    assert resources.peak_bytes()["client"] < before + 100e6


def test_limits_of_workers_are_known_while_the_client_asks_for_less(client, monkeypatch):
    limits = [worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    periodic = client._update_scheduler_info  # what the client does every two seconds: it asks for no worker
    monkeypatch.setattr(client, "_update_scheduler_info", lambda n_workers=0: periodic(0))
    assert len(limits) == 2
    assert resources.memory_per_task(client) == int(0.8 * min(limits)) - resources.BASE_BYTES
    assert resources.memory_to_keep(client) == int(0.6 * min(limits)) - resources.BASE_BYTES - resources.COMPILE_BYTES


def test_what_is_asked_of_each_worker_outlives_one_that_dies(tmp_path):
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        found = run_on_workers(partial(die_once, tmp_path / "marker"), client)
    assert list(found.values()) == ["alive"]


def test_an_error_in_a_worker_is_not_a_worker_lost(client):
    with pytest.raises(FileNotFoundError):
        run_on_workers(miss_a_file, client)


def test_events_reach_the_scheduler(client):
    log_event("daskmeans-test", {"n": 1})
    assert client.get_events("daskmeans-test")[0][1] == {"n": 1}


def test_rich_progress_draws_bars():
    text = io.StringIO()
    with RichProgress(Console(file=text, width=100)) as display, progress.show_on(display):
        executor.compute(tasks(range(3)), "three squares")
        with progress.open_line("as long as it takes") as line:
            line.advance("inertia 7")
    assert "three squares" in text.getvalue()
    assert "3/3" in text.getvalue()
    assert "inertia 7" in text.getvalue()


def test_configuration_is_overridden_by_dask():
    assert config.get_bytes("partition-bytes") == 64 << 20
    with dask.config.set({"daskmeans.partition-bytes": "1MiB"}):
        assert config.get_bytes("partition-bytes") == 1 << 20


def pause(dask_worker):
    dask_worker.periodic_callbacks["memory_monitor"].stop()  # it would find that there is enough
    dask_worker.status = distributed.Status.paused


@pytest.mark.parametrize("wait", ["compute", "feed", "answers"])
@pytest.mark.parametrize(("state", "words"), [("closed", "no worker is left"), ("paused", "1 are paused")])
def test_a_step_does_not_wait_for_ever_for_workers(wait, state, words, thread_client):
    client = thread_client(1)
    client.wait_for_workers(1)
    if state == "closed":
        client.cluster.scale(0)
        while client.nthreads():
            time.sleep(0.01)
    else:
        client.run(pause)
    with (
        dask.config.set({"daskmeans.workers-timeout": 0.5}),
        pytest.raises(errors.ClusterError, match=rf"({words}|takes data)(.|\n)*for 0\.5 s(.|\n)*run the command again"),
    ):
        if wait == "compute":
            executor.compute(tasks(range(3)), "squares", client)
        elif wait == "feed":
            executor.scatter_map(square, [(x,) for x in range(9)], "square", "squares", client)
        else:
            executor.gather_or_lost(client.map(square, range(3)), None, client)


OUT_OF_MEMORY = r"ran out of memory \(at \d"


@pytest.mark.parametrize(
    ("end", "words", "shared"),
    [
        (take_memory, OUT_OF_MEMORY, True),
        nightly(take_memory, OUT_OF_MEMORY, False),
        nightly(die, "were lost", True),
        (die, "were lost", False),
    ],
)
def test_workers_that_are_lost_are_called_that(shared, end, words):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="400MiB", dashboard_address=":0", silence_logs="CRITICAL"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        argument = executor.broadcast(np.zeros(3), client) if shared else 0
        with pytest.raises(
            errors.ClusterError, match=rf"{words}.* while running a task of 'sums'(.|\n)*--memory-limit"
        ):
            executor.compute([dask.delayed(end, pure=False)(argument)], "sums", client)


def test_nothing_runs_any_more_once_an_error_is_out(monkeypatch):
    monkeypatch.setattr(dask.system, "CPU_COUNT", 2)
    began, written = threading.Event(), []

    def fail():
        began.wait(10)
        raise errors.DataError("a bad row")

    def write():
        began.set()
        time.sleep(0.2)
        written.append("a file")

    with pytest.raises(errors.DataError):
        executor.compute([dask.delayed(fail, pure=False)(), dask.delayed(write, pure=False)()])
    assert written == ["a file"]


@pytest.mark.nightly
def test_sending_to_all_outlives_a_worker_that_dies_of_it(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),  # for which the scheduler tries to reach it
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        shared = executor.broadcast(DeadlyOnce(tmp_path), client)
        assert (
            executor.compute([dask.delayed(str, pure=False)(shared) for _ in range(4)], client=client)
            == ["received"] * 4
        )
    assert len(list(tmp_path.iterdir())) > 2  # the second has died of it, and it was sent again


def test_a_scheduler_that_is_lost_is_told_of_by_whom_it_sends_nothing(thread_client):
    client = thread_client(1)
    client.close()
    with pytest.raises(errors.ClusterError, match=r"the scheduler(.|\n)*was lost(.|\n)*again"):
        executor.broadcast([1], client)


@pytest.mark.parametrize("wait", ["gather", "settle"])
def test_what_is_left_of_tasks_of_a_lost_scheduler_does_not_hide_it(wait, thread_client):
    client = thread_client(1)
    futures = [client.submit(time.sleep, 2)]
    threading.Timer(0.3, client.close).start()
    with pytest.raises(errors.ClusterError, match=r"the scheduler(.|\n)*was lost"):
        executor.gather(futures, "", client) if wait == "gather" else executor.wait(futures, "", client)
