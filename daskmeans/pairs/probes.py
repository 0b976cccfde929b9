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
from daskmeans.kernels.distances import tiles
from daskmeans.kernels.topk import closest
from daskmeans.pairs.row_blocks import Band, Reader, write_array
from daskmeans.runtime import executor
from daskmeans.vectors.files import reached


class Survey(NamedTuple):
    """What a look at all rows has found."""

    files: list[UPath]
    """For each band, what its rows visit, as `bands.Visits` has it."""
    pairs: int
    """How many pairs of rows meet; those that do so from both sides count twice."""
    rows: np.ndarray
    """float32, shape (m, d): the vectors of some rows."""
    near: np.ndarray
    """int32, shape (m, p): what these visit."""


def survey(
    reader: Reader, bands: Sequence[Band], numbers: np.ndarray, probes: int, folder: UPath, client: Client | None
) -> Survey:
    """Find the clusters that all rows visit, and write them to files in `folder`.

    All rows are read twice: for the means of their clusters, and for the nearest of these.

    Parameters
    ----------
    reader : Reader
    bands : sequence of Band
        All rows, in the order of the clusters.
    numbers : ndarray of int64
        Rows of which the result tells more, ascending.
    probes : int
        Clusters that a row visits, its own among them. If that is not the nearest by its mean, it visits one more.
    folder : UPath
    client : distributed.Client or None
    """
    firsts = _first_clusters(bands)
    chosen = [numbers[slice(*np.searchsorted(numbers, [b.first, b.first + b.rows]))] - b.first for b in bands]
    # Dask would look through the clusters of bands that are arguments.
    added = executor.compute([delayed(partial(_sums, reader, band), pure=False)() for band in bands], "survey", client)
    last = firsts[-1] + len(bands[-1].place)
    sums, sizes = np.zeros((last, added[0][0].shape[1])), np.zeros(last, np.int64)
    for first, (totals, counts) in zip(firsts, added, strict=True):
        sums[first : first + len(totals)] += totals
        sizes[first : first + len(totals)] += counts
    means = (sums / sizes[:, None]).astype(np.float32)
    known = executor.share((means, sizes), client)
    files = [folder / f"near-{i:05d}.npy" for i in range(len(bands))]
    tasks = [
        delayed(partial(_visit, reader, band, first, min(probes, last), mine, file), pure=False)(known)
        for band, first, mine, file in zip(bands, firsts, chosen, files, strict=True)
    ]
    pairs, rows, near = zip(*executor.compute(tasks, "visit", client), strict=True)
    return Survey(files, sum(pairs), np.concatenate(rows), np.concatenate(near))


def _first_clusters(bands: Sequence[Band]) -> list[int]:
    """The place in order of the first cluster of each band; one band may end within a cluster and the next go on."""
    firsts = [0]
    for before, band in pairwise(bands):
        goes_on = before.place[-1][0].centroid == band.place[0][0].centroid
        firsts.append(firsts[-1] + len(before.place) - goes_on)
    return firsts


def _sums(reader: Reader, band: Band) -> tuple[np.ndarray, np.ndarray]:
    """Of each cluster in `band`, the sum of the rows there (float64), and their number."""
    X, counts = reader(band.place)[0], np.array([stop - start for _, start, stop in band.place])
    ends = pairwise(accumulate(counts, initial=0))
    return np.array([X[begin:end].sum(axis=0, dtype=np.float64) for begin, end in ends]), counts


def _visit(
    reader: Reader,
    band: Band,
    first: int,
    probes: int,
    chosen: np.ndarray,
    file: UPath,
    known: tuple[np.ndarray, np.ndarray],
) -> tuple[int, np.ndarray, np.ndarray]:
    """Write what the rows of `band` visit; the pairs that meet, and the vectors and visits of the rows `chosen`.

    The first of its clusters is number `first`, and `known` are the means and the rows of all.
    """
    means, sizes = known
    X = reader(band.place)[0]
    near = np.empty((len(X), 1 + probes), np.int32)
    near[:, 0] = first + np.repeat(np.arange(len(band.place)), [stop - start for _, start, stop in band.place])
    for rows in tiles(len(X), max(1, config.get_bytes("tile-bytes") // (4 * len(means)))):
        near[rows, 1:] = closest(X[rows], means, probes)
    near[:, 1:][near[:, 1:] == near[:, :1]] = -1
    with reached(file.parent.parent):
        write_array(file, near)
    return int(np.where(near >= 0, sizes[near], 0).sum()), X[chosen], near[chosen]
