"""Signatures of Parquet files: schema metadata that marks files written by daskmeans, and page checksums."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.storage.manifest import FORMAT

# For readers: a page with a wrong checksum is an error.
VERIFY_PAGES = {"page_checksum_verification": True}


def sign_schema(schema: pa.Schema, step: str) -> pa.Schema:
    """Return `schema` with the file format, the version of daskmeans and the step added to its metadata.

    Examples
    --------
    >>> sorted(sign_schema(pa.schema({"id": pa.int64()}), "dedup").metadata)
    [b'daskmeans.format', b'daskmeans.step', b'daskmeans.version']
    """
    entries = {"format": str(FORMAT), "version": version("daskmeans"), "step": step}
    ours = {f"daskmeans.{name}".encode(): value.encode() for name, value in entries.items()}
    return schema.with_metadata({**(schema.metadata or {}), **ours})


def is_signed(schema: pa.Schema) -> bool:
    """Whether a file with this `schema` was written by daskmeans.

    Examples
    --------
    >>> is_signed(pa.schema({})), is_signed(sign_schema(pa.schema({}), "embed"))
    (False, True)
    """
    return b"daskmeans.format" in (schema.metadata or {})


def write_table(table: pa.Table, to: UPath | pa.NativeFile, step: str) -> None:
    """Write `table` to a file or a stream, with a signature."""
    signature = sign_schema(table.schema, step).metadata
    where, fs = (to.path, to.fs) if isinstance(to, UPath) else (to, None)
    pq.write_table(table.replace_schema_metadata(signature), where, filesystem=fs, write_page_checksum=True)


def open_writer(path: UPath, schema: pa.Schema, step: str, **options: Any) -> pq.ParquetWriter:
    """Return a writer of tables of `schema` to the file `path`; it adds the signature, tables need none."""
    options |= {"filesystem": path.fs, "write_page_checksum": True}
    return pq.ParquetWriter(path.path, sign_schema(schema, step), **options)
