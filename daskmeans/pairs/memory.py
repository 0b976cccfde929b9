"""Memory that comparing rows takes."""

from __future__ import annotations

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config
from daskmeans.errors import MemoryForecastError
from daskmeans.kernels.all_pairs import DIRECTIONS, n_sample_rows
from daskmeans.kernels.gpu.memory import pairs_bytes
from daskmeans.runtime import gpus, resources
from daskmeans.runtime.client import threads_per_process
from daskmeans.runtime.memory import COPIES, check_device_bytes

# Measured: a cluster is in memory as pages of its file, in Arrow's decoding buffers, as a table, and as unit rows in
# both orders; some memory of the cluster before is not yet freed.
CLUSTER_COPIES = 10


def dedup_bytes(rows: int, dimension: int) -> int:
    """Bytes of one task that compares the rows of a cluster: `CLUSTER_COPIES` of its vectors and one tile of scores."""
    return 4 * CLUSTER_COPIES * rows * dimension + config.get_bytes("tile-bytes")


def row_block_bytes(rows: int, dimension: int, probes: int = 0) -> int:
    """Bytes of a loaded row block: the vectors, their sketches as rows and columns, and ids.

    If each row probes `probes` clusters, this includes the probe lists.

    Examples
    --------
    >>> row_block_bytes(1, 384)
    2432
    """
    return rows * (6 * dimension + 128 + 16 * probes)


def check_row_blocks(rows: int, dimension: int, where: str, client: Client | None, probes: int = 0) -> int:
    """How many rows each process may cache besides the row blocks, of `rows` rows each, that its tasks work on.

    Raises
    ------
    MemoryForecastError
        The blocks of one task (two, and the copies that reading one takes) do not fit into its memory or its device.
    ClusterError
        Two workers compute on one GPU.
    """
    for place in gpus.query_gpus(client) if not probes else ():  # probes are compared on the CPU
        if place:
            check_device_bytes(f"comparing blocks of {rows:,} rows", pairs_bytes(rows, dimension), place.memory, where)
    each, have = row_block_bytes(rows, dimension, probes), resources.memory_per_task(client)
    need = (2 + COPIES) * each
    if have is not None and need > have:
        raise MemoryForecastError(
            f"comparing rows takes {format_bytes(need)}, and a task has {format_bytes(have)}",
            where=where,
            remedy="give workers a higher --memory-limit or fewer --threads-per-worker",
        )
    spare = resources.memory_to_keep(client) - threads_per_process(client) * need
    return max(0, spare // row_block_bytes(1, dimension, probes))


def search_bytes(
    block_rows: int, rows: int, room: int, dimension: int, client: Client | None, probes: int = 0, n_clusters: int = 0
) -> int:
    """Bytes of each process that compares `rows` rows in blocks, and caches up to `room` of them.

    If each row probes `probes` clusters, this includes the means of all `n_clusters`, by which those are found. Without
    a client, it is what this process takes on top of what it has now.
    """
    tasks = threads_per_process(client) * (2 + COPIES) * row_block_bytes(block_rows, dimension, probes)
    held = row_block_bytes(min(room, rows), dimension, probes)
    means = 4 * n_clusters * dimension
    searching = tasks + held + means
    if client is None:  # this process finds the directions before it compares
        return max(searching, directions_bytes(rows, dimension))
    return searching + resources.BASE_BYTES + resources.COMPILE_BYTES


def directions_bytes(rows: int, dimension: int) -> int:
    """Bytes that finding the directions of sketches takes: a sample of `rows` rows, and its axes, in a few copies.

    Examples
    --------
    >>> directions_bytes(1_000_000, 384), directions_bytes(1_000_000, 12_288)
    (36962304, 343891968)
    """
    sample = min(rows, n_sample_rows(dimension))
    return dimension * (10 * sample + 28 * min(sample, DIRECTIONS[-1]))
