"""What every Parquet file of ours says of itself, in the metadata of its schema; its pages have checksums."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.storage.manifest import FORMAT

# For readers: a page that is not what was written is an error.
VERIFY_PAGES = {"page_checksum_verification": True}


def sign_schema(schema: pa.Schema, step: str) -> pa.Schema:
    """`schema` with the format of our files, the version of daskmeans and the step that writes, beside its metadata.

    Examples
    --------
    >>> sorted(sign_schema(pa.schema({"id": pa.int64()}), "dedup").metadata)
    [b'daskmeans.format', b'daskmeans.step', b'daskmeans.version']
    """
    entries = {"format": str(FORMAT), "version": version("daskmeans"), "step": step}
    ours = {f"daskmeans.{name}".encode(): value.encode() for name, value in entries.items()}
    return schema.with_metadata({**(schema.metadata or {}), **ours})


def is_signed(schema: pa.Schema) -> bool:
    """Whether a file of `schema` is one of ours.

    Examples
    --------
    >>> is_signed(pa.schema({})), is_signed(sign_schema(pa.schema({}), "embed"))
    (False, True)
    """
    return b"daskmeans.format" in (schema.metadata or {})


def write_table(table: pa.Table, to: UPath | pa.NativeFile, step: str) -> None:
    """Write `table` to a file or a stream, signed."""
    signature = sign_schema(table.schema, step).metadata
    where, fs = (to.path, to.fs) if isinstance(to, UPath) else (to, None)
    pq.write_table(table.replace_schema_metadata(signature), where, filesystem=fs, write_page_checksum=True)


def open_writer(path: UPath, schema: pa.Schema, step: str, **options: Any) -> pq.ParquetWriter:
    """Writer of tables of `schema` to the file `path`, signed; tables need not be."""
    options |= {"filesystem": path.fs, "write_page_checksum": True}
    return pq.ParquetWriter(path.path, sign_schema(schema, step), **options)
