"""Compilation of kernels: without the GIL, cached on disk where possible."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

# Kernels include the compiled code of those that they call, from any file of this folder and its subfolders.
_SOURCES = tuple((file.name, (facts := file.stat()).st_mtime_ns, facts.st_size)
                 for file in sorted(Path(__file__).parent.rglob("*.py")))  # fmt: skip


# All kernels of imported modules, by "module.function".
_KERNELS: dict[str, Callable[..., Any]] = {}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` with numba.

    No fast-math: the order of operations is part of a kernel's contract. Where no cache directory can be written, the
    kernel is compiled anew in each process.
    """
    compiled = _KERNELS[f"{function.__module__.rpartition('.')[2]}.{function.__name__}"] = _compile(function)
    return compiled


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "no locator available"
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
    if hasattr(compiled, "_cache"):  # not where NUMBA_DISABLE_JIT is set
        # numba's cache checks only the kernel's own file, which is not enough.
        file = compiled._cache._cache_file
        file._source_stamp = file._source_stamp, _SOURCES
    return compiled  # type: ignore[no-any-return]


def is_compiled(name: str) -> bool:
    """Return whether an earlier process has compiled the kernel `name` ("module.function") and the cache holds it.

    Its module must have been imported.
    """
    cache: Any = getattr(_KERNELS[name], "_cache", None)
    place = getattr(cache, "cache_path", None)
    return place is not None and Path(place, cache._cache_file._index_name).exists()


def warm_seconds(function: Callable[[Any], object], few: Any, much: Any) -> float:
    """Return the seconds that ``function(much)`` takes after ``function(few)`` has compiled or loaded its kernels."""
    function(few)
    start = time.perf_counter()
    function(much)
    return time.perf_counter() - start


def as_readonly(array: np.ndarray) -> np.ndarray:
    """Return a read-only view of `array`.

    Arrays from another process or a mapped file are read-only, and numba would compile a kernel once more for writable
    ones. So arrays that kernels only read are always passed in this form.
    """
    view = array.view()
    view.flags.writeable = False
    return view
