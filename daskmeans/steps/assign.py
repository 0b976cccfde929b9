"""The step `assign`: give every row its cluster and its distances, and store rows by cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import Buckets, open_buckets
from daskmeans.buckets.external_sort import regroup
from daskmeans.duplicates.decisions import NOTES
from daskmeans.errors import DataError
from daskmeans.kmeans.assign import assign as assign_rows
from daskmeans.kmeans.assign import refuse_reserved_columns
from daskmeans.kmeans.centroid_index import Index
from daskmeans.kmeans.estimator import KMeans
from daskmeans.runtime.client import current_client, logger
from daskmeans.steps.settings import STORING, Storing
from daskmeans.storage import manifest
from daskmeans.storage.step import check_output_free, open_step
from daskmeans.vectors.files import Input, find_directories, refuse_overlap
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.options import DEFAULTS, ReadOptions
from daskmeans.vectors.rejects import REJECTS_PARTS, gather_rejects
from daskmeans.vectors.source import Source


def assign_files(
    inputs: Any,
    model: Input,
    out: str | UPath,
    reading: ReadOptions = DEFAULTS,
    storing: Storing = STORING,
    *,
    overwrite: bool = False,
    client: Client | None = None,
) -> Buckets:
    """Assign every row of files of embeddings to a cluster of the model directory `model`; write buckets into `out`.

    Parameters
    ----------
    inputs, out, reading, overwrite, client
        As in :func:`fit`.
    model : path
    storing : Storing, optional

    Raises
    ------
    UsageError, DataError
        Among others: the vectors have another dimension than the model; an id occurs twice.
    """
    client = current_client(client)
    settings = storing.settings(reading)
    km, path = KMeans.load(reading.path(model)), reading.path(out)
    source = reading.open(inputs, client, allow_zero=not km.normalize)
    refuse_overlap(path, [*find_directories(inputs, reading.storage_options), *source.files])
    if source.dimension != km.n_features_in_:
        raise DataError(
            f"the vectors have {source.dimension} dimensions",
            where=str(source.files[0]),
            expected=f"{km.n_features_in_}, as the model {reading.path(model)} has",
            remedy="use the model that was fitted on these embeddings, or fit a new one",
        )
    check_output_free(path, "assign", overwrite=overwrite)
    refuse_reserved_columns([source.id_field, *source.metadata_fields])
    source = check_ids(source, reading.on_bad_row, client)
    assign_step(source, km, reading.path(model), path, settings, overwrite, client)
    return open_buckets(path)


def assign_step(
    source: Source,
    km: KMeans,
    model: UPath,
    path: UPath,
    settings: dict[str, Any],
    overwrite: bool,
    client: Client | None,
) -> None:
    if appended := (manifest.peek_manifest(path) or {}).get("appended") if overwrite else None:
        count = f"{sum(batch['rows'] for batch in appended):,}"
        logger.warning("%s: %s appended rows are not in the new clusters; append them again", path, count)
    with open_step(
        path,
        "assign",
        settings,
        assign_inputs(source, model),
        overwrite=overwrite,
        keep=[NOTES],  # decisions on the same rows, should these be assigned once more, are noted there
        need=clusters_bytes(source, settings["embedding_dtype"]),
        client=client,
    ) as step:
        rows, vectors = source.with_rejects(path / REJECTS_PARTS).frame(), source.embedding_field
        how: str | Index = settings["assign"]
        if how == "ann":  # from a frame that does not list the rejects a second time
            sampled = source.without_metadata().frame()
            how = km.build_index(sampled, column=vectors, recall=settings["assign_recall"], client=client)
            step.facts["ann"] = how.facts
        frame = assign_rows(rows, km, column=vectors, dtype=settings["embedding_dtype"], assign=how)
        step.facts |= regroup(
            frame, path, layout=settings["layout"], id_field=source.id_field, embedding_field=vectors, client=client
        )
        rejected = step.facts["rejected"] = gather_rejects(path, "assign", source.rows)
        source.check_unchanged()
        manifest.check_row_counts("assign", source.rows, written=step.facts["rows"], rejected=rejected)


def clusters_bytes(source: Source, dtype: str) -> int:
    """Bytes on disk that clusters of the rows of `source` take while they are written, without ids and metadata.

    The vectors are there twice: in sorted runs, and in the files that are merged from them.
    """
    return 2 * source.rows * source.dimension * np.dtype(dtype).itemsize


def assign_inputs(source: Source, model: UPath) -> dict[str, Any]:
    """Identity of what clusters are made from: the rows and the model."""
    used = manifest.identity_hash(manifest.read_manifest(model, "fit"))
    return source.identity() | {"model": used}
