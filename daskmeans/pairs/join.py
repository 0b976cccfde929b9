"""The join: compare row blocks in tasks, and write the pairs that are similar enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import Buckets
from daskmeans.kernels.all_pairs import Pairs, Sketches, find_pairs_among
from daskmeans.pairs.plan import Task, make_plan
from daskmeans.pairs.recall import RecallSample
from daskmeans.pairs.row_blocks import LoadedBlock, ProbeLists, RowBlockCache, write_array
from daskmeans.pairs.settings import PairSettings
from daskmeans.pairs.store import RECALL_SCORES, SimilarPairs, StoredPairs, pairs_settings
from daskmeans.runtime import executor, progress
from daskmeans.runtime.client import task_key
from daskmeans.storage import manifest, signature
from daskmeans.storage.step import open_step
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.files import translate_write_errors


def find_similar_pairs(
    sources: Sequence[Buckets],
    settings: PairSettings,
    folder: UPath,
    inputs: dict[str, Any],
    client: Client | None,
    staying: Sequence[np.ndarray | None] = (),
    tuning: Tuning = DEFAULT,
) -> StoredPairs:
    """Find the pairs that score at least the floor, rounded to float32, and write them to Parquet files in `folder`.

    Rows of the first of `sources` are compared with one another and with those of the other sources; `staying` says
    which rows of the latter count. A file has the columns ``id``, ``twin_id``, ``score``, ``exact``, and ``row`` and
    ``twin``: the numbers of the two rows in the order of the clusters, those of the first source first. Of identical
    rows, one represents all: it has the pairs with other rows, and each of the others has a pair with it (or with a
    copy that does). The manifest has the settings of the search, and `inputs`. For a search with probes, ``gauge.npy``
    has the results of :meth:`RecallSample.best_scores`.
    """
    with open_step(folder, "pairs", pairs_settings(settings), inputs, overwrite=True, client=client) as step:
        plan = make_plan(sources, settings, folder, client, staying, tuning)
        # A task, so that it is made again if all workers that have it are lost; dask does not traverse a partial.
        cache = delayed(partial(RowBlockCache, plan.readers, plan.blocks, plan.P, plan.room, plan.near), pure=False)(
            dask_key_name=task_key("dedup-shelf")
        )
        recall_sample: Any = plan.recall_sample
        if recall_sample is not None:
            recall_sample = (
                executor.broadcast(recall_sample, client)
                if client
                else delayed(recall_sample, pure=False, traverse=False)
            )
        task, least = delayed(compare_row_blocks, pure=False), np.float32(settings.floor)
        # Dask runs tasks that are ready in the order of their keys.
        keys = [task_key(f"dedup-compare-{i:07d}") for i in range(len(plan.tasks))]
        tasks = [
            task(cache, work, least, folder / f"part-{i:05d}", recall_sample, dask_key_name=key)
            for i, (work, key) in enumerate(zip(plan.tasks, keys, strict=True))
        ]
        pace = progress.ProgressEstimate(dict(zip(keys, plan.pairs, strict=True)), "pairs")
        counts, scores = zip(*executor.compute(tasks, "compare", client, pace), strict=True)
        if plan.recall_sample:
            write_array(folder / RECALL_SCORES, np.max([each for each in scores if each is not None], axis=0))
            step.facts |= manifest.file_checksums(folder, RECALL_SCORES)
        for file in plan.near or ():
            manifest.remove_tree(file)
        step.facts["count"] = sum(counts)
    return StoredPairs(folder, settings.floor, manifest.read_manifest(folder, "pairs"))


def compare_row_blocks(
    cache: RowBlockCache, work: Task, floor: np.float32, file: UPath, recall_sample: RecallSample | None = None
) -> tuple[int, np.ndarray | None]:
    """Write the pairs of a task to `file`, if there are any.

    Returns their number, and the best scores of `recall_sample` in the block if it is compared with itself, else None.
    """
    one = cache.get(work.row)
    others = map(cache.get, work.columns)
    tables = (
        _to_pairs_table(one, other, similar) for other in others for similar in find_block_pairs(one, other, floor)
    )
    count = 0
    with translate_write_errors(file.parent.parent), contextlib.ExitStack() as opened:
        writer = None
        for table in filter(len, tables):  # as they are found: there may be more than fit into memory
            writer = writer or opened.enter_context(signature.open_writer(file, table.schema, "pairs"))
            writer.write_table(table)
            count += len(table)
    return count, recall_sample.best_scores(one, floor) if recall_sample and work.row in work.columns else None


def find_block_pairs(one: LoadedBlock, other: LoadedBlock, floor: np.float32) -> Iterator[SimilarPairs]:
    """Yield the similar pairs of two blocks, or of a block and itself, in batches."""
    same = one.first == other.first
    copies = one.copies if same else np.empty((0, 2), np.int64)
    if not same and one.zero >= 0 and other.zero >= 0:
        copies = np.array([[one.zero, other.zero]])
    yield SimilarPairs(copies[:, 0], copies[:, 1], np.ones(len(copies), np.float32), np.ones(len(copies), bool))
    for i, j, found in _find_distinct_pairs(one, other, floor, same):
        yield SimilarPairs(one.numbers[i], other.numbers[j], found.scores, found.copies)


def _find_distinct_pairs(
    one: LoadedBlock, other: LoadedBlock, floor: np.float32, same: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, Pairs]]:
    """Yield pairs of distinct rows, as places in `one` and in `other`; with probe lists, only of rows that meet."""
    if one.probe_lists is None or other.probe_lists is None:
        for found in one.backend.find_pairs(one.sketches, other.sketches, floor, same=same):
            yield found.rows, found.columns, found
        return
    mine, theirs = cast(Sketches, one.sketches), cast(Sketches, other.sketches)  # probes are compared on the CPU
    for found in find_pairs_among(mine, theirs, floor, *_match_probes(one.probe_lists, other.probe_lists)):
        i, j = found.rows, found.columns
        if same:  # rows meet themselves, and two rows that probe each other's cluster meet twice
            new = (i > j) | ((i < j) & ~_is_probing(other.probe_lists, j, one.probe_lists, i))
            i, j, found = np.maximum(i, j)[new], np.minimum(i, j)[new], Pairs(*(part[new] for part in found))
        yield i, j, found
    if not same:
        for found in find_pairs_among(theirs, mine, floor, *_match_probes(other.probe_lists, one.probe_lists)):
            j, i = found.rows, found.columns
            new = ~_is_probing(one.probe_lists, i, other.probe_lists, j)
            yield i[new], j[new], Pairs(*(part[new] for part in found))


def _match_probes(guests: ProbeLists, hosts: ProbeLists) -> tuple[np.ndarray, np.ndarray]:
    """Which of `guests` probe clusters of `hosts`: rows, and a job for each cluster, see :func:`find_pairs_among`."""
    clusters = np.unique(hosts.homes)
    ends = [np.searchsorted(of, clusters, side) for of in (guests.clusters, hosts.homes) for side in ("left", "right")]
    jobs = np.stack(ends, axis=1)
    return guests.rows, jobs[jobs[:, 0] < jobs[:, 1]]


def _is_probing(guests: ProbeLists, rows: np.ndarray, hosts: ProbeLists, others: np.ndarray) -> np.ndarray:
    """Whether each of `rows` probes the cluster of the corresponding row in `others`."""
    return (guests.near[rows] == hosts.homes[others][:, None]).any(axis=1)  # type: ignore[no-any-return]


def _to_pairs_table(one: LoadedBlock, other: LoadedBlock, similar: SimilarPairs) -> pa.Table:
    return pa.table(
        {
            "id": one.ids.take(pa.array(similar.rows - one.first)),
            "twin_id": other.ids.take(pa.array(similar.neighbors - other.first)),
            "score": similar.scores,
            "exact": similar.copies,
            "row": similar.rows,
            "twin": similar.neighbors,
        }
    )
