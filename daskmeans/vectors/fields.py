"""The columns that are read, and the types they are read as."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from daskmeans.errors import DataError, UsageError
from daskmeans.vectors.id_types import id_type, plain_type
from daskmeans.vectors.matrix import is_list, is_untyped, vector_columns
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
        _require_column(schema, path, embedding_field, "--embedding-field")
        _element_type(schema.field(embedding_field).type, f"{path}, column {embedding_field!r}")
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
) -> pa.Schema:
    """Return the schema of the rows of all files in `surveys`, none of them empty; vectors in `like` have `dimension`.

    If ids are made, `made` is their type.

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
    types |= {name: _common_type(name, surveys, _metadata_type) for name in fields.metadata}
    return pa.schema(types)


def _require_column(schema: pa.Schema, path: UPath, name: str, flag: str) -> None:
    if name in schema.names:
        _refuse_duplicate(schema, path, name, f"name another column with {flag}, or ")
        return
    near = difflib.get_close_matches(name, schema.names, 1)
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


def _find_vector_column(schema: pa.Schema, path: UPath, taken: Sequence[str]) -> str:
    found = [name for name in vector_columns(schema) if name not in taken]
    if not found:
        raise UsageError(
            "there is no column of vectors",
            where=str(path),
            expected=f"a list of floats; the columns are {', '.join(f'{f.name} ({f.type})' for f in schema)}",
            remedy="name the column with --embedding-field, or make vectors of a text column with `daskmeans embed`",
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


def _column_types(name: str, surveys: Sequence[tuple[UPath, FileSurvey]]) -> Iterator[tuple[UPath, pa.DataType]]:
    for path, survey in surveys:
        if name in survey.schema.names:
            _refuse_duplicate(survey.schema, path, name)
            if not pa.types.is_null(type_ := survey.schema.field(name).type):
                yield path, type_
        elif survey.complete:
            expected = _describe_columns(survey.schema)
            remedy = f"the other files, such as {surveys[0][0]}, have this column; write this one again"
            raise UsageError(f"there is no column {name!r}", where=str(path), expected=expected, remedy=remedy)


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
    carried = plain_type(type_)
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


def _vector_type(name: str, surveys: Sequence[tuple[UPath, FileSurvey]], dimension: int, like: UPath) -> pa.DataType:
    """Return the fixed-size list of `dimension` elements of the widest type found; integers become float32."""
    widest = pa.float16()
    for path, type_ in _column_types(name, surveys):
        if is_untyped(type_):
            continue
        element = _element_type(type_, f"{path}, column {name!r}")
        if pa.types.is_fixed_size_list(type_) and type_.list_size != dimension:
            _raise_contradiction(name, (like, f"of dimension {dimension}"), (path, f"of dimension {type_.list_size}"))
        widest = max(widest, element, key=lambda t: t.bit_width)
    return pa.list_(widest, dimension)


def _element_type(type_: pa.DataType, where: str) -> pa.DataType:
    """Return the floating-point type of the elements of lists of type `type_`; float32 for integers."""
    element = type_.value_type if is_list(type_) else pa.null()
    if pa.types.is_floating(element):
        return element
    if pa.types.is_integer(element):
        return pa.float32()
    raise UsageError(
        f"the column is {type_}",
        where=where,
        expected="a list, large list or fixed-size list of float16, float32 or float64",
        remedy="name another column with --embedding-field",
    )
