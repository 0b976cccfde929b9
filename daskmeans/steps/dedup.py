"""The step `dedup`: find near-duplicates among the rows of clusters, and decide which rows stay."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import COSINE, L2, Buckets, find_ids, read_ids
from daskmeans.duplicates.against import Reference, open_reference
from daskmeans.duplicates.decisions import decide_from_pairs, dedup_inputs, finish_decisions, make_temporary_folder
from daskmeans.duplicates.export import check_export, export_decisions
from daskmeans.duplicates.ranking import check_ranking_columns
from daskmeans.duplicates.result import DedupResult
from daskmeans.duplicates.settings import Deciding, DedupSettings, choose_search
from daskmeans.duplicates.within import check_largest_cluster, search_clusters
from daskmeans.errors import UsageError
from daskmeans.pairs.join import find_similar_pairs
from daskmeans.pairs.plan import n_pairs
from daskmeans.pairs.store import PAIRS_FOLDER, find_stored_pairs
from daskmeans.runtime import progress
from daskmeans.runtime.client import current_client, logger
from daskmeans.steps.append import check_append, extend, is_appended
from daskmeans.steps.foreign import find_cluster_folders, open_clusters, refuse_foreign_references
from daskmeans.storage import manifest
from daskmeans.storage.step import check_output_free, open_step
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.files import Input, as_list, open_path, refuse_overlap
from daskmeans.vectors.id_types import quote_id, wide_type
from daskmeans.vectors.options import ReadOptions

# Bytes that a decision takes on disk, about.
DECISION_BYTES = 16


def dedup(
    clusters: Input,
    threshold: float | None = None,
    *,
    eps: float | None = None,
    out: Input | None = None,
    keep: str | Sequence[str] = "hard",
    rule: str = "survivors",
    search: str = "auto",
    probes: int = 1,
    floor: float | None = None,
    against: Input | Sequence[Input] = (),
    append: bool = False,
    export: str | None = None,
    random_state: int = 42,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> DedupResult:
    """Find near-duplicates and decide which rows stay.

    Rows are ranked; of two duplicates the earlier-ranked one stays. A pair's score is the float64 dot product of the
    two normalised rows, rounded to float32. It is at most 1, and exactly 1 for copies. Two rows are duplicates if their
    score is at least the threshold, which is rounded to float32 too.

    Parameters
    ----------
    clusters : path
        Directory that `assign` wrote, in either layout; or directories ``centroid=<i>`` of Parquet that another tool
        wrote, which are first written beside `out` as `assign` does, with the distances that they lack.
    threshold : float, optional
        Cosine similarity in [0, 1] from which two rows are duplicates. Default: 0.9, unless `eps` is given.
    eps : float, optional
        1 - threshold.
    out : path, optional
        Directory for the decisions. Default: a temporary one on this machine, for as long as Python runs.
    keep : str or sequence of str, default "hard"
        How rows are ranked: ``hard`` (farthest from the centroid first), ``easy`` (nearest first), ``random``, or
        columns as ``COLUMN:asc`` or ``COLUMN:desc``. Ids break ties.
    rule : {"survivors", "semdedup"}, default "survivors"
        ``survivors`` drops a row if an earlier-ranked row that stays is similar enough, so every dropped row has a
        near-duplicate that stays. ``semdedup`` drops it if any earlier-ranked row is (Abbas et al., arXiv:2303.09540).
    search : {"auto", "exact", "clusters"}, default "auto"
        ``exact`` compares all rows and finds every pair, whatever the clusters. ``clusters`` compares rows inside their
        cluster only, and measures on a sample of ``daskmeans.recall-sample`` rows what share of the duplicates this
        finds. ``auto`` chooses ``exact`` for up to ``daskmeans.exact-pairs`` pairs (those of two million rows) if the
        threshold is at least 0.5. The choice is logged, and so is how long an exact search will take.
    probes : int, default 1
        How many clusters each row is compared with, in a search inside clusters: its own, and the nearest others (by
        the mean of their rows). With more than one, and with an exact search, pairs are stored, so
        :meth:`DedupResult.at` can decide again without a search. ``max_id`` and ``cosine_sim_score`` are then null
        where no earlier-ranked row reaches the floor.
    floor : float, optional
        Lowest score of the pairs that are stored. Default: the threshold.
    against : path or sequence of path, optional
        More clusters, whose rows all stay. The rows of `clusters` are compared with these rows too, and are dropped if
        they duplicate one. Only the rows of `clusters` are decided on. This takes an exact search, and no id may be in
        two of the clusters. Rows that earlier decisions dropped are left out: if there are decisions on these clusters,
        a row counts if all of them keep it or if it was appended since. To use only one of several decisions, give its
        directory instead of the clusters.
    append : bool, default False
        Also add the kept rows of `clusters` to the clusters given as `against`, so that the next batch is compared with
        them too. Both must have been assigned with the same model and have the same columns. Appends are atomic:
        readers see the clusters before or after, never in between. An interrupted call can simply be repeated; a
        finished one does nothing more. This takes exactly one `against`, and `out`. Extended clusters cannot be
        deduplicated again, because rows of the batch were dropped as duplicates of rows that must stay in them.
    export : {"nemo"}, optional
        Also write the decisions as another tool stores its own, into the directory beside `out` that has ``-nemo``
        after its name: ``pairwise_results/`` and ``duplicates/`` of NeMo Curator's semantic deduplication.
    random_state : int, default 42
        Seed of the ranking ``random`` and of the recall sample.
    storage_options : dict, optional
        Options of the filesystem.
    overwrite : bool, default False
        Replace finished decisions in `out`.
    client : distributed.Client, optional
        Where to run. Default: the current client, else this process.

    Returns
    -------
    DedupResult

    Raises
    ------
    UsageError
        An argument is out of its range or unknown; `clusters` is not an output of `assign`; `out` overlaps an input.
    MemoryForecastError
        The largest cluster would not fit into a worker's memory.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-dedup/in/rows.jsonl").write_text(lines)
    >>> rows = dkm.read_embeddings("memory://doctest-dedup/in")
    >>> assigned = dkm.assign(rows, dkm.KMeans(n_clusters=2).fit(rows))
    >>> _ = dkm.write_buckets(assigned, "memory://doctest-dedup/clusters", overwrite=True)
    >>> sorted(dkm.dedup("memory://doctest-dedup/clusters", threshold=0.9).kept["id"].compute())
    ['b', 'c']
    """
    deciding = Deciding(threshold, eps, keep, rule, search, probes, floor, random_state)
    return dedup_step(
        clusters, deciding, out, against=against, append=append, export=export, storage_options=storage_options,
        overwrite=overwrite, client=client,
    )  # fmt: skip


def dedup_step(
    clusters: Input,
    deciding: Deciding,
    out: Input | None = None,
    *,
    against: Input | Sequence[Input] = (),
    append: bool = False,
    export: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    client: Client | None = None,
    tuning: Tuning = DEFAULT,
) -> DedupResult:
    """Run :func:`dedup` with its options in one object, and tasks of the sizes in `tuning`."""
    settings = deciding.settings()
    target = None if out is None else open_path(out, storage_options)
    exported = check_export(export, target, overwrite) if export else None
    reading = ReadOptions(storage_options=storage_options)
    given = reading.path(clusters)
    if target is not None and find_cluster_folders(given):  # before they are written once more
        check_output_free(target, "dedup", overwrite=overwrite)
    buckets = open_clusters(given, target, reading, overwrite, client)
    if not buckets.rows:
        raise UsageError("the clusters hold no rows", where=str(buckets.path), remedy="assign some rows first")
    check_ranking_columns(settings.keep, _ranking_schema(buckets))
    _refuse_extended(buckets)
    refuse_foreign_references([reading.path(each) for each in as_list(against)])
    references = [open_reference(path, storage_options) for path in as_list(against)]
    others = [each.buckets for each in references]
    _check_others(buckets, others, settings)
    if append:
        check_append(buckets, others, out)
    target = target or make_temporary_folder()
    decisions = [path for each in references for path in each.decisions]
    refuse_overlap(target, [*(each.path for each in (buckets, *others)), *decisions])
    if not append:  # an append that is repeated finds its own decisions there
        check_output_free(target, "dedup", overwrite=overwrite)
    client = current_client(client)
    settings = _choose_search(settings, [buckets, *others])
    if not settings.stores_pairs:
        check_largest_cluster(buckets, client)
    if append and is_appended(others[0], buckets, settings, target, client, storage_options):
        return DedupResult(target, buckets.path)
    inputs = dedup_inputs(buckets, [each.describe() for each in references])
    held = manifest.status(manifest.peek_manifest(target), "dedup", asdict(settings), inputs)
    if not (append and held.state is manifest.State.DONE):
        _write_decisions(
            buckets, references, settings, target, inputs, overwrite, client, tuning, noted=out is not None
        )
    if append:
        extend(others[0], buckets, target, client)
    if exported:
        export_decisions(target, exported, overwrite, client)
    return DedupResult(target, buckets.path)


def _write_decisions(
    buckets: Buckets,
    against: Sequence[Reference],
    settings: DedupSettings,
    target: UPath,
    inputs: dict[str, Any],
    overwrite: bool,
    client: Client | None,
    tuning: Tuning,
    *,
    noted: bool,
) -> None:
    """Write the decisions into `target`; if `noted`, the clusters get a note of where they are."""
    start = time.perf_counter()
    others = [each.buckets for each in against]
    kept = [PAIRS_FOLDER] if settings.stores_pairs else []
    with open_step(
        target,
        "dedup",
        asdict(settings),
        inputs,
        overwrite=overwrite,
        keep=kept,
        need=DECISION_BYTES * buckets.rows,
        client=client,
    ) as step:
        if settings.stores_pairs:
            _refuse_shared_ids(buckets, others, client)
            stored = find_stored_pairs(target / PAIRS_FOLDER, inputs, settings)
            if stored is None:
                manifest.remove_tree(target / PAIRS_FOLDER)
                staying = [each.staying(client) for each in against]
                stored = find_similar_pairs(
                    [buckets, *others], settings, target / PAIRS_FOLDER, inputs, client, staying, tuning
                )
            made = decide_from_pairs(buckets, others, settings, stored, target, start, client)
        else:
            made = search_clusters(buckets, settings, target, start, client, tuning)
        finish_decisions(step, buckets, *made, noted=noted)


def _choose_search(settings: DedupSettings, sources: Sequence[Buckets]) -> DedupSettings:
    """Choose the search of `settings`; if it was left open and not all rows will be compared, this is logged."""
    made = choose_search(settings, n_pairs(sources), len(sources) > 1)
    if settings.search == "auto" and made.search == "clusters" and made.probes == 1:
        logger.info(
            "search clusters: rows are compared only inside their cluster; --search exact compares all %s pairs of "
            "rows, --probes 5 also compares rows of nearby clusters",
            progress.format_number(n_pairs(sources)),
        )
    return made


def _refuse_extended(buckets: Buckets) -> None:
    """Refuse clusters that were extended: rows of a batch were dropped as duplicates of rows that must stay here."""
    if appended := buckets.manifest.get("appended"):
        rows = sum(batch["rows"] for batch in appended)
        raise UsageError(
            f"{rows:,} rows of other clusters were appended to these, and some of theirs were dropped as duplicates of "
            "rows here: deciding again could drop the rows that were kept in their place",
            where=str(buckets.path),
            expected="clusters to which nothing was appended",
            remedy="to decide differently, run or assign all rows together, old and new, with another --out",
        )


def _check_others(buckets: Buckets, others: Sequence[Buckets], settings: DedupSettings) -> None:
    """Make sure that rows of `buckets` can be compared with those of `others`."""
    if others and (settings.search == "clusters" or settings.probes > 1):
        raise UsageError(
            "a search inside clusters cannot compare rows with other clusters",
            where="--against",
            remedy="add --search exact, without --probes",
        )
    for i, each in enumerate(others):
        if not each.rows:
            raise UsageError("the clusters hold no rows", where=f"--against {each.path}", remedy="leave them out")
        if each.dimension != buckets.dimension:
            raise UsageError(
                f"its vectors have {each.dimension} dimensions", where=str(each.path), expected=f"{buckets.dimension}"
            )
        if not _is_same_id_type(*(_ranking_schema(one).field(one.id_field).type for one in (each, buckets))):
            raise UsageError(
                f"its ids are {_ranking_schema(each).field(each.id_field).type}",
                where=f"--against {each.path}",
                expected=f"{_ranking_schema(buckets).field(buckets.id_field).type}, as in {buckets.path}",
            )
        if each.path in [buckets.path, *(other.path for other in others[:i])]:
            raise UsageError(
                "the same clusters are named twice", where=f"--against {each.path}", remedy="name them once"
            )


def _is_same_id_type(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether ids of these types can be compared: they are of the same type, apart from how much it holds."""
    return wide_type(one) == wide_type(other)


def _refuse_shared_ids(buckets: Buckets, others: Sequence[Buckets], client: Client | None) -> None:
    """Refuse an id that is in two of the clusters: decisions name rows by their ids."""
    sources = [buckets, *sorted(others, key=lambda each: each.rows)]  # ids of the last, the largest, stay on disk
    for i, one in enumerate(sources[:-1]):
        ids = read_ids(one, client)
        for other in sources[i + 1 :]:
            shared = find_ids(other, ids, client)
            if len(shared):
                raise _shared_id_error(shared["id"][0].as_py(), one, other, new=one is buckets)


def _shared_id_error(id_: Any, one: Buckets, other: Buckets, *, new: bool) -> UsageError:
    """The error for an id that two clusters share; `new` says that `one` holds the rows to be decided on."""
    expected, remedy = (
        (
            "ids that distinguish new rows from old ones",
            "give the new rows other ids (rows without ids are numbered from 0 in each input)",
        )
        if new
        else ("ids that are in one of them only", "give the rows of one new ids, or leave one out of --against")
    )
    return UsageError(
        f"the id {quote_id(id_)} is in both", where=f"{one.path}, {other.path}", expected=expected, remedy=remedy
    )


def _ranking_schema(buckets: Buckets) -> pa.Schema:
    """Schema of the columns by which rows can be ranked."""
    names = [buckets.id_field, *buckets.metadata_fields, L2, COSINE]
    return buckets.read(min(buckets.clusters(), key=lambda cluster: cluster.rows), names).schema
