"""Formats of files: those that names show, and those that first bytes show."""

from __future__ import annotations

import os

import pyarrow as pa
from upath import UPath

from daskmeans.errors import UsageError
from daskmeans.storage import objectstore
from daskmeans.vectors.files import bare_path, is_local

FORMATS = ("parquet", "jsonl", "npy")
NAMES = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy"}
CODECS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = ".parquet, .pq, .jsonl, .ndjson (also with .gz or .zst) or .npy"
MAGIC = {b"PAR1": "parquet", b"\x93NUMPY": "npy"}
CODEC_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BLANK = b"\xef\xbb\xbf \t\r\n"
# Bytes of a file that are looked at; more of a compressed one, whose first block must be whole.
HEAD_BYTES, PACKED_BYTES = 512, 2**18
# What reads other formats with pyarrow, for the line to type.
READERS = {
    ".csv": "csv.read_csv({})",
    ".feather": "feather.read_table({})",
    ".arrow": "feather.read_table({})",
    ".orc": "orc.read_table({})",
}
# First bytes of a stream of Arrow, and what reads it.
STREAM_MAGIC, STREAM_READER = b"\xff\xff\xff\xff", "ipc.open_stream({}).read_all()"
# Names of files that may hold vectors, though none of these formats is read.
OTHERS = (*READERS, ".avro", ".h5", ".hdf5", ".npz", ".pkl", ".pt", ".safetensors", ".tsv")
# File that `save_to_disk` of Hugging Face's datasets leaves beside its Arrow files.
SAVED_STATE = "state.json"


def file_name(path: UPath) -> str:
    """Return the name of a file, without the query of its URL."""
    return bare_path(path).rpartition("/")[2]


def named_format(path: UPath) -> str | None:
    """Return the format that the name of `path` shows; None if it shows none."""
    return format_from_name(file_name(path))


def format_from_name(name: str) -> str | None:
    """Return the format that the name of a file shows; None if it shows none.

    Examples
    --------
    >>> [format_from_name(name) for name in ("X.PARQUET", "x.jsonl.gz", "x.parquet.gz", "000000_0", "a sentence.")]
    ['parquet', 'jsonl', None, None, None]
    """
    name = name.lower()
    stem = next((name.removesuffix(packing) for packing in CODECS if name.endswith(packing)), name)
    found = NAMES.get("." + stem.rpartition(".")[2])
    return found if stem == name or found == "jsonl" else None


def sniff_format(path: UPath) -> str | None:
    """Return the format that the first bytes of `path` show; None if they show none, or cannot be read."""
    start = _read_start(path, HEAD_BYTES)
    for magic, found in MAGIC.items():
        if start.startswith(magic):
            return found
    if packing := _packing(start):
        start = _unpack(_read_start(path, PACKED_BYTES), packing)
    return "jsonl" if start.lstrip(BLANK).startswith(b"{") else None


def sniff_codec(path: UPath) -> str | None:
    """Return the compression of lines in `path`, from its name, else from its first bytes; None for plain text."""
    name = file_name(path).lower()
    if found := CODECS.get("." + name.rpartition(".")[2]):
        return found
    return None if named_format(path) else _packing(_read_start(path, HEAD_BYTES))


def format_of(path: UPath, given: str | None = None) -> str:
    """Return the format of `path`: the `given` one, else what its name shows, else what its first bytes show.

    Raises
    ------
    UsageError
        Nothing shows it.
    """
    found = given or named_format(path) or sniff_format(path)
    if found is None:
        raise UsageError(
            "neither the name nor the first bytes show the format",
            where=str(path),
            expected=f"a name ending in {SUFFIXES}",
            remedy=conversion(path) or f"if you know the format, give it: --format {', '.join(FORMATS[:-1])} or npy",
        )
    return found


def is_other_format(path: UPath) -> bool:
    """Whether the name of `path` shows a format that may hold vectors, but is not read."""
    return file_name(path).lower().endswith(OTHERS)


def conversion(path: UPath) -> str:
    """Return the command that makes of `path` a file that can be read; empty if none is known."""
    stem, _, suffix = file_name(path).rpartition(".")
    start = _read_start(path, HEAD_BYTES)
    if suffix.lower() == "arrow" and _read_start(path.parent / SAVED_STATE, 1):
        return (
            f"python -c \"import datasets; datasets.load_from_disk({str(path.parent)!r}).to_parquet('rows.parquet')\""
        )
    if reader := READERS.get(f".{suffix.lower()}"):
        reader = STREAM_READER if start.startswith(STREAM_MAGIC) else reader
        module = reader.partition(".")[0]
        return (
            f'python -c "from pyarrow import {module}, parquet; '
            f'parquet.write_table({reader.format(repr(str(path)))}, {f"{stem}.parquet"!r})"'
        )
    if start.lstrip(BLANK).startswith(b"["):
        return (
            f'python -c "import json; [print(json.dumps(row)) for row in json.load(open({str(path)!r}))]" '
            f"> {stem}.jsonl"
        )
    return ""


def _packing(start: bytes) -> str | None:
    return next((packing for magic, packing in CODEC_MAGIC.items() if start.startswith(magic)), None)


def _read_start(path: UPath, size: int) -> bytes:
    """Return the first bytes of `path`; none if it cannot be read."""
    if is_local(path) and not os.path.isfile(path.path):  # such as a pipe, which would never end
        return b""
    start = b""
    with objectstore.suppress_storage_errors():  # such as a broken link
        start = path.fs.cat_file(path.path, start=0, end=size)
    return start


def _unpack(start: bytes, packing: str) -> bytes:
    """Return the first bytes of compressed text; none if `start` is not that."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(start), packing) as stream:
            return stream.read(HEAD_BYTES)
    except (OSError, pa.ArrowException):
        return b""
