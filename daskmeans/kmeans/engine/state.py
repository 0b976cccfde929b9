"""What a fit is made of while it runs: its parameters, its checkpoints, when it stops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

# The inertia follows from sums of all rows, as long as it is more than this share of their spread: rows that lie far
# from all others leave no more of it than rounding.
CANCELLED = 1e-7


@dataclass
class FitState:
    """Where a fit stands: all that it needs to go on.

    Attributes
    ----------
    centroids : ndarray of float32, shape (k, d)
        Those of the next pass, or the result.
    before : ndarray of float32, shape (k, d)
        Where the next step comes from: the centroids of the last pass if they took a long step then, else the same as
        `centroids`.
    origin : ndarray of float32, shape (k, d)
        Those with which the phase began; they decide which groups of centroids are near to which rows.
    phase, phases : int
        On which sample the fit is, of how many; the last phase is on all rows.
    n_iter : int
        Updates on all rows.
    converged : bool
    inertia : float
        Sum of squared distances of all rows to their nearest centroid, once the fit has ended.
    history : list of float
        After each update on all rows: sum of squared distances of the rows to the means of their clusters.
    iterations : list of dict
        Facts of each update, on samples too: phase, phases, rows, iteration, inertia, shift, relabelled, compared,
        seconds.
    """

    centroids: np.ndarray
    before: np.ndarray
    origin: np.ndarray
    phase: int = 0
    phases: int = 1
    n_iter: int = 0
    converged: bool = False
    inertia: float = math.inf
    history: list[float] = field(default_factory=list)
    iterations: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints(Protocol):
    """Where fits are kept while they are made."""

    def last(self, run: int) -> FitState | None:
        """The fit from which run number `run` can go on; None if there is none."""

    def save(self, run: int, fit: FitState) -> None:
        """Called after every update; whether it is time is for the implementation to decide."""


class NoCheckpoints:
    """Checkpoints that keep nothing."""

    def last(self, run: int) -> FitState | None:
        return None

    def save(self, run: int, fit: FitState) -> None:
        pass


@dataclass(frozen=True)
class StopRule:
    """When updates end.

    Attributes
    ----------
    updates : int
        At most so many.
    shift : float
        When the squared distances of the centroids to the means of their rows sum to no more than this, times the
        mean variance of a feature.
    gain : float
        When the inertia falls by less than this share.
    """

    updates: int
    shift: float
    gain: float = -math.inf
