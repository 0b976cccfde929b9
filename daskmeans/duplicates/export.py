"""Decisions in the files of another tool: those of NeMo Curator's semantic deduplication, as of version 1.3."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import CENTROID
from daskmeans.duplicates.result import decision_files
from daskmeans.errors import UsageError
from daskmeans.runtime import executor
from daskmeans.runtime.client import logger, task_key
from daskmeans.storage import manifest, signature
from daskmeans.storage.signature import VERIFY_PAGES
from daskmeans.storage.step import check_output_free, open_step
from daskmeans.vectors.files import translate_read_errors

EXPORTS = ("nemo",)
PAIRS, DUPLICATES = "pairwise_results", "duplicates"
# Row groups of a file of ids. The tool reads those that may hold an id of its task.
ID_GROUPS = 10


def check_export(export: str, out: UPath | None, overwrite: bool) -> UPath:
    """Return the directory beside the decisions in `out` that `export` will be written to.

    Raises
    ------
    UsageError
        There is no such tool, or no directory for the decisions. OutputError if something else is there.
    """
    if export not in EXPORTS:
        raise UsageError(f"unknown tool {export!r}", where="--export", expected=" or ".join(EXPORTS))
    if out is None:
        raise UsageError("the files are written beside the decisions", where="export", expected="out=, a directory")
    target = out.parent / f"{out.name}-{export}"
    check_output_free(target, "export", overwrite=overwrite)
    return target


def export_identity(decisions: UPath) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of an export, and the identity of the decisions that it is made from."""
    made = manifest.identity_hash(manifest.read_manifest(decisions, "dedup"))
    return {"format": "nemo"}, {"decisions": str(decisions), "made": made}


def export_decisions(decisions: UPath, target: UPath, overwrite: bool, client: Client | None) -> None:
    """Write the decisions in the directory `decisions` into `target`, as NeMo Curator stores its own.

    ``pairwise_results/cluster_<i>.parquet`` has for each row of a cluster ``id``, ``max_id`` (the most similar row that
    comes earlier; itself if there is none) and ``cosine_sim_score`` (then 0); ``duplicates/*.parquet`` the ``id`` of
    each row that is dropped, sorted.
    """
    with open_step(target, "export", *export_identity(decisions), overwrite=overwrite, client=client) as step:
        for folder in (PAIRS, DUPLICATES):
            (target / folder).mkdir(parents=True, exist_ok=True)
        tasks = [
            delayed(_export_file, pure=False)(file, target, i, dask_key_name=task_key("export"))
            for i, file in enumerate(decision_files(decisions))
        ]
        removed = sum(executor.compute(tasks, "export", client))
        step.facts |= {"counts": {"removed": removed}}
    logger.info("%s: the decisions as NeMo Curator stores them", target)


def _export_file(file: UPath, target: UPath, number: int) -> int:
    """Export one file of decisions, which holds whole clusters; return the number of rows that are dropped."""
    columns = ["id", "keep", "max_id", "cosine_sim_score", CENTROID]
    with translate_read_errors(file):
        table = pq.read_table(file.path, filesystem=file.fs, columns=columns, **VERIFY_PAGES).combine_chunks()
    pairs = pa.table(
        {
            "id": table["id"],
            "max_id": pc.coalesce(table["max_id"], table["id"]),
            "cosine_sim_score": table["cosine_sim_score"].fill_null(0.0),
        }
    )
    labels = table[CENTROID].to_numpy()
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True):
        signature.write_table(
            pairs.slice(start, stop - start), target / PAIRS / f"cluster_{labels[start]}.parquet", "export"
        )
    dropped = table.select(["id"]).filter(pc.invert(table["keep"])).sort_by("id")
    with signature.open_writer(target / DUPLICATES / f"part-{number:05d}.parquet", dropped.schema, "export") as writer:
        writer.write_table(dropped, row_group_size=max(1, len(dropped) // ID_GROUPS))
    return len(dropped)
