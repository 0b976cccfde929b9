"""Storage for the arrays of blocks: in memory up to a limit, beyond it in an unnamed file on a local disk."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary, finalize

import numpy as np
from dask.utils import format_bytes

from daskmeans.errors import DiskError
from daskmeans.runtime import resources
from daskmeans.storage import diskspace

PAGE = mmap.ALLOCATIONGRANULARITY
# Zeros that are written at once where a file has to be filled with them.
ZEROS = bytes(1 << 20)


class ArrayStore(Protocol):
    """Storage for the arrays of one block."""

    on_disk: bool

    def keep(self, array: np.ndarray) -> Any:
        """Store `array`; return a handle, which opens as a read-only array."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Store an array of zeros; return a handle, which opens as a writable array."""

    def open(self, kept: dict[str, Any]) -> contextlib.AbstractContextManager[dict[str, np.ndarray]]:
        """Open the arrays of the handles `kept` for a ``with`` block."""


def choose_store(fit: str, nbytes: int, limit: int) -> ArrayStore:
    """Return storage for `nbytes` of arrays: in memory if this process then keeps at most `limit` bytes there.

    Otherwise it is on disk. All blocks of one fit that lie on disk share one file.
    """
    directory = resources.local_directory()
    with _lock:
        counter = _counters.setdefault(directory, _MemoryCounter())
        if counter.try_take(nbytes, limit):
            return _MemoryStore(counter, nbytes)
        file = _spill_files.get((fit, directory))
        if file is None:
            file = _spill_files[fit, directory] = SpillFile(directory)
        return _DiskStore(file)


class SpillFile:
    """An unnamed file that allocates extents of whole pages, with disk space reserved before they are used.

    The file never has a name, so the system frees its space however this process ends.

    Parameters
    ----------
    directory : str
    """

    def __init__(self, directory: str) -> None:
        file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        finalize(self, file.close)
        self.directory, self.fileno = directory, file.fileno()
        self.size = 0
        self._free: list[tuple[int, int]] = []  # offset and size, by offset; no two are adjacent
        # Finalizers append extents here at any moment and in any thread, so without the lock.
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def extent(self, nbytes: int) -> Extent:
        """Allocate at least `nbytes`, in whole pages; pages that were never used hold zeros."""
        size = math.ceil(nbytes / PAGE) * PAGE
        with self._lock:
            self._reclaim()
            for i, (offset, length) in enumerate(self._free):
                if length >= size:
                    self._free[i : i + 1] = [(offset + size, length - size)] if length > size else []
                    return Extent(self, offset, size, used=True)
            offset = self.size
            self._reserve(offset, size)
            self.size += size
            return Extent(self, offset, size, used=False)

    def _reclaim(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
        merged: list[tuple[int, int]] = []
        for offset, size in sorted(self._free):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = merged[-1][0], merged[-1][1] + size
            else:
                merged.append((offset, size))
        self._free = merged

    def _reserve(self, offset: int, size: int) -> None:
        """Reserve disk space for `size` bytes: writing to a mapped page without it would kill the process."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fileno, offset, size)
            else:
                write_zeros(self.fileno, offset, size)
        except OSError as error:
            if error.errno not in diskspace.FULL_ERRNOS:
                raise
            os.ftruncate(self.fileno, offset)
            raise DiskError(
                f"no disk space for {format_bytes(size)} more of spilled vectors ({error.strerror})",
                where=self.directory,
                expected=f"space beside the {format_bytes(self.size)} that lie there",
                remedy="free some, or choose a directory on a larger disk: --local-directory, or the setting "
                "temporary-directory of dask",
            ) from None


class Extent:
    """Pages of a spill file; they are returned when nothing refers to this object any more."""

    def __init__(self, file: SpillFile, offset: int, size: int, used: bool) -> None:
        self.file, self.offset, self.size, self.used = file, offset, size, used
        finalize(self, file._returned.append, (offset, size))

    def map(self, writable: bool) -> mmap.mmap:
        """Map the pages into memory, until nothing refers to the result any more."""
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return mmap.mmap(self.file.fileno, self.size, offset=self.offset, access=access)


def write_zeros(fileno: int, offset: int, size: int) -> None:
    """Fill `size` bytes of an open file with zeros."""
    for start in range(offset, offset + size, len(ZEROS)):
        _write_at(fileno, memoryview(ZEROS)[: offset + size - start], start)


def _write_at(fileno: int, data: Any, offset: int) -> None:
    while len(data):  # a call may write less than it was given
        written = os.pwrite(fileno, data, offset)
        data, offset = data[written:], offset + written


class _MemoryCounter:
    """Counts the bytes of blocks that one process keeps in memory."""

    def __init__(self) -> None:
        self._taken = 0
        self.returned: deque[int] = deque()  # as in SpillFile

    def try_take(self, nbytes: int, limit: int) -> bool:
        while self.returned:
            self._taken -= self.returned.popleft()
        if self._taken + nbytes > limit:
            return False
        self._taken += nbytes
        return True


# A spill file lives as long as blocks in it do. Workers that share a process have their own directories and counters.
_spill_files: WeakValueDictionary[tuple[str, str], SpillFile] = WeakValueDictionary()
_counters: dict[str, _MemoryCounter] = {}
_lock = threading.Lock()


class _MemoryStore:
    """Arrays in memory."""

    on_disk = False

    def __init__(self, counter: _MemoryCounter, taken: int) -> None:
        finalize(self, counter.returned.append, taken)

    def keep(self, array: np.ndarray) -> np.ndarray:
        kept = array.view()
        kept.flags.writeable = False
        return kept

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def open(self, kept: dict[str, np.ndarray]) -> contextlib.AbstractContextManager[dict[str, np.ndarray]]:
        return contextlib.nullcontext(dict(kept))


@dataclass(frozen=True)
class _StoredArray:
    """An array in a spill file; one without elements has no extent."""

    shape: tuple[int, ...]
    dtype: np.dtype
    writable: bool
    extent: Extent | None

    def map(self) -> tuple[np.ndarray, mmap.mmap | None]:
        if self.extent is None:
            return np.empty(self.shape, self.dtype), None
        pages = self.extent.map(self.writable)
        return np.frombuffer(pages, self.dtype, math.prod(self.shape)).reshape(self.shape), pages


class _DiskStore:
    """Arrays in the spill file of a fit, mapped while they are open."""

    on_disk = True

    def __init__(self, file: SpillFile) -> None:
        self._file = file

    def keep(self, array: np.ndarray) -> _StoredArray:
        stored = self._allocate(array.shape, array.dtype, writable=False)
        if stored.extent is not None:
            # Written, not mapped: mapped pages would count as memory of this process on their way to disk.
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            _write_at(self._file.fileno, data, stored.extent.offset)
        return stored

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> _StoredArray:
        stored = self._allocate(shape, np.dtype(dtype), writable=True)
        if stored.extent is not None and stored.extent.used:
            write_zeros(self._file.fileno, stored.extent.offset, stored.extent.size)
        return stored

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype, writable: bool) -> _StoredArray:
        nbytes = math.prod(shape) * dtype.itemsize
        return _StoredArray(shape, dtype, writable, self._file.extent(nbytes) if nbytes else None)

    @contextlib.contextmanager
    def open(self, kept: dict[str, _StoredArray]) -> Iterator[dict[str, np.ndarray]]:
        mapped = {name: stored.map() for name, stored in kept.items()}
        try:
            yield {name: array for name, (array, _) in mapped.items()}
        finally:
            for _, pages in mapped.values():
                # An array that is still in use keeps the mapping, but not its memory. The data stay in the file.
                if pages is not None:
                    pages.madvise(mmap.MADV_DONTNEED)
