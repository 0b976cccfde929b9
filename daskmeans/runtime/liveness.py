"""Checks that workers are alive: a step that waits for results or data must not wait forever."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Future

from daskmeans import config
from daskmeans.errors import ClusterError, DaskmeansError

# Checks within the timeout of a wait, and the maximum seconds between two of them.
CHECKS_PER_TIMEOUT, MAX_CHECK_SECONDS = 10, 5.0


class StallMonitor:
    """Ends a wait in the ``with`` block with a ClusterError, once no worker has run tasks for too long.

    No worker runs tasks if none is left, or if all are paused because their memory is full.

    Parameters
    ----------
    client : distributed.Client
    futures : callable
        Returns the futures that are waited for; they are cancelled.
    """

    def __init__(self, client: Client, futures: Callable[[], Sequence[Future]]) -> None:
        self.found = ""
        self._client, self._futures = client, futures
        self._limit = float(config.get("workers-timeout"))
        self._ended = threading.Event()

    def __enter__(self) -> StallMonitor:
        # A daemon: it may be waiting for an answer when the block ends, and is not joined.
        threading.Thread(target=self._poll, name="daskmeans-watch", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self.found:
            raise stall_error(self.found) from None

    def _poll(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(min(self._limit / CHECKS_PER_TIMEOUT, MAX_CHECK_SECONDS)):
            with contextlib.suppress(Exception):  # if the scheduler is lost, the futures report it
                states = [worker["status"] for worker in fetch_worker_info(self._client)]
                if "running" in states:
                    last = time.monotonic()
                elif time.monotonic() > last + self._limit and not self._ended.is_set():
                    self.found = _describe_stall(states)
                    self._client.cancel(list(self._futures()))
                    return


class WorkerLossMonitor:
    """Ends the broadcast of a value in the ``with`` block if a worker is lost.

    Distributed tries to replicate a value to a lost worker forever, until nothing needs the value any more.

    Parameters
    ----------
    client : distributed.Client
    name : str
        The key of the value.

    Attributes
    ----------
    worker_lost : bool
        Whether a worker was lost; then the value may be lost too, and must be sent again.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.worker_lost = False
        self._client, self._name = client, name
        self._ended = threading.Event()

    def __enter__(self) -> WorkerLossMonitor:
        self._workers_before = self._current_workers()
        threading.Thread(target=self._poll, name="daskmeans-departures", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()

    def _current_workers(self) -> set[str]:
        return set(self._client.nthreads())

    def _poll(self) -> None:
        while not self._ended.wait(1.0):
            with contextlib.suppress(Exception):  # if the scheduler is lost, the broadcast reports it
                if self._workers_before - self._current_workers():
                    self.worker_lost = True
                    self._client.cancel([Future(self._name, self._client)])


def fetch_worker_info(client: Client) -> list[dict[str, Any]]:
    """Return what the scheduler knows about each worker."""
    return list(fetch_workers(client).values())


def fetch_workers(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows about each worker, by address.

    This asks the scheduler directly. :meth:`Client.scheduler_info` may return no workers, if the client's periodic
    request comes between its request and the answer.
    """
    scheduler: Any = client.scheduler  # None once the client is closed
    return dict(client.sync(scheduler.identity, n_workers=-1)["workers"])


def stall_error(found: str) -> ClusterError:
    """Return the error of a wait that timed out; `found` says what is wrong with the workers."""
    return ClusterError(
        f"{found} (for {config.get('workers-timeout')} s now)",
        expected="workers that run tasks",
        remedy="start workers, or give them a higher --memory-limit, and run the command again",
    )


@contextlib.contextmanager
def translate_client_errors(client: Client) -> Iterator[None]:
    """Turn the various errors of a `client` that has given up its scheduler into a ClusterError.

    Raises
    ------
    ClusterError
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DaskmeansError) or client.status not in ("closing", "closed"):
            raise
        raise scheduler_lost_error() from error


def scheduler_lost_error() -> ClusterError:
    """Return the error for a scheduler that can no longer be reached."""
    return ClusterError("the connection to the scheduler was lost", remedy="run the command again")


def workers_lost_error(client: Client, label: str, began: float) -> ClusterError:
    """Return the error for workers lost since `began`, a time of the clock, while they ran tasks called `label`.

    Nannies report to the scheduler when they kill a worker that took too much memory. Nobody reports workers that the
    system kills, for that or another reason.
    """
    sizes = [event["rss"] for time, event in client.get_events("worker-restart-memory") if time >= began]
    why = f"ran out of memory (at {format_bytes(max(sizes))})" if sizes else "were lost"
    more = "give workers a higher --memory-limit, or fewer --threads-per-worker"
    return ClusterError(
        f"workers {why} while running a task of {label or 'this step'!r}",
        expected="workers with enough memory for a task",
        remedy=more if sizes else f"run the command again, or {more} if the system killed them because memory ran out",
    )


def _describe_stall(states: Sequence[str]) -> str:
    """Describe workers in `states`, none of which is running.

    Examples
    --------
    >>> _describe_stall([])
    'no worker is left'
    >>> _describe_stall(["paused", "paused"])
    'no worker runs tasks: 2 are paused, as they are when their memory is full'
    """
    paused = f"no worker runs tasks: {len(states)} are paused, as they are when their memory is full"
    return paused if states else "no worker is left"
