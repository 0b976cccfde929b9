"""Ctrl-C: who hears it, and what it does while a step writes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

INTERRUPTED, STATUS = "interrupted; the same command goes on, or begins again where it cannot", 130
# Seconds in which a step removes what it has begun to write, and workers end; what stays is unfinished, as its manifest
# says.
GRACE = 5.0


def end_process(*_: object) -> NoReturn:
    """End this process, as a handler of a signal may, and those that it has started."""
    _end_children()
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # bars hide it
    with contextlib.suppress(OSError):
        os.write(2, f"{cursor}\nerror {INTERRUPTED}\n".encode())
    os._exit(STATUS)


def _end_children() -> None:
    """They would notice by themselves, but one that is just starting says so with a traceback."""
    if "psutil" not in sys.modules:  # dask's: before it is imported there are no children
        return
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


@contextlib.contextmanager
def interrupt_once(grace: float = GRACE) -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt in the ``with`` block, and those after it do nothing.

    If the block has not ended `grace` seconds later, because the exception was swallowed or what follows from it takes
    long, the process ends; that of the console script also if anything after the block takes long. Where Ctrl-C is
    ignored, as shells do for what runs in the background, it stays so.
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
