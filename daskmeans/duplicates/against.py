"""What new rows are held against: clusters, of whose rows those count that stay.

Clusters know the decisions that were made on them: those are noted in the directory ``_decisions`` of the clusters, and
those of a run lie beside them. A row counts if all of them keep it, or if it was appended since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans import manifest, runtime
from daskmeans.duplicates.decisions import NOTES
from daskmeans.duplicates.result import decision_files
from daskmeans.errors import DataError, NotFoundError
from daskmeans.provenance import CHECKED
from daskmeans.vectors.buckets import Buckets, Part, as_of, lean_of, open_buckets
from daskmeans.vectors.files import Input, open_path, reading

# Where a run has its decisions, beside its clusters.
BESIDE = "dedup"


@dataclass(frozen=True)
class Against:
    """Clusters, and the finished decisions on them that say which of their rows stay.

    Attributes
    ----------
    buckets : Buckets
    decisions : tuple of UPath
        Their directories. Without any, all rows stay.
    alone : bool, default False
        Whether other decisions on the clusters are left out of account.
    """

    buckets: Buckets
    decisions: tuple[UPath, ...]
    alone: bool = False

    def described(self) -> dict[str, Any]:
        """What decisions that build on this say of it."""
        made = [manifest.identity(manifest.read(path, "dedup")) for path in self.decisions]
        told = {"clusters": str(self.buckets.path), "made": manifest.identity(self.buckets.manifest)}
        named = [{"decisions": str(path), "made": each} for path, each in zip(self.decisions, made, strict=True)]
        return told | ({"decided": named} if named else {}) | ({"alone": True} if self.alone else {})

    def staying(self, client: Client | None) -> np.ndarray | None:
        """Which rows stay, in the order in which they lie in the clusters; bool, shape (rows,). None if all do."""
        dropped = dropped_ids(self.decisions, client)
        if dropped is None:
            return None
        shared, lean = runtime.share(dropped, client), lean_of(self.buckets)
        tasks = [delayed(_staying, pure=False)(lean, part, shared) for part in self.buckets.parts]
        staying = np.concatenate(runtime.compute(tasks, "read decisions", client))
        self._tell_of_disagreement(len(staying) - int(staying.sum()))
        return staying

    def _tell_of_disagreement(self, dropped: int) -> None:
        """Say that one of several decisions keeps rows that do not count, as `dropped` rows do not."""
        counts = [(path, manifest.read(path, "dedup")) for path in self.decisions]
        if all(found["rows"] - found["kept"] == dropped for _, found in counts):
            return
        runtime.logger.warning(
            "%s: the decisions on these clusters differ (%s), and rows count that all of them keep; to go by one "
            "alone, name its directory instead of the clusters",
            self.buckets.path,
            ", ".join(f"{path} keeps {found['kept']:,}" for path, found in counts),
        )


def open_against(path: Input, storage_options: Mapping[str, Any] | None = None) -> Against:
    """What `path` stands for: clusters with all decisions on them, or decisions, and clusters that go by these alone.

    Raises
    ------
    NotFoundError, OutputError
        It is neither, or is unfinished; or the clusters that decisions were made on are no longer there.
    """
    folder = open_path(path, storage_options)
    found = manifest.peek(folder)
    if found is None or found["step"] != "dedup":
        buckets = open_buckets(folder)
        return Against(buckets, known_decisions(buckets))
    made = manifest.read(folder, "dedup")["inputs"]
    buckets = open_buckets(open_path(made["clusters"], {**folder.storage_options, **(storage_options or {})}))
    if as_of(buckets, made["made"]) is None:
        raise NotFoundError(
            "the clusters that the decisions were made from are not here, or no longer",
            where=str(buckets.path),
            expected=f"what the decisions in {folder} were made from",
            remedy="run `daskmeans dedup` again",
        )
    return Against(buckets, (folder,), alone=True)


def known_decisions(buckets: Buckets) -> tuple[UPath, ...]:
    """Directories of the finished decisions on `buckets`, or on what they were before rows were appended."""
    notes = buckets.path / NOTES
    noted = [json.loads(note.read_text())["decisions"] for note in notes.glob("*.json")] if notes.exists() else []
    options = buckets.path.storage_options
    paths = [open_path(path, options) for path in {*noted, str(buckets.path.parent / BESIDE)}]
    return tuple(sorted((path for path in paths if _is_on(path, buckets)), key=str))


def _is_on(path: UPath, buckets: Buckets) -> bool:
    """Whether `path` holds finished decisions on `buckets`."""
    found = manifest.peek(path)
    ours = found is not None and found["finished"] and found["step"] == "dedup"
    return ours and as_of(buckets, found["inputs"]["made"]) is not None  # type: ignore[index]


def dropped_ids(decisions: Sequence[UPath], client: Client | None) -> pa.ChunkedArray | None:
    """Ids of the rows that one of `decisions` at least drops; None if there are none."""
    files = [file for path in decisions for file in decision_files(path)]
    tables = runtime.compute([delayed(_dropped, pure=False)(file) for file in files], client=client)
    chunks = [chunk for column in tables for chunk in column.chunks if len(chunk)]
    return pa.chunked_array(chunks) if chunks else None


def _dropped(file: UPath) -> pa.ChunkedArray:
    with reading(file):
        table = pq.read_table(file.path, filesystem=file.fs, **CHECKED, columns=["id", "keep"])
    return table["id"].filter(pc.invert(table["keep"]))


def _staying(buckets: Buckets, part: Part, dropped: pa.ChunkedArray) -> np.ndarray:
    ids = buckets.read_part(part, [buckets.id_field])[0]
    return pc.invert(pc.is_in(ids.cast(dropped.type), dropped)).to_numpy()


def refuse_fallen(path: UPath, client: Client | None) -> None:
    """Refuse the decisions in `path` if a row went for one of other clusters that has gone from there since.

    It may be dropped by decisions that were made later, or the clusters are made anew. Clusters that are no longer
    there say nothing.

    Raises
    ------
    DataError
    """
    for told in manifest.read(path, "dedup")["inputs"].get("against", ()):
        clusters = open_path(told["clusters"], path.storage_options)
        found = manifest.peek(clusters)
        if found is None or not found["finished"] or found["step"] != "assign":
            continue
        buckets = open_buckets(clusters)
        if as_of(buckets, told["made"]) is None:
            raise DataError(
                "these clusters were made anew since rows were held against them, or have lost what was appended",
                where=str(clusters),
                expected=f"the clusters that the decisions in {path} went by",
                remedy="append again what was appended, or run the same `daskmeans dedup` with --overwrite",
            )
        by = [open_path(one["decisions"], path.storage_options) for one in told.get("decided", ())]
        by = [one for one in by if _is_on(one, buckets)] if told.get("alone") else list(known_decisions(buckets))
        dropped = dropped_ids(by, client)
        if dropped is None:
            continue
        fallen = runtime.compute([delayed(_fallen, pure=False)(file, dropped) for file in decision_files(path)])
        if count := sum(fallen):
            raise DataError(
                f"{count:,} rows went for rows of {clusters} that are dropped there by now",
                where=str(path),
                expected=f"the rows that stay by {', '.join(map(str, by))}",
                remedy="run the same `daskmeans dedup` again with --overwrite; if its rows are appended already, "
                "assign all rows together into new clusters, and deduplicate those",
            )


def _fallen(file: UPath, dropped: pa.ChunkedArray) -> int:
    """How many decisions in `file` name one of `dropped` as the row that stays."""
    with reading(file):
        kept = pq.read_table(file.path, filesystem=file.fs, **CHECKED, columns=["kept_id"])["kept_id"]
    return int(pc.sum(pc.is_in(kept.drop_null().cast(dropped.type), dropped)).as_py() or 0)
