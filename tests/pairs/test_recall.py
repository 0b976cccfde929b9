import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskmeans.kernels.hashing import hash_integers, sample_limit, wilson_interval
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kernels.within_cluster import pair_score
from daskmeans.pairs.recall import RowSample, join_samples, mark_neighbors, summarize_recall, take_sample


def test_the_interval_covers_the_true_share():
    rng = np.random.default_rng(0)
    for share, trials in [(0.5, 30), (0.9, 50), (0.97, 200), (0.995, 1000)]:
        bounds = [wilson_interval(int(k), trials) for k in rng.binomial(trials, share, 4000)]
        covered = np.mean([low <= share <= high for low, high in bounds])
        assert 0.92 < covered < 0.98


def test_the_interval_at_its_ends():
    assert wilson_interval(0, 0) == (0, 1)
    assert all(wilson_interval(0, n)[0] == 0 and wilson_interval(n, n)[1] == 1 for n in range(1, 2000))
    low, high = wilson_interval(10, 10)
    assert 0.7 < low < 0.75
    assert high == pytest.approx(1)


def clustered(seed, n, d, k):
    rng = np.random.default_rng(seed)
    X = np.repeat(rng.standard_normal((-(-n // 3), d)), 3, axis=0)[:n]
    X += rng.choice([0, 0, 1e-4, 0.2], (n, 1)) * rng.standard_normal((n, d))
    X[rng.random(n) < 0.1] = 0
    X = X.astype(np.float32)
    normalize_rows(X)
    return X, rng.integers(k, size=n)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 60),
    d=st.integers(2, 40),
    k=st.integers(1, 5),
    wanted=st.integers(1, 70),
    threshold=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    tile_bytes=st.sampled_from([1, 1000, 1 << 20]),
)
def test_recall_is_that_of_all_pairs(seed, n, d, k, wanted, threshold, tile_bytes):
    X, labels = clustered(seed, n, d, k)
    hashes = hash_integers(np.arange(n, dtype=np.uint64), seed)
    limit = sample_limit(n, wanted)
    samples = [take_sample(hashes[labels == c], c, X[labels == c], limit) for c in range(k)]
    sample = join_samples(samples, wanted)
    seen = np.zeros((2, len(sample.rows)), bool)
    for c in range(k):
        rows = X[labels == c]
        for first in range(0, len(rows), 20):
            mark_neighbors(sample, rows[first : first + 20], c, first, np.float32(threshold), tile_bytes, seen)

    chosen = np.argsort(hashes)[:wanted]
    twins = [[j for j in range(n) if j != i and pair_score(X[i], X[j]) >= np.float32(threshold)] for i in chosen]
    assert len(sample.rows) == len(chosen) == min(n, wanted)
    np.testing.assert_array_equal(sample.rows, X[chosen])
    assert seen[0].tolist() == [bool(t) for t in twins]
    assert seen[1].tolist() == [any(labels[j] == labels[i] for j in t) for i, t in zip(chosen, twins, strict=True)]


def test_a_pass_finds_the_smallest_hashes_of_many():
    n, wanted = 200_000, 500
    hashes = hash_integers(np.arange(n, dtype=np.uint64), 42)
    X = np.zeros((n, 1), np.float32)
    sample = take_sample(hashes, 0, X, sample_limit(n, wanted))
    assert wanted <= len(sample.rows) < 2 * wanted
    np.testing.assert_array_equal(join_samples([sample], wanted).hashes, np.sort(hashes)[:wanted])


def test_without_a_sample():
    empty = join_samples(
        [RowSample(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, int), np.empty((0, 3)))], 0
    )
    assert len(empty.rows) == 0
    assert summarize_recall(np.zeros((2, 0), bool)) == {
        "recall": None,
        "low": 0,
        "high": 1,
        "sampled": 0,
        "with_twin": 0,
    }
