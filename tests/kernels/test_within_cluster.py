"""Decisions of one cluster, against the definitions written out in float64."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daskmeans.duplicates.decide import decide_cluster
from daskmeans.duplicates.table import to_table
from daskmeans.kernels.norms import normalize_rows


def brute_force(X, threshold, rule):
    """(keep, kept, kept's score, best, score, reason) of each row of X, in rank order."""
    n = len(X)
    copies = [[bool((X[i] == X[j]).all()) for j in range(n)] for i in range(n)]
    score = [
        [1.0 if copies[i][j] else float(np.float32(min(1.0, fixed_order_dot(X[i], X[j])))) for j in range(n)]
        for i in range(n)
    ]
    rows = []
    for i in range(n):
        best = max(range(i), key=lambda j: (score[i][j], -j), default=0)
        best_score = score[i][best] if i else 0.0
        first = copies[i].index(True)
        if first < i:
            kept = first if rows[first][0] else rows[first][1]
            reason = "exact" if rows[first][0] else "semantic"
            rows.append((False, kept, score[i][kept] if kept >= 0 else None, best, best_score, reason))
            continue
        near = [j for j in range(i) if score[i][j] >= threshold]
        near_kept = [j for j in near if rows[j][0]]
        if near_kept if rule == "survivors" else near:
            kept = max(near_kept, key=lambda j: (score[i][j], -j), default=-1)
            rows.append((False, kept, score[i][kept] if kept >= 0 else None, best, best_score, "semantic"))
        else:
            rows.append((True, -1, None, best, best_score, None))
    return rows


def fixed_order_dot(x, y):
    """Dot product in float64, in the promised order: eight lanes, added pairwise, then the tail."""
    products = x.astype(np.float64) * y.astype(np.float64)
    whole = len(x) - len(x) % 8
    lanes = [0.0] * 8
    for i in range(whole):
        lanes[i % 8] += products[i]
    tail = 0.0
    for product in products[whole:]:
        tail += product
    a, b, c, d, e, f, g, h = lanes
    return float(((a + b) + (c + d)) + ((e + f) + (g + h)) + tail)


def rows_of(kind, seed, n, d):
    rng = np.random.default_rng(seed)
    if kind == "grid":  # few directions: ties, copies, zeros of both signs, zero rows
        X = rng.choice([-1.0, -0.0, 0.0, 1.0], (n, d), p=[0.1, 0.3, 0.3, 0.3])
    elif kind == "near":  # around one direction, down to the last bit
        X = 1 + rng.choice([0, 0, 0, 1e-7, 1e-4, 0.3], (n, d)) * rng.standard_normal((n, d))
    elif kind == "same":
        X = np.tile(rng.standard_normal(d), (n, 1))
    elif kind == "orthogonal":
        X = np.eye(d)[rng.permutation(d)[: min(n, d)]]
    else:
        X = rng.standard_normal((n, d)) + 1.0
    X = X.astype(np.float32)
    normalize_rows(X)
    return X


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(["grid", "near", "same", "orthogonal", "spread"]),
    seed=st.integers(0, 2**32),
    n=st.integers(1, 30),
    d=st.integers(2, 40),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 0.999999, 1.0]),
    rule=st.sampled_from(["survivors", "semdedup"]),
    tile_bytes=st.sampled_from([4, 100, 1 << 20]),
)
@example(kind="spread", seed=0, n=1, d=2, threshold=0.0, rule="survivors", tile_bytes=4)
def test_decisions_are_those_of_the_definitions(kind, seed, n, d, threshold, rule, tile_bytes):
    X = rows_of(kind, seed, n, d)
    found = decide_cluster(X, np.float32(threshold), rule, tile_bytes)
    for i, (keep, kept, kept_score, best, score, reason) in enumerate(brute_force(X, np.float32(threshold), rule)):
        assert (found.keep[i], found.kept[i], found.best[i]) == (keep, kept, best), i
        assert found.score[i] == np.float32(score)
        assert np.isnan(found.kept_score[i]) if kept_score is None else found.kept_score[i] == np.float32(kept_score)
        assert found.exact[i] == (reason == "exact")


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
def test_a_larger_cluster(rule):
    X = rows_of("near", 5, 300, 24)
    found = decide_cluster(X, np.float32(0.99), rule, 1 << 14)
    expected = brute_force(X, np.float32(0.99), rule)
    assert found.keep.tolist() == [row[0] for row in expected]
    assert found.kept.tolist() == [row[1] for row in expected]
    assert found.best.tolist() == [row[3] for row in expected]
    assert 0 < found.keep.sum() < len(X)


def test_a_chain_shows_the_difference_between_the_rules():
    angles = np.deg2rad([0, 20, 40])
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert decide_cluster(X, np.float32(0.9), "survivors", 1 << 20).keep.tolist() == [True, False, True]
    found = decide_cluster(X, np.float32(0.9), "semdedup", 1 << 20)
    assert found.keep.tolist() == [True, False, False]
    assert found.kept.tolist() == [-1, 0, -1]
    table = to_table(pa.array(["a", "b", "c"]), found, 7)
    assert table["kept_id"].to_pylist() == [None, "a", None]
    assert table["max_id"].to_pylist() == ["a", "a", "b"]
    assert table["reason"].to_pylist() == [None, "semantic", "semantic"]
    assert table["centroid"].to_pylist() == [7, 7, 7]
    assert table.schema.field("centroid").type == pa.int32()
    assert table.schema.field("cosine_sim_score").type == pa.float32()


def test_copies_at_the_highest_threshold():
    X = rows_of("same", 0, 5, 3)
    found = decide_cluster(X, np.float32(1), "survivors", 1 << 20)
    assert found.keep.tolist() == [True, False, False, False, False]
    assert found.score.tolist() == [0, 1, 1, 1, 1]
    assert found.best.tolist() == found.kept.clip(0).tolist() == [0] * 5
