"""Cutting an input: files into units, units into partitions of about equal size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
from upath import UPath

# Maximum number of elements in a list column of cuDF.
MAX_LIST_ELEMENTS = 2**31 - 1
# A unit for a device is cut only if it is larger than this many partitions.
MAX_UNCUT_PARTITIONS = 16


@dataclass(frozen=True)
class Unit:
    """Rows of a file that can be read separately.

    Attributes
    ----------
    rows : int
    start, end : int
        Byte range of the rows in the file, for formats that need it.
    divisible : bool
        Whether part of the rows can be read, too.
    values : int
        Elements of the column with the most, counting those of lists; only for cuDF, if the format tells.
    """

    rows: int
    start: int = 0
    end: int = 0
    divisible: bool = True
    values: int = 0


@dataclass(frozen=True)
class FileSurvey:
    """Facts about a file that are known without reading its vectors.

    Attributes
    ----------
    schema : pyarrow.Schema
    units : tuple of Unit
        Empty if the file has no rows.
    complete : bool
        Whether `schema` has all columns of the file.
    """

    schema: pa.Schema
    units: tuple[Unit, ...]
    complete: bool = True

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of one file.

    Attributes
    ----------
    path : UPath
    first : int
        Number of the first row within the file.
    rows : int
    number : int
        Number of the first row within the whole input.
    start, end : int
        As in :class:`Unit`.
    """

    path: UPath
    first: int
    rows: int
    number: int
    start: int = 0
    end: int = 0


@dataclass(frozen=True, eq=False)
class Partition:
    """Rows that one task reads; `left_out` are the numbers of rows, within the partition, to leave out."""

    number: int
    slices: tuple[Slice, ...]
    left_out: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.slices)


def pack_partitions(files: Iterable[tuple[UPath, FileSurvey]], rows: int) -> tuple[Partition, ...]:
    """Cut the units of `files`, in their order, into partitions of at most `rows` rows where the units allow it."""
    partitions: list[list[Slice]] = []
    room = 0
    for piece in cut_units(files, rows):
        if piece.rows > room:
            partitions.append([])
            room = rows
        room -= piece.rows
        partitions[-1].append(piece)
    return tuple(Partition(number, _join_slices(slices)) for number, slices in enumerate(partitions))


def balance_partitions(
    files: Sequence[tuple[UPath, FileSurvey]], rows: int, dimension: int, workers: int
) -> tuple[Partition, ...]:
    """Cut `files` into partitions of about `rows` rows for devices: equally many per worker, of similar size.

    A device reads a unit as a whole, even for part of its rows. So a unit is cut only if it has more rows than a
    worker's share, or is much too large: no list column of a partition has 2³¹ elements or more.

    Examples
    --------
    >>> files = [(UPath("a.parquet"), FileSurvey(pa.schema([]), tuple(Unit(rows) for rows in (60, 50, 40, 30))))]
    >>> [partition.rows for partition in balance_partitions(files, 50, 8, workers=2)]
    [60, 50, 40, 30]
    >>> [partition.rows for partition in balance_partitions(files, 1000, 8, workers=2)]
    [110, 70]
    """
    total = sum(survey.rows for _, survey in files)
    units = [unit for _, survey in files for unit in survey.units]
    # Half of the limit, as a partition may have one unit more than its share.
    most = max(1, MAX_LIST_ELEMENTS // max(1, dimension, *(-(-unit.values // unit.rows) for unit in units)) // 2)
    rows = min(rows, most)
    count = workers * -(-total // (rows * workers))
    slices = cut_units(files, min(most, MAX_UNCUT_PARTITIONS * rows, -(-total // workers)))
    # Each slice goes to the partition that its middle would fall into if all partitions had the same size.
    grouped = groupby(slices, lambda piece: (2 * piece.number + piece.rows) * count // (2 * total))
    return tuple(Partition(number, _join_slices(group)) for number, (_, group) in enumerate(grouped))


def _join_slices(slices: Iterable[Slice]) -> tuple[Slice, ...]:
    """Join those of `slices` that follow each other in a file."""
    held: list[Slice] = []
    for piece in slices:
        if held and held[-1].path is piece.path:
            held[-1] = replace(held[-1], rows=held[-1].rows + piece.rows, end=piece.end)
        else:
            held.append(piece)
    return tuple(held)


def cut_units(files: Iterable[tuple[UPath, FileSurvey]], rows: int) -> Iterator[Slice]:
    """Yield the units of `files` in order; divisible ones are cut into pieces of at most `rows` rows."""
    number = 0
    for path, survey in files:
        first = 0
        for unit in survey.units:
            for size in _split_evenly(unit.rows, rows) if unit.divisible else [unit.rows]:
                yield Slice(path, first, size, number, unit.start, unit.end)
                first += size
                number += size


def _split_evenly(total: int, limit: int) -> list[int]:
    """Split `total` into as few parts of at most `limit` as possible, of about the same size."""
    parts = -(-total // limit)
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]
