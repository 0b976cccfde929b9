"""All pairs of rows that are similar enough, whatever their clusters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans import config, forecast, manifest, runtime
from daskmeans.duplicates.bands import Loaded, Shelf, band_rows, bands_of, sample_vectors, vectors
from daskmeans.errors import MemoryForecastError, NotFoundError
from daskmeans.kernels.sketch import directions, find_pairs
from daskmeans.vectors.buckets import Buckets, lean_of
from daskmeans.vectors.files import reached, reading

# Directory of the pairs below that of the decisions.
PAIRS = "pairs"
# Rows of the sample on which directions are found, and how many of them a cluster gives at most.
SAMPLE_ROWS, SAMPLE_OF_CLUSTER = 8192, 64
# Tasks that the whole work makes, and pairs of a task: enough of them to balance, each worth its cost.
TASKS, LEAST_PAIRS, MOST_PAIRS = 256, 10**8, 4 * 10**9
# Bytes that the decisions take for each pair, on the client.
PAIR_BYTES = 160


@dataclass(frozen=True)
class Task:
    """A band that is compared with a run of others, or of itself and others."""

    row: int
    columns: range


class Edges(NamedTuple):
    """Pairs of rows that are similar, of copies only those with the first of their band."""

    rows: np.ndarray
    """int64: numbers of one row of each pair, of two rows that are decided that of the later one."""
    twins: np.ndarray
    """int64: numbers of the other."""
    scores: np.ndarray
    """float32"""
    copies: np.ndarray
    """bool"""

    @staticmethod
    def none() -> Edges:
        """No pairs."""
        return Edges(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.bool_)))


def find_edges(
    buckets: Buckets,
    against: Sequence[Buckets],
    floor: float,
    folder: UPath,
    inputs: dict[str, Any],
    client: Client | None,
) -> None:
    """Write all pairs whose score is at least `floor`, rounded to float32, to Parquet files in `folder`.

    Rows of `buckets` are compared with one another and with those `against` which they are held. A file has the columns
    ``id``, ``twin_id``, ``score``, ``exact``, and ``row`` and ``twin``, the numbers of the rows in the order of the
    clusters; the numbers of `against` follow those of `buckets`. The manifest of the pairs tells `floor` and `inputs`.
    """
    sources = [buckets, *against]
    rows = sum(each.rows for each in sources)
    most = band_rows(rows, buckets.dimension, config.get_bytes("bucket-bytes"))
    room = forecast.check_bands(most, buckets.dimension, str(buckets.path), client)
    firsts = accumulate((each.rows for each in sources), initial=0)
    bands = [band for i, (each, first) in enumerate(zip(sources, firsts, strict=False))
             for band in bands_of(each, most, i, first)]  # fmt: skip
    own = sum(band.source == 0 for band in bands)
    samples = [sample_vectors(each, SAMPLE_ROWS // len(sources), SAMPLE_OF_CLUSTER) for each in sources]
    P = directions(np.concatenate(samples), floor)
    # A task, so that it is made again if all workers that have it are lost.
    readers = [partial(vectors, lean_of(each)) for each in sources]
    shelf = delayed(Shelf, pure=False)(readers, bands, P, room, dask_key_name=runtime.key("dedup-shelf"))
    task, least = delayed(compare, pure=False), np.float32(floor)
    with manifest.step(folder, "pairs", {"floor": floor}, inputs, overwrite=True, client=client) as step:
        # Dask takes tasks that are ready in the order of their keys.
        tasks = [
            task(shelf, work, least, folder / f"part-{i:05d}.parquet",
                 dask_key_name=runtime.key(f"dedup-compare-{i:07d}"))
            for i, work in enumerate(tasks_of([band.rows for band in bands], own))
        ]  # fmt: skip
        step.facts["count"] = sum(runtime.compute(tasks, "compare", client))


def stored_floor(folder: UPath, inputs: dict[str, Any]) -> float | None:
    """The score from which `folder` holds all pairs of `inputs`, found by this version; None if it does not."""
    found = manifest.peek(folder)
    if found is None or not found["finished"] or manifest.changes(found, found["settings"], inputs):
        return None
    same_version = found["versions"]["daskmeans"] == manifest.versions()["daskmeans"]
    return float(found["settings"]["floor"]) if found["step"] == "pairs" and same_version else None


def tasks_of(rows: Sequence[int], own: int) -> list[Task]:
    """Tasks that compare each of the first `own` bands with itself, all before it, and all after those.

    `rows` are those of each band.
    """
    return tasks_between(rows, [(i, run) for i in range(own) for run in (range(i + 1), range(own, len(rows)))])


def tasks_between(rows: Sequence[int], beside: Sequence[tuple[int, range]]) -> list[Task]:
    """Tasks that compare bands with runs of others, `beside` them.

    They come in an order in which a process needs few bands at a time: those of one run after the other.
    """
    pairs = sum(rows[i] * rows[j] for i, run in beside for j in run)
    most = min(max(pairs // TASKS, LEAST_PAIRS), MOST_PAIRS)
    wide = max(1, most // max(1, *rows) ** 2)
    tasks = [Task(i, run[j : j + wide]) for i, run in beside for j in range(0, len(run), wide)]
    return sorted(tasks, key=lambda task: (task.columns.start, task.row))


def compare(shelf: Shelf, work: Task, floor: np.float32, file: UPath) -> int:
    """Write the pairs of a task to `file`, if there are any; returns their number."""
    one = shelf.get(work.row)
    others = map(shelf.get, work.columns)
    tables = (_table(one, other, edges) for other in others for edges in pairs_of(one, other, floor))
    count = 0
    with reached(file.parent.parent), contextlib.ExitStack() as opened:
        writer = None
        for table in filter(len, tables):  # as they are found: there may be more than fit into memory
            writer = writer or opened.enter_context(pq.ParquetWriter(file.path, table.schema, filesystem=file.fs))
            writer.write_table(table)
            count += len(table)
    return count


def pairs_of(one: Loaded, other: Loaded, floor: np.float32) -> Iterator[Edges]:
    """Pairs of the rows of two bands, or of one and itself, some at a time."""
    same = one.first == other.first
    copies = one.copies if same else np.empty((0, 2), np.int64)
    if not same and one.zero >= 0 and other.zero >= 0:
        copies = np.array([[one.zero, other.zero]])
    yield Edges(copies[:, 0], copies[:, 1], np.ones(len(copies), np.float32), np.ones(len(copies), bool))
    whole = slice(0, len(one.numbers)), slice(0, len(other.numbers))
    for found in find_pairs(one.sketches, other.sketches, floor, *whole, same=same):
        yield Edges(one.numbers[found.rows], other.numbers[found.columns], found.scores, found.copies)


def _table(one: Loaded, other: Loaded, edges: Edges) -> pa.Table:
    return pa.table(
        {
            "id": one.ids.take(pa.array(edges.rows - one.first)),
            "twin_id": other.ids.take(pa.array(edges.twins - other.first)),
            "score": edges.scores,
            "exact": edges.copies,
            "row": edges.rows,
            "twin": edges.twins,
        }
    )


def read_edges(folder: UPath, inputs: dict[str, Any], floor: float) -> Edges:
    """The pairs of `inputs` in `folder` whose score is at least `floor`.

    Raises
    ------
    NotFoundError
        The pairs, or some of them, are not there, or were found in other clusters.
    MemoryForecastError
        There are more than the memory of this process holds.
    """
    parts = [[none] for none in Edges.none()]
    stored = stored_floor(folder, inputs)
    count = taken = 0
    for file in sorted(folder.glob("part-*.parquet"), key=lambda file: file.name):
        with reading(file):
            table = pq.read_table(file.path, filesystem=file.fs, columns=["row", "twin", "score", "exact"])
        count += len(table)
        table = table.filter(pc.greater_equal(table["score"], pa.scalar(np.float32(floor))))
        taken += len(table)
        _check_memory(taken)
        for part, column in zip(parts, table.columns, strict=True):
            part.append(column.to_numpy())
    if stored is None or stored > floor or count != manifest.read(folder, "pairs")["count"]:
        raise NotFoundError(
            f"the pairs of these clusters from {floor} on are not here, or no longer",
            where=str(folder),
            remedy="run `daskmeans dedup` again",
        )
    return Edges(*map(np.concatenate, parts))


def _check_memory(pairs: int) -> None:
    need, have = PAIR_BYTES * pairs, runtime.memory_to_keep(None)
    if need > have:
        raise MemoryForecastError(
            f"deciding on {pairs:,} pairs and more needs {format_bytes(need)}, and this process has "
            f"{format_bytes(have)}",
            where="--threshold",
            remedy="choose a higher threshold, or --search clusters",
        )
