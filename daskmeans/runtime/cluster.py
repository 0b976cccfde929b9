"""The cluster of a command: workers on this machine, or a running scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import resource_tracker
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client, LocalCluster
from distributed.security import Security

from daskmeans import config
from daskmeans.errors import ClusterError, MissingExtraError, NotFoundError, UsageError
from daskmeans.options import Need, check, flag_of, option, options
from daskmeans.runtime import gpus
from daskmeans.runtime.client import check_versions, cores
from daskmeans.runtime.dashboard import PAGE, add_page

# Workers import this at start, so that no step waits for it: the package imports its modules on first use.
PRELOAD = ["daskmeans.steps.run"]
# The background work of Dask's processes takes a tenth of a core, of two that tasks need; this seldom, a third of that.
QUIET_CONFIG = {
    "distributed.worker.profile.interval": "100ms",
    "distributed.admin.tick.interval": "200ms",
    "distributed.admin.system-monitor.interval": "2s",
}


HERE = "workers on this machine: no --scheduler, no --scheduler-file"
# Group of the options of workers with GPUs, which only `--help-gpu` shows.
GPU = "gpu"


def _of_gpus(default: Any, help: str) -> Any:
    """Return the field of an argument of ``dask_cuda.LocalCUDACluster``, with its name and default."""
    return option(default, help, group=GPU)


def _of_any(default: Any, help: str | None = None, **facts: Any) -> Any:
    """Return a field that also applies to running workers; the other fields apply to workers started here only."""
    return option(default, help, group="any", **facts)


@dataclass(frozen=True)
class ClusterSettings:
    """Where a command runs; the fields are the flags of the command line."""

    device: str = _of_any(
        "auto",
        "gpu: one worker per GPU; auto: the same, if there are GPUs and the packages.",
        choices=("auto", "cpu", "gpu"),
        says="auto, cpu or gpu",
    )
    n_workers: int | None = option(None, "Worker processes; default: one per core, or per GPU.", least=1)
    threads_per_worker: int | None = option(
        None, "Threads of each worker; default: 1, or a GPU's share of the cores.", least=1
    )
    memory_limit: str = option("auto", "Memory of each worker, such as 4GiB.")
    scheduler: str | None = _of_any(None, "Address of a running scheduler, instead of workers on this machine.")
    scheduler_file: str | None = _of_any(None, "File written by a running scheduler.", is_path=True)
    dashboard_address: str = _of_any(
        "127.0.0.1:8787",
        "Address of the dashboard of workers on this machine.",
        need=Need({"scheduler": (None, ""), "scheduler_file": (None, "")}, HERE),
    )
    local_directory: str | None = option(None, "Directory that workers spill to.", is_path=True)
    rmm_pool_size: str | None = _of_gpus(None, "Memory that each worker takes of its GPU at once, such as 16GB.")
    rmm_maximum_pool_size: str | None = _of_gpus(None, "Most memory that this pool may grow to.")
    rmm_managed_memory: bool = _of_gpus(False, "Let memory of the GPU move to that of the machine.")
    rmm_async: bool = _of_gpus(False, "Use CUDA's own pool of memory.")
    device_memory_limit: str = _of_gpus("default", "Memory of the GPU from which a worker spills.")
    enable_cudf_spill: bool = _of_gpus(False, "Let cuDF spill its dataframes.")
    protocol: str | None = _of_gpus(None, "How workers talk: tcp or ucx.")
    enable_tcp_over_ucx: bool | None = _of_gpus(None, "With ucx: use TCP.")
    enable_infiniband: bool | None = _of_gpus(None, "With ucx: use InfiniBand.")
    enable_nvlink: bool | None = _of_gpus(None, "With ucx: use NVLink.")
    enable_rdmacm: bool | None = _of_gpus(None, "With ucx: connect by RDMA.")


def check_cluster(settings: ClusterSettings) -> None:
    """Check everything about `settings` that shows before workers start or a scheduler answers.

    Raises
    ------
    UsageError
        The settings contradict each other, or ask for a device that does not exist; MissingExtraError if packages for
        GPUs are not installed.
    """
    check(settings)
    if settings.memory_limit != "auto":
        try:
            parse_bytes(settings.memory_limit)
        except ValueError:
            raise UsageError(
                f"{settings.memory_limit!r} is not an amount of memory", where="--memory-limit", expected="such as 4GiB"
            ) from None
    if settings.scheduler or settings.scheduler_file:
        _check_scheduler(settings)
    elif _is_gpu_cluster(settings):
        if missing := gpus.missing_packages():
            raise MissingExtraError(missing[0], "gpu")
        if not gpus.count_gpus():
            raise UsageError(
                "this machine has no GPU, or CUDA_VISIBLE_DEVICES hides it",
                where="--device gpu",
                expected="a GPU that `nvidia-smi` lists",
                remedy="use --device cpu",
            )
    elif given := _changed_fields(settings, GPU):
        raise UsageError(
            "the workers to start have no GPU",
            where=", ".join(given),
            remedy="leave these flags out, or add --device gpu",
        )


@contextlib.contextmanager
def open_cluster(settings: ClusterSettings) -> Iterator[Client]:
    """Open a client of the cluster that `settings` describe; a cluster started here ends with the ``with`` block.

    Raises
    ------
    ClusterError
        No scheduler answers at the address.
    UsageError
        As :func:`check_cluster` raises.
    """
    check_cluster(settings)
    if settings.scheduler or settings.scheduler_file:
        with _connect(settings) as client:
            add_page(client)
            yield client
    else:
        start = _start_gpu_cluster if _is_gpu_cluster(settings) else _start_cpu_cluster
        with start(settings) as local, Client(local) as client:
            add_page(client)
            yield client


def _is_gpu_cluster(settings: ClusterSettings) -> bool:
    """Whether each worker gets a GPU; with `device` "auto", if there are enough GPUs and the packages."""
    if settings.device == "auto":
        return gpus.count_gpus() >= (settings.n_workers or 1) and not gpus.missing_packages()
    return settings.device == "gpu"


def _of(settings: ClusterSettings, *groups: str) -> dict[str, Any]:
    """Return the settings of `groups` by name."""
    return {each.name: getattr(settings, each.name) for each, facts in options(settings) if facts.group in groups}


def _changed_fields(settings: ClusterSettings, *groups: str) -> list[str]:
    """Return the flags of the settings of `groups` that differ from their defaults."""
    return [flag_of(name) for name, value in _of(settings, *groups).items() if value != getattr(ClusterSettings, name)]


def _check_scheduler(settings: ClusterSettings) -> None:
    if given := _changed_fields(settings, "", GPU):
        raise UsageError(
            "the workers of a running scheduler cannot be configured here",
            where=", ".join(given),
            remedy="leave out these flags, or --scheduler",
        )
    if settings.scheduler_file and not os.path.exists(settings.scheduler_file):  # distributed would wait for it
        raise NotFoundError(
            "no such file",
            where=f"--scheduler-file {settings.scheduler_file}",
            expected="the file written by a running `dask scheduler --scheduler-file FILE`",
        )
    if (settings.scheduler or "").startswith("tls://") and not Security().get_connection_args("client")["ssl_context"]:
        raise UsageError(
            "TLS needs certificates, and none are configured",
            where=f"--scheduler {settings.scheduler}",
            expected="Dask's settings distributed.comm.tls.ca-file, .client.cert and .client.key",
            remedy="see https://distributed.dask.org/en/stable/tls.html",
        )


def _connect(settings: ClusterSettings) -> Client:
    timeout = config.get("connect-timeout")
    try:
        client = Client(settings.scheduler, scheduler_file=settings.scheduler_file, timeout=timeout)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no scheduler answered within {timeout} s ({type(error).__name__})",
            where=f"--scheduler {settings.scheduler or settings.scheduler_file}",
            expected="the address of a running dask scheduler, such as tcp://127.0.0.1:8786",
            remedy="start one with `dask scheduler`, or leave out the flag to use this machine",
        ) from None
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError:
        client.close()
        raise ClusterError(
            f"the scheduler has no workers, and none connected within {timeout} s",
            where=f"--scheduler {settings.scheduler or settings.scheduler_file}",
            remedy="start some with `dask worker ADDRESS`",
        ) from None
    try:
        check_versions(client)
        _check_device(settings.device, client)
    except (ClusterError, UsageError):
        client.close()
        raise
    return client


def _check_device(device: str, client: Client) -> None:
    """Make sure that the workers compute on the requested device."""
    worker_gpus = gpus.query_gpus(client) if device != "auto" else []
    if wrong := [gpu for gpu in worker_gpus if bool(gpu) != (device == "gpu")]:
        raise UsageError(
            f"{len(wrong)} of {len(worker_gpus)} workers compute on {'the CPU' if device == 'gpu' else 'a GPU'}",
            where=f"--device {device}",
            remedy="start them with `dask cuda worker`"
            if device == "gpu"
            else "start them with DASK_DASKMEANS__DEVICE=cpu in their environment",
        )


def _start_cpu_cluster(settings: ClusterSettings) -> LocalCluster:
    threads = settings.threads_per_worker or 1
    workers = settings.n_workers or max(1, cores() // threads)
    with _start_loop(workers, threads) as loop:
        return LocalCluster(
            loop=loop,
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=settings.memory_limit,
            dashboard_address=settings.dashboard_address,
            local_directory=settings.local_directory,
            silence_logs=logging.CRITICAL,
            preload=PRELOAD,
        )


def _start_gpu_cluster(settings: ClusterSettings) -> LocalCluster:
    """Start a LocalCUDACluster: one worker per GPU, with its share of the cores for the kernels that run on the CPU."""
    from dask_cuda import LocalCUDACluster

    workers = settings.n_workers or gpus.count_gpus()
    threads = settings.threads_per_worker or max(1, cores() // workers)
    with _start_loop(workers, threads) as loop:
        return LocalCUDACluster(
            loop=loop,
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=settings.memory_limit,
            local_directory=settings.local_directory,
            dashboard_address=settings.dashboard_address,
            silence_logs=logging.CRITICAL,
            **_of(settings, GPU),
        )


@contextlib.contextmanager
def _start_loop(workers: int, threads: int) -> Iterator[Any]:
    """Open the loop of a cluster that starts; kernel threads times worker threads is the number of cores."""
    kernel_threads = max(1, cores() // (workers * threads))
    pinned = {name: str(kernel_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    try:
        with (
            sigint_free_loop() as loop,
            _set_environment(pinned),
            dask.config.set(QUIET_CONFIG),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Port .* is already in use")  # another port is used, and printed
            yield loop
    except (OSError, TypeError, ValueError, RuntimeError) as error:  # TypeError: dask-cuda, contradictory options
        raise ClusterError(
            f"the workers could not be started ({error})",
            where="--dashboard-address, --local-directory, or the options of GPU workers",
            expected="a free address such as 127.0.0.1:8787, a writable directory, consistent options",
        ) from None


@contextlib.contextmanager
def _set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment `variables` for processes that start in the ``with`` block, before their imports read them.

    For processes that it starts later, the nanny sets variables of its own; where this process has them, it uses these.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with dask.config.set({"distributed.nanny.pre-spawn-environ": variables}):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def describe_dashboard(client: Client) -> str:
    """Describe where the dashboard of `client` and its page of fits are, or how to get a dashboard."""
    if find_spec("bokeh") is None:
        return 'not available; pip install "daskmeans[dashboard]"'
    return f"{client.dashboard_link}, fits at /{PAGE}" if add_page(client) else str(client.dashboard_link)


@contextlib.contextmanager
def sigint_free_loop() -> Iterator[Any]:
    """Open the loop of a cluster that starts in the ``with`` block; its thread and child processes ignore Ctrl-C.

    A terminal sends Ctrl-C to all processes. Workers must not end before the step has cleaned up, nor while they are
    just starting to replace others; this process ends them.
    """
    from distributed.utils import LoopRunner  # slow to import; importers of this module must respond to Ctrl-C

    resource_tracker.ensure_running()  # a thread that started it would receive signals afterwards
    runner = LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()  # a running cluster keeps it alive
