"""Columns of vectors <-> matrices, against numpy."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskmeans.errors import DataError
from daskmeans.vectors.matrix import to_column, to_matrix, vector_columns

LISTS = {"list": pa.list_, "large_list": pa.large_list, "fixed": lambda t: pa.list_(t, 3)}
ELEMENTS = [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64()]


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 8, (n, 3)).astype(np.float32)


def column(X: np.ndarray, kind: str, element: pa.DataType) -> pa.Array:
    return pa.array(X.astype(element.to_pandas_dtype()).tolist(), LISTS[kind](element))


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_layout_gives_the_rows_as_float32(kind: str, element: pa.DataType) -> None:
    X = rows(7)
    got = to_matrix(column(X, kind, element))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, X)


@given(data=st.data(), n=st.integers(0, 12), kind=st.sampled_from(sorted(LISTS)))
def test_slices_and_chunks(data: st.DataObject, n: int, kind: str) -> None:
    X = rows(n)
    whole = column(X, kind, pa.float32())
    chunks, kept = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, n))
        end = data.draw(st.integers(begin, n))
        chunks.append(whole[begin:end])
        kept.append(X[begin:end])
    got = to_matrix(pa.chunked_array(chunks))
    expected = np.concatenate(kept)
    assert len(got) == len(expected)
    np.testing.assert_array_equal(got.reshape(-1), expected.reshape(-1))


def test_a_series_is_taken_with_its_own_rows() -> None:
    X = rows(6)
    series = to_column(X)
    np.testing.assert_array_equal(to_matrix(series.iloc[2:5]), X[2:5])
    np.testing.assert_array_equal(to_matrix(pd.concat([series, series.iloc[:1]])), np.vstack([X, X[:1]]))


def test_float32_is_not_copied_in_either_direction() -> None:
    X = rows(6)
    assert np.shares_memory(to_matrix(to_column(X)), X)
    assert np.shares_memory(to_matrix(to_column(X).iloc[2:]), X)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n", [0, 4])
def test_to_column_stores_the_type_it_is_told(dtype: str, n: int) -> None:
    got = to_column(rows(n).astype(np.float64), dtype)
    assert got.dtype == pd.ArrowDtype(pa.list_(pa.from_numpy_dtype(dtype), 3))
    assert to_matrix(got).shape == (n, 3)
    np.testing.assert_array_equal(to_matrix(got), rows(n))


def test_a_column_without_rows_has_the_dimension_of_its_type() -> None:
    assert to_matrix(pa.array([], pa.list_(pa.float32(), 3))).shape == (0, 3)
    assert to_matrix(pa.array([], pa.list_(pa.float32()))).shape == (0, 0)


@pytest.mark.parametrize(
    ("values", "row", "found"),
    [
        ([[1.0, 2.0], None, None], 1, "the vector is null"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0]], 2, "another length"),
        ([[1.0, 2.0], [3.0, None]], 1, "an element of the vector is null"),
    ],
)
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_bad_rows_are_named(values: list, row: int, found: str, kind) -> None:
    chunks = pa.chunked_array([pa.array([value], kind(pa.float32())) for value in values])
    for given_ in (pa.array(values, kind(pa.float32())), chunks):
        with pytest.raises(DataError, match=found) as caught:
            to_matrix(given_, where="a.parquet")
        assert caught.value.where == f"a.parquet, row {row}"


def test_nulls_of_fixed_size_lists_are_named() -> None:
    with pytest.raises(DataError, match="row 1: the vector is null"):
        to_matrix(pa.array([[1.0], None, [2.0]], pa.list_(pa.float32(), 1)))


def test_what_is_no_list_of_numbers_is_refused() -> None:
    for values in (pa.array([1.0]), pa.array(["a"]), pa.array([["a"]])):
        with pytest.raises(DataError, match="expected: a column of lists of numbers"):
            to_matrix(values)


def test_vector_columns_are_the_lists_of_floats() -> None:
    names = {f"{kind}-{element}": make(element) for kind, make in LISTS.items() for element in ELEMENTS[:3]}
    others = {"id": pa.int64(), "tokens": pa.list_(pa.int64()), "tags": pa.list_(pa.string()), "score": pa.float32()}
    assert vector_columns(pa.schema(names | others)) == list(names)
