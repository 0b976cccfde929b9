"""The table of decisions: its columns, how it is built, and how it is written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from daskmeans.buckets.buckets import CENTROID
from daskmeans.duplicates.greedy import RankedDecisions
from daskmeans.storage import signature
from daskmeans.vectors.files import translate_write_errors

# Values of the reason: for rows that stay, for copies, and for other duplicates.
REASONS = (None, "exact", "semantic")


def schema_of(ids: pa.DataType) -> pa.Schema:
    """Columns of decisions on rows with such `ids`.

    Examples
    --------
    >>> schema_of(pa.int64()).names
    ['id', 'keep', 'kept_id', 'kept_score', 'max_id', 'cosine_sim_score', 'reason', 'centroid']
    """
    columns = {
        "id": ids,
        "keep": pa.bool_(),
        "kept_id": ids,
        "kept_score": pa.float32(),
        "max_id": ids,
        "cosine_sim_score": pa.float32(),
        "reason": pa.string(),
        CENTROID: pa.int32(),
    }
    return pa.schema(columns.items())


def to_table(
    ids: pa.Array, found: RankedDecisions, centroid: int | np.ndarray, names: pa.Array | None = None
) -> pa.Table:
    """Table of the decisions `found` on the rows with these `ids`, in their order; `centroid` is one for all or each.

    `names` are the ids that the row numbers in `found` refer to; default: `ids`.
    """
    names = ids if names is None else names
    reason = np.where(found.keep, 0, np.where(found.exact, 1, 2))
    columns = [
        ids,
        found.keep,
        _take_ids(names, found.kept),
        pa.array(found.kept_score, mask=np.isnan(found.kept_score)),
        _take_ids(names, found.best),
        pa.array(found.score, mask=np.isnan(found.score)),
        pa.array(REASONS).take(pa.array(reason)),
        np.full(len(ids), centroid, np.int32),
    ]
    schema = schema_of(ids.type)
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def _take_ids(names: pa.Array, rows: np.ndarray) -> pa.Array:
    return names.take(pa.array(rows, mask=rows < 0))


def with_unpaired(decided: pa.Table, places: np.ndarray, ids: pa.Array, centroid: np.ndarray) -> pa.Table:
    """Decisions on all rows with these `ids`: `decided` has those at `places`, and all other rows stay.

    Examples
    --------
    >>> none, found = np.array([-1]), np.float32([np.nan])
    >>> ranked = RankedDecisions(none == 0, none + 1, found, none, found, none == 0)
    >>> one = to_table(pa.array([7]), ranked, 3, pa.array([8]))
    >>> table = with_unpaired(one, np.array([1]), pa.array([6, 7]), np.array([3, 3]))
    >>> table["keep"].to_pylist(), table["kept_id"].to_pylist()
    ([True, False], [None, 8])
    """
    schema, which = schema_of(ids.type), np.full(len(ids), -1)
    which[places] = np.arange(len(places))
    table = decided.cast(schema).take(pa.array(which, mask=which < 0))
    known = {"id": ids, "keep": table["keep"].fill_null(True), CENTROID: centroid}
    return pa.table([known.get(name, table[name]) for name in schema.names], schema=schema)


def write_table(table: pa.Table, file: UPath) -> list[int]:
    """Write decisions to `file`, in a folder of the step's directory; return the rows kept, copies and duplicates."""
    with translate_write_errors(file.parent.parent):
        signature.write_table(table, file, "dedup")
    exact, semantic = (pc.sum(pc.equal(table["reason"], reason)).as_py() or 0 for reason in REASONS[1:])
    return [len(table) - exact - semantic, exact, semantic]
