"""Leaks as decisions: rows that leaked are dropped, and all other rows that were compared stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from daskmeans.duplicates.lookup import DecisionIndex, make_decision_index
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import translate_read_errors
from daskmeans.vectors.rejects import REJECTS_FILE

LEAKS_FILE = "leaks.parquet"


@dataclass(frozen=True, eq=False)
class LeakIndex(DecisionIndex):
    """The leaked rows, and those that were not compared, by the hash of the id; the last entry is for all others."""

    unknown: np.ndarray
    """bool, shape (n,): whether the row was not compared, so that there is no decision on it."""
    each_once: ClassVar[bool] = False

    def find(self, ids: pa.Array) -> np.ndarray:
        """Place of the decision on each of `ids`; that of the last entry for a row that is not listed."""
        places = super().find(ids)
        listed = places >= 0
        places[~listed & ids.is_valid().to_numpy(zero_copy_only=False)] = len(self.keep) - 1
        places[listed] = np.where(self.unknown[places[listed]], -1, places[listed])
        return places


def read_leak_index(path: UPath) -> LeakIndex:
    """Read the leaks, and the rows of the test set that were not compared, from the output of `leak` in `path`."""
    with translate_read_errors(path):
        leaked = _read(path / LEAKS_FILE, ["id"])["id"]
        skipped = leaked.slice(0, 0)
        if (path / REJECTS_FILE).exists():
            rejects = _read(path / REJECTS_FILE, ["id", "input"])
            skipped = rejects["id"].filter(pc.equal(rejects["input"], "test")).drop_null().cast(leaked.type)
    unknown = np.repeat([False, True], [len(leaked), len(skipped)])
    found = make_decision_index(pa.chunked_array([*leaked.chunks, *skipped.chunks], leaked.type), unknown)
    return LeakIndex(
        np.append(found.hashes, np.uint64(2**64 - 1)),  # the largest, as hashes ascend
        pa.concat_arrays([found.ids, found.ids.slice(0, 1) if len(found.ids) else pa.nulls(1, found.ids.type)]),
        np.append(np.zeros(len(found.keep), bool), True),
        np.append(found.keep, False),
    )


def _read(file: UPath, columns: list[str]) -> pa.Table:
    return pq.read_table(file.path, filesystem=file.fs, columns=columns, **VERIFY_PAGES)
