"""Checkpoints of a fit, from which it resumes after it was killed.

A checkpoint consists of the centroids (``.npy``), those before the last update (``.before``) and at the beginning of
the phase (``.origin``), then a small file (``.json``) with the rest and the checksums of all. It is valid only once the
last file is there, and no file of a valid checkpoint is overwritten. So the newest valid checkpoint is complete at
every moment, on object stores too.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from dataclasses import fields
from typing import Any

import numpy as np
from upath import UPath

from daskmeans.errors import DataError
from daskmeans.kmeans.engine.state import FitState
from daskmeans.runtime.client import logger
from daskmeans.storage import manifest, objectstore
from daskmeans.vectors import npy

CHECKPOINTS = "checkpoints"
# Arrays of a fit, by the suffixes of their files.
ARRAYS = {".npy": "centroids", ".before": "before", ".origin": "origin"}
# Writing takes at most 1 / SHARE of the time, however large the centroids and slow the storage.
SHARE = 20


class Checkpoints:
    """The saved states of the runs of one fit, in a directory.

    Parameters
    ----------
    path : UPath
        The directory; created with the first checkpoint.
    identity : dict
        What determines the fit; JSON types only. Checkpoints with another identity are never used.
    max_iter : int
        Updates on all rows that a run makes, at most.
    every : float
        Seconds between two checkpoints, or 0 to save every update. The first and last of each run are always saved.

    Examples
    --------
    >>> kept = Checkpoints(UPath("memory://doctest-checkpoints"), {"n_clusters": 2}, max_iter=300, every=10)
    >>> kept.save(0, FitState(*np.zeros((3, 2, 2), np.float32), n_iter=7))
    >>> kept.last(0).n_iter
    7
    """

    def __init__(self, path: UPath, identity: dict[str, Any], *, max_iter: int, every: float) -> None:
        self._path, self._max_iter, self._every = path, max_iter, every
        self._identity = _checksum(json.dumps(identity, sort_keys=True).encode())
        self._newest: dict[int, str] = {}  # by run, the name of its newest valid checkpoint
        self._run = -1
        self._due = 0.0

    def last(self, run: int) -> FitState | None:
        """Return the state that `run` resumes from; None if it starts anew. Damaged checkpoints are skipped."""
        names = sorted(self._file_names(run, ".json"), reverse=True)
        for name in names:
            try:
                fit = self._read_checkpoint(name)
            except DataError as error:
                logger.warning("%s; it is not used", error)
                continue
            self._newest[run] = name
            logger.info("%s", self._describe_place(run, fit))
            return fit
        if names:
            logger.warning("no checkpoint can be used; the fit begins anew")
        return None

    def save(self, run: int, fit: FitState) -> None:
        """Write a checkpoint of `fit` if it is time to; called after every update."""
        ended = fit.converged or fit.n_iter >= self._max_iter
        start = time.monotonic()
        if run == self._run and not ended and start < self._due:
            return
        self._write_checkpoint(run, fit)
        now = time.monotonic()
        self._run, self._due = run, now + (max(self._every, SHARE * (now - start)) if self._every else 0.0)

    def _write_checkpoint(self, run: int, fit: FitState) -> None:
        numbers = [int(name.rpartition("-")[2]) for name in self._file_names(run)]
        name = f"{_prefix(run)}{1 + max(numbers, default=0):06d}"
        arrays = {suffix: _npy_bytes(getattr(fit, field)) for suffix, field in ARRAYS.items()}
        state = {field.name: getattr(fit, field.name) for field in fields(fit) if field.name not in ARRAYS.values()}
        checksums = {suffix: _checksum(array) for suffix, array in arrays.items()}
        head = {"identity": self._identity, "arrays": checksums, "fit": state}
        self._path.mkdir(parents=True, exist_ok=True)
        for suffix, array in arrays.items():
            (self._path / f"{name}{suffix}").write_bytes(array)
            objectstore.flush_to_disk(self._path / f"{name}{suffix}")
        manifest.write_json(self._path / f"{name}.json", head | {"checksum": _json_checksum(head)})
        self._remove_others(run, {name, self._newest.get(run, name)})
        self._newest[run] = name

    def _remove_others(self, run: int, kept: set[str]) -> None:
        """Remove the checkpoints of `run` that are not in `kept`, and half-written ones."""
        whole = {name + suffix for name in kept for suffix in (".json", *ARRAYS)}
        # ".json" before the arrays: arrays without a .json count as no checkpoint, not as a damaged one.
        for path in sorted(self._path.iterdir(), key=lambda path: not path.name.endswith(".json")):
            if path.name.startswith(_prefix(run)) and path.name not in whole:
                manifest.remove_tree(path)

    def _file_names(self, run: int, suffix: str = "") -> set[str]:
        """Return the names, up to the dot, of the files of `run` that end in `suffix`."""
        found = [path.name for path in self._path.iterdir()] if self._path.exists() else []
        return {name.partition(".")[0] for name in found if name.startswith(_prefix(run)) and name.endswith(suffix)}

    def _read_checkpoint(self, name: str) -> FitState:
        path = self._path / f"{name}.json"
        try:
            head = json.loads(path.read_bytes())
            checksum = head.pop("checksum")
            arrays = {suffix: (self._path / f"{name}{suffix}").read_bytes() for suffix in ARRAYS}
            sums = {suffix: _checksum(array) for suffix, array in arrays.items()}
        except (ValueError, AttributeError, KeyError, TypeError, FileNotFoundError):
            checksum = None
        if checksum is None or checksum != _json_checksum(head) or head["arrays"] != sums:
            raise DataError("the checkpoint is damaged", where=str(path))
        if head["identity"] != self._identity:
            raise DataError("the checkpoint is of another fit", where=str(path))
        loaded = {ARRAYS[suffix]: npy.load_array(array) for suffix, array in arrays.items()}
        return FitState(**loaded, **head["fit"])

    def _describe_place(self, run: int, fit: FitState) -> str:
        """Return a log message about the state that `run` resumes from."""
        which = f"run {run + 1} " if run else ""
        if fit.converged or fit.n_iter >= self._max_iter:
            return f"{which}goes on from a checkpoint: all {fit.n_iter:,} updates are done"
        phase = f" (phase {fit.phase + 1} of {fit.phases})" if fit.phases > 1 else ""
        if fit.phase < fit.phases - 1:
            return f"{which}goes on from a checkpoint: {len(fit.iterations):,} updates on samples{phase}"
        return f"{which}goes on from a checkpoint: update {fit.n_iter:,} of at most {self._max_iter:,}{phase}"


def _prefix(run: int) -> str:
    return f"run-{run:03d}-"


def _npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json_checksum(head: dict[str, Any]) -> str:
    return _checksum(json.dumps(head, sort_keys=True).encode())
