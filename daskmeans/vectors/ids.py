"""Ids that occur more than once.

First the hashes of all ids are compared on the workers, one range of hashes at a time. Then only the few rows with
equal hashes are compared by id. So the answer is exact, and no process holds all ids.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from distributed import Client

from daskmeans.errors import DataError
from daskmeans.kernels.hashing import hash_column
from daskmeans.runtime import executor
from daskmeans.vectors.files import common_root
from daskmeans.vectors.id_types import ids_to_text
from daskmeans.vectors.matrix import null_mask
from daskmeans.vectors.numbering import FILE_ROW, Numbering
from daskmeans.vectors.partitioning import Partition
from daskmeans.vectors.reader import Reader
from daskmeans.vectors.source import Source
from daskmeans.vectors.validate import SKIP_REMEDY

# Rows whose hashes one task compares, at 16 bytes each.
ROWS_PER_RANGE = 8 * 2**20
MAX_EXAMPLES = 3


def find_duplicate_ids(source: Source, client: Client | None = None, rows_per_range: int = ROWS_PER_RANGE) -> pa.Table:
    """Find all rows whose id occurs in an earlier row of the input; null ids do not count.

    Returns
    -------
    pyarrow.Table
        In the order of the input: ``partition`` and ``row`` (within the partition) of the later occurrence, ``id`` (as
        string), ``first_partition`` and ``first_row`` of the first.

    Examples
    --------
    >>> from upath import UPath
    >>> from daskmeans.vectors.source import open_source
    >>> lines = '{"id": "a", "v": [1.5]}\\n{"id": "b", "v": [1.5]}\\n{"id": "a", "v": [2.5]}\\n'
    >>> _ = UPath("memory://doctest-ids/rows.jsonl").write_text(lines)
    >>> find_duplicate_ids(open_source("memory://doctest-ids")).to_pylist()
    [{'partition': 0, 'row': 2, 'id': 'a', 'first_partition': 0, 'first_row': 0}]
    """
    suspects = np.empty(0, np.int64) if source.reader.numbering else _find_suspects(source, client, rows_per_range)
    starts = np.cumsum([0, *(partition.rows for partition in source.partitions)])
    ids = _read_ids(source, suspects, starts, client)
    first, later = _find_repeats(ids)
    partition, row = _locate_rows(suspects[later], starts)
    first_partition, first_row = _locate_rows(suspects[first], starts)
    return pa.table(
        {
            "partition": partition,
            "row": row,
            "id": ids_to_text(ids.take(pa.array(later))),
            "first_partition": first_partition,
            "first_row": first_row,
        }
    )


def check_ids(source: Source, on_bad_row: str = "error", client: Client | None = None) -> Source:
    """Return `source` such that no two of its rows have the same id.

    Parameters
    ----------
    source : Source
    on_bad_row : {"error", "skip"}, default "error"
        Refuse an input with duplicate ids, or leave out all but the first row of each id.
    client : distributed.Client, optional

    Returns
    -------
    Source
        `source` itself if its ids are unique. Its ``rows`` still counts the rows that will be left out.

    Raises
    ------
    DataError
        An id occurs more than once; the message names up to three, each with two places.
    """
    found = find_duplicate_ids(source, client)
    if not len(found):
        return source
    if on_bad_row == "error":
        raise _duplicates_error(source, found)
    return replace(source, partitions=_exclude_rows(source, found), reader=replace(source.reader, on_bad_row="skip"))


def _duplicates_error(source: Source, found: pa.Table) -> DataError:
    distinct = len(pc.unique(found.column("id")))
    # The second occurrence of each id, in the order of the input.
    examples = list({row["id"]: row for row in found.slice(0, 1000).to_pylist()[::-1]}.values())[::-1][:MAX_EXAMPLES]
    places = [
        f"{row['id']!r} ({source.place(row['first_partition'], row['first_row'])}, and "
        f"{source.place(row['partition'], row['row'])})"
        for row in examples
    ]
    return DataError(
        f"{f'{distinct} ids occur' if distinct > 1 else '1 id occurs'} more than once: "
        + "; ".join(places)
        + ("; ..." if distinct > len(places) else ""),
        where=f"column {source.id_field!r}, rows counted from 0",
        expected="unique ids in the whole input",
        remedy="make the ids unique, name another --id-field, make ids of file and row with --id-from file-row "
        f"(such as {_show_made_id(source)!r}), or {SKIP_REMEDY} (the first row of each id stays)",
    )


def _show_made_id(source: Source) -> str:
    piece = source.partitions[0].slices[0]
    return str(Numbering(FILE_ROW, common_root(source.given)).make_ids(piece, piece.first, 1)[0])


def _find_suspects(source: Source, client: Client | None, rows_per_range: int) -> np.ndarray:
    """Return the numbers of all rows whose id has the same hash as another row's, ascending. int64."""
    ranges = -(-source.rows // rows_per_range)
    run = uuid.uuid4().hex[:8]
    hashed: list[Any] = []
    start = 0
    for partition in source.partitions:
        task = delayed(_hash_ids, pure=False, nout=ranges)
        hashed.append(task(source.reader, partition, start, ranges, dask_key_name=f"id-hash-{run}-{partition.number}"))
        start += partition.rows
    compare = delayed(_find_equal_hashes, pure=False)
    tasks = [compare([part[i] for part in hashed], dask_key_name=f"id-compare-{run}-{i}") for i in range(ranges)]
    return np.sort(np.concatenate(executor.compute(tasks, label="check ids", client=client)))


def _hash_ids(reader: Reader, partition: Partition, start: int, ranges: int) -> list[np.ndarray]:
    """Return hash and number of each row of `partition` with an id, split by hash; `start` is the first number."""
    ids = reader.ids(partition)
    valid = np.flatnonzero(~null_mask(ids))
    hashes = np.empty((len(valid), 2), np.uint64)
    hashes[:, 0] = hash_column(ids.drop_null())
    hashes[:, 1] = valid + start
    part = (hashes[:, 0] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)
    return [hashes[part == i] for i in range(ranges)]


def _find_equal_hashes(parts: list[np.ndarray]) -> np.ndarray:
    """Return the numbers of the rows whose hash occurs more than once in `parts`."""
    hashes, numbers = np.concatenate(parts).T
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    equal = ordered[1:] == ordered[:-1]
    either = np.zeros(len(order), bool)
    either[1:] |= equal
    either[:-1] |= equal
    return numbers[order[either]].astype(np.int64)


def _read_ids(source: Source, numbers: np.ndarray, starts: np.ndarray, client: Client | None) -> pa.ChunkedArray:
    """Read the ids of the rows with the given ascending `numbers`."""
    run = uuid.uuid4().hex[:8]
    take = delayed(_take_ids, pure=False)
    bounds = np.searchsorted(numbers, starts)
    tasks = [
        take(source.reader, partition, numbers[low:high] - start, dask_key_name=f"id-take-{run}-{partition.number}")
        for partition, low, high, start in zip(source.partitions, bounds[:-1], bounds[1:], starts[:-1], strict=True)
        if low < high
    ]
    columns = executor.compute(tasks, client=client) if tasks else []
    type_ = source.reader.schema.types[0]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type_)


def _take_ids(reader: Reader, partition: Partition, rows: np.ndarray) -> pa.ChunkedArray:
    return reader.ids(partition).take(pa.array(rows))


def _find_repeats(ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the present position of each value that occurred before, ascending."""
    chunks = pc.dictionary_encode(ids).unify_dictionaries().chunks
    numbers = np.concatenate([np.empty(0, np.int64), *(chunk.indices.to_numpy() for chunk in chunks)])
    _, firsts, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    first = firsts[inverse]
    later = np.flatnonzero(first < np.arange(len(first)))
    return first[later], later


def _locate_rows(numbers: np.ndarray, starts: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Return the partition of the rows with the given numbers, and the row within it."""
    partitions = np.searchsorted(starts, numbers, side="right") - 1
    return pa.array(partitions, pa.int32()), pa.array(numbers - starts[partitions], pa.int64())


def _exclude_rows(source: Source, found: pa.Table) -> tuple[Partition, ...]:
    """Return the partitions of `source` without the rows in `found`."""
    numbers, rows = found.column("partition").to_numpy(), found.column("row").to_numpy()
    bounds = np.searchsorted(numbers, np.arange(source.n_partitions + 1))
    return tuple(
        replace(partition, left_out=rows[low:high]) if low < high else partition
        for partition, low, high in zip(source.partitions, bounds[:-1], bounds[1:], strict=True)
    )
