"""Rows on a device: norms, unit length and cosines have the bits of the processor; the memory it takes is known."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import dask
import numpy as np
import pytest

import daskmeans as dkm
from daskmeans.errors import ClusterError, MemoryForecastError, RunError
from daskmeans.kernels import distances
from daskmeans.kernels import norms as kernels_norms
from daskmeans.kernels import step as kernels_step
from daskmeans.kernels.gpu import dense, norms
from daskmeans.kernels.gpu.device import Copy, Cuda, Device
from daskmeans.kernels.gpu.memory import nearest_bytes, pairs_bytes
from daskmeans.kernels.sums import largest_coordinate
from daskmeans.kmeans.memory import check_compare
from daskmeans.runtime import gpus
from daskmeans.tuning import Tuning
from helpers import KINDS, adversarial, blobs


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_what_follows_from_them_are_those_of_the_cpu(device, kind):
    X, C = adversarial(kind, 60, 37, 9, seed=1)
    device.tuning = Tuning(coordinates=37 * 16)
    there, squares = device.xp.asarray(X), kernels_norms.squared_norms64(X)
    found = norms.squared_norms(device, there)
    np.testing.assert_array_equal(device.to_host(found), squares)
    assert norms.largest_coordinate(device, there) == largest_coordinate(X) == np.abs(X).max()
    expected = np.empty_like(X)
    kernels_norms.unit_rows(X, expected)
    np.testing.assert_array_equal(device.to_host(norms.unit_rows(device, there, found)), expected)
    labels = np.random.default_rng(0).integers(0, 9, 60).astype(np.int32)
    cosines = norms.cosine_distances(device, there, device.xp.asarray(C), device.xp.asarray(labels))
    np.testing.assert_array_equal(device.to_host(cosines), distances.cosine_distances(X, C, labels))
    infinite, large, zero, _ = kernels_norms.find_unusual_rows(X)
    assert norms.is_usual(device, found, True) == (max(infinite, zero) < 0)
    if not norms.is_usual(device, found, False):
        assert (squares > norms.LARGE).any()
    else:
        assert max(infinite, large) < 0


def test_rows_of_unit_length_stay_what_they_are(device):
    X = device.xp.asarray(np.eye(5, dtype=np.float32))
    assert norms.unit_rows(device, X, norms.squared_norms(device, X)) is X
    bad = np.float32([[1, np.nan], [1, 0]])
    assert not norms.is_usual(device, norms.squared_norms(device, device.xp.asarray(bad)), False)


# --- memory ---

SMALL = Tuning(scores=1 << 17, coordinates=1 << 15)


def peak(function) -> int:
    """Bytes of numpy's that a second call of `function` takes, as a first one compiles."""
    function()
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(4000, 300, 64), (2000, 20, 500), (300, 1000, 16), (3000, 3, 8)])
def test_comparing_takes_no_more_than_was_forecast(shape):
    """By numpy, whose arrays are those of cupy: with tiles that do not hold all rows."""
    n, k, d = shape
    X, device = blobs(n, d=d, k=30), Device(SMALL)
    centroids = X[:k] + np.float32(0.01)
    need = nearest_bytes(n, k, d, SMALL)
    assert (
        peak(lambda: dense.nearest_centroids(device, X, centroids)) < need + 12 * n
    )  # labels and squares come to memory
    assert need < 40 * peak(lambda: dense.nearest_centroids(device, X, centroids))


@pytest.mark.parametrize("shape", [(1500, 64), (300, 500)])
def test_comparing_bands_takes_no_more_than_was_forecast(shape):
    n, d = shape
    X, device = blobs(n, d=d, k=200), Device(SMALL)
    X /= np.linalg.norm(X, axis=1, keepdims=True)

    def compare():
        rows = dense.encode_unit_rows(device, X)
        return sum(len(found.scores) for found in dense.find_pairs(device, rows, rows, np.float32(0.9), same=True))

    found = compare()
    assert peak(compare) < pairs_bytes(n, d, SMALL) + 25 * found


def test_a_device_that_is_too_small_is_told_of_with_the_remedy():
    with pytest.raises(MemoryForecastError, match=r"GiB of device memory(.|\n)*PARTITION_BYTES(.|\n)*DEVICE=cpu"):
        check_compare(1_000_000, 4096, 768, 1 << 30)
    check_compare(1_000_000, 4096, 768, 16 << 30)
    check_compare(1000, 4096, 768, 2 << 30)  # smaller partitions, as it says


def test_a_fit_and_an_assignment_are_refused_before_they_begin(device, monkeypatch):
    X = blobs(200)
    km = dkm.KMeans(5).fit(X)
    monkeypatch.setattr(device, "memory", lambda: 1 << 10)
    with dask.config.set({"daskmeans.device": "gpu"}):
        monkeypatch.setattr(dense, "encode_centroids", lambda *args: pytest.fail("it was begun"))
        monkeypatch.setattr("daskmeans.kmeans.estimator.seed_centroids", lambda *args: pytest.fail("it was begun"))
        for work in (lambda: dkm.KMeans(5).fit(X), lambda: km.predict(X)):
            with pytest.raises(MemoryForecastError, match="comparing rows of 16 dimensions with 5 centroids"):
                work()


def test_rows_stay_on_a_device_only_as_far_as_a_pass_leaves_room(device, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: 1 << 30)
    stayed, add = [], kernels_step.GpuStep.add

    def counted(self, X, arrays, begins, copy):
        found = add(self, X, arrays, begins, copy)
        assert copy is None or found is copy  # what stays is not sent again
        stayed.append(found)
        return found

    monkeypatch.setattr(kernels_step.GpuStep, "add", counted)
    for others, expected in ((0, False), (1 << 30, True)):
        stayed.clear()
        other = Copy(device, [], others)
        with dask.config.set({"daskmeans.device": "gpu"}):
            dkm.KMeans(5).fit(blobs(500))
        assert {copy is None for copy in stayed} == {expected}
        assert expected or sum(copy.nbytes for copy in set(stayed)) == 500 * dense.row_bytes(16)
        stayed.clear()
        assert device.copied() == other.nbytes  # after the fit nothing stays


def test_a_full_device_is_an_error_of_ours(device):
    class OutOfMemoryError(MemoryError):
        """As cupy's is."""

    with pytest.raises(RunError, match=r"device is full \(OutOfMemoryError(.|\n)*remedy"), device.turn():
        raise OutOfMemoryError("Out of memory allocating 1,024 bytes")
    with device.turn(), device.turn():  # a thread may take its turn inside of its turn
        pass


# --- one GPU for each worker ---


def test_workers_that_share_a_gpu_are_refused():
    gpus.refuse_shared_gpus(["a 1", "a 2", "b 1"])
    with pytest.raises(ClusterError, match=r"a 1: 2 workers share one GPU(.|\n)*dask cuda worker"):
        gpus.refuse_shared_gpus(["a 1", "b 1", "a 1"])


def test_before_a_fit_or_a_search_begins(device, thread_client, monkeypatch, tmp_path, embeddings):
    client = thread_client(2)  # two workers, one process, one device
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(4), threshold=0.9, client=client)
    with dask.config.set({"daskmeans.device": "gpu"}):
        monkeypatch.setattr(
            "daskmeans.kmeans.estimator.load_blocks", lambda *args, **kwargs: pytest.fail("rows were read")
        )
        with pytest.raises(ClusterError, match="2 workers share one GPU"):
            dkm.KMeans(4).fit(blobs(), client=client)
        with pytest.raises(ClusterError, match="2 workers share one GPU"):
            dkm.dedup(tmp_path / "out" / "clusters", threshold=0.9, client=client)


def test_parts_of_a_gpu_have_names_of_their_own(monkeypatch):
    device = Cuda.__new__(Cuda)
    whole = SimpleNamespace(pci_bus_id="0000:01:00.0")
    device.xp = SimpleNamespace(cuda=SimpleNamespace(Device=lambda: whole))
    for visible, name in {"": "0000:01:00.0", "1,0": "0000:01:00.0", "MIG-5f,MIG-6a": "0000:01:00.0 MIG-5f"}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert device.name() == name
