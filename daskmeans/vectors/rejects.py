"""Rows that were left out: a table a task while they are found, one table when the step is done."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from daskmeans import manifest, provenance
from daskmeans.provenance import CHECKED

# Below an output, where neither a glob of its data nor what else reads directories of Parquet looks: they have other
# columns.
LIST, PARTS = "_rejects/rejects.parquet", "_rejects/parts"


def gather_rejects(path: UPath, step: str, inputs: Sequence[str] = ()) -> int:
    """Join the tables in ``PARTS`` below `path`, an output of `step`, to ``LIST``; returns its rows.

    Those of several `inputs` lie in directories of these names, and the column ``input`` tells them apart.
    """
    parts = path / PARTS
    tables = _tables(parts)
    for name in inputs:
        tables += [table.append_column("input", pa.repeat(name, len(table))) for table in _tables(parts / name)]
    if not tables:
        return 0
    table = pa.concat_tables(tables)
    write_rejects(table, path, step)
    manifest.remove(parts)
    return len(table)


def write_rejects(table: pa.Table, path: UPath, step: str) -> None:
    """Write the list of rejected rows of `path`, an output of `step`."""
    target = path / LIST
    target.parent.mkdir(parents=True, exist_ok=True)
    provenance.write_table(table, target, step)


def _tables(folder: UPath) -> list[pa.Table]:
    files = sorted(folder.glob("*.parquet"), key=str) if folder.exists() else []
    return [pq.read_table(file.path, filesystem=file.fs, **CHECKED) for file in files]
