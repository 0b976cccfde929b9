"""Tables whose valid files are listed in a log beside them: Delta, Iceberg and Hudi.

Files that the log has removed stay on disk for a while, so reading all files would include deleted rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from upath import UPath

from daskmeans.errors import UsageError
from daskmeans.storage import objectstore

# For each kind, the directory of the log below that of the table, and suffixes of its files.
LOGS = {
    "Delta": ("_delta_log", ".json"),
    "Iceberg": ("metadata", ".metadata.json"),
    "Hudi": (".hoodie", "hoodie.properties"),
}


def refuse_lake_tables(root: UPath, names: Sequence[str]) -> None:
    """Raise UsageError if one of the files `names` below the directory `root` belongs to the log of a table."""
    for kind, (folder, ending) in LOGS.items():
        log = re.compile(rf"(?:(.*?)/)?{re.escape(folder)}/[^/]*{re.escape(ending)}")
        tables = [found[1] or "" for found in map(log.fullmatch, names) if found]
        if tables:
            raise _lake_error(kind, root / min(tables, key=len))


def refuse_lake_parts(folders: Iterable[UPath]) -> None:
    """Raise UsageError if the files in one of `folders` belong to a table, whose directory may lie above.

    Partitions lie in directories ``column=value``. There may be thousands, and checking each would cost requests, so
    only the first is checked: if it is a table of its own, so are the others.
    """
    given = list(folders)
    places = dict.fromkeys(_partition_folders(given[0])) if given else {}
    for folder in given:
        while "=" in folder.name:
            folder = folder.parent
        places |= dict.fromkeys((folder, folder.parent))
    for place in places:
        for kind, (log, ending) in LOGS.items():
            if _has_log(place / log, ending):
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


def _lake_error(kind: str, table: UPath) -> UsageError:
    remedy = "write its rows to separate files, with a reader of such tables"
    if kind == "Delta":
        remedy += ", or name its current files (in Python, DeltaTable(path).file_uris() lists them)"
    return UsageError(
        f"this is a {kind} table, whose log lists the valid rows; other rows in its files may have been deleted",
        where=str(table),
        expected="a directory or a glob of files whose rows are all valid",
        remedy=remedy,
    )
