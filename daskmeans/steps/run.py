"""The step `run`: fit, assign and dedup in one go, resumed where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pyarrow as pa
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import COSINE, L2, Buckets, as_of, index_facts, open_buckets
from daskmeans.duplicates.decisions import dedup_inputs
from daskmeans.duplicates.ranking import check_ranking_columns
from daskmeans.duplicates.result import DedupResult, open_decisions
from daskmeans.duplicates.settings import Deciding, choose_search
from daskmeans.errors import OutputError
from daskmeans.kmeans.assign import refuse_reserved_columns
from daskmeans.kmeans.centroid_index import TARGET_RECALL
from daskmeans.kmeans.engine.checkpoints import CHECKPOINTS
from daskmeans.kmeans.estimator import KMeans
from daskmeans.pairs.plan import n_pairs
from daskmeans.runtime.client import current_client, logger
from daskmeans.steps.assign import assign_inputs, assign_step, clusters_bytes
from daskmeans.steps.dedup import dedup_step
from daskmeans.steps.fit import adopt_fit, fit_settings, fit_step, refuse_misfit, resolve_params
from daskmeans.steps.settings import RunSettings, Storing
from daskmeans.storage import diskspace, manifest
from daskmeans.storage.step import is_resumable, remove_leftovers
from daskmeans.vectors.files import find_directories, refuse_overlap
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.options import DEFAULTS, ReadOptions
from daskmeans.vectors.source import Source


def run(
    inputs: Any,
    out: str | UPath,
    model: KMeans,
    threshold: float | None = None,
    reading: ReadOptions = DEFAULTS,
    *,
    eps: float | None = None,
    layout: str = "bucketed",
    embedding_dtype: str = "float32",
    assign: str = "exact",
    assign_recall: float = TARGET_RECALL,
    keep: str | Sequence[str] = "hard",
    rule: str = "survivors",
    search: str = "auto",
    probes: int = 1,
    floor: float | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> DedupResult:
    """Fit, assign and dedup in one go, into ``model``, ``clusters`` and ``dedup`` below `out`.

    A step that an earlier run finished is not done again if its settings, its input and the version of daskmeans are
    the same. An interrupted fit resumes.

    Parameters
    ----------
    inputs, out, model, reading, overwrite, client
        As in :func:`fit`.
    threshold, eps : float
        Cosine similarity from which two rows are duplicates, or 1 minus it; one of the two.
    layout, embedding_dtype, assign, assign_recall
        As in :func:`daskmeans.assign`, where `embedding_dtype` is called `dtype`.
    keep, rule, search, probes, floor
        As in :func:`daskmeans.dedup`.

    Raises
    ------
    OutputError
        A step below `out` was done with other settings, on another input or by another version of daskmeans, and
        `overwrite` is not set.

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
    settings = RunSettings(
        model,
        Deciding(threshold, eps, keep, rule, search, probes, floor),
        Storing(layout, embedding_dtype, assign, assign_recall),
        reading,
    )
    return run_steps(inputs, out, settings, overwrite=overwrite, client=client)


def run_steps(
    inputs: Any, out: str | UPath, settings: RunSettings, *, overwrite: bool = False, client: Client | None = None
) -> DedupResult:
    """Run :func:`run` with its options in one object."""
    model, reading = settings.model, settings.reading
    client = current_client(client)
    root = reading.path(out)
    resolved = resolve_params(model, reading, root, root / "model", overwrite)
    assigning = settings.storing.settings(reading)
    asked = replace(settings.deciding, random_state=resolved.random_state)
    deciding = asked.settings()
    paths = {name: root / name for name in ("model", "clusters", "dedup")}
    source = reading.open(inputs, client, allow_zero=not model.normalize)
    # Check before the fit, not after it, that the columns can be stored and that rows can be ranked by them.
    refuse_reserved_columns([source.id_field, *source.metadata_fields])
    distances = [pa.field(name, pa.float32()) for name in (L2, COSINE)]
    check_ranking_columns(deciding.keep, pa.schema([*source.reader.schema.remove(1), *distances]))
    refuse_overlap(root, [*find_directories(inputs, reading.storage_options), *source.files])
    _refuse_foreign(root, paths)
    if not (manifest.peek_manifest(paths["clusters"]) or {"finished": False})["finished"]:  # before the fit, not after
        diskspace.check_space(root, clusters_bytes(source, settings.storing.embedding_dtype))
    refuse_misfit(source, resolved)

    @cache
    def check_source() -> Source:  # before the fit, so that a duplicate id does not cost one
        return check_ids(source, reading.on_bad_row, client)

    fitted = _run_once(
        paths["model"], "fit", fit_settings(resolved, reading), source.identity(), overwrite,
        lambda: fit_step(check_source(), paths["model"], resolved, reading, overwrite, client),
        resume=CHECKPOINTS,
    )  # fmt: skip
    adopt_fit(model, resolved if resolved.__sklearn_is_fitted__() else KMeans.load(paths["model"]))
    stored = _run_once(
        paths["clusters"], "assign", assigning, assign_inputs(source, paths["model"]), overwrite,
        lambda: assign_step(
            check_source(), KMeans.load(paths["model"]), paths["model"], paths["clusters"], assigning, overwrite, client
        ),
    )  # fmt: skip
    buckets = _find_decided_clusters(open_buckets(paths["clusters"]), paths["dedup"])
    chosen = choose_search(deciding, n_pairs([buckets]), False)
    decided = _run_once(
        paths["dedup"], "dedup", asdict(chosen), dedup_inputs(buckets), overwrite,
        lambda: dedup_step(paths["clusters"], asked, paths["dedup"], overwrite=overwrite, client=client),
    )  # fmt: skip
    if not (fitted or stored or decided):
        logger.info("nothing was done, as %s has all results already; --overwrite makes them again", root)
    result = open_decisions(paths["dedup"])
    steps = {m["step"]: {k: m[k] for k in ("seconds", "peak_bytes")} for m in map(_read_finished, paths.values())}
    assigned = manifest.read_manifest(paths["clusters"], "assign")
    result.summary |= {"rejected": assigned["rejected"], "steps": steps} | index_facts(assigned)
    manifest.write_json(root / "summary.json", result.summary)
    return result


def _find_decided_clusters(buckets: Buckets, path: UPath) -> Buckets:
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


def _read_finished(path: UPath) -> dict[str, Any]:
    return manifest.read_manifest(path, "fit", "assign", "dedup")


def _run_once(
    path: UPath,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    overwrite: bool,
    work: Callable[[], object],
    resume: str | None = None,
) -> bool:
    """Do `work`, unless `path` already holds its finished result; return whether it was done."""
    found = manifest.peek_manifest(path)
    state, changed = manifest.status(found, name, settings, inputs)
    if state is manifest.State.DONE:
        remove_leftovers(path, resume)
        logger.info("%s is finished already: %s", name, path)
        return False
    if found and found["finished"] and not overwrite:
        raise OutputError(
            f"the step {name!r} is finished here, but with other settings or another input: {'; '.join(changed)}",
            where=str(path),
            remedy="choose another --out, or add --overwrite to do it again",
        )
    if resume:
        is_resumable(path, name, settings, inputs, resume, overwrite=overwrite)
    work()
    return True


def _refuse_foreign(root: UPath, ours: dict[str, UPath]) -> None:
    """Refuse a directory that holds anything but what a run makes."""
    known = {*ours, "summary.json", "summary.json.tmp"}  # the last is left by a run killed while it wrote
    if root.exists() and not root.is_dir():
        raise OutputError("the output exists and is a file", where=str(root), remedy="choose another --out")
    foreign = [child.name for child in root.iterdir() if child.name not in known] if root.exists() else []
    if foreign:
        raise OutputError(
            f"the output directory holds files that daskmeans did not write, such as {foreign[0]!r}",
            where=str(root),
            expected="a new or empty directory, or that of an earlier run",
            remedy="choose another --out",
        )
