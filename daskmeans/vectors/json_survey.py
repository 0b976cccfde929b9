"""Surveys of files of JSON lines: the types of their fields, and units, which are byte ranges that end at line ends.

Types are inferred from the first lines. While all lines are counted, those of the fields that will be read are widened
where later lines need it, so that they are those of a reader of the whole file.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
from upath import UPath

from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.formats import sniff_codec
from daskmeans.vectors.jsonl import (
    ANY_OBJECT,
    BLOCK_BYTES,
    line_starts,
    open_text,
    parse_lines,
    parse_or_refuse,
    read_blocks,
)
from daskmeans.vectors.matrix import is_list
from daskmeans.vectors.nested import find_field, parse_path, unify_types
from daskmeans.vectors.partitioning import FileSurvey, Unit

HEAD_BYTES = 2**20
VALUES = {
    pa.bool_(): rb"true|false",
    pa.int64(): rb"-?\d++(?![.eE])",
    pa.float32(): rb"-?\d[\d.eE+-]*+",
    pa.float64(): rb"-?\d[\d.eE+-]*+",
    pa.string(): rb'"(?:[^"\\]|\\.)*+"',
}


def survey_jsonl(
    path: UPath,
    rows: int | None,
    head_bytes: int = HEAD_BYTES,
    block_bytes: int = BLOCK_BYTES,
    *,
    names: Sequence[str] = (),
    known: pa.Schema | None = None,
) -> FileSurvey:
    """Survey `path`: its schema from its first lines, and units of `rows` lines; without `rows`, only the first lines.

    All lines count for the types of the fields `names`. Those of other files are `known`. A compressed file is one
    unit.
    """
    with translate_read_errors(path), open_text(path) as read:
        head = next((block for block in read_blocks(read, head_bytes) if len(line_starts(block))), b"")
        if not head:
            return FileSurvey(pa.schema([]), ())
        schema = _infer_schema(head, path)
        if rows is None:
            return FileSurvey(schema, (Unit(len(line_starts(head)), 0, len(head), divisible=False),), complete=False)
    types = OpenTypes(names, schema if known is None else _merge_columns(known, schema, known.names))
    with translate_read_errors(path), open_text(path) as read:
        blocks = map(types.see, read_blocks(read, block_bytes))
        units = _find_units(blocks, 2**62 if sniff_codec(path) else rows)
    return FileSurvey(_merge_columns(schema, types.schema, types.columns), tuple(units), complete=False)


class OpenTypes:
    """The types of the fields `names` of a `schema`, some of which later lines may widen.

    These are numbers without a fraction, fields without values so far, and those that have fields inside.
    """

    def __init__(self, names: Sequence[str], schema: pa.Schema) -> None:
        self.schema, self._names = schema, names
        self.columns = list(dict.fromkeys(str(path[0]) for name in names for path in ((name,), parse_path(name))))
        self._watch()

    def see(self, block: bytes) -> bytes:
        """Widen the types for the lines in `block`, and return it."""
        if any(pattern.search(block) for pattern in self._patterns):
            try:
                found = _infer_types(block)
            except ValueError:  # the reader says which line, and why
                return block
            self.schema = _merge_columns(self.schema, found, self.columns)
            self._watch()
        return block

    def _watch(self) -> None:
        fields = [find_field(self.schema, name) for name in self._names]
        types = [pa.null() if field is None else field.type for field in fields]
        patterns = [_new_values(name, type_) for name, type_ in zip(self._names, types, strict=True)]
        self._patterns = [pattern for pattern in patterns if pattern is not None]


def _new_values(name: str, type_: pa.DataType) -> re.Pattern[bytes] | None:
    """Return a pattern for values of the field `name` that may not be of `type_`; None if all must be.

    It may find others, too: it is cheaper than parsing, and where it finds something, lines are parsed.
    """
    if not _is_open(type_):
        return None
    last = [str(step) for step in parse_path(name) if isinstance(step, str)][-1]
    return re.compile(_key_pattern(name, last) + rb"(?!" + _value_pattern(type_) + rb")", re.DOTALL)


def _is_open(type_: pa.DataType) -> bool:
    """Whether further values may widen `type_`; integers may turn out to be some of many numbers."""
    if is_list(type_):
        return _is_open(type_.value_type)
    return pa.types.is_null(type_) or pa.types.is_integer(type_) or pa.types.is_struct(type_)


def _key_pattern(*names: str) -> bytes:
    """Return a pattern for one of the keys `names`, written with or without escapes, and its colon."""
    keys = {json.dumps(name, ensure_ascii=ascii_) for name in names for ascii_ in (True, False)}
    return rb"(?:" + rb"|".join(re.escape(key.encode()) for key in sorted(keys)) + rb")\s*+:\s*+"


def _value_pattern(type_: pa.DataType) -> bytes:
    """Return a pattern for the values of `type_`."""
    value = VALUES.get(type_, rb"(?!)")  # which never matches
    if pa.types.is_struct(type_):
        value = _series_pattern(b"{", [_key_pattern(field.name) + _value_pattern(field.type) for field in type_], b"}")
    elif is_list(type_):
        value = _series_pattern(b"[", [_value_pattern(type_.value_type)], b"]")
    return rb"(?:null|" + value + rb")"


def _series_pattern(start: bytes, items: Sequence[bytes], end: bytes) -> bytes:
    item = rb"(?:" + rb"|".join(items) + rb")\s*+"
    return re.escape(start) + rb"\s*+(?:" + item + rb"(?:,\s*+" + item + rb")*+)?" + re.escape(end)


def _merge_columns(schema: pa.Schema, found: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return `schema` with the columns `names` of `found`: in the types that hold the values of both, if there are."""
    types = {field.name: field.type for field in schema}
    for name in names:
        if name in found.names:
            other = found.field(name).type
            types[name] = unify_types(types[name], other) or types[name] if name in types else other
    return pa.schema(types)


def _find_units(blocks: Iterator[bytes], rows: int) -> list[Unit]:
    """Return units of `rows` lines each, and one for the rest."""
    cuts, lines, offset = [], 0, 0
    for block in blocks:
        starts = line_starts(block)
        cuts += (offset + starts[-lines % rows :: rows]).tolist()
        lines += len(starts)
        offset += len(block)
    sizes = [min(rows, lines - i * rows) for i in range(len(cuts))]
    ranges = itertools.pairwise([*cuts, offset])
    return [Unit(size, start, end, divisible=False) for size, (start, end) in zip(sizes, ranges, strict=True)]


def _infer_schema(head: bytes, path: UPath) -> pa.Schema:
    """Infer the types of the fields in `head`, the first lines of `path`."""
    try:
        return _infer_types(head)
    except ValueError:
        parse_or_refuse(head, ANY_OBJECT, path, 0)
        # Lines that are valid alone contradict each other; the first decides the types.
        return _infer_types(head[: line_starts(head)[1]])


def _infer_types(lines: bytes) -> pa.Schema:
    """Infer the types of the fields in `lines`; numbers in lists become float32, dates stay strings.

    Raises
    ------
    ValueError
        A line is not one object, or two contradict each other.
    """
    found = parse_lines(lines, None).schema
    floats = any(is_list(type_) and pa.types.is_floating(type_.value_type) for type_ in found.types)
    return pa.schema([field.with_type(_field_type(field.type, lists_of_integers=floats)) for field in found])


def _field_type(type_: pa.DataType, lists_of_integers: bool) -> pa.DataType:
    """Return the type to read a field of inferred `type_` as; without `lists_of_integers`, such lists are vectors."""
    if is_list(type_) and pa.types.is_floating(type_.value_type):
        return pa.list_(pa.float32())
    if is_list(type_) and pa.types.is_integer(type_.value_type) and not lists_of_integers:
        return pa.list_(pa.float32())
    return _without_times(type_)


def _without_times(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        return pa.string()
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_without_times(field.type)) for field in type_])
    return pa.list_(_without_times(type_.value_type)) if is_list(type_) else type_
