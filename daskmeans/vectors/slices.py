"""How an input is cut: files into units, units into partitions of about equal size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from upath import UPath


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
    """

    rows: int
    start: int = 0
    end: int = 0
    divisible: bool = True


@dataclass(frozen=True)
class Survey:
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


def pack(files: Iterable[tuple[UPath, Survey]], rows: int) -> tuple[Partition, ...]:
    """Cut the units of `files`, in their order, into partitions of at most `rows` rows where the units allow it."""
    partitions: list[list[Slice]] = []
    room = 0
    for piece in pieces(files, rows):
        if piece.rows > room:
            partitions.append([])
            room = rows
        room -= piece.rows
        held = partitions[-1]
        if held and held[-1].path is piece.path:
            held[-1] = replace(held[-1], rows=held[-1].rows + piece.rows, end=piece.end)
        else:
            held.append(piece)
    return tuple(Partition(number, tuple(slices)) for number, slices in enumerate(partitions))


def pieces(files: Iterable[tuple[UPath, Survey]], rows: int) -> Iterator[Slice]:
    """The units of `files` in their order, those that can be divided in pieces of at most `rows` rows."""
    number = 0
    for path, survey in files:
        first = 0
        for unit in survey.units:
            for size in _even(unit.rows, rows) if unit.divisible else [unit.rows]:
                yield Slice(path, first, size, number, unit.start, unit.end)
                first += size
                number += size


def _even(total: int, limit: int) -> list[int]:
    """`total` in as few parts of at most `limit` as possible, all of about the same size."""
    parts = -(-total // limit)
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]
