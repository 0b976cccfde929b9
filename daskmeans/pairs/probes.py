"""The clusters that rows visit: their own, and the nearest others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.kernels.distances import range_slices
from daskmeans.kernels.topk import closest_points
from daskmeans.pairs.row_blocks import BlockReader, RowBlock, write_array
from daskmeans.runtime import executor
from daskmeans.vectors.files import translate_write_errors


class ProbeSurvey(NamedTuple):
    """What a look at all rows has found."""

    files: list[UPath]
    """For each block, what its rows visit, as `ProbeLists` has it."""
    pairs: int
    """How many pairs of rows meet; those that do so from both sides count twice."""
    rows: np.ndarray
    """float32, shape (m, d): the vectors of some rows."""
    near: np.ndarray
    """int32, shape (m, p): what these visit."""


def survey_probes(
    reader: BlockReader,
    blocks: Sequence[RowBlock],
    numbers: np.ndarray,
    probes: int,
    folder: UPath,
    client: Client | None,
) -> ProbeSurvey:
    """Find the clusters that all rows visit, and write them to files in `folder`.

    All rows are read twice: for the means of their clusters, and for the nearest of these.

    Parameters
    ----------
    reader : BlockReader
    blocks : sequence of RowBlock
        All rows, in the order of the clusters.
    numbers : ndarray of int64
        Rows of which the result tells more, ascending.
    probes : int
        Clusters that a row visits, its own among them. If that is not the nearest by its mean, it visits one more.
    folder : UPath
    client : distributed.Client or None
    """
    firsts = _number_first_clusters(blocks)
    chosen = [numbers[slice(*np.searchsorted(numbers, [b.first, b.first + b.rows]))] - b.first for b in blocks]
    # Dask would look through the clusters of blocks that are arguments.
    added = executor.compute(
        [delayed(partial(_sum_clusters, reader, block), pure=False)() for block in blocks], "survey", client
    )
    last = firsts[-1] + len(blocks[-1].place)
    sums, sizes = np.zeros((last, added[0][0].shape[1])), np.zeros(last, np.int64)
    for first, (totals, counts) in zip(firsts, added, strict=True):
        sums[first : first + len(totals)] += totals
        sizes[first : first + len(totals)] += counts
    means = (sums / sizes[:, None]).astype(np.float32)
    known = executor.broadcast((means, sizes), client)
    files = [folder / f"near-{i:05d}.npy" for i in range(len(blocks))]
    tasks = [
        delayed(partial(_write_probes, reader, block, first, min(probes, last), mine, file), pure=False)(known)
        for block, first, mine, file in zip(blocks, firsts, chosen, files, strict=True)
    ]
    pairs, rows, near = zip(*executor.compute(tasks, "visit", client), strict=True)
    return ProbeSurvey(files, sum(pairs), np.concatenate(rows), np.concatenate(near))


def _number_first_clusters(blocks: Sequence[RowBlock]) -> list[int]:
    """The place in order of the first cluster of each block; one block may end within a cluster and the next go on."""
    firsts = [0]
    for before, block in pairwise(blocks):
        goes_on = before.place[-1][0].centroid == block.place[0][0].centroid
        firsts.append(firsts[-1] + len(before.place) - goes_on)
    return firsts


def _sum_clusters(reader: BlockReader, block: RowBlock) -> tuple[np.ndarray, np.ndarray]:
    """Of each cluster in `block`, the sum of the rows there (float64), and their number."""
    X, counts = reader(block.place)[0], np.array([stop - start for _, start, stop in block.place])
    ends = pairwise(accumulate(counts, initial=0))
    return np.array([X[begin:end].sum(axis=0, dtype=np.float64) for begin, end in ends]), counts


def _write_probes(
    reader: BlockReader,
    block: RowBlock,
    first: int,
    probes: int,
    chosen: np.ndarray,
    file: UPath,
    known: tuple[np.ndarray, np.ndarray],
) -> tuple[int, np.ndarray, np.ndarray]:
    """Write what the rows of `block` visit; the pairs that meet, and the vectors and visits of the rows `chosen`.

    The first of its clusters is number `first`, and `known` are the means and the rows of all.
    """
    means, sizes = known
    X = reader(block.place)[0]
    near = np.empty((len(X), 1 + probes), np.int32)
    near[:, 0] = first + np.repeat(np.arange(len(block.place)), [stop - start for _, start, stop in block.place])
    for rows in range_slices(len(X), max(1, config.get_bytes("tile-bytes") // (4 * len(means)))):
        near[rows, 1:] = closest_points(X[rows], means, probes)
    near[:, 1:][near[:, 1:] == near[:, :1]] = -1
    with translate_write_errors(file.parent.parent):
        write_array(file, near)
    return int(np.where(near >= 0, sizes[near], 0).sum()), X[chosen], near[chosen]
