"""How much memory a step will need, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dask.utils import format_bytes
from distributed import Client

from daskmeans import config, gpus, runtime
from daskmeans.errors import ClusterError, MemoryForecastError
from daskmeans.kernels import demand
from daskmeans.kernels.device import REMEDY
from daskmeans.kernels.groups import n_near
from daskmeans.kernels.search import n_bounds
from daskmeans.kernels.sketch import DIRECTIONS, sample_rows

# A task holds its partition as stored, as float32, normalised and sorted; a bucket likewise while it is merged.
COPIES = 4
# Measured: a cluster lies in the pages of its file, in what Arrow needs to decode these, in a table, and as unit rows
# in both orders; of the one before some of that is still there.
CLUSTER_COPIES = 10
# Blocks of a fit, those of a sample of a third of the rows counted too, as a multiple of those of all rows.
SAMPLES = 4 / 3
# What every worker holds of its share of the memory, at least, before rows go to disk.
EVEN = 0.8
# Of a device's memory: what CUDA contexts and the gaps between allocations leave.
DEVICE = 0.8
# Rows on a device while cuML fits: its compiled part may join those of a worker.
DEVICE_COPIES = 2
# Of a device's memory, what distances may take at once.
DEVICE_TILE = 0.125
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
    """Bytes that the engine notes beside `rows` float32 vectors: codes, labels, bounds for groups of centroids.

    With thousands of clusters, also which groups are near.

    Examples
    --------
    >>> note_bytes(1, 384, 1000), note_bytes(1, 384, 4096)
    (496, 820)
    """
    return rows * (dimension + 28 + 4 * n_bounds(n_clusters) + 4 * n_near(n_clusters))


def engine_bytes(dimension: int, n_clusters: int) -> int:
    """Bytes of one task of a fit beside its blocks: centroids in a few forms, a sum for each, one tile of scores."""
    return 32 * n_clusters * dimension + config.get_bytes("tile-bytes")


def reading_bytes(client: Client | None, most: int | None = None) -> int:
    """Bytes that one process takes to read partitions, `most` bytes of vectors or less in each."""
    partition = partition_bytes(client)
    return runtime.threads_each(client) * COPIES * min(partition, partition if most is None else most)


@dataclass(frozen=True)
class FitForecast:
    """Bytes that a fit will take, at most.

    Attributes
    ----------
    worker : int
        Memory of a worker; of this process, beside what it has, if there is no cluster.
    blocks : int
        Vectors and what is noted about them, in all processes together.
    cached : int
        What of that lies on local disks.
    disks : tuple of Disk
        Where; empty if nothing does.
    """

    worker: int
    blocks: int
    cached: int
    disks: tuple[runtime.Disk, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"the fit holds {format_bytes(self.blocks)} and takes up to {format_bytes(self.worker)} in each process"
        ]
        lines += [
            f"{format_bytes(self.on(disk))} of it lie in unnamed files below {disk.path} on {disk.host} "
            f"({disk.kind}, {format_bytes(disk.free)} free) until it ends"
            for disk in self.disks
        ]
        return "; ".join(lines)

    def on(self, disk: runtime.Disk) -> int:
        """Bytes on `disk`."""
        return self.cached * disk.processes // sum(each.processes for each in self.disks)


def fit(rows: int, dimension: int, n_clusters: int, client: Client | None) -> FitForecast:
    """What a fit on `rows` vectors will take: in the memory of the workers what fits there, the rest on their disks."""
    blocks = int(SAMPLES * (fit_bytes(rows, dimension) + note_bytes(rows, dimension, n_clusters)))
    engine = runtime.threads_each(client) * engine_bytes(dimension, n_clusters)
    memory = max(0, runtime.memory_to_keep(client) - reading_bytes(client) - engine)
    worker = min(memory, blocks) + reading_bytes(client, 4 * rows * dimension) + engine
    # Partitions come to the workers as these have time, so some may be full while others are not.
    spread = int(EVEN * memory * runtime.n_processes(client))
    cached = 0 if blocks <= memory else max(0, blocks - spread)
    disks = tuple(runtime.disks(client)) if cached else ()
    return FitForecast(worker + (runtime.BASE + runtime.COMPILING if client is not None else 0), blocks, cached, disks)


def check_fit(rows: int, dimension: int, n_clusters: int, sample_fraction: float, client: Client | None) -> FitForecast:
    """The forecast of a fit, told to the log; where its rows do not fit into memory, it tells where they will lie.

    Raises
    ------
    MemoryForecastError
        They do not fit onto the local disks either.
    """
    foreseen = fit(int(rows * sample_fraction), dimension, n_clusters, client)
    for disk in foreseen.disks:
        need = format_bytes(foreseen.on(disk))
        if foreseen.on(disk) > disk.free or disk.in_memory:
            raise MemoryForecastError(
                f"fitting {rows:,} rows of {dimension} dimensions needs {need} here, which "
                + (f"is memory ({disk.kind})" if disk.in_memory else f"has {format_bytes(disk.free)}"),
                where=f"{disk.path} on {disk.host}",
                expected="room on a disk for what the workers' memory cannot hold",
                remedy="give a --local-directory on a larger disk, more workers, a higher --memory-limit, or a "
                "--sample-fraction",
            )
    runtime.logger.info("%s", foreseen)
    return foreseen


def device_bytes(rows: int, dimension: int, n_clusters: int, batch: int, oversampling: float) -> int:
    """Bytes of a device on which cuML fits `rows` float32 vectors, `batch` of them compared at once.

    Rows, with a label, a norm and a distance for each; centroids, their sums and the candidates of k-means||; one tile
    of distances.

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
    """How many of `batch` rows cuML may compare at once on all workers that have rows, and how many it may have there.

    Parameters
    ----------
    rows, memory : mapping
        By worker: its rows, and the bytes of its device.

    Returns
    -------
    batch : int
    buffer : int
        0: all rows fit onto the devices. Otherwise rows stay in memory, and so many of them are sent at a time.

    Raises
    ------
    MemoryForecastError
        Not even few rows fit beside the centroids.
    ClusterError
        A worker has been lost since rows were loaded.
    """
    if lost := rows.keys() - memory.keys():
        raise ClusterError("a worker was lost", where=", ".join(sorted(lost)), remedy="run the command again")
    room = DEVICE_TILE * min(memory[worker] for worker in rows)
    batch = max(1, min(batch, int(room / (4 * n_clusters * max(1.0, oversampling)))))

    def need(count: int) -> int:
        return device_bytes(count, dimension, n_clusters, batch, oversampling)

    if all(need(count) <= DEVICE * memory[worker] for worker, count in rows.items()):
        return batch, 0
    # Of rows in memory the device has a label each, and two buffers, of which one is filled.
    spare = min(DEVICE * memory[worker] - need(0) - 4 * count for worker, count in rows.items())
    buffer = int(spare // (2 * (need(1) - need(0))))
    if buffer < 1:
        worker = min(rows, key=memory.__getitem__)
        _check_device(
            f"fitting {n_clusters:,} clusters of {dimension} dimensions by cuML",
            need(1) + 4 * rows[worker],
            memory[worker],
            worker,
            "use larger GPUs, fewer clusters, a --sample-fraction, or --engine native",
        )
    return batch, max(1, buffer)


def check_compare(rows: int, n_clusters: int, dimension: int, memory: int) -> None:
    """Make sure that partitions of `rows` rows can be compared with centroids on a device of `memory` bytes.

    Raises
    ------
    MemoryForecastError
        Not even a tile of them fits.
    """
    what = f"comparing rows of {dimension} dimensions with {n_clusters:,} centroids"
    _check_device(what, demand.nearest_bytes(rows, n_clusters, dimension), memory)


def _check_device(what: str, need: int, memory: int, where: str = "", remedy: str = REMEDY) -> None:
    have = int(DEVICE * memory)
    if need > have:
        raise MemoryForecastError(
            f"{what} takes {format_bytes(need)} of a device, which has {format_bytes(have)} for it",
            where=where,
            remedy=remedy,
        )


def device_room(memory: int, share: float, need: int) -> int:
    """Bytes of a device that rows may take which stay there: a `share` of its memory, as far as `need` leaves it.

    Examples
    --------
    >>> device_room(1000, 0.6, 100), device_room(1000, 0.6, 700), device_room(1000, 0.6, 900)
    (600, 100, 0)
    """
    return max(0, int(min(share * memory, DEVICE * memory - need)))


def assign_bytes(dimension: int, n_clusters: int, partition_bytes: int) -> int:
    """Bytes of one task that assigns a partition: its rows in a few copies, the centroids, one tile of scores.

    Rows of the one before may still be there, and are sorted to be written.
    """
    return (2 + COPIES) * partition_bytes + 8 * n_clusters * dimension + config.get_bytes("tile-bytes")


def dedup_bytes(rows: int, dimension: int) -> int:
    """Bytes of one task that compares the rows of a cluster: its vectors in `CLUSTER_COPIES` and one tile of scores."""
    return 4 * CLUSTER_COPIES * rows * dimension + config.get_bytes("tile-bytes")


def band_bytes(rows: int, dimension: int, probes: int = 0) -> int:
    """Bytes of rows that are kept to be compared with others: the vectors, their sketches as rows and columns, ids.

    Where each visits `probes` clusters, also what it visits.

    Examples
    --------
    >>> band_bytes(1, 384)
    2432
    """
    return rows * (6 * dimension + 128 + 16 * probes)


def check_bands(rows: int, dimension: int, where: str, client: Client | None, probes: int = 0) -> int:
    """How many rows each process may keep beside the bands of `rows` rows that its tasks are about.

    Raises
    ------
    MemoryForecastError
        Not even a task's own fit into its memory: two, and the copies that reading one takes. Or onto its device.
    ClusterError
        Two workers compute on one GPU.
    """
    for place in gpus.places(client) if not probes else ():  # rows that visit are compared on the cores
        if place:
            _check_device(f"comparing bands of {rows:,} rows", demand.pairs_bytes(rows, dimension), place.memory, where)
    each, have = band_bytes(rows, dimension, probes), runtime.memory_per_task(client)
    need = (2 + COPIES) * each
    if have is not None and need > have:
        raise MemoryForecastError(
            f"comparing rows takes {format_bytes(need)}, and a task has {format_bytes(have)}",
            where=where,
            remedy="give workers a higher --memory-limit or fewer --threads-per-worker",
        )
    spare = runtime.memory_to_keep(client) - runtime.threads_each(client) * need
    return max(0, spare // band_bytes(1, dimension, probes))


def search_bytes(
    band_rows: int, rows: int, room: int, dimension: int, client: Client | None, probes: int = 0, n_clusters: int = 0
) -> int:
    """Bytes of each process that compares `rows` rows in bands, and keeps `room` of them.

    Where each visits `probes` clusters, those are found by the means of all `n_clusters`. Of this process, beside what
    it has, if there is no cluster.
    """
    tasks = runtime.threads_each(client) * (2 + COPIES) * band_bytes(band_rows, dimension, probes)
    held = band_bytes(min(room, rows), dimension, probes)
    means = 4 * n_clusters * dimension
    searching = tasks + held + means
    if client is None:  # which finds the directions, before it compares
        return max(searching, directions_bytes(rows, dimension))
    return searching + runtime.BASE + runtime.COMPILING


def directions_bytes(rows: int, dimension: int) -> int:
    """Bytes in which the directions of sketches are found: the sample of `rows` rows, and its axes, in a few copies.

    Examples
    --------
    >>> directions_bytes(1_000_000, 384), directions_bytes(1_000_000, 12_288)
    (36962304, 343891968)
    """
    sample = min(rows, sample_rows(dimension))
    return dimension * (10 * sample + 28 * min(sample, DIRECTIONS[-1]))


def apply_bytes(decisions: int, group: int) -> int:
    """Bytes of one task that rewrites a file, and of all decisions, which take some.

    `group` bytes of rows are there as they lie in the file, as they are read, as far as they are kept, and as they are
    written.

    Examples
    --------
    >>> apply_bytes(48_000_000, 0)
    96000000
    """
    return 2 * decisions + (2 + COPIES) * group


def check_apply(decisions: int, where: str, client: Client | None) -> int | None:
    """Bytes that each task has beside the decisions; of these, each process needs all.

    Raises
    ------
    MemoryForecastError
    """
    task = runtime.memory_per_task(client)
    need, have = apply_bytes(decisions, 0), None if task is None else task * runtime.threads_each(client)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"the decisions on all rows take {format_bytes(need)} in each worker, which has {format_bytes(have)}",
            where=where,
            remedy="give workers a higher --memory-limit",
        )
    return None if have is None else (have - need) // runtime.threads_each(client)


def check_rewrite(group: int, have: int | None, where: str) -> None:
    """Refuse to rewrite `group` bytes of rows at a time in a task that has less memory than that takes.

    Raises
    ------
    MemoryForecastError
    """
    need = apply_bytes(0, group)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"rewriting {format_bytes(group)} of rows takes {format_bytes(need)}, and a task has {format_bytes(have)} "
            "beside the decisions",
            where=where,
            remedy="give workers a higher --memory-limit or fewer --threads-per-worker, or write the file with smaller "
            "row groups",
        )


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
