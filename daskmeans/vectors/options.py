"""How a command reads embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed import Client
from upath import UPath

from daskmeans.runtime.client import n_processes, n_threads
from daskmeans.runtime.memory import partition_bytes
from daskmeans.vectors.fields import names_of
from daskmeans.vectors.files import open_path
from daskmeans.vectors.source import Source, open_source

# Partitions for each thread, so that none waits long for the others. More would cost: a row group that is cut is
# decoded again, up to the slice, for each of its slices.
PER_THREAD = 2


@dataclass(frozen=True)
class Reading:
    """How embeddings are read; the fields are the flags of the command line."""

    id_field: str = "id"
    embedding_field: str | None = None
    metadata_fields: tuple[str, ...] = ()  # one name may come as it is
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)  # may hold secrets
    on_bad_row: str = "error"

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata_fields", names_of(self.metadata_fields))

    def open(self, inputs: Any, client: Client | None, *, allow_zero: bool) -> Source:
        """The source of `inputs`, cut to what the memory of a task allows."""
        return open_source(
            inputs,
            id_field=self.id_field,
            embedding_field=self.embedding_field,
            metadata_fields=self.metadata_fields,
            storage_options=self.storage_options,
            on_bad_row=self.on_bad_row,
            allow_zero=allow_zero,
            partition_bytes=partition_bytes(client),
            min_partitions=PER_THREAD * n_threads(client),
            workers=n_processes(client),
        )

    def path(self, url: str | UPath) -> UPath:
        """`url` with the storage options."""
        return open_path(url, self.storage_options)


DEFAULTS = Reading()
