"""The state of a running fit, the protocol of its checkpoints, and its stopping rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

# The inertia is computed from sums of all rows as long as it is more than this share of their total sum of squares.
# Below that, as with a few rows far from all others, the difference is mostly rounding error.
CANCELLED = 1e-7


@dataclass
class FitState:
    """All that a fit needs to go on.

    Attributes
    ----------
    centroids : ndarray of float32, shape (k, d)
        Those of the next pass, or the result.
    before : ndarray of float32, shape (k, d)
        Start of the previous step, for momentum: the centroids of the last pass if their step was overrelaxed, else the
        same as `centroids`.
    origin : ndarray of float32, shape (k, d)
        Those at the beginning of the phase. They decide which groups of centroids are near which rows.
    phase, phases : int
        Number of the phase, and how many there are. Each is on a larger sample; the last is on all rows.
    n_iter : int
        Updates on all rows.
    converged : bool
    inertia : float
        Sum of squared distances of all rows to their nearest centroid, once the fit has ended.
    occupied : int
        Clusters that have rows, once the fit has ended.
    history : list of float
        After each update on all rows: sum of squared distances of the rows to the means of their clusters.
    iterations : list of dict
        Facts about each update, including those on samples: phase, phases, rows, iteration, inertia, shift, relabelled,
        compared, seconds.
    """

    centroids: np.ndarray
    before: np.ndarray
    origin: np.ndarray
    phase: int = 0
    phases: int = 1
    n_iter: int = 0
    converged: bool = False
    inertia: float = math.inf
    occupied: int = 0
    history: list[float] = field(default_factory=list)
    iterations: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints(Protocol):
    """Storage for the state of fits while they run."""

    def last(self, run: int) -> FitState | None:
        """Return the last saved state of run number `run`; None if there is none."""

    def save(self, run: int, fit: FitState) -> None:
        """Save `fit`. Called after every update; an implementation may skip calls."""


class NoCheckpoints:
    """Checkpoints that keep nothing."""

    def last(self, run: int) -> FitState | None:
        return None

    def save(self, run: int, fit: FitState) -> None:
        pass


@dataclass(frozen=True)
class StopRule:
    """When updates stop.

    Attributes
    ----------
    updates : int
        After this many updates.
    shift : float
        When the squared distances of the centroids to the means of their rows sum to at most this, times the mean
        variance of a feature.
    gain : float
        When an update lowers the inertia by less than this share.
    """

    updates: int
    shift: float
    gain: float = -math.inf
