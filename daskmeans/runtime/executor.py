"""Where tasks run: in this process, or on the cluster of the current client.

Callers hand over :class:`dask.delayed.Delayed` tasks and never ask which of the two it is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import operator
import os
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

from daskmeans import config
from daskmeans.errors import ClusterError, NotFoundError
from daskmeans.runtime import blas, progress
from daskmeans.runtime.client import check_versions, client_in_use, n_threads, run_on_workers, task_key
from daskmeans.runtime.liveness import (
    StallMonitor,
    WorkerLossMonitor,
    scheduler_lost_error,
    stall_error,
    translate_client_errors,
    workers_lost_error,
)

# Total bytes of arguments that tasks may carry; Dask warns about more than 10 MB in one of them.
MAX_ARGUMENT_BYTES = 8 << 20


def compute(
    tasks: Sequence[Delayed],
    label: str = "",
    client: Client | None = None,
    pace: progress.ProgressEstimate | None = None,
) -> list[Any]:
    """Return the results of `tasks` in order, with a progress line called `label` unless that is empty.

    An error of one task cancels the others and is raised unchanged. Where tasks differ in size, `pace` estimates the
    progress from their keys.
    """
    client = client_in_use(client)
    if client is None:
        with _open_line(label, tasks) as line:
            return compute_locally(tasks, line, pace)
    return gather(client.compute(list(tasks)), label, client, pace)


def persist(tasks: Sequence[Delayed], label: str = "", client: Client | None = None) -> list[Any]:
    """Compute `tasks` as :func:`compute` does, but keep the results where they are; on a cluster, return futures."""
    client = client_in_use(client)
    if client is None:
        return compute(tasks, label)
    futures = client.compute(list(tasks))
    wait(futures, label, client)
    return futures


def call_in_threads(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return the results of `functions`, called in threads; for milliseconds of work, which tasks would take twice."""
    if len(functions) == 1:  # alone it may use all cores for BLAS, and need not wait for threads
        return [functions[0]()]
    with blas.limit_blas_threads():
        futures = [_thread_pool().submit(function) for function in functions]
        concurrent.futures.wait(futures)  # also those that an error would leave running
        return [future.result() for future in futures]


@functools.cache
def _thread_pool() -> ThreadPoolExecutor:
    """Return threads that are kept for the next call, as starting them may take longer. They must not call this."""
    return ThreadPoolExecutor(n_threads(), "daskmeans")


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
    os.register_at_fork(after_in_child=_thread_pool.cache_clear)


def scatter_map(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], name: str, label: str, client: Client
) -> list[Future]:
    """Return futures of ``function(*call)`` once all are done; the first value of each call is scattered to a worker.

    Few values are in flight at a time, so that the workers need no memory for all of them. Values that are lost with a
    worker are sent again.
    """
    futures: list[Any] = [None] * len(calls)
    with (
        _translate_dask_errors(label, client, lambda: list(filter(None, futures))) as monitor,
        _open_line(label, calls) as line,
        _cancel_on_error(futures, client),
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
    """Return futures of ``function(*call)``, each on the worker given for it, or on another if that one is lost."""
    return [
        client.submit(function, *call, key=task_key(name), workers=[worker], allow_other_workers=True)
        for call, worker in zip(calls, workers, strict=True)
    ]


def locate_futures(futures: Sequence[Future], client: Client) -> list[str]:
    """Return the worker that holds each of `futures`."""
    while True:
        wait(futures, "", client)
        found = client.who_has(futures)
        if all(found[future.key] for future in futures):
            return [min(found[future.key]) for future in futures]


def wait(futures: Sequence[Future], label: str, client: Client) -> None:
    """Wait for `futures`, which are kept; an error of one cancels the others and is raised unchanged."""
    with (
        _translate_dask_errors(label, client, lambda: futures),
        _open_line(label, futures) as line,
        _cancel_on_error(futures, client),
    ):
        for future in distributed.as_completed(futures, loop=client.loop):
            if future.status != "finished":
                future.result()
            if line is not None:
                line.advance()


def gather_or_lost(futures: Sequence[Future], lost: Any, client: Client) -> list[Any]:
    """Gather results as :func:`gather` does, with `lost` for tasks whose arguments were lost with a worker."""
    with _cancel_on_error(futures, client), StallMonitor(client, lambda: futures):
        for _ in distributed.as_completed(futures, loop=client.loop):
            pass
    gone = [future.cancelled() and client.status == "running" for future in futures]
    found = iter(gather(list(compress(futures, map(operator.not_, gone))), "", client))
    return [lost if missing else next(found) for missing in gone]


def gather(
    futures: Sequence[Future], label: str, client: Client, pace: progress.ProgressEstimate | None = None
) -> list[Any]:
    """Return the results of `futures` and release them; an error of one cancels the others and is raised unchanged."""
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


@contextlib.contextmanager
def _cancel_on_error(futures: Sequence[Future | None], client: Client) -> Iterator[None]:
    """Cancel `futures` if the ``with`` block fails: a traceback of Ctrl-C that is kept would keep their results too."""
    try:
        yield
    except BaseException:
        _cancel([future for future in futures if future is not None], client)
        raise


def _cancel(futures: Sequence[Future], client: Client) -> None:
    """Cancel `futures`. A client that has given up its scheduler has lost them, and reports that elsewhere."""
    with contextlib.suppress(ClusterError), translate_client_errors(client):
        client.cancel(futures)


def _open_line(label: str, tasks: Sequence[Any]) -> contextlib.AbstractContextManager[progress.ProgressLine | None]:
    return progress.open_line(label, len(tasks)) if label and tasks else contextlib.nullcontext()


@contextlib.contextmanager
def _translate_dask_errors(
    label: str, client: Client, futures: Callable[[], Sequence[Future]]
) -> Iterator[StallMonitor]:
    """Turn Dask's errors about workers and schedulers into errors that say what to do; never wait forever."""
    began = time.time()
    try:
        with StallMonitor(client, futures) as monitor:
            yield monitor
    except KilledWorker:
        raise workers_lost_error(client, label, began) from None
    except ModuleNotFoundError as error:
        if error.name == "daskmeans":  # what a task of ours needs first
            check_versions(client)
        raise
    except FileNotFoundError as error:
        _check_sight(error, client)
        raise
    except distributed.client.FutureCancelledError as error:
        if error.reason.startswith("scheduler") or client.status != "running":
            raise scheduler_lost_error() from error
        raise workers_lost_error(client, label, began) from None  # and with them the data sent to them


def _check_sight(error: FileNotFoundError, client: Client) -> None:
    """Raise NotFoundError if the file that `error` names is there for this process, but not for a worker."""
    path = error.filename
    if not isinstance(path, str) or not os.path.exists(path):
        return
    found = run_on_workers(functools.partial(os.path.exists, path), client)
    if blind := [worker for worker, sees in found.items() if not sees]:
        raise NotFoundError(
            f"no such file on {len(blind)} of {len(found)} workers, such as {blind[0]}",
            where=path,
            expected="a file that all workers can read",
            remedy="put the files on storage that all workers share, under one path",
        ) from None


def compute_locally(
    tasks: Sequence[Delayed], line: progress.ProgressLine | None = None, pace: progress.ProgressEstimate | None = None
) -> list[Any]:
    """Return the results of `tasks`, computed by threads of this process, with or without a client."""
    keys = {task.key for task in tasks}

    def done(key: Any, *_: Any) -> None:
        if line is not None and key in keys:
            line.advance(pace.done(key) if pace else "")

    # Tasks use all cores; BLAS threads would oversubscribe them. If a task fails, the pool waits for those that run, so
    # nothing is written after the error is raised.
    with Callback(posttask=done), blas.limit_blas_threads(), ThreadPoolExecutor(n_threads()) as pool:
        return list(dask.compute(*tasks, scheduler="threads", pool=pool))


def broadcast(value: Any, client: Client | None = None) -> Any:
    """Send `value` to every worker once, and return a stand-in to pass to tasks."""
    client = client_in_use(client)
    return value if client is None else _scatter(value, client, broadcast=True)


def scatter_large(values: Sequence[Any], client: Client | None) -> Sequence[Any]:
    """Send each of `values` to a worker if they are large together, and return stand-ins to pass to tasks."""
    if client is None or sum(map(_pickled_bytes, values)) <= MAX_ARGUMENT_BYTES:
        return values
    return [_scatter(value, client, broadcast=False) for value in values]


def broadcast_large(arguments: tuple[Any, ...], count: int, client: Client) -> tuple[Any, ...]:
    """Return `arguments` for `count` tasks: large ones are broadcast, small ones arrive sooner within the tasks."""
    return tuple(
        broadcast(value, client) if _pickled_bytes(value) * count > MAX_ARGUMENT_BYTES else value for value in arguments
    )


def _pickled_bytes(value: Any) -> int:
    buffers: list[Any] = []
    head = pickle.dumps(value, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)


def _scatter(value: Any, client: Client, *, broadcast: bool) -> Future:
    """Scatter as :func:`_scatter_with_retries` does, but raise ClusterError if the scheduler is lost."""
    with translate_client_errors(client):
        return _scatter_with_retries(value, client, broadcast)


def _scatter_with_retries(value: Any, client: Client, broadcast: bool) -> Future:
    """Send `value` to one worker or to all; if one dies meanwhile, to another or to the remaining ones."""
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
