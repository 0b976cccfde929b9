"""Kernels over pairs of rows, against float64 written out here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.within_cluster import (
    NearestEarlier,
    find_copies,
    first_copies,
    nearest_earlier,
    pair_score,
    select_rows,
)


def unit_rows(seed: int, n: int, d: int, spread: float) -> np.ndarray:
    """Rows around a few directions, so that many pairs are near each other; no two the same."""
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((3, d))[rng.integers(3, size=n)] + spread * rng.standard_normal((n, d))).astype(np.float32)
    normalize_rows(X)
    return X[np.sort(np.unique(X, axis=0, return_index=True)[1])]


def compare(X: np.ndarray, tile_bytes: int, threshold: float, rule: str, cut: int = 0) -> list[np.ndarray]:
    """What rows find among those before them, and what becomes of them; in two runs if there is a `cut`."""
    runs = [nearest_earlier(X, *ends, tile_bytes) for ends in ((0, min(cut, len(X))), (min(cut, len(X)), len(X)))]
    found = NearestEarlier(*map(np.concatenate, zip(*runs, strict=True)))
    return [*found, *select_rows(X, found, np.float32(threshold), rule, tile_bytes)]


def test_scores_are_float64_products_rounded_once():
    X = unit_rows(0, 50, 33, 0.1)
    for x in X:
        for y in X:
            exact = 1.0 if (x == y).all() else min(1.0, float(np.dot(x.astype(np.float64), y.astype(np.float64))))
            assert abs(pair_score(x, y) - exact) <= 2**-24
    assert pair_score(X[0], X[0]) == 1


def test_copies_are_told_from_rows_with_the_same_hash():
    X = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 1], [-0.0, 1]], np.float32)
    expected = [0, 1, 0, 1, 4, 1]
    assert find_copies(X).tolist() == expected
    assert first_copies(X, np.zeros(len(X), np.uint64), np.arange(len(X))).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 300),
    d=st.integers(2, 40),
    spread=st.sampled_from([1.0, 0.1, 1e-3, 1e-6]),
    threshold=st.sampled_from([0.0, 0.5, 0.9, 0.99999, 1.0]),
    rule=st.sampled_from(["survivors", "semdedup"]),
)
def test_the_result_does_not_depend_on_the_tile(seed, n, d, spread, threshold, rule):
    X = unit_rows(seed, n, d, spread)
    whole = compare(X, 1 << 24, threshold, rule)
    for tile_bytes in (1, 4 * 7, 4 * 64, 4 * 1000):
        for one, other in zip(whole, compare(X, tile_bytes, threshold, rule, n // 3), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n", [255, 256, 257, 600])
def test_best_is_the_first_of_the_largest_scores(n):
    X = unit_rows(n, n, 16, 1e-3)
    best, score, stays, *_ = compare(X, 1 << 16, 2, "survivors")
    for i in range(1, len(X)):
        scores = [pair_score(X[i], X[j]) for j in range(i)]
        assert best[i] == int(np.argmax(scores))
        assert score[i] == max(scores)
    assert stays.all()
