"""Layouts of vectors in files, and the lists that they are read as.

Besides lists of numbers these are tensors of one axis, lists of one list (what many encoders return for one text), and
the vectors of Spark.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskmeans.vectors.matrix import is_list, is_untyped, list_lengths, null_mask

SPARK_FIELDS = {"type", "size", "indices", "values"}
# Whole numbers of this type are nearly always the bits of bfloat16 or float16, for which Parquet had no type.
BITS_TYPE = pa.uint16()
# Numbered columns of floats from which on they may be meant as one vector.
MIN_JOINED = 8


def list_type(type_: pa.DataType) -> pa.DataType | None:
    """Return the type of the lists that vectors of `type_` are read as; None if it is no layout of vectors.

    Examples
    --------
    >>> list_type(pa.list_(pa.list_(pa.float32()))), list_type(pa.string())
    (ListType(list<item: float>), None)
    """
    if isinstance(type_, pa.BaseExtensionType):
        axes = [size for size in getattr(type_, "shape", ()) if size != 1]
        return list_type(type_.storage_type) if len(axes) < 2 else None
    if is_spark_vector(type_):
        return list_type(type_.field("values").type)
    if not is_list(type_):
        return None
    inner = type_.value_type
    if is_list(inner) and _is_number(inner.value_type):
        return pa.list_(_read_as(inner.value_type))
    if _is_number(inner) or is_untyped(type_):
        return with_elements(type_, _read_as(inner))
    return None


def is_spark_vector(type_: pa.DataType) -> bool:
    """Whether `type_` is that of a column of vectors of Spark's machine learning, dense or sparse."""
    return pa.types.is_struct(type_) and {field.name for field in type_} == SPARK_FIELDS


def is_float(type_: pa.DataType) -> bool:
    """Whether `type_` is a layout of vectors of floating-point numbers."""
    lists = list_type(type_)
    return lists is not None and pa.types.is_floating(lists.value_type)


def is_plain(type_: pa.DataType) -> bool:
    """Whether `type_` is that of lists or of tensors of floating-point numbers."""
    stored = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    return is_float(type_) and is_list(stored) and pa.types.is_floating(stored.value_type)


def is_nested(type_: pa.DataType) -> bool:
    """Whether `type_` is that of lists of lists."""
    stored = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    return is_list(stored) and is_list(stored.value_type)


def with_elements(type_: pa.DataType, element: pa.DataType) -> pa.DataType:
    """Return `type_`, a layout of vectors, with elements of type `element`."""
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(with_elements(type_.value_type, element), type_.list_size)
    if pa.types.is_large_list(type_):
        return pa.large_list(with_elements(type_.value_type, element))
    if is_list(type_):
        return pa.list_(with_elements(type_.value_type, element))
    if is_spark_vector(type_):
        values = type_.get_field_index("values")
        return pa.struct([f.with_type(pa.list_(element)) if i == values else f for i, f in enumerate(type_)])
    return element


def to_lists(vectors: pa.Array) -> pa.Array:
    """Return `vectors` as lists of numbers; what is not one dense vector becomes null. Plain lists are not copied."""
    if isinstance(vectors, pa.ExtensionArray):
        return to_lists(vectors.storage)
    if is_spark_vector(vectors.type):
        values = pc.struct_field(vectors, [vectors.type.get_field_index("values")])
        return pc.if_else(pa.array(is_sparse(vectors)), pa.scalar(None, values.type), values)
    if is_nested(vectors.type):
        single = list_lengths(vectors) == 1
        inner = vectors.filter(pa.array(single)).flatten()
        inner = inner.cast(pa.list_(_read_as(inner.type.value_type)))
        return inner if single.all() else inner.take(pa.array(np.cumsum(single) - 1, mask=~single))
    if is_list(vectors.type) and pa.types.is_decimal(vectors.type.value_type):
        return vectors.cast(with_elements(vectors.type, pa.float64()))
    return vectors


def is_sparse(vectors: pa.Array) -> np.ndarray:
    """Return whether each of `vectors` is a sparse one of Spark. Shape (n,), bool."""
    if not is_spark_vector(vectors.type):
        return np.zeros(len(vectors), bool)
    kind = pc.struct_field(vectors, [vectors.type.get_field_index("type")])
    return pc.equal(kind, 0).fill_null(False).to_numpy(zero_copy_only=False)


def has_several(vectors: pa.Array) -> np.ndarray:
    """Return whether each row of `vectors` has another number of vectors than one. Shape (n,), bool."""
    if isinstance(vectors, pa.ExtensionArray):
        return has_several(vectors.storage)
    if is_nested(vectors.type):
        return (list_lengths(vectors) != 1) & ~null_mask(vectors)
    return np.zeros(len(vectors), bool)


def describe_remedy(name: str, type_: pa.DataType) -> str:
    """Return how to make vectors of the column `name` of `type_`, which is no layout of them."""
    column = f'table["{name}"]'
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        kinds = {"float32": f'np.frombuffer(b"".join({column}.to_pylist()), "<f4")'}
    elif pa.types.is_string(type_) or pa.types.is_large_string(type_):
        decoded = f"map(base64.b64decode, {column}.to_pylist())"
        kinds = {
            "float32 in base64": f'np.frombuffer(b"".join({decoded}), "<f4")',
            "JSON": f"np.array([json.loads(row) for row in {column}.to_pylist()], np.float32).ravel()",
        }
    elif is_list(type_) and type_.value_type == BITS_TYPE:
        elements = f"{column}.combine_chunks().flatten().to_numpy()"
        kinds = {"bfloat16": f"({elements}.astype(np.uint32) << 16).view(np.float32)"}
    else:
        return "name another column with --embedding-field"
    return (
        "name another column with --embedding-field, or write the table again with "
        + " or ".join(f"x = {made} (if it holds {kind})" for kind, made in kinds.items())
        + f"; table = table.set_column(table.column_names.index({name!r}), {name!r}, "
        "pa.FixedSizeListArray.from_arrays(x, len(x) // len(table)))"
    )


def describe_joining(schema: pa.Schema) -> str:
    """Return how to make one column of vectors of many numbered columns; empty if there are none."""
    numbers = (re.fullmatch(r"(.*?)\d+", field.name) for field in schema if pa.types.is_floating(field.type))
    counts = Counter(found[1] for found in numbers if found)
    prefix, count = max(counts.items(), key=lambda each: each[1], default=("", 0))
    if count < MIN_JOINED:
        return ""
    pattern = re.escape(prefix) + r"\d+"
    return (
        f"if {prefix}0 and so on are one vector in each row, write the table again with "
        f"names = [name for name in table.column_names if re.fullmatch({pattern!r}, name)]; "
        "x = np.stack([table[name].to_numpy() for name in names], axis=1); "
        "column = pa.FixedSizeListArray.from_arrays(x.ravel(), len(names)); "
        'table = table.drop_columns(names).append_column("embedding", column)'
    )


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_decimal(type_)


def _read_as(element: pa.DataType) -> pa.DataType:
    return pa.float64() if pa.types.is_decimal(element) else element
