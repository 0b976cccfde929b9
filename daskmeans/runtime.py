"""Where tasks run: in this process, or on the cluster of the current client.

The code above hands over :class:`dask.delayed.Delayed` tasks and never asks which of these it is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import operator
import os
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any
from uuid import uuid4

import dask
import distributed
import psutil
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker
from distributed.comm import CommClosedError
from distributed.protocol import pickle
from distributed.system import MEMORY_LIMIT
from threadpoolctl import ThreadpoolController

from daskmeans import config, progress
from daskmeans.errors import ClusterError
from daskmeans.watch import Departures, Watch, gave_up, known_workers, lost_scheduler, lost_workers, reached

logger = logging.getLogger("daskmeans")

# Measured: what a worker takes once it has imported the libraries and read files, and what compiling kernels adds,
# which the first process on a machine does.
BASE, COMPILING = 350 << 20, 100 << 20
# Above this share of its limit a worker moves data to disk, and blocks that it moves lose what is noted about them.
TARGET = 0.6
# Bytes of arguments that tasks may bring along, together; dask warns of more than 10 MB in one of them.
LARGE = 8 << 20


def allowed_threads(cores: int, limit: str) -> int:
    """`cores`, or what a value of ``OMP_NUM_THREADS`` allows if that is less.

    Examples
    --------
    >>> allowed_threads(8, "2"), allowed_threads(8, "4,2"), allowed_threads(8, "16"), allowed_threads(8, "")
    (2, 4, 8, 8)
    """
    outermost = limit.split(",")[0].strip()
    return min(cores, int(outermost)) if outermost.isdecimal() and int(outermost) else cores


# As it was in the beginning: distributed sets the variable to 1 in this process when it starts workers.
THREADS = allowed_threads(CPU_COUNT, os.environ.get("OMP_NUM_THREADS", ""))


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
    """Threads that run tasks at the same time: those of all workers, or what this process may take.

    That is the number of cores its affinity and cgroup allow, or ``OMP_NUM_THREADS`` where that is less.

    Examples
    --------
    >>> 1 <= n_threads() <= CPU_COUNT
    True
    """
    return THREADS if client is None else max(1, sum(client.nthreads().values()))


def threads_each(client: Client | None = None) -> int:
    """Threads that run tasks in one process, at most."""
    return THREADS if client is None else max(client.nthreads().values(), default=1)


def n_processes(client: Client | None = None) -> int:
    """Processes that run tasks."""
    return 1 if client is None else max(1, len(client.nthreads()))


def memory_per_task(client: Client | None = None) -> int | None:
    """Bytes that one task may use, on the tightest worker; None without a limit."""
    workers = known_workers(client) if client is not None else []
    return min((_usable(w["memory_limit"]) // w["nthreads"] for w in workers if w["memory_limit"]), default=None)


def memory_to_keep(client: Client | None = None) -> int:
    """Bytes of data that each process may keep between tasks: of the tightest worker, or of this process."""
    if client is None:
        return int(0.8 * _available())
    limits = [worker["memory_limit"] for worker in known_workers(client)]
    return (
        max(0, int(TARGET * min(limits)) - BASE - COMPILING)
        if limits and all(limits)
        else _available() // (2 * max(1, len(limits)))
    )


def _available() -> int:
    """What this machine has free, or this process, if its cgroup or its limits leave it less."""
    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss))


def _usable(limit: int) -> int:
    """What a worker has for data: it pauses at 80 % of its limit, Python and its libraries take the base."""
    return max(0, int(0.8 * limit) - BASE)


@dataclass(frozen=True)
class Disk:
    """A file system on which processes keep files.

    Attributes
    ----------
    host, path : str
        The machine, and the directory of one of its processes.
    kind : str
        Such as ext4.
    free : int
        Bytes.
    processes : int
        How many of them keep their files on it.
    """

    host: str
    path: str
    kind: str
    free: int
    processes: int = 1

    @property
    def in_memory(self) -> bool:
        """Whether its files take memory."""
        return self.kind in ("tmpfs", "ramfs")


def disks(client: Client | None = None) -> list[Disk]:
    """The file systems on which the workers, or this process, keep files."""
    found = each_worker(_disk, client).values() if client is not None else [_disk()]
    shared: dict[tuple[str, int], Disk] = {}
    for place, disk in found:
        count = shared[place].processes if place in shared else 0
        shared[place] = replace(disk, processes=count + 1)
    return list(shared.values())


def local_directory(dask_worker: Any = None) -> str:
    """The directory for the files of this process: the worker's own, if one runs here."""
    global _home
    with contextlib.suppress(ValueError):
        _home = str((dask_worker or distributed.get_worker()).local_directory)
    # What arrives from another worker is unpickled outside of any task.
    return _home if os.path.isdir(_home) else dask.config.get("temporary-directory") or tempfile.gettempdir()


_home = ""


def _disk(dask_worker: Any = None) -> tuple[tuple[str, int], Disk]:
    path = os.path.realpath(local_directory(dask_worker))
    mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    mount = max((m for m in mounts if os.path.commonpath([m, path]) == m), key=len, default="")
    host = socket.gethostname()
    return (host, os.stat(path).st_dev), Disk(host, path, mounts.get(mount, ""), psutil.disk_usage(path).free)


def reset_peaks(client: Client | None = None) -> None:
    """Start measuring the peak memory of this process and of all workers anew, where the system can."""
    _reset_peak()
    if client is not None:
        each_worker(_reset_peak, client)


def peaks(client: Client | None = None) -> dict[str, int]:
    """Peak bytes since :func:`reset_peaks`: of this process, and of the worker that used most."""
    workers = each_worker(_peak, client) if client is not None else {}
    return {"client": _peak(), "worker": max(workers.values(), default=0)}


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # Linux only; see proc(5)
        file.write("5")


def _peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return int(psutil.Process().memory_info().rss)


def each_worker(function: Callable[[], Any], client: Client) -> dict[str, Any]:
    """Results of ``function()`` in each worker, by its address; those that are lost meanwhile have none.

    `function` may take an argument ``dask_worker``, as with :meth:`Client.run`.
    """
    found: Any = client.run(function, on_error="return")  # a dict, as this client is not asynchronous
    left = {worker: result for worker, result in found.items() if not _is_lost(result)}
    for result in left.values():
        if isinstance(result, Exception):
            raise result
    return left


def _is_lost(result: Any) -> bool:
    """Whether a worker could not be reached; files that could not be have an error number."""
    return isinstance(result, OSError) and result.errno is None


def compute(
    tasks: Sequence[Delayed], label: str = "", client: Client | None = None, pace: progress.Pace | None = None
) -> list[Any]:
    """Results of `tasks`, in their order, with a line of progress called `label` if it is not empty.

    An error of one task cancels the others and is raised as it was. Where tasks differ in size, `pace` tells by their
    keys how far they are.
    """
    client = current_client(client)
    if client is None:
        with _line(label, tasks) as line:
            return compute_here(tasks, line, pace)
    return gather(client.compute(list(tasks)), label, client, pace)


def hold(tasks: Sequence[Delayed], label: str = "", client: Client | None = None) -> list[Any]:
    """As :func:`compute`, but results stay where they were computed: futures stand for those of a cluster."""
    client = current_client(client)
    if client is None:
        return compute(tasks, label)
    futures = client.compute(list(tasks))
    settle(futures, label, client)
    return futures


def call(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of `functions`, called by threads of this process; for work of milliseconds, which tasks would double."""
    if len(functions) == 1:  # alone it may have the cores that BLAS takes, and need not wait for threads
        return [functions[0]()]
    with one_thread_each():
        futures = [_pool().submit(function) for function in functions]
        concurrent.futures.wait(futures)  # those that others were left with by an error, too
        return [future.result() for future in futures]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads that wait for the next call: to start them takes longer than some calls. They must not call again."""
    return ThreadPoolExecutor(n_threads(), "daskmeans")


def feed(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], name: str, label: str, client: Client
) -> list[Future]:
    """Futures of ``function(*call)``, once all are there; the first value of each call is sent to a worker for it.

    Few are on their way at a time, so that the workers need no memory for all of them. What is lost with a worker is
    sent again.
    """
    futures: list[Any] = [None] * len(calls)
    with _explained(label, client, lambda: list(filter(None, futures))) as watch, _line(label, calls) as line:
        todo, numbers, done = deque(range(len(calls))), {}, distributed.as_completed(loop=client.loop)
        while todo or not done.is_empty():
            while todo and done.count() < 2 * n_threads(client):
                i = todo.popleft()
                value, *others = calls[i]
                future = client.submit(function, _scatter(value, client, broadcast=False), *others, key=key(name))
                numbers[future.key], futures[i] = i, future
                done.add(future)
            future = next(done)
            if future.cancelled() and client.status == "running" and not watch.found:
                todo.append(numbers[future.key])
            else:
                if future.status != "finished":
                    future.result()
                if line is not None:
                    line.advance()
    return futures


def submit(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: Sequence[str], name: str, client: Client
) -> list[Future]:
    """Futures of ``function(*call)``, each on the worker given beside it, or on another if that one is lost."""
    return [
        client.submit(function, *call, key=key(name), workers=[worker], allow_other_workers=True)
        for call, worker in zip(calls, workers, strict=True)
    ]


def places(futures: Sequence[Future], client: Client) -> list[str]:
    """The worker on which each of `futures` lies."""
    while True:
        settle(futures, "", client)
        found = client.who_has(futures)
        if all(found[future.key] for future in futures):
            return [min(found[future.key]) for future in futures]


def settle(futures: Sequence[Future], label: str, client: Client) -> None:
    """Wait for `futures`, which stay; an error of one cancels the others and is raised as it was."""
    with _explained(label, client, lambda: futures), _line(label, futures) as line:
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                if future.status != "finished":
                    future.result()
                if line is not None:
                    line.advance()
        except BaseException:
            _cancel(futures, client)
            raise


def answers(futures: Sequence[Future], lost: Any, client: Client) -> list[Any]:
    """As :func:`gather`, but `lost` stands for the results of tasks whose arguments went with a worker."""
    with Watch(client, lambda: futures):
        for _ in distributed.as_completed(futures, loop=client.loop):
            pass
    gone = [future.cancelled() and client.status == "running" for future in futures]
    found = iter(gather(list(compress(futures, map(operator.not_, gone))), "", client))
    return [lost if missing else next(found) for missing in gone]


def gather(futures: Sequence[Future], label: str, client: Client, pace: progress.Pace | None = None) -> list[Any]:
    """Results of `futures`, which are released; an error of one cancels the others and is raised as it was."""
    try:
        with _explained(label, client, lambda: futures), _line(label, futures) as line:
            if line is not None:
                for future in distributed.as_completed(futures, loop=client.loop):
                    if future.status == "error":
                        break
                    line.advance(pace.done(future.key) if pace else "")
            return client.gather(futures)  # type: ignore[no-any-return]
    finally:
        _cancel(futures, client)


def _cancel(futures: Sequence[Future], client: Client) -> None:
    """Let go of `futures`; one that has given its scheduler up has lost them, and says so elsewhere."""
    with contextlib.suppress(ClusterError), reached(client):
        client.cancel(futures)


def _line(label: str, tasks: Sequence[Any]) -> contextlib.AbstractContextManager[progress.Line | None]:
    return progress.line(label, len(tasks)) if label and tasks else contextlib.nullcontext()


@contextlib.contextmanager
def _explained(label: str, client: Client, futures: Callable[[], Sequence[Future]]) -> Iterator[Watch]:
    """Turn what dask raises about workers and schedulers into errors that say what to do; do not wait for ever."""
    began = time.time()
    try:
        with Watch(client, futures) as watch:
            yield watch
    except KilledWorker:
        raise lost_workers(client, label, began) from None
    except distributed.client.FutureCancelledError as error:
        if error.reason.startswith("scheduler") or client.status != "running":
            raise lost_scheduler() from error
        raise lost_workers(client, label, began) from None  # and with them what was sent to them


def compute_here(
    tasks: Sequence[Delayed], line: progress.Line | None = None, pace: progress.Pace | None = None
) -> list[Any]:
    """Results of `tasks`, computed by threads of this process whether there is a client or not."""
    keys = {task.key for task in tasks}

    def done(key: Any, *_: Any) -> None:
        if line is not None and key in keys:
            line.advance(pace.done(key) if pace else "")

    # Tasks take the cores; a BLAS that brings threads of its own would take them a second time. If one fails, the pool
    # waits for those that run: nothing writes any more once the error is out.
    with Callback(posttask=done), one_thread_each(), ThreadPoolExecutor(n_threads()) as pool:
        return list(dask.compute(*tasks, scheduler="threads", pool=pool))


def one_thread_each() -> contextlib.AbstractContextManager[None]:
    """Limit BLAS to one thread in the ``with`` block, which several threads may be in at the same time."""
    return _limit


class _Limit(contextlib.AbstractContextManager[None]):
    """The limit is one of the process: who comes first sets it, who leaves last takes it back.

    threadpoolctl lets nobody but the thread that has set a limit take it back, and a BLAS on OpenMP notes it for that
    thread alone. So it is always the same thread, of ours.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._thread, self._held = ThreadPoolExecutor(1, "daskmeans_blas"), contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._thread.submit(self._take).result()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._thread.submit(self._held.close).result()

    def _take(self) -> None:
        self._held.close()  # where Ctrl-C came before it was counted
        self._held.enter_context(_libraries().limit(limits=1))


_limit = _Limit()


def _forked() -> None:
    """A child has none of the threads."""
    global _limit
    _limit = _Limit()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@functools.cache
def _libraries() -> ThreadpoolController:
    """Finding them takes long, so it is done once."""
    return ThreadpoolController().select(user_api="blas")


def share(value: Any, client: Client | None = None) -> Any:
    """`value` sent to every worker once; hand the result to tasks in its place."""
    client = current_client(client)
    return value if client is None else _scatter(value, client, broadcast=True)


def spread(arguments: tuple[Any, ...], count: int, client: Client) -> tuple[Any, ...]:
    """`arguments` for `count` tasks: large ones are sent to each worker once, small ones arrive sooner with tasks."""
    return tuple(share(value, client) if _pickled_bytes(value) * count > LARGE else value for value in arguments)


def _pickled_bytes(value: Any) -> int:
    buffers: list[Any] = []
    head = pickle.dumps(value, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)


def _scatter(value: Any, client: Client, *, broadcast: bool) -> Future:
    """As :func:`_sent`, unless the scheduler is lost."""
    with reached(client):
        return _sent(value, client, broadcast)


def _sent(value: Any, client: Client, broadcast: bool) -> Future:
    """`value` sent to one worker, or to each; to another one, or to those that are left, if one dies meanwhile."""
    began, waits = time.time(), iter((0.1, 0.5, 2.0))  # the scheduler needs a moment to notice
    while True:
        name = key("data")
        try:
            with Departures(client, name) if broadcast else contextlib.nullcontext() as departures:
                sent = client.scatter({name: value}, broadcast=broadcast, timeout=config.get("workers-timeout"))
            if departures is None or not departures.seen:
                return sent[name]
        except TimeoutError:
            raise gave_up("no worker takes data") from None
        except CommClosedError:
            wait = next(waits, None)
            if wait is None:
                if client.status != "running":
                    raise
                raise lost_workers(client, "", began) from None
            time.sleep(wait)


def key(name: str) -> str:
    """A key that no other task has; dashboards show its `name`."""
    return f"{name}-{uuid4().hex}"


def log_event(topic: str, message: dict[str, Any], client: Client | None = None) -> None:
    """Log `message` under `topic` with the scheduler, where the dashboard and plug-ins find it."""
    client = current_client(client)
    logger.debug("%s %s", topic, message)
    if client is not None:
        client.log_event(topic, message)
