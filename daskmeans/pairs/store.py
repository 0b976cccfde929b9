"""Similar pairs on disk: read, counted, and checked against the rows that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.utils import format_bytes
from upath import UPath

from daskmeans import config
from daskmeans.errors import MemoryForecastError, NotFoundError
from daskmeans.pairs.settings import PairSettings
from daskmeans.runtime import resources
from daskmeans.storage import manifest
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors import npy
from daskmeans.vectors.files import translate_read_errors

# Directory of the pairs below that of the decisions. Its files are Parquet, but not called so: some readers look into
# hidden directories too.
PAIRS_FOLDER = "_pairs"
# Its file with the scores of the rows on which recall is measured.
RECALL_SCORES = "gauge.npy"
# Pairs that are read at a time.
BATCH_PAIRS = 1 << 20
# Bytes that the decisions take for each pair, on the client.
PAIR_BYTES = 160


class SimilarPairs(NamedTuple):
    """Pairs of rows that are similar, of copies only those with the first of their band."""

    rows: np.ndarray
    """int64: numbers of one row of each pair, of two rows that are decided that of the later one."""
    neighbors: np.ndarray
    """int64: numbers of the other."""
    scores: np.ndarray
    """float32"""
    copies: np.ndarray
    """bool"""

    @staticmethod
    def none() -> SimilarPairs:
        """No pairs."""
        return SimilarPairs(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.bool_)))


@dataclass(frozen=True)
class StoredPairs:
    """The pairs that a search has stored.

    Attributes
    ----------
    path : UPath
        Their directory.
    floor : float
        The score from which they are there.
    manifest : dict
    """

    path: UPath
    floor: float
    manifest: dict[str, Any]

    @property
    def count(self) -> int:
        """How many they are."""
        return self.manifest["count"]  # type: ignore[no-any-return]

    def read(self, floor: float) -> SimilarPairs:
        """Those from `floor` on.

        Raises
        ------
        NotFoundError
            Some of the pairs are not there.
        MemoryForecastError
            There are more than the memory of this process holds.
        """
        parts = [[none] for none in SimilarPairs.none()]
        count = taken = 0
        columns = ["row", "twin", "score", "exact"]
        for file in sorted(self.path.glob("part-*"), key=lambda file: file.name):
            with translate_read_errors(file), pq.ParquetFile(file.path, filesystem=file.fs, **VERIFY_PAGES) as found:
                for batch in found.iter_batches(BATCH_PAIRS, columns=columns):
                    count += len(batch)
                    near = batch.filter(pc.greater_equal(batch["score"], pa.scalar(np.float32(floor))))
                    taken += len(near)
                    check_pair_count(taken, "choose a higher threshold or floor")
                    for part, column in zip(parts, near.columns, strict=True):
                        part.append(column.to_numpy(zero_copy_only=False))
        if count != self.count:
            raise pairs_are_gone(self.path, floor)
        return SimilarPairs(*map(np.concatenate, parts))

    def recall_sample(self) -> np.ndarray:
        """What :meth:`RecallSample.best_scores` has found when they were searched."""
        return npy.load_array(manifest.read_verified(self.path, RECALL_SCORES, self.manifest))


def find_stored_pairs(folder: UPath, inputs: dict[str, Any], settings: PairSettings) -> StoredPairs | None:
    """The pairs of `inputs` that a search with `settings` finds; None if `folder` has not all from its floor on.

    Raises
    ------
    DataError
        The manifest is not what was written.
    """
    found = manifest.peek_manifest(folder)
    floor = (found or {}).get("settings", {}).get("floor", np.inf)
    held = manifest.status(found, "pairs", pairs_settings(settings) | {"floor": floor}, inputs)
    if held.state is not manifest.State.DONE or floor > settings.floor:
        return None
    return StoredPairs(folder, float(floor), manifest.read_manifest(folder, "pairs"))


def open_pairs(folder: UPath, inputs: dict[str, Any], settings: PairSettings) -> StoredPairs:
    """The pairs of `inputs` in `folder` that a search with `settings` has found.

    Raises
    ------
    NotFoundError
        They are not there, or were found in other clusters, from a higher floor on or by another version.
    """
    stored = find_stored_pairs(folder, inputs, settings)
    if stored is None:
        raise pairs_are_gone(folder, settings.floor)
    return stored


def pairs_are_gone(folder: UPath, floor: float) -> NotFoundError:
    return NotFoundError(
        f"the pairs of these clusters from {floor} on are not here, or no longer",
        where=str(folder),
        remedy="run `daskmeans dedup` again",
    )


def pairs_settings(settings: PairSettings) -> dict[str, Any]:
    """Settings of the step that finds pairs."""
    found: dict[str, Any] = {name: getattr(settings, name) for name in ("search", "probes", "floor")}
    if settings.search == "clusters":
        found |= {"random_state": settings.random_state, "recall_sample": config.get("recall-sample")}
    return found


def check_pair_count(pairs: int, remedy: str) -> None:
    """Refuse to decide from more pairs than the memory of this process holds."""
    need, have = PAIR_BYTES * pairs, resources.memory_to_keep(None)
    if need > have:
        raise MemoryForecastError(
            f"deciding on {pairs:,} pairs and more needs {format_bytes(need)}, and this process has "
            f"{format_bytes(have)}",
            where="--threshold",
            remedy=remedy,
        )
