"""Describe what a path holds: an output of daskmeans, or embeddings and the memory that the steps would need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from dask.utils import format_bytes
from upath import UPath

from daskmeans import config
from daskmeans.buckets.buckets import index_facts, open_buckets
from daskmeans.duplicates.result import open_decisions
from daskmeans.kmeans import model
from daskmeans.kmeans.memory import assign_bytes, fit_bytes
from daskmeans.pairs.memory import dedup_bytes
from daskmeans.steps.foreign import describe_folders
from daskmeans.storage import manifest
from daskmeans.vectors.files import open_path
from daskmeans.vectors.matrix import is_untyped
from daskmeans.vectors.nested import find_field, path_of
from daskmeans.vectors.source import Source, open_source


def describe(
    url: str | UPath,
    *,
    id_field: str = "id",
    embedding_field: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    format: str | None = None,
) -> dict[str, Any]:
    """Describe what `url` holds: a model, clusters, decisions, a run, or files of embeddings.

    Parameters
    ----------
    url : str or UPath
    id_field, embedding_field, storage_options, format
        As in :func:`daskmeans.read_embeddings`.

    Returns
    -------
    dict
        ``kind``; for an output, also ``complete``; and the facts known about it.

    Raises
    ------
    NotFoundError, UsageError
        `url` holds none of these.
    """
    path = open_path(url, storage_options)
    found = manifest.peek_manifest(path) if path.is_dir() else None
    if found is None:
        if path.is_dir() and (outputs := _find_outputs(path)):
            return _describe_run(path) if set(outputs) <= {"model", "clusters", "dedup"} else _describe_job(outputs)
        return _describe_embeddings(
            open_source(
                url, id_field=id_field, embedding_field=embedding_field, storage_options=storage_options, format=format
            )
        ) | describe_folders(path)
    head = {"kind": f"output of `daskmeans {found['step']}`", "complete": found["finished"]}
    tail = {name: found.get(name) for name in ("settings", "versions")}
    if not found["finished"]:
        return head | {"remedy": "run the command again; it resumes, or replaces what is there"} | tail
    facts = {"fit": _describe_model, "assign": _describe_clusters, "dedup": _describe_decisions}.get(
        found["step"], _describe_other
    )
    return head | facts(path) | {"seconds": found["seconds"]} | tail


def _find_outputs(path: UPath) -> dict[str, dict[str, Any]]:
    """Manifests of the outputs in `path`, by the name of their directory."""
    found = {child.name: manifest.peek_manifest(child) for child in path.iterdir() if child.is_dir()}
    return {name: each for name, each in sorted(found.items()) if each}


def _describe_job(outputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    state = {
        name: f"{each['step']}, {'complete' if each['finished'] else 'unfinished'}" for name, each in outputs.items()
    }
    return {
        "kind": "outputs of several steps",
        "complete": all(each["finished"] for each in outputs.values()),
        "steps": state,
    }


def _describe_run(path: UPath) -> dict[str, Any]:
    steps = {name: manifest.peek_manifest(path / name) for name in ("model", "clusters", "dedup")}
    state = {name: "complete" if m and m["finished"] else "unfinished" if m else "missing" for name, m in steps.items()}
    return {"kind": "output of `daskmeans run`", "complete": set(state.values()) == {"complete"}, "steps": state}


def _describe_model(path: UPath) -> dict[str, Any]:
    _, facts = model.read_model(path)
    shown = ("n_clusters", "n_features", "normalize", "inertia", "n_iter", "converged", "engine", "seed")
    return {name: facts[name] for name in shown}


def _describe_clusters(path: UPath) -> dict[str, Any]:
    buckets = open_buckets(path)
    sizes = np.array([cluster.rows for cluster in buckets.clusters()])
    return (
        {
            "rows": buckets.rows,
            "dimension": buckets.dimension,
            "layout": buckets.layout,
            "clusters_with_rows": buckets.n_clusters,
            "rows_per_cluster": {"median": int(np.median(sizes)), "largest": int(sizes.max())},
            "forecast": {"dedup_per_task": format_bytes(dedup_bytes(int(sizes.max()), buckets.dimension))},
        }
        | _describe_appended(buckets.manifest)
        | index_facts(buckets.manifest)
    )


def _describe_appended(found: dict[str, Any]) -> dict[str, Any]:
    """What was appended to clusters, under the key ``appended``; empty if nothing was."""
    batches = found.get("appended", [])
    if not batches:
        return {}
    rows = sum(batch["rows"] for batch in batches)
    return {"appended": {"times": len(batches), "rows": rows, "last_from": batches[-1]["clusters"]}}


def _describe_decisions(path: UPath) -> dict[str, Any]:
    return dict(open_decisions(path).summary)


def _describe_other(path: UPath) -> dict[str, Any]:
    found = manifest.peek_manifest(path) or {}
    return {k: found[k] for k in ("rows", "rejected", "dimension", "dtype", "encoder", "counts") if k in found}


def _count_nulls(source: Source) -> dict[str, int] | None:
    """Count the nulls among ids and vectors, and inside vectors, from the footers; None if these do not count them."""
    if source.format != "parquet":
        return None
    found = {source.id_field: 0, source.embedding_field or "": 0}
    for file in source.files:
        footer = pq.read_metadata(file.path, filesystem=file.fs)
        schema = footer.schema.to_arrow_schema()
        fields = {name: find_field(schema, name) for name in found}
        if any(field is not None and len(path_of(field)) > 1 for field in fields.values()):
            return None  # footers do not tell which rows have no value inside others
        blank = {name for name, field in fields.items() if field is not None and is_untyped(field.type)}
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for column in map(group.column, range(footer.num_columns)):
                name = column.path_in_schema.split(".")[0]
                if name in blank:
                    found[name] += column.num_values
                elif name in found and column.statistics is None:
                    return None
                elif name in found:
                    found[name] += column.statistics.null_count or 0
    return found


def _describe_embeddings(source: Source) -> dict[str, Any]:
    partition = config.get_bytes("partition-bytes")
    return {
        "kind": f"embeddings ({source.format})",
        "files": len(source.files),
        "rows": source.rows,
        "dimension": source.dimension,
        "dtype": source.dtype,
        "nulls": _count_nulls(source),
        "id_field": source.id_field,
        "id_from": source.id_from,
        "embedding_field": source.embedding_field,
        "partitions": source.n_partitions,
        "forecast": {
            "fit_over_all_workers": format_bytes(fit_bytes(source.rows, source.dimension)),
            "assign_per_task_at_1000_clusters": format_bytes(assign_bytes(source.dimension, 1000, partition)),
        },
    }
