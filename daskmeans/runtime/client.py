"""The client that tasks run on: which it may be, its workers with their threads, and its event log."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import dask.system
import distributed
from dask.highlevelgraph import MaterializedLayer
from distributed import Client, Future

from daskmeans import config
from daskmeans.errors import ClusterError, DaskmeansError, UsageError
from daskmeans.runtime.liveness import StallMonitor, fetch_workers, translate_client_errors

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


def current_client(client: Any = None) -> Client | None:
    """Return the client that a call runs on, once it has a worker: `client`, else that of :func:`client_in_use`.

    An adaptive cluster without workers starts some when it gets a task.

    Raises
    ------
    UsageError
        It is no client, or an asynchronous one. Or ``dask.annotate(workers=...)`` names no worker of the cluster.
    ClusterError
        It is closed, its scheduler was lost, or it gets no worker.
    """
    found = client_in_use(client)
    if found is not None:
        _check_client(found)
        if found is client and current_worker():  # its thread waits, and must leave room for what it waits for
            with contextlib.suppress(KeyError):  # it has seceded already, as in the context of `worker_client`
                distributed.secede()
        _await_worker(found)
        if "workers" in dask.get_annotations():
            chosen_workers(found)  # tasks for a worker that does not exist would wait for it
    return found


def client_in_use(client: Client | None = None) -> Client | None:
    """Return `client`, else the current client of this process, else None: then work runs in this process.

    Inside a task the answer is None: a task that waited for others could block its own cluster.
    """
    global _starter
    if client is not None:
        return client
    if current_worker():
        return None
    if _starter is not None:
        start, _starter = _starter, None
        return start()
    with contextlib.suppress(ValueError):
        return Client.current()
    return None


def current_worker() -> str:
    """Return the address of the worker whose task this is; outside of tasks an empty string."""
    try:
        return str(distributed.get_worker().address)
    except ValueError:
        return ""


def _check_client(client: Any) -> None:
    if not isinstance(client, Client):
        is_address = isinstance(client, str)
        raise UsageError(
            f"{client!r} is an address" if is_address else f"it is of type {type(client).__name__}",
            where="client",
            expected="a distributed.Client",
            remedy=f"distributed.Client({client!r})" if is_address else "distributed.Client(cluster)",
        )
    if client.status in ("closing", "closed"):
        raise ClusterError(
            "the client is closed",
            where="client",
            expected="a client that is connected to its scheduler",
            remedy="connect again: distributed.Client(address)",
        )
    if client.asynchronous:
        raise UsageError(
            "the client is asynchronous, and this call waits for its results",
            where="client",
            expected="a client of blocking calls",
            remedy="call it in a thread: await asyncio.to_thread(model.fit, X, client=client)",
        )


def _await_worker(client: Client) -> None:
    """Wait until `client` has a worker: sizes of work follow from what workers have."""
    with translate_client_errors(client):
        if client.nthreads():
            return
    logger.warning(
        "the cluster has no workers; waiting for the first, up to %s s (daskmeans.workers-timeout)",
        config.get("workers-timeout"),
    )
    future = client.submit(int, key=task_key("await-worker"))  # a cluster grows for tasks only
    with StallMonitor(client, lambda: [future]):
        for _ in distributed.as_completed([future], loop=client.loop):
            pass


def check_home(collections: Sequence[Any], client: Client | None) -> None:
    """Make sure that what dask `collections` are made of lies on the cluster of `client`.

    Raises
    ------
    ClusterError
        It lies nowhere any more: its client is closed, or was restarted.
    UsageError
        It lies on another cluster.
    """
    graphs = {id(each.dask): each.dask for each in collections}
    layers = [layer for graph in graphs.values() for layer in graph.layers.values()]
    held = [value for layer in layers if isinstance(layer, MaterializedLayer) for value in layer.values()]
    for future in [value for value in held if isinstance(value, Future)]:
        theirs = future.client
        gone = "their client is closed" if theirs is None or theirs.status in ("closing", "closed") else ""
        if gone or future.status == "cancelled":
            raise ClusterError(
                f"the rows are on no cluster any more: {gone or 'they were cancelled, as client.restart() does'}",
                expected="rows that were persisted with a client that is open",
                remedy="persist the rows again",
            )
        there, here = _scheduler_address(theirs), _scheduler_address(client) if client else "this process"
        if there != here:
            raise UsageError(
                f"the rows lie on the cluster at {there}, and the call runs on {here}",
                where="client",
                expected="a client of the cluster that holds the rows",
                remedy="pass the client that persisted them (client=), or persist them with this one",
            )


def _scheduler_address(client: Any) -> str:
    return str(client.scheduler.address)


def chosen_workers(client: Client) -> dict[str, int]:
    """Return the threads of each worker that may hold data: of those that ``dask.annotate(workers=...)`` names, or all.

    Raises
    ------
    UsageError
        The annotation names no worker of the cluster.
    """
    asked = dask.get_annotations().get("workers")
    if asked is None or callable(asked):  # dask asks a function for each task
        return client.nthreads()
    workers, asked = fetch_workers(client), set(asked)  # addresses, names or hosts
    threads = {
        address: facts["nthreads"]
        for address, facts in workers.items()
        if asked & {address, address.partition("://")[2], facts["name"], facts["host"]}
    }
    if not threads:
        raise UsageError(
            f"dask.annotate(workers={sorted(asked)}) names no worker of the cluster",
            expected=f"some of {', '.join(workers)}",
        )
    return threads


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
            if not isinstance(result, DaskmeansError):
                check_versions(client)  # a worker cannot read a function of a package that it does not have
            raise result
    return left


def check_versions(client: Client) -> None:
    """Make sure that the workers can run the tasks; a worker that cannot import daskmeans would never answer.

    Raises
    ------
    ClusterError
    """
    ours = version("daskmeans")
    versions: Any = client.get_versions(packages=["daskmeans"])  # a dict, as this client is not asynchronous
    workers = versions["workers"]
    found = {address: facts["packages"].get("daskmeans") for address, facts in workers.items()}
    if other := {address: theirs for address, theirs in found.items() if theirs != ours}:
        address, theirs = next(iter(other.items()))
        raise ClusterError(
            f"{len(other)} of {len(found)} workers have {f'daskmeans {theirs}' if theirs else 'no daskmeans'}",
            where=address,
            expected=f"daskmeans {ours}, as here",
            remedy="install the same version in the workers' environment",
        )


def _is_unreachable(result: Any) -> bool:
    """Whether `result` says that a worker could not be reached; errors about files have an errno."""
    return isinstance(result, OSError) and result.errno is None


def task_key(name: str) -> str:
    """Return a unique task key; dashboards show its `name`."""
    return f"{name}-{uuid4().hex}"


def log_event(topic: str, message: dict[str, Any], client: Client | None = None) -> None:
    """Log `message` under `topic` on the scheduler, where the dashboard and plug-ins find it."""
    client = client_in_use(client)
    logger.debug("%s %s", topic, message)
    if client is not None:
        client.log_event(topic, message)
