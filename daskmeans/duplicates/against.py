"""Reference clusters: the ones that new rows are compared with, and which of their rows stay.

The decisions on clusters are known: each is noted in their directory ``_decisions``, and those of a run lie beside
them. A row counts if all decisions keep it, or if it was appended since.
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

from daskmeans.buckets.buckets import Buckets, Part, as_of, open_buckets, strip_parts
from daskmeans.duplicates.decisions import NOTES, RUN_FOLDER, as_decided
from daskmeans.duplicates.result import decision_files
from daskmeans.errors import DataError, OutputError
from daskmeans.runtime import executor
from daskmeans.runtime.client import logger
from daskmeans.storage import manifest
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import Input, open_path, translate_read_errors

# States of the decisions on clusters.
FINISHED, UNFINISHED, GONE = "finished", "unfinished", "gone"


@dataclass(frozen=True)
class Reference:
    """Clusters, and the finished decisions on them, which say which of their rows stay.

    Attributes
    ----------
    buckets : Buckets
    decisions : tuple of UPath
        Directories of the decisions. Without any, all rows stay.
    alone : bool, default False
        Whether other decisions on the clusters are ignored.
    """

    buckets: Buckets
    decisions: tuple[UPath, ...]
    alone: bool = False

    def describe(self) -> dict[str, Any]:
        """The entry for this reference in the manifest of decisions that were made against it."""
        made = [manifest.identity_hash(manifest.read_manifest(path, "dedup")) for path in self.decisions]
        entry = {"clusters": str(self.buckets.path), "made": manifest.identity_hash(self.buckets.manifest)}
        named = [{"decisions": str(path), "made": each} for path, each in zip(self.decisions, made, strict=True)]
        return entry | ({"decided": named} if named else {}) | ({"alone": True} if self.alone else {})

    def staying(self, client: Client | None) -> np.ndarray | None:
        """Which rows stay, in the order of the clusters (bool, shape (rows,)); None if all do."""
        dropped = read_dropped_ids(self.decisions, client)
        if dropped is None:
            return None
        shared, lean = executor.broadcast(dropped, client), strip_parts(self.buckets)
        tasks = [delayed(_read_staying, pure=False)(lean, part, shared) for part in self.buckets.parts]
        staying = np.concatenate(executor.compute(tasks, "read decisions", client))
        self._warn_of_disagreement(len(staying) - int(staying.sum()))
        return staying

    def _warn_of_disagreement(self, dropped: int) -> None:
        """Warn if one of several decisions keeps rows that another drops; together they drop `dropped` rows."""
        counts = [(path, manifest.read_manifest(path, "dedup")) for path in self.decisions]
        if all(found["rows"] - found["kept"] == dropped for _, found in counts):
            return
        logger.warning(
            "%s: the decisions on these clusters differ (%s); only rows that all of them keep count; to use one of "
            "them alone, give its directory instead of the clusters",
            self.buckets.path,
            ", ".join(f"{path} keeps {found['kept']:,}" for path, found in counts),
        )


def open_reference(path: Input, storage_options: Mapping[str, Any] | None = None) -> Reference:
    """Open the reference at `path`: clusters with all decisions on them, or one directory of decisions, used alone.

    Raises
    ------
    NotFoundError, OutputError
        `path` is neither; it, or a decision on the clusters, is unfinished; or the clusters that the decisions were
        made on are gone.
    """
    folder = open_path(path, storage_options)
    found = manifest.peek_manifest(folder)
    if found is None or found["step"] != "dedup":
        buckets = open_buckets(folder)
        on = _list_decisions(buckets, storage_options)
        _check_decisions(buckets, on)
        return Reference(buckets, tuple(path for path, state in on.items() if state == FINISHED))
    made = manifest.read_manifest(folder, "dedup")["inputs"]
    buckets = open_buckets(open_path(made["clusters"], {**folder.storage_options, **(storage_options or {})}))
    as_decided(buckets, made["made"], folder)
    return Reference(buckets, (folder,), alone=True)


def find_decisions(buckets: Buckets, storage_options: Mapping[str, Any] | None = None) -> tuple[UPath, ...]:
    """Directories of the finished decisions on `buckets`, including those from before rows were appended."""
    return tuple(path for path, state in _list_decisions(buckets, storage_options).items() if state == FINISHED)


def _list_decisions(buckets: Buckets, storage_options: Mapping[str, Any] | None) -> dict[UPath, str]:
    """State of each of the decisions on `buckets`, by directory: finished, unfinished, or gone from there."""
    options = {**buckets.path.storage_options, **(storage_options or {})}
    notes = sorted((buckets.path / NOTES).glob("*"), key=str) if (buckets.path / NOTES).exists() else []
    noted = []
    for note in (note for note in notes if note.suffix in ("", ".json")):  # earlier versions wrote .json
        with translate_read_errors(note):
            noted.append(json.loads(note.read_text())["decisions"])
    beside = buckets.path.parent / RUN_FOLDER
    states = {
        path: _decisions_state(path, buckets)
        for path in sorted({*(open_path(p, options) for p in noted), beside}, key=str)
    }
    if states[beside] == GONE:
        del states[beside]
    return {path: state for path, state in states.items() if state}


def _decisions_state(path: UPath, buckets: Buckets) -> str:
    """State of the decisions in `path`; empty if they are on other clusters than `buckets`."""
    with translate_read_errors(path):
        found = manifest.peek_manifest(path)
    if found is None:
        return GONE
    if found["step"] != "dedup" or as_of(buckets, found["inputs"].get("made", "")) is None:
        return ""
    return FINISHED if found["finished"] else UNFINISHED


def _check_decisions(buckets: Buckets, on: Mapping[UPath, str]) -> None:
    """Refuse unfinished decisions; warn of decisions that are gone, and log if none are known."""
    for path, state in on.items():
        if state == UNFINISHED:
            raise OutputError(
                "these decisions on the clusters are unfinished",
                where=str(path),
                expected="finished decisions, which say which rows stay",
                remedy="run the command that makes them again, remove them, or give others to --against",
            )
        if state == GONE:
            logger.warning(
                "%s: decisions on these clusters were in %s and are gone, so the rows that they dropped count; if they "
                "were moved, give their directory to --against",
                buckets.path,
                path,
            )
    if not on:
        logger.info("%s: all %s rows count, since no decisions on them are known", buckets.path, f"{buckets.rows:,}")


def read_dropped_ids(decisions: Sequence[UPath], client: Client | None) -> pa.ChunkedArray | None:
    """Ids of the rows that at least one of `decisions` drops; None if there are none."""
    files = [file for path in decisions for file in decision_files(path)]
    tables = executor.compute([delayed(_read_dropped, pure=False)(file) for file in files], client=client)
    chunks = [chunk for column in tables for chunk in column.chunks if len(chunk)]
    return pa.chunked_array(chunks) if chunks else None


def _read_dropped(file: UPath) -> pa.ChunkedArray:
    with translate_read_errors(file):
        table = pq.read_table(file.path, filesystem=file.fs, **VERIFY_PAGES, columns=["id", "keep"])
    return table["id"].filter(pc.invert(table["keep"]))


def _read_staying(buckets: Buckets, part: Part, dropped: pa.ChunkedArray) -> np.ndarray:
    ids = buckets.read_part(part, [buckets.id_field])[0]
    return pc.invert(pc.is_in(ids.cast(dropped.type), dropped)).to_numpy()


def refuse_dropped_references(
    path: UPath, client: Client | None, storage_options: Mapping[str, Any] | None = None
) -> None:
    """Refuse the decisions in `path` if they dropped a row as a duplicate of one in other clusters that is gone since.

    Later decisions may have dropped that row, or its clusters were made again. Clusters that no longer exist are not
    checked.

    Raises
    ------
    DataError
    """
    options = {**path.storage_options, **(storage_options or {})}
    for entry in manifest.read_manifest(path, "dedup")["inputs"].get("against", ()):
        clusters = open_path(entry["clusters"], options)
        with translate_read_errors(clusters):
            found = manifest.peek_manifest(clusters)
        if found is None or not found["finished"] or found["step"] != "assign":
            continue
        buckets = open_buckets(clusters)
        if as_of(buckets, entry["made"]) is None:
            raise DataError(
                "these clusters were made again since rows were compared with them, or have lost appended rows",
                where=str(clusters),
                expected=f"the clusters that the decisions in {path} were made against",
                remedy="append those rows again, or run the same `daskmeans dedup` with --overwrite",
            )
        _refuse_dropped(path, buckets, _find_current_decisions(path, buckets, entry, options), client)


def _find_current_decisions(
    path: UPath, buckets: Buckets, entry: dict[str, Any], options: Mapping[str, Any]
) -> list[UPath]:
    """The decisions on `buckets` that count now for those in `path`, whose manifest has `entry` for `buckets`.

    Warns of decisions that are gone.
    """
    then = [open_path(one["decisions"], options) for one in entry.get("decided", ())]
    known = () if entry.get("alone") else find_decisions(buckets, options)
    now = [one for one in then if one in known or _decisions_state(one, buckets) == FINISHED]
    if len(now) < len(then):
        gone = next(one for one in then if one not in now)
        logger.warning(
            "%s: these decisions rely on those in %s, which are gone; whether the rows kept in place of duplicates "
            "still stay is not known",
            path,
            gone,
        )
    return now if entry.get("alone") else list(known)


def _refuse_dropped(path: UPath, buckets: Buckets, by: Sequence[UPath], client: Client | None) -> None:
    """Refuse the decisions in `path` if a row they name as kept, of `buckets`, is dropped by the decisions `by`."""
    dropped = read_dropped_ids(by, client)
    if dropped is None:
        return
    fallen = executor.compute([delayed(_count_dropped, pure=False)(file, dropped) for file in decision_files(path)])
    if count := sum(fallen):
        raise DataError(
            f"{count:,} rows were dropped as duplicates of rows of {buckets.path} that have been dropped there since",
            where=str(path),
            expected=f"duplicates of rows that are kept by {', '.join(map(str, by))}",
            remedy="run the same `daskmeans dedup` again with --overwrite; if its rows were appended already, "
            "run or assign all rows together, old and new, with another --out",
        )


def _count_dropped(file: UPath, dropped: pa.ChunkedArray) -> int:
    """Count the decisions in `file` that name one of `dropped` as the row that stays."""
    with translate_read_errors(file):
        kept = pq.read_table(file.path, filesystem=file.fs, **VERIFY_PAGES, columns=["kept_id"])["kept_id"]
    return int(pc.sum(pc.is_in(kept.drop_null().cast(dropped.type), dropped)).as_py() or 0)
