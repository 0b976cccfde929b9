"""Resources of processes: memory, disks and peak memory."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import dask
import dask.system
import distributed
import psutil
from distributed import Client
from distributed.system import MEMORY_LIMIT

from daskmeans.runtime.client import run_on_workers
from daskmeans.runtime.liveness import fetch_worker_info

# Measured: memory of a worker after it has imported the libraries and read files, and what compiling kernels adds; the
# first process on a machine compiles them.
BASE_BYTES, COMPILE_BYTES = 350 << 20, 100 << 20
# Above this share of its limit a worker spills data to disk, and spilled blocks lose what is cached about them.
MEMORY_TARGET = 0.6


def memory_per_task(client: Client | None = None) -> int | None:
    """Return the bytes that one task may use, on the worker with the least memory; None without a limit."""
    workers = fetch_worker_info(client) if client is not None else []
    return min((_usable_bytes(w["memory_limit"]) // w["nthreads"] for w in workers if w["memory_limit"]), default=None)


def memory_to_keep(client: Client | None = None) -> int:
    """Return the bytes of data that a process may keep between tasks: of the smallest worker, or of this process."""
    if client is None:
        return int(0.8 * _available_bytes())
    limits = [worker["memory_limit"] for worker in fetch_worker_info(client)]
    return (
        max(0, int(MEMORY_TARGET * min(limits)) - BASE_BYTES - COMPILE_BYTES)
        if limits and all(limits)
        else _available_bytes() // (2 * max(1, len(limits)))
    )


def _available_bytes() -> int:
    """Return the free memory of this machine, or of this process if its cgroup or limits leave it less."""
    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss))


def _usable_bytes(limit: int) -> int:
    """Return a worker's memory for data: it pauses at 80 % of its limit, and Python and its libraries take the base."""
    return max(0, int(0.8 * limit) - BASE_BYTES)


@dataclass(frozen=True)
class Disk:
    """A file system on which processes keep files.

    Attributes
    ----------
    host, path : str
        The machine, and the directory of one of its processes.
    kind : str
        Type of the file system, such as ext4.
    free : int
        Free bytes.
    processes : int
        Number of processes that keep their files on it.
    """

    host: str
    path: str
    kind: str
    free: int
    processes: int = 1

    @property
    def in_memory(self) -> bool:
        """Whether its files take memory."""
        return self.kind in ("tmpfs", "ramfs")


def list_disks(client: Client | None = None) -> list[Disk]:
    """Return the file systems on which the workers, or this process, keep files."""
    found = run_on_workers(_find_disk, client).values() if client is not None else [_find_disk()]
    shared: dict[tuple[str, int], Disk] = {}
    for place, disk in found:
        count = shared[place].processes if place in shared else 0
        shared[place] = replace(disk, processes=count + 1)
    return list(shared.values())


def local_directory(dask_worker: Any = None) -> str:
    """Return the directory for files of this process: that of its worker, if one runs here."""
    global _worker_directory
    with contextlib.suppress(ValueError):
        _worker_directory = str((dask_worker or distributed.get_worker()).local_directory)
    # Data from another worker is unpickled outside any task.
    return (
        _worker_directory
        if os.path.isdir(_worker_directory)
        else dask.config.get("temporary-directory") or tempfile.gettempdir()
    )


_worker_directory = ""


def _find_disk(dask_worker: Any = None) -> tuple[tuple[str, int], Disk]:
    path = os.path.realpath(local_directory(dask_worker))
    mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    mount = max((m for m in mounts if os.path.commonpath([m, path]) == m), key=len, default="")
    host = socket.gethostname()
    return (host, os.stat(path).st_dev), Disk(host, path, mounts.get(mount, ""), psutil.disk_usage(path).free)


def reset_peaks(client: Client | None = None) -> None:
    """Reset the peak memory of this process and of all workers, where the system supports that."""
    _reset_process_peak()
    if client is not None:
        run_on_workers(_reset_process_peak, client)


def peak_bytes(client: Client | None = None) -> dict[str, int]:
    """Return the peak bytes since :func:`reset_peaks`: of this process, and of the worker that used most."""
    workers = run_on_workers(_process_peak_bytes, client) if client is not None else {}
    return {"client": _process_peak_bytes(), "worker": max(workers.values(), default=0)}


def _reset_process_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # Linux only; see proc(5)
        file.write("5")


def _process_peak_bytes() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return int(psutil.Process().memory_info().rss)
