"""The rows of one input, as float32 matrices that stay where they were loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self

import dask.array as da
import numpy as np
from distributed import Client, Future

from daskmeans.errors import DataError
from daskmeans.kernels.sums import as_number
from daskmeans.kmeans.rounding import Rounding
from daskmeans.kmeans.rows.block import Block, MemoryBudget
from daskmeans.kmeans.rows.weights import LEAST_RATIO, Weighting
from daskmeans.kmeans.rows.worker import (
    BlockGroup,
    GroupCall,
    LostBlocks,
    bundle_groups,
    call_on_group,
    choose_rows,
    copy_rows,
    deal_out,
    read_facts,
    select_by_hash,
    take_rows,
)
from daskmeans.kmeans.scaling import Moments
from daskmeans.runtime import executor
from daskmeans.runtime.client import n_threads, task_key


class Blocks:
    """Rows in blocks that stay on the workers (or in this process); a row is identified by its number in the input.

    A block that is lost with its worker is loaded again, without the state that the engine kept beside it. A ``with``
    statement releases all blocks at its end, however it ends.

    Attributes
    ----------
    client : Client or None
    lengths : list of int
        Rows of each block.
    n_rows, dimension : int
    roundings : list of Rounding
        Rounding error of each block whose rows came in a wider type than float32.
    moments : list of Moments
        Of each block whose rows were scaled to unit length and have few dimensions.
    complete : bool
        Whether these are known to be all rows of the input.
    """

    def __init__(self, held: list[Any], budget: MemoryBudget, client: Client | None) -> None:
        self.client: Any = client  # None: everything is in this process
        self._budget = budget
        self._held = held  # blocks, or their futures
        self.lengths, self._firsts = [0] * len(held), [0] * len(held)
        self.dimension = 0
        self.roundings: list[Rounding] = []
        self.moments: list[Moments] = []
        self.complete = False
        self._weights, self._single = [0] * len(held), True
        with self._release_on_error():
            self._groups = self._measure_groups(range(len(held)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextlib.contextmanager
    def _release_on_error(self) -> Iterator[None]:
        """Release the blocks if the ``with`` block fails: a traceback of Ctrl-C that is kept would keep them too."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    @property
    def on_gpus(self) -> bool:
        """Whether all processes compute with the rows on their GPUs."""
        return self._budget.on_gpus

    @property
    def n_rows(self) -> int:
        """Number of rows of all blocks."""
        return sum(self.lengths)

    @property
    def weighting(self) -> Weighting | None:
        """What the weights of the rows have in common; None if each row counts once."""
        return None if self._single else Weighting.of(sum(self._weights), self.n_rows)

    def map(self, function: Callable[..., Any], *args: Any, name: str) -> list[Any]:
        """Call ``function(group, *args)`` on lists of blocks, with one task for each thread; return the results.

        The groups depend on where blocks happen to lie. So callers must combine the results in a way that does not
        depend on the grouping. Pass arrays in `args` directly; `map` sends large ones to each worker once.
        """
        answers = self._run_groups(self._groups, function, args, name)
        self._groups = [group for group, _ in answers]
        return [answer for _, answer in answers]

    def subset(self, count: int, seed: int) -> Blocks:
        """Return about `count` rows as blocks of their own: those whose numbers hash below ``count / n_rows``.

        With weights, that limit is in proportion to the weight of a row. The rows of a smaller `count` are among those
        of a larger one. They keep their numbers and their workers. Release the subset before these blocks.
        """
        return _Subset(self, min(1.0, count / self.n_rows), seed)

    def sample_rows(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the `count` rows (all if there are fewer) whose numbers have the smallest hashes under `seed`.

        With weights, rows are sampled in proportion to their weight.

        Returns
        -------
        numbers : ndarray of int64, shape (count,)
            Row numbers, ascending.
        X : ndarray of float32, shape (count, d)
        counts : ndarray of float64, shape (count,)
            How often each of these rows counts among them: as often as the others, unless its weight is very large.
        """
        count, weighting = min(count, self.n_rows), self.weighting
        share, growth = 1.2 * count / self.n_rows if count < self.n_rows else np.inf, 2.0
        while True:
            found = self.map(select_by_hash, share, seed, weighting, name="kmeans-sample")
            keys, numbers, ratios = (np.concatenate(parts) for parts in zip(*found, strict=True))
            if len(numbers) >= count:
                break
            share, growth = share * growth, growth**2  # weights may differ by many orders of magnitude
        if weighting is None:
            last = np.partition(keys, count - 1)[count - 1]  # no two numbers have the same hash
            chosen, counts = np.sort(numbers[keys <= last]), np.ones(count)
        else:
            order = np.lexsort((numbers, keys))[:count]
            last = keys[order[-1]] if count < self.n_rows else np.inf
            order = order[np.argsort(numbers[order])]
            chosen, counts = numbers[order], np.maximum(ratios[order], 1.0 / max(last, LEAST_RATIO))
        return chosen, self.rows(chosen), counts

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows with these numbers, in this order; float32, shape (len(numbers), d)."""
        wanted, places = np.unique(numbers, return_inverse=True)
        X = np.empty((len(wanted), self.dimension), np.float32)
        if self.client is None:
            self.map(copy_rows, wanted, X, name="kmeans-rows")
        else:
            for found, rows in self.map(take_rows, wanted, name="kmeans-rows"):
                X[found] = rows
        return X if np.array_equal(wanted, numbers) else X[places]

    def rows_by_worker(self) -> dict[str, int]:
        """Return how many rows lie on each worker that has any."""
        rows: dict[str, int] = {}
        for worker, members in self._groups:
            rows[worker] = rows.get(worker, 0) + sum(self.lengths[i] for i in members)
        return rows

    def array(self, function: Callable[[Block], Any], name: str) -> da.Array:
        """Apply `function` to each block that has rows; return the results as a dask array with as many rows.

        The chunks stay on the workers of the blocks and are computed when this returns. It needs a cluster.
        """
        name = task_key(name)
        placed = sorted((i, worker) for worker, members in self._groups for i in members)
        # Futures are named like the chunks: under other names each chunk would be held, and counted, twice.
        chunks = {
            (name, n, 0): self.client.submit(
                function, self._held[i], key=(name, n, 0), workers=[worker], allow_other_workers=True
            )
            for n, (i, worker) in enumerate(placed)
        }
        executor.wait(list(chunks.values()), "", self.client)
        rows = tuple(self.lengths[i] for i, _ in placed)
        return da.Array(chunks, name, (rows, (self.dimension,)), dtype=np.float32)

    def release(self) -> None:
        """Release the blocks, in memory and on disk."""
        for future in self._held if self.client is not None else ():
            if future is not None:
                future.release()
        self._held, self._groups = [], []

    def _measure_groups(self, members: Sequence[int]) -> list[BlockGroup]:
        """Find the lengths of the blocks `members`; return groups of those that have rows."""
        answers = self._run_groups(self._group_by_worker(members), read_facts, (), "count-rows")
        for group, facts in answers:
            for i, block in zip(group.members, facts, strict=True):
                self.lengths[i], self._weights[i] = block.rows, block.weight
                self._single = self._single and block.single
                self.roundings += [block.rounding] if block.rounding else []
                self.moments += [block.moments] if block.moments else []
                self._check_dimension(i, block.rows, block.dimension)
        groups = [BlockGroup(worker, [i for i in members if self.lengths[i]]) for (worker, members), _ in answers]
        return [group for group in groups if group.members]

    def _check_dimension(self, i: int, rows: int, dimension: int) -> None:
        if rows and self.dimension not in (0, dimension):
            raise DataError(
                f"the vectors have {dimension} dimensions",
                where=f"partition {i}",
                expected=f"{self.dimension}, as others",
            )
        self.dimension = max(self.dimension, dimension)

    def _group_by_worker(self, members: Sequence[int]) -> list[BlockGroup]:
        """Divide `members` into groups, one for each thread; the blocks of a group lie on one worker."""
        if self.client is None:
            return deal_out("", members, n_threads())
        threads = self.client.nthreads()
        lying: dict[str, list[int]] = {}
        places = executor.locate_futures([self._held[i] for i in members], self.client)
        for i, place in zip(members, places, strict=True):
            lying.setdefault(place, []).append(i)
        return [
            group for worker, mine in sorted(lying.items()) for group in deal_out(worker, mine, threads.get(worker, 1))
        ]

    def _run_groups(
        self, groups: Sequence[BlockGroup], function: Callable[..., Any], args: tuple[Any, ...], name: str
    ) -> list[tuple[BlockGroup, Any]]:
        """Return each of `groups`, or the groups that replaced it when it was lost, with the result of `function`."""
        if self.client is None:
            return list(
                zip(
                    groups,
                    executor.call_in_threads([partial(function, self._local_blocks(g), *args) for g in groups]),
                    strict=True,
                )
            )
        answers = self._gather_results(groups, function, args, name)
        while lost := [i for group, answer in answers if isinstance(answer, LostBlocks) for i in group.members]:
            found = [(group, answer) for group, answer in answers if not isinstance(answer, LostBlocks)]
            answers = found + self._gather_results(
                self._group_by_worker(self._restore_lost(lost)), function, args, name, moving=True
            )
        return answers

    def _local_blocks(self, group: BlockGroup) -> list[Block]:
        blocks = [self._held[i] for i in group.members]
        for i, block in zip(group.members, blocks, strict=True):
            block.first = self._firsts[i]
        return blocks

    def _gather_results(
        self,
        groups: Sequence[BlockGroup],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        name: str,
        moving: bool = False,
    ) -> list[tuple[BlockGroup, Any]]:
        futures = self._submit_calls(groups, function, args, name, moving)
        return list(zip(groups, executor.gather_or_lost(futures, LostBlocks(), self.client), strict=True))

    def _submit_calls(
        self, groups: Sequence[BlockGroup], function: Callable[..., Any], args: tuple[Any, ...], name: str, moving: bool
    ) -> list[Future]:
        """Return a future for each of `groups`; with `moving`, dask moves the blocks to wherever the task runs."""
        calls = []
        args = executor.broadcast_large(args, len(groups), self.client)
        for group in groups:
            held = [self._held[i] for i in group.members]
            call = GroupCall(function, [f.key for f in held], [self._firsts[i] for i in group.members])
            calls.append((call, held if moving else [], *args))
        return executor.submit_to_workers(call_on_group, calls, [group.worker for group in groups], name, self.client)

    def _restore_lost(self, members: Sequence[int]) -> Sequence[int]:
        """Load the lost blocks `members` again; return the indices of the blocks that replace them."""
        raise NotImplementedError


class _Subset(Blocks):
    """A subset of the rows of other blocks, in blocks of about the size of a partition."""

    def __init__(self, whole: Blocks, share: float, seed: int) -> None:
        self._whole, self._share, self._seed = whole, share, seed
        self._bundles: list[list[int]] = []
        super().__init__(self._choose_blocks(whole._groups), whole._budget, whole.client)

    def _choose_blocks(self, groups: Sequence[BlockGroup], moving: bool = False) -> list[Any]:
        whole = self._whole
        weighting, width = whole.weighting, 4 * whole.dimension

        def nbytes(i: int) -> float:
            rows = whole.lengths[i]
            counts = rows if weighting is None else as_number(whole._weights[i]) / weighting.mean
            return width * min(rows, self._share * counts)

        bundles = [
            BlockGroup(worker, bundle)
            for worker, members in groups
            for bundle in bundle_groups(members, [nbytes(i) for i in members])
        ]
        self._bundles += [bundle.members for bundle in bundles]
        args = whole._budget, self._share, self._seed, weighting
        if whole.client is None:
            return executor.call_in_threads(
                [partial(choose_rows, whole._local_blocks(bundle), *args) for bundle in bundles]
            )
        futures = whole._submit_calls(bundles, choose_rows, args, "subset-block", moving)
        executor.wait(futures, "", whole.client)
        return futures

    def _restore_lost(self, members: Sequence[int]) -> Sequence[int]:
        parents = self._whole._restore_lost([j for i in members for j in self._bundles[i]])
        for i in members:
            self._held[i], self.lengths[i], self._weights[i] = None, 0, 0
        made = self._choose_blocks(self._whole._group_by_worker(parents), moving=True)
        new = range(len(self._held), len(self._held) + len(made))
        self._held += made
        self.lengths += [0] * len(made)
        self._weights += [0] * len(made)
        self._firsts += [0] * len(made)
        return [i for group in self._measure_groups(new) for i in group.members]
