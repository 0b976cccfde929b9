"""Surveys of the files of an input before they are read: schemas, units, and the dimension of the vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
from upath import UPath

from daskmeans.errors import DataError, UsageError
from daskmeans.vectors import json_survey, jsonl, layouts, npy, parquet
from daskmeans.vectors.hive import fill_keys, with_keys
from daskmeans.vectors.matrix import is_list, is_untyped, list_lengths
from daskmeans.vectors.nested import find_field, unify_types
from daskmeans.vectors.partitioning import FileSurvey, Slice, cut_units
from daskmeans.vectors.reader import SLICE_READERS

# Units that the sample for the dimension is taken from, and its rows: the first ones of each unit, as later rows cannot
# be read without them.
MAX_SAMPLED_UNITS, SAMPLE_ROWS = 16, 2048
SURVEY_THREADS = 16
# A text counts at least as a vector of 1024 dimensions, about what an encoder makes of it.
TEXT_BYTES = 4096
# Rows of a piece when all rows are searched for a vector.
SEARCH_ROWS = 65536

SurveyFunction = Callable[[UPath, int | None], FileSurvey]
SurveyedFile = tuple[UPath, FileSurvey]

SURVEYS: dict[str, SurveyFunction] = {
    "parquet": parquet.survey_parquet,
    "jsonl": json_survey.survey_jsonl,
    "npy": npy.survey_npy,
}


def survey_first(files: Sequence[UPath], survey_file: SurveyFunction, names: Sequence[str] = ()) -> list[SurveyedFile]:
    """Survey those of `files` that have rows; of JSON lines, only some files and their first lines, unless that leaves
    some of the fields `names` unknown.

    Raises
    ------
    UsageError
        No file has rows.
    """
    if survey_file is json_survey.survey_jsonl:
        found = survey_files([files[i] for i in _spread_indices(len(files))], survey_file)
        found = found or next(filter(None, (survey_files([file], survey_file) for file in files)), [])
        if found and (late := _late_fields(merge_schemas(found), names)):
            found = survey_files(files, partial(json_survey.survey_jsonl, names=late), SAMPLE_ROWS)
    else:
        found = survey_files(files, survey_file)
    if not found:
        where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise UsageError("the input is empty: it has no rows", where=where, expected="at least one row")
    return found


def _late_fields(known: pa.Schema, names: Sequence[str]) -> list[str]:
    """Return those of the fields `names` of which nothing is known; and, without vectors, those that may be vectors."""
    fields = {name: find_field(known, name) for name in names}
    if not any(layouts.is_float(field.type) for field in known):
        fields |= {field.name: field for field in known}
    return [name for name, field in fields.items() if field is None or is_untyped(field.type)]


def survey_files(files: Sequence[UPath], survey_file: SurveyFunction, rows: int | None = None) -> list[SurveyedFile]:
    """Survey those of `files` that have rows."""
    with ThreadPoolExecutor(min(SURVEY_THREADS, len(files))) as pool:
        surveys = list(pool.map(lambda path: survey_file(path, rows), files))
    return with_keys([(path, survey) for path, survey in zip(files, surveys, strict=True) if survey.units])


def survey_rest(
    files: Sequence[UPath], first: list[SurveyedFile], names: Sequence[str], rows: int
) -> list[SurveyedFile]:
    """Return the surveys of all `files`, of which `first` are known; of JSON lines, with units of `rows` lines.

    There, all lines count for the types of the fields `names`.
    """
    if first[0][1].complete:
        return first
    return survey_files(files, partial(json_survey.survey_jsonl, names=names, known=merge_schemas(first)), rows)


def merge_schemas(surveys: Sequence[SurveyedFile]) -> pa.Schema:
    """Return the columns of all `surveys`: in the types of the first that has values, with all fields inside."""
    types: dict[str, pa.DataType] = {}
    for _, survey in surveys:
        for field in survey.schema:
            known = types.get(field.name, pa.null())
            if is_untyped(known):
                types[field.name] = field.type
            elif known != field.type and _has_fields(known):
                types[field.name] = unify_types(known, field.type) or known
    first = surveys[0][1].schema
    more = [name for name in types if name not in first.names]
    open_ = [is_untyped(field.type) or _has_fields(field.type) for field in first]
    typed = [f.with_type(types[f.name]) if is_open else f for f, is_open in zip(first, open_, strict=True)]
    return pa.schema([*typed, *((name, types[name]) for name in more)])


def row_bytes(surveys: Sequence[SurveyedFile], dimension: int, names: Sequence[str], format_: str) -> int:
    """Return the bytes in memory of a row: of its float32 vector, and of the columns `names`, texts and metadata.

    Those are measured in a sample of units; the unit with the most bytes per row counts. A row without a vector counts
    as `TEXT_BYTES` at least.
    """
    measured = 0
    if names and format_ != "npy":
        n_units = sum(len(survey.units) for _, survey in surveys)
        starts = list(_unit_starts(surveys, -(-SAMPLE_ROWS // min(MAX_SAMPLED_UNITS, n_units))))
        chosen = [starts[i] for i in _spread_indices(n_units)]
        with ThreadPoolExecutor(MAX_SAMPLED_UNITS) as pool:
            measured = max(pool.map(partial(_measure_start, names, format_), chosen))
    return 4 * dimension + measured if dimension else max(TEXT_BYTES, measured)


def _measure_start(names: Sequence[str], format_: str, start: tuple[FileSurvey, Slice]) -> int:
    survey, piece = start
    fields = [field for name in names if (field := find_field(survey.schema, name)) is not None]
    read = parquet.read_parquet if format_ == "parquet" else jsonl.read_jsonl
    table = next(read(piece, pa.schema(fields), json_survey.HEAD_BYTES))  # of which the types are known
    return -(-fill_keys(table, piece.path).nbytes // max(1, len(table)))


def _has_fields(type_: pa.DataType) -> bool:
    return pa.types.is_struct(type_) or (is_list(type_) and _has_fields(type_.value_type))


def find_dimension(surveys: Sequence[SurveyedFile], name: str, format_: str) -> tuple[int, UPath]:
    """Return the most frequent length of vectors in a sample of column `name`, and a file that has it; ties: the first.

    Null and empty vectors do not count. If the sample has no others, all rows of `surveys` are searched.

    Raises
    ------
    DataError
        All vectors are null or empty.
    """
    n_units = sum(len(survey.units) for _, survey in surveys)
    starts = list(_unit_starts(surveys, -(-SAMPLE_ROWS // min(MAX_SAMPLED_UNITS, n_units))))
    with ThreadPoolExecutor(MAX_SAMPLED_UNITS) as pool:
        sampled = list(pool.map(partial(_count_lengths, name, format_), [starts[i] for i in _spread_indices(n_units)]))
    if not any(counts for _, counts in sampled):
        sampled = _search_vectors(surveys, name, format_)
    if not sampled:
        where = f"{surveys[0][0]}, column {name!r}"
        found = find_field(merge_schemas(surveys), name)
        several = " (or there are several in each row)" if found is not None and layouts.is_nested(found.type) else ""
        raise DataError(f"all vectors are null or empty{several}", where=where, expected="a vector in every row")
    dimension = sum((counts for _, counts in sampled), Counter[int]()).most_common(1)[0][0]
    return dimension, next(path for path, counts in sampled if dimension in counts)


def _spread_indices(count: int) -> list[int]:
    """Return MAX_SAMPLED_UNITS of `count` indices, evenly spread, including the first."""
    return np.unique(np.linspace(0, count - 1, min(MAX_SAMPLED_UNITS, count)).astype(int)).tolist()


def _unit_starts(surveys: Sequence[SurveyedFile], rows: int) -> Iterator[tuple[FileSurvey, Slice]]:
    """Yield the first `rows` rows of each unit, or all if it has fewer or cannot be divided."""
    for path, survey in surveys:
        first = 0
        for unit in survey.units:
            size = min(rows, unit.rows) if unit.divisible else unit.rows
            yield survey, Slice(path, first, size, 0, unit.start, unit.end)
            first += unit.rows


def _count_lengths(name: str, format_: str, start: tuple[FileSurvey, Slice]) -> tuple[UPath, Counter[int]]:
    survey, piece = start
    total: Counter[int] = Counter()
    for counts in _length_counts(survey, piece, name, format_):
        total.update(counts)
        if total.total() >= piece.rows:  # a compressed file may have more
            break
    return piece.path, _drop_empty(total)


def _search_vectors(surveys: Sequence[SurveyedFile], name: str, format_: str) -> list[tuple[UPath, Counter[int]]]:
    """Return the vector lengths of the first block with a vector, if there is one."""
    for path, survey in surveys:
        for piece in cut_units([(path, survey)], SEARCH_ROWS):
            for counts in map(_drop_empty, _length_counts(survey, piece, name, format_)):
                if counts:
                    return [(path, counts)]
    return []


def _drop_empty(counts: Counter[int]) -> Counter[int]:
    """Return `counts` without null and empty vectors."""
    return Counter({size: count for size, count in counts.items() if size})


def _length_counts(survey: FileSurvey, piece: Slice, name: str, format_: str) -> Iterator[Counter[int]]:
    """Yield the counts of vector lengths in column `name` of `piece`, 0 for null, block by block."""
    field = find_field(survey.schema, name)
    if field is None or is_untyped(field.type):
        return
    lists = layouts.list_type(field.type)
    if lists is not None and pa.types.is_fixed_size_list(lists):
        yield Counter({lists.list_size: piece.rows})
        return
    if format_ == "jsonl":
        field = field.with_type(layouts.with_elements(field.type, pa.float32()))
    for table in SLICE_READERS[format_](piece, pa.schema([field])):
        found = np.concatenate([list_lengths(layouts.to_lists(chunk)) for chunk in table[name].chunks])
        sizes, firsts, rows = np.unique(found, return_index=True, return_counts=True)
        yield Counter({int(sizes[i]): int(rows[i]) for i in np.argsort(firsts)})
