"""Rows that were left out: a table a task while they are found, one table when the step is done."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.runtime.client import logger
from daskmeans.storage import manifest, signature
from daskmeans.storage.signature import VERIFY_PAGES

# Below an output, where neither a glob of its data nor what else reads directories of Parquet looks: they have other
# columns. The list is Parquet, but not called so: some readers look into hidden directories too.
REJECTS_FILE, REJECTS_PARTS = "_rejects/rejects", "_rejects/parts"
# Share of the rows from which those that are left out are worth a warning.
WARN_SHARE = 0.1


def gather_rejects(path: UPath, step: str, rows: int, inputs: Sequence[str] = ()) -> int:
    """Join the tables of rejected rows below `path`, an output of `step` on `rows` rows; returns how many.

    Those of several `inputs` lie in directories of these names, and the column ``input`` tells them apart.
    """
    parts = path / REJECTS_PARTS
    tables = _read_tables(parts)
    for name in inputs:
        tables += [table.append_column("input", pa.repeat(name, len(table))) for table in _read_tables(parts / name)]
    if not tables:
        return 0
    table = pa.concat_tables(tables)
    write_rejects(table, path, step, rows)
    manifest.remove_tree(parts)
    return len(table)


def write_rejects(table: pa.Table, path: UPath, step: str, rows: int) -> None:
    """Write the list of rejected rows of `path`, an output of `step` on `rows` rows; say so if they are many."""
    target = path / REJECTS_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    signature.write_table(table, target, step)
    if len(table) >= WARN_SHARE * rows:
        found = pc.value_counts(table["reason"]).to_pylist()
        reason = max(found, key=lambda each: each["counts"])
        logger.warning(
            "%s of %s rows (%.3g %%) were left out, most of them (%s) for this: %s. All are listed in %s",
            f"{len(table):,}",
            f"{rows:,}",
            100 * len(table) / rows,
            f"{reason['counts']:,}",
            reason["values"],
            target,
        )


def _read_tables(folder: UPath) -> list[pa.Table]:
    files = sorted(folder.glob("*.parquet"), key=str) if folder.exists() else []
    return [pq.read_table(file.path, filesystem=file.fs, **VERIFY_PAGES) for file in files]
