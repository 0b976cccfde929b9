"""Tables whose valid files are listed in a log beside them: Delta, Iceberg and Hudi.

Files that the log has removed stay on disk for a while, so reading all files would include deleted rows. The log of a
Delta table is followed with the package deltalake; other tables are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote

import pyarrow as pa
from upath import UPath

from daskmeans.errors import UsageError
from daskmeans.storage import objectstore
from daskmeans.vectors.files import is_local, join_inside

# For each kind, the directory of the log below that of the table, and suffixes of its files.
LOGS = {
    "Delta": ("_delta_log", ".json"),
    "Iceberg": ("metadata", ".metadata.json"),
    "Hudi": (".hoodie", "hoodie.properties"),
}
# What a Delta table may ask of its readers that changes neither which rows its files hold nor how columns are called.
HARMLESS_FEATURES = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "variantType"}
# Commands that write the rows of a table to a file.
COPIES = {
    "Delta": "duckdb -c \"COPY (FROM delta_scan('{}')) TO 'rows.parquet'\"",
    "Iceberg": "duckdb -c \"COPY (FROM iceberg_scan('{}')) TO 'rows.parquet'\"",
    "Hudi": "spark.read.format('hudi').load('{}').write.parquet('rows') in PySpark",
}


def is_delta_table(names: Iterable[str]) -> bool:
    """Whether one of the files `names` below a directory is the log of a Delta table there.

    Examples
    --------
    >>> is_delta_table(["_delta_log/00000000000000000000.json"]), is_delta_table(["a/_delta_log/0.json"])
    (True, False)
    """
    return any(re.fullmatch(r"_delta_log/[^/]*\.(json|parquet)", name) for name in names)


def list_delta_files(root: UPath) -> list[UPath]:
    """Return the files with the current rows of the Delta table in the directory `root`.

    Raises
    ------
    UsageError
        deltalake is not installed, cannot read the log, or the files hold deleted rows or columns of other names.
    """
    try:
        from deltalake import DeltaTable
    except ImportError:
        raise _lake_error("Delta", root, 'pip install "daskmeans[lakes]", with which the log is followed') from None
    try:
        table = DeltaTable(root.path if is_local(root) else str(root))
        names, asks = pa.table(table.get_add_actions())["path"].to_pylist(), table.protocol()
        renames = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    except Exception as error:  # whatever the log or the storage is like
        why = str(error).partition("\n")[0]  # a trace of Rust may follow
        raise _lake_error("Delta", root, found=f"and its log cannot be read ({why})") from None
    features = {*(asks.reader_features or ())} - HARMLESS_FEATURES - {"columnMapping"}
    if features or renames:
        why = ", ".join(sorted(features) or ["columnMapping"])
        raise _lake_error("Delta", root, found=f"and its files alone do not show its rows ({why})")
    return [join_inside(root, unquote(name)) for name in names]


def refuse_lake_tables(root: UPath, names: Sequence[str]) -> None:
    """Raise UsageError if one of the files `names` below the directory `root` belongs to the log of a table."""
    for kind, (folder, ending) in LOGS.items():
        log = re.compile(rf"(?:(.*?)/)?{re.escape(folder)}/[^/]*{re.escape(ending)}")
        tables = [found[1] or "" for found in map(log.fullmatch, names) if found]
        if tables:
            raise _lake_error(kind, root / min(tables, key=len))


def refuse_lake_parts(folders: Iterable[UPath], root: UPath) -> None:
    """Raise UsageError if the files in one of `folders` belong to a table, whose directory may lie above.

    Partitions lie in directories ``column=value``. There may be thousands, and checking each would cost requests, so
    only the first is checked: if it is a table of its own, so are the others. If the input `root` is a Delta table
    itself, its log has been followed.
    """
    given = list(folders)
    places = dict.fromkeys(_partition_folders(given[0])) if given else {}
    for folder in given:
        while "=" in folder.name:
            folder = folder.parent
        places |= dict.fromkeys((folder, folder.parent))
    for place in places:
        for kind, (log, ending) in LOGS.items():
            if _has_log(place / log, ending) and (kind != "Delta" or place.path != root.path):
                raise _lake_error(kind, place)


def _partition_folders(folder: UPath) -> Iterator[UPath]:
    """Yield `folder` and the partition directories above it."""
    while "=" in folder.name:
        yield folder
        folder = folder.parent


def _has_log(folder: UPath, ending: str) -> bool:
    names: list[str] = []
    with objectstore.suppress_storage_errors():  # access to the surroundings of an input may be denied
        names += [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return any(name.endswith(ending) for name in names)


def _lake_error(kind: str, table: UPath, remedy: str = "", found: str = "") -> UsageError:
    copy = COPIES[kind].format(table)
    if kind == "Delta" and not remedy and not found:
        remedy = "name the directory of the table, whose log is then followed"
    return UsageError(
        f"this is a {kind} table, " + (found or "whose log lists the valid rows; other rows may have been deleted"),
        where=str(table),
        expected="files whose rows are all valid",
        remedy=f"{remedy}; or write its rows to files: {copy}" if remedy else f"write its rows to files: {copy}",
    )
