"""Rank rows: of two duplicates, the earlier-ranked one stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskmeans.buckets.buckets import L2
from daskmeans.errors import UsageError
from daskmeans.kernels.hashing import hash_column

_ORDERS = {"asc": "ascending", "desc": "descending"}
_EXPECTED = "hard, easy, random, or columns as COLUMN:asc or COLUMN:desc"


def parse_keep(keep: str | Sequence[str]) -> tuple[str, ...]:
    """`keep` as a tuple: one of ``hard``, ``easy``, ``random``, or one or more ``COLUMN:asc|desc``.

    Raises
    ------
    UsageError
        `keep` is anything else.

    Examples
    --------
    >>> parse_keep("hard"), parse_keep(["stars:desc", "length:asc"])
    (('hard',), ('stars:desc', 'length:asc'))
    """
    rules = (keep,) if isinstance(keep, str) else tuple(keep)
    if len(rules) == 1 and rules[0] in ("hard", "easy", "random"):
        return rules
    for rule in rules:
        column, _, order = rule.rpartition(":")
        if not column or order not in _ORDERS:
            raise UsageError(f"cannot keep rows by {rule!r}", where="--keep", expected=_EXPECTED)
    if len(set(ranking_columns(rules))) < len(rules):
        raise UsageError("a column is named twice", where="--keep", expected="every column once")
    if not rules:
        raise UsageError("no rule says which rows to keep", where="--keep", expected=_EXPECTED)
    return rules


def ranking_columns(keep: tuple[str, ...]) -> list[str]:
    """Columns that ranking by `keep` reads, besides the id."""
    if keep == ("random",):
        return []
    return [L2] if keep in (("hard",), ("easy",)) else [rule.rpartition(":")[0] for rule in keep]


def columns_to_read(keep: tuple[str, ...], id_field: str) -> list[str]:
    """Columns of the clusters that ranking by `keep` reads, the ids first."""
    return list(dict.fromkeys([id_field, *ranking_columns(keep)]))


def check_ranking_columns(keep: tuple[str, ...], schema: pa.Schema) -> None:
    """Make sure that the columns of `keep` are in `schema` (the columns of the clusters without vectors) and sortable.

    Raises
    ------
    UsageError
        A column is missing, or has a type that cannot be sorted.
    """
    check_ranking_names(keep, schema.names)
    for column in ranking_columns(keep):
        try:
            _sort_rows([pa.nulls(2, schema.field(column).type), pa.array([0, 1])], ["ascending"] * 2)
        except pa.ArrowException:
            raise UsageError(
                f"column {column!r} is {schema.field(column).type}, which cannot be sorted",
                where="--keep",
                expected="a column of numbers, strings, booleans or times",
            ) from None


def check_ranking_names(keep: tuple[str, ...], names: Sequence[str]) -> None:
    """Make sure that the columns of `keep` are among `names`, those of the clusters without vectors."""
    for column in ranking_columns(keep):
        if column not in names:
            raise UsageError(
                f"the clusters have no column {column!r}",
                where="--keep",
                expected="one of " + ", ".join(names),
                remedy=f"keep the column: add `--metadata-field {column}` to assign or run",
            )


def rank(table: pa.Table, keep: tuple[str, ...], id_field: str, random_state: int) -> np.ndarray:
    """Rank the rows of `table`; of two duplicates, the earlier-ranked one stays.

    Parameters
    ----------
    table : pyarrow.Table
        The rows, with the id and `ranking_columns(keep)`.
    keep : tuple of str
        Return value of `parse_keep`. ``hard`` ranks by distance to the centroid, farthest first, and breaks ties by
        descending id; ``easy`` is the reverse. ``random`` ranks by a hash of the id. Columns rank by their values in
        the order given, nulls last. The latter two break ties by ascending id.
    id_field : str
    random_state : int
        Seed of the hash.

    Returns
    -------
    ndarray of int64, shape (n,)
        Row numbers in rank order.

    Examples
    --------
    >>> table = pa.table({"id": ["a", "b", "c"], "stars": [1, None, 7]})
    >>> rank(table, ("stars:desc",), "id", 0).tolist()
    [2, 0, 1]
    """
    ids = table[id_field]
    if keep == ("random",):
        columns, orders = [pa.array(hash_column(ids, random_state)), ids], ["ascending"] * 2
    elif keep in (("hard",), ("easy",)):
        columns, orders = [table[L2], ids], ["descending" if keep == ("hard",) else "ascending"] * 2
    else:
        columns = [*(table[column] for column in ranking_columns(keep)), ids]
        orders = [*(_ORDERS[rule.rpartition(":")[2]] for rule in keep), "ascending"]
    return _sort_rows(columns, orders)


def _sort_rows(columns: list[pa.Array | pa.ChunkedArray], orders: list[str]) -> np.ndarray:
    # Arrow cannot sort tables by a dictionary-encoded column.
    plain = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in columns]
    keys = pa.table(plain, names=[str(i) for i in range(len(plain))])
    by = [(name, order) for name, order in zip(keys.column_names, orders, strict=True)]
    return pc.sort_indices(keys, sort_keys=by).to_numpy().astype(np.int64)
