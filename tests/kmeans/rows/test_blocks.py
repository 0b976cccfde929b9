"""Blocks hold each row once, wherever it lies, in memory and on disk; what an engine notes stays with them."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dask._task_spec import GraphNode
from dask.highlevelgraph import HighLevelGraph

from daskmeans.errors import DataError
from daskmeans.kmeans.rows.block import Block, MemoryBudget
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.runtime import executor
from daskmeans.runtime.client import n_threads
from daskmeans.tuning import DEFAULT, Tuning
from helpers import blobs, count_visits, rows_of


@pytest.fixture(params=["here", "cluster", "threads"])
def place(request):
    if request.param == "here":
        return None
    if request.param == "cluster":
        return request.getfixturevalue("client")
    return request.getfixturevalue("thread_client")(3)


@pytest.fixture(params=["memory", "disk"])
def shelf(request):
    return request.param


def loaded(X, place, chunk=70, shelf="memory", **options):
    tuning = Tuning(memory=0) if shelf == "disk" else DEFAULT
    settings = {"column": None, "normalize": False, "sample_fraction": 1.0, "seed": 3, "client": place} | options
    return load_blocks(da.from_array(X, chunks=(chunk, -1)), **settings, tuning=tuning)


def numbered(blocks):
    """All rows of `blocks` by number."""
    found = [entry for part in blocks.map(rows_of, name="test-rows") for entry in part]
    numbers = np.concatenate([numbers for numbers, _, _ in found])
    X = np.concatenate([rows for _, rows, _ in found])
    order = np.argsort(numbers)
    return numbers[order], X[order]


def test_rows_lie_once_and_keep_their_numbers(place, shelf):
    X = blobs(n=500)
    blocks = loaded(X, place, shelf=shelf)
    assert (blocks.n_rows, blocks.dimension) == X.shape
    assert all(on_disk == (shelf == "disk") for part in blocks.map(rows_of, name="t") for _, _, on_disk in part)
    numbers, rows = numbered(blocks)
    np.testing.assert_array_equal(numbers, np.arange(500))
    np.testing.assert_array_equal(rows, X)
    wanted = np.array([499, 0, 70, 69, 70])
    np.testing.assert_array_equal(blocks.rows(wanted), X[wanted])


def test_what_an_engine_notes_stays_with_the_block(place, shelf):
    blocks = loaded(blobs(n=500), place, shelf=shelf)
    for visit in (1, 2, 3):
        seen = [entry for part in blocks.map(count_visits, 10, name="test-visits") for entry in part]
        assert seen == [(visit, 10.0 * visit)] * len(blocks.lengths)


def test_subsets_are_nested_and_do_not_depend_on_the_cut(place, shelf):
    X = blobs(n=2000)
    blocks = loaded(X, place, shelf=shelf)
    alone = loaded(X, None, chunk=333)
    before = np.empty(0, np.int64)
    for count in (20, 300, 1500, 2000):
        subset = blocks.subset(count, seed=7)
        numbers, rows = numbered(subset)
        assert subset.n_rows == len(numbers) == len(np.unique(numbers))
        assert abs(subset.n_rows - count) <= 4 * np.sqrt(count * (1 - count / 2000))
        assert np.isin(before, numbers).all()
        np.testing.assert_array_equal(rows, X[numbers])
        np.testing.assert_array_equal(numbers, numbered(alone.subset(count, seed=7))[0])
        np.testing.assert_array_equal(subset.rows(numbers[::-3]), X[numbers[::-3]])
        before = numbers
    assert not np.isin(numbered(blocks.subset(300, seed=8))[0], numbered(blocks.subset(300, seed=7))[0]).all()


def test_a_subset_of_a_subset_is_one_of_its_rows(place):
    X = blobs(n=2000)
    half = loaded(X, place).subset(1000, seed=1)
    numbers, rows = numbered(half.subset(200, seed=2))
    assert 140 < len(numbers) < 260
    assert np.isin(numbers, numbered(half)[0]).all()
    np.testing.assert_array_equal(rows, X[numbers])


def test_a_sample_is_the_same_wherever_rows_lie(place, shelf):
    X = blobs(n=2000)
    numbers, rows, counts = loaded(X, place, shelf=shelf).sample_rows(100, seed=5)
    np.testing.assert_array_equal(counts, np.ones(100))
    np.testing.assert_array_equal(rows, X[numbers])
    np.testing.assert_array_equal(numbers, loaded(X, None, chunk=999).sample_rows(100, seed=5)[0])
    of_subset, *_ = loaded(X, place, shelf=shelf).subset(1000, seed=5).sample_rows(100, seed=5)
    assert len(np.unique(of_subset)) == 100


def test_empty_partitions_are_no_blocks_of_a_group(place):
    X = blobs(n=300)
    parts = [X[:0], X[:100], X[100:100], X[100:], X[:0]]
    blocks = load_blocks(
        da.concatenate([da.from_array(p, chunks=(300, 16)) for p in parts]), None, False, 1.0, 0, place
    )
    assert blocks.lengths == [0, 100, 0, 200, 0] or sum(blocks.lengths) == 300
    assert all(n for part in blocks.map(rows_of, name="t") for n in [len(rows) for _, rows, _ in part])
    np.testing.assert_array_equal(numbered(blocks)[1], X)


def test_partitions_of_different_dimensions_are_refused(place):
    rows = [pd.Series([[1.0] * d] * 3, dtype=pd.ArrowDtype(pa.list_(pa.float32()))) for d in (4, 5)]
    frame = dd.from_delayed([dask.delayed(part) for part in rows], meta=rows[0].iloc[:0]).to_frame("v")
    with pytest.raises(DataError, match=r"(4|5) dimensions"):
        load_blocks(frame["v"], None, False, 1.0, 0, place)


def test_a_block_travels_with_its_rows_alone(shelf):
    X = blobs(n=60)
    budget = MemoryBudget("travel", memory=(1 << 20) * (shelf == "memory"))
    for numbers in (None, np.arange(60) * 3):
        block = Block(X, budget, numbers)
        block.first = 7
        block.notes["a"] = 1
        block.allocate("labels", (60,), np.int32)
        moved = pickle.loads(pickle.dumps(block))
        assert moved.on_disk == block.on_disk == (shelf == "disk")
        assert moved.notes == {}
        with moved.open() as arrays:
            assert list(arrays) == ["rows"]
            np.testing.assert_array_equal(arrays["rows"], X)
        if numbers is not None:
            np.testing.assert_array_equal(moved.numbers, numbers)


def test_arrays_of_a_block(shelf):
    X = blobs(n=60)
    block = Block(X, MemoryBudget("arrays", memory=(1 << 20) * (shelf == "memory")))
    block.allocate("a", (60, 3), np.float32)
    block.allocate("none", (0, 3), np.float32)
    with block.open() as arrays:
        assert arrays["none"].shape == (0, 3)
        assert arrays["rows"].flags.c_contiguous and not arrays["rows"].flags.writeable
        assert not arrays["a"].any()
        arrays["a"][:] = 5
        with pytest.raises(ValueError, match="read-only"):
            arrays["rows"][0] = 0
    with block.open() as arrays:
        assert (arrays["a"] == 5).all()
        last = arrays["a"]
    assert (last == 5).all()
    block.allocate("a", (60, 2), np.int8)
    with block.open() as arrays:
        assert arrays["a"].shape == (60, 2) and not arrays["a"].any()
    block.drop("a", "none", "unknown")
    with block.open() as arrays:
        assert list(arrays) == ["rows"]


def test_released_blocks_are_gone(client):
    blocks = loaded(blobs(n=500), client)
    subset = blocks.subset(100, 0)
    subset.release()
    blocks.release()
    client.sync(_no_keys, client)


async def _no_keys(client):
    import asyncio

    while any("block" in key for keys in (await client.scheduler.has_what()).values() for key in keys):
        await asyncio.sleep(0.05)


@pytest.fixture
def sent(monkeypatch):
    """A list to which the number of tasks is added that are sent to be held."""
    counts = []

    def hold(tasks, label="", client=None):
        graph = HighLevelGraph.merge(*(task.dask for task in tasks))
        counts.append(sum(isinstance(node, GraphNode) for node in graph.values()))
        return held(tasks, label, client)

    held = executor.persist
    monkeypatch.setattr(executor, "persist", hold)
    return counts


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [("stored", 20), ("computed", 20), ("delayed", 20), ("held", 20), ("narrow", 20), ("shared", 254)],
)
def test_small_chunks_are_read_by_the_task_that_needs_them(kind, tasks, place, sent):
    stored = da.from_array(blobs(n=1000), chunks=(10, -1), name=False)
    makers = {
        "stored": lambda: stored,
        "computed": lambda: stored.astype(np.float64) * 2 + 1,
        "delayed": lambda: da.concatenate(
            [da.from_delayed(p, (10, 16), np.float32) for p in stored.to_delayed()[:, 0]]
        ),
        "shared": lambda: stored - stored.mean(axis=0),
        "narrow": lambda: stored.rechunk((10, 4)),
        "held": lambda: stored.persist(),
    }
    X = makers[kind]()
    whole = X.compute().astype(np.float32)
    blocks = load_blocks(X, None, False, 1.0, 0, place, tuning=Tuning(blocks_each=20 // n_threads(place)))
    assert blocks.lengths == [50] * 20
    assert sent == [tasks]
    np.testing.assert_array_equal(blocks.rows(np.arange(1000)), whole)
    np.testing.assert_array_equal(X.compute().astype(np.float32), whole)


def test_a_large_chunk_among_small_ones_stays_as_it_is(place):
    rows = blobs(n=1000)
    small, large = (da.from_array(part, chunks=(size, -1)) for part, size in ((rows[:500], 10), (rows[500:], 500)))
    mixed = da.concatenate([small, large])
    for X in (mixed, mixed.persist()):
        np.testing.assert_array_equal(load_blocks(X, None, False, 1.0, 0, place).rows(np.arange(1000)), rows)
        np.testing.assert_array_equal(X.compute(), rows)


def test_small_chunks_of_an_array_are_joined():
    X = blobs(n=3000)
    chunks = da.from_array(X, chunks=(7, -1))
    blocks = load_blocks(chunks, None, True, 1.0, 0, None)
    assert len(blocks.lengths) < 40
    np.testing.assert_array_equal(
        blocks.rows(np.arange(3000)), load_blocks(X, None, True, 1.0, 0, None).rows(np.arange(3000))
    )
    X[1234, 3] = np.nan
    with pytest.raises(DataError, match="row 1234: the vector holds NaN"):
        load_blocks(da.from_array(X, chunks=(7, -1)), None, True, 1.0, 0, None)
