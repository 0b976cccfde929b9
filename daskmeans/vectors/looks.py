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
from daskmeans.vectors import jsonl, npy, parquet
from daskmeans.vectors.matrix import is_untyped, list_lengths
from daskmeans.vectors.partitioning import FileSurvey, Slice, cut_units
from daskmeans.vectors.reader import SLICE_READERS

# Units that the sample for the dimension is taken from, and its rows: the first ones of each unit, as later rows cannot
# be read without them.
MAX_SAMPLED_UNITS, SAMPLE_ROWS = 16, 2048
SURVEY_THREADS = 16
# Rows of a piece when all rows are searched for a vector.
SEARCH_ROWS = 65536

SurveyFunction = Callable[[UPath, int | None], FileSurvey]
SurveyedFile = tuple[UPath, FileSurvey]

SURVEYS: dict[str, SurveyFunction] = {
    "parquet": parquet.survey_parquet,
    "jsonl": jsonl.survey_jsonl,
    "npy": npy.survey_npy,
}


def survey_first(files: Sequence[UPath], survey_file: SurveyFunction) -> list[SurveyedFile]:
    """Survey those of `files` that have rows; of JSON lines, only some files and their first lines.

    Raises
    ------
    UsageError
        No file has rows.
    """
    if survey_file is jsonl.survey_jsonl:
        found = survey_files([files[i] for i in _spread_indices(len(files))], survey_file)
        found = found or next(filter(None, (survey_files([file], survey_file) for file in files)), [])
    else:
        found = survey_files(files, survey_file)
    if not found:
        where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise UsageError("the input is empty: it has no rows", where=where, expected="at least one row")
    return found


def survey_files(files: Sequence[UPath], survey_file: SurveyFunction, rows: int | None = None) -> list[SurveyedFile]:
    """Survey those of `files` that have rows."""
    with ThreadPoolExecutor(min(SURVEY_THREADS, len(files))) as pool:
        surveys = list(pool.map(lambda path: survey_file(path, rows), files))
    return [(path, survey) for path, survey in zip(files, surveys, strict=True) if survey.units]


def merge_schemas(surveys: Sequence[SurveyedFile]) -> pa.Schema:
    """Return the schema of the first of `surveys`; the types of all-null columns come from another survey."""
    types: dict[str, pa.DataType] = {}
    for _, survey in surveys:
        for field in survey.schema:
            if is_untyped(types.get(field.name, pa.null())):
                types[field.name] = field.type
    first = surveys[0][1]
    typed = [field.with_type(types[field.name]) if is_untyped(field.type) else field for field in first.schema]
    more = [] if first.complete else [name for name in types if name not in first.schema.names]
    return pa.schema([*typed, *(pa.field(name, types[name]) for name in more)])


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
        raise DataError("all vectors are null or empty", where=where, expected="a vector in every row")
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
    type_ = survey.schema.field(name).type if name in survey.schema.names else pa.null()
    if is_untyped(type_):
        return
    if pa.types.is_fixed_size_list(type_):
        yield Counter({type_.list_size: piece.rows})
        return
    stored = pa.schema({name: pa.list_(pa.float32()) if format_ == "jsonl" else type_})
    for table in SLICE_READERS[format_](piece, stored):
        found = np.concatenate([list_lengths(chunk) for chunk in table[name].chunks])
        sizes, firsts, rows = np.unique(found, return_index=True, return_counts=True)
        yield Counter({int(sizes[i]): int(rows[i]) for i in np.argsort(firsts)})
