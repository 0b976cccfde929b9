"""The GPUs of this machine, the packages that they need, and the GPU that this process computes on."""

from __future__ import annotations

import functools
import os
import socket
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import distributed
from distributed import Client

from daskmeans import config
from daskmeans.errors import ClusterError, UsageError
from daskmeans.kernels import microkernel
from daskmeans.kernels.backend import CPU, Backend, Gpu
from daskmeans.kernels.gpu.device import Cuda, Device
from daskmeans.runtime.client import logger, n_processes, n_threads, run_on_workers

# Import names of the packages of the extra `gpu`.
PACKAGES = ("cudf", "cuml", "cupy", "dask_cuda", "dask_cudf", "raft_dask")

microkernel.ask(functools.partial(config.get, "kernels"))


def listed() -> list[Path]:
    """Return the directories in which the driver describes the GPUs; asking it would mean loading its libraries."""
    return sorted(Path("/proc/driver/nvidia/gpus").glob("*"))


def list_models() -> list[str]:
    """Return the model names of the GPUs."""
    return [_read_model(file) for gpu in listed() if (file := gpu / "information").exists()]


def count_gpus() -> int:
    """Count the GPUs that CUDA_VISIBLE_DEVICES does not hide."""
    there, chosen = len(listed()), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not there or chosen is None:
        return there
    return len([name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])


def missing_packages() -> list[str]:
    """Return the packages of the extra `gpu` that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def current_device(dask_worker: Any = None) -> Device | None:
    """Return the GPU that this process computes on; None if it computes on the CPU.

    Unless ``daskmeans.device`` decides, only workers started by dask-cuda compute on a GPU.

    Raises
    ------
    UsageError
        It is to compute on a GPU, but cupy or a device is missing.
    """
    wanted = config.get("device")
    if wanted not in ("auto", "cpu", "gpu"):
        raise UsageError(f"unknown device {wanted!r}", where="daskmeans.device", expected="auto, cpu or gpu")
    if wanted == "cpu" or (wanted == "auto" and not _is_dask_cuda_worker(dask_worker)):
        return None
    return _open_cuda()


def backend() -> Backend:
    """Return the backend of this process, from :func:`current_device`."""
    found = current_device()
    return CPU if found is None else Gpu(found)


def require_device() -> Gpu:
    """Return the backend of this process, which must be a GPU.

    Raises
    ------
    ClusterError
        It has no GPU: a worker that joined later and was not started by dask-cuda.
    """
    found = current_device()
    if found is None:
        raise ClusterError(
            "the other workers compute on GPUs, and this one does not",
            where=socket.gethostname(),
            remedy="start workers with `dask cuda worker` only, or all with DASK_DASKMEANS__DEVICE=cpu",
        )
    return Gpu(found)


class GpuInfo(NamedTuple):
    """A GPU that a process computes on."""

    name: str
    """The machine, and the identifier of the GPU on it."""
    memory: int
    """Total bytes of memory, used or not."""

    @classmethod
    def of(cls, device: Device) -> GpuInfo:
        """Describe `device` of this process."""
        return cls(f"{socket.gethostname()} {device.name()}", device.memory())


def query_gpus(client: Client | None) -> list[GpuInfo | None]:
    """Return the GPU of each worker, or of this process; None stands for the CPU.

    Raises
    ------
    ClusterError
        Two workers compute on one GPU.
    """
    if client is None:
        return [_query_gpu()]
    found = list(run_on_workers(_query_gpu, client).values())
    refuse_shared_gpus(gpu.name for gpu in found if gpu)
    return found


def n_computing(client: Client | None) -> int:
    """Count the threads that compute at a time, of all workers or of this process; one thread uses a GPU.

    Raises
    ------
    ClusterError
        Two workers compute on one GPU.
    """
    return n_processes(client) if query_gpus(client)[0] else n_threads(client)


def refuse_shared_gpus(names: Iterable[str]) -> None:
    """Raise ClusterError if two workers compute on one GPU: each would count on all of its memory."""
    for name, workers in Counter(names).items():
        if workers > 1:
            raise ClusterError(
                f"{workers} workers share one GPU",
                where=name,
                expected="one worker for each GPU, as LocalCUDACluster and `dask cuda worker` start them",
                remedy="stop the others, or compute on the CPU (DASK_DASKMEANS__DEVICE=cpu on the workers)",
            )


def memory(client: Client | None) -> int:
    """Return :func:`min_memory` of all workers, or of this process; log a warning if only some compute on GPUs.

    Raises
    ------
    ClusterError
        Two workers compute on one GPU.
    """
    found = query_gpus(client)
    on_gpus = len([gpu for gpu in found if gpu])
    if 0 < on_gpus < len(found):
        logger.warning(
            "%s of %s workers compute on GPUs; so that all compute alike, k-means runs on the CPU",
            on_gpus,
            len(found),
        )
    return min_memory(found)


def min_memory(found: list[GpuInfo | None]) -> int:
    """Return the memory of the smallest GPU of `found`, in bytes; 0 if there are none, or some compute on the CPU.

    Examples
    --------
    >>> min_memory([GpuInfo("a 1", 5), GpuInfo("a 2", 4)]), min_memory([GpuInfo("a 1", 5), None])
    (4, 0)
    """
    sizes = [gpu.memory for gpu in found if gpu]
    return min(sizes) if sizes and len(sizes) == len(found) else 0


def _query_gpu(dask_worker: Any = None) -> GpuInfo | None:
    mine = current_device(dask_worker)
    return GpuInfo.of(mine) if mine else None


def _is_dask_cuda_worker(worker: Any) -> bool:
    """Whether this process is a worker started by dask-cuda, which prepares its workers with a preload module."""
    try:
        worker = worker or distributed.get_worker()
    except ValueError:
        return False
    return any(preload.name.startswith("dask_cuda") for preload in worker.preloads)


@functools.cache
def _open_cuda() -> Device:
    if find_spec("cupy") is None:
        raise UsageError(
            "cupy is not installed",
            where="daskmeans.device",
            remedy='pip install "daskmeans[gpu]", or set DASK_DASKMEANS__DEVICE=cpu',
        )
    try:
        found = Cuda()
        found.memory()
    except (ImportError, RuntimeError) as error:  # as CUDA raises
        raise UsageError(
            f"this process cannot use a CUDA device ({type(error).__name__}: {error})",
            where="daskmeans.device",
            remedy="repair the driver or CUDA_VISIBLE_DEVICES, or set DASK_DASKMEANS__DEVICE=cpu",
        ) from error
    return found


def _read_model(information: Path) -> str:
    lines = information.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")), information.parent.name)
