"""Keys of partitions, as Hive, Spark, pandas and DuckDB write them into the names of directories: ``lang=en``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import unquote

import pyarrow as pa
from upath import UPath

from daskmeans.vectors.files import bare_path
from daskmeans.vectors.partitioning import FileSurvey

NULL_KEY = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?\d{1,18}")


def partition_keys(path: UPath) -> dict[str, str | None]:
    """Return the keys in the names of the directories that `path` lies in.

    Examples
    --------
    >>> partition_keys(UPath("in/lang=en/day=2026%2F01/0.parquet"))
    {'lang': 'en', 'day': '2026/01'}
    """
    pairs = (folder.partition("=") for folder in bare_path(path).split("/")[:-1] if "=" in folder)
    return {unquote(name): None if value == NULL_KEY else unquote(value) for name, _, value in pairs if name}


def with_keys(surveys: Sequence[tuple[UPath, FileSurvey]]) -> list[tuple[UPath, FileSurvey]]:
    """Return `surveys` with the keys of the files as further columns: of integers if all values are, else of strings.

    A column of the same name in a file comes first.
    """
    keys = [partition_keys(path) for path, _ in surveys]
    types = {name: _key_type([each.get(name) for each in keys]) for name in dict.fromkeys(n for k in keys for n in k)}
    found = []
    for (path, survey), names in zip(surveys, keys, strict=True):
        more = [pa.field(name, types[name]) for name in names if name not in survey.schema.names]
        found.append((path, replace(survey, schema=pa.schema([*survey.schema, *more])) if more else survey))
    return found


def fill_keys(table: pa.Table, path: UPath) -> pa.Table:
    """Return `table`, rows of `path`, with the keys of the file where its columns have no values."""
    for name, value in partition_keys(path).items():
        if name in table.column_names and table[name].null_count:
            table = table.set_column(table.column_names.index(name), name, _fill_nulls(table[name], value))
    return table


def _fill_nulls(column: pa.ChunkedArray, value: str | None) -> pa.ChunkedArray:
    key = pa.scalar(value, pa.string())
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.repeat(key, len(column))])
    try:
        return column.fill_null(key.cast(column.type))
    except pa.ArrowException:  # the column has values of another kind
        return column


def _key_type(values: Sequence[str | None]) -> pa.DataType:
    given = [value for value in values if value is not None]
    return pa.int64() if given and all(map(_INTEGER.fullmatch, given)) else pa.string()
