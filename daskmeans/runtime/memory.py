"""Memory forecasts shared by the steps: for reading partitions, and for a device."""

from __future__ import annotations

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config
from daskmeans.errors import MemoryForecastError
from daskmeans.kernels.gpu.device import REMEDY
from daskmeans.kernels.gpu.memory import DEVICE_SHARE
from daskmeans.runtime import resources
from daskmeans.runtime.client import threads_per_process

# A task holds its partition as stored, as float32, normalised and sorted; so too a bucket while it is merged.
COPIES = 4
# Below this a partition is mostly overhead.
MIN_PARTITION_BYTES = 4 << 20


def reading_bytes(client: Client | None, most: int | None = None) -> int:
    """Return the bytes that one process takes to read partitions with at most `most` bytes of vectors each."""
    partition = partition_bytes(client)
    return threads_per_process(client) * COPIES * min(partition, partition if most is None else most)


def check_device_bytes(what: str, need: int, memory: int, where: str = "", remedy: str = REMEDY) -> None:
    """Raise MemoryForecastError for work that needs more bytes of a device than a task may use of its `memory`."""
    have = int(DEVICE_SHARE * memory)
    if need > have:
        raise MemoryForecastError(
            f"{what} takes {format_bytes(need)} of device memory, of which it may use {format_bytes(have)}",
            where=where,
            remedy=remedy,
        )


def partition_bytes(client: Client | None) -> int:
    """Return the bytes of float32 vectors in a partition: as configured, or half of what fits the memory of a task.

    Raises
    ------
    MemoryForecastError
        Not even a small partition fits; the workers would wait for memory forever.
    """
    configured, have = config.get_bytes("partition-bytes"), resources.memory_per_task(client)
    if have is None:
        return configured
    if have < 2 * COPIES * MIN_PARTITION_BYTES:
        raise MemoryForecastError(
            f"the workers' memory is too small: {format_bytes(have)} remains for each task",
            where="--memory-limit",
            expected=f"at least {format_bytes(2 * COPIES * MIN_PARTITION_BYTES)}, "
            f"in addition to {format_bytes(resources.BASE_BYTES)} for Python "
            "and its libraries in each worker",
            remedy="give workers a higher --memory-limit, such as 1GiB, or fewer --threads-per-worker",
        )
    return min(configured, have // (2 * COPIES))
