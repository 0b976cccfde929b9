"""Pairs found by sketches, against the scores of all pairs."""

import tracemalloc

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskmeans.kernels import all_pairs as module
from daskmeans.kernels.all_pairs import find_directions, find_pairs, make_sketches, n_sample_rows, sketch_rows
from daskmeans.kernels.microkernel import BYTES, byte_instructions, has_byte_instructions
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.within_cluster import pair_score
from daskmeans.pairs.memory import directions_bytes
from helpers import NIGHTLY

KERNELS = [
    pytest.param("auto", marks=pytest.mark.skipif(not has_byte_instructions(), reason="no byte products")),
    "float32",
]


def rows_of(kind, seed, n, d):
    rng = np.random.default_rng(seed)
    if kind == "alike":
        X = np.tile(rng.standard_normal(d), (n, 1))
    elif kind == "orthogonal":
        X = np.eye(d)[np.arange(n) % d] * rng.choice([-1, 1], (n, 1))
    elif kind == "near":  # around a few directions, down to the last bit
        X = rng.standard_normal((3, d))[rng.integers(3, size=n)]
        X = X + rng.choice([0, 1e-7, 1e-3, 0.1], (n, 1)) * rng.standard_normal((n, d))
    elif kind == "spectrum":
        X = rng.standard_normal((n, d)) / (1 + np.arange(d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    else:
        X = rng.standard_normal((n, d))
    X = X.astype(np.float32)
    if kind == "zeros":
        X[rng.random(n) < 0.3] = 0
    normalize_rows(X)
    if kind == "edges":  # norms as far from 1 as those of unit rows may be
        X *= 1 + rng.choice([-3.9, 0, 3.9], (n, 1)).astype(np.float32) * np.float32(2**-24)
    return X


def found_pairs(one, other, floor, rows, columns, same, **room):
    """All pairs, as lists."""
    parts = list(find_pairs(one, other, floor, rows, columns, same=same, **room))
    return [value for part in parts for value in zip(*(column.tolist() for column in part), strict=True)]


@pytest.mark.parametrize("kernels", KERNELS)
@settings(deadline=None, max_examples=200 if NIGHTLY else 50)
@given(
    kind=st.sampled_from(["alike", "orthogonal", "near", "spectrum", "spread", "zeros", "edges"]),
    seed=st.integers(0, 2**32),
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    d=st.sampled_from([1, 2, 3, 7, 37, 64, 200, 2048]),
    p=st.sampled_from([0, 1, 5, 32]),
    rank=st.floats(0, 1),
    data=st.data(),
)
def test_no_pair_is_missed_and_none_invented(kernels, kind, seed, n, m, d, p, rank, data):
    """The floor is the score of one of the pairs, to the bit, so that every error in a bound would show."""
    X = rows_of(kind, seed, n + m, d)
    rng = np.random.default_rng(seed)
    P = module._scale_axes(np.linalg.qr(rng.standard_normal((d, min(p, d))))[0]) if p else np.empty((d, 0), np.float32)
    a, b = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    c, e = sorted((data.draw(st.integers(0, m)), data.draw(st.integers(0, m))))
    _, same_rows = np.unique(X, axis=0, return_inverse=True)
    with dask.config.set({"daskmeans.kernels": kernels}):
        one, other = make_sketches(X[:n], P), make_sketches(X[n:], P)
        for first, held, columns, same in ((0, one, slice(0, n), True), (n, other, slice(c, e), False)):
            Y = X[:n] if same else X[n:]
            scores = np.array([[pair_score(x, y) for y in Y] for x in X[:n]], np.float32)
            there = np.sort(scores[scores >= 0.3])
            floor = there[int(rank * (len(there) - 1))] if len(there) else np.float32(1)
            found = found_pairs(one, held, floor, slice(a, b), columns, same)
            expected = [
                (i, j, scores[i, j], bool(same_rows[i] == same_rows[first + j]))
                for i in range(a, b)
                for j in range(columns.start, min(columns.stop, i) if same else columns.stop)
                if scores[i, j] >= floor and X[i].any()
            ]
            assert sorted(found) == expected


@pytest.mark.parametrize("d", [5, 40, 400, 2048])
def test_bounds_hold_where_they_are_reached(d):
    """All that the bytes of one row lose lies along the other: a bound by any less would miss the pair."""
    step = 1 / BYTES.get(byte_instructions(), 127)
    x, y = np.full(d, 0.4999 * step, np.float32), np.full(d, 1.0, np.float32)
    x[0], y[0] = 1, 0
    X = np.stack([x, y])
    normalize_rows(X)
    score = pair_score(X[0], X[1])
    one, other = (make_sketches(X[i : i + 1], np.empty((d, 0), np.float32)) for i in range(2))
    for rows, columns in ((one, other), (other, one)):
        assert found_pairs(rows, columns, score, slice(0, 1), slice(0, 1), False) == [(0, 0, score, False)]
        assert found_pairs(rows, columns, np.nextafter(score, np.float32(1)), slice(0, 1), slice(0, 1), False) == []


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), d=st.integers(6, 80), p=st.integers(1, 5), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_products_of_sketches_are_bounds(seed, d, p, scale):
    rng = np.random.default_rng(seed)
    X = (scale * rows_of("spectrum", seed, 60, d)).astype(np.float32)
    P = module._scale_axes(rng.standard_normal((d, p)))
    assert np.linalg.norm(P.astype(np.float64), 2) <= 1
    F, loose = sketch_rows(X, P)
    above = F.astype(np.float64) @ F.T + loose - X.astype(np.float64) @ X.T
    assert above.min() >= 0
    assert np.median(above) < 2 * scale**2


def test_more_pairs_than_are_collected_at_a_time():
    X = np.ones((1500, 4), np.float32) + np.linspace(0, 1e-3, 1500, dtype=np.float32)[:, None] * [1, 0, 0, 0]
    X = X.astype(np.float32)
    normalize_rows(X)
    rows = make_sketches(X, np.empty((4, 0), np.float32))
    found = found_pairs(rows, rows, np.float32(0.9), slice(0, 1500), slice(0, 1500), True, room=module.CHUNK * 48)
    assert sorted(pair[:2] for pair in found) == [(i, j) for i in range(1500) for j in range(i)]


def test_directions_are_worth_their_while():
    X = (np.random.default_rng(0).standard_normal((3000, 300)) / np.sqrt(1 + np.arange(300))).astype(np.float32)
    normalize_rows(X)
    few, all_of_them = find_directions(X, 0.95), find_directions(X, 0.2)
    assert 0 < few.shape[1] < 300
    assert np.linalg.norm(few.astype(np.float64), 2) <= 1
    assert all_of_them.shape == (300, 0)
    assert find_directions(X[:, :20], 0.95).shape == (20, 0)


def wide_rows(n, d, rank, noise):
    """Unit rows of `d` dimensions around a few directions, the first of which are the longest."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, rank)) / np.sqrt(1 + np.arange(rank)) @ rng.standard_normal((rank, d))
    X = (X + noise * rng.standard_normal((n, d))).astype(np.float32)
    normalize_rows(X)
    return X


@pytest.mark.parametrize(("n", "d"), [(8192, 300), (8192, 1024), (1365, 12_288), (300, 12_288)])
def test_directions_take_the_memory_that_was_foreseen(n, d):
    X = wide_rows(n, d, 20, 0.1)
    assert n <= n_sample_rows(d)
    tracemalloc.start()
    try:
        find_directions(X, 0.9)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    foreseen = directions_bytes(n, d)
    assert 0.3 * foreseen <= taken <= foreseen


def test_directions_of_wide_rows_are_their_principal_axes():
    X = wide_rows(700, 1500, 60, 0.3)
    P = find_directions(X, 0.9)
    p = P.shape[1]
    assert p >= 32
    assert np.linalg.norm(P.astype(np.float64), 2) <= 1
    held = np.square(X.astype(np.float64) @ P).sum()
    best = np.square(np.linalg.svd(X.astype(np.float64), compute_uv=False)[:p]).sum()
    assert 0.99 * best <= held <= best


def test_directions_of_few_wide_rows_are_tried_on_others():
    """Those of a sample without directions in common hold most of its rows, and hardly any of the others."""
    X = np.random.default_rng(0).standard_normal((700, 4000)).astype(np.float32)
    normalize_rows(X)
    assert find_directions(X, 0.9).shape == (4000, 0)


@pytest.mark.parametrize("rows", [np.zeros((0, 2000)), np.zeros((90, 2000)), np.ones((1, 2000)), np.ones((90, 2000))])
def test_directions_of_any_wide_rows(rows):
    X = rows.astype(np.float32)
    normalize_rows(X)
    P = find_directions(X, 0.9)
    assert np.isfinite(P).all()
    assert np.linalg.norm(P.astype(np.float64), 2) <= 1 if P.size else True
    found = make_sketches(X, P)
    pairs = found_pairs(found, found, np.float32(0.9), slice(0, len(X)), slice(0, len(X)), True)
    assert len(pairs) == (len(X) * (len(X) - 1) // 2 if X.any() else 0)
