"""The engine cuml: what it asks of cuML and makes of the answer, with scikit-learn standing in; and the real one."""

# ruff: noqa: F811 (fixtures are arguments of tests)
from __future__ import annotations

import inspect
import sys
import threading
import types
from pathlib import Path

import dask
import distributed
import numpy as np
import pytest
from distributed import futures_of
from sklearn.cluster import KMeans as Reference

import daskmeans as dkm
from daskmeans import KMeans
from daskmeans.errors import ClusterError, MemoryForecastError, MissingExtraError, RunError, UsageError
from daskmeans.kernels.gpu.memory import DEVICE_SHARE
from daskmeans.kmeans.memory import check_devices, device_bytes
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.runtime import cluster
from daskmeans.runtime import gpus as installed
from daskmeans.runtime.cluster import ClusterSettings
from daskmeans.steps.fit import fit
from fake_cuml import (  # noqa: F401
    GIB,
    Hangs,
    NeverConverges,
    NotFinite,
    OfAnotherWorker,
    OutOfMemory,
    StandIn,
    install,
    module,
    single_gpu,
    two,
)
from helpers import blobs


def test_the_rows_of_each_worker_stay_there_once_and_normalised(install, two):
    made, X = install(), blobs()
    km = KMeans(6, engine="cuml", random_state=3).fit(X, client=two)
    (used,) = made
    assert {len(workers) for workers in used.places} == {1}
    assert len({*map(tuple, used.places)}) == 2
    np.testing.assert_allclose(np.linalg.norm(used.rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sort(used.rows[:, 0]), np.sort(X[:, 0] / np.linalg.norm(X, axis=1)), rtol=1e-5)
    assert km.converged_ and km.n_iter_ < 300


def test_labels_and_inertia_are_those_of_our_own_pass(install, two):
    install()
    X = blobs()
    km = KMeans(6, engine="cuml").fit(X, client=two)
    ours = KMeans(6, init=km.cluster_centers_, max_iter=0).fit(X)
    np.testing.assert_array_equal(km.labels_, ours.labels_)
    assert len(np.unique(km.labels_)) == 6
    assert km.inertia_ == ours.inertia_
    assert km.inertia_history_ == [pytest.approx(km.inertia_, rel=1e-4)]
    assert km.iterations_[-1]["cuml"] == "26.10.00"


def test_knobs_have_the_same_meaning_as_for_the_native_engine(install, two):
    made, X = install(), blobs()
    settings = {"tol": 0.5, "max_iter": 7, "oversampling_factor": 3.0, "max_samples_per_batch": 99, "n_init": 2}
    KMeans(6, engine="cuml", random_state=2**40 + 5, normalize=False, **settings).fit(X, client=two)
    assert [each.knobs["random_state"] for each in made] == [5, 6]
    for each in made:
        assert each.knobs["tol"] == pytest.approx(0.5 * X.var(axis=0).mean(), rel=1e-5)  # theirs is not relative
        assert (each.knobs["max_iter"], each.knobs["n_clusters"], each.knobs["n_init"]) == (7, 6, 1)
        assert (each.knobs["oversampling_factor"], each.knobs["max_samples_per_batch"]) == (3.0, 99)
        assert each.init == "k-means||"


def test_the_best_run_is_kept(install, two):
    made, X = install(), blobs()
    km = KMeans(12, engine="cuml", init="random", n_init=4, max_iter=2).fit(X, client=two)
    assert km.inertia_ == pytest.approx(min(each.inertia_ for each in made), rel=0.05)
    others = [KMeans(12, init=each.cluster_centers_, max_iter=0).fit(X).inertia_ for each in made]
    assert km.inertia_ == min(others)


def test_a_tolerance_of_zero_can_be_reached(install, two):
    made = install()
    KMeans(4, engine="cuml", tol=0).fit(blobs(), client=two)
    assert 0 < made[0].knobs["tol"] < 1e-20


def test_random_rows_and_centroids_are_sent_to_the_workers_as_they_are(install, two):
    made, X = install(), blobs()
    start = X[:5].copy()
    KMeans(5, engine="cuml", init=start).fit(X, client=two)
    KMeans(5, engine="cuml", init="random", random_state=1, normalize=False).fit(X, client=two)
    KMeans(5, engine="cuml", init=lambda X, n_clusters, random_state: 2 * X[:n_clusters], normalize=False).fit(
        X, client=two
    )
    assert all(isinstance(each.knobs["init"], distributed.Future) for each in made)
    np.testing.assert_array_equal(made[0].init, start)
    np.testing.assert_array_equal(made[1].init, load_blocks(X, None, False, 1.0, 1, None).sample_rows(5, 1)[1])
    np.testing.assert_array_equal(made[2].init, 2 * X[:5])


def test_a_fit_that_used_up_its_updates_has_not_converged(install, two):
    install(NeverConverges)
    with pytest.warns(dkm.errors.ConvergenceWarning):
        km = KMeans(4, engine="cuml", max_iter=5).fit(blobs(), client=two)
    assert (km.n_iter_, km.converged_) == (5, False)


def test_workers_and_partitions_without_rows_take_no_part(install, thread_client):
    made, X = install(), blobs(n=70, copies=5)
    lazy = dask.array.concatenate([dask.array.from_array(X[:0], chunks=(1, 16)), dask.array.from_array(X, chunks=70)])
    KMeans(3, engine="cuml").fit(lazy, client=thread_client(3))
    assert len(made[0].rows) == 70
    assert len(made[0].places) == 1  # all rows are in one chunk


def test_fewer_rows_than_clusters_never_reach_cuml(install, two):
    made = install()
    with pytest.raises(UsageError, match="n_samples=600"):
        KMeans(601, engine="cuml").fit(blobs(), client=two)
    assert not made


def test_given_centroids_without_updates_need_no_cuml():
    X = blobs()
    km = KMeans(3, engine="cuml", init=X[:3].copy(), max_iter=0).fit(X)
    np.testing.assert_array_equal(km.cluster_centers_, X[:3])


@pytest.mark.parametrize(
    ("stand_in", "error", "words"),
    [
        (NotFinite, RunError, r"not finite(.|\n)*native"),
        (OfAnotherWorker, RunError, r"its workers found(.|\n)*same centroids on all workers"),
        (OutOfMemory, RunError, r"RuntimeError: 1 of 2 worker jobs failed(.|\n)*native"),
    ],
)
def test_what_cuml_gets_wrong_is_refused(install, two, stand_in, error, words):
    install(stand_in)
    with pytest.raises(error, match=words):
        KMeans(4, engine="cuml").fit(blobs(), client=two)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(Hangs, "released", threading.Event())
    yield Hangs
    Hangs.released.set()


def test_a_worker_that_is_lost_ends_the_fit_at_once(install, thread_client, hanging, monkeypatch):
    monkeypatch.setattr(hanging, "lose", True)
    install(hanging)
    with pytest.raises(ClusterError, match=r"inproc(.|\n)*was lost(.|\n)*Client\.restart"):
        KMeans(4, engine="cuml").fit(blobs(), client=thread_client(2))


def test_a_collective_that_hangs_ends_with_the_time(install, two, hanging):
    install(hanging)
    with (
        dask.config.set({"daskmeans.cuml-timeout": 0.3}),
        pytest.raises(ClusterError, match=r"within 0\.3 s(.|\n)*CUML_TIMEOUT"),
    ):
        KMeans(4, engine="cuml").fit(blobs(), client=two)


def test_rows_that_do_not_fit_onto_the_devices_stay_in_memory(install, two, caplog):
    caplog.set_level("INFO", "daskmeans")
    X = blobs(n=4000)
    made = install(memory=200_000)
    small = KMeans(4, engine="cuml", random_state=0).fit(X, client=two)
    (used,) = made
    buffer = used.knobs["device_buffer_samples"]
    assert 0 < buffer < 2000
    assert f"{buffer:,} of them at a time" in caplog.text
    assert used.init.shape == (4, 16)  # cuML's own k-means|| is for rows that are there
    assert type(used.rows) is np.ndarray
    theirs = Reference(4, init=used.init, n_init=1).fit(X / np.linalg.norm(X, axis=1, keepdims=True))
    assert small.inertia_ == pytest.approx(theirs.inertia_, rel=1e-4)


def test_centroids_that_do_not_fit_onto_a_device_are_refused_with_the_numbers(install, two):
    made = install(memory=1 << 12)
    with pytest.raises(
        MemoryForecastError, match=r"4 clusters of 16 dimensions(.|\n)*kiB of device memory(.|\n)*--sample"
    ):
        KMeans(4, engine="cuml").fit(blobs(), client=two)
    assert not made


def test_fewer_rows_are_compared_at_once_where_distances_would_fill_the_device():
    rows, memory = {"a": 1000, "b": 10}, {"a": 32 * GIB, "b": 16 * GIB, "idle": 1}
    assert check_devices(rows, 64, 1000, 32768, 2.0, memory) == (32768, 0)
    batch, _ = check_devices(rows, 64, 100_000, 32768, 2.0, memory)
    assert 4 * batch * 100_000 * 2 <= 2 * GIB < 4 * (batch + 1) * 100_000 * 2


def test_a_buffer_leaves_room_for_what_else_lies_there():
    memory = {"a": 8 * GIB, "b": 2 * GIB}
    rows = {"a": 10_000_000, "b": 1_000_000}
    batch, buffer = check_devices(rows, 768, 1000, 32768, 2.0, memory)
    taken = device_bytes(2 * buffer, 768, 1000, batch, 2.0) + 4 * rows["b"]
    assert 0.9 * DEVICE_SHARE * 2 * GIB < taken <= DEVICE_SHARE * 2 * GIB
    with pytest.raises(ClusterError, match="b: a worker was lost"):
        check_devices(rows, 768, 1000, 32768, 2.0, {"a": GIB})


def test_missing_packages_are_an_extra(monkeypatch):
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "daskmeans\[gpu\]"'):
        KMeans(4, engine="cuml").fit(blobs())


def test_without_a_cluster_there_is_no_cuml(install):
    install()
    with pytest.raises(UsageError, match=r"LocalCUDACluster"):
        KMeans(4, engine="cuml").fit(blobs())


@pytest.mark.parametrize(
    ("lacking", "why"), [("device", "no CUDA-capable device"), ("package", "cudf is not installed")]
)
def test_workers_that_cannot_run_it_are_named(install, two, monkeypatch, lacking, why):
    install()
    if lacking == "device":
        answers = iter([(0, GIB)])  # there is one here, but not on the workers
        monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "memGetInfo", lambda: next(answers, None) or no_device())
    else:
        answers = iter([[], [], ["cudf"], ["cudf"]])  # nothing is missing here, but on the workers
        monkeypatch.setattr(installed, "missing_packages", lambda: next(answers))
    with pytest.raises(ClusterError, match=rf"inproc(.|\n)*2 of 2 workers cannot run cuML \((.|\n)*{why}"):
        KMeans(4, engine="cuml").fit(blobs(), client=two)


def test_a_client_without_a_device_is_told_before_the_fit(install, two, monkeypatch):
    made = install()
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "memGetInfo", no_device)
    with pytest.raises(UsageError, match=r"this process cannot use a CUDA device(.|\n)*no CUDA-capable device"):
        KMeans(4, engine="cuml").fit(blobs(), client=two)
    assert not made


def test_workers_that_share_a_device_are_refused(install, two, monkeypatch):
    made = install()
    monkeypatch.setattr(sys.modules["cupy"].cuda, "Device", lambda: types.SimpleNamespace(pci_bus_id="0000:01:00.0"))
    with pytest.raises(ClusterError, match=r"0000:01:00\.0: 2 workers share one GPU"):
        KMeans(4, engine="cuml").fit(blobs(), client=two)
    assert not made


def no_device():
    raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


def test_auto_is_the_native_engine(install, two):
    made, X = install(), blobs()
    km = KMeans(4).fit(X, client=two)
    assert not made
    np.testing.assert_array_equal(km.cluster_centers_, KMeans(4, engine="native").fit(X).cluster_centers_)


def test_a_model_on_disk_says_who_made_it_and_works_without_cuml(install, two, tmp_path, embeddings, monkeypatch):
    made = install()
    model = fit(embeddings, tmp_path / "model", KMeans(5, engine="cuml"), client=two)
    assert '"engine": "cuml"' in (tmp_path / "model" / "model.json").read_text()
    again = fit(embeddings, tmp_path / "again", KMeans(5, engine="native", max_iter=0, init=model.cluster_centers_))
    assert again.inertia_ == model.inertia_
    assert len(made) == 1
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    np.testing.assert_array_equal(KMeans.load(tmp_path / "model").predict(blobs()), again.predict(blobs()))


def test_a_refused_engine_leaves_no_unfinished_step(tmp_path, embeddings, monkeypatch):
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError):
        fit(embeddings, tmp_path / "model", KMeans(5, engine="cuml"))
    fit(embeddings, tmp_path / "model", KMeans(5))


def test_runs_that_had_ended_are_not_made_again(install, two):
    made, X, kept = install(), blobs(), {}

    class Kept:
        def last(self, run):
            return kept.get(run)

        def save(self, run, fit):
            kept[run] = fit

    settings = {"n_clusters": 4, "engine": "cuml", "n_init": 2}
    first = KMeans(**settings).fit(X, client=two, checkpoints=Kept())
    again = KMeans(**settings).fit(X, client=two, checkpoints=Kept())
    assert len(made) == 2
    np.testing.assert_array_equal(again.labels_, first.labels_)
    assert (again.inertia_, again.n_iter_) == (first.inertia_, first.n_iter_)


def test_an_array_of_blocks_holds_each_once_where_it_lies(two):
    blocks = load_blocks(blobs(), None, False, 1.0, 0, two)
    assert sum(blocks.rows_by_worker().values()) == 600
    rows = blocks.array(_rows, "test-rows")
    assert rows.shape == (600, 16)
    futures = futures_of(two.persist(rows))
    assert len(futures) == rows.npartitions
    by_worker = {}
    for future in futures:
        (worker,) = two.who_has([future])[future.key]
        by_worker[worker] = by_worker.get(worker, 0) + len(future.result())
    assert by_worker == blocks.rows_by_worker()
    np.testing.assert_array_equal(rows.compute(), blobs())


def _rows(block):
    with block.open() as arrays:
        return arrays["rows"].copy()


# --- clusters of GPUs ---


class FakeCluster(distributed.LocalCluster):
    """dask_cuda.LocalCUDACluster of 26.10, its parameters without what we leave alone; workers are threads."""

    asked: dict = {}  # noqa: RUF012

    def __init__(
        self,
        CUDA_VISIBLE_DEVICES=None,
        n_workers=None,
        threads_per_worker=1,
        memory_limit="auto",
        device_memory_limit="default",
        enable_cudf_spill=False,
        cudf_spill_stats=0,
        local_directory=None,
        protocol=None,
        enable_tcp_over_ucx=None,
        enable_infiniband=None,
        enable_nvlink=None,
        enable_rdmacm=None,
        rmm_pool_size=None,
        rmm_maximum_pool_size=None,
        rmm_managed_memory=False,
        rmm_async=False,
        rmm_allocator_external_lib_list=None,
        rmm_release_threshold=None,
        rmm_log_directory=None,
        rmm_track_allocations=False,
        log_spilling=False,
        pre_import=None,
        **kwargs,
    ):
        type(self).asked = {name: value for name, value in locals().items() if name not in ("self", "kwargs")}
        if enable_nvlink and protocol == "tcp":
            raise TypeError("Enabling InfiniBand or NVLink requires protocol='ucx'")
        super().__init__(
            n_workers=n_workers, threads_per_worker=threads_per_worker, processes=False, memory_limit=0, **kwargs
        )


@pytest.fixture
def gpus(install, monkeypatch):
    install()
    monkeypatch.setitem(sys.modules, "dask_cuda", module("dask_cuda", LocalCUDACluster=FakeCluster))
    monkeypatch.setattr(installed, "listed", lambda: [Path("0000:01:00.0"), Path("0000:02:00.0")])
    monkeypatch.setattr(dask.system, "CPU_COUNT", 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_auto_is_a_worker_for_each_gpu_where_there_are_some(gpus):
    settings = ClusterSettings(dashboard_address=":0")
    with cluster.open_cluster(settings) as client:
        assert list(client.nthreads().values()) == [4, 4]  # our own kernels run on cores
    assert FakeCluster.asked["device_memory_limit"] == "default"


@pytest.mark.parametrize("variable", ["", "-1", "1"])
def test_auto_is_the_cores_where_gpus_are_hidden_or_too_few(gpus, monkeypatch, variable):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert not cluster._is_gpu_cluster(ClusterSettings(n_workers=2))


def test_gpus_that_are_not_there_are_not_asked_for(gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no GPU"), cluster.open_cluster(ClusterSettings(device="gpu")):
        pass


def test_options_of_gpu_workers_go_by_their_names(gpus):
    asked = {
        "rmm_pool_size": "0.5",
        "rmm_maximum_pool_size": "0.9",
        "rmm_managed_memory": True,
        "rmm_async": True,
        "device_memory_limit": "0.7",
        "enable_cudf_spill": True,
        "protocol": "inproc",
        "enable_tcp_over_ucx": True,
        "enable_infiniband": False,
        "enable_nvlink": True,
        "enable_rdmacm": False,
    }
    with cluster.open_cluster(ClusterSettings(device="gpu", dashboard_address=":0", n_workers=1, **asked)):
        assert {name: FakeCluster.asked[name] for name in asked} == asked


def test_options_that_contradict_one_another_are_told(gpus):
    settings = ClusterSettings(device="gpu", protocol="tcp", enable_nvlink=True)
    with pytest.raises(ClusterError, match="requires protocol"), cluster.open_cluster(settings):
        pass


# --- the real thing ---


@pytest.fixture
def gpu_client():
    pytest.importorskip("cuml.dask", reason='no cuML: pip install "daskmeans[gpu]"', exc_type=ImportError)
    with cluster.open_cluster(ClusterSettings(device="gpu", dashboard_address=":0")) as connected:
        yield connected


@pytest.mark.gpu
def test_the_stand_ins_have_the_parameters_of_the_real_ones(gpu_client):
    import cuml.cluster
    import dask_cuda
    from cuml.dask.cluster import KMeans as Theirs

    for real, ours in [
        (Theirs.__init__, StandIn.__init__),
        (Theirs.fit, StandIn.fit),
        (cuml.cluster.KMeans.__init__, single_gpu),
        (dask_cuda.LocalCUDACluster.__init__, FakeCluster.__init__),
    ]:
        given = [p for p in inspect.signature(real).parameters.values() if p.name != "self"]
        assert given == [p for p in inspect.signature(ours).parameters.values() if p.name != "self"], real


@pytest.mark.gpu
@pytest.mark.parametrize("init", ["auto", "random", "array"])
def test_cuml_ends_as_low_as_the_native_engine(gpu_client, init):
    X = blobs(n=20_000, d=32, k=50)
    start = X[:50].copy() if init == "array" else init
    theirs = KMeans(50, engine="cuml", init=start, n_init=3, tol=0).fit(X, client=gpu_client)
    ours = KMeans(50, init="k-means||" if init == "auto" else start, n_init=3, tol=0).fit(X)
    assert theirs.inertia_ < 1.05 * ours.inertia_
    assert theirs.n_iter_ >= 1
    again = KMeans(50, init=theirs.cluster_centers_, max_iter=0).fit(X)
    np.testing.assert_array_equal(theirs.labels_, again.labels_)


@pytest.mark.gpu
def test_files_go_through_cuml_to_decisions(gpu_client, tmp_path, embeddings: Path):
    result = dkm.run(embeddings, tmp_path / "out", KMeans(8, engine="cuml"), threshold=0.9, client=gpu_client)
    assert result.summary["rows"] == 600
