"""One way to compile a kernel: without the GIL, cached on disk where that is possible."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

# Kernels have those that they call compiled into them, from any of these files and those of folders.
_SOURCES = tuple((file.name, (facts := file.stat()).st_mtime_ns, facts.st_size)
                 for file in sorted(Path(__file__).parent.rglob("*.py")))  # fmt: skip


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` with numba.

    No fast-math: the order of operations is part of a kernel's contract. Where no cache directory can be written, the
    kernel is compiled anew in each process.
    """
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "no locator available"
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
    if hasattr(compiled, "_cache"):  # not where NUMBA_DISABLE_JIT is set
        # What numba has stored counts as long as the file of the kernel is what it was, which is not enough.
        file = compiled._cache._cache_file
        file._source_stamp = file._source_stamp, _SOURCES
    return compiled  # type: ignore[no-any-return]


def warm_seconds(function: Callable[[Any], object], few: Any, much: Any) -> float:
    """Seconds that ``function(much)`` takes once ``function(few)`` has compiled, or loaded, all kernels it calls."""
    function(few)
    start = time.perf_counter()
    function(much)
    return time.perf_counter() - start


def as_readonly(array: np.ndarray) -> np.ndarray:
    """`array` as a view that cannot be written.

    numba compiles a kernel once more for arrays that may be written, and what comes from another process or a mapped
    file may not. So what kernels only read is handed to them in this form.
    """
    view = array.view()
    view.flags.writeable = False
    return view
