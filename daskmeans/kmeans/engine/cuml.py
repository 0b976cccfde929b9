"""The engine ``cuml``: cuML finds the centroids on the workers' GPUs, the native engine finds labels and inertia.

cuML gets the rows of blocks as arrays on the devices and returns centroids. Rows of cuDF frames lie there from the
start (`loading.py`); others are sent. Labels, distances and inertia come from the pass that ends every fit, so they
mean the same whichever engine found the centroids.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from distributed import Client

from daskmeans import config
from daskmeans.errors import ClusterError, DaskmeansError, MissingExtraError, RunError, UsageError
from daskmeans.kernels.gpu.device import Cuda
from daskmeans.kmeans.engine.lloyd import CENTER_ROWS, measure_centroids
from daskmeans.kmeans.engine.seeding import seed_centroids
from daskmeans.kmeans.engine.state import Checkpoints, FitState, NoCheckpoints
from daskmeans.kmeans.memory import check_devices
from daskmeans.kmeans.rows.block import Block
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.runtime import executor, gpus, progress
from daskmeans.runtime.client import log_event, logger, run_on_workers

# cuML's seeds have 32 bits.
SEED_RANGE = 1 << 32
# cuML stops below its tolerance, never at it: with 0 it would not stop even when nothing moves any more.
LEAST_TOL = 1e-30
# Error allowed in cuML's float32 inertia, as a share of the total sum of squares of the rows.
TOLERANCE = 1e-3
# Seconds between checks that all workers are still there.
PERIOD = 0.5


class CumlResult(NamedTuple):
    """The result of a fit by cuML."""

    centroids: np.ndarray
    """float32, shape (k, d)."""
    n_iter: int
    inertia: float
    """Sum of squared distances as computed by cuML's workers, in float32."""
    version: str


def device_memory(client: Client | None) -> dict[str, int]:
    """Return the bytes of device memory of each worker.

    Raises
    ------
    MissingExtraError
        A package of RAPIDS is missing here.
    UsageError
        There is no cluster, or no device here.
    ClusterError
        There are no workers, one has no device or lacks a package, or two share a device.
    """
    if missing := gpus.missing_packages():
        raise MissingExtraError(missing[0], "gpu")
    if client is None:
        raise UsageError(
            "cuML works on a cluster, with a worker for each GPU",
            where="engine='cuml'",
            remedy="start a dask_cuda.LocalCUDACluster and a Client of it first, or use engine='native'",
        )
    if isinstance(here := _probe_device(), str):
        raise UsageError(
            f"this process cannot use a CUDA device ({here})",
            where="engine='cuml'",
            expected="a device here too: cuML returns its model to the process that asks for it",
            remedy="run this on a machine with a GPU, or use engine='native'",
        )
    found = run_on_workers(_probe_device, client)
    if not found:
        raise ClusterError("the scheduler has no workers", remedy="start some with `dask cuda worker ADDRESS`")
    if without := {worker: why for worker, why in found.items() if isinstance(why, str)}:
        worker, why = next(iter(without.items()))
        raise ClusterError(
            f"{len(without)} of {len(found)} workers cannot run cuML ({why})",
            where=worker,
            expected="a CUDA device and the packages of RAPIDS on every worker",
            remedy="use --device gpu, workers that `dask cuda worker` starts, or --engine native",
        )
    gpus.refuse_shared_gpus(place.name for place in found.values())
    return {worker: place.memory for worker, place in found.items()}


def fit_cuml(
    blocks: Blocks,
    init: Any,
    *,
    n_clusters: int,
    max_iter: int,
    tol: float,
    seed: int,
    oversampling_factor: float,
    max_samples_per_batch: int,
    run: int = 0,
    checkpoints: Checkpoints | None = None,
) -> tuple[FitState, Callable[[], np.ndarray]]:
    """Let cuML find the centroids; return the same as :func:`daskmeans.kmeans.engine.lloyd.fit_blocks`.

    Only finished runs are saved as checkpoints: cuML reports nothing while it runs.

    Parameters
    ----------
    blocks : Blocks
    init : {"auto", "k-means||", "random"}, callable or ndarray
    n_clusters, max_iter, tol, oversampling_factor, max_samples_per_batch
        As in :class:`daskmeans.KMeans`.
    seed, run, checkpoints
        As in :func:`daskmeans.kmeans.engine.lloyd.fit_blocks`.

    Raises
    ------
    MemoryForecastError
        Not even one row fits onto a device beside the centroids.
    ClusterError
        A worker was lost, or cuML did not finish in time.
    RunError
        cuML failed, or returned other centroids than it found.
    """
    checkpoints = checkpoints or NoCheckpoints()
    fit = checkpoints.last(run)
    if fit is not None:
        return fit, measure_centroids(blocks, fit.centroids)[1]
    start = time.perf_counter()
    sample = blocks.sample_rows(CENTER_ROWS, seed)[1]
    variance = float(sample.var(axis=0, dtype=np.float64).mean())
    batch, buffer = check_devices(
        blocks.rows_by_worker(),
        blocks.dimension,
        n_clusters,
        max_samples_per_batch,
        oversampling_factor,
        device_memory(blocks.client),
    )
    if buffer:
        logger.info("the rows do not fit onto the devices: cuML gets %s of them at a time", f"{buffer:,}")
    if callable(init) or (buffer and isinstance(init, str)):  # cuML's k-means|| needs all rows on the devices
        init = seed_centroids(blocks, init, n_clusters, oversampling_factor, seed)
    knobs = {
        "init": _send_seeds(blocks, init, n_clusters, seed),
        "n_clusters": n_clusters,
        "max_iter": max_iter,
        # Compared with absolute shifts. cuML's multi-GPU fits also stop once the inertia falls by a smaller share.
        "tol": max(tol * variance, LEAST_TOL),
        "random_state": seed % SEED_RANGE,
        "oversampling_factor": oversampling_factor,
        "max_samples_per_batch": batch,
        "device_buffer_samples": buffer,
    }
    found = _run_cuml(blocks, knobs)
    measured, labels = measure_centroids(blocks, found.centroids)
    _check_inertia(found.inertia, measured.inertia, TOLERANCE * variance * blocks.dimension * blocks.n_rows)
    n_iter = min(found.n_iter, max_iter)  # cuML counts one too many where it stops at max_iter
    facts: dict[str, Any] = {"phase": 0, "phases": 1, "rows": blocks.n_rows, "iteration": n_iter}
    facts |= {"inertia": found.inertia, "seconds": time.perf_counter() - start, "cuml": found.version}
    log_event("daskmeans-kmeans", facts | {"run": run, "n_clusters": n_clusters}, blocks.client)
    fit = FitState(found.centroids, found.centroids, found.centroids, n_iter=n_iter, converged=n_iter < max_iter)
    fit.inertia, fit.occupied = measured.inertia, measured.occupied
    fit.history, fit.iterations = [found.inertia], [facts]
    checkpoints.save(run, fit)
    return fit, labels


def _send_seeds(blocks: Blocks, init: Any, n_clusters: int, seed: int) -> Any:
    """Return cuML's `init`: its own k-means||, or centroids, sent to each worker once."""
    if isinstance(init, str) and init in ("auto", "k-means||"):
        return "k-means||"
    # cuML's own random init fails where a worker has fewer rows than its share of the clusters.
    centroids = blocks.sample_rows(n_clusters, seed)[1] if isinstance(init, str) else init
    # As arguments of the tasks they would pass through the scheduler twice for each worker.
    return executor.broadcast(centroids, blocks.client)


def _run_cuml(blocks: Blocks, knobs: dict[str, Any]) -> CumlResult:
    """Run cuML on the rows of `blocks`, which are removed from the devices afterwards."""
    client = blocks.client
    with progress.open_line("k-means by cuML"):
        try:
            rows = blocks.array(_to_memory if knobs["device_buffer_samples"] else _to_device, "cuml-rows")
            found = _run_with_timeout(
                partial(_fit_estimator, rows, client, **knobs), set(blocks.rows_by_worker()), client
            )
        except DaskmeansError:
            raise
        except Exception as error:
            raise RunError(
                f"cuML failed ({type(error).__name__}: {error})",
                where="engine='cuml'",
                remedy="use engine='native', or see the logs of the workers",
            ) from error
    right = (knobs["n_clusters"], blocks.dimension)
    if found.centroids.shape != right or not np.isfinite(found.centroids).all():
        raise RunError(
            f"cuML returned centroids of shape {found.centroids.shape}, or some that are not finite",
            where="engine='cuml'",
            expected=f"finite numbers of shape {right}",
            remedy="use engine='native'",
        )
    return found


def _fit_estimator(
    rows: da.Array,
    client: Client,
    *,
    init: Any,
    n_clusters: int,
    max_iter: int,
    tol: float,
    random_state: int,
    oversampling_factor: float,
    max_samples_per_batch: int,
    device_buffer_samples: int,
) -> CumlResult:
    """Fit cuML's estimator on arrays that lie on the workers' devices, or in their memory."""
    import cuml
    import cupy
    from cuml.dask.cluster import KMeans

    model = KMeans(
        client=client,
        n_clusters=n_clusters,
        max_iter=max_iter,
        tol=tol,
        random_state=random_state,
        init=init,
        n_init=1,  # the default is 10 runs, which given centroids would make equal
        oversampling_factor=oversampling_factor,
        max_samples_per_batch=max_samples_per_batch,
        device_buffer_samples=device_buffer_samples,
    )
    model.fit(rows)
    centroids = np.ascontiguousarray(cupy.asnumpy(model.cluster_centers_), np.float32)
    return CumlResult(centroids, int(model.n_iter_), float(model.inertia_), cuml.__version__)


def _run_with_timeout(function: Callable[[], CumlResult], workers: set[str], client: Client) -> CumlResult:
    """Return the result of `function`; raise if one of `workers` is lost meanwhile, or if it takes too long.

    cuML waits for its tasks without a timeout. They wait for each other in a collective, which none can leave.
    """
    answer: concurrent.futures.Future[CumlResult] = concurrent.futures.Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    seconds = config.get("cuml-timeout")
    end = time.monotonic() + seconds
    # Not in a pool: the interpreter waits for the threads of a pool when it exits.
    threading.Thread(target=call, name="cuml-fit", daemon=True).start()
    while not concurrent.futures.wait([answer], PERIOD).done:
        if lost := workers - client.nthreads().keys():
            raise ClusterError(
                "a worker was lost while cuML was running; the others wait for it forever",
                where=", ".join(sorted(lost)),
                remedy="restart the workers (Client.restart), then fit again",
            )
        if time.monotonic() > end:
            raise ClusterError(
                f"cuML did not finish within {seconds} s: its workers may be waiting for one another forever",
                where="daskmeans.cuml-timeout",
                remedy="restart the workers (Client.restart); set DASK_DASKMEANS__CUML_TIMEOUT to more seconds if it "
                "only needs longer",
            )
    return answer.result()


def _check_inertia(theirs: float, ours: float, tolerance: float) -> None:
    """Raise RunError if the centroids are not those whose inertia cuML's workers have computed.

    The centroids come from one worker. Our labels are exact, so with the same centroids our sum of squared distances
    cannot exceed cuML's.
    """
    if not ours <= 1.05 * theirs + tolerance:
        raise RunError(
            f"the centroids that cuML returned have an inertia of {ours:.6g}, but its workers found {theirs:.6g}",
            where="engine='cuml'",
            expected="the same centroids on all workers",
            remedy="use engine='native'",
        )


# --- on the workers ---


def _probe_device() -> gpus.GpuInfo | str:
    """Return this worker's device, or why it cannot run cuML."""
    if missing := gpus.missing_packages():
        return f"{missing[0]} is not installed"
    try:
        return gpus.GpuInfo.of(Cuda())  # cupy alone: importing cuml would block the worker for seconds
    except (ImportError, RuntimeError) as error:  # CUDA's errors are RuntimeErrors
        return f"{type(error).__name__}: {error}"


def _to_device(block: Block) -> Any:
    """Return the rows of a block on the device; they are sent there unless they lie there already."""
    if block.device_rows is not None:
        return block.device_rows
    import cupy

    with block.open() as arrays:
        return cupy.asarray(arrays["rows"])


def _to_memory(block: Block) -> np.ndarray:
    """Return the rows of a block, in memory or mapped from its file."""
    with block.open() as arrays:
        return arrays["rows"]
