"""Dense products give what the kernels for processors give, to the bit: by numpy here, by cupy where there is a GPU.

Those kernels have their own tests, against brute force.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import ModuleType

import dask
import numpy as np
import pyarrow as pa
import pytest

import daskmeans as dkm
from daskmeans.errors import ClusterError, UsageError
from daskmeans.kernels import distances as cpu
from daskmeans.kernels import quantize
from daskmeans.kernels.all_pairs import find_pairs, make_sketches
from daskmeans.kernels.backend import CPU, Gpu
from daskmeans.kernels.gpu import dense
from daskmeans.kernels.gpu.memory import pairs_bytes
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.simd import dot64, squared_distance64
from daskmeans.kernels.sums import move_rows, move_weighted_rows
from daskmeans.runtime import gpus
from daskmeans.tuning import DEFAULT, Tuning
from helpers import KINDS, adversarial, blobs, decisions_of, make_rows, write_clusters

SHAPES = [(70, 40, 120), (64, 16, 48), (33, 3, 2), (1, 1, 1), (50, 37, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_distances_are_those_of_the_cpu(device, kind, shape):
    n, d, k = shape
    X, C = adversarial(kind, n, d, k, seed=d)
    device.tuning = Tuning(scores=16 * k)  # sixteen rows at a time, and one row that is settled
    labels, squares = dense.nearest_centroids(device, X, C)
    expected = cpu.nearest_centroids(X, C)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(squares, expected[1])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(Gpu(device).nearest_labels(X, C), labels)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_within_their_bound(device, kind):
    """Of the true score, computed in float64, by as much as `_score_slack` allows: with tensor cores too."""
    X, C = adversarial(kind, 200, 130, 90, seed=3)
    center = C.mean(axis=0, dtype=float)
    to = dense.encode_centroids(device, C, center)
    rows = dense.encode_rows(device, device.xp.asarray(X), to.center)
    unit = rows.scale * to.rows.scale
    scores = device.to_host(device.product(to.rows.codes, rows.codes)).T.astype(float) * unit
    slack = device.to_host(dense._score_slack(device, rows, to.longest, to.error))
    true = (X - center) @ (C - center).T
    assert (np.abs(scores - true) <= slack[:, None]).all()


def test_few_rows_of_plain_data_are_settled(device, monkeypatch):
    """The bound is worth something: where nothing lies close together, hardly any row is compared in float64."""
    settled = []
    settle = dense._rerank_candidates
    monkeypatch.setattr(dense, "_rerank_candidates", lambda *args: settled.append(len(args[3])) or settle(*args))
    dense.nearest_centroids(device, *adversarial("plain", 2000, 64, 100, seed=1))
    assert sum(settled) < 100  # one in twenty


def test_sums_of_float64_are_added_in_the_order_of_the_cpu(device):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 50, 53)).astype(np.float32)
    there = device.xp.asarray(X), device.xp.asarray(Y)
    own = device.xp.arange(50)
    found = device.to_host(dense.squared_distances(device, *there, own, own))
    assert found.tolist() == [squared_distance64(x, y) for x, y in zip(X, Y, strict=True)]
    products = device.to_host(dense.sum_in_order(device.xp, there[0].astype(np.float64) * there[1]))
    assert products.tolist() == [dot64(x, y) for x, y in zip(X, Y, strict=True)]
    center = rng.normal(size=53)
    about = dense.squares_about(device, there[0], device.xp.asarray(center))
    np.testing.assert_array_equal(device.to_host(about), quantize.squares_about(X, center))


def test_sums_are_those_of_the_cpu(device):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(300, 7)) * 10).astype(np.float32)
    before, labels = rng.integers(-1, 5, 300, dtype=np.int32), rng.integers(0, 5, 300, dtype=np.int32)
    device.tuning = Tuning(coordinates=7 * 100)
    sums, counts = np.zeros((5, 7), np.int64), np.zeros(5, np.int64)
    moved = move_rows(X, before, labels, 2.0**45, sums, counts)
    found = dense.DeviceSums(device, (5, 7), 2.0**45)
    assert found.move(*map(device.xp.asarray, (X, before, labels))) == moved
    np.testing.assert_array_equal(found.to_host()[0], sums)
    np.testing.assert_array_equal(found.to_host()[1], counts)
    weights = np.rint(2.0**40 * rng.gamma(1.0, size=300)) + 1
    assert move_weighted_rows(X, before, labels, weights, 2.0**5, sums, counts) == moved
    weighted = dense.DeviceSums(device, (5, 7), 2.0**5)
    assert weighted.move(*map(device.xp.asarray, (X, before, labels, weights))) == moved
    np.testing.assert_array_equal(weighted.to_host()[0] + found.to_host()[0], sums)
    np.testing.assert_array_equal(weighted.to_host()[1] + found.to_host()[1], counts)


def unit_rows(n, d, seed):
    """Rows around a few directions, down to the last bit, with copies."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((5, d))[rng.integers(5, size=n)]
    X = X + rng.choice([0, 1e-7, 1e-3, 0.1, 0.5], (n, 1)) * rng.standard_normal((n, d))
    X = X.astype(np.float32)
    normalize_rows(X)
    return X


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("d", [8, 100])
def test_pairs_are_those_of_the_cpu(device, d, same):
    """The floor is the score of one of the pairs, to the bit."""
    X = unit_rows(120, d, seed=d)
    Y = X if same else unit_rows(90, d, seed=d)[::-1].copy()
    for mine, theirs in {(scores, coordinates) for scores in (1 << 20, 1000) for coordinates in (1 << 20, 10 * d)}:
        device.tuning = Tuning(scores=mine, coordinates=theirs)
        one, other = dense.encode_unit_rows(device, X), dense.encode_unit_rows(device, Y)
        for floor in np.float32([0.5, 0.99, dot64(X[3], Y[2]), 1.0]):
            if floor < 0.1:
                continue
            found = as_set(dense.find_pairs(device, one, other, floor, same=same))
            sketches = [make_sketches(rows, np.empty((d, 0), np.float32)) for rows in (X, Y)]
            whole = slice(0, len(X)), slice(0, len(Y))
            assert found == as_set(find_pairs(*sketches, floor, *whole, same=same))
            assert len(found) > 0


def as_set(parts):
    """Pairs that were found, of which none comes twice."""
    pairs = [pair for part in parts for pair in zip(*(column.tolist() for column in part), strict=True)]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def test_nothing_is_compared_with_nothing(device):
    none, some = (dense.encode_unit_rows(device, np.eye(4, dtype=np.float32)[:n]) for n in (0, 4))
    for one, other in ((none, some), (some, none), (none, none)):
        assert list(dense.find_pairs(device, one, other, np.float32(0.5))) == []
    labels, squares = dense.nearest_centroids(device, np.empty((0, 4), np.float32), np.eye(4, dtype=np.float32))
    assert len(labels) == len(squares) == 0


# --- one backend in place of the other ---


def test_rows_that_lie_on_a_device_serve_as_those_in_memory(device):
    X, C = adversarial("plain", 60, 19, 7, seed=4)
    labels, wide = np.arange(60, dtype=np.int32) % 7, X.astype(float)
    squares = ((wide - C[labels]) ** 2).sum(axis=1)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(C.astype(float), axis=1)[labels]
    cosines = 1 - (wide * C[labels]).sum(axis=1) / lengths
    found = []
    for home in (CPU, Gpu(device)):
        there = home.copy_view(home.place(X))
        some = home.take(there, labels == 3)
        np.testing.assert_array_equal(home.to_host(some), X[labels == 3])
        for which in ([0, 1, 2], [5, 59, 3]):  # as they lie, and as they come
            for places in (np.arange(3) + 2, np.array([0, 2, 7])):
                out = np.zeros((9, 19), np.float32)
                home.copy_rows(there, np.array(which), out, places)
                np.testing.assert_array_equal(out[places], X[which])
                assert not np.delete(out, places, axis=0).any()
        assert home.largest_coordinate(there) == np.abs(X).max()
        found.append((home.squared_distances(there, C, labels), home.cosine_distances(there, C, labels)))
        np.testing.assert_allclose(found[-1][0], squares, rtol=1e-12)
        np.testing.assert_allclose(found[-1][1], cosines, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(*found)


def test_a_process_keeps_as_many_bands_as_its_device_has_memory_for(device, monkeypatch):
    assert CPU.room(10**9, 100, 16) == 10**9
    assert Gpu(device).room(10, 100, 16) == 10
    monkeypatch.setattr(device, "memory", lambda: 1 << 30)
    room = Gpu(device).room(10**9, 100, 16)
    assert 0 < room * dense.row_bytes(16) <= (1 << 30) // 2
    monkeypatch.setattr(device, "memory", lambda: pairs_bytes(100, 16))
    assert Gpu(device).room(10**9, 100, 16) == 0


# --- the estimator and the steps ---


def fitted(X, where, tuning=DEFAULT, **params):
    with dask.config.set({"daskmeans.device": where}):
        return dkm.KMeans(**params)._fit(X, tuning=tuning)


@pytest.mark.parametrize("room", [0.6, 0.0])
def test_a_fit_has_the_bits_of_those_of_the_cpu(device, room):
    """With rows that stay on the device, and with rows that are sent again in every pass."""
    device.tuning = tuning = Tuning(rows_share=room, least_sample=1000)
    X = blobs(12_000, d=8, k=20)
    here, there = (fitted(X, where, tuning, n_clusters=30, random_state=1) for where in ("cpu", "gpu"))
    np.testing.assert_array_equal(here.cluster_centers_, there.cluster_centers_)
    np.testing.assert_array_equal(here.labels_, there.labels_)
    assert here.inertia_ == there.inertia_
    assert here.iterations_[0]["phases"] > 1
    assert [each["relabelled"] for each in here.iterations_] == [each["relabelled"] for each in there.iterations_]


def test_two_workers_have_the_bits_of_one(device, thread_client, monkeypatch):
    X, numbers = blobs(3000, d=8, k=20), itertools.count()
    monkeypatch.setattr(device, "name", lambda: f"device {next(numbers)}")  # as if each had its own
    with dask.config.set({"daskmeans.device": "gpu"}):
        with thread_client(2) as client:
            two = dkm.KMeans(30).fit(X, client=client)
        one = dkm.KMeans(30).fit(X)
    np.testing.assert_array_equal(one.cluster_centers_, two.cluster_centers_)
    np.testing.assert_array_equal(one.labels_, two.labels_)


def test_many_clusters_get_exact_labels(device):
    """So many that the processor's first updates would compare near groups only, which a device has no need of."""
    X = blobs(4000, d=4, k=50)
    km = fitted(X, "gpu", n_clusters=2400, max_iter=4, normalize=False)
    np.testing.assert_array_equal(km.labels_, cpu.nearest_centroids(X, km.cluster_centers_)[0])
    assert all(each["compared"] == 1.0 for each in km.iterations_)


def test_predict_and_score_are_those_of_the_cpu(device):
    X = blobs(1000, d=8)
    km = fitted(X, "cpu", n_clusters=20)
    with dask.config.set({"daskmeans.device": "gpu"}):
        np.testing.assert_array_equal(km.predict(X), km.labels_)
        assert km.score(X) == -km.inertia_


@pytest.mark.parametrize("settings", [{"search": "exact", "floor": 0.7}, {"search": "clusters", "probes": 3}])
def test_decisions_are_those_of_the_cpu(device, settings, tmp_path):
    clusters = write_clusters(tmp_path / "clusters", make_rows())
    decisions = []
    for where in ("cpu", "gpu"):
        with dask.config.set({"daskmeans.device": where}):
            dkm.dedup(clusters, threshold=0.9, out=tmp_path / where, **settings)
        decisions.append(sorted(decisions_of(tmp_path / where), key=lambda row: row["id"]))
    assert decisions[0] == decisions[1]
    assert any(not row["keep"] for row in decisions[0])


def test_a_run_on_the_device_assigns_and_decides_as_the_cpu(device, embeddings, tmp_path):
    counts = []
    for where in ("cpu", "gpu"):
        with dask.config.set({"daskmeans.device": where}):
            result = dkm.run(embeddings, tmp_path / where, dkm.KMeans(8), threshold=0.9)
        counts.append([result.summary[key] for key in ("rows", "kept", "removed")])
    assert counts[0] == counts[1]


class OnDevice:
    """An array that does not become numpy's unasked, as cupy's do not."""

    def __init__(self, X):
        self.X, self.__cuda_array_interface__ = X, {"version": 3}

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion")


def test_arrays_on_a_device_are_taken(monkeypatch):
    X = blobs(200, d=4)
    cupy = ModuleType("cupy")
    cupy.asnumpy = lambda array: array.X.copy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    km = dkm.KMeans(8).fit(OnDevice(X))
    np.testing.assert_array_equal(km.labels_, dkm.KMeans(8).fit(X).labels_)
    np.testing.assert_array_equal(km.predict(OnDevice(X)), km.labels_)


@pytest.mark.gpu("cupy", "cudf")
def test_arrays_of_cupy_and_columns_of_cudf_are_taken():
    import cudf
    import cupy

    X = blobs(200, d=4)
    expected = dkm.KMeans(8).fit(X)
    np.testing.assert_array_equal(dkm.KMeans(8).fit(cupy.asarray(X)).labels_, expected.labels_)
    column = cudf.Series.from_arrow(pa.array(X.tolist(), pa.list_(pa.float32())))
    np.testing.assert_array_equal(expected.rows(column), expected.rows(X))


# --- which device ---


def test_a_process_computes_on_its_cores_unless_it_is_told(device):
    assert gpus.current_device() is None
    assert gpus.backend() is CPU
    with dask.config.set({"daskmeans.device": "gpu"}):
        assert gpus.current_device() is device
        assert gpus.backend() == gpus.require_device() == Gpu(device)
    with dask.config.set({"daskmeans.device": "tpu"}), pytest.raises(UsageError, match="tpu"):
        gpus.current_device()
    with pytest.raises(ClusterError, match="other workers compute on GPUs"):
        gpus.require_device()


def test_a_gpu_that_cannot_be_used_is_told_with_a_remedy(monkeypatch):
    gpus._open_cuda.cache_clear()
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    with dask.config.set({"daskmeans.device": "gpu"}), pytest.raises(UsageError, match="cupy is not installed"):
        gpus.current_device()


class Worker:
    """As far as it matters here, a worker with these preloads."""

    def __init__(self, *names):
        self.preloads = [type("Preload", (), {"name": name}) for name in names]


def test_a_worker_of_dask_cuda_computes_on_its_gpu(device):
    assert gpus.current_device(Worker("dask_cuda.initialize")) is device
    assert gpus.current_device(Worker("something.else")) is None
    with dask.config.set({"daskmeans.device": "cpu"}):
        assert gpus.current_device(Worker("dask_cuda.initialize")) is None


def test_it_is_told_where_only_some_workers_have_a_gpu(device, caplog):
    class Client:
        def __init__(self, *names):
            self.places = {i: gpus.GpuInfo(name, 100 + i) if name else None for i, name in enumerate(names)}

        def run(self, function, on_error):
            return self.places

    assert gpus.memory(Client("a 1", "a 2", "b 1")) == 100 and not caplog.messages
    assert gpus.memory(Client("", "")) == 0 and not caplog.messages
    assert gpus.memory(Client("a 1", "")) == 0 and "1 of 2 workers compute on GPUs" in caplog.text
    with pytest.raises(ClusterError, match="2 workers share one GPU"):
        gpus.memory(Client("a 1", "a 1"))
    assert gpus.memory(None) == 0
    with dask.config.set({"daskmeans.device": "gpu"}):
        assert gpus.memory(None) == device.memory()


# --- what only a device runs ---


SIMULATED = """
import numpy as np
from daskmeans.kernels.gpu import cuda, scores as loops
rng = np.random.default_rng(0)
for rows, columns in ((5, 300), (1, 1), (40, 7)):
    S = rng.integers(0, 9, (rows, columns)).astype(np.float32)
    ends = rng.integers(0, rows + 1, columns)
    answers = []
    for each in (cuda.each, lambda body, n, *arrays: [body(i, *arrays) for i in range(n)]):
        labels, tops, alone = np.zeros(columns, np.int32), np.zeros(columns, np.float32), np.zeros(columns, bool)
        each(loops.pick_largest, columns, S, np.float32(np.arange(rows)), np.ones(columns, np.float32), labels, tops,
             alone)
        counts = np.zeros(columns, np.int64)
        each(loops.count_pairs, columns, S, np.full(columns, 4, np.float32), ends, counts)
        starts = np.concatenate([[0], counts.cumsum()])
        i, j = np.zeros((2, starts[-1]), np.int64)
        each(loops.list_pairs, columns, S, np.full(columns, 4, np.float32), ends, starts, i, j)
        answers.append((labels, tops, alone, counts, i, j))
    expected = S - np.arange(rows)[:, None]
    assert (answers[0][0] == expected.argmax(0)).all() and (answers[0][1] == expected.max(0)).all()
    columns_, rows_ = np.nonzero(((S >= 4) & (np.arange(rows)[:, None] < ends)).T)
    assert (answers[0][4] == columns_).all() and (answers[0][5] == rows_).all()
    for one, other in zip(*answers):
        np.testing.assert_array_equal(one, other)
print("same")
"""


def test_the_kernels_do_in_the_simulator_what_their_loops_do(monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SIMULATED], capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr
