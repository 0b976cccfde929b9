"""The step `leak`: find rows of a test set that have a near-duplicate in a training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.duplicates.leaks import LEAKS_FILE
from daskmeans.duplicates.settings import check_share, round_to_float32
from daskmeans.errors import UsageError
from daskmeans.kernels.all_pairs import find_directions, n_sample_rows
from daskmeans.kernels.norms import normalize_rows
from daskmeans.pairs.join import find_block_pairs
from daskmeans.pairs.memory import check_row_blocks
from daskmeans.pairs.plan import Task, make_block_tasks
from daskmeans.pairs.row_blocks import LoadedBlock, RowBlock, RowBlockCache
from daskmeans.pairs.settings import LEAST_FLOOR
from daskmeans.pairs.store import SimilarPairs
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client, task_key
from daskmeans.steps.apply import apply as apply_decisions
from daskmeans.storage import manifest, signature
from daskmeans.storage.result import StepResult
from daskmeans.storage.step import check_output_free, open_step
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.files import find_directories, refuse_overlap
from daskmeans.vectors.id_types import wide_type
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.options import DEFAULTS, ReadOptions
from daskmeans.vectors.partitioning import Partition
from daskmeans.vectors.reader import Reader
from daskmeans.vectors.rejects import REJECTS_PARTS, gather_rejects
from daskmeans.vectors.source import Source

LEAK_COLUMNS = ("id", "twin_id", "score", "exact", "twins")
# The inputs, in the order of the search.
INPUTS = ("test", "train")
# For each input, the column of the result that holds the row number.
PLACES = ("row", "twin")
# How many partitions to sample when the directions of the sketches are found.
SAMPLE_PARTITIONS = 4


def leak(
    train: Any,
    test: Any,
    out: str | UPath,
    threshold: float,
    reading: ReadOptions = DEFAULTS,
    *,
    apply: str | UPath | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> StepResult:
    """Find the rows of `test` that have a near-duplicate in `train`. All pairs are compared.

    Parameters
    ----------
    train, test : path or sequence of path
        Embeddings: files, directories or globs.
    out : path
        Directory to make. Its ``leaks.parquet`` has one row for each row of `test` with a near-duplicate: ``id``,
        ``twin_id`` (the most similar row of `train`; of several that are equally similar, a copy, or else the first),
        ``score``, ``exact`` (whether the two are bitwise identical) and ``twins`` (how many rows of `train` are similar
        enough), then for each metadata field ``FIELD`` and ``twin_FIELD``: its value in the row and in the most similar
        row. Rows of either input that were left out are listed in ``_rejects/rejects``: ``id``, ``file``, ``row``,
        ``reason`` and ``input`` (``train`` or ``test``).
    threshold : float
        Cosine similarity in [0.5, 1] from which two rows are near-duplicates.
    reading : ReadOptions
        How both inputs are read.
    apply : path, optional
        Directory to make for the files of `test` without the rows that leaked, as :func:`apply` writes them. Default:
        no row is dropped.
    overwrite : bool, default False
    client : distributed.Client, optional

    Returns
    -------
    StepResult
        A mapping: ``train`` and ``test`` (rows of each that were compared), ``rejected`` (rows that were left out),
        ``leaked`` (rows of `test` with a near-duplicate), ``exact`` (how many of these are copies) and ``threshold``.
        With `apply` also ``kept``: rows of `test` that were written.

    Raises
    ------
    UsageError
        The threshold is out of range, the vectors have different dimensions, or two columns would have the same name.
    DataError
        A row cannot be used; with `apply`, an id of `test` occurs twice.

    Examples
    --------
    >>> from upath import UPath
    >>> from daskmeans import leak
    >>> for name, v in {"train": "[1.0, 0.1]", "test": "[1.0, 0.2]"}.items():
    ...     _ = UPath(f"memory://doctest-leak/{name}.jsonl").write_text(f'{{"id": "{name}", "v": {v}}}\\n')
    >>> folder = "memory://doctest-leak"
    >>> leak(f"{folder}/train.jsonl", f"{folder}/test.jsonl", f"{folder}/out", 0.9, overwrite=True)["leaked"]
    1
    """
    target, clean = reading.path(out), None if apply is None else reading.path(apply)
    if clean is not None:
        refuse_overlap(clean, [target, *find_directories(test, reading.storage_options)])
        check_output_free(clean, "apply", overwrite=overwrite)
    found = find_leaks(train, test, target, threshold, reading, overwrite, client)
    if clean is None:
        return found
    made = apply_decisions(
        target, test, clean, storage_options=reading.storage_options, on_bad_row=reading.on_bad_row,
        overwrite=overwrite, client=client,
    )  # fmt: skip
    return StepResult(target, found.facts | {"kept": made["kept"]})


def find_leaks(
    train: Any,
    test: Any,
    out: str | UPath,
    threshold: float,
    reading: ReadOptions,
    overwrite: bool = False,
    client: Client | None = None,
    tuning: Tuning = DEFAULT,
) -> StepResult:
    """Run :func:`leak` with tasks of the sizes in `tuning`."""
    settings = leak_settings(threshold, reading)
    target = reading.path(out)
    for each in (test, train):
        refuse_overlap(target, reading.paths(each))
    check_output_free(target, "leak", overwrite=overwrite)
    _refuse_column_names(reading.metadata_fields)
    opened = [reading.open(each, client, allow_zero=False) for each in (test, train)]
    client = current_client(client)
    sources = [source.without_metadata() for source in opened]
    for source in sources:
        refuse_overlap(target, source.files)
    if sources[0].dimension != sources[1].dimension:
        raise UsageError(
            f"its vectors have {sources[0].dimension} dimensions",
            where=str(sources[0].files[0]),
            expected=f"{sources[1].dimension}, as those of {sources[1].files[0]}",
        )
    inputs, least = leak_inputs(sources), settings["threshold"]
    with open_step(target, "leak", settings, inputs, overwrite=overwrite, client=client) as step:
        sources = [each.with_rejects(target / REJECTS_PARTS / name) for each, name in zip(sources, INPUTS, strict=True)]
        found, rows = _find_leaks(sources, np.float32(least), client, tuning)
        found = _add_metadata(found, opened, client)
        signature.write_table(found, target / LEAKS_FILE, "leak")
        exact = int(found["exact"].to_numpy().sum())
        given = sum(source.rows for source in sources)
        counts = {"train": rows[1], "test": rows[0], "rejected": gather_rejects(target, "leak", given, INPUTS)}
        for source in sources:
            source.check_unchanged()
        manifest.check_row_counts("leak", given, compared=sum(rows), rejected=counts["rejected"])
        facts = counts | {"leaked": len(found), "exact": exact, "threshold": least}
        step.facts |= {"counts": facts, "id_from": sources[0].id_from, "embedding_field": sources[0].embedding_field}
    return StepResult(target, facts)


def leak_settings(threshold: float, reading: ReadOptions) -> dict[str, Any]:
    """Everything that determines leaks, besides the two sets; raises UsageError for a threshold out of its range."""
    least = round_to_float32(check_share("--threshold", threshold))
    if least < LEAST_FLOOR:
        raise UsageError(f"{threshold!r} is out of range", where="--threshold", expected=f"{LEAST_FLOOR} or more")
    return {"threshold": least} | {key: value for key, value in asdict(reading).items() if key != "storage_options"}


def leak_inputs(sources: Sequence[Source]) -> dict[str, Any]:
    """Identity of the test set and the training set."""
    return {name: source.identity() for name, source in zip(INPUTS, sources, strict=True)}


def _find_leaks(
    sources: list[Source], threshold: np.float32, client: Client | None, tuning: Tuning
) -> tuple[pa.Table, list[int]]:
    """Find the rows of the first of `sources` with a near-duplicate in the second; count the rows compared of each.

    ``row`` and ``twin`` are the numbers of the two rows. A number counts all rows of earlier partitions, and the valid
    rows before it in its own partition.
    """
    firsts = list(accumulate((source.rows for source in sources), initial=0))
    blocks = [block for i, source in enumerate(sources) for block in _make_row_blocks(source, i, firsts[i])]
    own = sources[0].n_partitions
    readers = [partial(_read_unit_vectors, source.reader) for source in sources]
    # Dask does not traverse a partial.
    sampled = [
        delayed(partial(_sample_row_block, readers[block.source], block), pure=False)()
        for block in _pick_row_blocks(blocks)
    ]
    samples = executor.compute(sampled, client=client)
    P = find_directions(np.concatenate(samples), float(threshold))
    largest = max(block.rows for block in blocks)
    room = check_row_blocks(largest, sources[0].dimension, str(sources[0].files[0]), client)
    cache = delayed(partial(RowBlockCache, readers, blocks, P, room), pure=False)(dask_key_name=task_key("leak-shelf"))
    task = delayed(_compare_row_blocks, pure=False)
    beside = [(i, range(own, len(blocks))) for i in range(own)]
    work = make_block_tasks([block.rows for block in blocks], beside, tuning.task_pairs)
    tasks = [
        task(cache, each, threshold, dask_key_name=task_key(f"leak-compare-{number:07d}"))
        for number, each in enumerate(work)
    ]
    tables, counts = zip(*executor.compute(tasks, "compare", client), strict=True)
    rows = {block: count for counted in counts for block, count in counted.items()}
    found = _select_best(pa.concat_tables(tables))
    found = found.set_column(found.column_names.index("twin"), "twin", pc.subtract(found["twin"], firsts[1]))
    return found, [sum(n for i, n in rows.items() if blocks[i].source == source) for source in (0, 1)]


def _refuse_column_names(fields: Sequence[str]) -> None:
    """Refuse metadata `fields` whose columns would clash with others in the list of leaks."""
    names = [*LEAK_COLUMNS, *_pair_names(fields)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(
            f"there would be two columns {twice[0]!r}",
            where="--metadata-field",
            expected=f"fields not named {', '.join(LEAK_COLUMNS)}, nor twin_ and the name of another field",
            remedy="leave the field out, or rename it",
        )


def _pair_names(fields: Sequence[str]) -> list[str]:
    return [name for field in fields for name in (field, f"twin_{field}")]


def _add_metadata(found: pa.Table, sources: list[Source], client: Client | None) -> pa.Table:
    """`found` with the metadata of the rows and of their most similar rows."""
    fields = sources[0].metadata_fields
    columns = {name: found[name] for name in LEAK_COLUMNS}
    if fields:
        numbers = [found[place].to_numpy() for place in PLACES]
        one, twin = (_read_metadata(source, each, client) for source, each in zip(sources, numbers, strict=True))
        columns |= {name: side[field] for field in fields for name, side in ((field, one), (f"twin_{field}", twin))}
    return pa.table(columns)


def _read_metadata(source: Source, numbers: np.ndarray, client: Client | None) -> pa.Table:
    """Metadata of the rows of `source` with these `numbers` (as numbered by :func:`_find_leaks`), in their order."""
    rows, back = np.unique(numbers, return_inverse=True)
    starts = np.cumsum([0, *(partition.rows for partition in source.partitions)])
    bounds = np.searchsorted(rows, starts)
    take, key = delayed(_take_metadata, pure=False), task_key("leak-read")
    tasks = [
        take(source.reader, partition, rows[low:high] - start, dask_key_name=f"{key}-{partition.number}")
        for partition, start, low, high in zip(source.partitions, starts, bounds, bounds[1:], strict=False)
        if low < high
    ]
    empty = source.reader.schema.empty_table().select(source.metadata_fields)
    return pa.concat_tables([empty, *executor.compute(tasks, client=client)]).take(pa.array(back))


def _take_metadata(reader: Reader, partition: Partition, rows: np.ndarray) -> pa.Table:
    return reader.table(partition).select(reader.schema.names[2:]).take(pa.array(rows))


def _make_row_blocks(source: Source, number: int, first: int) -> list[RowBlock]:
    starts = accumulate((part.rows for part in source.partitions), initial=first)
    return [RowBlock(number, start, part.rows, part) for start, part in zip(starts, source.partitions, strict=False)]


def _pick_row_blocks(blocks: list[RowBlock]) -> list[RowBlock]:
    """Some of `blocks`, evenly spread."""
    return [blocks[i] for i in np.unique(np.linspace(0, len(blocks) - 1, SAMPLE_PARTITIONS).astype(int))]


def _read_unit_vectors(reader: Reader, partition: Partition) -> tuple[np.ndarray, pa.Array]:
    """Unit vectors and ids of the rows of a partition."""
    table = reader.table(partition)
    X = np.array(to_matrix(table[1]))
    normalize_rows(X)
    return X, table[0].cast(wide_type(table[0].type)).combine_chunks()


def _sample_row_block(reader: Any, block: RowBlock) -> np.ndarray:
    X = reader(block.place)[0]
    wanted = min(len(X), n_sample_rows(X.shape[1]) // SAMPLE_PARTITIONS)
    return X[np.linspace(0, len(X) - 1, wanted).astype(int)] if len(X) else X


def _compare_row_blocks(cache: RowBlockCache, work: Task, threshold: np.float32) -> tuple[pa.Table, dict[int, int]]:
    """Find the rows of a block that have a near-duplicate in the other blocks of a task; count the rows of each."""
    one = cache.get(work.row)
    none = _to_leaks_table(
        one, cache.get(work.columns[0]), SimilarPairs.none()
    )  # ids of the two sets may differ in type
    best, rows = _select_best(none), {work.row: len(one.ids)}
    for i in work.columns:
        other = cache.get(i)  # one at a time: there is memory for two blocks
        rows[i] = len(other.ids)
        for similar in find_block_pairs(one, other, threshold):
            best = _select_best(pa.concat_tables([best, _to_leaks_table(one, other, similar)]))
    return best, rows


def _to_leaks_table(one: LoadedBlock, other: LoadedBlock, similar: SimilarPairs) -> pa.Table:
    """Table of the pairs of two blocks: copies of a row of `other` are counted, those of a row of `one` are listed."""
    copies = np.bincount(other.copies[:, 1] - other.first, minlength=len(other.ids)) + 1
    # Each row of the block with its first copy; those without copies are their own.
    first = np.arange(one.first, one.first + len(one.ids))
    first[one.copies[:, 0] - one.first] = one.copies[:, 1]
    order = np.argsort(similar.rows, kind="stable")
    starts = np.searchsorted(similar.rows[order], first, side="left")
    counts = np.searchsorted(similar.rows[order], first, side="right") - starts
    rows = np.repeat(np.arange(len(first)), counts)
    which = order[np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())]
    neighbors = similar.neighbors[which]
    return pa.table(
        {
            "id": one.ids.take(pa.array(rows)),
            "twin_id": other.ids.take(pa.array(neighbors - other.first)),
            "score": similar.scores[which],
            "exact": similar.copies[which],
            "twins": copies[neighbors - other.first],
            "row": rows + one.first,
            "twin": neighbors,
        }
    )


def _select_best(pairs: pa.Table) -> pa.Table:
    """Reduce `pairs` to the best one of each row, and add up ``twins``; of equal scores a copy wins, then the first."""
    by = [("row", "ascending"), ("score", "descending"), ("exact", "descending"), ("twin", "ascending")]
    pairs = pairs.take(pc.sort_indices(pairs, by))
    rows = pairs["row"].to_numpy()
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.add.reduceat(pairs["twins"].to_numpy(), starts) if len(starts) else np.empty(0, np.int64)
    best = pairs.take(pa.array(starts))
    return best.set_column(best.column_names.index("twins"), "twins", pa.array(counts, pa.int64()))
