"""The step `apply`: write the kept rows of the original files, in their own format."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.duplicates.against import refuse_dropped_references
from daskmeans.duplicates.leaks import read_leak_index
from daskmeans.duplicates.lookup import DecisionIndex, read_decision_index
from daskmeans.duplicates.memory import check_apply
from daskmeans.duplicates.rewrite import RewriteResult, rewrite_file
from daskmeans.errors import DataError, UsageError
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client
from daskmeans.storage import manifest
from daskmeans.storage.result import StepResult
from daskmeans.storage.step import check_output_free, open_step
from daskmeans.vectors.files import (
    Input,
    as_list,
    bare_path,
    common_parent,
    common_root,
    find_directories,
    join_inside,
    open_path,
    public_name,
    refuse_overlap,
)
from daskmeans.vectors.formats import format_of
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.looks import SURVEY_THREADS, SURVEYS
from daskmeans.vectors.numbering import FIELD, ROW, Numbering
from daskmeans.vectors.rejects import write_rejects
from daskmeans.vectors.source import open_source
from daskmeans.vectors.stamps import Stamp, stamp_files

# More rows than any file has, so that a survey need not cut it.
MOST_ROWS = 2**62


def apply(
    decisions: Input,
    inputs: Input | Sequence[Input],
    out: Input,
    *,
    id_field: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    format: str | None = None,
    on_bad_row: str = "error",
    overwrite: bool = False,
    client: Client | None = None,
) -> StepResult:
    """Write the kept rows of the original files to `out`.

    Parquet keeps its schema, metadata and codecs, JSON lines their bytes, ``.npy`` its dtype. Row groups larger than
    32 MiB are split. File names, directories and the order of rows stay as they are. The originals are not touched.

    Parameters
    ----------
    decisions : path
        Directory that `dedup` or `leak` wrote. With leaks, the rows of the test set that did not leak are kept.
    inputs : path or sequence of paths
        The files that the rows came from: a file, a directory, a glob or a list of these.
    out : path
        Directory to be made, outside the inputs.
    id_field : str, optional
        Column of the ids. It must be the one that the decisions were made with, which is the default. If ids were made
        of the numbers of the rows, as for ``.npy`` files, or of file and row, the input must be the very files that the
        decisions were made from, in their order.
    storage_options : dict, optional
        Options of the filesystem.
    format : {"parquet", "jsonl", "npy"}, optional
        Format of the files; default: what their names show, else their first bytes.
    on_bad_row : {"error", "skip"}, default "error"
        What to do with a row without a decision: stop, or leave it out and list it in ``_rejects/rejects``.
    overwrite : bool, default False
        Replace a finished output.
    client : distributed.Client, optional
        Where to run. Default: the current client, else this process.

    Returns
    -------
    StepResult
        A mapping: ``rows`` read, ``kept``, ``removed``, ``rejected`` and ``files``.

    Raises
    ------
    UsageError
        `id_field` is not the column that the decisions were made with.
    DataError
        A row has no decision, or a decision no row. With leaks, the files are not the test set. Or rows were dropped as
        duplicates of rows in other clusters that have been dropped themselves since.
    OutputError
        `out` holds something else, or is inside an input.
    MemoryForecastError
        The decisions, and the rows of one task, do not fit into the memory of a worker.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-apply/in/rows.jsonl").write_text(lines)
    >>> km = dkm.KMeans(n_clusters=2)
    >>> result = dkm.run("memory://doctest-apply/in", "memory://doctest-apply/out", km, threshold=0.9, overwrite=True)
    >>> counts = dkm.apply(result.path, "memory://doctest-apply/in", "memory://doctest-apply/kept", overwrite=True)
    >>> counts["kept"], UPath("memory://doctest-apply/kept/rows.jsonl").read_text().splitlines()[0]
    (2, '{"id": "b", "v": [1.0, 0.1]}')
    """
    if on_bad_row not in ("error", "skip"):
        raise UsageError(f"unknown choice {on_bad_row!r}", where="--on-bad-row", expected="error or skip")
    folder, target = open_path(decisions, storage_options), open_path(out, storage_options)
    decided = read_decided(folder)
    id_field = find_id_field(folder, decided, id_field)
    files = find_files(inputs, storage_options, format)
    format = format_of(files[0], format)
    id_from = decided.get("id_from", FIELD)
    if format == "npy" and id_from == FIELD:  # of an earlier version, or of clusters that were written from Python
        id_from = ROW
    if id_from != FIELD:
        _check_same_files(inputs, id_field, id_from, storage_options, format, decided)
    given = as_list(inputs)
    roots = find_directories(inputs, storage_options)
    refuse_overlap(target, [folder, *roots, *files])
    check_output_free(target, "apply", overwrite=overwrite)
    client = current_client(client)
    names = _relative_names(files, roots[0] if len(given) == len(roots) == 1 else None)
    if decided["step"] == "dedup":
        refuse_dropped_references(folder, client, storage_options)
    settings = {"id_field": id_field, "on_bad_row": on_bad_row}
    stamps = stamp_files(files)
    described = apply_inputs(folder, files, stamps)
    need = sum(size for _, size, _ in stamps) * decided["kept"] // max(1, decided["rows"])
    with open_step(target, "apply", settings, described, overwrite=overwrite, need=need, client=client) as step:
        lookup = read_leak_index(folder) if decided["step"] == "leak" else read_decision_index(folder)
        free_bytes = check_apply(lookup.nbytes, str(folder), client)
        done = _rewrite_files(
            files,
            [join_inside(target, name) for name in names],
            format,
            id_field,
            None if id_from == FIELD else Numbering(id_from, common_root(files)),
            lookup,
            on_bad_row == "skip",
            free_bytes,
            client,
        )
        rejects = pa.concat_tables([one.rejects for one in done])
        rows, kept = sum(one.rows for one in done), sum(one.kept for one in done)
        removed, where = sum(one.removed for one in done), ", ".join(str(one) for one in given)
        if decided["step"] == "leak":
            _check_test_set(rows - len(rejects), removed, decided, where)
        elif on_bad_row == "error":
            _check_all_used(lookup, done, where)
        if len(rejects):
            write_rejects(rejects, target, "apply", rows)
        manifest.check_row_counts("apply", rows, kept=kept, removed=removed, rejected=len(rejects))
        summary = {"rows": rows, "kept": kept, "removed": removed, "rejected": len(rejects), "files": len(files)}
        step.facts |= {"counts": summary}
    return StepResult(target, summary)


def read_decided(folder: UPath) -> dict[str, Any]:
    """The manifest of the decisions in `folder`; that of leaks has the same entries, of the test set."""
    found = manifest.read_manifest(folder, "dedup", "leak")
    if found["step"] == "dedup":
        return found
    rows, leaked = found["counts"]["test"], found["counts"]["leaked"]
    of_test = {"rows": rows, "kept": rows - leaked, "removed": leaked, "inputs": found["inputs"]["test"]}
    return found | of_test | {"id_field": found["settings"]["id_field"]}


def apply_inputs(folder: UPath, files: Sequence[UPath], stamps: Sequence[Stamp]) -> dict[str, Any]:
    """Identity of what the kept rows are made from: the decisions in `folder`, and the original `files`."""
    made = manifest.identity_hash(manifest.read_manifest(folder, "dedup", "leak"))
    given = {
        public_name(file): f"{size} bytes of version {version or 'unknown'}"
        for file, (_, size, version) in zip(files, stamps, strict=True)
    }
    fingerprint = manifest.checksum(json.dumps(list(given.items())).encode())
    return {"decisions": str(folder), "made": made, "fingerprint": fingerprint, "files": given}


def find_id_field(folder: UPath, decided: Mapping[str, Any], given: str | None) -> str:
    """The column of ids that the decisions in `folder` were made with; if one is `given`, it must be the same."""
    known = decided.get("id_field")
    if known is None:  # an earlier version did not store it; the clusters may still tell
        made = decided["inputs"]
        clusters = manifest.peek_manifest(open_path(made["clusters"], folder.storage_options)) or {}
        same = clusters.get("finished") and manifest.identity_hash(clusters | {"appended": []}) == made.get("made")
        known = clusters["id_field"] if same else given or "id"
    if given not in (None, known):
        raise UsageError(
            f"the decisions were made with another column than {given!r}",
            where="--id-field",
            expected=repr(known),
            remedy="leave --id-field out",
        )
    return str(known)


def _check_same_files(
    inputs: Input | Sequence[Input],
    id_field: str,
    id_from: str,
    storage_options: Mapping[str, Any] | None,
    format: str,
    decided: dict[str, Any],
) -> None:
    """Refuse files other than those of the decisions, or in another order: their ids were made of their rows."""
    then = decided["inputs"]["fingerprint"]  # None if the clusters were written from Python
    if then is None:
        return
    source = open_source(
        inputs,
        id_field=id_field,
        id_from=id_from,
        embedding_field=decided.get("embedding_field"),
        storage_options=storage_options,
        format=format,
    )
    if source.fingerprint() != then:  # the fingerprint includes the name of the id column
        raise DataError(
            "these are not the files that the decisions were made from, or their order or content has changed",
            where=", ".join(map(str, as_list(inputs))),
            expected="the same files, given as they were to `daskmeans assign` or `run`: ids were made of their rows",
            remedy="give the input as it was given there",
        )


def _relative_names(files: list[UPath], root: UPath | None) -> list[str]:
    """Names of `files` relative to `root`, or else to the directory that all of them have in common."""
    paths = [bare_path(file) for file in files]
    base = common_parent(paths) if root is None else root.path.rstrip("/") + "/"
    return [path.removeprefix(base) for path in paths]


def _rewrite_files(
    files: list[UPath], targets: list[UPath], format: str, id_field: str, numbering: Numbering | None,
    lookup: DecisionIndex, skip: bool, free_bytes: int | None, client: Client | None,
) -> list[RewriteResult]:  # fmt: skip
    firsts = _count_rows_before(files, format) if numbering and numbering.kind == ROW else [0] * len(files)
    shared = executor.broadcast(lookup, client)

    def rewrite_chosen(chosen: list[int], taken: dict[int, np.ndarray]) -> list[RewriteResult]:
        task, key = delayed(rewrite_file, pure=False), f"apply-{uuid.uuid4().hex}"
        tasks = [
            task(
                files[i], targets[i], format, id_field, numbering, firsts[i], shared, skip, free_bytes, taken.get(i),
                dask_key_name=f"{key}-{i}",
            )
            for i in chosen
        ]  # fmt: skip
        return executor.compute(tasks, label="apply", client=client)

    done = rewrite_chosen(list(range(len(files))), {})
    # Files are written in parallel. Those that repeat ids of earlier files are written again without these rows.
    again = _find_repeated([one.met for one in done])
    for i, one in zip(again, rewrite_chosen(list(again), again), strict=True):
        done[i] = one
    return done


def _count_rows_before(files: list[UPath], format: str) -> list[int]:
    """Return, for each of `files`, how many rows there are in those before it."""
    survey = SURVEYS[format]
    with ThreadPoolExecutor(min(SURVEY_THREADS, len(files))) as pool:
        return [0, *accumulate(found.rows for found in pool.map(lambda file: survey(file, MOST_ROWS), files))][:-1]


def _find_repeated(met: list[np.ndarray]) -> dict[int, np.ndarray]:
    """For each file with rows whose decisions belong to rows of an earlier file: the places of these decisions."""
    files = np.repeat(np.arange(len(met)), [len(one) for one in met])
    places = np.concatenate(met)
    later = np.ones(len(places), bool)
    later[np.unique(places, return_index=True)[1]] = False  # files come in order, so the first is the earliest
    return {int(i): places[later & (files == i)] for i in np.unique(files[later])}


def _check_test_set(compared: int, removed: int, decided: dict[str, Any], where: str) -> None:
    """Make sure that the rows are those of the test set: as many, and each leak is one row."""
    if (compared, removed) != (decided["rows"], decided["removed"]):
        raise DataError(
            f"{compared:,} rows, {removed:,} of which have the id of a leaked row",
            where=where,
            expected=f"the test set of {decided['rows']:,} rows, {decided['removed']:,} of which leaked",
            remedy="pass the files of the test set and no others; no id may occur twice in them",
        )


def _check_all_used(lookup: DecisionIndex, done: list[RewriteResult], where: str) -> None:
    """Make sure that each decision has exactly one row; every row has a decision, so count and checksum suffice."""
    rows = sum(one.rows for one in done)
    total = sum(one.checksum for one in done) % 2**64
    if rows == len(lookup.hashes) and total == lookup.checksum():
        return
    raise DataError(
        f"{rows:,} rows for {len(lookup.hashes):,} decisions{'' if rows < len(lookup.hashes) else ': some ids repeat'}",
        where=where,
        expected="one row for each decision",
        remedy="pass all the files that were deduplicated and no others, or add --on-bad-row skip",
    )
