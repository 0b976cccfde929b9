"""Columns inside others, named by paths such as ``emb.values`` or ``response.body.data[0].embedding``.

A column that has the whole path as its name comes first. The schema that files are read with keeps the path of each of
its fields in the metadata of the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskmeans.vectors.matrix import is_list

Path = tuple[str | int, ...]

_KEY = b"path"
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def parse_path(name: str) -> Path:
    """Return the steps of the path `name`: names of fields and places in lists.

    Examples
    --------
    >>> parse_path("response.body.data[0].embedding"), parse_path("an id")
    (('response', 'body', 'data', 0, 'embedding'), ('an id',))
    """
    if not _PATH.fullmatch(name):
        return (name,)
    return tuple(field or int(place) for field, place in _STEP.findall(name))


def find_field(schema: pa.Schema, name: str) -> pa.Field | None:
    """Return the column `name` of `schema`, or what the path `name` leads to; None if there is neither.

    Examples
    --------
    >>> schema = pa.schema({"emb": pa.struct({"values": pa.list_(pa.float32())})})
    >>> find_field(schema, "emb.values").type
    ListType(list<item: float>)
    """
    if name in schema.names:
        return pa.field(name, schema.types[schema.names.index(name)])
    path = parse_path(name)
    if len(path) == 1 or schema.names.count(path[0]) != 1:
        return None
    type_ = schema.field(path[0]).type
    for step in path[1:]:
        found = _inner_type(type_, step)
        if found is None:
            return None
        type_ = found
    return pa.field(name, type_, metadata={_KEY: json.dumps(path)})


def path_of(field: pa.Field) -> Path:
    """Return the path of `field`, which comes from :func:`find_field`."""
    found = (field.metadata or {}).get(_KEY)
    return tuple(json.loads(found)) if found else (field.name,)


def column_names(schema: pa.Schema) -> list[str]:
    """Return the columns of a Parquet file to read for the fields of `schema`, without what lies beside them."""
    names = []
    for path in map(path_of, schema):
        inside = next((i for i, step in enumerate(path) if isinstance(step, int)), len(path))
        names.append(".".join(map(str, path[:inside])))
    return names


def take_column(table: pa.Table, path: Path) -> pa.ChunkedArray | None:
    """Return what `path` leads to in each row of `table`, null where it ends early; None if there is no such column."""
    if path[0] not in table.column_names:
        return None
    column = table[path[0]]
    for step in path[1:]:
        type_ = _inner_type(column.type, step)
        if type_ is None:
            return None
        column = pa.chunked_array([_take_inner(chunk, step) for chunk in column.chunks], type_)
    return column


def select_fields(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the fields of `schema` from the whole columns of `table`, in the types that they have there."""
    found = [take_column(table, path_of(field)) for field in schema]
    columns = [pa.chunked_array([pa.nulls(len(table))]) if column is None else column for column in found]
    return pa.Table.from_arrays(columns, names=schema.names)


def wrap_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of whole columns that hold the fields of `schema` and nothing else.

    Examples
    --------
    >>> inner = find_field(pa.schema({"a": pa.list_(pa.struct({"b": pa.int64(), "c": pa.int64()}))}), "a[0].b")
    >>> wrap_schema(pa.schema([inner])).types
    [ListType(list<item: struct<b: int64>>)]
    """
    whole: dict[str, pa.DataType] = {}
    for field in schema:
        path, type_ = path_of(field), field.type
        for step in reversed(path[1:]):
            type_ = pa.list_(type_) if isinstance(step, int) else pa.struct({step: type_})
        top = str(path[0])
        whole[top] = unify_types(whole[top], type_) or type_ if top in whole else type_
    return pa.schema(whole)


def unify_types(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds values of both types; None if there is none.

    Examples
    --------
    >>> unify_types(pa.int32(), pa.int64()), unify_types(pa.int64(), pa.string())
    (DataType(int64), None)
    """
    schemas = [pa.schema({"column": type_}) for type_ in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").types[0]
    except pa.ArrowException:
        return None


def inner_paths(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """Yield the paths of all columns inside those of `schema`, with their types; of lists, those of the first item."""
    pending = [(field.name, field.type) for field in schema]
    while pending:
        name, type_ = pending.pop(0)
        inside: Iterable[tuple[str, pa.DataType]] = ()
        if pa.types.is_struct(type_):
            inside = [(f"{name}.{field.name}", field.type) for field in type_]
        elif is_list(type_) and pa.types.is_struct(type_.value_type):
            inside = [(f"{name}[0].{field.name}", field.type) for field in type_.value_type]
        yield from inside
        pending += inside


def _inner_type(type_: pa.DataType, step: str | int) -> pa.DataType | None:
    if pa.types.is_null(type_):  # a column without values may be anything
        return pa.null()
    if isinstance(step, int):
        return type_.value_type if is_list(type_) else None
    index = type_.get_field_index(step) if pa.types.is_struct(type_) else -1
    return type_.field(index).type if index >= 0 else None


def _take_inner(array: pa.Array, step: str | int) -> pa.Array:
    if pa.types.is_null(array.type):
        return array
    if isinstance(step, str):
        return pc.struct_field(array, [array.type.get_field_index(step)])
    enough = pc.greater(pc.list_value_length(array), step).fill_null(False)
    items = pc.list_element(array.filter(enough), step)
    mask = ~enough.to_numpy(zero_copy_only=False)
    return items.take(pa.array(np.cumsum(~mask) - 1, mask=mask)) if mask.any() else items
