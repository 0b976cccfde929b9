"""Which rows a search for pairs compares with which, and how long that will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice, zip_longest
from typing import NamedTuple

import numpy as np
from dask import delayed
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.buckets.buckets import Buckets, strip_parts
from daskmeans.kernels.all_pairs import find_directions, make_sketches, n_sample_rows
from daskmeans.kernels.jit import warm_seconds
from daskmeans.pairs.memory import check_row_blocks, search_bytes
from daskmeans.pairs.probes import survey_probes
from daskmeans.pairs.recall import RecallSample
from daskmeans.pairs.row_blocks import (
    BlockReader,
    RowBlock,
    cut_row_blocks,
    load_row_block,
    read_unit_vectors,
    rows_per_block,
    sample_vectors,
)
from daskmeans.pairs.settings import PairSettings
from daskmeans.runtime import executor, gpus, progress
from daskmeans.runtime.client import logger, n_processes, n_threads
from daskmeans.tuning import DEFAULT, Tuning

# Rows of the sample on which directions are found that a cluster gives at most.
SAMPLE_OF_CLUSTER = 64
# Tasks that the whole work makes, and pairs of a task at most: enough of them to balance.
TASKS, MOST_PAIRS = 256, 4 * 10**9


@dataclass(frozen=True)
class Task:
    """A block that is compared with others, or with itself and others."""

    row: int
    columns: Sequence[int]


class Plan(NamedTuple):
    """What a search for pairs does."""

    readers: list[BlockReader]
    blocks: list[RowBlock]
    P: np.ndarray
    """Directions of the sketches."""
    room: int
    """Rows that each process may keep."""
    tasks: list[Task]
    pairs: list[int]
    """How many pairs each task compares; of a search with probes, about."""
    near: list[UPath] | None = None
    """For each block, the file of what its rows visit, see `ProbeLists`; None if rows are compared with all."""
    recall_sample: RecallSample | None = None
    """Rows that are compared with all, to measure what the search misses."""


def make_plan(
    sources: Sequence[Buckets],
    settings: PairSettings,
    folder: UPath,
    client: Client | None,
    staying: Sequence[np.ndarray | None] = (),
    tuning: Tuning = DEFAULT,
) -> Plan:
    """What a search with `settings` does; how long an exact one takes is told. Files are made in `folder`.

    `staying` says of each source after the first which of its rows are compared; default: all.
    """
    if settings.search == "clusters":
        return _plan_probes(sources[0], settings, folder, client, tuning)
    blocks, room = _cut_row_blocks(sources, client, tuning, staying=staying)
    trial = _run_trial(sources, blocks, room, settings.floor, client)
    logger.info(
        "search exact: all %s pairs of rows are compared, in about %s and with up to %s in each process; --search "
        "clusters compares rows inside their cluster only",
        progress.format_number(n_pairs(sources)),
        progress.format_duration(trial.seconds),
        format_bytes(trial.nbytes),
    )
    return Plan(_make_readers(sources), blocks, trial.P, room, *_make_tasks(blocks, tuning))


def n_pairs(sources: Sequence[Buckets]) -> int:
    """Pairs of rows of which one at least is of the first of `sources`."""
    own = sources[0].rows
    return own * (own - 1) // 2 + own * sum(each.rows for each in sources[1:])


class SearchTrial(NamedTuple):
    """What a trial on a sample of the rows has found for an exact search."""

    P: np.ndarray
    """Directions of the sketches."""
    pair: float
    """Seconds for a pair of rows, with one thread."""
    seconds: float
    """About how long the search will take."""
    nbytes: int
    """What each process will take, at most."""


def try_exact(sources: Sequence[Buckets], floor: float, client: Client | None, tuning: Tuning = DEFAULT) -> SearchTrial:
    """A trial of an exact search, which takes a moment."""
    return _run_trial(sources, *_cut_row_blocks(sources, client, tuning), floor, client)


def _run_trial(
    sources: Sequence[Buckets], blocks: Sequence[RowBlock], room: int, floor: float, client: Client | None
) -> SearchTrial:
    sample = _sample_sources(sources)
    P = find_directions(sample, floor)
    pace = delayed(partial(_time_sample, _make_readers(sources)[0], blocks[0], P, floor), pure=False)
    pair, row = executor.compute([pace(executor.broadcast(sample, client))], client=client)[0]
    rows, processes = sum(each.rows for each in sources), n_processes(client)
    # What does not fit into memory is read again for about every task.
    loads = processes * rows if rows <= room else rows * max(1, n_pairs(sources) / MOST_PAIRS / len(blocks))
    seconds = n_pairs(sources) * pair / gpus.n_computing(client) + loads * row / n_threads(client)
    return SearchTrial(P, pair, seconds, search_bytes(blocks[0].rows, rows, room, P.shape[0], client))


def _make_tasks(blocks: Sequence[RowBlock], tuning: Tuning) -> tuple[list[Task], list[int]]:
    """Tasks that compare all blocks of the first source with one another and with the others; and the pairs of each."""
    rows, own = [block.rows for block in blocks], sum(block.source == 0 for block in blocks)
    tasks = make_self_join_tasks(rows, own, tuning.task_pairs)
    return tasks, [sum(rows[t.row] * rows[j] // (1 + (j == t.row)) for j in t.columns) for t in tasks]


def _plan_probes(
    buckets: Buckets, settings: PairSettings, folder: UPath, client: Client | None, tuning: Tuning
) -> Plan:
    """A search that compares each row with those of its own cluster and of the nearest others."""
    (blocks, room), (reader,) = _cut_row_blocks([buckets], client, tuning, settings.probes), _make_readers([buckets])
    wanted = min(buckets.rows, config.get("recall-sample"))
    numbers = np.sort(np.random.default_rng(settings.random_state % 2**64).choice(buckets.rows, wanted, replace=False))
    found = survey_probes(reader, blocks, numbers, settings.probes, folder, client)
    nbytes = search_bytes(
        blocks[0].rows, buckets.rows, room, buckets.dimension, client, settings.probes, buckets.n_clusters
    )
    logger.info(
        "search clusters, %d probes: about %s pairs of rows are compared, with up to %s in each process",
        settings.probes,
        progress.format_number(found.pairs),
        format_bytes(nbytes),
    )
    P = find_directions(_sample_sources([buckets]), settings.floor)
    tasks, pairs = _make_tasks(blocks, tuning)
    share = found.pairs / max(1, sum(pairs))
    recall_sample = RecallSample(numbers, make_sketches(found.rows, P), found.near)
    return Plan([reader], blocks, P, room, tasks, [round(share * each) for each in pairs], found.files, recall_sample)


def _time_sample(
    reader: BlockReader, block: RowBlock, P: np.ndarray, floor: float, sample: np.ndarray
) -> tuple[float, float]:
    """Seconds for a pair of rows of a sample, and for a row that is read, with one thread."""
    half = len(sample) // 2  # of the clusters: pairs that are as far apart as most are
    backend = gpus.backend()
    few, one, other = (backend.comparable(rows, P) for rows in (sample[: min(half, 8)], sample[:half], sample[half:]))
    comparing = warm_seconds(lambda rows: list(backend.find_pairs(rows, other, np.float32(floor))), few, one)
    cluster, start, _ = block.place[0]
    head = replace(block, rows=1, place=[(cluster, start, start + 1)])
    loading = warm_seconds(lambda rows: load_row_block(reader, rows, P), head, block)
    return comparing / max(1, half * (len(sample) - half)), loading / block.rows


def _cut_row_blocks(
    sources: Sequence[Buckets],
    client: Client | None,
    tuning: Tuning,
    probes: int = 0,
    staying: Sequence[np.ndarray | None] = (),
) -> tuple[list[RowBlock], int]:
    """All rows in blocks, and how many rows each process may keep, with what they visit."""
    dimension = sources[0].dimension
    rows = sum(each.rows for each in sources)
    most = rows_per_block(rows, dimension, config.get_bytes("bucket-bytes"), tuning.rows_per_block)
    room = check_row_blocks(most, dimension, str(sources[0].path), client, probes)
    firsts, masks = accumulate((each.rows for each in sources), initial=0), [None, *staying]
    blocks = [
        cut_row_blocks(each, most, i, first, mask)
        for i, (each, first, mask) in enumerate(zip_longest(sources, islice(firsts, len(sources)), masks))
    ]
    return [block for mine in blocks for block in mine], room


def _make_readers(sources: Sequence[Buckets]) -> list[BlockReader]:
    return [partial(read_unit_vectors, strip_parts(each)) for each in sources]


def _sample_sources(sources: Sequence[Buckets]) -> np.ndarray:
    wanted = n_sample_rows(sources[0].dimension) // len(sources)
    return np.concatenate([sample_vectors(each, wanted, SAMPLE_OF_CLUSTER) for each in sources])


def make_self_join_tasks(rows: Sequence[int], own: int, least: int = DEFAULT.task_pairs) -> list[Task]:
    """Tasks that compare each of the first `own` blocks with itself, all before it, and all after those.

    `rows` are those of each block.
    """
    beside = [(i, run) for i in range(own) for run in (range(i + 1), range(own, len(rows)))]
    return make_block_tasks(rows, beside, least)


def make_block_tasks(
    rows: Sequence[int], beside: Sequence[tuple[int, range]], least: int = DEFAULT.task_pairs
) -> list[Task]:
    """Tasks that compare blocks with runs of others, `beside` them; `least` pairs or more in each.

    They come in an order in which a process needs few blocks at a time: those of one run after the other.
    """
    pairs = sum(rows[i] * rows[j] for i, run in beside for j in run)
    most = min(max(pairs // TASKS, least), MOST_PAIRS)
    wide = max(1, most // max(1, *rows) ** 2)
    tasks = [Task(i, run[j : j + wide]) for i, run in beside for j in range(0, len(run), wide)]
    return sorted(tasks, key=lambda task: (task.columns[0], task.row))
