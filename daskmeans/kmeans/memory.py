"""Forecasts of the memory and disk space that fitting and assigning take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config
from daskmeans.errors import ClusterError, MemoryForecastError
from daskmeans.kernels.bounds import n_bounds
from daskmeans.kernels.center_groups import n_near
from daskmeans.kernels.gpu.memory import DEVICE_SHARE, nearest_bytes
from daskmeans.runtime import resources
from daskmeans.runtime.client import logger, n_processes, threads_per_process
from daskmeans.runtime.memory import COPIES, check_device_bytes, reading_bytes

# Bytes of all blocks of a fit, as a multiple of those of all rows: the largest sample is a third of the rows.
SAMPLES = 4 / 3
# Share of its memory for blocks that every worker fills, at least, before rows go to disk.
EVEN = 0.8
# Copies of the rows on a device while cuML fits: its compiled part may concatenate those of a worker.
DEVICE_COPIES = 2
# Share of a device's memory that distances may take at once.
DEVICE_TILE = 0.125


def fit_bytes(rows: int, dimension: int, sample_fraction: float = 1.0) -> int:
    """Bytes that `rows` float32 vectors take, over all workers.

    Examples
    --------
    >>> fit_bytes(1_000_000, 384)
    1536000000
    """
    return int(4 * rows * dimension * sample_fraction)


def note_bytes(rows: int, dimension: int, n_clusters: int) -> int:
    """Bytes that the engine keeps beside `rows` float32 vectors: codes, labels, bounds for groups of centroids.

    With thousands of clusters these include the near groups of each row.

    Examples
    --------
    >>> note_bytes(1, 384, 1000), note_bytes(1, 384, 4096)
    (496, 820)
    """
    return rows * (dimension + 28 + 4 * n_bounds(n_clusters) + 4 * n_near(n_clusters))


def engine_bytes(dimension: int, n_clusters: int) -> int:
    """Bytes of one task of a fit beside its blocks: centroids in several forms, their sums, one tile of scores."""
    return 32 * n_clusters * dimension + config.get_bytes("tile-bytes")


@dataclass(frozen=True)
class FitForecast:
    """Bytes that a fit will take, at most.

    Attributes
    ----------
    worker : int
        Memory of a worker. Without a cluster: of this process, beside what it takes already.
    blocks : int
        Vectors and the engine's state beside them, in all processes together.
    spilled : int
        The part of `blocks` that lies on local disks.
    disks : tuple of Disk
        Those disks; empty if all fits into memory.
    """

    worker: int
    blocks: int
    spilled: int
    disks: tuple[resources.Disk, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"the fit holds {format_bytes(self.blocks)} and takes up to {format_bytes(self.worker)} in each process"
        ]
        lines += [
            f"{format_bytes(self.bytes_on(disk))} of it lie in unnamed files below {disk.path} on {disk.host} "
            f"({disk.kind}, {format_bytes(disk.free)} free) until it ends"
            for disk in self.disks
        ]
        return "; ".join(lines)

    def bytes_on(self, disk: resources.Disk) -> int:
        """The part of `spilled` that lies on `disk`."""
        return self.spilled * disk.processes // sum(each.processes for each in self.disks)


def forecast_fit(
    rows: int, dimension: int, n_clusters: int, client: Client | None, kept: int | None = None
) -> FitForecast:
    """Forecast a fit on `rows` vectors: what fits lies in the memory of the workers, the rest on their disks.

    `kept` is how many bytes each process may keep in memory; default: as many as it can.
    """
    blocks = int(SAMPLES * (fit_bytes(rows, dimension) + note_bytes(rows, dimension, n_clusters)))
    engine = threads_per_process(client) * engine_bytes(dimension, n_clusters)
    kept = resources.memory_to_keep(client) if kept is None else kept
    memory = max(0, kept - reading_bytes(client) - engine)
    worker = min(memory, blocks) + reading_bytes(client, 4 * rows * dimension) + engine
    # Workers take partitions as they have time, so some may be full before others.
    spread = int(EVEN * memory * n_processes(client))
    spilled = 0 if blocks <= memory else max(0, blocks - spread)
    disks = tuple(resources.list_disks(client)) if spilled else ()
    return FitForecast(
        worker + (resources.BASE_BYTES + resources.COMPILE_BYTES if client is not None else 0), blocks, spilled, disks
    )


def check_fit(
    rows: int,
    dimension: int,
    n_clusters: int,
    sample_fraction: float,
    client: Client | None,
    kept: int | None = None,
) -> FitForecast:
    """Log and return the forecast of a fit; it says where rows will lie that do not fit into memory.

    Raises
    ------
    MemoryForecastError
        The rows do not fit onto the local disks either.
    """
    foreseen = forecast_fit(int(rows * sample_fraction), dimension, n_clusters, client, kept)
    for disk in foreseen.disks:
        need = format_bytes(foreseen.bytes_on(disk))
        if foreseen.bytes_on(disk) > disk.free or disk.in_memory:
            raise MemoryForecastError(
                f"fitting {rows:,} rows of {dimension} dimensions needs {need} here, which "
                + (f"is memory ({disk.kind})" if disk.in_memory else f"has {format_bytes(disk.free)}"),
                where=f"{disk.path} on {disk.host}",
                expected="disk space for what the workers' memory cannot hold",
                remedy="give a --local-directory on a larger disk, more workers, a higher --memory-limit, or a "
                "--sample-fraction",
            )
    logger.info("%s", foreseen)
    return foreseen


def device_bytes(rows: int, dimension: int, n_clusters: int, batch: int, oversampling: float) -> int:
    """Bytes of device memory with which cuML fits `rows` float32 vectors, comparing `batch` of them at once.

    They are for the rows, with a label, a norm and a distance each; for centroids, their sums and the candidates of
    k-means||; and for one tile of distances.

    Examples
    --------
    >>> device_bytes(1_000_000, 384, 1000, 32768, 2.0)
    3384864000
    """
    each = 4 * dimension * DEVICE_COPIES + 20
    centroids = 4 * dimension * n_clusters * (4 + 8 * max(1.0, oversampling))
    return int(rows * each + centroids + 4 * batch * n_clusters * max(1.0, oversampling))


def check_devices(
    rows: Mapping[str, int], dimension: int, n_clusters: int, batch: int, oversampling: float, memory: Mapping[str, int]
) -> tuple[int, int]:
    """Return how many rows cuML may compare at once, `batch` at most, and how many it may hold on a device.

    Parameters
    ----------
    rows, memory : mapping
        By worker: the number of its rows, and the bytes of its device.

    Returns
    -------
    batch : int
    buffer : int
        0: all rows fit onto the devices. Otherwise rows stay in memory and are sent, so many at a time.

    Raises
    ------
    MemoryForecastError
        Not even one row fits beside the centroids.
    ClusterError
        A worker has been lost since rows were loaded.
    """
    if lost := rows.keys() - memory.keys():
        raise ClusterError("a worker was lost", where=", ".join(sorted(lost)), remedy="run the command again")
    room = DEVICE_TILE * min(memory[worker] for worker in rows)
    batch = max(1, min(batch, int(room / (4 * n_clusters * max(1.0, oversampling)))))

    def need(count: int) -> int:
        return device_bytes(count, dimension, n_clusters, batch, oversampling)

    if all(need(count) <= DEVICE_SHARE * memory[worker] for worker, count in rows.items()):
        return batch, 0
    # For rows in memory the device holds a label each, and two buffers: one is filled while the other is in use.
    spare = min(DEVICE_SHARE * memory[worker] - need(0) - 4 * count for worker, count in rows.items())
    buffer = int(spare // (2 * (need(1) - need(0))))
    if buffer < 1:
        worker = min(rows, key=memory.__getitem__)
        check_device_bytes(
            f"fitting {n_clusters:,} clusters of {dimension} dimensions by cuML",
            need(1) + 4 * rows[worker],
            memory[worker],
            worker,
            "use larger GPUs, fewer clusters, a --sample-fraction, or --engine native",
        )
    return batch, max(1, buffer)


def check_compare(rows: int, n_clusters: int, dimension: int, memory: int) -> None:
    """Check that partitions of `rows` rows can be compared with centroids on a device of `memory` bytes.

    For a CPU `memory` is 0 and nothing is checked: it compares one tile at a time.

    Raises
    ------
    MemoryForecastError
        Not even one tile of rows fits.
    """
    if not memory:
        return
    what = f"comparing rows of {dimension} dimensions with {n_clusters:,} centroids"
    check_device_bytes(what, nearest_bytes(rows, n_clusters, dimension), memory)


def assign_bytes(dimension: int, n_clusters: int, partition_bytes: int) -> int:
    """Bytes of one task that assigns a partition: several copies of its rows, the centroids, one tile of scores.

    The rows of the previous partition may still be in memory, where they are sorted before they are written.
    """
    return (2 + COPIES) * partition_bytes + 8 * n_clusters * dimension + config.get_bytes("tile-bytes")
