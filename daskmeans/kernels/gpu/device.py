"""Where dense kernels run: on a CUDA device by way of cupy, or on this processor by way of numpy.

:mod:`daskmeans.kernels.gpu.dense` is written once, for arrays of either kind; what the two do not have in common is
here. On the processor it is no faster than the kernels beside it: there it is what tests can run without a device.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil

from daskmeans.errors import RunError
from daskmeans.kernels.jit import kernel
from daskmeans.tuning import DEFAULT, Tuning

_compile = functools.cache(kernel)

# Where a device has too little memory.
REMEDY = (
    "make partitions and buckets smaller (DASK_DASKMEANS__PARTITION_BYTES=16MiB, DASK_DASKMEANS__BUCKET_BYTES=8MiB), "
    "or compute on the cores (DASK_DASKMEANS__DEVICE=cpu on the workers)"
)


@contextlib.contextmanager
def explain_full_memory() -> Iterator[None]:
    """Turn what cupy and rmm say of a device whose memory is full, by a MemoryError, into an error of ours."""
    try:
        yield
    except MemoryError as error:
        raise RunError(
            f"the memory of the device is full ({type(error).__name__}: {error})",
            expected="memory that nobody else has taken, for the rows of a partition and what they are compared with",
            remedy=REMEDY,
        ) from error


class Copy:
    """Rows that stay on a device from one step to the next: as long as this lives, which whoever has the rows holds."""

    def __init__(self, device: Device, tiles: Any, nbytes: int) -> None:
        self.tiles, self.nbytes = tiles, nbytes
        device.keep(self)


class Device:
    """This processor.

    Attributes
    ----------
    xp : module
        numpy or cupy.
    tuning : Tuning
        How much is compared at once.
    """

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        self.xp: Any = np
        self.tuning = tuning
        self._lock = threading.RLock()
        self._copies: weakref.WeakSet[Copy] = weakref.WeakSet()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around what a thread computes: one at a time, so that memory is needed for one.

        Raises
        ------
        RunError
            There was not enough of it after all.
        """
        with self._lock, explain_full_memory():
            yield

    def product(self, left: Any, right: Any) -> Any:
        """Products of the rows of two float16 matrices, summed in float32; shape (len(left), len(right))."""
        return left.astype(np.float32) @ right.astype(np.float32).T

    def each(self, body: Callable[..., None], n: int, *arrays: Any) -> None:
        """Call a loop of :mod:`daskmeans.kernels.gpu.scores` for each of `n` columns."""
        compiled = _compile(body)
        for i in range(n):
            compiled(i, *arrays)

    def tiles(self, X: np.ndarray, size: int) -> Iterator[tuple[slice, Any]]:
        """The rows of `X` on the device, `size` at a time; of use until the next are asked for."""
        for start in range(0, len(X), size):
            rows = slice(start, min(start + size, len(X)))
            yield rows, X[rows]

    def holds(self, X: Any) -> bool:
        """Whether rows are on the device already, in memory that nothing else is sent to: here it is everybody's."""
        return False

    def keep(self, copy: Copy) -> None:
        """Count what `copy` takes, as long as it lives."""
        self._copies.add(copy)

    def copied(self) -> int:
        """Bytes of the copies that stay. What is free is no measure: a pool of rmm takes all it may at once."""
        return sum(copy.nbytes for copy in self._copies)

    def to_host(self, array: Any) -> np.ndarray:
        """`array` as one of numpy."""
        return array  # type: ignore[no-any-return]

    def memory(self) -> int:
        """Bytes of memory, used or not."""
        return int(psutil.virtual_memory().total)

    def name(self) -> str:
        """What no other device of this machine is called."""
        return "processor"


class Cuda(Device):
    """The current CUDA device of this process."""

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        import cupy

        super().__init__(tuning)
        self.xp = cupy

    def product(self, left: Any, right: Any) -> Any:
        """As of the processor, on tensor cores: cupy's own product would round sums of float16 to float16."""
        from cupy.cuda import get_cublas_handle, runtime
        from cupy_backends.cuda.libs import cublas

        out = self.xp.empty((len(left), len(right)), np.float32)
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        width = left.shape[1]
        handle = get_cublas_handle()
        # cuBLAS counts along columns, so to it these are transposed: out.T = right @ left.T.
        cublas.gemmEx(
            handle, cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, len(right), len(left), width,
            one.ctypes.data, right.data.ptr, runtime.CUDA_R_16F, width, left.data.ptr, runtime.CUDA_R_16F, width,
            zero.ctypes.data, out.data.ptr, runtime.CUDA_R_32F, len(right),
            cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
        return out

    def each(self, body: Callable[..., None], n: int, *arrays: Any) -> None:
        """A thread for each column."""
        from daskmeans.kernels.gpu import cuda

        cuda.each(body, n, *arrays)

    def tiles(self, X: np.ndarray, size: int) -> Iterator[tuple[slice, Any]]:
        """As of the processor; the next rows are on their way through pinned memory while these are in use.

        Rows that are on the device already are not sent.
        """
        import cupyx
        from cupy.cuda import Event, Stream, get_current_stream

        if self.holds(X):
            yield from super().tiles(X, size)
            return
        if not len(X):
            return
        size = min(size, len(X))
        copying, computing = Stream(non_blocking=True), get_current_stream()
        pinned = [cupyx.empty_pinned((size, X.shape[1]), np.float32) for _ in range(2)]
        there = [self.xp.empty((size, X.shape[1]), np.float32) for _ in range(2)]
        arrived, used = [Event() for _ in range(2)], [Event() for _ in range(2)]
        for event in used:
            event.record(computing)  # what had this memory before is done with it by then

        def send(t: int) -> tuple[slice, Any]:
            rows, b = slice(t * size, min((t + 1) * size, len(X))), t % 2
            n = rows.stop - rows.start
            arrived[b].synchronize()  # what was sent from this pinned memory before has left it
            np.copyto(pinned[b][:n], X[rows])
            copying.wait_event(used[b])
            there[b][:n].set(pinned[b][:n], stream=copying)
            arrived[b].record(copying)
            return rows, there[b][:n]

        count = -(-len(X) // size)
        ahead = send(0)
        for t in range(count):
            now = ahead
            if t + 1 < count:
                ahead = send(t + 1)
            computing.wait_event(arrived[t % 2])
            yield now
            used[t % 2].record(computing)
        copying.synchronize()

    def holds(self, X: Any) -> bool:
        """Whether rows are on the device already."""
        return isinstance(X, self.xp.ndarray)

    def to_host(self, array: Any) -> np.ndarray:
        """`array` as one of numpy, once it is computed."""
        return self.xp.asnumpy(array)  # type: ignore[no-any-return]

    def memory(self) -> int:
        """Bytes of memory, used or not."""
        return int(self.xp.cuda.runtime.memGetInfo()[1])

    def name(self) -> str:
        """Its place on the bus; of parts of one GPU, which have one place, also which part it is."""
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        place = str(self.xp.cuda.Device().pci_bus_id)
        return f"{place} {first}" if first.startswith("MIG") else place
