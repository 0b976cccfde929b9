"""Decisions on rows in memory: the exact search and its decisions, without files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed

from daskmeans import config
from daskmeans.duplicates.greedy import greedy_select
from daskmeans.duplicates.groups import Duplicate, Group, select_first_groups
from daskmeans.duplicates.ranking import rank
from daskmeans.duplicates.settings import DedupSettings, check_share, round_to_float32
from daskmeans.duplicates.table import to_table
from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.all_pairs import NARROW, find_directions, n_sample_rows
from daskmeans.pairs.join import find_block_pairs
from daskmeans.pairs.plan import make_self_join_tasks
from daskmeans.pairs.row_blocks import LoadedBlock, load_rows, rows_per_block
from daskmeans.pairs.store import SimilarPairs, check_pair_count
from daskmeans.runtime import executor, progress
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.id_types import EXPECTED, cast_ids, id_type

# With fewer rows per dimension, or few dimensions, finding directions takes longer than it saves.
LEAST_ROWS_PER_DIMENSION = 16
REMEDY = "choose a higher threshold, or fewer rows at a time, such as smaller partitions"


def find_pairs(X: np.ndarray, ids: pa.Array, floor: np.float32, order: np.ndarray | None = None) -> SimilarPairs:
    """Find all pairs of rows of `X` whose score is at least `floor`, in this thread.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        Unit rows.
    ids : pyarrow.Array
    floor : float32
    order : ndarray of int64, shape (n,), optional
        The rows by cluster. Default: they come so.
    """
    P = _find_directions(X, floor, order)
    rows = load_rows(lambda: (X, ids), P)
    return _compare(rows, [rows], floor)


def find_pairs_in_threads(
    X: np.ndarray, ids: pa.Array, floor: np.float32, order: np.ndarray | None = None, tuning: Tuning = DEFAULT
) -> SimilarPairs:
    """Like :func:`find_pairs`, in as many threads as there are cores, with a progress line."""
    P = _find_directions(X, floor, order)
    most = rows_per_block(max(1, len(X)), X.shape[1], config.get_bytes("partition-bytes"), tuning.rows_per_block)
    starts = range(0, len(X), most)
    load, compare = delayed(load_rows, pure=False), delayed(_compare, pure=False)
    loaded = [load(partial(_slice_rows, X, ids, i, i + most), P, i) for i in starts]
    work = make_self_join_tasks([min(most, len(X) - i) for i in starts], len(starts), tuning.task_pairs)
    tasks = [compare(loaded[each.row], [loaded[j] for j in each.columns], floor) for each in work]
    with progress.open_line("compare", len(tasks)) as line:
        return _join_pairs(executor.compute_locally(tasks, line))


def _slice_rows(X: np.ndarray, ids: pa.Array, start: int, stop: int) -> tuple[np.ndarray, pa.Array]:
    return X[start:stop], ids[start:stop]


def _find_directions(X: np.ndarray, floor: np.float32, order: np.ndarray | None) -> np.ndarray:
    n, d = X.shape
    if n <= LEAST_ROWS_PER_DIMENSION * min(d, NARROW):
        return np.empty((d, 0), np.float32)
    places = np.linspace(0, n - 1, min(n, n_sample_rows(d))).astype(int)
    return find_directions(X[places if order is None else order[places]], float(floor))


def _compare(one: LoadedBlock, others: Sequence[LoadedBlock], floor: np.float32) -> SimilarPairs:
    parts, count = [SimilarPairs.none()], 0
    for other in others:
        for similar in find_block_pairs(one, other, floor):
            count += len(similar.rows)
            check_pair_count(count, REMEDY)
            parts.append(similar)
    return _join_pairs(parts)


def _join_pairs(parts: Sequence[SimilarPairs]) -> SimilarPairs:
    check_pair_count(sum(len(each.rows) for each in parts), REMEDY)
    return SimilarPairs(*map(np.concatenate, zip(SimilarPairs.none(), *parts, strict=True)))


def read_ids(column: pd.Series | pa.Array | pa.ChunkedArray, where: str) -> pa.Array:
    """Return ids in a type that decisions have, of whatever type the column holds them."""
    try:
        ids = pa.array(column, from_pandas=True) if isinstance(column, pd.Series) else column
        none = pa.types.is_null(ids.type)  # such as an object column without rows
        ids = cast_ids(ids, pa.string() if none else id_type(ids.type, where))
    except pa.ArrowException as error:
        raise DataError(
            f"the ids are of several types, or have fractions ({error})", where=where, expected=EXPECTED
        ) from None
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def check_unique(ids: pa.Array, where: str) -> None:
    """Refuse ids that are null or occur twice; `where` names their column."""
    column = pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([ids])))
    for problem, mask in (("the id is null", column.isna()), ("the id occurs before", column.duplicated())):
        if mask.any():
            row = int(mask.to_numpy().argmax())
            raise DataError(problem, where=f"{where}, row {row}", expected="ids that occur once")


def decide(
    table: pa.Table, id_field: str, labels: np.ndarray, similar: SimilarPairs, settings: DedupSettings
) -> pa.Table:
    """Decide on rows that were all compared with one another; decisions are in the order of the rows.

    Parameters
    ----------
    table : pyarrow.Table
        The ids, and the columns that rows are ranked by.
    id_field : str
    labels : ndarray of int32, shape (n,)
        Clusters of the rows.
    similar : SimilarPairs
        The pairs, from the threshold of `settings` on or from below it.
    settings : DedupSettings
    """
    order = rank(table, settings.keep, id_field, settings.random_state)
    ranks, ids = np.argsort(order), table[id_field].combine_chunks()
    pairs = ranks[similar.rows], ranks[similar.neighbors]
    threshold = np.float32(settings.threshold)
    found = greedy_select(len(table), *pairs, similar.scores, similar.copies, threshold, settings.rule)
    return to_table(ids.take(pa.array(order)), found, labels[order]).take(pa.array(ranks))


class MemoryDecisions:
    """Decisions on rows in memory; the counterpart of :class:`daskmeans.DedupResult`, whose names it shares.

    Parameters
    ----------
    table : pyarrow.Table
        The ids first, and the columns that rows are ranked by.
    labels : ndarray of int32, shape (n,)
    similar : SimilarPairs
        All pairs from the floor of `settings` on.
    settings : DedupSettings
    describe : callable
        Returns the metadata of the rows at some places, as dicts.
    """

    def __init__(
        self,
        table: pa.Table,
        labels: np.ndarray,
        similar: SimilarPairs,
        settings: DedupSettings,
        describe: Callable[[np.ndarray], list[dict[str, Any]]],
    ) -> None:
        self._rows, self._settings, self._describe = (table, labels, similar), settings, describe
        self.table = decide(table, table.column_names[0], labels, similar, settings)

    @property
    def keep(self) -> np.ndarray:
        """bool, shape (n,): which rows stay."""
        return self.table["keep"].to_numpy()  # type: ignore[no-any-return]

    @property
    def removed(self) -> pd.DataFrame:
        """Decisions on the rows that are removed."""
        return self.table.filter(pc.invert(self.table["keep"])).to_pandas(types_mapper=pd.ArrowDtype)

    def figures(self) -> dict[str, str]:
        """Counts of the rows, and the settings, for display."""
        exact, semantic = (pc.sum(pc.equal(self.table["reason"], name)).as_py() or 0 for name in ("exact", "semantic"))
        counts = {"rows": len(self.table), "kept": int(self.keep.sum()), "exact": exact, "semantic": semantic}
        return {name: f"{count:,}" for name, count in counts.items()} | {"threshold": str(self._settings.threshold)}

    def groups(self, limit: int = 10) -> list[Group]:
        """As :meth:`daskmeans.DedupResult.groups`."""
        heads = select_first_groups(self.table, limit)["kept_id"].combine_chunks()
        rows = self.table.filter(pc.is_in(self.table["kept_id"], heads))
        shown = pa.concat_arrays([heads, *rows["id"].chunks])
        places = pc.index_in(shown, self.table["id"].combine_chunks()).to_numpy()
        known = dict(zip(shown.to_pylist(), self._describe(places), strict=True))
        members: dict[Any, list[Duplicate]] = {id_: [] for id_ in heads.to_pylist()}
        for row in rows.sort_by([("kept_score", "ascending"), ("id", "ascending")]).to_pylist():
            duplicate = Duplicate(row["id"], row["kept_score"], row["reason"], known[row["id"]])
            members[row["kept_id"]].append(duplicate)
        centroids = self.table["centroid"].to_numpy()[places[: len(heads)]]
        return [
            Group(id_, int(centroid), known[id_], tuple(members[id_]))
            for id_, centroid in zip(members, centroids, strict=True)
        ]

    def at(self, threshold: float) -> MemoryDecisions:
        """Decide at another threshold, from the pairs that are known, without a new search.

        Raises
        ------
        UsageError
            The threshold is below the floor.
        """
        asked, floor = round_to_float32(check_share("threshold", threshold)), self._settings.floor
        if asked < floor:
            raise UsageError(
                f"pairs are known from a score of {floor} on",
                where="threshold",
                expected=f"{floor} or more",
                remedy=f"deduplicate with floor={asked}",
            )
        return MemoryDecisions(*self._rows, replace(self._settings, threshold=asked), self._describe)
