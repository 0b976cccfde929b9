"""From what a fit is given to blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes
from distributed import Client

from daskmeans import forecast, runtime
from daskmeans.kmeans.block import Block, Quota
from daskmeans.kmeans.blocks import Blocks, below
from daskmeans.kmeans.inputs import as_matrix, check_rows, is_lazy, partitions, prepare


def load(
    X: Any,
    column: str | None,
    normalize: bool,
    sample_fraction: float,
    seed: int,
    client: Client | None,
    n_clusters: int = 1,
) -> Blocks:
    """Blocks of the rows of `X`: a matrix, a dask array, or a dask dataframe with a column of vectors.

    With a `sample_fraction` below 1 only rows are kept whose number's hash is below it. They are numbered anew.

    Raises
    ------
    DataError
        A row cannot be placed: NaN, infinity, null, zeros when normalising.
    MemoryForecastError
        The rows fit neither into memory nor onto the local disks, if their number is known before they are read.
    """
    lazy = is_lazy(X)
    if not lazy:
        check_rows(X := as_matrix(X), normalize)  # here, where row numbers are those of the caller
    client = runtime.current_client(client)
    parts = partitions(X, column)
    offsets: list[int] | list[None] = [None] * len(parts)
    if sample_fraction < 1.0:
        sizes = [dask.delayed(len, pure=False)(part, dask_key_name=runtime.key("count")) for part in parts]
        offsets = [0, *accumulate(runtime.compute(sizes, "count rows", client))][:-1]
    kept = max(0, runtime.memory_to_keep(client) - forecast.reading_bytes(client))
    quota = Quota(uuid4().hex, kept, n_clusters, runtime.threads_each(client))
    given = not lazy and client is None
    if isinstance(X, np.ndarray | da.Array) and not math.isnan(X.shape[0]) and (normalize or not given):
        rows, dimension = X.shape
        forecast.check_fit(rows, dimension, n_clusters, sample_fraction, client)
    calls = [(part, i, normalize, offsets[i], sample_fraction, seed, quota, given) for i, part in enumerate(parts)]

    def read(members: Sequence[int], label: str) -> list[Any]:
        mine = [calls[i] for i in members]
        if client is not None and not lazy:
            return runtime.feed(_load_block, mine, "load-block", label, client)
        task = dask.delayed(_load_block, pure=False)
        return runtime.hold([task(*call, dask_key_name=runtime.key("load-block")) for call in mine], label, client)

    return Loaded(read, len(parts), quota, client)


class Loaded(Blocks):
    """Blocks of partitions; dask makes lost ones anew, unless what they are made from was lost too."""

    def __init__(
        self, read: Callable[[Sequence[int], str], list[Any]], count: int, quota: Quota, client: Client | None
    ):
        self._read = read
        super().__init__(read(range(count), "load vectors"), quota, client)
        self._firsts = [0, *accumulate(self.lengths)][:-1]
        if cached := sum(self.map(_cached, name="count-rows")):
            runtime.logger.info("%s of vectors are in unnamed files until the fit ends", format_bytes(cached))

    def _restored(self, members: Sequence[int]) -> Sequence[int]:
        gone = [i for i in members if self._held[i].cancelled()]
        for i, future in zip(gone, self._read(gone, ""), strict=True):
            self._held[i] = future
        return members


def _load_block(
    part: Any, i: int, normalize: bool, offset: int | None, fraction: float, seed: int, quota: Quota, given: bool
) -> Block:
    X = prepare(part, normalize, where=f"partition {i}")
    if offset is not None:
        X = X[below(np.arange(offset, offset + len(X)), fraction, seed)]
    borrowed = given and np.may_share_memory(X, part)
    # A view of a column may be a view of a larger one, all of which it would keep.
    return Block(X if borrowed or X.base is None else X.copy(), quota, borrowed=borrowed)


def _cached(group: list[Block]) -> int:
    return sum(4 * block.n_rows * block.dimension for block in group if block.on_disk)
