"""Rejected rows: one table per task while a step runs, joined into one table at its end."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.runtime.client import logger
from daskmeans.storage import manifest, signature
from daskmeans.storage.signature import VERIFY_PAGES

# Below an output, where neither globs of its data nor readers of Parquet directories look, as the columns differ. The
# list is Parquet without the suffix, as some readers look into hidden directories too.
REJECTS_FILE, REJECTS_PARTS = "_rejects/rejects", "_rejects/parts"
# Share of rejected rows from which a warning is logged.
WARN_SHARE = 0.1


def gather_rejects(path: UPath, step: str, rows: int, inputs: Sequence[str] = ()) -> int:
    """Join the tables of rejected rows below `path`, an output of `step` on `rows` rows; return their number.

    Tables of several `inputs` lie in directories with these names; the column ``input`` distinguishes them.
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
    """Write the list of rejected rows of `path`, an output of `step` on `rows` rows; log a warning if they are many."""
    target = path / REJECTS_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    signature.write_table(table, target, step)
    if len(table) >= WARN_SHARE * rows:
        found = pc.value_counts(table["reason"]).to_pylist()
        reason = max(found, key=lambda each: each["counts"])
        logger.warning(
            "%s of %s rows (%.3g %%) were left out, most of them (%s) for this reason: %s. All are listed in %s",
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
