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

from daskmeans.buckets.buckets import Buckets, Part, as_of, lean_of, open_buckets
from daskmeans.duplicates.decisions import BESIDE, NOTES, as_decided
from daskmeans.duplicates.result import decision_files
from daskmeans.errors import DataError, OutputError
from daskmeans.runtime import executor
from daskmeans.runtime.client import logger
from daskmeans.storage import manifest
from daskmeans.storage.signature import CHECKED
from daskmeans.vectors.files import Input, open_path, reading

# How decisions are that were made on clusters.
FINISHED, UNFINISHED, GONE = "finished", "unfinished", "gone"


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
        shared, lean = executor.share(dropped, client), lean_of(self.buckets)
        tasks = [delayed(_staying, pure=False)(lean, part, shared) for part in self.buckets.parts]
        staying = np.concatenate(executor.compute(tasks, "read decisions", client))
        self._tell_of_disagreement(len(staying) - int(staying.sum()))
        return staying

    def _tell_of_disagreement(self, dropped: int) -> None:
        """Say that one of several decisions keeps rows that do not count, as `dropped` rows do not."""
        counts = [(path, manifest.read(path, "dedup")) for path in self.decisions]
        if all(found["rows"] - found["kept"] == dropped for _, found in counts):
            return
        logger.warning(
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
        It is neither, or is unfinished; or decisions on the clusters are; or the clusters of decisions are no longer
        there.
    """
    folder = open_path(path, storage_options)
    found = manifest.peek(folder)
    if found is None or found["step"] != "dedup":
        buckets = open_buckets(folder)
        on = _decisions_on(buckets, storage_options)
        _check_known(buckets, on)
        return Against(buckets, tuple(path for path, state in on.items() if state == FINISHED))
    made = manifest.read(folder, "dedup")["inputs"]
    buckets = open_buckets(open_path(made["clusters"], {**folder.storage_options, **(storage_options or {})}))
    as_decided(buckets, made["made"], folder)
    return Against(buckets, (folder,), alone=True)


def known_decisions(buckets: Buckets, storage_options: Mapping[str, Any] | None = None) -> tuple[UPath, ...]:
    """Directories of the finished decisions on `buckets`, or on what they were before rows were appended."""
    return tuple(path for path, state in _decisions_on(buckets, storage_options).items() if state == FINISHED)


def _decisions_on(buckets: Buckets, storage_options: Mapping[str, Any] | None) -> dict[UPath, str]:
    """How decisions on `buckets` are, by directory: finished, unfinished, or gone from where they were noted."""
    options = {**buckets.path.storage_options, **(storage_options or {})}
    notes = sorted((buckets.path / NOTES).glob("*"), key=str) if (buckets.path / NOTES).exists() else []
    noted = []
    for note in (note for note in notes if note.suffix in ("", ".json")):  # which earlier versions gave them
        with reading(note):
            noted.append(json.loads(note.read_text())["decisions"])
    beside = buckets.path.parent / BESIDE
    states = {
        path: _state(path, buckets) for path in sorted({*(open_path(p, options) for p in noted), beside}, key=str)
    }
    if states[beside] == GONE:
        del states[beside]
    return {path: state for path, state in states.items() if state}


def _state(path: UPath, buckets: Buckets) -> str:
    """How the decisions in `path` are; empty if they are on other clusters than `buckets`."""
    with reading(path):
        found = manifest.peek(path)
    if found is None:
        return GONE
    if found["step"] != "dedup" or as_of(buckets, found["inputs"].get("made", "")) is None:
        return ""
    return FINISHED if found["finished"] else UNFINISHED


def _check_known(buckets: Buckets, on: Mapping[UPath, str]) -> None:
    """Refuse to go by decisions that are being made, and tell of what cannot be known."""
    for path, state in on.items():
        if state == UNFINISHED:
            raise OutputError(
                "these decisions on the clusters are unfinished",
                where=str(path),
                expected="finished decisions, which tell what stays",
                remedy="run the command that makes them again, remove them, or name others for --against",
            )
        if state == GONE:
            logger.warning(
                "%s: decisions on these clusters were in %s and are gone, so the rows that they dropped count; if they "
                "were moved, name their directory for --against",
                buckets.path,
                path,
            )
    if not on:
        logger.info("%s: all %s rows count, as no decisions on them are known", buckets.path, f"{buckets.rows:,}")


def dropped_ids(decisions: Sequence[UPath], client: Client | None) -> pa.ChunkedArray | None:
    """Ids of the rows that one of `decisions` at least drops; None if there are none."""
    files = [file for path in decisions for file in decision_files(path)]
    tables = executor.compute([delayed(_dropped, pure=False)(file) for file in files], client=client)
    chunks = [chunk for column in tables for chunk in column.chunks if len(chunk)]
    return pa.chunked_array(chunks) if chunks else None


def _dropped(file: UPath) -> pa.ChunkedArray:
    with reading(file):
        table = pq.read_table(file.path, filesystem=file.fs, **CHECKED, columns=["id", "keep"])
    return table["id"].filter(pc.invert(table["keep"]))


def _staying(buckets: Buckets, part: Part, dropped: pa.ChunkedArray) -> np.ndarray:
    ids = buckets.read_part(part, [buckets.id_field])[0]
    return pc.invert(pc.is_in(ids.cast(dropped.type), dropped)).to_numpy()


def refuse_fallen(path: UPath, client: Client | None, storage_options: Mapping[str, Any] | None = None) -> None:
    """Refuse the decisions in `path` if a row went for one of other clusters that has gone from there since.

    It may be dropped by decisions that were made later, or the clusters are made anew. Clusters that are no longer
    there say nothing.

    Raises
    ------
    DataError
    """
    options = {**path.storage_options, **(storage_options or {})}
    for told in manifest.read(path, "dedup")["inputs"].get("against", ()):
        clusters = open_path(told["clusters"], options)
        with reading(clusters):
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
        _refuse_dropped(path, buckets, _now(path, buckets, told, options), client)


def _now(path: UPath, buckets: Buckets, told: dict[str, Any], options: Mapping[str, Any]) -> list[UPath]:
    """By which decisions rows of `buckets` stay now, in the eyes of `path`, of which a manifest has `told`."""
    then = [open_path(one["decisions"], options) for one in told.get("decided", ())]
    known = () if told.get("alone") else known_decisions(buckets, options)
    now = [one for one in then if one in known or _state(one, buckets) == FINISHED]
    if len(now) < len(then):
        gone = next(one for one in then if one not in now)
        logger.warning(
            "%s: it went by the decisions in %s, which are not there now: whether all twins stay is not known",
            path,
            gone,
        )
    return now if told.get("alone") else list(known)


def _refuse_dropped(path: UPath, buckets: Buckets, by: Sequence[UPath], client: Client | None) -> None:
    """Refuse the decisions in `path` if they name a row of `buckets` as staying that is dropped `by` others."""
    dropped = dropped_ids(by, client)
    if dropped is None:
        return
    fallen = executor.compute([delayed(_fallen, pure=False)(file, dropped) for file in decision_files(path)])
    if count := sum(fallen):
        raise DataError(
            f"{count:,} rows went for rows of {buckets.path} that are dropped there by now",
            where=str(path),
            expected=f"the rows that stay by {', '.join(map(str, by))}",
            remedy="run the same `daskmeans dedup` again with --overwrite; if its rows are appended already, "
            "run or assign all rows together, old and new, with another --out",
        )


def _fallen(file: UPath, dropped: pa.ChunkedArray) -> int:
    """How many decisions in `file` name one of `dropped` as the row that stays."""
    with reading(file):
        kept = pq.read_table(file.path, filesystem=file.fs, **CHECKED, columns=["kept_id"])["kept_id"]
    return int(pc.sum(pc.is_in(kept.drop_null().cast(dropped.type), dropped)).as_py() or 0)
