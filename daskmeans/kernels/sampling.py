"""Samples by hash, and how far a share that was measured on a sample may be from the true one."""

from __future__ import annotations

import math

import numpy as np

from daskmeans.kernels.hashing import hash_integers, uniform


def sample_limit(rows: int, wanted: int) -> int:
    """Hash below which a row may be among the `wanted` smallest hashes of `rows`.

    A little more than `wanted` rows lie below it, and fewer do with a probability of 10⁻⁹ (six standard deviations), so
    one pass finds the sample without knowing the hashes of all rows first.

    Examples
    --------
    >>> sample_limit(100, 100) == 2**64 - 1
    True
    """
    share = (wanted + 6 * math.sqrt(wanted)) / max(rows, 1)
    return min(2**64 - 1, int(share * 2**64))


def sampled(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows have a hash below `share`, by their numbers."""
    return uniform(hash_integers(numbers.astype(np.uint64), seed)) < share


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson, JASA 1927); (0, 1) without trials.

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    """
    if trials == 0:
        return 0.0, 1.0
    p, spread = successes / trials, z * z / trials
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / trials + spread / (4 * trials)) / (1 + spread)
    # At the ends the bound is the share itself, which rounding may miss.
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half
