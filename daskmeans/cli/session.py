"""The session of a command: its cluster, its display, and errors that end it with a message."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

from distributed import Client
from distributed.comm import CommClosedError
from rich.console import Console

from daskmeans.cli.displays import display_on
from daskmeans.cli.interrupts import interrupt_once
from daskmeans.cli.options import Output
from daskmeans.cli.output import escape_markup
from daskmeans.errors import (
    ClusterSizeWarning,
    ConvergenceWarning,
    DaskmeansError,
    PrecisionWarning,
    ScalingWarning,
)
from daskmeans.planner.system import uncompiled_work
from daskmeans.runtime import progress
from daskmeans.runtime.client import logger, n_threads, start_on_demand
from daskmeans.runtime.cluster import ClusterSettings, check_cluster, describe_dashboard
from daskmeans.runtime.cluster import open_cluster as start_cluster
from daskmeans.runtime.liveness import scheduler_lost_error, translate_client_errors
from daskmeans.storage import objectstore


def report_error(error: Exception) -> int | None:
    """Print what a user can mend, or wait out; the exit status, or None for what is a fault of ours.

    The exit status is 2 for wrong usage, 1 for failed work.
    """
    if isinstance(error, CommClosedError):
        error = scheduler_lost_error()
    if isinstance(error, DaskmeansError):
        print_error(error)
        return error.exit_status
    if objectstore.is_storage_error(error):
        # Such as a full disk, a missing permission, a lost connection, or storage options that no client accepts.
        print_error(error if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        return 1
    return None


def print_error(error: object) -> None:
    """Print an error on stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error[/] {escape_markup(error)}")


@contextlib.contextmanager
def open_session(cluster: ClusterSettings, output: Output) -> Iterator[None]:
    """Open a session: its cluster and its display start when a step first asks for a client.

    Progress and logs go to stderr, nothing to stdout.
    """
    console = Console(stderr=True, quiet=output.quiet)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it complains about what Ctrl-C cancels
    for name in ("client", "batched"):  # they log tracebacks when the scheduler is lost
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    logger.setLevel(logging.DEBUG if output.verbose else logging.WARNING if output.quiet else logging.INFO)
    check_cluster(cluster)
    with contextlib.ExitStack() as opened, _log_warnings(), start_on_demand(partial(_start, cluster, console, opened)):
        yield


def _start(cluster: ClusterSettings, console: Console, opened: contextlib.ExitStack) -> Client:
    """Start the cluster and the display of a session, which end with `opened`."""
    client = opened.enter_context(start_cluster(cluster))
    console.print(f"[dim]{n_threads(client)} threads · dashboard {describe_dashboard(client)}")
    ours = not (cluster.scheduler or cluster.scheduler_file)
    opened.enter_context(interrupt_once())
    display = display_on(console, compiling=uncompiled_work() if ours else frozenset())
    opened.enter_context(display)
    opened.enter_context(progress.show_on(display))
    opened.enter_context(translate_client_errors(client))
    return client


@contextlib.contextmanager
def _log_warnings() -> Iterator[None]:
    """Show warnings of this package without the line of code that they come from."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, ConvergenceWarning | ClusterSizeWarning | PrecisionWarning | ScalingWarning):
                logger.warning("%s", message)
            else:
                others(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
