"""How much memory a step will need, before it starts."""

from __future__ import annotations

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config, runtime
from daskmeans.errors import MemoryForecastError

# A task holds its partition as stored, as float32, normalised and sorted; a bucket likewise while it is merged.
COPIES = 4
# What Python and its libraries take in each worker.
BASE = 300 << 20


def fit_bytes(rows: int, dimension: int, sample_fraction: float = 1.0) -> int:
    """Bytes over all workers that hold `rows` vectors as float32.

    Examples
    --------
    >>> fit_bytes(1_000_000, 384)
    1536000000
    """
    return int(4 * rows * dimension * sample_fraction)


def assign_bytes(dimension: int, n_clusters: int, partition_bytes: int) -> int:
    """Bytes of one task that assigns a partition: its rows in a few copies, the centroids, one tile of scores."""
    return COPIES * partition_bytes + 8 * n_clusters * dimension + config.get_bytes("tile-bytes")


def dedup_bytes(rows: int, dimension: int) -> int:
    """Bytes of one task that compares the rows of a cluster: its vectors in three copies and one tile of scores."""
    return 12 * rows * dimension + config.get_bytes("tile-bytes")


def partition_bytes(client: Client | None) -> int:
    """Bytes of float32 vectors in a partition: as configured, or what fits the memory of a task."""
    configured = config.get_bytes("partition-bytes")
    limit = runtime.memory_per_task(client)
    return (
        configured if limit is None else max(1 << 20, min(configured, (limit - min(BASE, limit // 2)) // (2 * COPIES)))
    )


def check_fit(rows: int, dimension: int, sample_fraction: float, client: Client | None) -> None:
    """Refuse a fit whose rows do not fit into the memory of all workers.

    Raises
    ------
    MemoryForecastError
    """
    need, have = fit_bytes(rows, dimension, sample_fraction), runtime.memory_in_all(client)
    if need > 0.6 * have:  # above that workers begin to spill
        raise MemoryForecastError(
            f"fitting {rows:,} rows of {dimension} dimensions holds {format_bytes(need)} of vectors, "
            f"and the workers have {format_bytes(have)}",
            where="fit",
            expected="vectors in at most 60 % of the workers' memory",
            remedy=f"add --sample-fraction {max(0.001, 0.5 * have / need):.3f}, workers, or a higher --memory-limit",
        )
