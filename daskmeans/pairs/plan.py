"""Plan a search for pairs: which row blocks each task compares, and a forecast of time and memory."""

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

# Most rows of one cluster in the sample on which directions are found.
SAMPLE_OF_CLUSTER = 64
# Number of tasks to aim at, enough to balance the load; and most pairs of a task.
TASKS, MOST_PAIRS = 256, 4 * 10**9


@dataclass(frozen=True)
class Task:
    """A row block, and the blocks that it is compared with, by number; it may be among these itself."""

    row: int
    columns: Sequence[int]


class Plan(NamedTuple):
    """Everything that a search for pairs needs, and its tasks."""

    readers: list[BlockReader]
    blocks: list[RowBlock]
    P: np.ndarray
    """Directions of the sketches."""
    room: int
    """How many rows each process may cache."""
    tasks: list[Task]
    pairs: list[int]
    """How many pairs each task compares; an estimate for a search with probes."""
    near: list[UPath] | None = None
    """For each block, the file with its `ProbeLists.near`; None if rows are compared with all."""
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
    """Plan a search with `settings`, and log a forecast. Probe lists are written to files in `folder`.

    `staying` says for each source after the first which of its rows are compared; default: all.
    """
    if settings.search == "clusters":
        return _plan_probes(sources[0], settings, folder, client, tuning)
    blocks, room = _cut_row_blocks(sources, client, tuning, staying=staying)
    trial = _run_trial(sources, blocks, room, settings.floor, client)
    logger.info(
        "search exact: all %s pairs of rows are compared, in about %s and with up to %s of memory in each process; "
        "--search clusters compares rows only inside their cluster",
        progress.format_number(n_pairs(sources)),
        progress.format_duration(trial.seconds),
        format_bytes(trial.nbytes),
    )
    return Plan(_make_readers(sources), blocks, trial.P, room, *_make_tasks(blocks, tuning))


def n_pairs(sources: Sequence[Buckets]) -> int:
    """Number of pairs of rows, at least one of which is in the first of `sources`."""
    own = sources[0].rows
    return own * (own - 1) // 2 + own * sum(each.rows for each in sources[1:])


class SearchTrial(NamedTuple):
    """Forecast of an exact search, from a trial on a sample of the rows."""

    P: np.ndarray
    """Directions of the sketches."""
    pair: float
    """Seconds per pair of rows, with one thread."""
    seconds: float
    """Estimated duration of the search."""
    nbytes: int
    """Most bytes that each process will take."""


def try_exact(sources: Sequence[Buckets], floor: float, client: Client | None, tuning: Tuning = DEFAULT) -> SearchTrial:
    """Run a short trial of an exact search."""
    return _run_trial(sources, *_cut_row_blocks(sources, client, tuning), floor, client)


def _run_trial(
    sources: Sequence[Buckets], blocks: Sequence[RowBlock], room: int, floor: float, client: Client | None
) -> SearchTrial:
    sample = _sample_sources(sources)
    P = find_directions(sample, floor)
    pace = delayed(partial(_time_sample, _make_readers(sources)[0], blocks[0], P, floor), pure=False)
    pair, row = executor.compute([pace(executor.broadcast(sample, client))], client=client)[0]
    rows, processes = sum(each.rows for each in sources), n_processes(client)
    # Rows that do not fit into memory are read again for about every task.
    loads = processes * rows if rows <= room else rows * max(1, n_pairs(sources) / MOST_PAIRS / len(blocks))
    seconds = n_pairs(sources) * pair / gpus.n_computing(client) + loads * row / n_threads(client)
    return SearchTrial(P, pair, seconds, search_bytes(blocks[0].rows, rows, room, P.shape[0], client))


def _make_tasks(blocks: Sequence[RowBlock], tuning: Tuning) -> tuple[list[Task], list[int]]:
    """Tasks that compare all blocks of the first source with one another and with the others; and their pair counts."""
    rows, own = [block.rows for block in blocks], sum(block.source == 0 for block in blocks)
    tasks = make_self_join_tasks(rows, own, tuning.task_pairs)
    return tasks, [sum(rows[t.row] * rows[j] // (1 + (j == t.row)) for j in t.columns) for t in tasks]


def _plan_probes(
    buckets: Buckets, settings: PairSettings, folder: UPath, client: Client | None, tuning: Tuning
) -> Plan:
    """Plan a search that compares each row with those of its own cluster and of the nearest others."""
    (blocks, room), (reader,) = _cut_row_blocks([buckets], client, tuning, settings.probes), _make_readers([buckets])
    wanted = min(buckets.rows, config.get("recall-sample"))
    numbers = np.sort(np.random.default_rng(settings.random_state % 2**64).choice(buckets.rows, wanted, replace=False))
    found = survey_probes(reader, blocks, numbers, settings.probes, folder, client)
    nbytes = search_bytes(
        blocks[0].rows, buckets.rows, room, buckets.dimension, client, settings.probes, buckets.n_clusters
    )
    logger.info(
        "search clusters, %d probes: about %s pairs of rows are compared, with up to %s of memory in each process",
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
    """Seconds to compare a pair of rows of a sample, and to load a row, with one thread."""
    half = len(sample) // 2  # halves hold different clusters, so their pairs are as far apart as most pairs are
    backend = gpus.backend()
    few, one, other = (
        backend.make_comparable(rows, P) for rows in (sample[: min(half, 8)], sample[:half], sample[half:])
    )
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
    """Cut all rows into blocks; also return how many rows, with their probe lists, each process may cache."""
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
    """Tasks that compare each of the first `own` blocks with itself, with all before it, and with all after the `own`.

    `rows` has the number of rows of each block.
    """
    beside = [(i, run) for i in range(own) for run in (range(i + 1), range(own, len(rows)))]
    return make_block_tasks(rows, beside, least)


def make_block_tasks(
    rows: Sequence[int], beside: Sequence[tuple[int, range]], least: int = DEFAULT.task_pairs
) -> list[Task]:
    """Tasks that compare blocks with runs of other blocks, as `beside` says; about `least` pairs or more in each.

    The tasks are sorted so that a process needs few blocks at a time.
    """
    pairs = sum(rows[i] * rows[j] for i, run in beside for j in run)
    most = min(max(pairs // TASKS, least), MOST_PAIRS)
    wide = max(1, most // max(1, *rows) ** 2)
    tasks = [Task(i, run[j : j + wide]) for i, run in beside for j in range(0, len(run), wide)]
    return sorted(tasks, key=lambda task: (task.columns[0], task.row))
