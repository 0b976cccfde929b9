"""How much memory a step will need, before it starts."""

from __future__ import annotations

import math

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config, runtime
from daskmeans.errors import MemoryForecastError

# A task holds its partition as stored, as float32, normalised and sorted; a bucket likewise while it is merged.
COPIES = 4
# Below this a partition is mostly overhead.
LEAST = 4 << 20


def fit_bytes(rows: int, dimension: int, sample_fraction: float = 1.0) -> int:
    """Bytes over all workers that hold `rows` vectors as float32.

    Examples
    --------
    >>> fit_bytes(1_000_000, 384)
    1536000000
    """
    return int(4 * rows * dimension * sample_fraction)


def note_bytes(rows: int, dimension: int, n_clusters: int) -> int:
    """Bytes that the engine notes beside `rows` float32 vectors: codes, label, bounds for groups of centroids.

    Examples
    --------
    >>> note_bytes(1, 384, 1000)
    480
    """
    return rows * (dimension + 12 + 4 * min(math.ceil(n_clusters / 48), 96))


def block_bytes(client: Client | None) -> int:
    """Bytes of blocks, with what is noted about them, that one process may hold in memory."""
    return runtime.memory_in_all(client) // max(1, len(client.nthreads()) if client else 1)


def assign_bytes(dimension: int, n_clusters: int, partition_bytes: int) -> int:
    """Bytes of one task that assigns a partition: its rows in a few copies, the centroids, one tile of scores."""
    return COPIES * partition_bytes + 8 * n_clusters * dimension + config.get_bytes("tile-bytes")


def dedup_bytes(rows: int, dimension: int) -> int:
    """Bytes of one task that compares the rows of a cluster: its vectors in three copies and one tile of scores."""
    return 12 * rows * dimension + config.get_bytes("tile-bytes")


def partition_bytes(client: Client | None) -> int:
    """Bytes of float32 vectors in a partition: as configured, or half of what fits the memory of a task.

    Raises
    ------
    MemoryForecastError
        Not even a small partition fits; the workers would wait for memory for ever.
    """
    configured, have = config.get_bytes("partition-bytes"), runtime.memory_per_task(client)
    if have is None:
        return configured
    if have < 2 * COPIES * LEAST:
        raise MemoryForecastError(
            f"the workers' memory is too small: {format_bytes(have)} are left for each task",
            where="--memory-limit",
            expected=f"{format_bytes(2 * COPIES * LEAST)} at least, beside {format_bytes(runtime.BASE)} for Python and "
            "its libraries in each worker",
            remedy="give workers a higher --memory-limit, such as 1GiB, or fewer --threads-per-worker",
        )
    return min(configured, have // (2 * COPIES))


def check_fit(rows: int, dimension: int, sample_fraction: float, client: Client | None) -> None:
    """Refuse a fit whose rows do not fit into the memory of all workers, beside the partitions that are being read.

    Raises
    ------
    MemoryForecastError
    """
    held, have = fit_bytes(rows, dimension, sample_fraction), runtime.memory_in_all(client)
    reading = COPIES * min(partition_bytes(client), 4 * rows * dimension) * runtime.n_threads(client)
    if held + reading > have:
        fraction = max(0.0, sample_fraction * (have - reading) / held)
        raise MemoryForecastError(
            f"fitting {rows:,} rows of {dimension} dimensions holds {format_bytes(held)} of vectors and needs "
            f"{format_bytes(reading)} to read them, and the workers have {format_bytes(have)}",
            where="fit",
            expected="all vectors of the fit in the workers' memory",
            remedy=(f"add --sample-fraction {0.9 * fraction:.3f}, " if fraction > 0.001 else "")
            + "more workers, or a higher --memory-limit",
        )
