"""The task that reads one partition onto a device, as a cuDF dataframe of checked rows.

The device only checks whether all rows are valid. If they are not, or cuDF cannot tell, the CPU reader reads the
partition instead, with its errors, rejected rows and types, and the rows are copied to the device. So the rules are the
same as for pandas dataframes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskmeans.kernels.gpu.device import explain_full_memory
from daskmeans.storage.signature import is_signed
from daskmeans.vectors.files import is_local
from daskmeans.vectors.frames import cudf_schema, frame_schema, to_cudf, to_cupy_matrix
from daskmeans.vectors.partitioning import Partition, Slice
from daskmeans.vectors.reader import Reader


@dataclass(frozen=True)
class DeviceReader:
    """How partitions are read onto a device.

    Attributes
    ----------
    reader : Reader
        CPU reader of the same rows.
    """

    reader: Reader

    def __call__(self, partition: Partition) -> Any:
        """Return the rows of `partition` as a cuDF dataframe."""
        with explain_full_memory():
            frame = self._read(partition) if self._is_plain(partition) else None
            return to_cudf(self.reader.table(partition)) if frame is None else frame

    def _is_plain(self, partition: Partition) -> bool:
        """Whether cuDF can read all columns of the rows of `partition`, and of no other rows, from files."""
        return self.reader.format == "parquet" and self.reader.numbering is None and partition.left_out is None

    def _read(self, partition: Partition) -> Any:
        """Return the rows as cuDF reads them; None if they may be wrong."""
        try:
            if all(_is_readable_by_cudf(piece, self.reader.stored) for piece in partition.slices):
                frame = self._read_slices(partition)
                return frame if self._is_valid(frame, partition.rows) else None
        except (OSError, OverflowError, RuntimeError, TypeError, ValueError):
            pass  # the CPU reader reports the problem, or finds none
        return None

    def _read_slices(self, partition: Partition) -> Any:
        import cudf

        read = [
            cudf.read_parquet(
                piece.path.path,
                columns=self.reader.schema.names,
                skip_rows=piece.first,
                nrows=piece.rows,
                use_pandas_metadata=False,
                dataset_kwargs={"partitioning": None},  # directory names are not columns
            )
            for piece in partition.slices
        ]
        return cudf.concat(read, ignore_index=True) if len(read) > 1 else read[0]

    def _is_valid(self, frame: Any, rows: int) -> bool:
        """Whether `frame` has all rows, with the types of the schema, and none has a problem."""
        schema, found = self.reader.schema, cudf_schema(frame_schema(frame))
        if (
            len(frame) != rows
            or found.names != schema.names
            or not _has_same_types(found.types, cudf_schema(schema).types)
        ):
            return False
        id_, vectors = (frame[name] for name in schema.names[:2])
        X = to_cupy_matrix(vectors)
        if id_.null_count or X is None or X.shape[1] != schema.types[1].list_size:
            return False
        for field in found:
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                frame[field.name].to_arrow().validate(full=True)  # files may hold bytes that are not UTF-8
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
            X = X.astype(np.float32, copy=False)
        return bool(np.isfinite(X).all()) and (self.reader.allow_zero or bool((X != 0).any(axis=1).all()))


def _is_readable_by_cudf(piece: Slice, stored: pa.Schema) -> bool:
    """Whether cuDF can read the columns `stored`: the file is local and has them, none of them inside another.

    It is unsigned, too, as only pyarrow verifies page checksums.
    """
    if not is_local(piece.path):
        return False
    schema = pq.read_schema(piece.path.path)
    return not is_signed(schema) and {*stored.names} <= {*schema.names}


def _has_same_types(found: list[pa.DataType], expected: list[pa.DataType]) -> bool:
    """Whether types are equal, except for the offset width of strings."""
    strings = {pa.string(), pa.large_string()}
    return all(one == other or {one, other} == strings for one, other in zip(found, expected, strict=True))
