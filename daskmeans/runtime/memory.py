"""How much memory reading partitions takes, and what a device has; the forecast of each step lies beside the step."""

from __future__ import annotations

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config
from daskmeans.errors import MemoryForecastError
from daskmeans.kernels.gpu.device import REMEDY
from daskmeans.kernels.gpu.memory import DEVICE_SHARE
from daskmeans.runtime import resources
from daskmeans.runtime.client import threads_per_process

# A task holds its partition as stored, as float32, normalised and sorted; a bucket likewise while it is merged.
COPIES = 4
# Below this a partition is mostly overhead.
MIN_PARTITION_BYTES = 4 << 20


def reading_bytes(client: Client | None, most: int | None = None) -> int:
    """Bytes that one process takes to read partitions, `most` bytes of vectors or less in each."""
    partition = partition_bytes(client)
    return threads_per_process(client) * COPIES * min(partition, partition if most is None else most)


def check_device_bytes(what: str, need: int, memory: int, where: str = "", remedy: str = REMEDY) -> None:
    """Refuse work that needs more bytes of a device than a task may take of its `memory`."""
    have = int(DEVICE_SHARE * memory)
    if need > have:
        raise MemoryForecastError(
            f"{what} takes {format_bytes(need)} of a device, which has {format_bytes(have)} for it",
            where=where,
            remedy=remedy,
        )


def partition_bytes(client: Client | None) -> int:
    """Bytes of float32 vectors in a partition: as configured, or half of what fits the memory of a task.

    Raises
    ------
    MemoryForecastError
        Not even a small partition fits; the workers would wait for memory for ever.
    """
    configured, have = config.get_bytes("partition-bytes"), resources.memory_per_task(client)
    if have is None:
        return configured
    if have < 2 * COPIES * MIN_PARTITION_BYTES:
        raise MemoryForecastError(
            f"the workers' memory is too small: {format_bytes(have)} are left for each task",
            where="--memory-limit",
            expected=f"{format_bytes(2 * COPIES * MIN_PARTITION_BYTES)} at least, "
            f"beside {format_bytes(resources.BASE_BYTES)} for Python "
            "and its libraries in each worker",
            remedy="give workers a higher --memory-limit, such as 1GiB, or fewer --threads-per-worker",
        )
    return min(configured, have // (2 * COPIES))
