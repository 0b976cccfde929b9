"""How an input is cut: files into units, units into partitions of about equal size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
from upath import UPath

# Elements that a list column of cuDF may have.
MAX_LIST_ELEMENTS = 2**31 - 1
# Partitions that a unit may be as large as, before it is cut for a device.
MAX_UNCUT_PARTITIONS = 16


@dataclass(frozen=True)
class Unit:
    """Rows of a file that its format can find on their own.

    Attributes
    ----------
    rows : int
    start, end : int
        Bytes of the file that hold them, where the format has to know.
    divisible : bool
        Whether a part of the rows can be read too.
    values : int
        Elements of the column that has most of them, where the format tells and frames are of cuDF: of lists, what
        they hold.
    """

    rows: int
    start: int = 0
    end: int = 0
    divisible: bool = True
    values: int = 0


@dataclass(frozen=True)
class FileSurvey:
    """What a look at a file without reading its vectors tells.

    Attributes
    ----------
    schema : pyarrow.Schema
    units : tuple of Unit
        Empty if the file has no rows.
    complete : bool
        Whether a column that is not in `schema` is not in the file.
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
    """Rows that one task reads; `left_out` are numbers within the partition of rows that must not come out."""

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
    """Cut `files` into partitions of about `rows` rows for devices: as many for each worker, as nearly alike as can be.

    A device reads a unit as a whole, even for a part of its rows. So a unit is cut only if it has more rows than a
    worker is to have, or is much too large: no list column of a partition has 2³¹ elements or more.

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
    # Half of what is allowed, as a partition may have a unit more than its share.
    most = max(1, MAX_LIST_ELEMENTS // max(1, dimension, *(-(-unit.values // unit.rows) for unit in units)) // 2)
    rows = min(rows, most)
    count = workers * -(-total // (rows * workers))
    slices = cut_units(files, min(most, MAX_UNCUT_PARTITIONS * rows, -(-total // workers)))
    # Each is of the partition in which its middle would lie, were all of one size.
    grouped = groupby(slices, lambda piece: (2 * piece.number + piece.rows) * count // (2 * total))
    return tuple(Partition(number, _join_slices(group)) for number, (_, group) in enumerate(grouped))


def _join_slices(slices: Iterable[Slice]) -> tuple[Slice, ...]:
    """`slices`, with those that follow one another in a file as one."""
    held: list[Slice] = []
    for piece in slices:
        if held and held[-1].path is piece.path:
            held[-1] = replace(held[-1], rows=held[-1].rows + piece.rows, end=piece.end)
        else:
            held.append(piece)
    return tuple(held)


def cut_units(files: Iterable[tuple[UPath, FileSurvey]], rows: int) -> Iterator[Slice]:
    """The units of `files` in their order, those that can be divided in pieces of at most `rows` rows."""
    number = 0
    for path, survey in files:
        first = 0
        for unit in survey.units:
            for size in _split_evenly(unit.rows, rows) if unit.divisible else [unit.rows]:
                yield Slice(path, first, size, number, unit.start, unit.end)
                first += size
                number += size


def _split_evenly(total: int, limit: int) -> list[int]:
    """`total` in as few parts of at most `limit` as possible, all of about the same size."""
    parts = -(-total // limit)
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]
