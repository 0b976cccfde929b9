"""Steps that are not done again: what a manifest says about a step decides whether it is done now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from upath import UPath

from daskmeans.buckets.buckets import Buckets, as_of
from daskmeans.errors import OutputError
from daskmeans.runtime.client import logger
from daskmeans.storage import manifest
from daskmeans.storage.step import is_resumable, remove_leftovers


def is_done(path: UPath, name: str, settings: dict[str, Any], inputs: dict[str, Any], overwrite: bool) -> bool:
    """Whether `path` holds the finished result of the step `name`.

    Raises
    ------
    OutputError
        The step is finished there with other settings or another input, and `overwrite` is not set.
    """
    found = manifest.peek_manifest(path)
    state, changed = manifest.status(found, name, settings, inputs)
    if state is manifest.State.DONE:
        return True
    if found and found["finished"] and not overwrite:
        raise OutputError(
            f"the step {name!r} is finished here, but with other settings or another input: {'; '.join(changed)}",
            where=str(path),
            remedy="choose another --out, or add --overwrite to do it again",
        )
    return False


def run_once(
    path: UPath,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    overwrite: bool,
    work: Callable[[], object],
    resume: str | None = None,
) -> bool:
    """Do `work`, unless `path` already holds its finished result; return whether it was done."""
    if is_done(path, name, settings, inputs, overwrite):
        remove_leftovers(path, resume)
        logger.info("%s is finished already: %s", name, path)
        return False
    if resume:
        is_resumable(path, name, settings, inputs, resume, overwrite=overwrite)
    work()
    return True


def find_decided_clusters(buckets: Buckets, path: UPath) -> Buckets:
    """`buckets` as they were when the decisions in `path` were made on them, if rows were only appended since."""
    found = manifest.peek_manifest(path)
    before = as_of(buckets, found["inputs"].get("made", "")) if found else None
    if before is None:
        return buckets
    if before.rows < buckets.rows:
        logger.info(
            "%s: %s rows were appended since the decisions were made; they stay as they are",
            buckets.path,
            f"{buckets.rows - before.rows:,}",
        )
    return before  # also after a batch of which no row was kept: it changed the identity of the clusters
