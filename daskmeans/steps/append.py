"""The step `append`: extend old clusters by the kept rows of new ones.

Files of the old clusters never change. New files are written beside them, and the manifest that lists them is replaced
last. Until then no manifest lists the new files, and the next append removes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.buckets.buckets import CENTROID, Buckets, Part, open_buckets, strip_parts
from daskmeans.buckets.writer import remove_append_files, write_bucket_files
from daskmeans.duplicates.against import find_decisions, open_reference, refuse_dropped_references
from daskmeans.duplicates.decisions import dedup_inputs
from daskmeans.duplicates.result import decision_files
from daskmeans.duplicates.settings import DedupSettings
from daskmeans.errors import DataError, OutputError, UsageError
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client, log_event, logger, task_key
from daskmeans.storage import diskspace, lock, manifest, objectstore
from daskmeans.storage.result import StepResult
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.vectors.files import Input, open_path, translate_read_errors, translate_write_errors


def append(
    decisions: Input,
    *,
    storage_options: Mapping[str, Any] | None = None,
    client: Client | None = None,
) -> StepResult:
    """Add the rows that `decisions` keep to the clusters that they were compared with.

    The next batch is then compared with these rows too. ``dedup(..., append=True)`` does this in one go; call this
    function to look at the decisions first. Appends are atomic: readers see the clusters before or after, never in
    between. An interrupted call can simply be repeated; a finished one does nothing more.

    Parameters
    ----------
    decisions : path or DedupResult
        Finished decisions, made with `against` and written into an `out`. Both clusters must have been assigned with
        the same model and have the same columns.
    storage_options : dict, optional
        Options of the filesystem.
    client : distributed.Client, optional
        Where to run. Default: the current client, else this process.

    Returns
    -------
    StepResult
        The extended clusters, as a mapping: ``appended`` (rows that were added) and ``rows`` (rows in all).

    Raises
    ------
    UsageError
        The decisions were not made against exactly one other directory of clusters, or are temporary.
    OutputError
        The clusters, or the decisions on them, have changed since the decisions were made.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> at = "memory://doctest-append"
    >>> for name, v in {"old": "[1.0, 0.1]", "new": "[0.1, 1.0]"}.items():
    ...     _ = UPath(f"{at}/{name}.jsonl").write_text(f'{{"id": "{name}", "v": {v}}}\\n')
    >>> _ = dkm.fit(f"{at}/old.jsonl", dkm.KMeans(n_clusters=1), f"{at}/model", overwrite=True)
    >>> for name in ("old", "new"):
    ...     _ = dkm.assign(f"{at}/{name}.jsonl", f"{at}/model", f"{at}/{name}", overwrite=True)
    >>> found = dkm.dedup(f"{at}/new", 0.9, against=f"{at}/old", out=f"{at}/decisions", overwrite=True)
    >>> dkm.append(found)
    StepResult(appended=1, rows=2)
    """
    path = open_path(decisions, storage_options)
    options = {**path.storage_options, **(storage_options or {})}
    found, client = manifest.read_manifest(path, "dedup"), current_client(client)
    made, settings = found["inputs"], DedupSettings(**found["settings"] | {"keep": tuple(found["settings"]["keep"])})
    new = open_buckets(open_path(made["clusters"], options))
    against = [
        open_reference(open_path(_named_reference(entry), options), options) for entry in made.get("against", ())
    ]
    check_append(new, [each.buckets for each in against], path)
    old = against[0].buckets
    if not is_appended(old, new, settings, path, client, options):
        if dedup_inputs(new, [each.describe() for each in against]) != made:
            raise _changed_error(old.path)
        if path not in find_decisions(new, options):
            raise UsageError(
                "these decisions are not noted in the clusters, so they may be temporary",
                where=str(path),
                expected="decisions that dedup has written into an `out`",
                remedy="call dedup with out=, or with append=True",
            )
        extend(old, new, path, client)
    after, batch = open_buckets(old.path), manifest.identity_hash(new.manifest)
    rows = next(each["rows"] for each in after.manifest["appended"] if each["made"] == batch)
    return StepResult(old.path, {"appended": rows, "rows": after.rows})


def _named_reference(entry: dict[str, Any]) -> str:
    """Path that was given as `against`: that of the clusters, or of decisions on them that alone count."""
    return str(entry["decided"][0]["decisions"] if entry.get("alone") else entry["clusters"])


def check_append(new: Buckets, against: Sequence[Buckets], out: Input | None) -> None:
    """Make sure that rows of `new` can be appended to the clusters in `against`.

    Raises
    ------
    UsageError
    """
    if len(against) != 1 or out is None:
        found = "no directory for the decisions is given" if out is None else f"{len(against)} clusters are given"
        raise UsageError(
            found,
            where="--append" if out is None else "--append, --against",
            expected="one --against, the clusters that rows are appended to, and --out",
        )
    old = against[0]
    models = [each.manifest["inputs"].get("model") for each in (old, new)]
    for each, model in zip((old, new), models, strict=True):
        if model is None:
            raise UsageError(
                "the model that these rows were assigned with is not known",
                where=str(each.path),
                expected="clusters that `daskmeans assign` or `daskmeans run` has written",
                remedy="run `daskmeans assign` with the model on disk",
            )
    if models[0] != models[1]:
        raise UsageError(
            "these rows were assigned with another model",
            where=str(new.path),
            expected=f"the model of {old.path}",
            remedy="run `daskmeans assign` with that model on the new rows",
        )
    if differences := _compare_schemas(new.schema(), old.schema()):
        raise UsageError(
            f"the columns differ: {'; '.join(differences)}",
            where=str(new.path),
            expected=f"the columns of {old.path}",
            remedy="run `daskmeans assign` on the new rows as it was run on the old ones: "
            "--id-field, --embedding-field, --embedding-dtype, --metadata-field",
        )


def _compare_schemas(new: pa.Schema, old: pa.Schema) -> list[str]:
    """Describe each column in which `new` differs from `old`; their order does not count."""
    types = [
        {field.name: _unify_strings(field.type) for field in schema if field.name != CENTROID} for schema in (new, old)
    ]
    return [
        f"there is no {name!r}"
        if name not in types[0]
        else f"{name!r} is extra"
        if name not in types[1]
        else f"{name!r} is {types[0][name]}, not {types[1][name]}"
        for name in {**types[1], **types[0]}
        if types[0].get(name) != types[1].get(name)
    ]


def _unify_strings(type_: pa.DataType) -> pa.DataType:
    """`type_`, with one type for all kinds of strings."""
    kinds = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return pa.string() if any(is_kind(type_) for is_kind in kinds) else type_


def is_appended(
    old: Buckets,
    new: Buckets,
    settings: DedupSettings,
    decisions: UPath,
    client: Client | None,
    storage_options: Mapping[str, Any] | None,
) -> bool:
    """Whether `old` holds the kept rows of `new` already, appended by `decisions` with these settings.

    Raises
    ------
    UsageError
        They were appended by other decisions, or by those of another version of daskmeans.
    DataError
        A row was dropped as a duplicate of one that has been dropped itself since.
    """
    made = manifest.identity_hash(new.manifest)
    for batch in old.manifest.get("appended", []):
        if batch["made"] != made:
            continue
        found = manifest.peek_manifest(decisions)
        theirs = bool(found and found["finished"] and manifest.identity_hash(found) == batch["decided"])
        then = found["inputs"] if found and theirs else {}  # with the clusters as they were before
        state, changed = manifest.status(found, "dedup", asdict(settings), then)
        if theirs and state is manifest.State.DONE:
            refuse_dropped_references(decisions, client, storage_options)
            logger.info("%s rows were appended already: %s", f"{batch['rows']:,}", old.path)
            return True
        differences = f" ({'; '.join(changed)})" if theirs and changed else ""
        raise UsageError(
            f"rows of {new.path} were appended already",
            where=str(old.path),
            expected=f"the command that appended them, with the decisions in {batch['decisions']}{differences}",
            remedy="to decide differently, assign all rows again",
        )
    return False


def extend(old: Buckets, new: Buckets, decisions: UPath, client: Client | None) -> None:
    """Extend `old` by the rows of `new` that `decisions`, made against `old`, keep.

    Raises
    ------
    OutputError
        `old` has changed since it was opened, or another run is writing it.
    """
    appended = old.manifest.get("appended", [])
    with diskspace.translate_disk_errors(old.path), lock.hold_lock(old.path) as mine:
        _refuse_changed(old)
        remove_append_files(old.path, len(appended) + 1)
        keep = _read_kept(decisions, new.rows, client)
        files = _write_kept(old, new, keep, len(appended) + 1, client)
        rows = sum(file["rows"] for file in files)
        manifest.check_row_counts("append", int(keep.sum()), written=rows)
        batch = {
            "clusters": str(new.path),
            "made": manifest.identity_hash(new.manifest),
            "decisions": str(decisions),
            "decided": manifest.identity_hash(manifest.read_manifest(decisions, "dedup")),
            "rows": rows,
        }
        outputs = [*old.manifest["outputs"], *files]
        facts = {
            "rows": old.rows + batch["rows"],
            "n_clusters": len({centroid for file in outputs for centroid, *_ in file["clusters"]}),
            "outputs": outputs,
            "appended": [*appended, batch],
        }
        objectstore.flush_to_disk(old.path)
        _refuse_changed(old)
        mine.check()
        manifest.write_manifest(old.path, old.manifest | facts)
        manifest.remove_tree(old.path / manifest.old_name(manifest.MANIFEST_NAME))
    log_event("daskmeans", {"step": "append", "out": str(old.path), "rows": batch["rows"]}, client)


def _refuse_changed(old: Buckets) -> None:
    if manifest.identity_hash(manifest.read_manifest(old.path, "assign")) != manifest.identity_hash(old.manifest):
        raise _changed_error(old.path)


def _changed_error(old: UPath) -> OutputError:
    return OutputError(
        "the clusters have changed since the new rows were compared with them",
        where=str(old),
        expected="the clusters that the new rows were compared with",
        remedy="run the command again with --overwrite",
    )


def _read_kept(decisions: UPath, rows: int, client: Client | None) -> np.ndarray:
    """Which rows stay, in the order of the clusters, which is also that of the decisions."""
    read = delayed(_read_keep_column, pure=False)
    tasks = [read(file, dask_key_name=task_key("append-read")) for file in decision_files(decisions)]
    keep = np.concatenate(executor.compute(tasks, client=client))
    if len(keep) != rows:
        raise DataError(
            f"there are decisions on {len(keep):,} rows",
            where=str(decisions),
            expected=f"{rows:,}",
            remedy="run the command again with --overwrite",
        )
    return keep


def _read_keep_column(file: UPath) -> np.ndarray:
    with translate_read_errors(file):
        return pq.read_table(file.path, filesystem=file.fs, **VERIFY_PAGES, columns=["keep"])["keep"].to_numpy()


def _write_kept(
    old: Buckets, new: Buckets, keep: np.ndarray, number: int, client: Client | None
) -> list[dict[str, Any]]:
    """Write the rows of `new` that `keep` marks beside the files of `old`; return the new files' manifest entries."""
    ends = accumulate((part.rows for part in new.parts), initial=0)
    most = config.get_bytes("bucket-bytes") // (4 * new.dimension)
    schema, write = old.schema(), delayed(_write_part, pure=False)
    tasks = [
        write(strip_parts(old), strip_parts(new), part, keep[slice(*rows)], schema, most, i, number,
              dask_key_name=task_key("append-write"))
        for i, (part, rows) in enumerate(zip(new.parts, pairwise(ends), strict=True))
    ]  # fmt: skip
    try:
        return [file for files in executor.compute(tasks, "append", client) for file in files]
    except BaseException:
        remove_append_files(old.path, number)
        raise


def _write_part(
    old: Buckets, new: Buckets, part: Part, keep: np.ndarray, schema: pa.Schema, most: int, i: int, number: int
) -> list[dict[str, Any]]:
    tables = _select_kept(new, part, keep, schema, max(1, most))
    with translate_write_errors(old.path):
        return write_bucket_files(old.path, tables, old.layout, old.embedding_field, i, number)


def _select_kept(
    buckets: Buckets, part: Part, keep: np.ndarray, schema: pa.Schema, most: int
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of `part` that `keep` marks, by cluster, in tables of up to `most` rows with the columns of `schema`."""
    names = [name for name in schema.names if name != CENTROID]
    slices = [(cluster, start, min(start + most, cluster.rows))
              for cluster in part.clusters for start in range(0, cluster.rows, most)]  # fmt: skip
    ends = accumulate((stop - start for _, start, stop in slices), initial=0)
    wanted = [(piece, keep[slice(*rows)]) for piece, rows in zip(slices, pairwise(ends), strict=True)]
    wanted = [(piece, mask) for piece, mask in wanted if mask.any()]
    tables = buckets.read_each_slice([piece for piece, _ in wanted], names)
    for ((cluster, _, _), mask), stored in zip(wanted, tables, strict=True):
        table = stored.filter(pa.array(mask))
        table = table.append_column(CENTROID, pa.array(np.full(len(table), cluster.centroid, np.int32)))
        yield cluster.centroid, table.select(schema.names).cast(schema)
