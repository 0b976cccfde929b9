"""The step `fit`: fit a model on the embeddings in files, or resume such a fit."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.errors import DaskmeansError, UsageError
from daskmeans.kmeans.engine.checkpoints import CHECKPOINTS, Checkpoints
from daskmeans.kmeans.engine.seeding import is_path, resolve_init
from daskmeans.kmeans.estimator import KMeans
from daskmeans.kmeans.memory import check_fit
from daskmeans.kmeans.model import CENTROIDS, MODEL
from daskmeans.kmeans.params import seed_from
from daskmeans.kmeans.values import check_flag, to_python
from daskmeans.runtime.client import current_client
from daskmeans.storage import manifest
from daskmeans.storage.step import open_step
from daskmeans.vectors.files import find_directories, refuse_overlap
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.options import DEFAULTS, ReadOptions
from daskmeans.vectors.rejects import REJECTS_PARTS, gather_rejects
from daskmeans.vectors.source import Source

# One copy of the centroids in the output, and three in each of two checkpoints.
CENTROID_COPIES = 7


def resolve_params(model: KMeans, reading: ReadOptions, out: UPath, path: UPath, overwrite: bool) -> KMeans:
    """A copy of `model` whose `init` is read from its path and whose seed is drawn, to compare with an earlier run.

    `out` is the directory that will be written, and `path` that of the model in it.
    """
    check_flag("overwrite", overwrite)
    model.check_params()  # before any file is read
    init = resolve_init(model.init, model.n_clusters, reading.storage_options)
    if isinstance(init, np.ndarray) and is_path(model.init):  # it would be gone when the fit resumes
        refuse_overlap(out, [reading.path(model.init)])
    state = _read_earlier_seed(path, overwrite) if model.random_state is None else model.random_state
    return type(model)(**model.get_params() | {"init": init, "random_state": seed_from(state)})


def adopt_fit(model: KMeans, fitted: KMeans) -> None:
    """Replace the fitted attributes of `model` by those of `fitted`; its parameters stay."""
    found = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    kept = {name: value for name, value in vars(model).items() if not name.endswith("_")}
    vars(model).clear()
    vars(model).update(kept | found)


def _read_earlier_seed(path: UPath, overwrite: bool) -> int | None:
    """The seed of the fit in `path`; None if there is no fit, or it is to be replaced."""
    found = manifest.peek_manifest(path)
    if found is None or found["step"] != "fit" or (found["finished"] and overwrite):
        return None
    return found["settings"].get("random_state")  # type: ignore[no-any-return]


def refuse_misfit(source: Source, model: KMeans) -> None:
    """Refuse a model that cannot be fitted on the rows of `source`."""
    if source.rows < model.n_clusters:
        raise UsageError(
            f"the input has {source.rows:,} rows, fewer than n_clusters = {model.n_clusters:,}",
            where="--n-clusters",
            remedy=f"set --n-clusters to {source.rows:,} or less",
        )
    if isinstance(model.init, np.ndarray) and model.init.shape[1] != source.dimension:
        raise UsageError(
            f"the initial centroids have {model.init.shape[1]} dimensions",
            where="--init",
            expected=f"{source.dimension}, as the vectors in {source.files[0]} have",
            remedy="give centroids, or a model, of this dimension",
        )


def fit_step(
    source: Source, path: UPath, model: KMeans, reading: ReadOptions, overwrite: bool, client: Client | None
) -> None:
    """Fit `model` on `source`, from a checkpoint if there is one, and write it into the directory `path`."""
    check_fit(source.rows, source.dimension, model.n_clusters, model.sample_fraction, client)
    settings, made_from = fit_settings(model, reading), source.identity()
    need = CENTROID_COPIES * 4 * model.n_clusters * source.dimension
    with open_step(
        path, "fit", settings, made_from, overwrite=overwrite, resume=CHECKPOINTS, need=need, client=client
    ) as step:
        vectors = source.without_metadata()
        checkpoints = Checkpoints(
            path / CHECKPOINTS,
            {"settings": settings, "inputs": made_from, "daskmeans": manifest.library_versions()["daskmeans"]},
            max_iter=model.max_iter,
            every=config.get("checkpoint-seconds"),
        )
        model.fit(
            vectors.with_rejects(path / REJECTS_PARTS).frame(),
            column=source.embedding_field,
            client=client,
            checkpoints=checkpoints,
        )
        # Lazy, and from a frame that does not list the rejects a second time.
        model.labels_ = model.predict(vectors.frame(), column=source.embedding_field)
        try:
            source.check_unchanged()
        except DaskmeansError:  # a fit on rows that have changed cannot resume
            manifest.remove_tree(path / CHECKPOINTS)
            raise
        step.facts |= model.write(path, source.fingerprint())
        outputs = [{"path": CENTROIDS, "rows": len(model.cluster_centers_)}, {"path": MODEL}]
        step.facts |= {"rows": source.rows, "rejected": gather_rejects(path, "fit", source.rows), "outputs": outputs}


def fit_settings(model: KMeans, reading: ReadOptions) -> dict[str, Any]:
    """Everything that determines a fit, besides its input."""
    params = {name: to_python(value) for name, value in model.get_params().items()}
    del params["max_samples_per_batch"]  # affects memory only, and may be why an earlier fit was killed
    if isinstance(model.init, np.ndarray):
        params["init"] = f"centroids {hashlib.sha256(model.init.tobytes()).hexdigest()}"
    return params | {"embedding_field": reading.embedding_field, "on_bad_row": reading.on_bad_row}


def fit(
    inputs: Any,
    out: str | UPath,
    model: KMeans,
    reading: ReadOptions = DEFAULTS,
    *,
    overwrite: bool = False,
    client: Client | None = None,
) -> KMeans:
    """Fit `model` on files of embeddings and write it into the directory `out`.

    An interrupted fit resumes from its last checkpoint when it is called again. Its result is bitwise identical to that
    of an uninterrupted fit.

    Parameters
    ----------
    inputs : path or list of paths
        Files, directories or globs: Parquet, JSONL or ``.npy``.
    out : str or UPath
    model : KMeans
    reading : ReadOptions, optional
    overwrite : bool, default False
        Replace a finished output, or an unfinished one with other settings or another input. An unfinished fit with the
        same settings and input resumes.
    client : distributed.Client, optional

    Returns
    -------
    KMeans
        `model`, fitted; its parameters are unchanged. A seed that was drawn is ``seed_``.

    Raises
    ------
    UsageError, DataError, MemoryForecastError
    OutputError
        Among others: `out` holds an unfinished fit with other settings or on another input.
    """
    client = current_client(client)
    path = reading.path(out)
    resolved = resolve_params(model, reading, path, path, overwrite)
    source = reading.open(inputs, client, allow_zero=not model.normalize)
    refuse_overlap(path, [*find_directories(inputs, reading.storage_options), *source.files])
    refuse_misfit(source, resolved)
    if reading.on_bad_row == "skip":  # rows with the id of another one are bad too
        source = check_ids(source, reading.on_bad_row, client)
    fit_step(source, path, resolved, reading, overwrite, client)
    adopt_fit(model, resolved)
    return model
