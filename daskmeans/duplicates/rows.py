"""Rows in memory, of whatever type they are given in: their vectors, their ids, and some of them in the same type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask import delayed

from daskmeans.duplicates.in_memory import MemoryDecisions, check_unique, read_ids
from daskmeans.encoders.encoder import get_encoder
from daskmeans.errors import DataError, UsageError
from daskmeans.kmeans.rows.inputs import as_matrix, list_partitions, prepare_rows, vector_column
from daskmeans.runtime import executor
from daskmeans.vectors.fields import plain_type

# Texts that are encoded at a time.
BATCH_TEXTS = 4096
# Name of the ids, and of the texts, where rows have no columns.
ID, TEXT = "id", "text"
# Tables of Arrow.
TABLES = pa.Table | pa.RecordBatch
# Rows that show the types of columns of Python objects.
PEEK_ROWS = 64


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
        is_column = isinstance(self.data, pd.Series | pa.Array | pa.ChunkedArray)
        return prepare_rows(self.data if is_column else as_matrix(self.data), True)

    def table(self, n: int, names: Sequence[str]) -> pa.Table:
        """The ids of the `n` rows, then the columns `names`, which may include the ids."""
        if more := [name for name in names if name != ID]:
            raise UsageError(f"there is no column {more[0]!r}", where="keep", expected="rows with columns")
        return pa.table({ID: np.arange(n)})

    def take(self, places: np.ndarray) -> Any:
        """The rows at these ascending `places`, in the type that they were given in."""
        if isinstance(self.data, list | tuple):
            return type(self.data)(self.data[place] for place in places.tolist())
        if isinstance(self.data, TABLES | pa.Array | pa.ChunkedArray):
            return self.data.take(pa.array(places))
        return self.data.iloc[places] if hasattr(self.data, "iloc") else self.data[places]

    def select(self, decided: MemoryDecisions, keep: bool) -> Any:
        """The rows that stay, or those that are removed."""
        return self.take(np.flatnonzero(decided.keep == keep))

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        """Metadata of the rows at these `places`, in any order."""
        return [{} for _ in places]


class ChunkedRows(Rows):
    """Rows of a dask array; selected rows are lazy."""

    def vectors(self) -> np.ndarray:
        if np.isnan(self.data.shape[0]):
            self.data = self.data.compute_chunk_sizes()
        return _join_vectors(list_partitions(self.data, None))


class TextRows(Rows):
    """Texts, in a list, a tuple, an array or a column."""

    def vectors(self) -> np.ndarray:
        return encode_texts(_to_list(self.data))

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        return [{TEXT: text} for text in _to_list(self.take(places))]


class FrameRows(Rows):
    """Rows of a dataframe: of pandas, an Arrow table, or one that converts to an Arrow table, as those of polars do.

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
        self.names = list(data.column_names if isinstance(data, TABLES) else data.columns)
        self.id_field = ID if id_field is None and ID in self.names else id_field
        self.features: list[Any] = []
        peek = self._peek()
        if column is None and isinstance(peek, TABLES):
            types = {name: peek.schema.field(i).type for i, name in enumerate(self.names) if name != self.id_field}
            self.features = list(types) if types and all(map(_is_number, types.values())) else []
        shown = peek.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True) if isinstance(peek, TABLES) else peek
        self.column, self.holds_texts = None, False
        if not self.features:
            found = vector_column(shown, column)
            self.column = next(name for name in self.names if str(name) == str(found))  # Arrow's names are strings
            place = self.names.index(self.column)
            self.holds_texts = isinstance(peek, TABLES) and _is_text(peek.schema.field(place).type)

    def vectors(self) -> np.ndarray:
        if self.features:
            return prepare_rows(as_matrix(self._read(self.features).to_pandas()), True)
        values = self._read([self.column])[0]
        return encode_texts(values.to_pylist()) if self.holds_texts else prepare_rows(values, True, self._where())

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
        return pa.table([ids, *self._read(more).columns], names=[id_name, *more])

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        hidden = [self.id_field, *self.features, *([] if self.holds_texts else [self.column])]
        shown = [name for name in self.names if name not in hidden]
        return self._read(shown, places).to_pylist() if shown else super().describe(places)

    def _where(self) -> str:
        return f"column {self.column!r}"

    def _peek(self) -> Any:
        """The first rows, as an Arrow table."""
        return self._read(self.names, np.arange(min(PEEK_ROWS, len(self.data))))

    def _read(self, names: Sequence[Any], places: np.ndarray | None = None) -> pa.Table:
        """Some columns as an Arrow table; all rows, or those at these `places`."""
        found = self.data.select(names) if isinstance(self.data, TABLES) else self.data[list(names)]
        if isinstance(found, pd.DataFrame):
            chosen = found if places is None else found.iloc[places]
            return pa.Table.from_pandas(chosen, preserve_index=False)
        table = found if isinstance(found, TABLES) else found.to_arrow()
        return table if places is None else table.take(pa.array(places))


class DaskRows(FrameRows):
    """Rows of a dask dataframe; selected rows are lazy."""

    def vectors(self) -> np.ndarray:
        sizes = [delayed(len, pure=False)(part) for part in self.data.to_delayed(optimize_graph=False)]
        self._starts = np.cumsum([0, *executor.compute(sizes)])
        return _join_vectors(list_partitions(self.data, self.column))

    def take(self, places: np.ndarray) -> dd.DataFrame:
        parts, task = self.data.to_delayed(optimize_graph=False), delayed(_take_rows, pure=False)
        bounds = np.searchsorted(places, self._starts)
        taken = [
            task(part, places[low:high] - start)
            for part, start, low, high in zip(parts, self._starts[:-1], bounds[:-1], bounds[1:], strict=True)
        ]
        return dd.from_delayed(taken, meta=self.data._meta, verify_meta=False)

    def _peek(self) -> Any:
        return self.data

    def _read(self, names: Sequence[Any], places: np.ndarray | None = None) -> pa.Table:
        if places is None:
            return pa.Table.from_pandas(self.data[list(names)].compute(), preserve_index=False)
        ascending, back = np.unique(places, return_inverse=True)
        rows = self.take(ascending)[list(names)].compute()
        return pa.Table.from_pandas(rows.iloc[back], preserve_index=False)


def to_rows(data: Any, column: str | None, id_field: str | None) -> Rows:
    """Return `data` as rows: a dataframe, texts or vectors.

    Raises
    ------
    UsageError
        There are no such columns, or rows of this type cannot be read.
    """
    if isinstance(data, dd.DataFrame):
        return DaskRows(data, column, id_field)
    if isinstance(data, TABLES) or hasattr(data, "columns"):
        return FrameRows(data, column, id_field)
    for name, value in (("column", column), ("id_field", id_field)):
        if value is not None:
            found = f"{name}={value!r} was given with {type(data).__name__}, which has no columns"
            raise UsageError(found, expected="a dataframe", remedy=f"leave {name} out")
    if isinstance(data, da.Array):
        return ChunkedRows(data)
    if not isinstance(data, list | tuple | pa.Array | pa.ChunkedArray) and not hasattr(data, "shape"):
        raise UsageError(
            f"rows of type {type(data).__name__} cannot be read",
            expected="an array, a dataframe, a list of texts, or paths",
            remedy="make a list of them",
        )
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


def _take_rows(part: pd.DataFrame, places: np.ndarray) -> pd.DataFrame:
    return part.iloc[places]


def _to_list(texts: Any) -> list[Any]:
    return texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else list(texts)


def _are_texts(data: Any) -> bool:
    """Whether `data` are texts, judging by their type or the first one."""
    if isinstance(data, pa.Array | pa.ChunkedArray):
        return _is_text(data.type)
    one_dimensional = isinstance(data, list | tuple) or len(data.shape) == 1
    return one_dimensional and isinstance(next(iter(data), None), str | bytes)


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(plain_type(type_))
