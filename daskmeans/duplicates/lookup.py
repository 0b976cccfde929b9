"""An index of decisions by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.duplicates.result import decision_files
from daskmeans.errors import DataError
from daskmeans.kernels.hashing import hash_column
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.id_types import cast_ids, decode_ids, id_type, is_exact, is_same_kind, wide_type


@dataclass(frozen=True, eq=False)
class DecisionIndex:
    """Decisions sorted by the hash of the id."""

    hashes: np.ndarray
    """uint64, shape (n,)"""
    ids: pa.Array
    keep: np.ndarray
    """bool, shape (n,)"""
    each_once: ClassVar[bool] = True
    """Whether each decision is on one row only."""

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        return int(self.hashes.nbytes + self.ids.nbytes + self.keep.nbytes)

    def find(self, ids: pa.Array) -> np.ndarray:
        """Place of the decision on each of `ids`, or -1. Ids whose hashes collide are compared."""
        places = np.full(len(ids), -1)
        ids = _cast_ids(ids, self.ids.type)
        left = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        hashes = hash_column(ids.drop_null())
        candidates = np.searchsorted(self.hashes, hashes)
        while len(left):
            near = candidates < len(self.hashes)
            near[near] = self.hashes[candidates[near]] == hashes[near]
            left, hashes, candidates = left[near], hashes[near], candidates[near]
            equal = pc.equal(self.ids.take(pa.array(candidates)), ids.take(pa.array(left)))
            same = equal.to_numpy(zero_copy_only=False)
            places[left[same]] = candidates[same]
            left, hashes, candidates = left[~same], hashes[~same], candidates[~same] + 1
        return places

    def checksum(self) -> int:
        """Sum of the hashes modulo 2⁶⁴."""
        return int(self.hashes.sum(dtype=np.uint64))


def read_decision_index(path: UPath) -> DecisionIndex:
    """Read the decisions that `dedup` wrote into `path`."""
    tables = []
    for file in decision_files(path):
        with translate_read_errors(file):
            tables.append(pq.read_table(file.path, filesystem=file.fs, columns=["id", "keep"], **VERIFY_PAGES))
    table = pa.concat_tables(tables)
    return make_decision_index(table["id"], table["keep"].to_numpy())


def make_decision_index(ids: pa.ChunkedArray, keep: np.ndarray) -> DecisionIndex:
    """Index decisions by id.

    Examples
    --------
    >>> lookup = make_decision_index(pa.chunked_array([["a", "b"]]), np.array([True, False]))
    >>> lookup.keep[lookup.find(pa.array(["b", "a"]))].tolist(), lookup.find(pa.array(["c"])).tolist()
    ([False, True], [-1])
    """
    # 32-bit offsets overflow at 2 GiB of ids.
    ids = ids.cast(wide_type(ids.type))
    hashes = hash_column(ids)
    order = np.argsort(hashes, kind="stable")
    return DecisionIndex(hashes[order], ids.take(pa.array(order)).combine_chunks(), keep[order])


def check_id_type(lookup: DecisionIndex, type_: pa.DataType, file: UPath, id_field: str) -> None:
    """Make sure that ids of type `type_` can be those of the decisions; a column of nulls only matches none of them."""
    if pa.types.is_null(type_):
        return
    if not is_same_kind(id_type(type_, f"{file}, column {id_field!r}"), lookup.ids.type):
        raise DataError(
            f"column {id_field!r} is {type_}, and the ids of the decisions are {lookup.ids.type}",
            where=str(file),
            expected="the files that were deduplicated",
            remedy="pass the files from which the decisions were made",
        )


def _cast_ids(ids: pa.Array, type_: pa.DataType) -> pa.Array:
    """Cast `ids` to `type_`; a number that it cannot hold becomes null, since there is no decision on it."""
    ids = decode_ids(ids)
    if pa.types.is_integer(type_) and ids.type != type_ and not pa.types.is_null(ids.type):
        limits, numbers = np.iinfo(type_.to_pandas_dtype()), ids.fill_null(0).to_numpy(zero_copy_only=False)
        fits = (numbers >= limits.min) & (numbers <= limits.max) & is_exact(numbers)
        ids = pc.if_else(pa.array(fits), ids, pa.scalar(None, ids.type))
    return cast_ids(ids, type_)
