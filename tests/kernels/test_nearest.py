"""The search for nearest centroids: labels are those of a float64 brute force, whatever screen and bounds are used."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import dask
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskmeans import KMeans
from daskmeans.kernels.bounds import Bounds, Drift, groups_per_bound, n_bounds, zero_drift
from daskmeans.kernels.center_groups import group_centers, near_groups, order_by_group
from daskmeans.kernels.distances import nearest_centroids
from daskmeans.kernels.jit import as_readonly
from daskmeans.kernels.microkernel import capability, cpu_features, has_byte_instructions, score_tile
from daskmeans.kernels.quantize import COLUMNS, encode_rows, pack_centroids
from daskmeans.kernels.simd import squared_distance64
from daskmeans.kernels.yinyang import ALL_GROUPS, find_nearest
from helpers import KINDS, adversarial, blobs

SCREENS = ["auto", "float32"]


def brute(X, C):
    """Labels in float64, ties to the lower label, and the squared distances to all centroids."""
    squares = ((X[:, None].astype(float) - C[None].astype(float)) ** 2).sum(-1)
    return squares.argmin(1), squares


@numba.njit
def first_nearest(X, C):
    """Labels by the distances that daskmeans promises to compare, each of them computed; ties to the lower label."""
    labels, squares = np.empty(len(X), np.int64), np.empty(len(X))
    for i in range(len(X)):
        labels[i], squares[i] = 0, np.inf
        for c in range(len(C)):
            square = squared_distance64(X[i], C[c])
            if square < squares[i]:
                labels[i], squares[i] = c, square
    return labels, squares


@pytest.mark.parametrize("kernels", SCREENS)
@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 70), d=st.integers(1, 40), k=st.integers(1, 120), seed=st.integers(0, 1000))
def test_labels_are_exact_on_adversarial_data(kernels, kind, n, d, k, seed):
    X, C = adversarial(kind, n, d, k, seed)
    with dask.config.set({"daskmeans.kernels": kernels}):
        labels, squares = nearest_centroids(X, C)
    expected, nearest_squares = first_nearest(X, C)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(squares, nearest_squares)
    # And these distances are those of another summation.
    _, others = brute(X, C)
    np.testing.assert_allclose(squares, others[np.arange(n), labels], rtol=1e-12)


@numba.njit
def scores_of(rows, columns, scores):
    """Scores of eight rows with the columns of each group."""
    picked, tops = np.arange(8).astype(np.int32), np.empty(8, np.float32)
    for g in range(columns.ids.shape[0]):
        score_tile(
            rows.codes, rows.scales, rows.biases, picked, 0, columns.packed, g, columns.scales, columns.halves,
            scores[g], tops,
        )  # fmt: skip


@pytest.mark.skipif(not has_byte_instructions(), reason="the processor has no instructions that multiply bytes")
@given(d=st.integers(1, 70), k=st.integers(1, 60), spread=st.sampled_from([0.0, 0.1, 1.0]), seed=st.integers(0, 1000))
def test_sums_of_bytes_never_overflow(d, k, spread, seed):
    """Scores are those of the codes in numbers of any size, also of the largest rows and columns that there can be."""
    rng = np.random.default_rng(seed)
    signs = [np.ones(d), -np.ones(d), rng.choice([-1, 1], d), rng.choice([0, 1], d), np.arange(d) % 8 < 4]
    rows, columns = (np.stack([signs[i % 5] for i in range(count)]) for count in (8, k))
    X, C = ((each + spread * rng.standard_normal(each.shape)).astype(np.float32) for each in (rows, columns))
    codes, packed = encode_rows(X, np.zeros(d)), pack_centroids(C, np.zeros(d))
    scores = np.empty((len(packed.ids), 8, COLUMNS), np.float32)
    scores_of(codes, packed, scores)
    width = codes.codes.shape[1]
    whole = packed.packed.astype(int).transpose(1, 3, 0, 2).reshape(width, -1)  # as many columns as the groups hold
    products = codes.codes.astype(int) @ whole - codes.biases[:, None]
    expected = products.astype(np.float32) * codes.scales[:, None] * packed.scales.ravel() - packed.halves.ravel()
    np.testing.assert_array_equal(scores.transpose(1, 0, 2).reshape(8, -1), expected)


def test_both_screens_give_the_same_bits():
    X, C = adversarial("far", 5000, 64, 300, 0)
    answers = []
    for kernels in SCREENS:
        with dask.config.set({"daskmeans.kernels": kernels}):
            answers.append(nearest_centroids(X, C))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


@pytest.mark.parametrize("kernels", SCREENS)
@given(
    kind=st.sampled_from(["plain", "copies", "equidistant", "one of the rows", "zeros"]),
    seed=st.integers(0, 1000),
    k=st.integers(1, 250),
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 1e-6, 1e-3, 0.03, 0.3, 3.0]), st.booleans()), min_size=1, max_size=6
    ),
    together=st.integers(1, 3),
)
def test_bounds_never_change_a_label(kernels, kind, seed, k, steps, together):
    """Passes over near groups first, as long as the first of `steps` say so, then over all."""
    rng = np.random.default_rng(seed)
    X, C = adversarial(kind, 200, 6, k, seed)
    center = X.mean(axis=0, dtype=float)
    order = order_by_group(C, COLUMNS)
    group = np.empty(k, int)
    group[order] = np.arange(k) // COLUMNS
    near = near_groups(X, group_centers(C, order, COLUMNS), min(2, -(-k // COLUMNS)))[0]
    bounded = -(-k // (COLUMNS * together))
    with dask.config.set({"daskmeans.kernels": kernels}):
        codes = encode_rows(X, center)
        bounds = Bounds(np.full(200, -1, np.int32), np.empty(200, np.float32), np.zeros((200, bounded), np.float32))
        each, widest = np.zeros(k), np.zeros(bounded)
        some_groups = True
        for size, only_near in steps:
            some_groups &= only_near
            find_nearest(
                as_readonly(X), codes, pack_centroids(C, center, order), bounds,
                Drift(as_readonly(each), as_readonly(widest)), together,
                near if some_groups else ALL_GROUPS, np.empty(0),
            )  # fmt: skip
            for i in range(200):
                those = np.flatnonzero(np.isin(group, near[i])) if some_groups else np.arange(k)
                assert bounds.labels[i] == those[first_nearest(X[i : i + 1], C[those])[0][0]]
            some = rng.random((k, 1)) < 0.3  # a few centroids move much, most little
            moved = (C + size * rng.normal(size=C.shape) * np.where(some, 1, 0.01)).astype(np.float32)
            way = np.sqrt(((moved.astype(float) - C) ** 2).sum(1)) * (1 + 1e-12)
            each = each + way
            widest = widest + [
                way[order[b * COLUMNS * together : (b + 1) * COLUMNS * together]].max() for b in range(bounded)
            ]
            C = moved


@given(n=st.integers(1, 30), d=st.integers(1, 40), groups=st.integers(1, 120), seed=st.integers(0, 1000))
def test_near_groups_are_those_of_a_brute_force(n, d, groups, seed):
    X, middles = adversarial(("copies", "plain", "far")[seed % 3], n, d, groups, seed)
    count = 1 + seed % min(groups, 16)
    near, _ = near_groups(X, middles, count)
    _, squares = brute(X, middles)
    assert all(len(set(mine)) == count for mine in near.tolist())
    np.testing.assert_allclose(np.take_along_axis(squares, near, 1), np.sort(squares)[:, :count], atol=0.02)
    if seed % 3 == 0:  # copies of a middle: the lower number first
        for mine, square in zip(near, squares, strict=True):
            assert all(a < b for a, b in pairwise(mine) if square[a] == square[b])


def test_bounds_save_most_of_the_work_once_centroids_rest():
    X = blobs(n=4000, d=16, k=60)
    C = KMeans(60, normalize=False, max_iter=5).fit(X).cluster_centers_
    center = X.mean(axis=0, dtype=float)
    codes, columns = encode_rows(X, center), pack_centroids(C, center)
    bounds = Bounds(np.full(4000, -1, np.int32), np.empty(4000, np.float32), np.empty((4000, 2), np.float32))
    first, second = (
        find_nearest(as_readonly(X), codes, columns, bounds, zero_drift(60, 2), 1, ALL_GROUPS, np.empty(0))
        for _ in range(2)
    )
    assert first >= 4000 * 60
    assert second < first / 3


@given(k=st.integers(1, 200_000))
def test_bounds_of_a_row_are_few_and_cover_all_centroids(k):
    groups = -(-k // COLUMNS)
    assert n_bounds(k) * groups_per_bound(k) >= groups
    assert n_bounds(k) <= 96


@given(k=st.integers(1, 300), seed=st.integers(0, 20))
def test_neighbours_is_a_permutation(k, seed):
    C = np.random.default_rng(seed).normal(size=(k, 3)).astype(np.float32)
    C[::3] = C[0]
    assert sorted(order_by_group(C, COLUMNS).tolist()) == list(range(k))


def test_neighbours_are_near_one_another():
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(6), COLUMNS))
    C = (20 * rng.normal(size=(6, 8))[truth] + rng.normal(size=(len(truth), 8))).astype(np.float32)
    found = truth[order_by_group(C, COLUMNS)].reshape(6, COLUMNS)
    assert (found == found[:, :1]).all()


def test_the_screen_is_named():
    with dask.config.set({"daskmeans.kernels": "float32"}):
        assert capability().startswith("float32")
        assert not has_byte_instructions()
    assert capability().startswith("int8") == has_byte_instructions()


# What runs on machines with these instructions.
MACHINES = {
    "int8 (AVX-512 VNNI)": {"avx2", "fma", "avx512f", "avx512vnni"},
    "int8 (AVX-VNNI)": {"avx2", "fma", "avxvnni"},
    "int8 (AVX2)": {"avx2", "fma"},
    "float32": set(),
}

PROGRAM = """
import sys, numpy as np
from daskmeans.kernels import microkernel
if sys.argv[1]:
    microkernel.cpu_features = lambda: frozenset(sys.argv[1].split(","))
from daskmeans import KMeans
from daskmeans.tuning import Tuning
X = np.random.default_rng(0).normal(size=(16000, 40)).astype(np.float32)
km = KMeans(150, max_iter=5)._fit(X, tuning=Tuning(least_sample=0, near_groups=1))
history = [inertia.hex() for inertia in km.inertia_history_]
print(microkernel.capability(), km.inertia_.hex(), history, km.labels_.sum(), sep="|", end="|")
print(km.cluster_centers_.tobytes().hex())
"""


@pytest.mark.nightly
@pytest.mark.skipif("avx2" not in cpu_features(), reason="an instruction set of which this test knows no part")
def test_the_same_bits_with_other_instructions(tmp_path):
    running = {}
    able = cpu_features() | ({"avxvnni"} if "avx512vnni" in cpu_features() else set())  # the same in narrower registers
    for name, there in MACHINES.items():
        if not there <= able:
            continue
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, ",".join(sorted(there))]
        # A cache of its own: numba does not know what the program pretends.
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / name), "PATH": "/usr/bin"}
        if not there:
            environment["NUMBA_CPU_NAME"] = "generic"
        running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    answers = {name: process.communicate()[0] for name, process in running.items()}
    assert not any(process.returncode for process in running.values())
    assert len({answer.split("|", 1)[1] for answer in answers.values()}) == 1, answers
    assert all(answer.startswith(name) for name, answer in answers.items())
