"""Handling of Ctrl-C, also while a step writes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

INTERRUPTED, STATUS = "interrupted; run the same command again to resume, or to start over if it cannot resume", 130
# Seconds for a step to remove partial output, and for workers to end. Whatever remains is marked unfinished in its
# manifest.
GRACE = 5.0


def end_process(*_: object) -> NoReturn:
    """End this process and its children; safe to call in a signal handler."""
    _end_children()
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # progress bars hide it
    with contextlib.suppress(OSError):
        os.write(2, f"{cursor}\nerror {INTERRUPTED}\n".encode())
    os._exit(STATUS)


def _end_children() -> None:
    """Kill the child processes. They would end by themselves, but one that is just starting would print a traceback."""
    if "psutil" not in sys.modules:  # Dask imports it, so without it there are no children yet
        return
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


@contextlib.contextmanager
def interrupt_once(grace: float = GRACE) -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt in the ``with`` block, and ignore any later one.

    If the block has not ended `grace` seconds later, because the exception was swallowed or cleaning up takes long, the
    process ends. The console script also ends if anything after the block takes that long. Where Ctrl-C is ignored, as
    in background jobs of a shell, it stays ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    end = threading.Timer(grace, end_process)
    end.daemon = True

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if before is not end_process:
            end.cancel()
