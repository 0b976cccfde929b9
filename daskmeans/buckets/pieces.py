"""Pieces: the rows of a cluster in one file, and reading them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.storage import manifest
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import join_inside

# Number of files that stay open while clusters are read one after another.
MAX_OPEN_FILES = 16


@dataclass(frozen=True)
class Piece:
    """Rows of one cluster in one file, sorted by (``l2_dist_to_cent``, id)."""

    centroid: int
    rows: int
    file: str
    row_groups: tuple[int, ...]


class BucketFiles:
    """The Parquet files below the directory `path`; up to `most` recently read files stay open."""

    def __init__(self, path: UPath, most: int = MAX_OPEN_FILES) -> None:
        self._open = lru_cache(most)(partial(_open_file, path))

    def schema(self, name: str) -> pa.Schema:
        """Return the columns of the file `name`."""
        return self._open(name)[2]

    def read(self, slices: Sequence[tuple[Piece, int, int]], columns: Sequence[str]) -> pa.Table:
        """Read the stored ones of `columns` from slices of pieces of one file, in the order given.

        Each slice is (piece, start, stop). Only row groups with some of the rows are read.
        """
        file, stored, schema = self._open(slices[0][0].file)
        there = range(stored.metadata.num_row_groups)
        groups: list[int] = []
        taken: list[np.ndarray] = []
        before = 0
        for piece, start, stop in slices:
            sizes = [stored.metadata.row_group(g).num_rows if g in there else 0 for g in piece.row_groups]
            _check_piece_rows(sum(sizes), piece, file)
            ends = np.cumsum(sizes)
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            groups += piece.row_groups[first : last + 1]
            begin = before + start - int(ends[first]) + sizes[first]
            taken.append(np.arange(begin, begin + stop - start))
            before += sum(sizes[first : last + 1])
        with _translate_arrow_errors(file):
            table = stored.read_row_groups(groups, [name for name in columns if name in schema.names])
        rows = np.concatenate(taken)
        return table if len(rows) == len(table) else table.take(pa.array(rows))


def _open_file(path: UPath, name: str) -> tuple[UPath, pq.ParquetFile, pa.Schema]:
    file = join_inside(path, name)
    with _translate_arrow_errors(file):
        stored = pq.ParquetFile(file.path, filesystem=file.fs, memory_map=True, **VERIFY_PAGES)
        return file, stored, stored.schema_arrow  # pyarrow rebuilds it on each access


@contextlib.contextmanager
def _translate_arrow_errors(file: UPath) -> Iterator[None]:
    """Turn Arrow's errors about `file` into an error that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the file cannot be read ({error})", where=str(file), remedy="run `daskmeans assign` again"
        ) from None


def _check_piece_rows(rows: int, piece: Piece, file: UPath) -> None:
    if rows != piece.rows:
        raise DataError(
            f"cluster {piece.centroid} has {rows} rows",
            where=str(file),
            expected=f"{piece.rows}, as {manifest.MANIFEST_NAME} says",
            remedy="run `daskmeans assign` again",
        )
