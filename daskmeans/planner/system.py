"""Describe this machine, and what daskmeans uses of it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import psutil
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT
from packaging.requirements import Requirement

from daskmeans.kernels import all_pairs, jit, within_cluster, yinyang  # noqa: F401 (their kernels must be known)
from daskmeans.kernels.hashing import hash_integers
from daskmeans.kernels.microkernel import capability
from daskmeans.runtime import gpus, resources
from daskmeans.runtime.client import n_threads
from daskmeans.storage import manifest

# Extras that only developers of daskmeans install.
_FOR_DEVELOPERS = {"dev", "docs", "test"}
# A kernel of each kind of work that compiles for seconds, by the label of its progress line.
KERNELS = {
    "k-means": "yinyang.find_nearest",
    "assign": "yinyang.find_nearest",
    "compare": "all_pairs._collect_pairs",
    "dedup": "within_cluster._scan_tile",
}


def describe_system() -> dict[str, Any]:
    """Describe this machine: CPU, memory, disk, GPUs, libraries, and what daskmeans uses of them.

    Returns
    -------
    dict
        ``processor``, ``memory``, ``kernels``, ``kernel_cache``, ``local_disk``, ``gpu``, ``versions``, ``extras``;
        JSON types only.

    Examples
    --------
    >>> describe_system()["processor"]["cores_used"] >= 1
    True
    """
    return {
        "processor": _describe_cpu(),
        "memory": _describe_memory(),
        "kernels": capability(),
        "kernel_cache": _describe_kernel_cache(),
        "local_disk": _describe_disk(),
        "gpu": _describe_gpu(),
        "versions": manifest.library_versions(),
        "extras": _describe_extras(),
    }


def _describe_cpu() -> dict[str, Any]:
    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": CPU_COUNT,  # the least of affinity and cgroup
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "cores_used": n_threads(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _describe_memory() -> dict[str, Any]:
    now = psutil.virtual_memory()
    return {
        "total_bytes": now.total,
        "available_bytes": now.available,
        "limit_bytes": MEMORY_LIMIT,  # the least of the machine's memory, cgroup and ulimit
        "worker_bytes": MEMORY_LIMIT // CPU_COUNT,  # of one thread
    }


def uncompiled_work() -> frozenset[str]:
    """Return the labels of the progress lines under which kernels will be compiled, for the first time here."""
    return frozenset(label for label, name in KERNELS.items() if not jit.is_compiled(name))


def _describe_kernel_cache() -> dict[str, Any]:
    """Directory in which compiled kernels are cached for later processes."""
    place = hash_integers.stats.cache_path  # type: ignore[attr-defined]
    kept = place is not None and os.access(place, os.W_OK)
    facts = {"directory": place or "none", "writable": kept}
    if not kept:
        facts["cost"] = "each process compiles its kernels again, which takes half a minute or more"
        facts["remedy"] = "set NUMBA_CACHE_DIR to a writable directory"
    return facts


def _describe_disk() -> dict[str, Any]:
    """Disk to which workers spill what does not fit into their memory, unless --local-directory names another."""
    (disk,) = resources.list_disks()
    facts = {"directory": disk.path, "writable": os.access(disk.path, os.W_OK), "free_bytes": disk.free}
    return facts | ({"remedy": f"{disk.kind} is memory: set --local-directory"} if disk.in_memory else {})


def _describe_gpu() -> dict[str, Any]:
    found = ", ".join(gpus.list_models())
    used = "by workers that dask-cuda starts, such as those of `--device gpu`"
    if gpus.missing_packages():
        used = 'none; needs pip install "daskmeans[gpu]"'
    return {"found": found or "none", "used": used if found else "none"}


def _describe_extras() -> dict[str, str]:
    """For each extra, whether it is installed or which packages are missing."""
    offered = set(metadata("daskmeans").get_all("Provides-Extra") or []) - _FOR_DEVELOPERS
    missing = {extra: [name for name in _list_packages(extra) if not _is_installed(name)] for extra in sorted(offered)}
    return {extra: f"missing: {', '.join(names)}" if names else "installed" for extra, names in missing.items()}


def _list_packages(extra: str) -> list[str]:
    """Packages that `extra` adds to those that daskmeans needs anyway."""
    wanted = map(Requirement, requires("daskmeans") or [])
    found = [
        r for r in wanted if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
    ]
    nested = [name for r in found if r.name == "daskmeans" for other in r.extras for name in _list_packages(other)]
    return sorted({r.name for r in found if r.name != "daskmeans"} | set(nested))


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
