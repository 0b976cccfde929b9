"""Rows of one partition as a float32 matrix, in memory or on disk, and what an engine notes about them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskmeans import forecast
from daskmeans.kmeans.storage import shelf


@dataclass(frozen=True)
class Quota:
    """What one process may keep of one fit in memory.

    Attributes
    ----------
    fit : str
        A name that no other fit has.
    memory : int
        Bytes of blocks, of all fits together, and of the engine's tasks.
    n_clusters : int
        What an engine allocates beside the rows depends on it.
    threads : int
        Tasks of the engine that this process runs at a time.
    """

    fit: str
    memory: int
    n_clusters: int = 1
    threads: int = 0


class Block:
    """Rows of one partition on one worker, and what an engine notes about them.

    Arrays and notes of the engine are lost with the worker. They do not travel either: a block that dask moves arrives
    with its rows and their numbers alone.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, d)
        C-contiguous. Kept, not copied, where it stays in memory.
    quota : Quota
    numbers : ndarray of int64, shape (n,), optional
        Numbers of the rows in the whole input. Without them the rows follow one another from `first` on.
    borrowed : bool, default False
        Whether somebody else holds `rows` in memory too, so that they take none.

    Attributes
    ----------
    n_rows : int
    notes : dict
        Small values of the engine.
    first : int
        Number of the first row, if no numbers were given; :class:`Blocks` sets it.

    Examples
    --------
    >>> block = Block(np.eye(2, dtype=np.float32), Quota("doctest", memory=1 << 20))
    >>> block.allocate("labels", (2,), np.int32)
    >>> with block.open() as arrays:
    ...     arrays["labels"][:] = arrays["rows"].argmax(axis=1)
    >>> with block.open() as arrays:
    ...     arrays["labels"].tolist()
    [0, 1]
    """

    def __init__(
        self, rows: np.ndarray, quota: Quota, numbers: np.ndarray | None = None, *, borrowed: bool = False
    ) -> None:
        self.n_rows, self.dimension = rows.shape
        held = (0 if borrowed else rows.nbytes) + (0 if numbers is None else numbers.nbytes)
        noted = forecast.note_bytes(self.n_rows, self.dimension, quota.n_clusters)
        working = quota.threads * forecast.engine_bytes(self.dimension, quota.n_clusters)
        self._quota, self._shelf = quota, shelf(quota.fit, held + noted, quota.memory - working)
        self.nbytes = 0 if self._shelf.on_disk else rows.nbytes
        self.notes: dict[str, Any] = {}
        self.first = 0
        self._numbers = None if numbers is None else {"numbers": self._shelf.keep(numbers)}
        self._arrays = {"rows": self._shelf.keep(rows)}

    @property
    def on_disk(self) -> bool:
        """Whether the arrays lie in a file."""
        return self._shelf.on_disk

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the rows in the whole input; int64, shape (n_rows,)."""
        if self._numbers is None:
            return np.arange(self.first, self.first + self.n_rows)
        with self._shelf.open(self._numbers) as arrays:
            return arrays["numbers"].copy()

    def open(self) -> AbstractContextManager[dict[str, np.ndarray]]:
        """The arrays by name, for the length of a ``with`` block: "rows", read-only, and those allocated, writable.

        An array that is used after the block is right, but may take memory that nobody has counted.
        """
        return self._shelf.open(self._arrays)

    def allocate(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Add an array of zeros, in the place of one that has this name."""
        self.drop(name)
        self._arrays[name] = self._shelf.zeros(shape, dtype)

    def drop(self, *names: str) -> None:
        """Forget the arrays of these names, if there are any."""
        for name in names:
            self._arrays.pop(name, None)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + self.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        with self.open() as arrays:
            numbers = None if self._numbers is None else self.numbers
            return Block, (np.array(arrays["rows"]), self._quota, numbers)
