"""Where tasks run: in this process, or on the cluster of the current client.

The code above hands over :class:`dask.delayed.Delayed` tasks and never asks which of these it is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import operator
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any

import dask
import distributed
from dask.callbacks import Callback
from dask.delayed import Delayed
from distributed import Client, Future, KilledWorker
from distributed.comm import CommClosedError
from distributed.protocol import pickle
from threadpoolctl import ThreadpoolController

from daskmeans import config
from daskmeans.errors import ClusterError
from daskmeans.runtime import progress
from daskmeans.runtime.client import current_client, n_threads, task_key
from daskmeans.runtime.liveness import (
    StallMonitor,
    WorkerLossMonitor,
    scheduler_lost_error,
    stall_error,
    translate_client_errors,
    workers_lost_error,
)

# Bytes of arguments that tasks may bring along, together; dask warns of more than 10 MB in one of them.
MAX_ARGUMENT_BYTES = 8 << 20


def compute(
    tasks: Sequence[Delayed],
    label: str = "",
    client: Client | None = None,
    pace: progress.ProgressEstimate | None = None,
) -> list[Any]:
    """Results of `tasks`, in their order, with a line of progress called `label` if it is not empty.

    An error of one task cancels the others and is raised as it was. Where tasks differ in size, `pace` tells by their
    keys how far they are.
    """
    client = current_client(client)
    if client is None:
        with _open_line(label, tasks) as line:
            return compute_locally(tasks, line, pace)
    return gather(client.compute(list(tasks)), label, client, pace)


def persist(tasks: Sequence[Delayed], label: str = "", client: Client | None = None) -> list[Any]:
    """As :func:`compute`, but results stay where they were computed: futures stand for those of a cluster."""
    client = current_client(client)
    if client is None:
        return compute(tasks, label)
    futures = client.compute(list(tasks))
    wait(futures, label, client)
    return futures


def call_in_threads(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of `functions`, called by threads of this process; for work of milliseconds, which tasks would double."""
    if len(functions) == 1:  # alone it may have the cores that BLAS takes, and need not wait for threads
        return [functions[0]()]
    with limit_blas_threads():
        futures = [_thread_pool().submit(function) for function in functions]
        concurrent.futures.wait(futures)  # those that others were left with by an error, too
        return [future.result() for future in futures]


@functools.cache
def _thread_pool() -> ThreadPoolExecutor:
    """Threads that wait for the next call: to start them takes longer than some calls. They must not call again."""
    return ThreadPoolExecutor(n_threads(), "daskmeans")


def scatter_map(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], name: str, label: str, client: Client
) -> list[Future]:
    """Futures of ``function(*call)``, once all are there; the first value of each call is sent to a worker for it.

    Few are on their way at a time, so that the workers need no memory for all of them. What is lost with a worker is
    sent again.
    """
    futures: list[Any] = [None] * len(calls)
    with (
        _translate_dask_errors(label, client, lambda: list(filter(None, futures))) as monitor,
        _open_line(label, calls) as line,
    ):
        todo, numbers, done = deque(range(len(calls))), {}, distributed.as_completed(loop=client.loop)
        while todo or not done.is_empty():
            while todo and done.count() < 2 * n_threads(client):
                i = todo.popleft()
                value, *others = calls[i]
                future = client.submit(function, _scatter(value, client, broadcast=False), *others, key=task_key(name))
                numbers[future.key], futures[i] = i, future
                done.add(future)
            future = next(done)
            if future.cancelled() and client.status == "running" and not monitor.found:
                todo.append(numbers[future.key])
            else:
                if future.status != "finished":
                    future.result()
                if line is not None:
                    line.advance()
    return futures


def submit_to_workers(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: Sequence[str], name: str, client: Client
) -> list[Future]:
    """Futures of ``function(*call)``, each on the worker given beside it, or on another if that one is lost."""
    return [
        client.submit(function, *call, key=task_key(name), workers=[worker], allow_other_workers=True)
        for call, worker in zip(calls, workers, strict=True)
    ]


def locate_futures(futures: Sequence[Future], client: Client) -> list[str]:
    """The worker on which each of `futures` lies."""
    while True:
        wait(futures, "", client)
        found = client.who_has(futures)
        if all(found[future.key] for future in futures):
            return [min(found[future.key]) for future in futures]


def wait(futures: Sequence[Future], label: str, client: Client) -> None:
    """Wait for `futures`, which stay; an error of one cancels the others and is raised as it was."""
    with _translate_dask_errors(label, client, lambda: futures), _open_line(label, futures) as line:
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                if future.status != "finished":
                    future.result()
                if line is not None:
                    line.advance()
        except BaseException:
            _cancel(futures, client)
            raise


def gather_or_lost(futures: Sequence[Future], lost: Any, client: Client) -> list[Any]:
    """As :func:`gather`, but `lost` stands for the results of tasks whose arguments went with a worker."""
    with StallMonitor(client, lambda: futures):
        for _ in distributed.as_completed(futures, loop=client.loop):
            pass
    gone = [future.cancelled() and client.status == "running" for future in futures]
    found = iter(gather(list(compress(futures, map(operator.not_, gone))), "", client))
    return [lost if missing else next(found) for missing in gone]


def gather(
    futures: Sequence[Future], label: str, client: Client, pace: progress.ProgressEstimate | None = None
) -> list[Any]:
    """Results of `futures`, which are released; an error of one cancels the others and is raised as it was."""
    try:
        with _translate_dask_errors(label, client, lambda: futures), _open_line(label, futures) as line:
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
    with contextlib.suppress(ClusterError), translate_client_errors(client):
        client.cancel(futures)


def _open_line(label: str, tasks: Sequence[Any]) -> contextlib.AbstractContextManager[progress.ProgressLine | None]:
    return progress.open_line(label, len(tasks)) if label and tasks else contextlib.nullcontext()


@contextlib.contextmanager
def _translate_dask_errors(
    label: str, client: Client, futures: Callable[[], Sequence[Future]]
) -> Iterator[StallMonitor]:
    """Turn what dask raises about workers and schedulers into errors that say what to do; do not wait for ever."""
    began = time.time()
    try:
        with StallMonitor(client, futures) as monitor:
            yield monitor
    except KilledWorker:
        raise workers_lost_error(client, label, began) from None
    except distributed.client.FutureCancelledError as error:
        if error.reason.startswith("scheduler") or client.status != "running":
            raise scheduler_lost_error() from error
        raise workers_lost_error(client, label, began) from None  # and with them what was sent to them


def compute_locally(
    tasks: Sequence[Delayed], line: progress.ProgressLine | None = None, pace: progress.ProgressEstimate | None = None
) -> list[Any]:
    """Results of `tasks`, computed by threads of this process whether there is a client or not."""
    keys = {task.key for task in tasks}

    def done(key: Any, *_: Any) -> None:
        if line is not None and key in keys:
            line.advance(pace.done(key) if pace else "")

    # Tasks take the cores; a BLAS that brings threads of its own would take them a second time. If one fails, the pool
    # waits for those that run: nothing writes any more once the error is out.
    with Callback(posttask=done), limit_blas_threads(), ThreadPoolExecutor(n_threads()) as pool:
        return list(dask.compute(*tasks, scheduler="threads", pool=pool))


def limit_blas_threads() -> contextlib.AbstractContextManager[None]:
    """Limit BLAS to one thread in the ``with`` block, which several threads may be in at the same time."""
    return _blas_limit


class _BlasLimit(contextlib.AbstractContextManager[None]):
    """The limit is one of the process: who comes first sets it, who leaves last takes it back.

    threadpoolctl lets nobody but the thread that has set a limit take it back, and a BLAS on OpenMP notes it for that
    thread alone. So it is always the same thread, of ours.
    """

    def __init__(self) -> None:
        self._lock, self._n_entered = threading.Lock(), 0
        self._thread, self._limits = ThreadPoolExecutor(1, "daskmeans_blas"), contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_entered:
                self._thread.submit(self._set_limit).result()
            self._n_entered += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_entered -= 1
            if not self._n_entered:
                self._thread.submit(self._limits.close).result()

    def _set_limit(self) -> None:
        self._limits.close()  # where Ctrl-C came before it was counted
        self._limits.enter_context(_find_blas().limit(limits=1))


_blas_limit = _BlasLimit()


def _reset_after_fork() -> None:
    """A child has none of the threads."""
    global _blas_limit
    _blas_limit = _BlasLimit()
    _thread_pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@functools.cache
def _find_blas() -> ThreadpoolController:
    """Finding them takes long, so it is done once."""
    return ThreadpoolController().select(user_api="blas")


def broadcast(value: Any, client: Client | None = None) -> Any:
    """`value` sent to every worker once; hand the result to tasks in its place."""
    client = current_client(client)
    return value if client is None else _scatter(value, client, broadcast=True)


def broadcast_large(arguments: tuple[Any, ...], count: int, client: Client) -> tuple[Any, ...]:
    """`arguments` for `count` tasks: large ones are sent to each worker once, small ones arrive sooner with tasks."""
    return tuple(
        broadcast(value, client) if _pickled_bytes(value) * count > MAX_ARGUMENT_BYTES else value for value in arguments
    )


def _pickled_bytes(value: Any) -> int:
    buffers: list[Any] = []
    head = pickle.dumps(value, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)


def _scatter(value: Any, client: Client, *, broadcast: bool) -> Future:
    """As :func:`_scatter_with_retries`, unless the scheduler is lost."""
    with translate_client_errors(client):
        return _scatter_with_retries(value, client, broadcast)


def _scatter_with_retries(value: Any, client: Client, broadcast: bool) -> Future:
    """`value` sent to one worker, or to each; to another one, or to those that are left, if one dies meanwhile."""
    began, waits = time.time(), iter((0.1, 0.5, 2.0))  # the scheduler needs a moment to notice
    while True:
        name = task_key("data")
        try:
            with WorkerLossMonitor(client, name) if broadcast else contextlib.nullcontext() as monitor:
                sent = client.scatter({name: value}, broadcast=broadcast, timeout=config.get("workers-timeout"))
            if monitor is None or not monitor.worker_lost:
                return sent[name]
        except TimeoutError:
            raise stall_error("no worker takes data") from None
        except CommClosedError:
            wait = next(waits, None)
            if wait is None:
                if client.status != "running":
                    raise
                raise workers_lost_error(client, "", began) from None
            time.sleep(wait)
