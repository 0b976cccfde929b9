"""Reading a matrix of scores, one column at a time: plain loops, compiled for a device or run as they are.

Each thread reads one column from the top, in step with its neighbors, so their loads are coalesced. Threads share
nothing, and the results do not depend on their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def pick_largest(i: int, scores: Any, halves: Any, reach: Any, labels: Any, tops: Any, alone: Any) -> None:
    """Write the largest number of column `i` less the `halves`, its place, and whether no other is within `reach`."""
    top, second, label = scores[0, i] - halves[0], np.float32(-np.inf), 0  # float32: some devices have little float64
    for j in range(1, scores.shape[0]):
        score = scores[j, i] - halves[j]
        if score > top:
            second, top, label = top, score, j
        elif score > second:
            second = score
    labels[i], tops[i] = label, top
    alone[i] = second < top - reach[i]


def count_pairs(i: int, scores: Any, least: Any, ends: Any, counts: Any) -> None:
    """Count how many of the first numbers of column `i`, ``ends[i]`` of them, are at least ``least[i]``."""
    found = 0
    for j in range(ends[i]):
        if scores[j, i] >= least[i]:
            found += 1
    counts[i] = found


def list_pairs(i: int, scores: Any, least: Any, ends: Any, starts: Any, columns: Any, rows: Any) -> None:
    """Write the column and row of each pair that :func:`count_pairs` has counted, from ``starts[i]`` on."""
    place = starts[i]
    if place == starts[i + 1]:
        return
    for j in range(ends[i]):
        if scores[j, i] >= least[i]:
            columns[place], rows[place] = i, j
            place += 1
