"""Find the clusters that rows probe: their own, and the nearest others."""

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
    """Result of :func:`survey_probes`."""

    files: list[UPath]
    """For each block, the file with its `ProbeLists.near`."""
    pairs: int
    """How many pairs of rows meet; a pair that meets from both sides counts twice."""
    rows: np.ndarray
    """float32, shape (m, d): the vectors of the chosen rows."""
    near: np.ndarray
    """int32, shape (m, p): the clusters that the chosen rows probe."""


def survey_probes(
    reader: BlockReader,
    blocks: Sequence[RowBlock],
    numbers: np.ndarray,
    probes: int,
    folder: UPath,
    client: Client | None,
) -> ProbeSurvey:
    """Find the clusters that each row probes, and write them to files in `folder`.

    All rows are read twice: for the means of their clusters, and to find the nearest of these.

    Parameters
    ----------
    reader : BlockReader
    blocks : sequence of RowBlock
        All rows, in the order of the clusters.
    numbers : ndarray of int64
        Rows whose vectors and clusters are returned too, ascending.
    probes : int
        How many clusters a row probes: those with the nearest means, and its own if it is not among them.
    folder : UPath
    client : distributed.Client or None
    """
    firsts = _number_first_clusters(blocks)
    chosen = [numbers[slice(*np.searchsorted(numbers, [b.first, b.first + b.rows]))] - b.first for b in blocks]
    # Bound, not passed as arguments: dask would traverse the clusters of the blocks.
    added = executor.compute(
        [delayed(partial(_sum_clusters, reader, block), pure=False)() for block in blocks], "average clusters", client
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
    pairs, rows, near = zip(*executor.compute(tasks, "find near clusters", client), strict=True)
    return ProbeSurvey(files, sum(pairs), np.concatenate(rows), np.concatenate(near))


def _number_first_clusters(blocks: Sequence[RowBlock]) -> list[int]:
    """Number, among all clusters, of the first one in each block; a block may end within a cluster."""
    firsts = [0]
    for before, block in pairwise(blocks):
        goes_on = before.place[-1][0].centroid == block.place[0][0].centroid
        firsts.append(firsts[-1] + len(before.place) - goes_on)
    return firsts


def _sum_clusters(reader: BlockReader, block: RowBlock) -> tuple[np.ndarray, np.ndarray]:
    """For each cluster in `block`: the sum of its rows there (float64), and their number."""
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
    """Write the clusters that the rows of `block` probe.

    Returns the number of pairs that meet, and the vectors and clusters of the rows `chosen`. `first` is the number of
    the block's first cluster; `known` has the means and the sizes of all clusters.
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
