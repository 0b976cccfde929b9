"""The step `leak`: rows of one set of embeddings with a near-duplicate in another, as of a test in a training set."""

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

from daskmeans.duplicates.settings import rounded, share
from daskmeans.errors import UsageError
from daskmeans.kernels.all_pairs import directions, sample_rows
from daskmeans.kernels.norms import normalize_rows
from daskmeans.pairs.join import pairs_of
from daskmeans.pairs.memory import check_bands
from daskmeans.pairs.plan import Task, tasks_between
from daskmeans.pairs.row_blocks import Band, Loaded, Shelf
from daskmeans.pairs.settings import LEAST_FLOOR
from daskmeans.pairs.store import Edges
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client, task_key
from daskmeans.storage import manifest, signature
from daskmeans.storage.result import StepResult
from daskmeans.storage.step import open_step
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.files import directories, refuse_overlap
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.options import DEFAULTS, Reading
from daskmeans.vectors.partitioning import Partition
from daskmeans.vectors.reader import Reader
from daskmeans.vectors.rejects import PARTS, gather_rejects
from daskmeans.vectors.source import Source

FILE = "leaks.parquet"
COLUMNS = ("id", "twin_id", "score", "exact", "twins")
# In the order in which they are searched.
INPUTS = ("test", "train")
# Where the rows of each lie, by columns of what is found.
PLACES = ("row", "twin")
# Partitions on rows of which directions are found.
SAMPLE_PARTITIONS = 4


def leak(
    train: Any,
    test: Any,
    out: str | UPath,
    threshold: float,
    reading: Reading = DEFAULTS,
    *,
    overwrite: bool = False,
    client: Client | None = None,
) -> StepResult:
    """Find the rows of `test` that have a twin in `train`; all pairs are compared, and nothing is decided.

    Parameters
    ----------
    train, test : path or sequence of path
        Embeddings: files, directories or globs.
    out : path
        Directory to make. Its ``leaks.parquet`` has one row for each row of `test` with a twin: ``id``, ``twin_id``
        (the most similar row of `train`; of equals a copy, or else the first), ``score``, ``exact`` (the two are the
        same bit for bit) and ``twins`` (how many rows of `train` are similar enough), then for each metadata field
        ``FIELD`` and ``twin_FIELD``, the values of the row and of its twin. Rows of either that were left out
        are listed in ``_rejects/rejects``: ``id``, ``file``, ``row``, ``reason`` and ``input`` (``train`` or
        ``test``).
    threshold : float
        Cosine similarity in [0.5, 1] from which two rows are twins.
    reading : Reading
        How both are read.
    overwrite : bool, default False
    client : distributed.Client, optional

    Returns
    -------
    StepResult
        A mapping: ``train``, ``test`` (rows of each that were compared), ``rejected`` (rows that were left out),
        ``leaked``, ``exact`` (of those) and ``threshold``.

    Raises
    ------
    UsageError
        The threshold is out of range, the vectors have different dimensions, or two columns would have one name.
    DataError
        A row cannot be worked with.

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
    return find_leaks(train, test, out, threshold, reading, overwrite, client)


def find_leaks(
    train: Any,
    test: Any,
    out: str | UPath,
    threshold: float,
    reading: Reading,
    overwrite: bool = False,
    client: Client | None = None,
    tuning: Tuning = DEFAULT,
) -> StepResult:
    """As :func:`leak`, with work in the sizes of `tuning`."""
    least = rounded(share("--threshold", threshold))
    if least < LEAST_FLOOR:
        raise UsageError(f"{threshold!r} is out of range", where="--threshold", expected=f"{LEAST_FLOOR} or more")
    client = current_client(client)
    target = reading.path(out)
    opened = [reading.open(each, client, allow_zero=False) for each in (test, train)]
    sources = [source.vectors_only() for source in opened]
    for each, source in zip((test, train), sources, strict=True):
        refuse_overlap(target, [*directories(each, reading.storage_options), *source.files])
    if sources[0].dimension != sources[1].dimension:
        raise UsageError(
            f"its vectors have {sources[0].dimension} dimensions",
            where=str(sources[0].files[0]),
            expected=f"{sources[1].dimension}, as those of {sources[1].files[0]}",
        )
    _refuse_names(opened[0])
    settings = {"threshold": least} | {key: value for key, value in asdict(reading).items() if key != "storage_options"}
    inputs = {"test": sources[0].identity(), "train": sources[1].identity()}
    with open_step(target, "leak", settings, inputs, overwrite=overwrite, client=client) as step:
        sources = [each.rejecting_to(target / PARTS / name) for each, name in zip(sources, INPUTS, strict=True)]
        found, rows = _search(sources, np.float32(least), client, tuning)
        found = _described(found, opened, client)
        signature.write_table(found, target / FILE, "leak")
        exact = int(found["exact"].to_numpy().sum())
        given = sum(source.rows for source in sources)
        counts = {"train": rows[1], "test": rows[0], "rejected": gather_rejects(target, "leak", given, INPUTS)}
        for source in sources:
            source.check_unchanged()
        manifest.check_rows("leak", given, compared=sum(rows), rejected=counts["rejected"])
        facts = counts | {"leaked": len(found), "exact": exact, "threshold": least}
        step.facts |= {"counts": facts}
    return StepResult(target, facts)


def _search(
    sources: list[Source], threshold: np.float32, client: Client | None, tuning: Tuning
) -> tuple[pa.Table, list[int]]:
    """The rows of the first of `sources` with a twin in the second, in their order, and the rows of both.

    ``row`` and ``twin`` tell where the two are: all rows of the partitions before, and the good ones of its own before.
    """
    firsts = list(accumulate((source.rows for source in sources), initial=0))
    bands = [band for i, source in enumerate(sources) for band in _bands(source, i, firsts[i])]
    own = sources[0].n_partitions
    readers = [partial(_read, source.reader) for source in sources]
    # Dask does not look through what is bound to a function.
    sampled = [delayed(partial(_sample, readers[band.source], band), pure=False)() for band in _few(bands)]
    samples = executor.compute(sampled, client=client)
    P = directions(np.concatenate(samples), float(threshold))
    largest = max(band.rows for band in bands)
    room = check_bands(largest, sources[0].dimension, str(sources[0].files[0]), client)
    shelf = delayed(partial(Shelf, readers, bands, P, room), pure=False)(dask_key_name=task_key("leak-shelf"))
    task = delayed(_compare, pure=False)
    beside = [(i, range(own, len(bands))) for i in range(own)]
    work = tasks_between([band.rows for band in bands], beside, tuning.task_pairs)
    tasks = [
        task(shelf, each, threshold, dask_key_name=task_key(f"leak-compare-{number:07d}"))
        for number, each in enumerate(work)
    ]
    tables, counts = zip(*executor.compute(tasks, "compare", client), strict=True)
    rows = {band: count for counted in counts for band, count in counted.items()}
    found = _best(pa.concat_tables(tables))
    found = found.set_column(found.column_names.index("twin"), "twin", pc.subtract(found["twin"], firsts[1]))
    return found, [sum(n for i, n in rows.items() if bands[i].source == source) for source in (0, 1)]


def _refuse_names(source: Source) -> None:
    """Refuse metadata fields that would meet another column of the list of leaks."""
    names = [*COLUMNS, *_both(source.metadata_fields)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(
            f"there would be two columns {twice[0]!r}",
            where="--metadata-field",
            expected=f"fields called otherwise than {', '.join(COLUMNS)}, and than twin_ and another field",
            remedy="leave the field out, or rename it",
        )


def _both(fields: Sequence[str]) -> list[str]:
    return [name for field in fields for name in (field, f"twin_{field}")]


def _described(found: pa.Table, sources: list[Source], client: Client | None) -> pa.Table:
    """`found` with the metadata of the rows and of their twins."""
    fields = sources[0].metadata_fields
    columns = {name: found[name] for name in COLUMNS}
    if fields:
        numbers = [found[place].to_numpy() for place in PLACES]
        one, twin = (_metadata(source, each, client) for source, each in zip(sources, numbers, strict=True))
        columns |= {name: side[field] for field in fields for name, side in ((field, one), (f"twin_{field}", twin))}
    return pa.table(columns)


def _metadata(source: Source, numbers: np.ndarray, client: Client | None) -> pa.Table:
    """Metadata of the rows of `source` with these `numbers`, as :func:`_search` gives them, in their order."""
    rows, back = np.unique(numbers, return_inverse=True)
    starts = np.cumsum([0, *(partition.rows for partition in source.partitions)])
    bounds = np.searchsorted(rows, starts)
    take, key = delayed(_take, pure=False), task_key("leak-read")
    tasks = [
        take(source.reader, partition, rows[low:high] - start, dask_key_name=f"{key}-{partition.number}")
        for partition, start, low, high in zip(source.partitions, starts, bounds, bounds[1:], strict=False)
        if low < high
    ]
    empty = source.reader.schema.empty_table().select(source.metadata_fields)
    return pa.concat_tables([empty, *executor.compute(tasks, client=client)]).take(pa.array(back))


def _take(reader: Reader, partition: Partition, rows: np.ndarray) -> pa.Table:
    return reader.table(partition).select(reader.schema.names[2:]).take(pa.array(rows))


def _bands(source: Source, number: int, first: int) -> list[Band]:
    starts = accumulate((part.rows for part in source.partitions), initial=first)
    return [Band(number, start, part.rows, part) for start, part in zip(starts, source.partitions, strict=False)]


def _few(bands: list[Band]) -> list[Band]:
    """Some of `bands`, from all over."""
    return [bands[i] for i in np.unique(np.linspace(0, len(bands) - 1, SAMPLE_PARTITIONS).astype(int))]


def _read(reader: Reader, partition: Partition) -> tuple[np.ndarray, pa.Array]:
    """Unit vectors and ids of the rows of a partition."""
    table = reader.table(partition)
    X = np.array(to_matrix(table[1]))
    normalize_rows(X)
    type_ = pa.int64() if pa.types.is_integer(table[0].type) else pa.large_string()
    return X, table[0].cast(type_).combine_chunks()


def _sample(reader: Any, band: Band) -> np.ndarray:
    X = reader(band.place)[0]
    wanted = min(len(X), sample_rows(X.shape[1]) // SAMPLE_PARTITIONS)
    return X[np.linspace(0, len(X) - 1, wanted).astype(int)] if len(X) else X


def _compare(shelf: Shelf, work: Task, threshold: np.float32) -> tuple[pa.Table, dict[int, int]]:
    """The rows of a band with a twin in one of a run of others; rows of each band that was looked at."""
    one = shelf.get(work.row)
    best, rows = _best(_twins(one, one, Edges.none())), {work.row: len(one.ids)}
    for i in work.columns:
        other = shelf.get(i)  # one at a time: there is memory for two bands
        rows[i] = len(other.ids)
        for edges in pairs_of(one, other, threshold):
            best = _best(pa.concat_tables([best, _twins(one, other, edges)]))
    return best, rows


def _twins(one: Loaded, other: Loaded, edges: Edges) -> pa.Table:
    """Pairs of two bands; copies of a row of `other` are counted with it, those of a row of `one` are listed."""
    copies = np.bincount(other.copies[:, 1] - other.first, minlength=len(other.ids)) + 1
    # Each row of the band with its first copy; those without copies are their own.
    first = np.arange(one.first, one.first + len(one.ids))
    first[one.copies[:, 0] - one.first] = one.copies[:, 1]
    order = np.argsort(edges.rows, kind="stable")
    starts = np.searchsorted(edges.rows[order], first, side="left")
    counts = np.searchsorted(edges.rows[order], first, side="right") - starts
    rows = np.repeat(np.arange(len(first)), counts)
    which = order[np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())]
    twins = edges.twins[which]
    return pa.table(
        {
            "id": one.ids.take(pa.array(rows)),
            "twin_id": other.ids.take(pa.array(twins - other.first)),
            "score": edges.scores[which],
            "exact": edges.copies[which],
            "twins": copies[twins - other.first],
            "row": rows + one.first,
            "twin": twins,
        }
    )


def _best(pairs: pa.Table) -> pa.Table:
    """The most similar twin of each row, of equals a copy, or else the first, and how many there are; by row."""
    by = [("row", "ascending"), ("score", "descending"), ("exact", "descending"), ("twin", "ascending")]
    pairs = pairs.take(pc.sort_indices(pairs, by))
    rows = pairs["row"].to_numpy()
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.add.reduceat(pairs["twins"].to_numpy(), starts) if len(starts) else np.empty(0, np.int64)
    best = pairs.take(pa.array(starts))
    return best.set_column(best.column_names.index("twins"), "twins", pa.array(counts, pa.int64()))
