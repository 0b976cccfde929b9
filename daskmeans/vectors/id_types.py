"""Types of ids: what they are read as, how they are cast without loss, and how people see them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskmeans.errors import UsageError

Column = TypeVar("Column", pa.Array, pa.ChunkedArray)

EXPECTED = "integers, strings, bytes, UUIDs or decimals without a fraction"
ID_REMEDY = "name another --id-field, or make ids of file and row with --id-from file-row"
# From here on a float64 is not the number that was meant: its neighbours are no longer integers apart.
MOST_EXACT = 2**53
DECIMAL = pa.decimal128(38, 0)
UUID_BYTES = 16


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return `type_` without dictionary, view or 64-bit offsets, so that all partitions have the same type."""
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    return type_


def id_type(type_: pa.DataType, where: str) -> pa.DataType:
    """Return the type that ids of type `type_` are read as.

    uint64, strings, bytes and decimals stay what they are. Other integers become int64, as do floating-point numbers,
    which must not have fractions, and a UUID is its 16 bytes.

    Raises
    ------
    UsageError
        Values of this type are no ids.

    Examples
    --------
    >>> id_type(pa.int8(), ""), id_type(pa.large_string(), ""), id_type(pa.decimal128(20, 0), "")
    (DataType(int64), DataType(string), Decimal128Type(decimal128(38, 0)))
    """
    bare = plain_type(type_)
    if isinstance(bare, pa.BaseExtensionType):
        bare = plain_type(bare.storage_type)
    if pa.types.is_uint64(bare) or pa.types.is_string(bare) or is_bytes(bare):
        return bare
    if pa.types.is_integer(bare) or pa.types.is_floating(bare):
        return pa.int64()
    if pa.types.is_decimal(bare) and bare.scale == 0 and bare.precision <= DECIMAL.precision:
        return DECIMAL
    raise UsageError(f"the id is {type_}", where=where, expected=EXPECTED, remedy=ID_REMEDY)


def wide_type(type_: pa.DataType) -> pa.DataType:
    """Return the type in which ids of type `type_` are gathered: integers as they are, others without 2 GiB limit."""
    bare = plain_type(type_)
    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(bare, bare)


def is_bytes(type_: pa.DataType) -> bool:
    """Whether ids of type `type_` are bytes, of any or of one length."""
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)


def cast_ids(ids: Column, type_: pa.DataType) -> Column:
    """Cast `ids` to `type_`, as :func:`id_type` chose it for them; NaN becomes null.

    Raises
    ------
    pyarrow.ArrowInvalid
        `type_` does not have a value.

    Examples
    --------
    >>> cast_ids(pa.array([1.0, float("nan")]), pa.int64()).to_pylist()
    [1, None]
    >>> cast_ids(pa.array([1.5]), pa.int64())
    Traceback (most recent call last):
    ...
    pyarrow.lib.ArrowInvalid: 1.5 is no integer
    """
    ids = decode_ids(ids)
    if pa.types.is_floating(ids.type) and pa.types.is_integer(type_):
        ids = pc.if_else(pc.is_nan(ids), pa.scalar(None, ids.type), ids)
        values = ids.drop_null().to_numpy()
        if not (exact := is_exact(values)).all():
            value = float(values[exact.argmin()])
            why = "is beyond 2^53, where doubles skip integers" if value.is_integer() else "is no integer"
            raise pa.ArrowInvalid(f"{value} {why}")
    return ids if ids.type == type_ else ids.cast(type_)


def decode_ids(ids: Column) -> Column:
    """Return `ids` without dictionary, and those of an extension type, such as UUIDs, as they are stored."""
    if isinstance(ids.type, pa.BaseExtensionType):
        ids = ids.cast(ids.type.storage_type)
    return ids.cast(ids.type.value_type) if pa.types.is_dictionary(ids.type) else ids


def is_exact(values: np.ndarray) -> np.ndarray:
    """Return which of `values`, numbers, are integers that their type tells from their neighbours."""
    if values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return (values == np.floor(values)) & (np.abs(values) <= MOST_EXACT)


def is_same_kind(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether ids of types `one` and `other` may be the same: both integers, or of one type.

    Examples
    --------
    >>> is_same_kind(pa.int64(), pa.uint64()), is_same_kind(pa.binary(), pa.string())
    (True, False)
    """
    return wide_type(one) == wide_type(other) or (pa.types.is_integer(one) and pa.types.is_integer(other))


def ids_to_text(ids: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return `ids` as strings for people to read.

    Examples
    --------
    >>> ids_to_text(pa.array([bytes(range(16)), b"row-7", bytes([255])])).to_pylist()
    ['00010203-0405-0607-0809-0a0b0c0d0e0f', 'row-7', 'ff']
    """
    ids = decode_ids(ids)
    if not is_bytes(plain_type(ids.type)):
        return ids.cast(pa.string())
    return pa.array([None if value is None else id_to_text(value) for value in ids.to_pylist()], pa.string())


def id_to_text(value: Any) -> str:
    """Return an id for people to read: bytes as text if they are, else as UUID or hexadecimal digits.

    Examples
    --------
    >>> id_to_text(7), id_to_text("a"), id_to_text(bytes(16))
    ('7', 'a', '00000000-0000-0000-0000-000000000000')
    """
    if not isinstance(value, bytes):
        return str(value)
    try:
        if (text := value.decode()).isprintable():
            return text
    except UnicodeDecodeError:
        pass
    return str(UUID(bytes=value)) if len(value) == UUID_BYTES else value.hex()


def quote_id(value: Any) -> str:
    """Return an id as messages show it: numbers without quotation marks, all else with them.

    Examples
    --------
    >>> quote_id(7), quote_id("a"), quote_id(bytes(2))
    ('7', "'a'", "'0000'")
    """
    return str(value) if isinstance(value, int | Decimal) else repr(id_to_text(value))
