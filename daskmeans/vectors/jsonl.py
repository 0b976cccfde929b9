"""JSON lines, plain or compressed: blocks of lines, and the rows in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.formats import sniff_codec
from daskmeans.vectors.nested import select_fields, wrap_schema
from daskmeans.vectors.partitioning import Slice

BLOCK_BYTES = 8 * 2**20
# Accepts one object per line, with any fields: no file has this one.
ANY_OBJECT = pa.schema({"\0": pa.null()})
NULL_LINE = re.compile(rb"\s*null")

ReadBytes = Callable[[int], bytes]


def read_jsonl(piece: Slice, schema: pa.Schema, block_bytes: int = BLOCK_BYTES) -> Iterator[pa.Table]:
    """Read the rows of `piece` in order, with the fields and types of `schema`."""
    whole = wrap_schema(schema)
    row, end = piece.first, piece.first + piece.rows
    with translate_read_errors(piece.path), open_text(piece.path, piece.start, piece.end) as read:
        for block in read_blocks(read, block_bytes):
            table = parse_or_refuse(block, whole, piece.path, row)
            row += len(table)
            if len(table):
                yield select_fields(table, schema)
    if row != end:
        found = f"the file had {end} rows, and has {row} now"
        raise DataError(found, where=str(piece.path), remedy="leave the input alone while it is read, and run again")


@contextlib.contextmanager
def open_text(path: UPath, start: int = 0, end: int = 0) -> Iterator[ReadBytes]:
    """Open the text in `path`; for a plain file, its bytes from `start` to `end` if `end` is given."""
    with path.open("rb") as file:
        if codec := sniff_codec(path):
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream:
                yield stream.read
        elif end:
            file.seek(start)
            yield lambda size: file.read(min(size, end - file.tell()))
        else:
            yield file.read


def read_blocks(read: ReadBytes, size: int) -> Iterator[bytes]:
    """Yield blocks of about `size` bytes that end at line ends."""
    held: list[bytes] = []
    while data := read(size):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield b"".join([*held, data[:cut]])
            held = []
        held.append(data[cut:])
    if any(held):
        yield b"".join(held)


def line_starts(block: bytes) -> np.ndarray:
    """Return the starts of the lines in `block` that are not blank, as integers."""
    view = np.frombuffer(block, np.uint8)
    bounds = np.concatenate([[0], np.flatnonzero(view == ord("\n")) + 1, [len(block)]])
    bounds = bounds[: len(bounds) - (bounds[-1] == bounds[-2])]
    starts = bounds[:-1]
    odd = np.flatnonzero(view[starts] != ord("{"))
    blank = [i for i in odd if not block[bounds[i] : bounds[i + 1]].strip()]
    return np.delete(starts, blank)


def parse_lines(block: bytes, schema: pa.Schema | None) -> pa.Table:
    """Parse the lines in `block`; raise ValueError if one of them is not a single object of `schema`."""
    starts = line_starts(block)
    if not len(starts):
        return (schema or pa.schema([])).empty_table()
    if NULL_LINE.match(block, int(starts[0])):  # on which Arrow's parser crashes
        raise ValueError("it is null")
    unexpected = "infer" if schema is None else "ignore"
    table = pj.read_json(
        pa.BufferReader(block),
        pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
        pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )
    if table.num_rows != len(starts):
        raise ValueError("there is more than one object in a line")
    table.validate(full=True)  # the parser accepts bytes that are not UTF-8
    return table


def parse_or_refuse(block: bytes, schema: pa.Schema, path: UPath, first: int) -> pa.Table:
    """Parse the lines in `block`, or raise DataError; `first` is the number of its first row."""
    try:
        return parse_lines(block, schema)
    except ValueError:
        row, message = _find_bad_line(block, schema)
        fields = ", ".join(f"{field.name} ({field.type})" for field in schema if schema is not ANY_OBJECT)
        raise DataError(
            f"the line cannot be read ({message})",
            where=f"{path}, row {first + row} (counted from 0)",
            expected="one JSON object per line" + (f", with the fields {fields}" if fields else ""),
            remedy="repair or remove the line; a line that is not JSON has no id, so it cannot be skipped",
        ) from None


def _find_bad_line(block: bytes, schema: pa.Schema) -> tuple[int, str]:
    """Find the first line that keeps `block` from being parsed, by bisection; return its number and the reason."""
    ends = [*line_starts(block)[1:].tolist(), len(block)]
    good, bad, message = 0, len(ends), ""
    while good < bad:
        middle = (good + bad) // 2
        try:
            parse_lines(block[: ends[middle]], schema)
            good = middle + 1
        except ValueError as error:
            bad, message = middle, str(error)
    return bad, re.sub(r"^JSON parse error: | in row \d+$", "", message).rstrip(".")
