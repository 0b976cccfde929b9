"""Rows of every kind give the bits of the same rows as a numpy array, or one sentence that says what to type."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import dask
import dask.array as da
import dask.bag
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse

from daskmeans import KMeans, SemanticDeduplicator, assign, deduplicate, fit
from daskmeans.errors import DataError, UsageError
from daskmeans.kmeans.rows.given import open_rows
from daskmeans.kmeans.rows.inputs import as_matrix, list_partitions, prepare_rows
from daskmeans.vectors.matrix import to_column
from helpers import blobs

X = blobs(n=60, d=4)
LISTS = X.tolist()
FIXED = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
TENSORS = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [4]), FIXED)
VECTORS = pa.table({"id": range(60), "v": FIXED, "text": ["a"] * 60})
NUMBERS = pd.DataFrame(X, columns=list("abcd"))
DECIMALS = NUMBERS.map(lambda value: Decimal(float(value)))


class Stream:
    """A dataframe or a column of another library, such as polars, which Arrow can read."""

    def __init__(self, content: pa.Table | pa.ChunkedArray) -> None:
        self._content = content

    def __arrow_c_stream__(self, requested_schema=None):
        return self._content.__arrow_c_stream__(requested_schema)

    def to_arrow(self):  # polars has one too, and is not cuDF for all that
        raise NotImplementedError


class Tensor:
    """What a tensor of PyTorch does when numpy asks."""

    def __init__(self, rows: np.ndarray, dtype: str = "float32", grad: bool = False) -> None:
        self._rows, self._dtype, self._grad = rows, dtype, grad

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def detach(self) -> Tensor:
        return Tensor(self._rows, self._dtype)

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self._rows)

    def numpy(self) -> np.ndarray:
        if self._grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self._dtype == "bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._rows


class Capsule:
    """An array that speaks DLPack alone."""

    def __dlpack__(self, **asked):
        return X.__dlpack__(**asked)

    def __dlpack_device__(self):
        return X.__dlpack_device__()


class Labelled:
    """A DataArray of xarray: an array of dask inside, and a stream of Arrow with a row for each element."""

    dims = ("row", "column")

    def __init__(self) -> None:
        self.data = da.from_array(X, chunks=(25, 2))

    def __dask_graph__(self):
        return self.data.__dask_graph__()

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table({"value": X.ravel()}).__arrow_c_stream__(requested_schema)


def object_array(values) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


GIVEN = {
    "lists": LISTS,
    "tuple of arrays": tuple(X),
    "memoryview": memoryview(X),
    "objects": X.astype(object),
    "array of arrays": object_array(list(X)),
    "series of lists": pd.Series(LISTS),
    "series of arrays": pd.Series(list(X)),
    "series of Arrow": to_column(X),
    "series of tensors": pd.Series(TENSORS, dtype=pd.ArrowDtype(TENSORS.type)),
    "fixed-size lists": FIXED,
    "lists of Arrow": pa.array(LISTS, pa.list_(pa.float32())),
    "large lists in chunks": pa.chunked_array([LISTS[:7], LISTS[7:]], pa.large_list(pa.float64())),
    "tensors": TENSORS,
    "table of vectors": VECTORS,
    "table of tensors": pa.table({"id": range(60), "v": TENSORS}),
    "table of numbers": pa.table(dict(zip("abcd", X.T, strict=True))),
    "record batch": VECTORS.to_batches()[0],
    "stream of a table": Stream(VECTORS),
    "stream of a column": Stream(VECTORS["v"]),
    "frame of Arrow numbers": NUMBERS.convert_dtypes(dtype_backend="pyarrow"),
    "frame of nullable numbers": NUMBERS.convert_dtypes(),
    "frame of objects": NUMBERS.astype(object),
    "frame of decimals": DECIMALS,
    "frame of tensors": pd.DataFrame({"v": pd.Series(TENSORS, dtype=pd.ArrowDtype(TENSORS.type))}),
    "torch": Tensor(X),
    "torch with gradients": Tensor(X, grad=True),
    "torch bfloat16": Tensor(X, "bfloat16", grad=True),
    "DLPack": Capsule(),
    "dask frame of numbers": dd.from_pandas(NUMBERS, npartitions=3),
    "dask frame of Arrow numbers": dd.from_pandas(NUMBERS.convert_dtypes(dtype_backend="pyarrow"), npartitions=2),
    "dask array of objects": da.from_array(X.astype(object), chunks=(25, 3)),
    "xarray on dask": Labelled(),
}  # fmt: skip


def rows_of(given) -> np.ndarray:
    opened = open_rows(given)
    if dask.is_dask_collection(opened):
        return np.concatenate([prepare_rows(part, False) for part in dask.compute(*list_partitions(opened, None))])
    return as_matrix(opened)


@pytest.mark.parametrize("kind", GIVEN)
def test_the_same_rows_are_the_same_bits(kind):
    np.testing.assert_array_equal(rows_of(GIVEN[kind]), X, strict=True)
    np.testing.assert_array_equal(rows_of(open_rows(GIVEN[kind])), X, strict=True)


@pytest.mark.parametrize("kind", ["stream of a table", "series of lists", "torch bfloat16", "dask frame of numbers"])
def test_all_verbs_take_what_a_fit_takes(kind):
    here, given = KMeans(3).fit(X), GIVEN[kind]
    if kind == "dask frame of numbers":
        here = KMeans(3).fit(NUMBERS)
    there = KMeans(3).fit(given)
    np.testing.assert_array_equal(there.cluster_centers_, here.cluster_centers_)
    assert there.score(given) == -here.inertia_
    for found, expected in [
        (there.labels_, here.labels_),
        (there.predict(given), here.labels_),
        (there.transform(given), here.transform(GIVEN.get("frame of objects") if kind.startswith("dask") else X)),
        (KMeans(3).fit_predict(given), here.labels_),
        (fit(given, KMeans(3)).labels_, here.labels_),
    ]:
        np.testing.assert_array_equal(*dask.compute(found, expected))


@pytest.mark.parametrize("kind", GIVEN)
def test_duplicates_are_found_in_what_a_fit_takes(kind):
    found, expected = deduplicate(GIVEN[kind], 0.9), deduplicate(X, 0.9)
    assert 0 < expected.decisions.keep.sum() < 60
    np.testing.assert_array_equal(found.decisions.keep, expected.decisions.keep)


def test_frames_of_numbers_have_their_names_whatever_they_are_of():
    for given in (dd.from_pandas(NUMBERS, npartitions=2), pa.Table.from_pandas(NUMBERS), NUMBERS.astype(object)):
        km = KMeans(3).fit(given)
        assert list(km.feature_names_in_) == list("abcd")
        with pytest.raises(UsageError, match="same order"):
            km.predict(NUMBERS[list("dcba")])


def test_a_column_is_chosen_by_its_name():
    table = VECTORS.append_column("w", pa.array((-X).tolist(), pa.list_(pa.float64())))
    for given in (table, Stream(table)):
        np.testing.assert_array_equal(as_matrix(open_rows(given, "w"), "w"), -X)
        with pytest.raises(UsageError, match=r"2 columns hold vectors: v, w(.|\n)*pass column="):
            KMeans(3).fit(given)
    with pytest.raises(UsageError, match="has no columns"):
        KMeans(3).fit(FIXED, column="v")


def test_rows_that_were_given_stay_as_they_are():
    for given in (NUMBERS.copy(), dd.from_pandas(NUMBERS.copy(), npartitions=2), pa.array(X.ravel())):
        if isinstance(given, pa.Array):
            given = pa.FixedSizeListArray.from_arrays(given, 4)
        KMeans(3).fit(given)
        np.testing.assert_array_equal(rows_of(given), X)


def test_precision_that_arrow_columns_lose_is_told_of():
    wide = pa.array((X.astype(float) + 1e9).tolist(), pa.list_(pa.float64()))
    with pytest.warns(UserWarning, match="rounds these by"):
        KMeans(2, normalize=False).fit(wide)


REFUSED = {
    "scipy": (scipy.sparse.csr_matrix(X), r"X of type csr_matrix \(scipy\)(.|\n)*X\.toarray\(\)"),
    "sparse chunks": (
        da.from_array(X, chunks=(20, 4)).map_blocks(scipy.sparse.csr_matrix),
        r"sparse chunks(.|\n)*map_blocks",
    ),
    "bag": (dask.bag.from_sequence(LISTS), r"X of type Bag \(dask\)(.|\n)*X\.to_dataframe\(\)"),
    "delayed": (dask.delayed(X), r"dask\.array\.from_delayed"),
    "generator": ((row for row in X), r"X of type generator(.|\n)*numpy\.stack\(list\(X\)\)"),
    "reader": (VECTORS.to_reader(), r"X of type RecordBatchReader \(pyarrow\)(.|\n)*X\.read_all\(\)"),
    "dict": (dict(zip("abcd", X.T, strict=True)), r"X of type dict(.|\n)*pandas\.DataFrame\(X\)"),
    "set": ({(1.0, 2.0)}, r"X of type set(.|\n)*numpy\.array\(list\(X\)\)"),
    "path": (Path("rows.parquet"), r"Path(.|\n)*read_embeddings"),
    "bytes": (b"rows", r"X of type bytes(.|\n)*numpy\.frombuffer"),
    "none": (None, "X of type NoneType is no array"),
    "class": (KMeans, r"the class KMeans \(daskmeans\)"),
    "number": (np.float32(3), "got 0D array"),
    "vector": (X[0], r"got 1D array(.|\n)*X\.reshape\(1, -1\) for a single vector"),
    "three": (X[None], r"got 3D array(.|\n)*X\.reshape\(len\(X\), -1\)"),
    "lazy vector": (da.ones(5), r"got 1D array(.|\n)*X\.reshape"),
    "masked rows": ([np.ma.masked_array([1.0, 2.0], [0, 1])] * 3, "the array is masked"),
    "ragged": ([[1, 2], [3, 4], [5]], r"row 2 has 1 elements(.|\n)*2, as row 0 has"),
    "structured": (np.zeros(3, [("a", "f4"), ("b", "f4")]), r"structured \(a, b\)(.|\n)*structured_to_unstructured"),
    "complex": (X.astype(complex), "holds complex128"),
    "strings": (X.astype(str).astype(object), r"no numbers \(string\)"),
    "dicts": (np.array([[{"a": 1}, 2.0]] * 3), "Python objects that are no numbers"),
    "numbers": (pd.Series(X[0]), r"the column is float(.|\n)*X\.to_numpy\(\)\.reshape\(-1, 1\)"),
    "lazy numbers": (dd.from_pandas(NUMBERS, npartitions=2)["a"], r"one number a row(.|\n)*X\.to_frame\(\)"),
    "texts": (pa.array(["a"]), "the column is string"),
    "mixed": (pd.Series([[1.0], "a"]), "cannot be read as vectors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_rows_is_named_with_what_to_type(kind):
    given, words = REFUSED[kind]
    with pytest.raises(UsageError, match=words):
        KMeans(2).fit(given)
    if kind not in ("generator", "reader"):
        with pytest.raises(UsageError, match=words):
            KMeans(2).fit(X).predict(given)
    if kind not in ("generator", "path", "texts"):  # the first is at its end, and the others are no mistakes
        with pytest.raises(UsageError, match=words):
            deduplicate(given)


def test_a_null_among_objects_is_a_row_that_is_named():
    with pytest.raises(DataError, match="row 2: the vector holds NaN"):
        KMeans(2).fit(np.array([[1.0, 2.0], [3.0, 4.0], [None, 6.0]], object))


def test_tables_are_assigned_and_deduplicated_like_frames(tmp_path):
    km = KMeans(3).fit(X)
    km.save(tmp_path / "model")
    decide = SemanticDeduplicator(tmp_path / "model", 0.9)
    frame = VECTORS.to_pandas(types_mapper=pd.ArrowDtype)
    for given in (VECTORS, Stream(VECTORS)):
        pd.testing.assert_frame_equal(assign(given, km), assign(frame, km))
        pd.testing.assert_frame_equal(decide(given), decide(frame))
    for verb in (decide, lambda given: assign(given, km)):
        with pytest.raises(UsageError, match=r"X of type ndarray \(numpy\) is no dataframe(.|\n)*pandas\.DataFrame\("):
            verb(X)
        with pytest.raises(UsageError, match=r"X of type dict is no dataframe(.|\n)*pandas\.DataFrame\(X\)"):
            verb({"id": [1]})
