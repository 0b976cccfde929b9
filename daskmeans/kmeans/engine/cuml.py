"""The engine ``cuml``: cuML finds the centroids on the workers' GPUs, our own pass finds what they are worth.

cuML gets the rows of blocks as arrays on the devices, and gives centroids back. Rows of frames of cuDF lie there from
the start (`loading.py`), others are sent. Labels, distances and inertia come from the pass that ends every fit, so a
model does not depend on the engine that found it.
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
from daskmeans.kmeans.engine.lloyd import CENTER_ROWS, measure_inertia
from daskmeans.kmeans.engine.seeding import seed_centroids
from daskmeans.kmeans.engine.state import Checkpoints, FitState, NoCheckpoints
from daskmeans.kmeans.memory import check_devices
from daskmeans.kmeans.rows.block import Block
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.runtime import executor, gpus, progress
from daskmeans.runtime.client import log_event, logger, run_on_workers

# Seeds are 32 bits wide in cuML.
SEED_RANGE = 1 << 32
# cuML stops below its tolerance, never at it: with 0, not even where nothing moves any more.
LEAST_TOL = 1e-30
# Of the rows' own spread: by so much may float32 sums of squared distances be off.
TOLERANCE = 1e-3
# Seconds between two looks at whether all workers are still there.
PERIOD = 0.5


class CumlResult(NamedTuple):
    """What cuML gives back."""

    centroids: np.ndarray
    """float32, shape (k, d)."""
    n_iter: int
    inertia: float
    """Sum of squared distances as cuML's workers found it, in float32."""
    version: str


def device_memory(client: Client | None) -> dict[str, int]:
    """Bytes of device memory of each worker.

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
            expected="a device here too: cuML gives its model to the process that asks for it",
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
    """Let cuML find the centroids; as :func:`daskmeans.kmeans.engine.lloyd.fit_blocks`, whose pass measures them.

    A checkpoint holds a run that has ended: cuML tells nothing of those that have not.

    Parameters
    ----------
    blocks : Blocks
    init : {"auto", "k-means||", "random"} or ndarray
    n_clusters, max_iter, tol, oversampling_factor, max_samples_per_batch
        As in :class:`daskmeans.KMeans`.
    seed, run, checkpoints
        As in :func:`daskmeans.kmeans.engine.lloyd.fit_blocks`.

    Raises
    ------
    MemoryForecastError
        Not even few rows fit onto a device beside the centroids.
    ClusterError
        A worker was lost, or cuML did not answer in time.
    RunError
        cuML failed, or gave back other centroids than it has found.
    """
    checkpoints = checkpoints or NoCheckpoints()
    fit = checkpoints.last(run)
    if fit is not None:
        return fit, measure_inertia(blocks, fit.centroids)[1]
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
        logger.info("the rows do not fit onto the devices: cuML is given %s of them at a time", f"{buffer:,}")
        if isinstance(init, str):  # its k-means|| is for rows that are there
            init = seed_centroids(blocks, init, n_clusters, oversampling_factor, seed)
    knobs = {
        "init": _send_seeds(blocks, init, n_clusters, seed),
        "n_clusters": n_clusters,
        "max_iter": max_iter,
        # Compared with shifts as they are. And cuML's multi-GPU fits stop once the inertia falls by a share below this.
        "tol": max(tol * variance, LEAST_TOL),
        "random_state": seed % SEED_RANGE,
        "oversampling_factor": oversampling_factor,
        "max_samples_per_batch": batch,
        "device_buffer_samples": buffer,
    }
    found = _run_cuml(blocks, knobs)
    inertia, labels = measure_inertia(blocks, found.centroids)
    _check_inertia(found.inertia, inertia, TOLERANCE * variance * blocks.dimension * blocks.n_rows)
    n_iter = min(found.n_iter, max_iter)  # counted one too far where no update was the last
    facts: dict[str, Any] = {"phase": 0, "phases": 1, "rows": blocks.n_rows, "iteration": n_iter}
    facts |= {"inertia": found.inertia, "seconds": time.perf_counter() - start, "cuml": found.version}
    log_event("daskmeans-kmeans", facts | {"run": run, "n_clusters": n_clusters}, blocks.client)
    fit = FitState(found.centroids, found.centroids, found.centroids, n_iter=n_iter, converged=n_iter < max_iter)
    fit.inertia, fit.history, fit.iterations = inertia, [found.inertia], [facts]
    checkpoints.save(run, fit)
    return fit, labels


def _send_seeds(blocks: Blocks, init: Any, n_clusters: int, seed: int) -> Any:
    """What cuML begins with: its own k-means||, or centroids, sent to each worker once."""
    if isinstance(init, str) and init in ("auto", "k-means||"):
        return "k-means||"
    # Its own random rows are refused where one worker has fewer rows than its share of the clusters.
    centroids = blocks.sample_rows(n_clusters, seed)[1] if isinstance(init, str) else init
    # In each task's arguments they would pass through the scheduler, twice for each worker.
    return executor.broadcast(centroids, blocks.client)


def _run_cuml(blocks: Blocks, knobs: dict[str, Any]) -> CumlResult:
    """What cuML finds in the rows of `blocks`, which leave the devices again."""
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
            f"cuML gave back centroids of shape {found.centroids.shape}, or such that are not finite",
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
        n_init=1,  # by default it is 10 for given centroids, all of them from the same
        oversampling_factor=oversampling_factor,
        max_samples_per_batch=max_samples_per_batch,
        device_buffer_samples=device_buffer_samples,
    )
    model.fit(rows)
    centroids = np.ascontiguousarray(cupy.asnumpy(model.cluster_centers_), np.float32)
    return CumlResult(centroids, int(model.n_iter_), float(model.inertia_), cuml.__version__)


def _run_with_timeout(function: Callable[[], CumlResult], workers: set[str], client: Client) -> CumlResult:
    """The result of `function`, unless one of `workers` is lost meanwhile, or the time is up.

    cuML waits for its tasks without end, and those for each other in a collective, which none of them can leave.
    """
    answer: concurrent.futures.Future[CumlResult] = concurrent.futures.Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    seconds = config.get("cuml-timeout")
    end = time.monotonic() + seconds
    # Not of a pool, whose threads the interpreter waits for when it ends.
    threading.Thread(target=call, name="cuml-fit", daemon=True).start()
    while not concurrent.futures.wait([answer], PERIOD).done:
        if lost := workers - client.nthreads().keys():
            raise ClusterError(
                "a worker was lost while cuML was running, for which the others wait without end",
                where=", ".join(sorted(lost)),
                remedy="restart the workers (Client.restart), then fit again",
            )
        if time.monotonic() > end:
            raise ClusterError(
                f"cuML did not answer within {seconds} s: its workers may wait for one another without end",
                where="daskmeans.cuml-timeout",
                remedy="restart the workers (Client.restart); set DASK_DASKMEANS__CUML_TIMEOUT to more seconds if it "
                "only needs longer",
            )
    return answer.result()


def _check_inertia(theirs: float, ours: float, tolerance: float) -> None:
    """Refuse centroids that are not those that cuML's workers have measured.

    They come from one worker, and rows are nearest to the labels that we give them: with the same centroids the sum of
    squared distances cannot be more than cuML's.
    """
    if not ours <= 1.05 * theirs + tolerance:
        raise RunError(
            f"with the centroids that cuML gave back the inertia is {ours:.6g}, but its workers found {theirs:.6g}",
            where="engine='cuml'",
            expected="the same centroids on all workers",
            remedy="use engine='native'",
        )


# --- on the workers ---


def _probe_device() -> gpus.GpuInfo | str:
    """This worker's device, or why it cannot run cuML."""
    if missing := gpus.missing_packages():
        return f"{missing[0]} is not installed"
    try:
        return gpus.GpuInfo.of(Cuda())  # with cupy, not with cuml, for seconds in which the worker answers nobody
    except (ImportError, RuntimeError) as error:  # as CUDA's are
        return f"{type(error).__name__}: {error}"


def _to_device(block: Block) -> Any:
    """The rows of a block: those that lie on the device as they are, others sent there."""
    if block.device_rows is not None:
        return block.device_rows
    import cupy

    with block.open() as arrays:
        return cupy.asarray(arrays["rows"])


def _to_memory(block: Block) -> np.ndarray:
    """The rows of a block, as they lie in memory or in a file of it."""
    with block.open() as arrays:
        return arrays["rows"]
