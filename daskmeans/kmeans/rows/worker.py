"""Tasks on the blocks that lie on their worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import distributed
import numpy as np

from daskmeans import config
from daskmeans.kernels.hashing import hash_integers, is_sampled, to_uniform
from daskmeans.kernels.sums import exact_sum
from daskmeans.kmeans.rounding import Rounding
from daskmeans.kmeans.rows.block import Block, MemoryBudget
from daskmeans.kmeans.rows.weights import Weighting
from daskmeans.kmeans.scaling import Moments

# Added to the seed of a subset; otherwise a sample of it would be chosen by the same hashes as the subset itself.
SUBSET_SEED = 0x5B5E7


@dataclass(frozen=True)
class GroupCall:
    """A call on a group of blocks.

    It names the blocks by key and finds them on the worker where it runs. As dependencies, hundreds of blocks would
    take dask longer than the tasks themselves, and dask would copy them if a task has to move.
    """

    function: Callable[..., Any]
    keys: list[str]
    firsts: list[int]


@dataclass(frozen=True)
class LostBlocks:
    """Result of a task that did not find its blocks on its worker."""


class BlockGroup(NamedTuple):
    """Indices of the blocks of one task, and the worker where they lie; "" stands for this process."""

    worker: str
    members: list[int]


class BlockFacts(NamedTuple):
    """What the client knows of a block."""

    rows: int
    dimension: int
    rounding: Rounding | None
    moments: Moments | None
    weight: int
    """Exact sum of the weights (see :func:`exact_sum`); 0 without weights."""
    single: bool
    """Whether each row counts once."""


# --- on the workers ---


def call_on_group(call: GroupCall, moved: list[Block], *args: Any) -> Any:
    blocks = moved or [_find_block(key) for key in call.keys]
    if not all(isinstance(block, Block) for block in blocks):
        return LostBlocks()
    for block, first in zip(blocks, call.firsts, strict=True):
        block.first = first
    return call.function(blocks, *args)


def _find_block(key: str) -> Any:
    """Return the block with this key; None if it is not on this worker."""
    block: Any = _known_blocks.get(key)
    if block is None:
        block = distributed.get_worker().data.get(key)
        if isinstance(block, Block):
            _known_blocks[key] = block
    return block


# Asking a worker takes microseconds a block, and there may be hundreds.
_known_blocks: WeakValueDictionary[str, Block] = WeakValueDictionary()


def read_facts(group: list[Block]) -> list[BlockFacts]:
    return [
        BlockFacts(block.n_rows, block.dimension, block.rounding, block.moments, *_sum_weights(block))
        for block in group
    ]


def _sum_weights(block: Block) -> tuple[int, bool]:
    weights = block.weights
    return (0, True) if weights is None else (exact_sum(weights), bool((weights == 1.0).all()))


def choose_rows(
    group: list[Block], budget: MemoryBudget, share: float, seed: int, weighting: Weighting | None
) -> Block:
    """Return a share of the rows, each chosen with a probability in proportion to its weight.

    Chosen rows then have the mean weight, but those that were certain to be chosen have more.
    """
    ratios: list[Any] = [1.0 if weighting is None else weighting.ratios(block.weights) for block in group]
    chosen = [
        np.flatnonzero(is_sampled(block.numbers, share * each, seed + SUBSET_SEED))
        for block, each in zip(group, ratios, strict=True)
    ]
    ends = np.cumsum([0, *map(len, chosen)])
    X = np.empty((ends[-1], max(block.dimension for block in group)), np.float32)
    numbers = np.empty(len(X), np.int64)
    for block, mine, begin, end in zip(group, chosen, ends[:-1], ends[1:], strict=True):
        numbers[begin:end] = block.numbers[mine]
        with block.open() as arrays:
            np.take(arrays["rows"], mine, axis=0, out=X[begin:end], mode="clip")
    if weighting is None:
        return Block(X, budget, numbers)
    taken = np.concatenate([each[mine] for each, mine in zip(ratios, chosen, strict=True)])
    return Block(X, budget, numbers, weighting.mean * np.maximum(share * taken, 1.0))


def select_by_hash(
    group: list[Block], share: float, seed: int, weighting: Weighting | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the hashes, or with weights the keys, below `share`; the numbers of the rows, and their weights.

    A key is a random number divided by the weight, in multiples of the mean. The rows with the smallest keys are a
    sample in proportion to the weights (Ohlsson, *Sequential Poisson Sampling*, J. Official Statistics 1998).
    """
    numbers = np.concatenate([block.numbers for block in group])
    hashes = hash_integers(numbers.astype(np.uint64), seed)
    luck = to_uniform(hashes)
    if weighting is None:
        chosen = luck < share
        return hashes[chosen], numbers[chosen], np.empty(0)
    ratios = np.concatenate([weighting.ratios(block.weights) for block in group])
    keys = luck / ratios
    chosen = keys < share
    return keys[chosen], numbers[chosen], ratios[chosen]


def take_rows(group: list[Block], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a group whose numbers are in `wanted`, after their places in `wanted`."""
    places = np.concatenate([_match_numbers(wanted, block.numbers)[0] for block in group])
    places.sort()
    X = np.empty((len(places), max(block.dimension for block in group)), np.float32)
    copy_rows(group, wanted[places], X)
    return places, X


def copy_rows(group: list[Block], wanted: np.ndarray, X: np.ndarray) -> None:
    """Copy rows of a group into `X`, to the places of their numbers in `wanted`, which ascend."""
    for block in group:
        places, mine = _match_numbers(wanted, block.numbers)
        with block.open() as arrays:
            block.home.copy_rows(block.rows_at_home(arrays), mine, X, places)


def _match_numbers(wanted: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `wanted` are in `numbers`, and where; numbers of a restored block need not ascend."""
    places = np.searchsorted(wanted, numbers)
    where = np.flatnonzero(places < len(wanted))
    where = where[wanted[places[where]] == numbers[where]]
    where = where[np.argsort(places[where], kind="stable")]
    return places[where], where


def deal_out(worker: str, members: Sequence[int], n: int) -> list[BlockGroup]:
    """Deal `members` round-robin into at most `n` groups of nearly equal size."""
    return [BlockGroup(worker, list(members[i::n])) for i in range(min(n, len(members)))]


def bundle_groups(members: Sequence[int], nbytes: Sequence[float]) -> list[list[int]]:
    """Divide `members`, in order, into lists of at most a partition's bytes, or of one member."""
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
