"""The limit that keeps BLAS to one thread while our own threads compute."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import ThreadpoolController


def limit_blas_threads() -> contextlib.AbstractContextManager[None]:
    """Limit BLAS to one thread in the ``with`` block; several threads may be in such blocks at the same time."""
    return _blas_limit


class _BlasLimit(contextlib.AbstractContextManager[None]):
    """A limit for the whole process: the first thread to enter sets it, the last to leave removes it.

    In threadpoolctl, only the thread that has set a limit can remove it, and a BLAS on OpenMP stores it for that thread
    only. So one dedicated thread does both.
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
        self._limits.close()  # in case Ctrl-C came before the count went up
        self._limits.enter_context(_find_blas().limit(limits=1))


_blas_limit = _BlasLimit()


def _reset_after_fork() -> None:
    """Reset the limit in a forked child, which has none of the threads."""
    global _blas_limit
    _blas_limit = _BlasLimit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@functools.cache
def _find_blas() -> ThreadpoolController:
    """Find the BLAS libraries, once, as that takes long."""
    return ThreadpoolController().select(user_api="blas")
