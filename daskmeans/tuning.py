"""Sizes of the pieces in which work is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Sizes of work, chosen by measurement; users need not know them.

    Tests and benchmarks pass smaller ones, to reach with few rows what otherwise takes many. Decisions on rows do not
    depend on them. The centroids of a fit depend on `least_sample` and `near_groups`.

    Attributes
    ----------
    memory : int, optional
        Bytes of rows that each process keeps in memory for a fit; the rest lie on its disk. Default: as many as fit.
    blocks_each : int
        Minimum number of blocks for each thread when small chunks of an array are joined. Each block costs a task;
        with few of them, threads wait for the last.
    least_sample : int
        Minimum number of rows in the first of the growing samples of a fit. With a smaller one, fits of few clusters
        end in worse optima; with a larger one, updates take longer.
    near_groups : int
        Groups of centroids that the first updates compare a row with, where there are at least three times as many
        groups. With fewer, these updates are faster, and more rows get the label of a centroid that is not the nearest.
    rows_per_block : int
        Minimum number of rows in a row block, where all pairs are compared. More row blocks share the work among more
        cores, but each must be worth a task.
    task_pairs : int
        Minimum number of pairs of rows that a task compares: each task has an overhead, and many tasks end together.
    task_rows : int
        Rows from which a cluster is worth more than one task, where it is compared only with itself.
    scores, coordinates : int
        Scores (float32) and coordinates (float64) of dense products that a device holds at a time, 1 GiB each. More
        of them mean fewer waits, fewer of them less memory.
    rows_share : float
        Share of a device's memory for rows of a fit that stay there. The other rows are sent in every pass, and the
        rest of the memory is for the comparison.
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
