"""How large the pieces are in which work is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Sizes of work that were chosen by measuring; users need not know them.

    Tests and benchmarks hand in others, to reach with few rows what otherwise takes many. What is decided on rows does
    not depend on them; the centroids of a fit do on `least_sample` and `near_groups`.

    Attributes
    ----------
    memory : int, optional
        Bytes of rows that each process keeps in memory for a fit; others lie on its disk. Default: what it can hold.
    blocks_each : int
        Blocks for each thread, at least, to which small chunks of an array are joined: each costs a task, and with few
        of them threads wait for the last.
    least_sample : int
        Rows of the first sample that a fit grows through, at least: few clusters end in worse optima after smaller
        ones, and updates on larger ones take longer.
    near_groups : int
        Groups of centroids with which the first updates compare a row, where there are at least three times as many:
        with fewer of them these are faster, and more rows get the label of another centroid than the nearest.
    rows_per_block : int
        Rows of a band at least, where all pairs are compared: more bands share the work among more cores, and each of
        them is to have something to do.
    task_pairs : int
        Pairs of rows that a task compares, at least: each costs some time beside, and many of them end together.
    task_rows : int
        Rows of a cluster that are worth more than one task, where it is compared with itself only.
    scores, coordinates : int
        Of dense products, scores (float32) and coordinates (float64) that a device has at a time, 1 GiB each: with
        more of them it waits less, and with fewer it takes less memory.
    rows_share : float
        Share of a device's memory for rows of a fit that stay there: others are sent in every pass, and what is left
        is for the comparison.
    """

    memory: int | None = None
    blocks_each: int = 8
    least_sample: int = 1 << 15
    near_groups: int = 16
    rows_per_block: int = 4096
    task_pairs: int = 10**8
    task_rows: int = 10_000
    scores: int = 1 << 28
    coordinates: int = 1 << 27
    rows_share: float = 0.6


DEFAULT = Tuning()
