"""Similar pairs on disk: read, counted, and checked against the rows that they are of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.utils import format_bytes
from upath import UPath

from daskmeans import config
from daskmeans.duplicates.settings import Settings
from daskmeans.errors import MemoryForecastError, NotFoundError
from daskmeans.runtime import resources
from daskmeans.storage import manifest
from daskmeans.storage.signature import CHECKED
from daskmeans.vectors import npy
from daskmeans.vectors.files import reading

# Directory of the pairs below that of the decisions.
PAIRS = "pairs"
# Its file with the scores of the rows on which recall is measured.
GAUGE = "gauge.npy"
# Pairs that are read at a time.
BATCH_PAIRS = 1 << 20
# Bytes that the decisions take for each pair, on the client.
PAIR_BYTES = 160


class Edges(NamedTuple):
    """Pairs of rows that are similar, of copies only those with the first of their band."""

    rows: np.ndarray
    """int64: numbers of one row of each pair, of two rows that are decided that of the later one."""
    twins: np.ndarray
    """int64: numbers of the other."""
    scores: np.ndarray
    """float32"""
    copies: np.ndarray
    """bool"""

    @staticmethod
    def none() -> Edges:
        """No pairs."""
        return Edges(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.bool_)))


def how_found(settings: Settings) -> dict[str, Any]:
    """Settings of the step that finds pairs."""
    found: dict[str, Any] = {name: getattr(settings, name) for name in ("search", "probes", "floor")}
    if settings.search == "clusters":
        found |= {"random_state": settings.random_state, "recall_sample": config.get("recall-sample")}
    return found


def stored_floor(folder: UPath, inputs: dict[str, Any], settings: Settings) -> float | None:
    """The score from which `folder` holds the pairs of `inputs` that a search with `settings` finds.

    None if it does not hold them from their floor on, or another version has found them.
    """
    found = manifest.peek(folder)
    if found is None or not found["finished"] or found["step"] != "pairs":
        return None
    floor = found["settings"].get("floor", np.inf)
    same = not manifest.changes(found, how_found(settings) | {"floor": floor}, inputs)
    same_version = found["versions"]["daskmeans"] == manifest.versions()["daskmeans"]
    return float(floor) if same and same_version and floor <= settings.floor else None


def read_edges(folder: UPath, inputs: dict[str, Any], settings: Settings) -> Edges:
    """The pairs of `inputs` in `folder` that a search with `settings` has found, from their floor on.

    Raises
    ------
    NotFoundError
        The pairs, or some of them, are not there, or were found in other clusters.
    MemoryForecastError
        There are more than the memory of this process holds.
    """
    stored = stored_floor(folder, inputs, settings)
    parts = [[none] for none in Edges.none()]
    count = taken = 0
    columns = ["row", "twin", "score", "exact"]
    for file in sorted(folder.glob("part-*.parquet"), key=lambda file: file.name):
        with reading(file), pq.ParquetFile(file.path, filesystem=file.fs, **CHECKED) as found:
            for batch in found.iter_batches(BATCH_PAIRS, columns=columns):
                count += len(batch)
                near = batch.filter(pc.greater_equal(batch["score"], pa.scalar(np.float32(settings.floor))))
                taken += len(near)
                check_pairs(taken, "choose a higher threshold or floor")
                for part, column in zip(parts, near.columns, strict=True):
                    part.append(column.to_numpy(zero_copy_only=False))
    if stored is None or count != manifest.read(folder, "pairs")["count"]:
        raise NotFoundError(
            f"the pairs of these clusters from {settings.floor} on are not here, or no longer",
            where=str(folder),
            remedy="run `daskmeans dedup` again",
        )
    return Edges(*map(np.concatenate, parts))


def read_gauge(folder: UPath) -> np.ndarray:
    """What :meth:`Gauge.best` has found when the pairs in `folder` were searched."""
    return npy.load(manifest.read_checked(folder, GAUGE, manifest.read(folder, "pairs")))


def check_pairs(pairs: int, remedy: str) -> None:
    """Refuse to decide from more pairs than the memory of this process holds."""
    need, have = PAIR_BYTES * pairs, resources.memory_to_keep(None)
    if need > have:
        raise MemoryForecastError(
            f"deciding on {pairs:,} pairs and more needs {format_bytes(need)}, and this process has "
            f"{format_bytes(have)}",
            where="--threshold",
            remedy=remedy,
        )
