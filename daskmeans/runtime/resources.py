"""What processes have: memory, disks, and the peak that they reached."""

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

from daskmeans.runtime.client import each_worker
from daskmeans.runtime.liveness import known_workers

# Measured: what a worker takes once it has imported the libraries and read files, and what compiling kernels adds,
# which the first process on a machine does.
BASE, COMPILING = 350 << 20, 100 << 20
# Above this share of its limit a worker moves data to disk, and blocks that it moves lose what is noted about them.
TARGET = 0.6


def memory_per_task(client: Client | None = None) -> int | None:
    """Bytes that one task may use, on the tightest worker; None without a limit."""
    workers = known_workers(client) if client is not None else []
    return min((_usable(w["memory_limit"]) // w["nthreads"] for w in workers if w["memory_limit"]), default=None)


def memory_to_keep(client: Client | None = None) -> int:
    """Bytes of data that each process may keep between tasks: of the tightest worker, or of this process."""
    if client is None:
        return int(0.8 * _available())
    limits = [worker["memory_limit"] for worker in known_workers(client)]
    return (
        max(0, int(TARGET * min(limits)) - BASE - COMPILING)
        if limits and all(limits)
        else _available() // (2 * max(1, len(limits)))
    )


def _available() -> int:
    """What this machine has free, or this process, if its cgroup or its limits leave it less."""
    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss))


def _usable(limit: int) -> int:
    """What a worker has for data: it pauses at 80 % of its limit, Python and its libraries take the base."""
    return max(0, int(0.8 * limit) - BASE)


@dataclass(frozen=True)
class Disk:
    """A file system on which processes keep files.

    Attributes
    ----------
    host, path : str
        The machine, and the directory of one of its processes.
    kind : str
        Such as ext4.
    free : int
        Bytes.
    processes : int
        How many of them keep their files on it.
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


def disks(client: Client | None = None) -> list[Disk]:
    """The file systems on which the workers, or this process, keep files."""
    found = each_worker(_disk, client).values() if client is not None else [_disk()]
    shared: dict[tuple[str, int], Disk] = {}
    for place, disk in found:
        count = shared[place].processes if place in shared else 0
        shared[place] = replace(disk, processes=count + 1)
    return list(shared.values())


def local_directory(dask_worker: Any = None) -> str:
    """The directory for the files of this process: the worker's own, if one runs here."""
    global _home
    with contextlib.suppress(ValueError):
        _home = str((dask_worker or distributed.get_worker()).local_directory)
    # What arrives from another worker is unpickled outside of any task.
    return _home if os.path.isdir(_home) else dask.config.get("temporary-directory") or tempfile.gettempdir()


_home = ""


def _disk(dask_worker: Any = None) -> tuple[tuple[str, int], Disk]:
    path = os.path.realpath(local_directory(dask_worker))
    mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    mount = max((m for m in mounts if os.path.commonpath([m, path]) == m), key=len, default="")
    host = socket.gethostname()
    return (host, os.stat(path).st_dev), Disk(host, path, mounts.get(mount, ""), psutil.disk_usage(path).free)


def reset_peaks(client: Client | None = None) -> None:
    """Start measuring the peak memory of this process and of all workers anew, where the system can."""
    _reset_peak()
    if client is not None:
        each_worker(_reset_peak, client)


def peaks(client: Client | None = None) -> dict[str, int]:
    """Peak bytes since :func:`reset_peaks`: of this process, and of the worker that used most."""
    workers = each_worker(_peak, client) if client is not None else {}
    return {"client": _peak(), "worker": max(workers.values(), default=0)}


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # Linux only; see proc(5)
        file.write("5")


def _peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return int(psutil.Process().memory_info().rss)
