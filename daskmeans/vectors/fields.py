"""The columns that are read, and the types they are read as."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from daskmeans.errors import DataError, UsageError
from daskmeans.runtime.client import logger
from daskmeans.vectors import layouts
from daskmeans.vectors.id_types import id_type, plain_type
from daskmeans.vectors.matrix import is_untyped
from daskmeans.vectors.nested import find_field, inner_paths, unify_types
from daskmeans.vectors.partitioning import FileSurvey

TypeOf = Callable[[pa.DataType, str], pa.DataType]

RENAME_REMEDY = "write the file again with columns of different names"


@dataclass(frozen=True)
class Fields:
    """Names of the columns to read; either `embedding` or `text` is given."""

    id: str
    embedding: str | None
    text: str | None
    metadata: tuple[str, ...]

    @property
    def value(self) -> str:
        """Name of the column of vectors or texts."""
        return self.embedding or self.text or ""


def as_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return one or several column names as a tuple.

    Examples
    --------
    >>> as_names("text"), as_names(["text", "stars"])
    (('text',), ('text', 'stars'))
    """
    return (given,) if isinstance(given, str) else tuple(given)


def choose_fields(
    schema: pa.Schema,
    path: UPath,
    id_field: str,
    embedding_field: str | None,
    text_field: str | None,
    metadata: str | Iterable[str],
    *,
    has_ids: bool = True,
) -> Fields:
    """Choose the columns to read from files such as `path`, whose `schema` must have them.

    Files that have no ids (`has_ids`) need no column `id_field`; ids that are made for them are called so.

    Raises
    ------
    UsageError
        A column is missing or has a wrong type, or there are several vector columns and none was named.
    DataError
        A column name occurs twice.
    """
    names = tuple(dict.fromkeys(as_names(metadata)))
    if has_ids:
        _require_column(schema, path, id_field, "--id-field")
    for name in names:
        _require_column(schema, path, name, "--metadata-field")
    if text_field is not None:
        _require_column(schema, path, text_field, "--text-field")
        embedding_field = None
    elif embedding_field is not None:
        found = _require_column(schema, path, embedding_field, "--embedding-field")
        _element_type(found.type, f"{path}, column {embedding_field!r}", embedding_field)
        _refuse_sparse(schema, path, embedding_field)
    else:
        embedding_field = _find_vector_column(schema, path, names)
        _require_column(schema, path, embedding_field, "--embedding-field")
    value = embedding_field or text_field
    if value == id_field:
        raise UsageError(
            f"the column {value!r} is named for both the ids and the {'texts' if text_field else 'vectors'}",
            where=str(path),
            expected=f"two of the columns {', '.join(schema.names)}",
            remedy=f"name another column with --id-field or {'--text-field' if text_field else '--embedding-field'}",
        )
    if not has_ids and id_field in names:
        raise UsageError(
            f"the column {id_field!r} is to be kept, but the ids that are made are called so",
            where=str(path),
            expected="another name for them",
            remedy="name them with --id-field, such as --id-field row",
        )
    return Fields(id_field, embedding_field, text_field, tuple(name for name in names if name not in (id_field, value)))


def output_schema(
    fields: Fields,
    surveys: Sequence[tuple[UPath, FileSurvey]],
    dimension: int,
    like: UPath,
    made: pa.DataType | None = None,
) -> tuple[pa.Schema, pa.Schema]:
    """Return the schema of the rows of all files in `surveys`, and that of the columns to read them from.

    None of the files is empty; vectors in `like` have `dimension`. Metadata are null in files without them, and their
    types are promoted to one that holds all values.

    If ids are made, `made` is their type, and they are not read.

    Raises
    ------
    UsageError
        A column is missing in one of the files, or has a wrong type.
    DataError
        Two files contradict each other.
    """
    types = {fields.id: made or _id_type(fields.id, surveys)}
    if fields.embedding:
        types[fields.embedding] = _vector_type(fields.embedding, surveys, dimension, like)
    else:
        types[fields.value] = _common_type(fields.value, surveys, _text_type)
    types |= {name: _promoted_type(name, surveys) for name in fields.metadata}
    read = [name for name in types if made is None or name != fields.id]
    stored = [_stored_field(name, types[name], surveys, fields.embedding) for name in read]
    return pa.schema(types), pa.schema(stored)


def _stored_field(
    name: str, type_: pa.DataType, surveys: Sequence[tuple[UPath, FileSurvey]], embedding: str | None
) -> pa.Field:
    """Return the field to read `name` from; of vectors, in their layout."""
    found = [field for _, survey in surveys if (field := find_field(survey.schema, name)) is not None]
    field = next((field for field in found if not is_untyped(field.type)), found[0])
    if name != embedding:
        return field.with_type(type_)
    return field.with_type(layouts.with_elements(field.type, type_.value_type))


def _require_column(schema: pa.Schema, path: UPath, name: str, flag: str) -> pa.Field:
    _refuse_duplicate(schema, path, name, f"name another column with {flag}, or ")
    field = find_field(schema, name)
    if field is not None:
        return field
    near = difflib.get_close_matches(name, [*schema.names, *(inner for inner, _ in inner_paths(schema))], 1)
    remedy = f"did you mean {flag} {near[0]}?" if near else f"name another column with {flag}"
    raise UsageError(f"there is no column {name!r}", where=str(path), expected=_describe_columns(schema), remedy=remedy)


def _refuse_duplicate(schema: pa.Schema, path: UPath, name: str, otherwise: str = "") -> None:
    if schema.names.count(name) > 1:
        raise DataError(
            f"there are {schema.names.count(name)} columns {name!r}",
            where=str(path),
            expected="unique column names",
            remedy=f"{otherwise}{RENAME_REMEDY}",
        )


def _describe_columns(schema: pa.Schema) -> str:
    return f"one of the columns {', '.join(schema.names)}"


def _refuse_sparse(schema: pa.Schema, path: UPath, name: str) -> None:
    """Refuse the values of vectors of Spark: of sparse ones, they are not the vector."""
    outer = find_field(schema, name.removesuffix(".values"))
    if outer is not None and outer.name != name and layouts.is_spark_vector(outer.type):
        raise UsageError(
            f"the column {name!r} has only the values of vectors that may be sparse",
            where=str(path),
            expected="the whole vectors of Spark",
            remedy=f"--embedding-field {outer.name}",
        )


def _find_vector_column(schema: pa.Schema, path: UPath, taken: Sequence[str]) -> str:
    free = [field for field in schema if field.name not in taken]
    found = [field.name for field in free if layouts.is_plain(field.type)]
    found = found or [field.name for field in free if layouts.is_float(field.type)]
    if not found:
        named = [field.name for field in free if layouts.list_type(field.type) and not is_untyped(field.type)]
        named += [name for name, type_ in inner_paths(schema) if layouts.is_float(type_)]
        raise UsageError(
            "there is no column of vectors",
            where=str(path),
            expected=f"a list of floats; the columns are {', '.join(f'{f.name} ({f.type})' for f in schema)}",
            remedy=f"--embedding-field {named[0]}"
            if len(named) == 1
            else layouts.describe_joining(schema)
            or "name the column with --embedding-field, or make vectors of a text column with `daskmeans embed`",
        )
    if len(found) > 1:
        single = [name for name in found if schema.names.count(name) == 1]
        raise UsageError(
            f"there are {len(found)} columns of vectors: {', '.join(found)}",
            where=str(path),
            expected="one, or the name of the one to read",
            remedy=f"--embedding-field {single[0]}" if single else RENAME_REMEDY,
        )
    return found[0]


def _common_type(name: str, surveys: Sequence[tuple[UPath, FileSurvey]], type_of: TypeOf) -> pa.DataType:
    """Return the type of column `name` that all files agree on; files with only nulls agree with any type."""
    first: tuple[UPath, pa.DataType] | None = None
    for path, stored in _column_types(name, surveys):
        type_ = type_of(stored, f"{path}, column {name!r}")
        if first is None:
            first = path, type_
        elif type_ != first[1]:
            _raise_contradiction(name, (first[0], str(first[1])), (path, str(type_)))
    return first[1] if first else pa.string()


def _promoted_type(name: str, surveys: Sequence[tuple[UPath, FileSurvey]]) -> pa.DataType:
    """Return the type that holds the metadata `name` of all files; log files without them."""
    known: tuple[UPath, pa.DataType] | None = None
    for path, stored in _column_types(name, surveys, required=False):
        type_ = _metadata_type(stored, f"{path}, column {name!r}")
        common = type_ if known is None else unify_types(known[1], type_)
        if common is None and known is not None:
            _raise_contradiction(name, (known[0], str(known[1])), (path, str(type_)))
        if known is None or common != known[1]:
            known = path, common
    without = [path for path, survey in surveys if survey.complete and find_field(survey.schema, name) is None]
    if without:
        _warn_once(
            f"{without[0]}: there is no column {name!r} in {len(without):,} of {len(surveys):,} files; it is null there"
        )
    return known[1] if known else pa.string()


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, though every step opens its input anew."""
    logger.warning("%s", message)


def _column_types(
    name: str, surveys: Sequence[tuple[UPath, FileSurvey]], required: bool = True
) -> Iterator[tuple[UPath, pa.DataType]]:
    for path, survey in surveys:
        _refuse_duplicate(survey.schema, path, name)
        field = find_field(survey.schema, name)
        if field is None and survey.complete and required:
            expected = _describe_columns(survey.schema)
            others = (str(other) for other, each in surveys if find_field(each.schema, name) is not None)
            remedy = f"other files, such as {next(others)}, have this column; write this one again"
            raise UsageError(f"there is no column {name!r}", where=str(path), expected=expected, remedy=remedy)
        if field is not None and not pa.types.is_null(field.type):
            yield path, field.type


def _raise_contradiction(name: str, one: tuple[UPath, str], other: tuple[UPath, str]) -> None:
    raise DataError(
        f"column {name!r} is {one[1]} in {one[0]}, but {other[1]} here",
        where=str(other[0]),
        expected="the same in all files",
        remedy="rewrite one of the files, or use them in separate runs",
    )


def _id_type(name: str, surveys: Sequence[tuple[UPath, FileSurvey]]) -> pa.DataType:
    """Return the type of ids in column `name`; signed and unsigned integers in different files are read as signed."""
    found = {id_type(stored, f"{path}, column {name!r}") for path, stored in _column_types(name, surveys)}
    return pa.int64() if found == {pa.int64(), pa.uint64()} else _common_type(name, surveys, id_type)


def _text_type(type_: pa.DataType, where: str) -> pa.DataType:
    if pa.types.is_string(plain_type(type_)):
        return pa.string()
    raise UsageError(f"the text is {type_}", where=where, expected="strings", remedy="name another --text-field")


def _metadata_type(type_: pa.DataType, where: str) -> pa.DataType:
    carried = _carried_type(type_)
    try:
        pc.take(pa.nulls(1, carried), pa.array([0]))
    except pa.ArrowNotImplementedError:
        raise UsageError(
            f"the column is {type_}, from which pyarrow cannot select rows",
            where=where,
            expected="a column of another type",
            remedy="leave it out of the metadata fields, or write it as another type",
        ) from None
    return carried


def _carried_type(type_: pa.DataType) -> pa.DataType:
    """Return `type_` with plain types at the top and inside lists and structs, where files may have dictionaries."""
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_carried_type(field.type)) for field in type_])
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_carried_type(type_.value_type)))
    return plain_type(type_)


def _vector_type(name: str, surveys: Sequence[tuple[UPath, FileSurvey]], dimension: int, like: UPath) -> pa.DataType:
    """Return the fixed-size list of `dimension` elements of the widest type found; integers become float32."""
    widest = pa.float16()
    for path, type_ in _column_types(name, surveys):
        if is_untyped(type_):
            continue
        element = _element_type(type_, f"{path}, column {name!r}", name)
        lists = layouts.list_type(type_)
        if lists is not None and pa.types.is_fixed_size_list(lists) and lists.list_size != dimension:
            _raise_contradiction(name, (like, f"of dimension {dimension}"), (path, f"of dimension {lists.list_size}"))
        widest = max(widest, element, key=lambda t: t.bit_width)
    return pa.list_(widest, dimension)


def _element_type(type_: pa.DataType, where: str, name: str) -> pa.DataType:
    """Return the floating-point type of the elements of vectors of `type_`; float32 for integers."""
    lists = layouts.list_type(type_)
    element = lists.value_type if lists else pa.null()
    if pa.types.is_floating(element):
        return element
    if pa.types.is_integer(element) and element != layouts.BITS_TYPE:
        return pa.float32()
    raise UsageError(
        f"the column is {type_}",
        where=where,
        expected="a list, large list or fixed-size list of float16, float32 or float64",
        remedy=_vector_remedy(name, type_),
    )


def _vector_remedy(name: str, type_: pa.DataType) -> str:
    inner = [path for path, each in inner_paths(pa.schema({name: type_})) if layouts.is_float(each)]
    return f"--embedding-field {inner[0]}" if inner else layouts.describe_remedy(name, type_)
