"""Rows of one partition as a float32 matrix, in memory or on disk, with the state of the engine beside them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskmeans.kernels.backend import CPU, Backend
from daskmeans.kernels.gpu.device import Copy
from daskmeans.kmeans.memory import engine_bytes, note_bytes
from daskmeans.kmeans.rounding import Rounding
from daskmeans.kmeans.rows.spill import choose_store
from daskmeans.kmeans.scaling import Moments
from daskmeans.runtime import gpus


@dataclass(frozen=True)
class MemoryBudget:
    """Memory that one process may use for one fit.

    Attributes
    ----------
    fit : str
        Unique name of the fit.
    memory : int
        Bytes for blocks, of all fits together, and for the engine's tasks.
    n_clusters : int
        The state that the engine keeps beside the rows depends on it.
    threads : int
        Tasks of the engine that this process runs at once.
    on_gpus : bool
        Whether all processes compute with the rows on their GPUs.
    """

    fit: str
    memory: int
    n_clusters: int = 1
    threads: int = 0
    on_gpus: bool = False


class Block:
    """Rows of one partition on one worker, with the state of the engine beside them.

    Arrays and notes of the engine are lost with the worker. They are not moved either: a block that dask moves arrives
    with nothing but its rows and their numbers.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, d)
        C-contiguous; an array of `home`. It is not copied if it stays in memory.
    budget : MemoryBudget
    numbers : ndarray of int64, shape (n,), optional
        Numbers of the rows in the whole input. Default: consecutive numbers from `first` on.
    weights : ndarray of float64, shape (n,), optional
        Weights of the rows, all above 0. They travel with the rows.
    borrowed : bool, default False
        Whether the caller keeps `rows` in memory anyway, so that they do not count.
    home : Backend, default CPU
        The backend in whose memory the rows stay. The rows of a block that dask moves arrive in the CPU's memory.

    Attributes
    ----------
    n_rows : int
    device_rows : array or None
        The rows, if they lie in the memory of a GPU.
    copy : Copy or None
        Copy of the rows that a GPU keeps for the next pass.
    notes : dict
        Small values of the engine.
    first : int
        Number of the first row, if no numbers were given; :class:`Blocks` sets it.
    rounding : Rounding or None
        Rounding error of the conversion to float32; set by the creator of the block.
    moments : Moments or None
        Of the rows before they were scaled; set by the creator of the block.

    Examples
    --------
    >>> block = Block(np.eye(2, dtype=np.float32), MemoryBudget("doctest", memory=1 << 20))
    >>> block.allocate("labels", (2,), np.int32)
    >>> with block.open() as arrays:
    ...     arrays["labels"][:] = arrays["rows"].argmax(axis=1)
    >>> with block.open() as arrays:
    ...     arrays["labels"].tolist()
    [0, 1]
    """

    def __init__(
        self,
        rows: Any,
        budget: MemoryBudget,
        numbers: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        *,
        borrowed: bool = False,
        home: Backend = CPU,
    ) -> None:
        self.n_rows, self.dimension = rows.shape
        self.home, away = home, home is not CPU
        self.device_rows: Any = rows if away else None
        self.copy: Copy | None = None
        held = (0 if borrowed or away else rows.nbytes) + sum(
            array.nbytes for array in (numbers, weights) if array is not None
        )
        noted = note_bytes(self.n_rows, self.dimension, budget.n_clusters)
        working = budget.threads * engine_bytes(self.dimension, budget.n_clusters)
        self._budget, self._store = budget, choose_store(budget.fit, held + noted, budget.memory - working)
        self.nbytes = 0 if self._store.on_disk or away else rows.nbytes
        self.notes: dict[str, Any] = {}
        self.first = 0
        self.rounding: Rounding | None = None
        self.moments: Moments | None = None
        self._numbers = None if numbers is None else {"numbers": self._store.keep(numbers)}
        self._weights = None if weights is None else {"weights": self._store.keep(weights)}
        self._arrays = {} if away else {"rows": self._store.keep(rows)}

    @functools.cached_property
    def backend(self) -> Backend:
        """The backend of this process with which passes compute."""
        return gpus.require_device() if self._budget.on_gpus else CPU

    @property
    def on_disk(self) -> bool:
        """Whether the arrays lie in a file."""
        return self._store.on_disk

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the rows in the whole input; int64, shape (n_rows,)."""
        if self._numbers is None:
            return np.arange(self.first, self.first + self.n_rows)
        with self._store.open(self._numbers) as arrays:
            return arrays["numbers"].copy()

    @property
    def weights(self) -> np.ndarray | None:
        """Weights of the rows; float64, shape (n_rows,). None if none were given."""
        if self._weights is None:
            return None
        with self._store.open(self._weights) as arrays:
            return arrays["weights"].copy()

    def open(self) -> AbstractContextManager[dict[str, np.ndarray]]:
        """Open the arrays by name for a ``with`` block: "rows", read-only, and the allocated ones, writable.

        An array stays valid after the block, but may then take memory that is not counted. Rows on a device are copied
        to memory when they are accessed.
        """
        opened = self._store.open(self._arrays)
        return opened if self.device_rows is None else self._open_fetched(opened)

    def rows_at_home(self, arrays: dict[str, np.ndarray]) -> Any:
        """Return the rows where they lie, for methods of `home`; `arrays` are the open arrays of this block."""
        return arrays["rows"] if self.device_rows is None else self.device_rows

    @contextlib.contextmanager
    def _open_fetched(self, opened: AbstractContextManager[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        with opened as arrays:
            yield _FetchedArrays(self, arrays)

    def allocate(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Add an array of zeros; it replaces an array of the same name."""
        self.drop(name)
        self._arrays[name] = self._store.zeros(shape, dtype)

    def drop(self, *names: str) -> None:
        """Remove the arrays with these names, if there are any."""
        for name in names:
            self._arrays.pop(name, None)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + self.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        with self.open() as arrays:
            numbers = None if self._numbers is None else self.numbers
            return Block, (np.array(arrays["rows"]), self._budget, numbers, self.weights)


class _FetchedArrays(dict[str, np.ndarray]):
    """The arrays of a block; its rows are copied from the device on first access."""

    def __init__(self, block: Block, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self._block = block

    def __missing__(self, name: str) -> np.ndarray:
        if name != "rows":
            raise KeyError(name)
        self[name] = self._block.home.to_host(self._block.device_rows)
        return self[name]
