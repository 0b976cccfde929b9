"""Rows that were left out: a table a task while they are found, one table when the step is done."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans import manifest

PARTS = "rejects"


def gather_rejects(path: UPath) -> int:
    """Join the tables in ``rejects/`` below `path` to ``rejects.parquet``; returns the number of rows."""
    parts = path / PARTS
    files = sorted(parts.glob("*.parquet"), key=str) if parts.exists() else []
    if not files:
        return 0
    table = pa.concat_tables([pq.read_table(file.path, filesystem=file.fs) for file in files])
    target = path / "rejects.parquet"
    pq.write_table(table, target.path, filesystem=target.fs)
    manifest.remove(parts)
    return len(table)
