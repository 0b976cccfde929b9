"""Tables whose files are told by a log beside them: Delta, Iceberg and Hudi.

Files that the log has removed stay where they are for a while, so whoever reads all files reads rows that are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from upath import UPath

from daskmeans.errors import UsageError
from daskmeans.storage import objectstore

# Of each kind the directory of the log below that of the table, and how some of its files end.
LOGS = {
    "Delta": ("_delta_log", ".json"),
    "Iceberg": ("metadata", ".metadata.json"),
    "Hudi": (".hoodie", "hoodie.properties"),
}


def refuse_lake_tables(root: UPath, names: Sequence[str]) -> None:
    """Raise UsageError if one of the files `names` below the directory `root` is of the log of a table."""
    for kind, (folder, ending) in LOGS.items():
        log = re.compile(rf"(?:(.*?)/)?{re.escape(folder)}/[^/]*{re.escape(ending)}")
        tables = [found[1] or "" for found in map(log.fullmatch, names) if found]
        if tables:
            raise _lake_error(kind, root / min(tables, key=len))


def refuse_lake_parts(folders: Iterable[UPath]) -> None:
    """Raise UsageError if the files of one of `folders` belong to a table, whose directory may lie above.

    Partitions lie in ``column=value``. There may be thousands of them, each of which would cost requests, so that of
    partitions the first alone is looked at: where it is a table of its own, the others will be, too.
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
    """`folder` and those above it that are partitions."""
    while "=" in folder.name:
        yield folder
        folder = folder.parent


def _has_log(folder: UPath, ending: str) -> bool:
    names: list[str] = []
    with objectstore.suppress_storage_errors():  # what lies around an input need not be allowed to be seen
        names += [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return any(name.endswith(ending) for name in names)


def _lake_error(kind: str, table: UPath) -> UsageError:
    remedy = "write its rows to files of their own, with what reads such tables"
    if kind == "Delta":
        remedy += ", or name its files as they are now (in Python DeltaTable(path).file_uris() tells them)"
    return UsageError(
        f"this is a {kind} table, whose log tells which rows of its files are there: others may have been removed",
        where=str(table),
        expected="a directory or a glob of files that all hold data",
        remedy=remedy,
    )
