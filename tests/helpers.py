"""Small embeddings, and functions that workers can import."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import dask
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pytest.mark import ParameterSet
from threadpoolctl import threadpool_info

from daskmeans.buckets.external_sort import write_buckets
from daskmeans.duplicates.settings import Deciding
from daskmeans.errors import DaskmeansError, DataError
from daskmeans.steps.dedup import dedup_step
from daskmeans.vectors.matrix import to_column

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Set by ci/nightly.sh: tests of the nightly lane run too, and others take more cases.
NIGHTLY = "DASKMEANS_NIGHTLY" in os.environ


def nightly(*values: object) -> ParameterSet:
    """Parameters of a test that only the nightly lane runs."""
    return pytest.param(*values, marks=pytest.mark.nightly)


def different(found: dict[str, object], expected: dict[str, object]) -> set[str]:
    """Names of what is not the same in both."""
    return {name for name in {*found, *expected} if found.get(name) != expected.get(name)}


def blobs(n: int = 600, d: int = 16, k: int = 8, seed: int = 0, copies: int = 30) -> np.ndarray:
    """Rows around `k` centres, some of them exact copies and some near-copies of others; float32, shape (n, d)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d))
    X = centres[rng.integers(0, k, n)] + 0.3 * rng.normal(size=(n, d))
    X[n - copies :] = X[:copies]
    X[n - 2 * copies : n - copies] = X[:copies] + 0.01 * rng.normal(size=(copies, d))
    return X.astype(np.float32)


def write_embeddings(
    path: Path, X: np.ndarray, ids: list | None = None, row_group_size: int = 100, **columns: list
) -> Path:
    """A Parquet file of the rows of `X` with ids and further columns."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])
    table = pa.table({"id": ids or [f"row-{i:05d}" for i in range(len(X))], "embedding": vectors, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def parquet_below(folder: Path) -> list[Path]:
    """Files of Parquet, also those that are no data and so are not called that."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.read_bytes().startswith(b"PAR1")]


def square(x: int) -> int:
    """The square of `x`, which must not be negative."""
    if x < 0:
        raise DataError("negative", where=f"number {x}")
    return x * x


def blas_threads() -> int:
    """Threads that BLAS would use in this process.

    One that runs on OpenMP, such as faiss brings, is set for each thread, so that what this one has says nothing.
    """
    found = [lib for lib in threadpool_info() if lib["user_api"] == "blas" and lib["threading_layer"] != "openmp"]
    return max(lib["num_threads"] for lib in found)


def rows_of(group: list) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Numbers and rows of each block of a group, and whether it lies on disk."""
    found = []
    for block in group:
        with block.open() as arrays:
            found.append((block.numbers, arrays["rows"].copy(), block.on_disk))
    return found


def count_visits(group: list, step: int) -> list[tuple[int, float]]:
    """Of each block how often this was called for it, by its notes and by an array of its own."""
    found = []
    for block in group:
        if "visits" not in block.notes:
            block.notes["visits"] = 0
            block.allocate("visits", (block.n_rows,), np.float32)
        block.notes["visits"] += 1
        with block.open() as arrays:
            arrays["visits"] += step
            assert np.ptp(arrays["visits"]) == 0
            found.append((block.notes["visits"], float(arrays["visits"][0])))
    return found


def note_bytes(group: list) -> int:
    """Bytes of what an engine has noted about the rows of a group."""
    total = 0
    for block in group:
        with block.open() as arrays:
            total += sum(array.nbytes for name, array in arrays.items() if name != "rows")
    return total


def hears_interrupts() -> bool:
    """Whether SIGINT is delivered to this process."""
    facts = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return not int(facts["SigBlk"], 16) >> (signal.SIGINT - 1) & 1


def kill(worker: distributed.Worker) -> None:
    """End the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def die(_: object) -> None:
    """A task that ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)


def take_memory(_: object) -> None:
    """A task that takes more memory than a small worker has, until somebody ends the process."""
    held = []
    while psutil.Process().memory_info().rss < 600 << 20:
        held.append(np.ones(4 << 20, np.uint8))
    time.sleep(60)


def stop(worker: distributed.Worker, seconds: float = 3) -> None:
    """Stop the process for a while, as if the system gave it no time."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def fill_memory(worker: distributed.Worker, share: float = 0.9, seconds: float = 3) -> None:
    """Take memory for a while, so that the process has this share of its limit."""
    missing = int(share * worker.memory_manager.memory_limit) - psutil.Process().memory_info().rss
    held = [np.ones(missing, np.uint8)]
    worker.io_loop.call_later(seconds, held.clear)


def spare(worker: distributed.Worker) -> None:
    """Do nothing to it."""


class DeadlyOnce:
    """A value that kills the second process which receives it, and no other; `folder` holds a file for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return receive, (self.folder,)

    def __str__(self) -> str:
        return "received"


def receive(folder: Path) -> DeadlyOnce:
    """A :class:`DeadlyOnce` in the process that receives it, unless that is the second."""
    count = len(list(folder.iterdir()))
    (folder / str(count)).touch()
    if count == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return DeadlyOnce(folder)


class Trap(distributed.WorkerPlugin):
    """Does `harm` to the first worker that begins its `nth` task whose name starts with `prefix`, and to no other.

    By then the file `flag` holds its address.
    """

    def __init__(
        self, prefix: str, flag: Path, nth: int = 1, harm: Callable[[distributed.Worker], None] = kill
    ) -> None:
        self.prefix, self.flag, self.left, self.harm = prefix, flag, nth, harm
        self.name = f"trap for {prefix}"

    def setup(self, worker: distributed.Worker) -> None:
        """Called on the worker that gets it."""
        self.worker = worker

    def transition(self, key: str, start: str, finish: str, **kwargs: object) -> None:
        """Called for every step of every task on a worker."""
        if finish == "executing" and str(key).startswith(self.prefix):
            self.left -= 1
        if self.left == 0:
            with contextlib.suppress(FileExistsError):
                with self.flag.open("x") as file:
                    file.write(self.worker.address)
                self.harm(self.worker)


def resident() -> int:
    """Bytes of memory of this process, after what nobody needs has been given back."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # other systems than Linux with glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def add_up(group: list, values: np.ndarray) -> int:
    """Sum of `values`, for each row of a group."""
    return sum(block.n_rows for block in group) * int(values.sum())


def make_rows(seed=0, n=300, d=12, k=7):
    """Rows with near-duplicates and copies, some of them in another cluster."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n // 4, d)).repeat(4, axis=0) + rng.choice([0, 0.02, 0.15], (n, 1)) * rng.standard_normal(
        (n, d)
    )
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    labels = (np.arange(n) // 4 % k).astype(np.int32)
    stray = rng.random(n) < 0.1
    labels[stray] = rng.integers(k, size=stray.sum())
    labels[0], labels[labels == k - 1] = k - 1, 0  # a cluster of one row
    labels[0] = k - 1
    return X, labels, rng.choice([0.25, 0.5, 0.75], n).astype(np.float32), rng.integers(10, size=n)


def write_clusters(path, rows, ids=None, layout="bucketed", dtype="float32", partitions=3, bucket_rows=100):
    X, labels, distances, stars = rows
    ids = np.arange(len(X)) if ids is None else ids
    frame = pd.DataFrame(
        {
            "key": pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(ids)]))),
            "vector": to_column(X, dtype),
            "stars": pd.Series(stars, dtype="int64[pyarrow]"),
            "text": pd.Series([f"text {i}" for i in ids], dtype=pd.ArrowDtype(pa.string())),
            "centroid": pd.Series(labels, dtype="int32[pyarrow]"),
            "l2_dist_to_cent": pd.Series(distances, dtype="float[pyarrow]"),
            "cosine_dist_to_cent": pd.Series(distances, dtype="float[pyarrow]"),
        }
    )
    if isinstance(partitions, int):
        lazy = dd.from_pandas(frame, npartitions=partitions, sort=False)
    else:  # where they end
        pieces = [frame.iloc[a:b] for a, b in pairwise([0, *partitions, len(frame)])]
        lazy = dd.from_map(lambda piece: piece, pieces, meta=frame.iloc[:0])
    with dask.config.set({"daskmeans.bucket-bytes": bucket_rows * 4 * X.shape[1]}):
        write_buckets(lazy, str(path), id_field="key", layout=layout)
    return path


def tuned_dedup(tuning, clusters, threshold=None, **arguments):
    """As `dedup`, with work in the sizes of `tuning`."""
    names = [each.name for each in dataclasses.fields(Deciding)]
    options = {name: arguments.pop(name) for name in names if name in arguments}
    return dedup_step(clusters, Deciding(threshold, **options), tuning=tuning, **arguments)


def decisions_of(path):
    files = sorted((path / "decisions").iterdir())
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()


KINDS = ["plain", "copies", "equidistant", "tiny", "huge", "far", "one of the rows", "mixed sizes", "zeros"]


def adversarial(kind: str, n: int, d: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and centroids of one of the KINDS, which are hard to tell apart; float32, shapes (n, d) and (k, d)."""
    rng = np.random.default_rng(seed)
    X, C = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    if kind == "copies":  # duplicate rows and duplicate centroids
        X, C = X[rng.integers(0, 3, n) % n], C[rng.integers(0, 2, k) % k]
    elif kind == "equidistant":  # all centroids on a sphere about all rows
        X = np.zeros((n, d))
        C = np.sign(C)
    elif kind == "tiny":
        X, C = X * 1e-30, C * 1e-30
    elif kind == "huge":
        X, C = X * 1e14, C * 1e14
    elif kind == "far":  # small differences far from the origin
        X, C = 1000 + X, 1000 + C
    elif kind == "one of the rows":
        C = X[rng.integers(0, n, k)]
    elif kind == "mixed sizes":
        X, C = X * 10.0 ** rng.integers(-6, 6, (n, 1)), C * 10.0 ** rng.integers(-6, 6, (k, 1))
    elif kind == "zeros":
        X[::2], C[::2] = 0, 0
    return np.ascontiguousarray(X, np.float32), np.ascontiguousarray(C, np.float32)


def die_once(marker):
    """End this process, if it is the first to be here."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return "alive"
    os.kill(os.getpid(), signal.SIGKILL)


def miss_a_file():
    """Fail as a file that is not there does."""
    raise FileNotFoundError(2, "no such file", "rows")


def call_until_killed(folder: Path, writes: int, function: Callable, args: tuple, settings: dict) -> None:
    """Call `function`, and end this process as it opens a file below `folder` to write for the time after `writes`."""
    left = itertools.count(writes, -1)

    def watch(event: str, given: tuple) -> None:
        written = event == "open" and str(given[0]).startswith(str(folder)) and set(str(given[1])) & set("wxa+")
        if written and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    with contextlib.suppress(DaskmeansError):
        function(*args, **settings)


class Outline(HTMLParser):
    """Checks that elements are nested, and gathers what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    assert parsed.open == []
    return parsed
