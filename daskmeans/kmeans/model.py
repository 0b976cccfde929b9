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
# Ends of the names of pickles.
PICKLES = (".pkl", ".pickle", ".joblib")


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
    """Return the array in the ``.npy`` file `path`, as float32."""
    refuse_pickle(path)
    try:
        return _parse_matrix(path.read_bytes(), path)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError("no such file", where=str(path), expected="a .npy file of centroids") from None
    except OSError as error:
        raise DataError(f"the file cannot be read ({error})", where=str(path), remedy="fit the model again") from None


def refuse_pickle(path: UPath) -> None:
    """Refuse a pickle, by its name: reading one runs whatever code it holds."""
    if path.name.lower().endswith(PICKLES):
        raise UsageError(
            "pickles are not read, as that would run code in them",
            where=str(path),
            expected="the directory of a model, or a .npy file of centroids",
            remedy='in Python, load a pickle that you trust, then km.save("DIRECTORY"), '
            'or np.save("centroids.npy", km.cluster_centers_) for --init',
        )


def _parse_matrix(content: bytes, path: UPath) -> np.ndarray:
    try:
        return npy.load_array(content).astype(np.float32)
    except Exception as error:  # numpy parses headers with Python's own parser, which raises many kinds
        raise DataError(f"not a readable .npy file ({error})", where=str(path), remedy="fit the model again") from None
