"""The client that tasks run on: its threads, its processes and its event log."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import dask.system
import distributed
from distributed import Client

logger = logging.getLogger("daskmeans")


def allowed_threads(cores: int, limit: str) -> int:
    """Return `cores`, or the number of threads that a value of ``OMP_NUM_THREADS`` allows if that is less.

    Examples
    --------
    >>> allowed_threads(8, "2"), allowed_threads(8, "4,2"), allowed_threads(8, "16"), allowed_threads(8, "")
    (2, 4, 8, 8)
    """
    outermost = limit.split(",")[0].strip()
    return min(cores, int(outermost)) if outermost.isdecimal() and int(outermost) else cores


# Read at import: distributed sets the variable to 1 in this process when it starts workers.
_allowed = os.environ.get("OMP_NUM_THREADS", "")


def cores() -> int:
    """Cores that this process may use: those of its affinity and cgroup, or ``OMP_NUM_THREADS`` if that is less."""
    return allowed_threads(dask.system.CPU_COUNT, _allowed)


# What starts the workers of a command, until they have started.
_starter: Callable[[], Client] | None = None


@contextlib.contextmanager
def start_on_demand(start: Callable[[], Client]) -> Iterator[None]:
    """Call `start` when :func:`current_client` is first asked in the ``with`` block; it starts workers and a client.

    Steps ask once they have checked what they were given, so that no mistake costs the time of a start.
    """
    global _starter
    _starter = start
    try:
        yield
    finally:
        _starter = None


def current_client(client: Client | None = None) -> Client | None:
    """Return `client`, else the current client of this process, else None: then work runs in this process.

    Inside a task the answer is None: a task that waited for others could block its own cluster.
    """
    global _starter
    if client is not None:
        return client
    with contextlib.suppress(ValueError):
        distributed.get_worker()
        return None
    if _starter is not None:
        start, _starter = _starter, None
        return start()
    with contextlib.suppress(ValueError):
        return Client.current()
    return None


def n_threads(client: Client | None = None) -> int:
    """Threads that run tasks at the same time: those of all workers, or the cores of this process.

    Examples
    --------
    >>> 1 <= n_threads() <= dask.system.CPU_COUNT
    True
    """
    return cores() if client is None else max(1, sum(client.nthreads().values()))


def threads_per_process(client: Client | None = None) -> int:
    """Maximum number of threads that run tasks in one process."""
    return cores() if client is None else max(client.nthreads().values(), default=1)


def n_processes(client: Client | None = None) -> int:
    """Processes that run tasks."""
    return 1 if client is None else max(1, len(client.nthreads()))


def run_on_workers(function: Callable[[], Any], client: Client) -> dict[str, Any]:
    """Return the results of ``function()`` by worker address; workers that are lost meanwhile are left out.

    `function` may take an argument ``dask_worker``, as with :meth:`Client.run`.
    """
    found: Any = client.run(function, on_error="return")  # a dict, as this client is not asynchronous
    left = {worker: result for worker, result in found.items() if not _is_unreachable(result)}
    for result in left.values():
        if isinstance(result, Exception):
            raise result
    return left


def _is_unreachable(result: Any) -> bool:
    """Whether `result` says that a worker could not be reached; errors about files have an errno."""
    return isinstance(result, OSError) and result.errno is None


def task_key(name: str) -> str:
    """Return a unique task key; dashboards show its `name`."""
    return f"{name}-{uuid4().hex}"


def log_event(topic: str, message: dict[str, Any], client: Client | None = None) -> None:
    """Log `message` under `topic` on the scheduler, where the dashboard and plug-ins find it."""
    client = current_client(client)
    logger.debug("%s %s", topic, message)
    if client is not None:
        client.log_event(topic, message)
