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
from daskmeans.kmeans.rounding import Rounding
from daskmeans.kmeans.rows.block import Block, MemoryBudget
from daskmeans.kmeans.rows.worker import (
    BlockGroup,
    GroupCall,
    LostBlocks,
    bundle_groups,
    call_on_group,
    choose_rows,
    copy_rows,
    deal_out,
    read_shapes,
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
    """

    def __init__(self, held: list[Any], budget: MemoryBudget, client: Client | None) -> None:
        self.client: Any = client  # None: everything is in this process
        self._budget = budget
        self._held = held  # blocks, or their futures
        self.lengths, self._firsts = [0] * len(held), [0] * len(held)
        self.dimension = 0
        self.roundings: list[Rounding] = []
        self.moments: list[Moments] = []
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

        The rows of a smaller `count` are among those of a larger one. They keep their numbers and their
        workers. Release the subset before these blocks.
        """
        return _Subset(self, min(1.0, count / self.n_rows), seed)

    def sample_rows(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` rows (all if there are fewer) whose numbers have the smallest hashes under `seed`.

        Returns
        -------
        numbers : ndarray of int64, shape (count,)
            Row numbers, ascending.
        X : ndarray of float32, shape (count, d)
        """
        count = min(count, self.n_rows)
        share = 1.2 * count / self.n_rows
        while True:
            found = self.map(select_by_hash, min(share, 1.0), seed, name="kmeans-sample")
            hashes, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
            if len(numbers) >= count:
                break
            share *= 2
        last = np.partition(hashes, count - 1)[count - 1]  # no two numbers have the same hash
        chosen = np.sort(numbers[hashes <= last])
        return chosen, self.rows(chosen)

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
        answers = self._run_groups(self._group_by_worker(members), read_shapes, (), "count-rows")
        for group, shapes in answers:
            for i, (rows, dimension, rounding, moments) in zip(group.members, shapes, strict=True):
                self.lengths[i] = rows
                self.roundings += [rounding] if rounding else []
                self.moments += [moments] if moments else []
                self._check_dimension(i, rows, dimension)
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
        row = 4 * whole.dimension * self._share
        bundles = [
            BlockGroup(worker, bundle)
            for worker, members in groups
            for bundle in bundle_groups(members, [row * whole.lengths[i] for i in members])
        ]
        self._bundles += [bundle.members for bundle in bundles]
        args = whole._budget, self._share, self._seed
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
            self._held[i], self.lengths[i] = None, 0
        made = self._choose_blocks(self._whole._group_by_worker(parents), moving=True)
        new = range(len(self._held), len(self._held) + len(made))
        self._held += made
        self.lengths += [0] * len(made)
        self._firsts += [0] * len(made)
        return [i for group in self._measure_groups(new) for i in group.members]
