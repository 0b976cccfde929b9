"""Validation of rows: their problems and the messages about them."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.vectors.files import public_name
from daskmeans.vectors.id_types import ids_to_text
from daskmeans.vectors.layouts import has_several, is_sparse, to_lists
from daskmeans.vectors.matrix import list_lengths, null_mask, to_fixed_lists


class Problem(IntEnum):
    """The problem of a row."""

    NONE = 0
    NULL_ID = 1
    NULL_VECTOR = 2
    LENGTH = 3
    NULL_ELEMENT = 4
    NOT_FINITE = 5
    ZERO = 6
    NULL_TEXT = 7
    EMPTY_TEXT = 8
    DUPLICATE = 9
    SPARSE = 10
    SEVERAL = 11


# Found and expected, by problem number.
MESSAGES = (
    ("", ""),
    ("the id is null", "an id in every row"),
    ("the vector is null", "a vector in every row"),
    ("the vector has another dimension", "vectors of one dimension"),
    ("an element of the vector is null", "a number in every element"),
    ("the vector holds NaN, infinity or a number beyond float32", "finite numbers within the range of float32"),
    ("the vector is zero", "a vector other than zero"),
    ("the text is null", "a text in every row"),
    ("the text is empty", "a text that is not blank"),
    ("duplicate id", "unique ids"),
    ("the vector is sparse", "dense vectors, as Spark's vector_to_array makes them"),
    ("the row has several vectors, or an empty list of them", "one vector in every row"),
)
SKIP_REMEDY = "leave such rows out with --on-bad-row skip"


def id_problems(ids: pa.ChunkedArray) -> np.ndarray:
    """Return the problem of each id. Shape (n,), int8."""
    return np.where(null_mask(ids), Problem.NULL_ID, Problem.NONE).astype(np.int8)


def text_problems(texts: pa.ChunkedArray) -> np.ndarray:
    """Return the problem of each text. Shape (n,), int8."""
    empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0).fill_null(False).to_numpy()
    found = np.where(empty, Problem.EMPTY_TEXT, Problem.NONE)
    return np.where(null_mask(texts), Problem.NULL_TEXT, found).astype(np.int8)


def vector_problems(stored: pa.Array, dimension: int, allow_zero: bool) -> np.ndarray:
    """Return the problem of each vector, which may be stored in any layout. Shape (n,), int8."""
    vectors = to_lists(stored)
    problems = np.where(null_mask(vectors), Problem.NULL_VECTOR, Problem.NONE).astype(np.int8)
    if vectors is not stored:
        problems[is_sparse(stored)] = Problem.SPARSE
        problems[has_several(stored)] = Problem.SEVERAL
    problems[(problems == Problem.NONE) & (list_lengths(vectors) != dimension)] = Problem.LENGTH
    whole = problems == Problem.NONE
    elements = (vectors if whole.all() else vectors.filter(pa.array(whole))).flatten()
    problems[whole] = _element_problems(elements, dimension, allow_zero)
    return problems


def _element_problems(elements: pa.Array, dimension: int, allow_zero: bool) -> np.ndarray:
    with np.errstate(over="ignore"):
        X = elements.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dimension)
    problems = np.where(np.isfinite(X).all(axis=1), Problem.NONE, Problem.NOT_FINITE).astype(np.int8)
    if elements.null_count:
        problems[null_mask(elements).reshape(-1, dimension).any(axis=1)] = Problem.NULL_ELEMENT
    if not allow_zero:
        problems[(X == 0).all(axis=1)] = Problem.ZERO
    return problems


def cast_vectors(stored: pa.Array, type_: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    """Return valid vectors as `type_`; lists of elements of its type are not copied."""
    vectors = to_lists(stored)
    return to_fixed_lists(vectors.flatten().cast(type_.value_type, safe=False), type_.list_size, len(vectors))


def problem_error(problem: Problem, where: str, values: pa.Array, type_: pa.DataType) -> DataError:
    """Return the error for the only value of `values`, which should be of `type_`."""
    found, expected = MESSAGES[problem]
    if problem == Problem.LENGTH:
        found = f"the vector has {list_lengths(to_lists(values))[0]} elements, but the dimension is {type_.list_size}"
    remedy = f"repair the row, or {SKIP_REMEDY}"
    if problem == Problem.ZERO:
        remedy = f"repair the row, {SKIP_REMEDY}, or use --no-normalize"
    return DataError(found, where=where, expected=expected, remedy=remedy)


def make_rejects(problems: np.ndarray, ids: pa.ChunkedArray, path: UPath, first: int) -> pa.Table:
    """Return a table of the rows with problems: id (as string), file, row, reason."""
    rows = np.flatnonzero(problems)
    reasons = pa.array([found for found, _ in MESSAGES])
    return pa.table(
        {
            "id": ids_to_text(ids.take(pa.array(rows))),
            "file": pa.repeat(public_name(path), len(rows)),
            "row": pa.array(rows + first, pa.int64()),
            "reason": reasons.take(pa.array(problems[rows])),
        }
    )
