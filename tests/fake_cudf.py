"""What our code uses of cuDF, made of pandas and Arrow: the same calls on frames in memory."""

from __future__ import annotations

import importlib.machinery
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


class Leaves:
    """A column of numbers, as `Series.list` gives it."""

    def __init__(self, array: pa.Array) -> None:
        self._array, self.null_count = array, array.null_count
        self.dtype = np.dtype(array.type.to_pandas_dtype())

    def __len__(self) -> int:
        return len(self._array)

    @property
    def values(self) -> np.ndarray:
        return self._array.to_numpy(zero_copy_only=False)


class ListMethods:
    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def len(self) -> Leaves:
        return Leaves(self._array.value_lengths())

    @property
    def leaves(self) -> Leaves:
        return Leaves(self._array.flatten())


class Series(pd.Series):
    """cudf.Series: a column of Arrow."""

    @property
    def _constructor(self):
        return Series

    @property
    def _constructor_expanddim(self):
        return DataFrame

    def to_arrow(self) -> pa.Array:
        array = pa.array(self)
        return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array

    @property
    def list(self) -> ListMethods:
        array = self.to_arrow()
        if not pa.types.is_list(array.type):
            raise AttributeError("Can only use the '.list' accessor with 'list[pyarrow]' dtype")
        return ListMethods(array)

    @property
    def null_count(self) -> int:
        return int(self.isna().sum())

    @classmethod
    def from_pylibcudf(cls, col: np.ndarray, metadata: dict) -> Series:
        offsets = np.arange(len(col) + 1, dtype=np.int32) * col.shape[1]
        array = pa.ListArray.from_arrays(offsets, col.reshape(-1))
        return cls(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])), **metadata)


class DataFrame(pd.DataFrame):
    """cudf.DataFrame: columns of types that cuDF has."""

    @property
    def _constructor(self):
        return DataFrame

    @property
    def _constructor_sliced(self):
        return Series

    def to_arrow(self, preserve_index: bool | None = None) -> pa.Table:
        assert preserve_index is False
        return pa.Table.from_pandas(pd.DataFrame(self), preserve_index=False).replace_schema_metadata(None)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> DataFrame:
        for type_ in table.schema.types:
            element = type_.value_type if pa.types.is_list(type_) else type_
            if pa.types.is_fixed_size_list(type_) or pa.types.is_float16(element) or pa.types.is_decimal256(type_):
                raise NotImplementedError(f"cuDF has no {type_}")
        return cls(table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True))


class Column:
    @classmethod
    def from_cuda_array_interface(cls, obj: np.ndarray) -> np.ndarray:
        assert obj.ndim == 2 and obj.flags.c_contiguous
        return obj


READ: list[str] = []


def read_parquet(filepath_or_buffer, *, columns, skip_rows, nrows, use_pandas_metadata, dataset_kwargs) -> DataFrame:
    """Rows of one file; lists come as lists, whatever Arrow has noted of them."""
    assert not use_pandas_metadata and dataset_kwargs == {"partitioning": None}
    READ.append(filepath_or_buffer)
    schema = pq.read_schema(filepath_or_buffer)
    table = pq.ParquetFile(filepath_or_buffer).read(columns=columns).select([c for c in columns if c in schema.names])
    types_ = [pa.list_(t.value_type) if pa.types.is_fixed_size_list(t) else t for t in table.schema.types]
    table = table.cast(pa.schema(list(zip(table.column_names, types_, strict=True))))
    return DataFrame.from_arrow(table.slice(skip_rows, nrows))


def module(name: str, **content: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(content)
    return made


def modules() -> dict[str, types.ModuleType]:
    """cudf and pylibcudf, by their names."""
    cudf = module("cudf", DataFrame=DataFrame, Series=Series, read_parquet=read_parquet, concat=pd.concat)
    return {"cudf": cudf, "pylibcudf": module("pylibcudf", Column=Column)}
