"""A fitted model on disk: ``centroids.npy`` and ``model.json``. Reading them never executes code."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from upath import UPath

from daskmeans.errors import DataError, NotFoundError, UsageError
from daskmeans.storage import manifest
from daskmeans.vectors import npy

CENTROIDS = "centroids.npy"
MODEL = "model.json"
# Suffixes of files that run code when they are loaded, with the Python that makes an array of their centroids.
PICKLES = {
    ".pkl": "pickle.load(open({name!r}, 'rb')).cluster_centers_",
    ".pickle": "pickle.load(open({name!r}, 'rb')).cluster_centers_",
    ".joblib": "joblib.load({name!r}).cluster_centers_",
    ".pt": "torch.load({name!r}).numpy()",
    ".pth": "torch.load({name!r}).numpy()",
}


def write_model(path: UPath, centroids: np.ndarray, facts: dict[str, Any]) -> dict[str, Any]:
    """Write both files into the directory `path`; return what the manifest records about them."""
    with (path / CENTROIDS).open("wb") as file:
        np.save(file, centroids, allow_pickle=False)
    manifest.write_json(path / MODEL, facts)
    return manifest.file_checksums(path, CENTROIDS, MODEL)


def read_model(path: UPath) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the centroids (float32, shape (k, d)) and the facts of the finished model in the directory `path`.

    Raises
    ------
    UsageError
        `path` is a pickle.
    NotFoundError, OutputError
        `path` is not a model directory, or an unfinished one.
    UsageError
        It is a pickle.
    DataError
        A file of the model is damaged.
    """
    refuse_pickle(path)
    made = manifest.read_manifest(path, "fit")
    facts = json.loads(manifest.read_verified(path, MODEL, made))
    centroids = _parse_matrix(manifest.read_verified(path, CENTROIDS, made), path / CENTROIDS)
    if centroids.shape != (facts["n_clusters"], facts["n_features"]):
        raise DataError(
            f"the centroids have shape {centroids.shape}",
            where=str(path / CENTROIDS),
            expected=f"({facts['n_clusters']}, {facts['n_features']}), as {MODEL} says",
            remedy="fit the model again",
        )
    return centroids, facts


def read_centroids(path: UPath) -> np.ndarray:
    """Return the array in the ``.npy`` file `path`, as float32; a pickle is refused."""
    refuse_pickle(path)
    try:
        return _parse_matrix(path.read_bytes(), path)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError("no such file", where=str(path), expected="a .npy file of centroids") from None
    except OSError as error:
        raise DataError(f"the file cannot be read ({error})", where=str(path), remedy="fit the model again") from None


def refuse_pickle(path: UPath) -> None:
    """Raise UsageError if the name of `path` is that of a pickle, in which other libraries store models.

    Examples
    --------
    >>> refuse_pickle(UPath("/models/km.joblib"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    daskmeans.errors.UsageError: /models/km.joblib: a pickle can run any code when it is loaded, so it is not loaded
      ...
    """
    if (loading := PICKLES.get(path.suffix.lower())) is None:
        return
    package, array = loading.partition(".")[0], loading.format(name=path.name)
    raise UsageError(
        "a pickle can run any code when it is loaded, so it is not loaded",
        where=str(path),
        expected="a model directory, or centroids in a .npy file for --init",
        remedy=f"python -c \"import {package}, numpy; numpy.save('centroids.npy', {array})\" where you trust the file, "
        f"then daskmeans fit INPUT --model MODEL --n-clusters K --init centroids.npy --max-iter 0",
    )


def _parse_matrix(content: bytes, path: UPath) -> np.ndarray:
    try:
        return npy.load_array(content).astype(np.float32)
    except Exception as error:  # numpy parses headers with Python's own parser, which raises many kinds
        raise DataError(f"not a readable .npy file ({error})", where=str(path), remedy="fit the model again") from None
