"""The rows of one input as float32 matrices that stay where they were loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import dask.array as da
import distributed
import numpy as np
from distributed import Client, Future

from daskmeans import config, runtime
from daskmeans.errors import DataError
from daskmeans.kernels.hashing import hash_integers, uniform
from daskmeans.kernels.sampling import sampled
from daskmeans.kmeans.block import Block, Quota
from daskmeans.kmeans.rounding import Rounding

# Added to the seed of a subset, so that a sample of a subset is not the part of it that comes first.
SUBSET = 0x5B5E7


@dataclass(frozen=True)
class Call:
    """What a task does with a group of blocks.

    It names the blocks and finds them where it runs: dask would take longer for tasks that depend on hundreds of
    blocks than they take, and would copy blocks when a task has to move.
    """

    function: Callable[..., Any]
    keys: list[str]
    firsts: list[int]


@dataclass(frozen=True)
class Lost:
    """The answer of a task that ran where its blocks are not."""


class Group(NamedTuple):
    """Blocks that one task works on, by index, and the worker where they lie; no worker: this process."""

    worker: str
    members: list[int]


class Blocks:
    """Rows as matrices, kept on the workers (or in this process), each row known by its number in the input.

    A block that is lost with its worker is made anew; what an engine had noted about it is gone.

    Attributes
    ----------
    client : Client or None
    lengths : list of int
        Rows of each block.
    n_rows, dimension : int
    roundings : list of Rounding
        What was lost when the rows became float32, of each block that came in wider numbers.
    """

    def __init__(self, held: list[Any], quota: Quota, client: Client | None) -> None:
        self.client: Any = client  # where it is None, all is in this process
        self._quota = quota
        self._held = held  # blocks, or futures of them
        self.lengths, self._firsts = [0] * len(held), [0] * len(held)
        self.dimension = 0
        self.roundings: list[Rounding] = []
        self._groups = self._measured(range(len(held)))

    @property
    def n_rows(self) -> int:
        """Rows of all blocks."""
        return sum(self.lengths)

    def map(self, function: Callable[..., Any], *args: Any, name: str) -> list[Any]:
        """Results of ``function(group, *args)``, `group` a list of blocks: one task for each thread of each worker.

        The groups depend on where blocks happen to lie, so a caller may combine the results only in ways that do not
        depend on the grouping. Arrays among `args` are best given as they are; the map sends them.
        """
        answers = self._run(self._groups, function, args, name)
        self._groups = [group for group, _ in answers]
        return [answer for _, answer in answers]

    def subset(self, count: int, seed: int) -> Blocks:
        """About `count` rows, in blocks of their own: those whose numbers have a hash below ``count / n_rows``.

        The rows of a smaller `count` are among those of a larger one. They keep their numbers, and lie where they lay.
        These blocks must not be released before the subset.
        """
        return _Subset(self, min(1.0, count / self.n_rows), seed)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` rows (all if there are fewer), those whose numbers have the smallest hashes under `seed`.

        Returns
        -------
        numbers : ndarray of int64, shape (count,)
            Row numbers, ascending.
        X : ndarray of float32, shape (count, d)
        """
        count = min(count, self.n_rows)
        share = 1.2 * count / self.n_rows
        while True:
            found = self.map(_hashed_below, min(share, 1.0), seed, name="kmeans-sample")
            hashes, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
            if len(numbers) >= count:
                break
            share *= 2
        last = np.partition(hashes, count - 1)[count - 1]  # no two numbers have the same hash
        chosen = np.sort(numbers[hashes <= last])
        return chosen, self.rows(chosen)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, in this order; float32, shape (len(numbers), d)."""
        wanted, places = np.unique(numbers, return_inverse=True)
        X = np.empty((len(wanted), self.dimension), np.float32)
        if self.client is None:
            self.map(_copy_rows, wanted, X, name="kmeans-rows")
        else:
            for found, rows in self.map(_rows_numbered, wanted, name="kmeans-rows"):
                X[found] = rows
        return X if np.array_equal(wanted, numbers) else X[places]

    def rows_by_worker(self) -> dict[str, int]:
        """How many rows lie on each worker that has any."""
        rows: dict[str, int] = {}
        for worker, members in self._groups:
            rows[worker] = rows.get(worker, 0) + sum(self.lengths[i] for i in members)
        return rows

    def array(self, function: Callable[[Block], Any], name: str) -> da.Array:
        """A dask array of what `function` makes of each block that has rows: as many rows, on the same worker.

        It is there when this returns, and needs a cluster.
        """
        name = runtime.key(name)
        placed = sorted((i, worker) for worker, members in self._groups for i in members)
        # Named as the chunks they are: under names of their own each would be held, and counted, twice.
        chunks = {
            (name, n, 0): self.client.submit(
                function, self._held[i], key=(name, n, 0), workers=[worker], allow_other_workers=True
            )
            for n, (i, worker) in enumerate(placed)
        }
        runtime.settle(list(chunks.values()), "", self.client)
        rows = tuple(self.lengths[i] for i, _ in placed)
        return da.Array(chunks, name, (rows, (self.dimension,)), dtype=np.float32)

    def release(self) -> None:
        """Give up the blocks, in memory and on disk."""
        for future in self._held if self.client is not None else ():
            if future is not None:
                future.release()
        self._held, self._groups = [], []

    def _measured(self, members: Sequence[int]) -> list[Group]:
        """Groups of those of `members` that have rows, once their lengths are known."""
        answers = self._run(self._grouped(members), _shapes, (), "count-rows")
        for group, shapes in answers:
            for i, (rows, dimension, rounding) in zip(group.members, shapes, strict=True):
                self.lengths[i] = rows
                self.roundings += [rounding] if rounding else []
                self._check(i, rows, dimension)
        groups = [Group(worker, [i for i in members if self.lengths[i]]) for (worker, members), _ in answers]
        return [group for group in groups if group.members]

    def _check(self, i: int, rows: int, dimension: int) -> None:
        if rows and self.dimension not in (0, dimension):
            raise DataError(
                f"the vectors have {dimension} dimensions",
                where=f"partition {i}",
                expected=f"{self.dimension}, as others",
            )
        self.dimension = max(self.dimension, dimension)

    def _grouped(self, members: Sequence[int]) -> list[Group]:
        """`members` in groups, one for each thread that will work on them; blocks of a group lie on one worker."""
        if self.client is None:
            return _dealt("", members, runtime.n_threads())
        threads = self.client.nthreads()
        lying: dict[str, list[int]] = {}
        places = runtime.places([self._held[i] for i in members], self.client)
        for i, place in zip(members, places, strict=True):
            lying.setdefault(place, []).append(i)
        return [
            group for worker, mine in sorted(lying.items()) for group in _dealt(worker, mine, threads.get(worker, 1))
        ]

    def _run(
        self, groups: Sequence[Group], function: Callable[..., Any], args: tuple[Any, ...], name: str
    ) -> list[tuple[Group, Any]]:
        """Each of `groups`, or what took its place when it was lost, with the result of `function`."""
        if self.client is None:
            return list(
                zip(groups, runtime.call([partial(function, self._here(g), *args) for g in groups]), strict=True)
            )
        answers = self._asked(groups, function, args, name)
        while lost := [i for group, answer in answers if isinstance(answer, Lost) for i in group.members]:
            found = [(group, answer) for group, answer in answers if not isinstance(answer, Lost)]
            answers = found + self._asked(self._grouped(self._restored(lost)), function, args, name, moving=True)
        return answers

    def _here(self, group: Group) -> list[Block]:
        blocks = [self._held[i] for i in group.members]
        for i, block in zip(group.members, blocks, strict=True):
            block.first = self._firsts[i]
        return blocks

    def _asked(
        self,
        groups: Sequence[Group],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        name: str,
        moving: bool = False,
    ) -> list[tuple[Group, Any]]:
        futures = self._sent(groups, function, args, name, moving)
        return list(zip(groups, runtime.answers(futures, Lost(), self.client), strict=True))

    def _sent(
        self, groups: Sequence[Group], function: Callable[..., Any], args: tuple[Any, ...], name: str, moving: bool
    ) -> list[Future]:
        """A future for each of `groups`; with `moving`, dask brings the blocks to wherever the task runs."""
        calls = []
        args = runtime.spread(args, len(groups), self.client)
        for group in groups:
            held = [self._held[i] for i in group.members]
            call = Call(function, [f.key for f in held], [self._firsts[i] for i in group.members])
            calls.append((call, held if moving else [], *args))
        return runtime.submit(_called, calls, [group.worker for group in groups], name, self.client)

    def _restored(self, members: Sequence[int]) -> Sequence[int]:
        """The blocks that stand for `members`, which were lost, once they are there."""
        raise NotImplementedError


class _Subset(Blocks):
    """Some rows of other blocks, in blocks of about the size of a partition."""

    def __init__(self, whole: Blocks, share: float, seed: int) -> None:
        self._whole, self._share, self._seed = whole, share, seed
        self._bundles: list[list[int]] = []
        super().__init__(self._chosen(whole._groups), whole._quota, whole.client)

    def _chosen(self, groups: Sequence[Group], moving: bool = False) -> list[Any]:
        whole = self._whole
        row = 4 * whole.dimension * self._share
        bundles = [
            Group(worker, bundle)
            for worker, members in groups
            for bundle in _bundled(members, [row * whole.lengths[i] for i in members])
        ]
        self._bundles += [bundle.members for bundle in bundles]
        args = whole._quota, self._share, self._seed
        if whole.client is None:
            return runtime.call([partial(_chosen_rows, whole._here(bundle), *args) for bundle in bundles])
        futures = whole._sent(bundles, _chosen_rows, args, "subset-block", moving)
        runtime.settle(futures, "", whole.client)
        return futures

    def _restored(self, members: Sequence[int]) -> Sequence[int]:
        parents = self._whole._restored([j for i in members for j in self._bundles[i]])
        for i in members:
            self._held[i], self.lengths[i] = None, 0
        made = self._chosen(self._whole._grouped(parents), moving=True)
        new = range(len(self._held), len(self._held) + len(made))
        self._held += made
        self.lengths += [0] * len(made)
        self._firsts += [0] * len(made)
        return [i for group in self._measured(new) for i in group.members]


# --- on the workers ---


def _called(call: Call, moved: list[Block], *args: Any) -> Any:
    blocks = moved or [_found(key) for key in call.keys]
    if not all(isinstance(block, Block) for block in blocks):
        return Lost()
    for block, first in zip(blocks, call.firsts, strict=True):
        block.first = first
    return call.function(blocks, *args)


def _found(key: str) -> Any:
    """The block of this key, or None if it is not on this worker."""
    block: Any = _seen.get(key)
    if block is None:
        block = distributed.get_worker().data.get(key)
        if isinstance(block, Block):
            _seen[key] = block
    return block


# Asking a worker takes microseconds a block, and there may be hundreds.
_seen: WeakValueDictionary[str, Block] = WeakValueDictionary()


def _shapes(group: list[Block]) -> list[tuple[int, int, Rounding | None]]:
    return [(block.n_rows, block.dimension, block.rounding) for block in group]


def _chosen_rows(group: list[Block], quota: Quota, share: float, seed: int) -> Block:
    chosen = [np.flatnonzero(sampled(block.numbers, share, seed + SUBSET)) for block in group]
    ends = np.cumsum([0, *map(len, chosen)])
    X = np.empty((ends[-1], max(block.dimension for block in group)), np.float32)
    numbers = np.empty(len(X), np.int64)
    for block, mine, begin, end in zip(group, chosen, ends[:-1], ends[1:], strict=True):
        numbers[begin:end] = block.numbers[mine]
        with block.open() as arrays:
            np.take(arrays["rows"], mine, axis=0, out=X[begin:end], mode="clip")
    return Block(X, quota, numbers)


def _hashed_below(group: list[Block], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.concatenate([block.numbers for block in group])
    hashes = hash_integers(numbers.astype(np.uint64), seed)
    chosen = uniform(hashes) < share
    return hashes[chosen], numbers[chosen]


def _rows_numbered(group: list[Block], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a group whose numbers are among `wanted`, and where among those."""
    places = np.concatenate([_among(wanted, block.numbers)[0] for block in group])
    places.sort()
    X = np.empty((len(places), max(block.dimension for block in group)), np.float32)
    _copy_rows(group, wanted[places], X)
    return places, X


def _copy_rows(group: list[Block], wanted: np.ndarray, X: np.ndarray) -> None:
    """Copy rows of a group to where their numbers are among `wanted`, which ascend."""
    for block in group:
        places, mine = _among(wanted, block.numbers)
        if block.device is not None:
            X[places] = block.device.host(block.there[block.device.xp.asarray(mine)])
            continue
        with block.open() as arrays:
            if len(mine) and places[-1] - places[0] == len(places) - 1:
                np.take(arrays["rows"], mine, axis=0, out=X[places[0] : places[-1] + 1], mode="clip")
            else:
                X[places] = arrays["rows"][mine]


def _among(wanted: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `wanted` are among `numbers`, and where; numbers of a block that was made anew need not ascend."""
    places = np.searchsorted(wanted, numbers)
    where = np.flatnonzero(places < len(wanted))
    where = where[wanted[places[where]] == numbers[where]]
    where = where[np.argsort(places[where], kind="stable")]
    return places[where], where


def _dealt(worker: str, members: Sequence[int], n: int) -> list[Group]:
    """`members` in at most `n` groups of nearly equal size, dealt like cards."""
    return [Group(worker, list(members[i::n])) for i in range(min(n, len(members)))]


def _bundled(members: Sequence[int], nbytes: Sequence[float]) -> list[list[int]]:
    """`members`, one after the other, in lists of about as many bytes as a partition has."""
    room = config.get_bytes("partition-bytes")
    bundles: list[list[int]] = [[]]
    held = 0.0
    for i, size in zip(members, nbytes, strict=True):
        if bundles[-1] and held + size > room:
            bundles.append([])
            held = 0.0
        bundles[-1].append(i)
        held += size
    return bundles
