"""The steps over files: fit, assign, and ``run``, which does all and goes on where an earlier run has stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client
from upath import UPath

from daskmeans import manifest, room, runtime
from daskmeans.assignment import assign as assign_rows
from daskmeans.assignment import refuse_reserved
from daskmeans.duplicates.decisions import NOTES, dedup_inputs
from daskmeans.duplicates.plan import n_pairs
from daskmeans.duplicates.rank import check_columns
from daskmeans.duplicates.result import DedupResult, open_decisions
from daskmeans.duplicates.search import dedup
from daskmeans.duplicates.settings import chosen, dedup_settings
from daskmeans.errors import DataError, OutputError
from daskmeans.fitting import adopt, fit_settings, fit_step, refuse_misfit, resolve
from daskmeans.kmeans.ann import TARGET, Index
from daskmeans.kmeans.ann import check as check_assign
from daskmeans.kmeans.checkpoint import CHECKPOINTS
from daskmeans.kmeans.estimator import KMeans
from daskmeans.reading import DEFAULTS, Reading
from daskmeans.vectors.buckets import COSINE, L2, Buckets, as_of, index_facts, open_buckets
from daskmeans.vectors.files import directories, refuse_overlap
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.regroup import regroup
from daskmeans.vectors.rejects import PARTS, gather_rejects
from daskmeans.vectors.source import Source


def fit(
    inputs: Any,
    out: str | UPath,
    model: KMeans,
    reading: Reading = DEFAULTS,
    *,
    overwrite: bool = False,
    client: Client | None = None,
) -> KMeans:
    """Fit `model` on files of embeddings and write it into the directory `out`.

    A fit that was interrupted, in whatever way, goes on from its last checkpoint when it is called again, and ends in
    the same bits as one that was not.

    Parameters
    ----------
    inputs : path or list of paths
        Files, directories or globs: Parquet, JSONL or ``.npy``.
    out : str or UPath
    model : KMeans
    reading : Reading, optional
    overwrite : bool, default False
        Replace a finished output, or an unfinished one of other settings or another input. One of the same goes on.
    client : distributed.Client, optional

    Returns
    -------
    KMeans
        `model`, fitted; its parameters are what they were. A seed that was drawn is ``seed_``.

    Raises
    ------
    UsageError, DataError, MemoryForecastError
    OutputError
        Among others: `out` holds an unfinished fit with other settings or of another input.
    """
    client = runtime.current_client(client)
    path = reading.path(out)
    settled = resolve(model, reading, path, path, overwrite)
    source = reading.open(inputs, client, allow_zero=not model.normalize)
    refuse_overlap(path, [*directories(inputs, reading.storage_options), *source.files])
    refuse_misfit(source, settled)
    if reading.on_bad_row == "skip":  # rows with the id of another one are bad too
        source = check_ids(source, reading.on_bad_row, client)
    fit_step(source, path, settled, reading, overwrite, client)
    adopt(model, settled)
    return model


def assign_files(
    inputs: Any,
    model: str | UPath,
    out: str | UPath,
    reading: Reading = DEFAULTS,
    *,
    layout: str = "bucketed",
    embedding_dtype: str = "float32",
    assign: str = "exact",
    assign_recall: float = TARGET,
    overwrite: bool = False,
    client: Client | None = None,
) -> Buckets:
    """Assign every row of files of embeddings to a cluster of the model directory `model`; write buckets into `out`.

    Parameters
    ----------
    inputs, out, reading, overwrite, client
        As in :func:`fit`.
    model : str or UPath
    layout : {"bucketed", "hive"}, default "bucketed"
    embedding_dtype : {"float32", "float16"}, default "float32"
    assign : {"exact", "ann"}, default "exact"
        "ann": by an index over the centroids, for very many of them. What share of the labels is exact is measured, and
        stands in the manifest as ``ann``.
    assign_recall : float, default 0.99
        The share that an index aims at.

    Raises
    ------
    UsageError, DataError
        Among others: the rows have another dimension than the model; an id occurs twice.
    """
    client = runtime.current_client(client)
    settings = assign_settings(reading, layout, embedding_dtype, assign, assign_recall)
    km, path = KMeans.load(reading.path(model)), reading.path(out)
    source = reading.open(inputs, client, allow_zero=not km.normalize)
    refuse_overlap(path, [*directories(inputs, reading.storage_options), *source.files])
    if source.dimension != km.n_features_in_:
        raise DataError(
            f"the vectors have {source.dimension} dimensions",
            where=str(source.files[0]),
            expected=f"{km.n_features_in_}, as the model {model} has",
            remedy="use the model that was fitted on these embeddings, or fit a new one",
        )
    manifest.check_free(path, "assign", overwrite=overwrite)
    refuse_reserved([source.id_field, *source.metadata_fields])
    source = check_ids(source, reading.on_bad_row, client)
    _assign(source, km, reading.path(model), path, settings, overwrite, client)
    return open_buckets(path)


def _assign(
    source: Source,
    km: KMeans,
    model: UPath,
    path: UPath,
    settings: dict[str, Any],
    overwrite: bool,
    client: Client | None,
) -> None:
    if appended := (manifest.peek(path) or {}).get("appended") if overwrite else None:
        count = f"{sum(batch['rows'] for batch in appended):,}"
        runtime.logger.warning("%s: %s appended rows are not in the new clusters: append them again", path, count)
    with manifest.step(
        path,
        "assign",
        settings,
        assign_inputs(source, model),
        overwrite=overwrite,
        keep=[NOTES],  # of decisions on the same rows, should these be assigned once more
        need=clusters_bytes(source, settings["embedding_dtype"]),
        client=client,
    ) as step:
        rows, vectors = source.rejecting_to(path / PARTS).frame(), source.embedding_field
        how: str | Index = settings["assign"]
        if how == "ann":  # from rows whose rejects are not listed a second time
            sampled = source.vectors_only().frame()
            how = km.build_index(sampled, column=vectors, recall=settings["assign_recall"], client=client)
            step.facts["ann"] = how.facts
        frame = assign_rows(rows, km, column=vectors, dtype=settings["embedding_dtype"], assign=how)
        step.facts |= regroup(
            frame, path, layout=settings["layout"], id_field=source.id_field, embedding_field=vectors, client=client
        )
        rejected = step.facts["rejected"] = gather_rejects(path, "assign", source.rows)
        source.check_unchanged()
        manifest.check_rows("assign", source.rows, written=step.facts["rows"], rejected=rejected)


def run(
    inputs: Any,
    out: str | UPath,
    model: KMeans,
    threshold: float | None = None,
    reading: Reading = DEFAULTS,
    *,
    eps: float | None = None,
    layout: str = "bucketed",
    embedding_dtype: str = "float32",
    assign: str = "exact",
    assign_recall: float = TARGET,
    keep: str | Sequence[str] = "hard",
    rule: str = "survivors",
    search: str = "auto",
    probes: int = 1,
    floor: float | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> DedupResult:
    """Fit, assign and dedup in one go, into ``model``, ``clusters`` and ``dedup`` below `out`.

    A step that an earlier run has finished, with the same settings on the same input, is not done again; a fit that
    was interrupted goes on.

    Parameters
    ----------
    inputs, out, model, reading, overwrite, client
        As in :func:`fit`.
    threshold, eps : float
        Cosine similarity from which two rows are duplicates, or 1 minus it; one of the two.
    layout, embedding_dtype, assign, assign_recall
        As in :func:`assign_files`.
    keep, rule, search, probes, floor
        As in :func:`daskmeans.dedup`.

    Raises
    ------
    OutputError
        A step below `out` was made with other settings or from another input, and `overwrite` is not set.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-run/in/rows.jsonl").write_text(lines)
    >>> km = dkm.KMeans(n_clusters=2)
    >>> result = dkm.run("memory://doctest-run/in", "memory://doctest-run/out", km, threshold=0.9, overwrite=True)
    >>> result.removed[["id", "kept_id", "reason"]].compute().to_dict("records")
    [{'id': 'a', 'kept_id': 'b', 'reason': 'exact'}]
    """
    client = runtime.current_client(client)
    root = reading.path(out)
    settled = resolve(model, reading, root, root / "model", overwrite)
    assigning = assign_settings(reading, layout, embedding_dtype, assign, assign_recall)
    deciding = dedup_settings(threshold, eps, keep, rule, search, probes, floor, settled.random_state)
    paths = {name: root / name for name in ("model", "clusters", "dedup")}
    source = reading.open(inputs, client, allow_zero=not model.normalize)
    # Now, not after the fit: may the columns be stored, and may rows be ranked by them?
    refuse_reserved([source.id_field, *source.metadata_fields])
    distances = [pa.field(name, pa.float32()) for name in (L2, COSINE)]
    check_columns(deciding.keep, pa.schema([*source.reader.schema.remove(1), *distances]))
    refuse_overlap(root, [*directories(inputs, reading.storage_options), *source.files])
    _refuse_foreign(root, paths)
    if not (manifest.peek(paths["clusters"]) or {"finished": False})["finished"]:  # now, not after the fit
        room.check(root, clusters_bytes(source, embedding_dtype))
    refuse_misfit(source, settled)

    @cache
    def checked() -> Source:  # before the fit, so that a duplicate id does not cost one
        return check_ids(source, reading.on_bad_row, client)

    _once(
        paths["model"], "fit", fit_settings(settled, reading), source.identity(), overwrite,
        lambda: fit_step(checked(), paths["model"], settled, reading, overwrite, client),
        resume=CHECKPOINTS,
    )  # fmt: skip
    adopt(model, settled if settled.__sklearn_is_fitted__() else KMeans.load(paths["model"]))
    _once(
        paths["clusters"], "assign", assigning, assign_inputs(source, paths["model"]), overwrite,
        lambda: _assign(
            checked(), KMeans.load(paths["model"]), paths["model"], paths["clusters"], assigning, overwrite, client
        ),
    )  # fmt: skip
    buckets = _decided(open_buckets(paths["clusters"]), paths["dedup"])
    _once(
        paths["dedup"], "dedup", asdict(chosen(deciding, n_pairs([buckets]), False)), dedup_inputs(buckets), overwrite,
        lambda: dedup(
            paths["clusters"], deciding.threshold, out=paths["dedup"], keep=keep, rule=rule, search=search,
            probes=probes, floor=floor, random_state=settled.random_state, overwrite=overwrite, client=client,
        ),
    )  # fmt: skip
    result = open_decisions(paths["dedup"])
    steps = {m["step"]: {k: m[k] for k in ("seconds", "peak_bytes")} for m in map(_finished, paths.values())}
    assigned = manifest.read(paths["clusters"], "assign")
    result.summary |= {"rejected": assigned["rejected"], "steps": steps} | index_facts(assigned)
    manifest.write_json(root / "summary.json", result.summary)
    return result


def _decided(buckets: Buckets, path: UPath) -> Buckets:
    """`buckets` as they were when the decisions in `path` were made on them, if rows were only appended since."""
    found = manifest.peek(path)
    before = as_of(buckets, found["inputs"].get("made", "")) if found else None
    if before is None:
        return buckets
    if before.rows < buckets.rows:
        runtime.logger.info(
            "%s: %s rows were appended since the decisions were made, and stay as they are",
            buckets.path,
            f"{buckets.rows - before.rows:,}",
        )
    return before  # also after a batch of which no row was kept: the clusters have another identity since


def _finished(path: UPath) -> dict[str, Any]:
    return manifest.read(path, "fit", "assign", "dedup")


def _once(
    path: UPath,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    overwrite: bool,
    work: Callable[[], object],
    resume: str | None = None,
) -> None:
    """Do `work` unless `path` holds its finished result already."""
    found = manifest.peek(path) if path.exists() else None
    if found and found["finished"]:
        changed = manifest.changes(found, settings, inputs)
        if not changed:
            manifest.sweep(path, resume)
            runtime.logger.info("%s is finished already: %s", name, path)
            return
        if not overwrite:
            raise OutputError(
                f"the step {name!r} is finished here, with other settings or another input: {'; '.join(changed)}",
                where=str(path),
                remedy="choose another --out, or add --overwrite to do it again",
            )
    if resume:
        manifest.goes_on(path, settings, inputs, resume, overwrite=overwrite)
    work()


def assign_settings(
    reading: Reading, layout: str, embedding_dtype: str, assign: str, assign_recall: float
) -> dict[str, Any]:
    """What determines the clusters besides the input and the model.

    Raises
    ------
    UsageError
        Rows cannot be assigned in this way; MissingExtraError if that takes a package.
    """
    check_assign(assign, assign_recall)
    return {
        "assign": assign,
        "assign_recall": assign_recall if assign == "ann" else None,
        "layout": layout,
        "embedding_dtype": embedding_dtype,
        "id_field": reading.id_field,
        "embedding_field": reading.embedding_field,
        "metadata_fields": list(reading.metadata_fields),
        "on_bad_row": reading.on_bad_row,
    }


def clusters_bytes(source: Source, dtype: str) -> int:
    """Bytes that clusters of the rows of `source` take while they are written, without their ids and metadata.

    The vectors lie there twice: in runs, and in the files that are merged from them.
    """
    return 2 * source.rows * source.dimension * np.dtype(dtype).itemsize


def assign_inputs(source: Source, model: UPath) -> dict[str, Any]:
    """What clusters are made from."""
    used = manifest.identity(manifest.read(model, "fit"))
    return source.identity() | {"model": used}


def _refuse_foreign(root: UPath, ours: dict[str, UPath]) -> None:
    """Refuse a directory that holds anything but what a run makes."""
    known = {*ours, "summary.json", "summary.json.tmp"}  # what a run has left that was killed as it wrote the other
    if root.exists() and not root.is_dir():
        raise OutputError("the output exists and is a file", where=str(root), remedy="choose another --out")
    foreign = [child.name for child in root.iterdir() if child.name not in known] if root.exists() else []
    if foreign:
        raise OutputError(
            f"the output directory holds files that daskmeans did not write, such as {foreign[0]!r}",
            where=str(root),
            expected="a new or an empty directory, or that of an earlier run",
            remedy="choose another --out",
        )
