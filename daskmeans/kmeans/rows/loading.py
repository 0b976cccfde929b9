"""Loading: partitions become blocks, distributed evenly over the threads of a cluster."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
from dask.utils import format_bytes
from distributed import Client

from daskmeans.kernels.backend import CPU
from daskmeans.kernels.hashing import is_sampled
from daskmeans.kmeans.memory import check_fit
from daskmeans.kmeans.rounding import measure_rounding
from daskmeans.kmeans.rows.block import Block, MemoryBudget
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.kmeans.rows.given import is_lazy
from daskmeans.kmeans.rows.inputs import as_matrix, fuse_tasks, join_chunks, list_partitions, prepare_on_device
from daskmeans.kmeans.rows.weights import check_total, check_weights, cut_weights, resolve_weights
from daskmeans.kmeans.scaling import measure_moments
from daskmeans.runtime import executor, gpus, resources
from daskmeans.runtime.client import (
    check_home,
    chosen_workers,
    client_in_use,
    logger,
    n_threads,
    task_key,
    threads_per_process,
)
from daskmeans.runtime.memory import reading_bytes
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.frames import is_cudf


@dataclass(frozen=True)
class LoadOptions:
    """Which rows of partitions become blocks, and how.

    Attributes
    ----------
    normalize : bool
    fraction : float
        Rows are taken whose numbers hash below this.
    seed : int
    budget : MemoryBudget
    given : bool
        Whether partitions are slices of a matrix that the caller keeps in this process.
    stay : bool
        Whether partitions are cuDF columns whose blocks stay on the device.
    """

    normalize: bool
    fraction: float
    seed: int
    budget: MemoryBudget
    given: bool
    stay: bool


def load_blocks(
    X: Any,
    column: str | None,
    normalize: bool,
    sample_fraction: float,
    seed: int,
    client: Client | None,
    n_clusters: int = 1,
    on_gpus: bool = False,
    stay: bool = False,
    tuning: Tuning = DEFAULT,
    sample_weight: Any = None,
) -> Blocks:
    """Load the rows of `X`, from :func:`open_rows`, as blocks.

    With a `sample_fraction` below 1, only rows whose numbers hash below it are kept, and they are renumbered. So are
    those that are left where some have a `sample_weight` of 0. With `on_gpus`, all workers compute with the rows on
    their GPUs; the rows of a cuDF dataframe may `stay` there.

    Raises
    ------
    UsageError
        The weights are not those of the rows, or all are 0.
    DataError
        A row cannot be placed: NaN, infinity, null, zeros when normalising. Its weight is negative or NaN.
    MemoryForecastError
        The rows fit neither into memory nor onto the local disks. Checked if their number is known in advance.
    """
    lazy, given_as = is_lazy(X), X
    weights = resolve_weights(sample_weight, X, column)
    X = X if lazy else as_matrix(X, column)
    client = client_in_use(client)
    if isinstance(X, da.Array):
        check_home([X], client)  # an optimized graph has only their keys
        (X,) = dask.optimize(join_chunks(X, tuning.blocks_each * n_threads(client)))
    parts = list_partitions(X, column)
    if lazy:
        check_home(parts, client)
    lengths: list[int] | None = None
    counted = not lazy or (isinstance(X, da.Array) and not math.isnan(X.shape[0]))
    if counted:
        lengths = list(X.chunks[0] if lazy else map(len, parts))
    elif sample_fraction < 1.0 or isinstance(weights, np.ndarray):
        sizes = [dask.delayed(len, pure=False)(part, dask_key_name=task_key("count")) for part in parts]
        lengths = executor.compute(sizes, "count rows", client)
    firsts = [0] * len(parts) if lengths is None else _start_offsets(lengths)
    memory = resources.memory_to_keep(client) if tuning.memory is None else tuning.memory
    kept = max(0, memory - reading_bytes(client))
    budget = MemoryBudget(uuid4().hex, kept, n_clusters, threads_per_process(client), on_gpus)
    given = not lazy and client is None
    if counted and (normalize or not given):
        rows, dimension = X.shape
        check_fit(rows, dimension, n_clusters, sample_fraction, client, memory)
    stay = stay and on_gpus and isinstance(X, (dd.DataFrame, dd.Series)) and is_cudf(X._meta)
    options = LoadOptions(normalize, sample_fraction, seed, budget, given, stay)
    places = ["" if counted else f"partition {i}" for i in range(len(parts))]
    cut = cut_weights(weights, parts, lengths)
    calls = list(zip(parts, cut, places, firsts, [options] * len(parts), strict=True))

    blocks = _LoadedBlocks(partial(_read_blocks, sent=not lazy, client=client), calls, budget, client)
    if not lazy and (rounding := measure_rounding(given_as, column)):
        blocks.roundings.append(rounding)
    blocks.complete = lengths is not None and blocks.n_rows == sum(lengths)
    if weights is not None:
        check_total(blocks.weighting.total if blocks.weighting else blocks.n_rows)
    return blocks


def _read_blocks(calls: Sequence[tuple[Any, ...]], label: str, *, sent: bool, client: Client | None) -> list[Any]:
    """Return blocks or their futures, by :func:`_load_block`; with `sent`, partitions are sent to workers first."""
    if client is not None and sent:
        return executor.scatter_map(_load_block, calls, "load-block", label, client)
    task = dask.delayed(_load_block, pure=False)
    weights: Sequence[Any] = [call[1] for call in calls]
    if any(isinstance(each, np.ndarray) for each in weights):
        weights = executor.scatter_large(weights, client)
    tasks = [
        task(part, mine, *others, dask_key_name=task_key("load-block"))
        for (part, _, *others), mine in zip(calls, weights, strict=True)
    ]
    return executor.persist(fuse_tasks(tasks, _deal_workers(len(tasks), client)), label, client)


class _LoadedBlocks(Blocks):
    """Blocks of partitions; dask recomputes lost ones, unless their input was lost too and has to be read again."""

    def __init__(
        self,
        read: Callable[[Sequence[tuple[Any, ...]], str], list[Any]],
        calls: Sequence[tuple[Any, ...]],
        budget: MemoryBudget,
        client: Client | None,
    ):
        self._read, self._calls = read, calls
        super().__init__(read(calls, "load vectors"), budget, client)
        with self._release_on_error():
            if client is not None:
                self._balance()
            self._firsts = _start_offsets(self.lengths)
            spilled = sum(self.map(_spilled_bytes, name="count-rows"))
        if spilled:
            logger.info("%s of vectors are in unnamed files until the fit ends", format_bytes(spilled))

    def _balance(self) -> None:
        """Move blocks away from workers that have more rows per thread than others, which would wait for them."""
        threads = chosen_workers(self.client)
        held: dict[str, list[int]] = {worker: [] for worker in threads}
        for group in self._groups:
            held.setdefault(group.worker, []).extend(group.members)
        moves = _plan_moves({worker: held[worker] for worker in threads}, threads, self.lengths)
        if moves:
            calls = [(self._held[i],) for i in moves]
            futures = executor.submit_to_workers(_pass_through, calls, list(moves.values()), "move-block", self.client)
            executor.wait(futures, "", self.client)
            for i, future in zip(moves, futures, strict=True):
                self._held[i] = future
            self._groups = self._group_by_worker([i for i, rows in enumerate(self.lengths) if rows])

    def _restore_lost(self, members: Sequence[int]) -> Sequence[int]:
        gone = [i for i in members if self._held[i].cancelled()]
        for i, future in zip(gone, self._read([self._calls[i] for i in gone], ""), strict=True):
            self._held[i] = future
        return members


# --- on the workers ---


def _load_block(part: Any, weights: Any, where: str, first: int, options: LoadOptions) -> Block:
    """Load the block of a partition; errors number rows within it, or within the whole input if `where` is ""."""
    home = gpus.backend() if options.stay else CPU
    with home.turn():
        X = prepare_on_device(home, part, options.normalize, where, 0 if where else first)
        if weights is not None:
            weights = check_weights(weights, len(X), where, 0 if where else first)
        chosen = _choose_rows(len(X), weights, first, options)
        if chosen is not None:
            X, weights = home.take(X, chosen), None if weights is None else weights[chosen]
    borrowed = options.given and np.may_share_memory(X, part)
    rows = X if borrowed else home.copy_view(X)
    block = Block(rows, options.budget, weights=weights, borrowed=borrowed, home=home)
    if not is_cudf(part):
        block.rounding = measure_rounding(part)
        block.moments = measure_moments(part, X.shape[1]) if options.normalize else None
    return block


def _choose_rows(count: int, weights: np.ndarray | None, first: int, options: LoadOptions) -> np.ndarray | None:
    """Return which of `count` rows are taken if the number of the first is `first`; None: all of them."""
    chosen = None if weights is None or weights.all() else weights > 0.0
    if options.fraction < 1.0:
        sampled = is_sampled(np.arange(first, first + count), options.fraction, options.seed)
        chosen = sampled if chosen is None else sampled & chosen
    return chosen


def _pass_through(block: Block) -> Block:
    """Return `block`, which dask has moved to where this runs."""
    return block


def _spilled_bytes(group: list[Block]) -> int:
    return sum(4 * block.n_rows * block.dimension for block in group if block.on_disk)


# --- distribution over workers ---


def _deal_workers(count: int, client: Client | None) -> list[AbstractContextManager[Any]]:
    """Return contexts in which to create `count` tasks, so that all threads of a cluster get equally many.

    Left alone, dask may give one worker three times as many blocks as another, and spill them to disk there. Other
    workers may run the tasks too, so that a lost worker does not block them; :func:`_plan_moves` corrects for that.
    """
    if client is None or not client.nthreads() or dask.get_annotations().get("workers"):  # as the caller says
        return [contextlib.nullcontext()] * count
    slots = [worker for worker, threads in sorted(client.nthreads().items()) for _ in range(threads)]
    return [dask.annotate(workers=[slots[i % len(slots)]], allow_other_workers=True) for i in range(count)]


def _plan_moves(held: dict[str, list[int]], threads: dict[str, int], lengths: Sequence[int]) -> dict[int, str]:
    """Return which blocks to move to which workers, so that rows per thread are as even as possible.

    Examples
    --------
    >>> _plan_moves({"a": [0, 1, 2, 3], "b": [4], "c": []}, {"a": 1, "b": 1, "c": 1}, [10, 10, 10, 10, 10])
    {0: 'c', 1: 'b'}
    """
    held = {worker: list(members) for worker, members in held.items()}
    rows = {worker: sum(lengths[i] for i in members) for worker, members in held.items()}
    moves: dict[int, str] = {}
    while held:
        to, of = (choose(held, key=lambda w: (rows[w] / threads[w], w)) for choose in (min, max))
        room = rows[of] * threads[to] / threads[of] - rows[to]
        fitting = [i for i in held[of] if 0 < lengths[i] < room]
        if not fitting:
            return moves
        i = max(fitting, key=lengths.__getitem__)
        held[of].remove(i)
        held[to].append(i)
        rows[of], rows[to], moves[i] = rows[of] - lengths[i], rows[to] + lengths[i], to
    return moves  # no worker is left


def _start_offsets(lengths: Iterable[int]) -> list[int]:
    """Return where each of several consecutive runs of these lengths begins."""
    return [0, *accumulate(lengths)][:-1]
