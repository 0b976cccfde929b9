"""The number of clusters that "auto" stands for: a rule of the rows and the dimension, never of the machine."""

from __future__ import annotations

import math

from daskmeans.kmeans.values import is_auto
from daskmeans.runtime.client import logger

# Numbers that are chosen: these times powers of ten.
ROUND_STEPS = (1, 1.5, 2, 3, 5, 7)
# With fewer rows a cluster, centroids describe single rows.
FEWEST_ROWS = 20
# Bytes of float32 vectors that a cluster may have on average: dedup inside clusters holds whole ones, in copies.
CLUSTER_BYTES = 64 << 20


def propose_clusters(rows: int, dimension: int) -> int:
    """Return the number of clusters that is proposed for `rows` vectors.

    A fit compares rows with centroids, dedup inside clusters compares rows with those of their cluster: rows times k,
    and rows² over k. The two meet at the square root of the rows. It is rounded down to a round number, or up where
    clusters would otherwise be too large for a worker.

    Examples
    --------
    >>> [propose_clusters(rows, 384) for rows in (10, 1_000, 100_000, 2_000_000, 3_000_000_000)]
    [1, 30, 300, 1000, 70000]
    """
    most = max(1, rows // FEWEST_ROWS)
    least = min(most, math.ceil(4 * rows * dimension / CLUSTER_BYTES))
    chosen = max(number for number in list_round_numbers(most) if number <= max(1, math.isqrt(rows)))
    return chosen if chosen >= least else min(number for number in list_round_numbers(most) if number >= least)


def list_round_numbers(most: int) -> list[int]:
    """Return the numbers of clusters up to `most` that may be proposed, ascending.

    Examples
    --------
    >>> list_round_numbers(40)
    [1, 2, 3, 5, 7, 10, 15, 20, 30, 40]
    """
    powers = range(len(str(most)))
    return sorted({min(most, round(step * 10**power)) for power in powers for step in ROUND_STEPS})


def count_clusters(n_clusters: int | str, rows: int, dimension: int) -> int:
    """Return `n_clusters`, or the number that "auto" stands for, which is logged."""
    if not is_auto(n_clusters):
        return int(n_clusters)
    found = propose_clusters(rows, dimension)
    logger.info("n_clusters auto: %s for %s rows of %s dimensions", f"{found:,}", f"{rows:,}", f"{dimension:,}")
    return found
