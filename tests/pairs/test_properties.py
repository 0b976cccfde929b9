"""The exact search from files to decisions, against all products in float64, on rows of many kinds."""

from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskmeans.kernels.all_pairs import find_directions
from daskmeans.pairs import plan
from daskmeans.tuning import Tuning
from helpers import NIGHTLY, decisions_of, tuned_dedup, write_clusters

# How far a score may be from the one that is computed here. Within it of the threshold either decision is right.
NEAR = 1e-6


def signs(rng, n, d):
    """Rows of ±1/√d that differ in few places: products are exact, and many are equal."""
    assert np.log2(d) % 2 == 0
    X = rng.choice([-1, 1], (3, d))[rng.integers(3, size=n)]
    return np.where(rng.random((n, d)) < 0.1, -X, X) / np.sqrt(d)


def spectrum(rng, n, d):
    """Rows that few directions nearly tell apart, one in ten with a twin."""
    X = rng.standard_normal((n, d)) / np.sqrt(1 + np.arange(d))
    twins = n // 10
    X[n - twins :] = X[:twins] + 0.3 * rng.standard_normal((twins, d)) / np.sqrt(d)
    return X[:, rng.permutation(d)]


def copies(rng, n, d):
    return rng.standard_normal((max(1, n // 8), d))[rng.integers(max(1, n // 8), size=n)]


def zeros(rng, n, d):
    return copies(rng, n, d) * (rng.random((n, 1)) < 0.6)


def bytes_halved(rng, n, d):
    """Coordinates in the middle between two steps of a byte, where rounding loses most."""
    X = (rng.integers(-2, 2, (n, d)) + 0.4999) / 127
    X[:, 0] = 1
    return X


def near(rng, n, d):
    """Around a few directions, at distances down to the last bits."""
    X = rng.standard_normal((4, d))[rng.integers(4, size=n)]
    return X + rng.choice([0, 1e-7, 1e-4, 0.1, 0.4], (n, 1)) * rng.standard_normal((n, d))


KINDS = {
    "random": lambda rng, n, d: rng.standard_normal((n, d)),
    "near": near,
    "copies": copies,
    "zeros": zeros,
    "alike": lambda rng, n, d: np.tile(rng.standard_normal(d), (n, 1)),
    "nearly alike": lambda rng, n, d: 1 + 1e-3 * rng.standard_normal((n, d)),
    "orthogonal": lambda rng, n, d: np.eye(d)[np.arange(n) % d] * rng.choice([-2, 0.5], (n, 1)),
    "signs": signs,
    "bytes": bytes_halved,
    "spectrum": spectrum,
}


def make(kind, seed, n, d, dtype="float32"):
    """Rows as they are stored, in clusters that say nothing about them: vectors, labels, distances, a column."""
    rng = np.random.default_rng(seed)
    X = KINDS[kind](rng, n, d).astype(dtype).astype(np.float32)
    labels = rng.integers(1 + seed % 5, size=n).astype(np.int32)
    return X, labels, rng.choice([0.25, 0.5, 0.75], n).astype(np.float32), np.zeros(n, int)


def all_scores(X):
    wide = X.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    wide = wide / np.where(norms == 0, 1, norms)
    same = (X[:, None] == X[None]).all(axis=2)
    return np.where(same, 1, np.minimum(wide @ wide.T, 1)), same


def check_pairs(folder, scores, same, floor, off):
    """Every pair is stored, if need be as one of copies of the two, and none that should not be."""
    files = sorted(folder.glob("part-*"))
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    edges = [(row["id"], row["twin_id"], row["score"], row["exact"]) for row in found]
    head = np.arange(len(scores))
    for i, j, score, exact_ in edges:
        assert score == pytest.approx(scores[i, j], abs=NEAR)
        assert score >= np.float32(floor)
        assert i != j
        if exact_:
            head[head == head[i]] = head[j]
    linked = head[:, None] == head[None]
    assert linked[same].all()
    assert (scores[linked] > 1 - NEAR).all()
    paired = linked.copy()
    for i, j, _, _ in edges:
        paired |= np.outer(linked[i], linked[j]) | np.outer(linked[j], linked[i])
    assert paired[scores >= floor + off].all()


def check_decisions(decisions, rows, scores, same, threshold, rule, off):
    """Each row's fate follows from the earlier ones', by the definition of the rule; the farthest come first."""
    distances = rows[2]
    order = sorted(range(len(scores)), key=lambda i: (-distances[i], -i))
    found = {row["id"]: row for row in decisions}
    assert sorted(found) == list(range(len(scores)))
    stays = np.array([found[i]["keep"] for i in range(len(scores))])
    for rank, i in enumerate(order):
        earlier, row = np.array(order[:rank], int), found[i]
        score = scores[i, earlier]
        deciding = score if rule == "semdedup" else score[stays[earlier]]
        assert not (row["keep"] and (deciding >= threshold + off).any())
        assert row["keep"] or (deciding >= threshold - off).any()
        assert row["centroid"] == rows[1][i]
        assert row["reason"] in ((None,) if row["keep"] else ("exact", "semantic"))
        if row["kept_id"] is not None:  # rows that differ in their lengths alone are copies, too
            assert row["reason"] == "exact" or not same[i, row["kept_id"]]
            assert row["reason"] == "semantic" or scores[i, row["kept_id"]] >= 1 - NEAR
        assert (row["kept_score"] is None) == (row["kept_id"] is None)
        assert (row["max_id"] is not None) or not (score >= threshold + off).any()
        if row["max_id"] is not None:
            assert row["max_id"] in earlier
            assert scores[i, row["max_id"]] >= max(score.max() - NEAR, threshold - off)
            assert row["cosine_sim_score"] == pytest.approx(scores[i, row["max_id"]], abs=NEAR)
        if row["kept_id"] is not None:
            assert row["kept_id"] in earlier[stays[earlier]]
            best = 0 if same[i, earlier].any() else score[stays[earlier]].max()  # copies go where the first goes
            assert scores[i, row["kept_id"]] >= max(best - NEAR, threshold - off)
            assert row["kept_score"] == pytest.approx(scores[i, row["kept_id"]], abs=NEAR)
        assert row["kept_id"] is None if row["keep"] else row["kept_id"] is not None or rule == "semdedup"


def check(path, rows, threshold, rule, *, cuts=(), dtype="float32", band=4096, client=None, off=NEAR):
    """Search and compare with all products."""
    clusters = write_clusters(path / "clusters", rows, dtype=dtype, partitions=cuts)
    tuning = Tuning(rows_per_block=band, task_pairs=4 * band**2)
    tuned_dedup(tuning, clusters, threshold, search="exact", rule=rule, out=path / "out", client=client)
    scores, same = all_scores(rows[0])
    check_pairs(path / "out" / "_pairs", scores, same, threshold, off)
    check_decisions(decisions_of(path / "out"), rows, scores, same, threshold, rule, off)


def just_below(scores, share):
    """A threshold so little below the score of a pair that the pair must be found."""
    there = np.sort(scores[(scores > 0.5 + 3 * NEAR) & (scores < 1)])
    return float(there[int(share * (len(there) - 1))] - 2 * NEAR) if len(there) else 0.5


@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32),
    n=st.integers(1, 70),
    d=st.sampled_from([4, 16, 64, 256]),
    dtype=st.sampled_from(["float32", "float16"]),
    rule=st.sampled_from(["survivors", "semdedup"]),
    share=st.floats(0, 1),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    band=st.sampled_from([1, 7, 4096]),
)
@settings(max_examples=200 if NIGHTLY else 12)
def test_all_pairs_decide(tmp_path_factory, kind, seed, n, d, dtype, rule, share, cuts, band):
    """The threshold lies just below one of the scores; partitions may have one row, or none."""
    rows = make(kind, seed, n, d, dtype)
    ends = sorted(int(cut * n) for cut in cuts)
    threshold = just_below(all_scores(rows[0])[0], share)
    check(tmp_path_factory.mktemp("rows"), rows, threshold, rule, cuts=ends, dtype=dtype, band=band)


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
@pytest.mark.parametrize("d", [16, 256, 1024])
def test_scores_at_the_threshold_count(tmp_path, d, rule):
    """Products are exact here: no score may be taken for one that is higher or lower."""
    rows = make("signs", 7, 120, d)
    scores, _ = all_scores(rows[0])
    values, counts = np.unique(scores[(scores >= 0.5) & (scores < 1)], return_counts=True)
    threshold = float(values[counts.argmax()])
    assert counts.max() > 20
    check(tmp_path, rows, threshold, rule, band=17, off=0.0)


@pytest.mark.parametrize(("kind", "d"), [(kind, d) for kind in ("near", "spectrum", "bytes") for d in (2, 3, 1000)])
def test_odd_dimensions(tmp_path, kind, d):
    rows = make(kind, d, 90, d)
    check(tmp_path, rows, just_below(all_scores(rows[0])[0], 0.7), "survivors", cuts=[1, 1, 60], band=13)


def test_many_dimensions_and_directions(tmp_path):
    """What few directions leave out must be in the bound."""
    rows = make("spectrum", 3, 200, 2048, "float16")
    made = []
    with mock.patch.object(plan, "find_directions", lambda *given: made.append(find_directions(*given)) or made[-1]):
        check(tmp_path, rows, just_below(all_scores(rows[0])[0], 0.9), "survivors", dtype="float16", band=50)
    assert 0 < made[0].shape[1] < 2048


@pytest.mark.parametrize("kind", ["copies", "near", "orthogonal"])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_on_workers_in_threads(tmp_path, thread_client, kind, workers):
    rows = make(kind, workers, 80, 64)
    threshold = just_below(all_scores(rows[0])[0], 0.5)
    check(tmp_path, rows, threshold, "survivors", cuts=[1, 50], band=9, client=thread_client(workers))


@pytest.mark.parametrize("kind", ["nearly alike", "zeros", "spectrum", "signs"])
def test_on_workers_in_processes(tmp_path, client, kind):
    rows = make(kind, 5, 80, 64)
    threshold = just_below(all_scores(rows[0])[0], 0.5)
    check(tmp_path, rows, threshold, "semdedup", cuts=[30, 30, 79], band=9, client=client)
