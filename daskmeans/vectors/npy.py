"""NumPy files: the rows of a 2-D array of floating-point numbers, which have no ids."""

from __future__ import annotations

import io
from collections.abc import Iterator
from threading import Lock
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.vectors.files import is_local, stat_file, translate_read_errors
from daskmeans.vectors.matrix import to_fixed_lists
from daskmeans.vectors.partitioning import FileSurvey, Slice, Unit

VECTOR_COLUMN = "embedding"
# Maximum number of brackets of one kind in a header.
MAX_NESTING = 100
# Headers are parsed one at a time: Python 3.11 has one counter of syntax-tree depth for all threads, and parsing in two
# threads at once may corrupt it.
_PARSE_LOCK = Lock()


def survey_npy(path: UPath, rows: int | None = None) -> FileSurvey:
    """Survey `path`: its schema and rows, from its header; `rows` is ignored."""
    count, dimension, dtype, start = read_header(path)
    if stat_file(path)[0] < start + count * dimension * dtype.itemsize:
        raise DataError("the file ends before its last row", where=str(path), remedy="write the file again")
    element = pa.from_numpy_dtype(dtype.newbyteorder("=")) if dtype.kind == "f" else pa.float32()
    return FileSurvey(pa.schema({VECTOR_COLUMN: pa.list_(element, dimension)}), (Unit(count),) if count else ())


def read_npy(piece: Slice, schema: pa.Schema) -> Iterator[pa.Table]:
    """Read the rows of `piece`, with the columns of `schema`; those that are no vectors are null."""
    X = _read_rows(piece)
    vectors = to_fixed_lists(pa.array(X.reshape(-1)), X.shape[1], X.shape[0])
    yield pa.table({name: vectors if name == VECTOR_COLUMN else pa.nulls(piece.rows) for name in schema.names})


def _read_rows(piece: Slice) -> np.ndarray:
    _, dimension, dtype, start = read_header(piece.path)
    shape = piece.rows, dimension
    offset = start + piece.first * dimension * dtype.itemsize
    with translate_read_errors(piece.path):
        if is_local(piece.path):
            X: np.ndarray = np.memmap(piece.path.path, dtype, "r", offset, shape)
        else:
            with piece.path.open("rb") as file:
                file.seek(offset)
                X = np.frombuffer(file.read(piece.rows * dimension * dtype.itemsize), dtype).reshape(shape)
    return X.astype(dtype.newbyteorder("="), copy=False)


def read_header(path: UPath) -> tuple[int, int, np.dtype, int]:
    """Return rows, dimension and type of the array, and the offset of its first element."""
    with translate_read_errors(path), path.open("rb") as file:
        shape, fortran_order, dtype = _parse_header(file, path)
        start = file.tell()
    expected = "a 2-D array of float16, float32, float64, int8 or uint8, one vector per row"
    is_number = (dtype.kind == "f" and dtype.itemsize <= 8) or dtype in (np.int8, np.uint8)
    if len(shape) != 2 or not is_number or shape[1] == 0:
        raise DataError(
            f"the array is {dtype} of shape {shape}", where=str(path), expected=expected, remedy=_remedy(shape, dtype)
        )
    if shape[0] < 0 or shape[1] < 0 or bool in map(type, shape):
        raise DataError(f"the array has the shape {shape}", where=str(path), expected=expected)
    if fortran_order and min(shape) > 1:
        remedy = "save it again with np.save(path, np.ascontiguousarray(X))"
        raise DataError("the array is stored column by column", where=str(path), expected=expected, remedy=remedy)
    return shape[0], shape[1], dtype, start


def _remedy(shape: tuple[int, ...], dtype: np.dtype) -> str:
    if dtype == np.dtype("V2"):  # what NumPy makes of a type that it does not know
        widened = "(X.view(np.uint16).astype(np.uint32) << 16).view(np.float32)"
        return f"if it holds bfloat16, save it again with np.save(path, {widened})"
    if len(shape) > 2 and np.prod(shape) == shape[0] * max(shape[1:]):
        return "save it again with np.save(path, X.reshape(len(X), -1))"
    return "save it again with np.save(path, X.astype(np.float32))" if len(shape) == 2 and dtype.kind in "iu" else ""


def _parse_header(file: BinaryIO, path: UPath) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version}")
        _refuse_nested(file, version)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with _PARSE_LOCK:
            return read(file)
    except (ValueError, RecursionError, TokenError) as error:
        raise DataError(f"not a NumPy file ({error})", where=str(path), expected="a file written by np.save") from None


def load_array(content: bytes) -> Any:
    """Return the array in `content`, the bytes of a ``.npy`` file.

    Invalid content raises ValueError, or an error of Python's parser for the header.
    """
    file = io.BytesIO(content)
    _refuse_nested(file, np.lib.format.read_magic(file))
    file.seek(0)
    with _PARSE_LOCK:
        return np.load(file, allow_pickle=False)


def _refuse_nested(file: BinaryIO, version: tuple[int, int]) -> None:
    """Raise ValueError if the header at the position of `file` is nested too deeply, which would break the parser.

    After such a header, Python 3.11 cannot parse any code until the process ends.
    """
    start = file.tell()
    header_ = file.read(int.from_bytes(file.read(2 if version == (1, 0) else 4), "little"))
    file.seek(start)
    if max(map(header_.count, (b"(", b"[", b"{", b"-", b"~"))) > MAX_NESTING:
        raise ValueError("the header is nested too deeply")
