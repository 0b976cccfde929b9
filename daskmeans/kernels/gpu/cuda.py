# mypy: disable-error-code="unreachable"
# (numba says of cuda.grid that it never returns)
"""The loops of :mod:`daskmeans.kernels.gpu.scores`, compiled for a CUDA device: a thread for each column.

Imported only where there is such a device, and by tests in numba's simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import cuda

from daskmeans.kernels.gpu import scores

THREADS = 128

# The last rows of many are few, so small grids are normal.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

_pick_largest, _count_pairs, _list_pairs = (
    cuda.jit(device=True)(body) for body in (scores.pick_largest, scores.count_pairs, scores.list_pairs)
)


@cuda.jit
def pick_largest(scores, halves, reach, labels, tops, alone):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < labels.shape[0]:
        _pick_largest(i, scores, halves, reach, labels, tops, alone)


@cuda.jit
def count_pairs(scores, least, ends, counts):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < counts.shape[0]:
        _count_pairs(i, scores, least, ends, counts)


@cuda.jit
def list_pairs(scores, least, ends, starts, columns, rows):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < ends.shape[0]:
        _list_pairs(i, scores, least, ends, starts, columns, rows)


KERNELS: dict[Callable[..., None], Any] = {
    scores.pick_largest: pick_largest,
    scores.count_pairs: count_pairs,
    scores.list_pairs: list_pairs,
}


def each(body: Callable[..., None], n: int, *arrays: Any) -> None:
    """Queue a call of `body` for each column; work that is queued later waits for it."""
    KERNELS[body][-(-n // THREADS), THREADS](*arrays)
