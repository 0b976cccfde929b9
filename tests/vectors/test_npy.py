"""Headers of NumPy files, parsed by several threads at once."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from daskmeans.vectors import npy


class Node:
    """Something that only the garbage collector ends."""

    def __init__(self) -> None:
        self.me = self


def at_depth(depth, function):
    return function() if depth == 0 else at_depth(depth - 1, function)


@pytest.fixture
def restless():
    """Threads take turns as often as they can, also while a header is parsed, where garbage is collected."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(10)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


@pytest.mark.parametrize(
    "read", [lambda path: npy.read_header(UPath(path))[:2], lambda path: npy.load_array(path.read_bytes()).shape]
)
def test_headers_are_parsed_by_many_threads(tmp_path: Path, restless, read):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 7), np.float32))

    def work(depth: int) -> set[tuple[int, int]]:
        found = set()
        for _ in range(1000):
            node = Node()
            ended = weakref.ref(node, lambda _: sum(range(50)))
            del node
            found.add(at_depth(depth, lambda: read(path)))
            del ended
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [3, 20])) == [{(2, 7)}] * 2
