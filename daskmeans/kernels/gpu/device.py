"""Devices for dense kernels: a CUDA device through cupy, or the CPU through numpy.

:mod:`daskmeans.kernels.gpu.dense` is written once, for arrays of either kind; the differences are here. On the CPU it
is no faster than the CPU kernels. It is there so that tests can run it without a device.
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

# Remedy where a device has too little memory.
REMEDY = (
    "make partitions and buckets smaller (DASK_DASKMEANS__PARTITION_BYTES=16MiB, DASK_DASKMEANS__BUCKET_BYTES=8MiB), "
    "or compute on the cores (DASK_DASKMEANS__DEVICE=cpu on the workers)"
)


@contextlib.contextmanager
def explain_full_memory() -> Iterator[None]:
    """Turn a MemoryError of cupy or rmm, raised when the memory of a device is full, into a RunError."""
    try:
        yield
    except MemoryError as error:
        raise RunError(
            f"the memory of the device is full ({type(error).__name__}: {error})",
            expected="memory that nobody else has taken, for the rows of a partition and what they are compared with",
            remedy=REMEDY,
        ) from error


class Copy:
    """Rows that stay on a device from one step to the next, for as long as their block keeps this object."""

    def __init__(self, device: Device, tiles: Any, nbytes: int) -> None:
        self.tiles, self.nbytes = tiles, nbytes
        device.keep(self)


class Device:
    """The CPU of this process.

    Attributes
    ----------
    xp : module
        numpy or cupy.
    tuning : Tuning
        Sizes of the pieces that are compared at once.
    """

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        self.xp: Any = np
        self.tuning = tuning
        self._lock = threading.RLock()
        self._copies: weakref.WeakSet[Copy] = weakref.WeakSet()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Context around what a thread computes: one thread at a time, so that memory suffices for one.

        Raises
        ------
        RunError
            The memory of the device is full nevertheless.
        """
        with self._lock, explain_full_memory():
            yield

    def product(self, left: Any, right: Any) -> Any:
        """Return the products of the rows of two float16 matrices, summed in float32; shape (len(left), len(right))."""
        return left.astype(np.float32) @ right.astype(np.float32).T

    def each(self, body: Callable[..., None], n: int, *arrays: Any) -> None:
        """Call a loop of :mod:`daskmeans.kernels.gpu.scores` for each of `n` columns."""
        compiled = _compile(body)
        for i in range(n):
            compiled(i, *arrays)

    def tiles(self, X: np.ndarray, size: int) -> Iterator[tuple[slice, Any]]:
        """Yield the rows of `X` on the device, `size` at a time; each tile is valid until the next is requested."""
        for start in range(0, len(X), size):
            rows = slice(start, min(start + size, len(X)))
            yield rows, X[rows]

    def holds(self, X: Any) -> bool:
        """Whether rows already lie in the device's own memory; a CPU has none of its own."""
        return False

    def keep(self, copy: Copy) -> None:
        """Count the bytes of `copy` as long as it lives."""
        self._copies.add(copy)

    def copied(self) -> int:
        """Return the bytes of the kept copies. Free memory would mislead: a pool of rmm takes all it may at once."""
        return sum(copy.nbytes for copy in self._copies)

    def to_host(self, array: Any) -> np.ndarray:
        """Return `array` as a numpy array."""
        return array  # type: ignore[no-any-return]

    def memory(self) -> int:
        """Bytes of memory, used or not."""
        return int(psutil.virtual_memory().total)

    def name(self) -> str:
        """Return a name that no other device of this machine has."""
        return "processor"


class Cuda(Device):
    """The current CUDA device of this process."""

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        import cupy

        super().__init__(tuning)
        self.xp = cupy

    def product(self, left: Any, right: Any) -> Any:
        """Like :meth:`Device.product`, on tensor cores: cupy's own product would round float16 sums to float16."""
        from cupy.cuda import get_cublas_handle, runtime
        from cupy_backends.cuda.libs import cublas

        out = self.xp.empty((len(left), len(right)), np.float32)
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        width = left.shape[1]
        handle = get_cublas_handle()
        # cuBLAS is column-major, so it sees the matrices transposed: out.T = right @ left.T.
        cublas.gemmEx(
            handle, cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, len(right), len(left), width,
            one.ctypes.data, right.data.ptr, runtime.CUDA_R_16F, width, left.data.ptr, runtime.CUDA_R_16F, width,
            zero.ctypes.data, out.data.ptr, runtime.CUDA_R_32F, len(right),
            cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
        return out

    def each(self, body: Callable[..., None], n: int, *arrays: Any) -> None:
        """Run one thread for each column."""
        from daskmeans.kernels.gpu import cuda

        cuda.each(body, n, *arrays)

    def tiles(self, X: np.ndarray, size: int) -> Iterator[tuple[slice, Any]]:
        """Like :meth:`Device.tiles`; the next rows are sent through pinned memory while these are in use.

        Rows that are already on the device are not sent.
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
            event.record(computing)  # earlier work on this memory is done by then

        def send(t: int) -> tuple[slice, Any]:
            rows, b = slice(t * size, min((t + 1) * size, len(X))), t % 2
            n = rows.stop - rows.start
            arrived[b].synchronize()  # the last transfer from this pinned memory is done
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
        """Whether rows are already on the device."""
        return isinstance(X, self.xp.ndarray)

    def to_host(self, array: Any) -> np.ndarray:
        """Wait for `array` and return it as a numpy array."""
        return self.xp.asnumpy(array)  # type: ignore[no-any-return]

    def memory(self) -> int:
        """Bytes of memory, used or not."""
        return int(self.xp.cuda.runtime.memGetInfo()[1])

    def name(self) -> str:
        """Return its PCI bus ID; for MIG instances, which share one, with the ID of the instance."""
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        place = str(self.xp.cuda.Device().pci_bus_id)
        return f"{place} {first}" if first.startswith("MIG") else place
