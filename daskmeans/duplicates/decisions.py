"""Decide on all rows from the similar pairs that a search stored, and summarize and note the decisions."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import Buckets, Part, as_of, strip_parts
from daskmeans.duplicates.greedy import RankedDecisions, greedy_select
from daskmeans.duplicates.ranking import columns_to_read, rank
from daskmeans.duplicates.settings import DedupSettings
from daskmeans.duplicates.table import to_table, with_unpaired, write_table
from daskmeans.errors import NotFoundError
from daskmeans.pairs import recall
from daskmeans.pairs.store import SimilarPairs, StoredPairs
from daskmeans.runtime import executor, resources
from daskmeans.runtime.client import logger, task_key
from daskmeans.storage import manifest, objectstore
from daskmeans.storage.step import Step
from daskmeans.vectors.id_types import wide_type
from daskmeans.vectors.numbering import FIELD

SUMMARY = "_summary.json"
# Folder in the directory of clusters, with a note of each decision on them. The notes are JSON but have no suffix, as
# some readers take the most frequent suffix in a directory for the format of all its files.
NOTES = "_decisions"
# Folder with the decisions of a run, beside its clusters. These need no note.
RUN_FOLDER = "dedup"


def decide_from_pairs(
    buckets: Buckets,
    against: Sequence[Buckets],
    settings: DedupSettings,
    stored: StoredPairs,
    out: UPath,
    start: float,
    client: Client | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Decide from the pairs that a search has `stored`; return the summary, and the files with their row counts.

    `start` is the value of :func:`time.perf_counter` when the work began.
    """
    threshold = np.float32(settings.threshold)
    similar = stored.read(settings.floor)
    files, counts = write_decisions(buckets, against, similar, settings, out / "decisions", client)
    if settings.search == "exact":
        near = similar.scores >= threshold
        paired = np.unique(np.concatenate([similar.rows[near], similar.neighbors[near]]))
        found = recall.complete_recall(buckets.rows, int((paired < buckets.rows).sum()))
    else:
        found = recall.summarize_recall(stored.recall_scores() >= threshold)
    summary, outputs = summarize_decisions(buckets, settings, files, counts, found, start, client)
    pairs = {"path": str(stored.path), "count": stored.count, "floor": stored.floor}
    return summary | {"floor": settings.floor, "pairs": pairs}, outputs


def summarize_decisions(
    buckets: Buckets,
    settings: DedupSettings,
    files: Sequence[UPath],
    counts: Sequence[list[int]],
    found: dict[str, Any],
    start: float,
    client: Client | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summarize decisions on the rows of `buckets`; return the summary, and the files with their row counts.

    `counts` has for each of `files` the rows kept, exact copies and semantic duplicates; `found` is the recall.
    """
    kept, exact, semantic = np.array(counts).reshape(-1, 3).sum(axis=0).tolist()
    manifest.check_row_counts("dedup", buckets.rows, kept=kept, removed=exact + semantic)
    outputs = [{"path": f"{f.parent.name}/{f.name}", "rows": sum(rows)} for f, rows in zip(files, counts, strict=True)]
    summary = {
        "rows": kept + exact + semantic,
        "kept": kept,
        "removed": {"exact": exact, "semantic": semantic},
        "threshold": settings.threshold,
        "rule": settings.rule,
        "keep": settings.keep[0] if len(settings.keep) == 1 else list(settings.keep),
        "search": settings.search,
        "probes": settings.probes,
        "recall": found,
        "rejected": buckets.manifest.get("rejected", 0),
        "seconds": round(time.perf_counter() - start, 3),
        "peak_bytes": resources.peak_bytes(client),
    }
    return summary, outputs


def finish_decisions(
    step: Step, buckets: Buckets, summary: dict[str, Any], outputs: list[dict[str, Any]], *, noted: bool
) -> None:
    """Write ``_summary.json`` and add its facts to the manifest; if `noted`, leave a note in the clusters.

    The note is written before the manifest says that the decisions are finished, so finished ones are always known.
    """
    manifest.write_json(step.path / SUMMARY, summary)
    step.facts |= {key: summary[key] for key in ("rows", "kept", "removed")} | {"outputs": outputs}
    step.facts |= manifest.file_checksums(step.path, SUMMARY)
    known = {"id_from": buckets.manifest.get("id_from", FIELD)}
    step.facts |= known | {name: getattr(buckets, name) for name in ("id_field", "embedding_field")}
    if noted and step.path != buckets.path.parent / RUN_FOLDER:
        _note_decisions(buckets, step.path)


def _note_decisions(buckets: Buckets, decisions: UPath) -> None:
    """Note in the directory of `buckets` where `decisions` on them are."""
    note = buckets.path / NOTES / hashlib.sha256(str(decisions).encode()).hexdigest()[:16]
    try:
        note.parent.mkdir(exist_ok=True)
        manifest.write_json(note, {"decisions": str(decisions)})
    except Exception as error:
        if not (
            isinstance(error, NotImplementedError) or objectstore.is_storage_error(error)
        ):  # such as http, which is read-only
            raise
        logger.warning(
            "%s: the decisions in %s cannot be noted here (%s), so give them and not the clusters to --against",
            buckets.path,
            decisions,
            str(error) or "this kind of storage is read-only",
        )


def dedup_inputs(buckets: Buckets, against: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Identity of what decisions on `buckets` are made from; `against` has what :meth:`Reference.describe` returned."""
    made_from = {"fingerprint": buckets.manifest["inputs"].get("fingerprint"), "rows": buckets.rows}
    made = {"clusters": str(buckets.path), "made": manifest.identity_hash(buckets.manifest)} | made_from
    return made | ({"against": list(against)} if against else {})


def as_decided(buckets: Buckets, made: str, decisions: UPath) -> Buckets:
    """`buckets` as they were when `decisions` were made from them, with the identity `made`; for metadata only.

    Raises
    ------
    NotFoundError
        There are other clusters now.
    """
    before = as_of(buckets, made)
    if before is None:
        raise NotFoundError(
            "the clusters that the decisions were made from are no longer here",
            where=str(buckets.path),
            expected=f"the clusters that the decisions in {decisions} were made from",
            remedy="run `daskmeans dedup` again",
        )
    return before


def make_temporary_folder() -> UPath:
    """Make a directory that is removed when Python exits; dask frames made from a result may outlive the result."""
    path = tempfile.mkdtemp(prefix="daskmeans-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return UPath(path)


class RankedRows(NamedTuple):
    """The rows that have a similar row, ranked; rows that stay in any case come before all others."""

    numbers: np.ndarray
    """int64, shape (n,): row numbers, ascending."""
    ranks: np.ndarray
    """int64, shape (n,): the rank of each row."""
    staying: int
    """How many rows stay in any case."""
    places: np.ndarray
    """int64: numbers of the rows that are decided on."""
    ids: pa.Array
    """Ids in rank order."""

    def decide(self, similar: SimilarPairs, threshold: np.float32, rule: str) -> RankedDecisions:
        """Decide on these rows; `similar` are their pairs."""
        rows, neighbors = (
            self.ranks[np.searchsorted(self.numbers, side)] for side in (similar.rows, similar.neighbors)
        )
        return greedy_select(
            len(self.numbers), rows, neighbors, similar.scores, similar.copies, threshold, rule, self.staying
        )


def rank_rows(
    buckets: Buckets, against: Sequence[Buckets], similar: SimilarPairs, settings: DedupSettings, client: Client | None
) -> RankedRows:
    """Rank the rows that occur in `similar`; those of `against` stay in any case."""
    numbers = np.unique(np.concatenate([similar.rows, similar.neighbors]))
    sources = [buckets, *against]
    firsts = list(accumulate((each.rows for each in sources), initial=0))
    places = [numbers[slice(*np.searchsorted(numbers, ends))] - ends[0] for ends in pairwise(firsts)]
    columns = columns_to_read(settings.keep, buckets.id_field)
    own = _read_rows(buckets, places[0], columns, client)
    others = [_read_rows(each, mine, [each.id_field], client) for each, mine in zip(against, places[1:], strict=True)]
    order = rank(own, settings.keep, buckets.id_field, settings.random_state)
    staying = len(numbers) - len(order)
    ranks = np.concatenate([np.argsort(order) + staying, np.arange(staying)])
    ids = _join_ids([*(table[0] for table in others), own[buckets.id_field]])
    by_rank = np.concatenate([np.arange(staying), order + staying])
    return RankedRows(numbers, ranks, staying, places[0], ids.take(pa.array(by_rank)))


def count_removed(
    ranked: RankedRows, similar: SimilarPairs, rule: str, thresholds: Sequence[float]
) -> list[tuple[int, int]]:
    """Count the exact copies and the semantic duplicates that each of `thresholds` removes."""
    removed = []
    for threshold in thresholds:
        found = ranked.decide(similar, np.float32(threshold), rule)
        removed.append((int((~found.keep & found.exact).sum()), int((~found.keep & ~found.exact).sum())))
    return removed


def write_decisions(
    buckets: Buckets,
    against: Sequence[Buckets],
    similar: SimilarPairs,
    settings: DedupSettings,
    folder: UPath,
    client: Client | None,
) -> tuple[list[UPath], list[list[int]]]:
    """Write the decisions on all rows of `buckets` into `folder`, one file per part.

    Returns
    -------
    files : list of UPath
    counts : list of list of int
        For each file: rows kept, exact copies and semantic duplicates.
    """
    ranked = rank_rows(buckets, against, similar, settings, client)
    found = ranked.decide(similar, np.float32(settings.threshold), settings.rule)
    folder.mkdir()
    write, lean = delayed(_write_part, pure=False), strip_parts(buckets)
    files = [folder / f"part-{i:05d}.parquet" for i in range(len(buckets.parts))]
    tasks, done = [], 0
    for part, mine, file in zip(buckets.parts, _split_by_part(buckets, ranked.places), files, strict=True):
        ranks = ranked.ranks[done : done + len(mine)]
        one = RankedDecisions(*(values[ranks] for values in found))
        decided = to_table(ranked.ids.take(pa.array(ranks)), one, part.centroids()[mine], ranked.ids)
        tasks.append(write(lean, part, mine, decided, file, dask_key_name=task_key("dedup-write")))
        done += len(mine)
    return files, executor.compute(tasks, "decide", client)


def _join_ids(columns: list[pa.ChunkedArray]) -> pa.Array:
    """Concatenate ids, cast to one type whose total size is not limited."""
    type_ = wide_type(columns[-1].type)
    return pa.concat_arrays([pa.array([], type_), *(chunk for c in columns for chunk in c.cast(type_).chunks)])


def _split_by_part(buckets: Buckets, rows: np.ndarray) -> list[np.ndarray]:
    """Split ascending `rows` by part, as places within each part."""
    ends = list(accumulate((part.rows for part in buckets.parts), initial=0))
    return [rows[slice(*np.searchsorted(rows, pair))] - pair[0] for pair in pairwise(ends)]


def _read_rows(buckets: Buckets, rows: np.ndarray, columns: list[str], client: Client | None) -> pa.Table:
    """Read `columns` of the rows of `buckets` with these numbers, which ascend."""
    read, lean = delayed(_read_part_rows, pure=False), strip_parts(buckets)
    parts = list(zip(buckets.parts, _split_by_part(buckets, rows), strict=True))
    tasks = [
        read(lean, part, columns, mine, dask_key_name=task_key("dedup-rank"))
        for part, mine in [each for each in parts if len(each[1])] or parts[:1]  # at least one, for the types
    ]
    return pa.concat_tables(executor.compute(tasks, "order rows", client))


def _read_part_rows(buckets: Buckets, part: Part, columns: list[str], places: np.ndarray) -> pa.Table:
    return buckets.read_part(part, columns).take(pa.array(places))


def _write_part(buckets: Buckets, part: Part, places: np.ndarray, decided: pa.Table, file: UPath) -> list[int]:
    """Write the decisions on the rows of `part`: `decided` has those at `places`, and all other rows stay."""
    ids = buckets.read_part(part, [buckets.id_field])[0]
    return write_table(with_unpaired(decided, places, ids, part.centroids()), file)
