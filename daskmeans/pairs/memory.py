"""What comparing rows takes in memory."""

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

# Measured: a cluster lies in the pages of its file, in what Arrow needs to decode these, in a table, and as unit rows
# in both orders; of the one before some of that is still there.
CLUSTER_COPIES = 10


def dedup_bytes(rows: int, dimension: int) -> int:
    """Bytes of one task that compares the rows of a cluster: its vectors in `CLUSTER_COPIES` and one tile of scores."""
    return 4 * CLUSTER_COPIES * rows * dimension + config.get_bytes("tile-bytes")


def row_block_bytes(rows: int, dimension: int, probes: int = 0) -> int:
    """Bytes of rows that are kept to be compared with others: the vectors, their sketches as rows and columns, ids.

    Where each visits `probes` clusters, also what it visits.

    Examples
    --------
    >>> row_block_bytes(1, 384)
    2432
    """
    return rows * (6 * dimension + 128 + 16 * probes)


def check_row_blocks(rows: int, dimension: int, where: str, client: Client | None, probes: int = 0) -> int:
    """How many rows each process may keep beside the blocks of `rows` rows that its tasks are about.

    Raises
    ------
    MemoryForecastError
        Not even a task's own fit into its memory: two, and the copies that reading one takes. Or onto its device.
    ClusterError
        Two workers compute on one GPU.
    """
    for place in gpus.query_gpus(client) if not probes else ():  # rows that visit are compared on the cores
        if place:
            check_device_bytes(f"comparing bands of {rows:,} rows", pairs_bytes(rows, dimension), place.memory, where)
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
    """Bytes of each process that compares `rows` rows in blocks, and keeps `room` of them.

    Where each visits `probes` clusters, those are found by the means of all `n_clusters`. Of this process, beside what
    it has, if there is no cluster.
    """
    tasks = threads_per_process(client) * (2 + COPIES) * row_block_bytes(block_rows, dimension, probes)
    held = row_block_bytes(min(room, rows), dimension, probes)
    means = 4 * n_clusters * dimension
    searching = tasks + held + means
    if client is None:  # which finds the directions, before it compares
        return max(searching, directions_bytes(rows, dimension))
    return searching + resources.BASE_BYTES + resources.COMPILE_BYTES


def directions_bytes(rows: int, dimension: int) -> int:
    """Bytes in which the directions of sketches are found: the sample of `rows` rows, and its axes, in a few copies.

    Examples
    --------
    >>> directions_bytes(1_000_000, 384), directions_bytes(1_000_000, 12_288)
    (36962304, 343891968)
    """
    sample = min(rows, n_sample_rows(dimension))
    return dimension * (10 * sample + 28 * min(sample, DIRECTIONS[-1]))
