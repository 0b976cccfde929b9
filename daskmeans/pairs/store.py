"""Similar pairs on disk: find them, check that they belong to the same rows, and read them."""

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

# Folder of the pairs in the directory of the decisions. Its files are Parquet but have no suffix, since some readers
# look into hidden directories too.
PAIRS_FOLDER = "_pairs"
# File in this folder with the best scores of the recall sample.
RECALL_SCORES = "gauge.npy"
# Pairs that are read at a time.
BATCH_PAIRS = 1 << 20
# Bytes that the decisions take for each pair, on the client.
PAIR_BYTES = 160


class SimilarPairs(NamedTuple):
    """Pairs of similar rows; a copy is paired only with the first row of its row block that is identical."""

    rows: np.ndarray
    """int64: number of one row of each pair; if both rows are decided on, the later one."""
    neighbors: np.ndarray
    """int64: number of the other row."""
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
        Lowest score of the stored pairs.
    manifest : dict
    """

    path: UPath
    floor: float
    manifest: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of pairs."""
        return self.manifest["count"]  # type: ignore[no-any-return]

    def read(self, floor: float) -> SimilarPairs:
        """Read the pairs that score at least `floor`.

        Raises
        ------
        NotFoundError
            Some of the pairs are missing.
        MemoryForecastError
            There are more pairs than fit into the memory of this process.
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

    def recall_scores(self) -> np.ndarray:
        """Read the results of :meth:`RecallSample.best_scores` from the search."""
        return npy.load_array(manifest.read_verified(self.path, RECALL_SCORES, self.manifest))


def find_stored_pairs(folder: UPath, inputs: dict[str, Any], settings: PairSettings) -> StoredPairs | None:
    """Find in `folder` the pairs of `inputs` that a search with `settings` would find; None if they are not all there.

    Raises
    ------
    DataError
        The manifest is damaged.
    """
    found = manifest.peek_manifest(folder)
    floor = (found or {}).get("settings", {}).get("floor", np.inf)
    held = manifest.status(found, "pairs", pairs_settings(settings) | {"floor": floor}, inputs)
    if held.state is not manifest.State.DONE or floor > settings.floor:
        return None
    return StoredPairs(folder, float(floor), manifest.read_manifest(folder, "pairs"))


def open_pairs(folder: UPath, inputs: dict[str, Any], settings: PairSettings) -> StoredPairs:
    """Open the pairs of `inputs` in `folder` that a search with `settings` has found.

    Raises
    ------
    NotFoundError
        They are gone, or were found in other clusters, with a higher floor or by another version.
    """
    stored = find_stored_pairs(folder, inputs, settings)
    if stored is None:
        raise pairs_are_gone(folder, settings.floor)
    return stored


def pairs_are_gone(folder: UPath, floor: float) -> NotFoundError:
    return NotFoundError(
        f"the pairs of these clusters that score at least {floor} are no longer here",
        where=str(folder),
        remedy="run `daskmeans dedup` again",
    )


def pairs_settings(settings: PairSettings) -> dict[str, Any]:
    """Settings of the step `pairs`, as its manifest stores them."""
    found: dict[str, Any] = {name: getattr(settings, name) for name in ("search", "probes", "floor")}
    if settings.search == "clusters":
        found |= {"random_state": settings.random_state, "recall_sample": config.get("recall-sample")}
    return found


def check_pair_count(pairs: int, remedy: str) -> None:
    """Refuse to decide from more pairs than fit into the memory of this process."""
    need, have = PAIR_BYTES * pairs, resources.memory_to_keep(None)
    if need > have:
        raise MemoryForecastError(
            f"deciding on {pairs:,} or more pairs needs {format_bytes(need)}, and this process has "
            f"{format_bytes(have)}",
            where="--threshold",
            remedy=remedy,
        )
