"""The pairs of rows that are similar enough: found, stored, and read again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans import config, manifest, progress, provenance, runtime
from daskmeans.duplicates.bands import Loaded, Shelf, Visits, all_pairs, write_array
from daskmeans.duplicates.plan import Task, make_plan
from daskmeans.duplicates.recall import Gauge
from daskmeans.duplicates.settings import Settings
from daskmeans.errors import MemoryForecastError, NotFoundError
from daskmeans.kernels.sketch import Pairs, Sketches, find_among
from daskmeans.provenance import CHECKED
from daskmeans.vectors import npy
from daskmeans.vectors.buckets import Buckets
from daskmeans.vectors.files import reached, reading

# Directory of the pairs below that of the decisions.
PAIRS = "pairs"
# Its file with the scores of the rows on which recall is measured.
GAUGE = "gauge.npy"
# Pairs that are read at a time.
BATCH_PAIRS = 1 << 20
# Bytes that the decisions take for each pair, on the client.
PAIR_BYTES = 160


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
    sources: Sequence[Buckets],
    settings: Settings,
    folder: UPath,
    inputs: dict[str, Any],
    client: Client | None,
    staying: Sequence[np.ndarray | None] = (),
) -> None:
    """Write the pairs whose score is at least the floor, rounded to float32, to Parquet files in `folder`.

    Rows of the first of `sources` are compared with one another and with those of the others, of which `staying` says
    which rows count. A file has the columns ``id``, ``twin_id``, ``score``, ``exact``, and ``row`` and ``twin``, the
    numbers of the rows in the order of the clusters, those of the first source first. Of rows that are the same, one
    stands for all: it has the pairs with other rows, and each of the others a pair with it (or with one that has). The
    manifest tells how they were found, and `inputs`. Of a search with probes, ``gauge.npy`` has what
    :meth:`Gauge.best` has found.
    """
    with manifest.step(folder, "pairs", how_found(settings), inputs, overwrite=True, client=client) as step:
        plan = make_plan(sources, settings, folder, client, staying)
        # A task, so that it is made again if all workers that have it are lost; dask does not look through arguments.
        shelf = delayed(partial(Shelf, plan.readers, plan.bands, plan.P, plan.room, plan.near), pure=False)(
            dask_key_name=runtime.key("dedup-shelf")
        )
        gauge: Any = plan.gauge
        if gauge is not None:
            gauge = runtime.share(gauge, client) if client else delayed(gauge, pure=False, traverse=False)
        task, least = delayed(compare, pure=False), np.float32(settings.floor)
        # Dask takes tasks that are ready in the order of their keys.
        keys = [runtime.key(f"dedup-compare-{i:07d}") for i in range(len(plan.tasks))]
        tasks = [
            task(shelf, work, least, folder / f"part-{i:05d}.parquet", gauge, dask_key_name=key)
            for i, (work, key) in enumerate(zip(plan.tasks, keys, strict=True))
        ]
        pace = progress.Pace(dict(zip(keys, plan.pairs, strict=True)), "pairs")
        counts, scores = zip(*runtime.compute(tasks, "compare", client, pace), strict=True)
        if plan.gauge:
            write_array(folder / GAUGE, np.max([each for each in scores if each is not None], axis=0))
            step.facts |= manifest.checksums(folder, GAUGE)
        for file in plan.near or ():
            manifest.remove(file)
        step.facts["count"] = sum(counts)


def how_found(settings: Settings) -> dict[str, Any]:
    """Settings of the step that finds pairs."""
    found: dict[str, Any] = {name: getattr(settings, name) for name in ("search", "probes", "floor")}
    if settings.search == "clusters":
        found |= {"random_state": settings.random_state, "recall_sample": config.get("recall-sample")}
    return found


def stored_floor(folder: UPath, inputs: dict[str, Any], settings: Settings) -> float | None:
    """The score from which `folder` holds the pairs of `inputs` that a search with `settings` finds.

    None if it does not hold them from their floor on, or another version has found them.
    """
    found = manifest.peek(folder)
    if found is None or not found["finished"] or found["step"] != "pairs":
        return None
    floor = found["settings"].get("floor", np.inf)
    same = not manifest.changes(found, how_found(settings) | {"floor": floor}, inputs)
    same_version = found["versions"]["daskmeans"] == manifest.versions()["daskmeans"]
    return float(floor) if same and same_version and floor <= settings.floor else None


def compare(
    shelf: Shelf, work: Task, floor: np.float32, file: UPath, gauge: Gauge | None = None
) -> tuple[int, np.ndarray | None]:
    """Write the pairs of a task to `file`, if there are any.

    Returns their number, and what `gauge` finds in the band of the task, if it is one that is compared with itself.
    """
    one = shelf.get(work.row)
    others = map(shelf.get, work.columns)
    tables = (_table(one, other, edges) for other in others for edges in pairs_of(one, other, floor))
    count = 0
    with reached(file.parent.parent), contextlib.ExitStack() as opened:
        writer = None
        for table in filter(len, tables):  # as they are found: there may be more than fit into memory
            writer = writer or opened.enter_context(provenance.writer(file, table.schema, "pairs"))
            writer.write_table(table)
            count += len(table)
    return count, gauge.best(one, floor) if gauge and work.row in work.columns else None


def pairs_of(one: Loaded, other: Loaded, floor: np.float32) -> Iterator[Edges]:
    """Pairs of the rows of two bands, or of one and itself, some at a time."""
    same = one.first == other.first
    copies = one.copies if same else np.empty((0, 2), np.int64)
    if not same and one.zero >= 0 and other.zero >= 0:
        copies = np.array([[one.zero, other.zero]])
    yield Edges(copies[:, 0], copies[:, 1], np.ones(len(copies), np.float32), np.ones(len(copies), bool))
    for i, j, found in _found(one, other, floor, same):
        yield Edges(one.numbers[i], other.numbers[j], found.scores, found.copies)


def _found(one: Loaded, other: Loaded, floor: np.float32, same: bool) -> Iterator[tuple[np.ndarray, np.ndarray, Pairs]]:
    """Pairs of distinct rows, as places in `one` and in `other`; of rows that visit clusters, those that meet."""
    if one.visits is None or other.visits is None:
        for found in all_pairs(one.sketches, other.sketches, floor, same=same):
            yield found.rows, found.columns, found
        return
    mine, theirs = cast(Sketches, one.sketches), cast(Sketches, other.sketches)  # rows that visit are no device's
    for found in find_among(mine, theirs, floor, *_meetings(one.visits, other.visits)):
        i, j = found.rows, found.columns
        if same:  # rows meet themselves, and two that visit each other meet twice
            new = (i > j) | ((i < j) & ~_visited(other.visits, j, one.visits, i))
            i, j, found = np.maximum(i, j)[new], np.minimum(i, j)[new], Pairs(*(part[new] for part in found))
        yield i, j, found
    if not same:
        for found in find_among(theirs, mine, floor, *_meetings(other.visits, one.visits)):
            j, i = found.rows, found.columns
            new = ~_visited(one.visits, i, other.visits, j)
            yield i[new], j[new], Pairs(*(part[new] for part in found))


def _meetings(guests: Visits, hosts: Visits) -> tuple[np.ndarray, np.ndarray]:
    """Which of `guests` visit which of `hosts`: rows, and for each cluster a job, see :func:`find_among`."""
    clusters = np.unique(hosts.homes)
    ends = [np.searchsorted(of, clusters, side) for of in (guests.clusters, hosts.homes) for side in ("left", "right")]
    jobs = np.stack(ends, axis=1)
    return guests.rows, jobs[jobs[:, 0] < jobs[:, 1]]


def _visited(guests: Visits, rows: np.ndarray, hosts: Visits, others: np.ndarray) -> np.ndarray:
    """Whether each of some rows visits the cluster of another."""
    return (guests.near[rows] == hosts.homes[others][:, None]).any(axis=1)  # type: ignore[no-any-return]


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


def read_edges(folder: UPath, inputs: dict[str, Any], settings: Settings) -> Edges:
    """The pairs of `inputs` in `folder` that a search with `settings` has found, from their floor on.

    Raises
    ------
    NotFoundError
        The pairs, or some of them, are not there, or were found in other clusters.
    MemoryForecastError
        There are more than the memory of this process holds.
    """
    stored = stored_floor(folder, inputs, settings)
    parts = [[none] for none in Edges.none()]
    count = taken = 0
    columns = ["row", "twin", "score", "exact"]
    for file in sorted(folder.glob("part-*.parquet"), key=lambda file: file.name):
        with reading(file), pq.ParquetFile(file.path, filesystem=file.fs, **CHECKED) as found:
            for batch in found.iter_batches(BATCH_PAIRS, columns=columns):
                count += len(batch)
                near = batch.filter(pc.greater_equal(batch["score"], pa.scalar(np.float32(settings.floor))))
                taken += len(near)
                check_pairs(taken, "choose a higher threshold or floor")
                for part, column in zip(parts, near.columns, strict=True):
                    part.append(column.to_numpy(zero_copy_only=False))
    if stored is None or count != manifest.read(folder, "pairs")["count"]:
        raise NotFoundError(
            f"the pairs of these clusters from {settings.floor} on are not here, or no longer",
            where=str(folder),
            remedy="run `daskmeans dedup` again",
        )
    return Edges(*map(np.concatenate, parts))


def read_gauge(folder: UPath) -> np.ndarray:
    """What :meth:`Gauge.best` has found when the pairs in `folder` were searched."""
    return npy.load(manifest.read_checked(folder, GAUGE, manifest.read(folder, "pairs")))


def check_pairs(pairs: int, remedy: str) -> None:
    """Refuse to decide from more pairs than the memory of this process holds."""
    need, have = PAIR_BYTES * pairs, runtime.memory_to_keep(None)
    if need > have:
        raise MemoryForecastError(
            f"deciding on {pairs:,} pairs and more needs {format_bytes(need)}, and this process has "
            f"{format_bytes(have)}",
            where="--threshold",
            remedy=remedy,
        )
