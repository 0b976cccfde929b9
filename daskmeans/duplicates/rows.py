"""Rows in memory, of whatever type they are given in: their vectors, their ids, and some of them in the same type."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask import delayed

from daskmeans.duplicates.in_memory import MemoryDecisions, check_unique, read_ids
from daskmeans.encoders.encoder import get_encoder
from daskmeans.errors import DataError, UsageError
from daskmeans.kmeans.rows.given import open_frame, open_rows
from daskmeans.kmeans.rows.inputs import PEEK_ROWS, is_frame_of_numbers, list_partitions, prepare_rows, vector_column
from daskmeans.runtime import executor
from daskmeans.vectors.fields import plain_type
from daskmeans.vectors.frames import frame_schema, frame_to_host, to_table

# Texts that are encoded at a time.
BATCH_TEXTS = 4096
# Name of the ids, and of the texts, where rows have no columns.
ID, TEXT = "id", "text"
# Kinds of Arrow, whose rows are taken by a method.
ARROW = pa.Table | pa.RecordBatch | pa.Array | pa.ChunkedArray


class Rows:
    """Vectors without further columns: an array, or a column of lists.

    Parameters
    ----------
    data : object
        The rows as they were given.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def vectors(self) -> np.ndarray:
        """The vectors, checked and of unit length; float32, shape (n, d)."""
        if isinstance(self.data, list | tuple) and not self.data:  # such as a batch of no texts
            return np.empty((0, 1), np.float32)
        return prepare_rows(open_rows(self.data), True)

    def table(self, n: int, names: Sequence[str]) -> pa.Table:
        """The ids of the `n` rows, then the columns `names`, which may include the ids."""
        if more := [name for name in names if name != ID]:
            raise UsageError(f"there is no column {more[0]!r}", where="keep", expected="rows with columns")
        return pa.table({ID: np.arange(n)})

    def take(self, places: np.ndarray) -> Any:
        """The rows at these ascending `places`, in the type that they were given in."""
        if isinstance(self.data, ARROW):
            return self.data.take(pa.array(places))
        if not hasattr(self.data, "shape") and isinstance(self.data, Sequence):
            return type(self.data)(self.data[place] for place in places.tolist())  # type: ignore[call-arg]
        return self.data.iloc[places] if hasattr(self.data, "iloc") else self.data[places]

    def select(self, decided: MemoryDecisions, keep: bool) -> Any:
        """The rows that stay, or those that are removed."""
        return self.take(np.flatnonzero(decided.keep == keep))

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        """Metadata of the rows at these `places`, in any order."""
        return [{} for _ in places]


class TextRows(Rows):
    """Texts, in a list, a tuple, an array or a column."""

    def vectors(self) -> np.ndarray:
        return encode_texts(_to_list(self.data))

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        return [{TEXT: text} for text in _to_list(self.take(places))]


class LazyRows(Rows):
    """Vectors of a dask array, or of a dask column of lists; selected rows are lazy."""

    def vectors(self) -> np.ndarray:
        opened = open_rows(self.data)
        if isinstance(opened, da.Array) and np.isnan(opened.shape[0]):
            opened.compute_chunk_sizes()  # of the array that was given
        self._starts = _find_starts(opened) if isinstance(opened, dd.Series) else None
        return _join_vectors(list_partitions(opened, None))

    def take(self, places: np.ndarray) -> Any:
        return self.data[places] if self._starts is None else _take_lazily(self.data, self._starts, places)


class FrameRows(Rows):
    """Rows of a dataframe in memory, of any kind that :func:`open_frame` opens.

    Parameters
    ----------
    data : object
    column : str, optional
        The column of vectors, or of texts. Default: the only one of vectors; in a dataframe of numbers, each column but
        that of the ids is a feature.
    id_field : str, optional
        The column of ids; default: ``id`` if there is one, else the numbers of the rows.
    """

    def __init__(self, data: Any, column: str | None, id_field: str | None) -> None:
        super().__init__(data)
        self.frame = frame_to_host(open_frame(data))
        self.names = list(self.frame.columns)
        self.id_field = ID if id_field is None and ID in self.names else id_field
        self.features = [name for name in self.names if name != self.id_field]
        self.column, self.holds_texts = None, False
        peek = self._peek()
        if not self.features or not is_frame_of_numbers(open_rows(self._drop_ids(peek), column), column):
            self.features, found = [], vector_column(peek, column)
            self.column = next(name for name in self.names if str(name) == str(found))  # Arrow's names are strings
            self.holds_texts = _is_text(frame_schema(peek[[self.column]]).types[0])

    def vectors(self) -> np.ndarray:
        if self.holds_texts:
            return encode_texts(self._read([self.column])[0].to_pylist())
        if self.features:
            return prepare_rows(open_rows(self._drop_ids(self.frame)), True)
        return prepare_rows(self.frame[self.column], True, f"column {self.column!r}")

    def table(self, n: int, names: Sequence[str]) -> pa.Table:
        id_name = ID if self.id_field is None else self.id_field
        more = [name for name in names if name != id_name]
        for name, argument in [(self.id_field, "id_field"), *((name, "keep") for name in more)]:
            if name is not None and name not in self.names:
                expected = f"one of {', '.join(map(str, self.names))}"
                raise UsageError(f"there is no column {name!r}", where=argument, expected=expected)
        ids = pa.array(np.arange(n))
        if self.id_field is not None:
            ids = read_ids(self._read([self.id_field])[0], f"column {self.id_field!r}")
            check_unique(ids, f"column {self.id_field!r}")
        return pa.table([ids, *(self._read(more).columns if more else [])], names=[id_name, *more])

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        hidden = [self.id_field, *self.features, *([] if self.holds_texts else [self.column])]
        shown = [name for name in self.names if name not in hidden]
        return self._read(shown, places).to_pylist() if shown else super().describe(places)

    def _peek(self) -> pd.DataFrame:
        """The first rows, or at least their types."""
        return self.frame.head(PEEK_ROWS)

    def _drop_ids(self, frame: Any) -> Any:
        return frame.drop(columns=self.id_field) if self.id_field in self.names else frame

    def _read(self, names: Sequence[Any], places: np.ndarray | None = None) -> pa.Table:
        """Some columns as an Arrow table; all rows, or those at these `places`."""
        found = self.frame[list(names)]
        return to_table(found if places is None else found.iloc[places])


class DaskRows(FrameRows):
    """Rows of a dask dataframe; selected rows are lazy."""

    def vectors(self) -> np.ndarray:
        self._starts = _find_starts(self.data)
        if self.holds_texts:
            return super().vectors()
        return _join_vectors(list_partitions(self._drop_ids(self.data) if self.features else self.data, self.column))

    def take(self, places: np.ndarray) -> dd.DataFrame:
        return _take_lazily(self.data, self._starts, places)

    def _peek(self) -> pd.DataFrame:
        return frame_to_host(self.data._meta)

    def _read(self, names: Sequence[Any], places: np.ndarray | None = None) -> pa.Table:
        if places is None:
            return to_table(self.data[list(names)].compute())
        ascending, back = np.unique(places, return_inverse=True)
        return to_table(self.take(ascending)[list(names)].compute().iloc[back])


def to_rows(data: Any, column: str | None, id_field: str | None) -> Rows:
    """Return `data` as rows: a dataframe, texts or vectors.

    Raises
    ------
    UsageError
        There are no such columns, or rows of this type cannot be read.
    """
    lazy = dask.is_dask_collection(data)
    if isinstance(data, dd.DataFrame):
        return DaskRows(data, column, id_field)
    if hasattr(data, "columns") and not lazy:
        return FrameRows(data, column, id_field)
    for name, value in (("column", column), ("id_field", id_field)):
        if value is not None:
            found = f"{name}={value!r} was given with {type(data).__name__}, which has no columns"
            raise UsageError(found, expected="a dataframe", remedy=f"leave {name} out")
    if lazy:
        return LazyRows(data)
    return TextRows(data) if _are_texts(data) else Rows(data)


def encode_texts(texts: Sequence[Any]) -> np.ndarray:
    """Unit vectors of `texts`; float32, shape (n, d).

    Raises
    ------
    DataError
        A value is no text, or no vector can be made of it.
    MissingExtraError
        The encoder is not installed.
    """
    encoder = get_encoder()
    if wrong := next(((row, text) for row, text in enumerate(texts) if not isinstance(text, str)), None):
        raise DataError(f"the text is {wrong[1]!r}", where=f"row {wrong[0]}", expected="strings")
    task = delayed(encoder.encode, pure=False)
    batches = [task(texts[i : i + BATCH_TEXTS]) for i in range(0, len(texts), BATCH_TEXTS)]
    X = np.concatenate([np.empty((0, encoder.dimension), np.float32), *executor.compute_locally(batches)])
    if len(empty := np.flatnonzero(~X.any(axis=1))):
        raise DataError(
            f"no vector can be made of the text {texts[empty[0]][:40]!r}",
            where=f"row {empty[0]}",
            expected="a text with words that the encoder knows",
            remedy="leave the text out",
        )
    return prepare_rows(X, True)


def _join_vectors(parts: Sequence[Any]) -> np.ndarray:
    """The vectors of lazy partitions, in this process."""
    prepare = delayed(prepare_rows, pure=False)
    found = executor.compute([prepare(part, True, f"partition {i}") for i, part in enumerate(parts)], "load vectors")
    return np.concatenate([each for each in found if len(each)] or found[:1])


def _find_starts(data: dd.DataFrame | dd.Series) -> np.ndarray:
    """The number of the first row of each partition, and the number of all rows."""
    sizes = [delayed(len, pure=False)(part) for part in data.to_delayed(optimize_graph=False)]
    return np.cumsum([0, *executor.compute(sizes)])


def _take_lazily(data: Any, starts: np.ndarray, places: np.ndarray) -> Any:
    """The rows at these ascending `places` of a dask dataframe or column whose partitions start at `starts`."""
    bounds, task = np.searchsorted(places, starts), delayed(_take_rows, pure=False)
    taken = [
        task(part, places[low:high] - start)
        for part, start, (low, high) in zip(
            data.to_delayed(optimize_graph=False), starts[:-1], pairwise(bounds), strict=True
        )
    ]
    return dd.from_delayed(taken, meta=data._meta, verify_meta=False)


def _take_rows(part: Any, places: np.ndarray) -> Any:
    return part.iloc[places]


def _to_list(texts: Any) -> list[Any]:
    return texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else list(texts)


def _are_texts(data: Any) -> bool:
    """Whether `data` are texts, judging by their type or the first one."""
    if isinstance(data, pa.Array | pa.ChunkedArray):
        return _is_text(data.type)
    one_dimensional = isinstance(data, list | tuple) or len(getattr(data, "shape", ())) == 1
    return one_dimensional and isinstance(next(iter(data), None), str | bytes)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(plain_type(type_))
