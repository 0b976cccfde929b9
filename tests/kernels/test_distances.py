"""Kernels against brute force in float64 and exact integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from daskmeans.kernels.distances import all_distances, cosine_distances, nearest_centroids, squared_distances
from daskmeans.kernels.hashing import hash_column, hash_integers, hash_rows, to_uniform
from daskmeans.kernels.norms import find_unusual_rows, normalize_rows, rounding_bound, squared_norms64
from daskmeans.kernels.simd import dot64, largest64, squared_distance64
from daskmeans.kernels.sums import add_rows, as_number, exact_sum, move_weighted_rows, scale_for, sum_rows

numbers = st.floats(-100, 100, width=32)


def matrices(rows: st.SearchStrategy[int], d: int, elements: st.SearchStrategy = numbers) -> st.SearchStrategy:
    return rows.flatmap(lambda n: npst.arrays(np.float32, (n, d), elements=elements))


@given(d=st.integers(1, 40), data=st.data())
def test_dot_is_within_float64_rounding_of_the_exact_product(d, data):
    x, y = data.draw(npst.arrays(np.float32, (2, d), elements=numbers))
    exact = sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, y, strict=True)), Fraction(0))
    magnitude = float(np.abs(x.astype(float)) @ np.abs(y.astype(float)))
    assert abs(dot64(x, y) - float(exact)) <= d * 2.0**-52 * magnitude
    assert squared_distance64(x, x) == 0.0


@given(x=npst.arrays(np.float32, st.integers(0, 60), elements=numbers))
def test_largest_is_the_largest_magnitude(x):
    assert largest64(x) == max(map(abs, x.tolist()), default=0.0)
    assert largest64(-x) == largest64(x)


@given(d=st.integers(1, 200), seed=st.integers(0, 1000))
def test_rounding_bound_holds_for_float32_products_in_any_order(d, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, d)).astype(np.float32)
    limit = rounding_bound(d) * np.linalg.norm(x.astype(float)) * np.linalg.norm(y.astype(float))
    for order in (np.arange(d), np.arange(d)[::-1], rng.permutation(d)):
        total = np.float32(0)
        for i in order:
            total += x[i] * y[i]
        assert abs(float(total) - dot64(x, y)) <= limit


@given(d=st.integers(1, 6), data=st.data())
def test_nearest_is_the_brute_force_argmin_with_ties_to_the_lower_label(d, data):
    # Few distinct small integers: many exact ties, and every distance is exact in float64.
    small = st.integers(-2, 2).map(float)
    X = data.draw(matrices(st.integers(1, 30), d, small))
    centroids = data.draw(matrices(st.integers(1, 12), d, small))
    brute = ((X[:, None].astype(float) - centroids[None].astype(float)) ** 2).sum(-1)
    labels, squares = nearest_centroids(X, centroids)
    np.testing.assert_array_equal(labels, brute.argmin(1))
    np.testing.assert_array_equal(squares, brute.min(1))
    np.testing.assert_array_equal(squared_distances(X, centroids, labels), brute.min(1))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_decides_below_the_resolution_of_float32_products(offset):
    # At an offset of 1000 the float32 scores of all centroids are equal or noise; only the settling can be right.
    rng = np.random.default_rng(3)
    centroids = (offset + rng.normal(size=(50, 24))).astype(np.float32)
    X = (offset + rng.normal(size=(400, 24))).astype(np.float32)
    brute = ((X[:, None].astype(float) - centroids[None].astype(float)) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest_centroids(X, centroids)[0], brute)


def test_distances_against_float64():
    rng = np.random.default_rng(0)
    X, C = rng.normal(size=(50, 33)).astype(np.float32), rng.normal(size=(7, 33)).astype(np.float32)
    labels = rng.integers(0, 7, 50).astype(np.int32)
    wide, own = X.astype(float), C.astype(float)[labels]
    np.testing.assert_allclose(squared_distances(X, C, labels), ((wide - own) ** 2).sum(1), rtol=1e-13)
    cosine = 1 - (wide * own).sum(1) / np.linalg.norm(wide, axis=1) / np.linalg.norm(own, axis=1)
    np.testing.assert_allclose(cosine_distances(X, C, labels), cosine, atol=1e-14)
    every = np.linalg.norm(wide[:, None] - C.astype(float)[None], axis=2)
    np.testing.assert_allclose(all_distances(X, C, 16), every, atol=1e-6)


def test_cosine_distance_to_a_zero_centroid_is_one():
    assert cosine_distances(np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32), np.zeros(1, np.int32)) == [1.0]


def test_normalize_makes_unit_rows_and_leaves_zeros():
    X = np.float32([[3, 4], [0, 0], [1e-30, 0], [1e15, 1e15]])
    normalize_rows(X)
    np.testing.assert_allclose(squared_norms64(X), [1, 0, 1, 1], atol=1e-7)


@given(seed=st.integers(0, 1000), d=st.sampled_from([1, 2, 7, 48, 300, 2048]))
def test_rows_that_were_normalised_stay_as_they_are(seed, d):
    X = np.random.default_rng(seed).normal(size=(20, d)).astype(np.float32) + np.float32(0.01)
    elsewhere = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert not find_unusual_rows(X)[3]
    normalize_rows(X)
    for rows in (X, elsewhere):
        assert find_unusual_rows(rows)[3]
        again = rows.copy()
        normalize_rows(again)
        assert np.array_equal(again, rows)
        assert not find_unusual_rows(np.vstack([rows, rows[:1] * np.float32(1.0001)]))[3]


@given(order=st.permutations(range(12)), seed=st.integers(0, 100))
def test_sums_do_not_depend_on_the_order(order, seed):
    X = np.random.default_rng(seed).normal(size=(12, 5)).astype(np.float32)
    labels = (np.arange(12) % 3).astype(np.int32)
    scale = scale_for(float(np.abs(X).max()), 12)

    def sums(rows):
        out, counts = np.zeros((3, 5), np.int64), np.zeros(3, np.int64)
        add_rows(X[rows], labels[rows], scale, out, counts)
        return out, counts

    straight, shuffled = sums(np.arange(12)), sums(np.array(order))
    np.testing.assert_array_equal(straight[0], shuffled[0])
    np.testing.assert_array_equal(straight[1], [4, 4, 4])
    means = np.stack([X[labels == c].astype(float).mean(0) for c in range(3)])
    np.testing.assert_allclose(straight[0] / scale / 4, means, atol=1e-12)


@given(seed=st.integers(0, 100))
def test_weighted_sums_are_those_of_repeated_rows(seed):
    rng = np.random.default_rng(seed)
    X, weights = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(1, 9, 40)
    before, labels = rng.integers(0, 3, (2, 40), dtype=np.int32)
    scale = scale_for(float(np.abs(X).max()), weights.sum())
    found, expected = ((np.zeros((3, 5), np.int64), np.zeros(3, np.int64)) for _ in range(2))
    sum_rows(X, before, weights.astype(float), scale, *found)
    moved = move_weighted_rows(X, before, labels, weights.astype(float), scale, *found)
    sum_rows(np.repeat(X, weights, axis=0), np.repeat(labels, weights), None, scale, *expected)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert moved == np.count_nonzero(before != labels)


@given(largest=st.floats(1e-20, 1e30), count=st.integers(1, 10**12))
def test_scaled_sums_fit_into_int64(largest, count):
    scale = scale_for(largest, count)
    assert (Fraction(largest) * Fraction(scale) + 1) * count < 2**63


@given(st.lists(st.floats(0, 1e300), max_size=40), st.integers(0, 40))
@example([5e-324, 2**-1022, 2.0**-1060, 1.7e308, 1e-310], 2)
def test_sums_of_numbers_are_exact(values, cut):
    parts = [exact_sum(np.array(part)) for part in (values[:cut], values[cut:])]
    assert as_number(sum(parts)) == math.fsum(values)


def test_hashes_depend_on_value_and_seed_only():
    words = ["", "a", "b", "ab", "a much longer string than eight bytes", "ä"]
    whole = hash_column(pa.array(words))
    assert len(set(whole.tolist())) == len(words)
    np.testing.assert_array_equal(hash_column(pa.chunked_array([words[:2], words[2:]])), whole)
    np.testing.assert_array_equal(hash_column(pa.array(["x", *words]).slice(1)), whole)
    np.testing.assert_array_equal(hash_column(pa.array(words, pa.large_string())), whole)
    assert not np.array_equal(hash_column(pa.array(words), seed=1), whole)
    assert hash_column(pa.array([], pa.string())).tolist() == []
    np.testing.assert_array_equal(
        hash_column(pa.array([1, -2], pa.int16())), hash_column(pa.array([1, -2], pa.int64()))
    )


def test_hashed_rows_are_equal_exactly_for_equal_bits_but_for_the_sign_of_zero():
    X = np.float32([[1, 2], [1, 2], [2, 1], [0, 1], [-0.0, 1]])
    h = hash_rows(X)
    assert h[0] == h[1] != h[2]
    assert h[3] == h[4]


def test_uniform_numbers_are_uniform():
    u = to_uniform(hash_integers(np.arange(100_000, dtype=np.uint64), 7))
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-squared with 19 degrees of freedom, p = 0.0007
