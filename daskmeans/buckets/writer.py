"""Names and writing of files of rows grouped by cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from upath import UPath

from daskmeans.buckets.buckets import CENTROID, L2
from daskmeans.storage import signature

# Maximum rows of a row group, so that a few thousand rows of a large cluster can be read without the others.
GROUP_ROWS = 4096


def file_name(layout: str, number: int, centroid: int, append: int = 0) -> str:
    """Return the file name for a cluster in the bucket `number`; `append` counts the appends up to this one.

    Examples
    --------
    >>> file_name("bucketed", 7, 81), file_name("hive", 7, 81), file_name("bucketed", 7, 81, append=2)
    ('bucket-00007.parquet', 'centroid=81/part-0.parquet', 'bucket-2-00007.parquet')
    """
    if layout == "hive":
        return f"centroid={centroid}/part-{append}.parquet"
    return f"bucket-{append}-{number:05d}.parquet" if append else f"bucket-{number:05d}.parquet"


def remove_append_files(path: UPath, append: int) -> None:
    """Remove the files written by an append below `path`, in either layout."""
    for file in [*path.glob(f"bucket-{append}-*.parquet"), *path.glob(f"centroid=*/part-{append}.parquet")]:
        file.unlink()


def write_bucket_files(
    path: UPath, tables: Iterable[tuple[int, pa.Table]], layout: str, vectors: str, number: int, append: int = 0
) -> list[dict[str, Any]]:
    """Write a bucket to files below `path`.

    Parameters
    ----------
    path : UPath
    tables : iterable of (int, pyarrow.Table)
        Centroids, ascending, and rows of their clusters, sorted; each table becomes one or more row groups.
    layout : {"bucketed", "hive"}
    vectors : str
        Column of vectors.
    number, append : int
        As in :func:`file_name`.

    Returns
    -------
    list of dict
        The files' entries in the manifest.
    """
    files: list[dict[str, Any]] = []
    writer = None
    for centroid, table in tables:
        name = file_name(layout, number, centroid, append)
        rows = table.select([c for c in table.column_names if layout != "hive" or c != CENTROID])
        if writer is None or writer.name != name:
            files += [writer.close()] if writer else []
            writer = _BucketWriter(path, name, rows.schema, vectors)
        writer.write(centroid, rows)
    return files + ([writer.close()] if writer else [])


class _BucketWriter:
    """A writer of one Parquet file that records which clusters its row groups belong to."""

    def __init__(self, path: UPath, name: str, schema: pa.Schema, vectors: str) -> None:
        self.name = name
        self._clusters: dict[int, list[int]] = {}
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        plain = {f"{vectors}.list.element"}  # vectors do not compress
        columns = [schema.field(i).name for i in range(len(schema))]
        self._file = signature.open_writer(
            file,
            schema,
            "assign",
            write_statistics=[name for name in (CENTROID, L2) if name in columns],
            use_dictionary=[CENTROID] if CENTROID in columns else False,
            compression={c: "zstd" for c in columns if c != vectors} | dict.fromkeys(plain, "none"),
        )

    def write(self, centroid: int, rows: pa.Table) -> None:
        """Append `rows` of the cluster `centroid` as one or more row groups."""
        self._file.write_table(rows, row_group_size=GROUP_ROWS)
        held = self._clusters.setdefault(centroid, [0, 0])
        held[0] += len(rows)
        held[1] += max(1, -(-len(rows) // GROUP_ROWS))

    def close(self) -> dict[str, Any]:
        """Finish the file; return its entry in the manifest."""
        self._file.close()
        clusters = [[c, *held] for c, held in self._clusters.items()]
        return {"path": self.name, "rows": sum(rows for _, rows, _ in clusters), "clusters": clusters}
