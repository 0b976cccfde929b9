"""Options for reading embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client
from upath import UPath

from daskmeans.options import option
from daskmeans.runtime.client import current_client, n_processes, n_threads
from daskmeans.runtime.memory import partition_bytes
from daskmeans.vectors.fields import as_names
from daskmeans.vectors.files import Input, as_list, open_path
from daskmeans.vectors.formats import FORMATS
from daskmeans.vectors.numbering import FIELD, ID_SOURCES
from daskmeans.vectors.source import PartitionLimits, Source, open_source

# Partitions per thread, so that none waits long for the others. More would cost time: a row group that is cut is
# decoded again, up to the slice, for each of its slices.
PARTITIONS_PER_THREAD = 2


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading embeddings; the fields are flags of the command line."""

    id_field: str = option("id", "Column of ids.")
    embedding_field: str | None = option(None, "Column of vectors; default: the only list of floats.")
    metadata_fields: tuple[str, ...] = option(  # a single name may be given as a string
        (), "Further column to keep; repeatable.", flag="--metadata-field"
    )
    storage_options: Mapping[str, Any] | None = option(  # may hold secrets
        None, "Options of the file system, as JSON.", shown=False
    )
    format: str | None = option(
        None, "Format of the files; default: what their names show, else their first bytes.", choices=FORMATS
    )
    id_from: str = option(FIELD, "file-row: make ids of file and row, such as part-0.parquet:17.", choices=ID_SOURCES)
    on_bad_row: str = option(
        "error",
        "Stop at a bad row, or leave it out and list it below _rejects in the output.",
        choices=("error", "skip"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata_fields", as_names(self.metadata_fields))

    def open(self, inputs: Any, client: Client | None, *, allow_zero: bool) -> Source:
        """Open `inputs` as a source whose partitions fit the memory of a task.

        Files and columns are checked before the client is asked for, so that a command starts its workers after that.
        """
        return open_source(
            inputs,
            id_field=self.id_field,
            embedding_field=self.embedding_field,
            metadata_fields=self.metadata_fields,
            storage_options=self.storage_options,
            format=self.format,
            id_from=self.id_from,
            on_bad_row=self.on_bad_row,
            allow_zero=allow_zero,
            limits=lambda: _limit_partitions(current_client(client)),
        )

    def paths(self, inputs: Input | Sequence[Input]) -> list[UPath]:
        """Return the files, directories and globs that `inputs` name, with the storage options."""
        return [self.path(each) for each in as_list(inputs)]

    def path(self, url: Input) -> UPath:
        """Return `url` as a path with the storage options."""
        return open_path(url, self.storage_options)


def _limit_partitions(client: Client | None) -> PartitionLimits:
    return PartitionLimits(partition_bytes(client), PARTITIONS_PER_THREAD * n_threads(client), n_processes(client))


DEFAULTS = ReadOptions()
