"""A stand-in for cuML, made of scikit-learn, and the fixtures that put it in the place of the real one."""

from __future__ import annotations

import importlib.machinery
import itertools
import sys
import threading
import types

import numpy as np
import pytest
from distributed import futures_of
from sklearn.cluster import KMeans as Reference

from daskmeans.runtime import gpus as installed

GIB = 1 << 30


def single_gpu(
    *,
    n_clusters=8,
    max_iter=300,
    tol=1e-4,
    verbose=False,
    random_state=None,
    init="scalable-k-means++",
    n_init="auto",
    oversampling_factor=2.0,
    max_samples_per_batch=1 << 15,
    device_buffer_samples=0,
    init_size=0,
    output_type=None,
):
    """Parameters of cuml.cluster.KMeans, which gets what cuml.dask.cluster.KMeans does not know."""
    return locals()


class StandIn:
    """cuml.dask.cluster.KMeans of 26.10 as far as we use it; scikit-learn fits."""

    made: list[StandIn] = []  # noqa: RUF012

    def __init__(self, *, client=None, verbose=False, n_clusters=8, **kwargs):
        self.client, self.knobs = client, single_gpu(verbose=verbose, n_clusters=n_clusters, **kwargs)
        self.made.append(self)

    def fit(self, X, sample_weight=None):
        assert 0 <= self.knobs["random_state"] < 2**32, "check_random_seed refuses it"
        assert self.knobs["n_init"] != "auto"
        rows = self.client.persist(X)
        self.places = list(self.client.who_has(futures_of(rows)).values())
        self.rows = rows.compute()
        init = self.client.submit(lambda init: init, self.knobs["init"]).result()  # a future becomes what it stands for
        self.init = init
        theirs = Reference(
            self.knobs["n_clusters"],
            init="k-means++" if isinstance(init, str) else init,
            n_init=1,
            max_iter=self.knobs["max_iter"],
            tol=self.knobs["tol"] / self.rows.var(axis=0).mean(),
            random_state=self.knobs["random_state"],
        ).fit(self.rows)
        self.cluster_centers_, self.inertia_, self.n_iter_ = theirs.cluster_centers_, theirs.inertia_, theirs.n_iter_
        self.labels_ = np.zeros(len(self.rows), np.int32)  # nobody should look at these
        return self


class NotFinite(StandIn):
    def fit(self, X, sample_weight=None):
        super().fit(X)
        self.cluster_centers_ = np.full_like(self.cluster_centers_, np.nan)


class OfAnotherWorker(StandIn):
    def fit(self, X, sample_weight=None):
        super().fit(X)
        self.cluster_centers_ = np.zeros_like(self.cluster_centers_)


class OutOfMemory(StandIn):
    def fit(self, X, sample_weight=None):
        raise RuntimeError("1 of 2 worker jobs failed: std::bad_alloc: out_of_memory")


class NeverConverges(StandIn):
    def fit(self, X, sample_weight=None):
        super().fit(X)
        self.n_iter_ = self.knobs["max_iter"] + 1


class Hangs(StandIn):
    """Waits as for a collective; before that it loses a worker, if it is told to."""

    lose = False
    released = threading.Event()

    def fit(self, X, sample_weight=None):
        if self.lose:
            self.client.retire_workers([min(self.client.nthreads())], close_workers=True)
        self.released.wait(30)


def module(name: str, **content: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(content)
    return made


@pytest.fixture
def install(monkeypatch):
    """A function that makes `stand_in` the cuML of this process, and of workers in it; devices have `memory` bytes."""

    def put(stand_in: type[StandIn] = StandIn, memory: int = GIB) -> list[StandIn]:
        runtime, numbers = types.SimpleNamespace(memGetInfo=lambda: (0, memory)), itertools.count()
        cuda = types.SimpleNamespace(runtime=runtime, Device=lambda: types.SimpleNamespace(pci_bus_id=next(numbers)))
        cupy = module("cupy", asarray=np.array, asnumpy=np.asarray, cuda=cuda)
        cupy.ndarray = cupy.generic = type("ndarray", (), {})  # scikit-learn asks of its input whether it is one
        estimators = module("cuml.dask.cluster", KMeans=stand_in)
        on_dask = module("cuml.dask", cluster=estimators)
        top = module("cuml", dask=on_dask, __version__="26.10.00")
        for made in (cupy, top, on_dask, estimators):
            monkeypatch.setitem(sys.modules, made.__name__, made)
        monkeypatch.setattr(installed, "find_spec", lambda name: name in installed.PACKAGES or None)
        monkeypatch.setattr(stand_in, "made", [])
        return stand_in.made

    return put


@pytest.fixture
def two(thread_client):
    return thread_client(2)
