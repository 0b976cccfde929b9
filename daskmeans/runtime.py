"""Where tasks run: in this process, on a LocalCluster, or on a scheduler that is already there.

The code above hands over :class:`dask.delayed.Delayed` tasks and never asks which of these it is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import dask
import distributed
import psutil
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, KilledWorker, LocalCluster
from threadpoolctl import ThreadpoolController

from daskmeans import config, progress
from daskmeans.errors import ClusterError, MissingExtraError, NotFoundError, UsageError

logger = logging.getLogger("daskmeans")

# Measured: what a worker takes once it has imported the libraries and compiled the kernels.
BASE = 300 << 20


@dataclass(frozen=True)
class ClusterSettings:
    """Where a command runs; the fields are the flags of the command line."""

    device: str = "auto"
    n_workers: int | None = None
    threads_per_worker: int | None = None
    memory_limit: str = "auto"
    scheduler: str | None = None
    scheduler_file: str | None = None
    dashboard_address: str = "127.0.0.1:8787"
    local_directory: str | None = None
    rmm_pool_size: str | None = None
    device_memory_limit: str | None = None
    enable_cudf_spill: bool = False
    protocol: str | None = None


def current_client(client: Client | None = None) -> Client | None:
    """`client`, else the current client of this process, else None: work runs in this process.

    Inside a task there is none: a task that waited for others on its own cluster could block it.
    """
    if client is not None:
        return client
    with contextlib.suppress(ValueError):
        distributed.get_worker()
        return None
    with contextlib.suppress(ValueError):
        return Client.current()
    return None


def n_threads(client: Client | None = None) -> int:
    """Threads that run tasks at the same time: those of all workers, or the cores of this process."""
    if client is None:
        return CPU_COUNT
    return max(1, sum(client.nthreads().values()))


def memory_per_task(client: Client | None = None) -> int | None:
    """Bytes that one task may use, on the tightest worker; None without a limit."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values() if client is not None else ()
    return min((_usable(w["memory_limit"]) // w["nthreads"] for w in workers if w["memory_limit"]), default=None)


def memory_in_all(client: Client | None = None) -> int:
    """Bytes that all workers may use together; without a client or a limit, what this machine has free."""
    limits = [w["memory_limit"] for w in client.scheduler_info(n_workers=-1)["workers"].values()] if client else [0]
    return sum(map(_usable, limits)) if all(limits) else int(psutil.virtual_memory().available)


def _usable(limit: int) -> int:
    """What a worker has for data: it pauses at 80 % of its limit, Python and its libraries take the base."""
    return max(0, int(0.8 * limit) - BASE)


def reset_peaks(client: Client | None = None) -> None:
    """Start measuring the peak memory of this process and of all workers anew, where the system can."""
    _reset_peak()
    if client is not None:
        client.run(_reset_peak)


def peaks(client: Client | None = None) -> dict[str, int]:
    """Peak bytes since :func:`reset_peaks`: of this process, and of the worker that used most."""
    return {"client": _peak(), "worker": max(client.run(_peak).values(), default=0) if client is not None else 0}


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # Linux only; see proc(5)
        file.write("5")


def _peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return int(psutil.Process().memory_info().rss)


def compute(tasks: Sequence[Delayed], label: str = "", client: Client | None = None) -> list[Any]:
    """Results of `tasks`, in their order, with a line of progress called `label` if it is not empty.

    An error of one task cancels the others and is raised as it was.
    """
    client = current_client(client)
    display = progress.line(label, len(tasks)) if label and tasks else contextlib.nullcontext()
    with display as line:
        if client is None:
            return compute_here(tasks, line)
        futures = client.compute(list(tasks))
        try:
            if line is not None:
                for future in distributed.as_completed(futures):
                    if future.status == "error":
                        break
                    line.advance()
            return client.gather(futures)
        except KilledWorker as error:
            raise ClusterError(
                f"workers died one after the other while running a task of {label or 'this step'!r}",
                where=f"--memory-limit, {error.last_worker.memory_limit / 2**30:.2g} GiB a worker",
                expected="workers with enough memory for a task",
                remedy="give workers a higher --memory-limit, or fewer --threads-per-worker",
            ) from None
        except distributed.client.FutureCancelledError as error:
            raise ClusterError(
                "the scheduler was lost while tasks were running", remedy="run the command again"
            ) from error
        finally:
            client.cancel(futures)


def compute_here(tasks: Sequence[Delayed], line: progress.Line | None = None) -> list[Any]:
    """Results of `tasks`, computed by threads of this process whether there is a client or not."""
    keys = {task.key for task in tasks}

    def done(key: Any, *_: Any) -> None:
        if line is not None and key in keys:
            line.advance()

    # Tasks take the cores; a BLAS that brings threads of its own would take them a second time.
    with Callback(posttask=done), _one_thread_each():
        return list(dask.compute(*tasks, scheduler="threads", num_workers=CPU_COUNT))


def _one_thread_each() -> contextlib.AbstractContextManager[Any]:
    """Limit BLAS to one thread in the ``with`` block; finding the libraries takes long, so it is done once."""
    return _libraries().limit(limits=1)


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def persist(tasks: Sequence[Delayed], client: Client | None = None) -> list[Delayed]:
    """`tasks` computed and kept where they were computed; the result stands for them in further tasks."""
    client = current_client(client)
    if client is None:
        with _one_thread_each():
            return list(dask.persist(*tasks, scheduler="threads", num_workers=CPU_COUNT))
    return list(client.persist(list(tasks)))


def share(value: Any, client: Client | None = None) -> Any:
    """`value` sent to every worker once; hand the result to tasks in its place."""
    client = current_client(client)
    return value if client is None else client.scatter([value], broadcast=True, hash=False)[0]


def place(value: Any, client: Client | None = None) -> Any:
    """`value` sent to some worker; hand the result to tasks in its place."""
    client = current_client(client)
    return value if client is None else client.scatter([value], hash=False)[0]


def log_event(topic: str, message: dict[str, Any], client: Client | None = None) -> None:
    """Log `message` under `topic` with the scheduler, where the dashboard and plug-ins find it."""
    client = current_client(client)
    logger.debug("%s %s", topic, message)
    if client is not None:
        client.log_event(topic, message)


@contextlib.contextmanager
def cluster(settings: ClusterSettings) -> Iterator[Client]:
    """Client of the cluster that `settings` describe; one that was started here ends with the ``with`` block.

    Raises
    ------
    ClusterError
        No scheduler answers at the address.
    UsageError
        The settings contradict one another, or ask for a device that is not there.
    """
    if settings.device not in ("auto", "cpu", "gpu"):
        raise UsageError(f"unknown device {settings.device!r}", where="--device", expected="auto, cpu or gpu")
    if settings.memory_limit != "auto":
        try:
            parse_bytes(settings.memory_limit)
        except ValueError:
            raise UsageError(
                f"{settings.memory_limit!r} is no amount of memory", where="--memory-limit", expected="such as 4GiB"
            ) from None
    if settings.scheduler or settings.scheduler_file:
        with _connect(settings) as client:
            yield client
    elif settings.device == "gpu":
        with _gpu_cluster(settings) as local, Client(local) as client:
            yield client
    else:
        with _cpu_cluster(settings) as local, Client(local) as client:
            yield client


def _connect(settings: ClusterSettings) -> Client:
    timeout = config.get("connect-timeout")
    if settings.n_workers or settings.threads_per_worker or settings.memory_limit != "auto":
        raise UsageError(
            "the workers of a scheduler that is there are what they are",
            where="--n-workers, --threads-per-worker, --memory-limit",
            remedy="leave these flags out, or --scheduler",
        )
    if settings.scheduler_file and not os.path.exists(settings.scheduler_file):  # distributed would wait for it
        raise NotFoundError("no such file", where=f"--scheduler-file {settings.scheduler_file}")
    try:
        client = Client(settings.scheduler, scheduler_file=settings.scheduler_file, timeout=timeout)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no scheduler answered within {timeout} s ({type(error).__name__})",
            where=f"--scheduler {settings.scheduler or settings.scheduler_file}",
            expected="the address of a running dask scheduler, such as tcp://127.0.0.1:8786",
            remedy="start one with `dask scheduler`, or leave the flag out to use this machine",
        ) from None
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError:
        client.close()
        raise ClusterError(
            f"the scheduler has no workers, and none came within {timeout} s",
            where=f"--scheduler {settings.scheduler or settings.scheduler_file}",
            remedy="start some with `dask worker ADDRESS`",
        ) from None
    return client


def _cpu_cluster(settings: ClusterSettings) -> LocalCluster:
    """A LocalCluster on which kernel threads times worker threads is the number of cores."""
    threads = settings.threads_per_worker or 1
    workers = settings.n_workers or max(1, CPU_COUNT // threads)
    kernel_threads = max(1, CPU_COUNT // (workers * threads))
    pinned = {name: str(kernel_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Arrow's own pool keeps what it has freed: measured, a third more memory while buckets are merged.
    pinned |= {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    try:
        with _deaf_to_interrupts(), _inherited(pinned), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Port .* is already in use")  # another is taken, and printed
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                memory_limit=settings.memory_limit,
                dashboard_address=settings.dashboard_address,
                local_directory=settings.local_directory,
                silence_logs=logging.CRITICAL,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"workers could not be started here ({error})",
            where="--dashboard-address, --local-directory",
            expected="a free address such as 127.0.0.1:8787, and a directory that can be written",
        ) from None


@contextlib.contextmanager
def _inherited(variables: dict[str, str]) -> Iterator[None]:
    """Give `variables` to processes that start in the ``with`` block, before they import what reads them.

    The nanny sets its own for processes that it starts later; of those that this process has, it takes these.
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


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that start in the ``with`` block ignore Ctrl-C: a terminal sends it to all, this one ends them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _gpu_cluster(settings: ClusterSettings) -> Any:
    if find_spec("dask_cuda") is None:
        raise MissingExtraError("dask_cuda", "gpu")
    from dask_cuda import LocalCUDACluster

    names = ["n_workers", "threads_per_worker", "memory_limit", "device_memory_limit", "rmm_pool_size"]
    names += ["enable_cudf_spill", "protocol", "dashboard_address", "local_directory"]
    given = {name: getattr(settings, name) for name in names}
    return LocalCUDACluster(**{name: value for name, value in given.items() if value is not None})


def dashboard(client: Client) -> str:
    """Where the dashboard of `client` is, or how to get one."""
    if find_spec("bokeh") is None:
        return 'not available; pip install "daskmeans[dashboard]"'
    return str(client.dashboard_link)
