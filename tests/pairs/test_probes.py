"""Rows compared with those of the clusters nearest to them: what meets, what is missed; and the choice of a search."""

from functools import partial

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest

import daskmeans
from daskmeans import open_decisions
from daskmeans.errors import UsageError
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.tuning import Tuning
from helpers import decisions_of, nightly, tuned_dedup, write_clusters

THRESHOLD = 0.9
# With many bands of few rows, which cut through clusters, and many tasks.
dedup = partial(tuned_dedup, Tuning(rows_per_block=17, task_pairs=600))


def near_rows(seed=0, n=400, d=10, k=12, copies=20, zeros=0, noise=0.12):
    """Rows with near-duplicates, each in the cluster whose centre is nearest, so that many are apart."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n // 4, d)).repeat(4, axis=0) + noise * rng.standard_normal((n, d))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    X[n - copies :] = X[:copies]
    X[rng.permutation(n)[:zeros]] = 0
    labels = (X @ X[:k].T - 0.5 * (X[:k] ** 2).sum(axis=1)).argmax(axis=1).astype(np.int32)
    return X, labels, rng.random(n).astype(np.float32), rng.integers(10, size=n)


def expected_pairs(rows, threshold, probes):
    """Pairs that are similar enough, and whether they meet: {(lower, higher): bool}, in float64."""
    X, labels = rows[0].astype(np.float64), rows[1]
    places = np.unique(labels, return_inverse=True)[1]
    means = np.array([X[places == c].mean(axis=0) for c in range(places.max() + 1)])
    distances = ((X[:, None] - means[None]) ** 2).sum(axis=2)
    nearest = probes if probes > 1 else 0
    visits = [{home, *np.argsort(row)[:nearest].tolist()} for home, row in zip(places, distances, strict=True)]
    scores = np.minimum(X @ X.T, 1)
    scores[(X[:, None] == X[None]).all(axis=2)] = 1
    return {
        (i, j): places[j] in visits[i] or places[i] in visits[j]
        for i, j in np.argwhere(np.triu(scores >= threshold, 1)).tolist()
    }


def stored_pairs(folder):
    return [
        tuple(sorted((row["id"], row["twin_id"])))
        for file in sorted(folder.glob("part-*"))
        for row in pq.read_table(file, columns=["id", "twin_id"]).to_pylist()
    ]


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
@pytest.mark.parametrize("probes", [2, 3, 7])
def test_pairs_are_those_that_meet(tmp_path, layout, probes):
    rows = near_rows(copies=0)
    clusters = write_clusters(tmp_path / "clusters", rows, layout=layout)
    result = dedup(clusters, THRESHOLD, probes=probes, out=tmp_path / "out")
    expected = expected_pairs(rows, THRESHOLD, probes)
    found = stored_pairs(tmp_path / "out" / "_pairs")
    assert sorted(found) == sorted(pair for pair, met in expected.items() if met)
    assert result.summary["search"] == "clusters"
    assert result.summary["probes"] == probes
    assert not list((tmp_path / "out" / "_pairs").glob("near-*"))


def test_copies_in_other_clusters_visit_from_there(tmp_path):
    """As where rows were clustered by their length too."""
    rows = near_rows(copies=20)
    rows[1][-20:] = (rows[1][:20] + 5) % 12
    dedup(write_clusters(tmp_path / "clusters", rows), THRESHOLD, probes=2, out=tmp_path / "out")
    expected = expected_pairs(rows, THRESHOLD, 2)
    assert sorted(stored_pairs(tmp_path / "out" / "_pairs")) == sorted(pair for pair, met in expected.items() if met)
    assert 0 < sum(expected[i, 380 + i] for i in range(20)) < 20


@pytest.mark.parametrize("at", [THRESHOLD, 0.97])
def test_recall_on_all_rows_is_the_true_one(tmp_path, at):
    rows = near_rows(zeros=5)
    clusters = write_clusters(tmp_path / "clusters", rows)
    with dask.config.set({"daskmeans.recall-sample": 1000}):
        result = dedup(clusters, THRESHOLD, probes=2, out=tmp_path / "out").at(at)
    expected = expected_pairs(rows, at, 2)
    with_twin = {i for pair in expected for i in pair}
    found = {i for pair, met in expected.items() if met for i in pair}
    assert result.recall["sampled"] == len(rows[0])
    assert result.recall["with_twin"] == len(with_twin)
    assert result.recall["recall"] == len(found) / len(with_twin) < 1


def test_visiting_all_clusters_is_an_exact_search(tmp_path):
    clusters = write_clusters(tmp_path / "clusters", near_rows(zeros=7))
    for name, how in (("probes", {"probes": 100}), ("exact", {"search": "exact"})):
        result = dedup(clusters, THRESHOLD, out=tmp_path / name, **how)
        assert result.recall["recall"] == 1
    assert decisions_of(tmp_path / "probes") == decisions_of(tmp_path / "exact")


@pytest.mark.nightly
@pytest.mark.parametrize("n_workers", [1, 3])
def test_decisions_are_the_same_on_workers(tmp_path, n_workers):
    clusters = write_clusters(tmp_path / "clusters", near_rows())
    here = dedup(clusters, THRESHOLD, probes=3, out=tmp_path / "here")
    with open_cluster(ClusterSettings(n_workers=n_workers, dashboard_address=":0")) as client:
        there = dedup(clusters, THRESHOLD, probes=3, out=tmp_path / "there", client=client)
    assert decisions_of(tmp_path / "here") == decisions_of(tmp_path / "there")
    assert here.recall == there.recall


def test_pairs_of_another_search_are_not_used(tmp_path):
    clusters = write_clusters(tmp_path / "clusters", near_rows(), layout="bucketed")
    kept = {}
    for how in ({"probes": 2}, {"search": "exact"}, {"probes": 3}, {"search": "clusters"}, {"probes": 2}):
        result = dedup(clusters, THRESHOLD, out=tmp_path / "out", overwrite=True, **how)
        kept.setdefault(str(how), set()).add(result.summary["kept"])
        assert result.summary["kept"] == dedup(clusters, THRESHOLD, **how).summary["kept"]
    assert all(len(each) == 1 for each in kept.values())
    assert len({each.pop() for each in kept.values()}) > 1


@pytest.mark.parametrize(
    ("rows", "arguments", "search"),
    [
        (10**9, {}, "exact"),
        (10, {}, "clusters"),
        (10**9, {"threshold": 0.4}, "clusters"),
        (10**9, {"probes": 2}, "clusters"),
        (10**9, {"probes": 2, "floor": 0.8}, "clusters"),
        (10, {"search": "exact"}, "exact"),
        (10, {"floor": 0.8}, "exact"),  # which asks for pairs
        (10**9, {"search": "clusters"}, "clusters"),
    ],
)
def test_the_search_is_chosen_and_told(tmp_path, caplog, rows, arguments, search):
    clusters = write_clusters(tmp_path / "clusters", near_rows())
    with dask.config.set({"daskmeans.exact-pairs": rows}), caplog.at_level("INFO", "daskmeans"):
        result = dedup(clusters, out=tmp_path / "out", **{"threshold": THRESHOLD} | arguments)
    assert result.summary["search"] == open_decisions(tmp_path / "out").summary["search"] == search
    told = [line for line in caplog.messages if line.startswith("search ")]
    if search == "exact":
        assert len(told) == 1
        assert "all 79.8k pairs of rows are compared, in about" in told[0]
        assert "--search clusters" in told[0]
    elif arguments == {}:
        assert len(told) == 1
        assert "--search exact compares all 79.8k pairs of rows" in told[0]
    elif "probes" in arguments:
        assert len(told) == 1
        assert "2 probes: about" in told[0] and "in each process" in told[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, "--probes: 0 is out of range"),
        ({"probes": 1.5}, r"--probes: 1\.5 is out of range"),
        ({"probes": 101}, "--probes: 101 is out of range\n  expected: 1 to 100 clusters"),
        ({"probes": True}, "--probes: True is out of range"),
        ({"probes": 2, "search": "exact"}, "--probes: an exact search has no probes"),
        ({"probes": 2, "threshold": 0.3}, "from 0.3 on, there would be more pairs"),
        ({"probes": 2, "against": ["x"]}, "--against: .*\n.*without --probes"),
    ],
)
def test_wrong_use(tmp_path, arguments, message):
    clusters = write_clusters(tmp_path / "clusters", near_rows())
    write_clusters(tmp_path / "x", near_rows(1), [f"x{i}" for i in range(400)])
    if "against" in arguments:
        arguments = arguments | {"against": [tmp_path / "x"]}
    with pytest.raises(UsageError, match=message):
        dedup(clusters, out=tmp_path / "out", **{"threshold": THRESHOLD} | arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("probes", "samples", "least"), [(2, 20, 17), nightly(1, 100, 93), nightly(2, 100, 93)])
def test_the_interval_of_the_recall_covers_the_truth(tmp_path, probes, samples, least):
    """Of 100 samples of 120 rows at least 93 must, at a confidence of 95 %; of 20 nearly as many."""
    rows, threshold = near_rows(n=1200, d=12, k=60, copies=0, noise=0.35), 0.8
    clusters = write_clusters(tmp_path / "clusters", rows, bucket_rows=1200)
    expected = expected_pairs(rows, threshold, probes)
    with_twin = {i for pair in expected for i in pair}
    truth = len({i for pair, met in expected.items() if met for i in pair}) / len(with_twin)
    assert 0.3 < truth < 0.98
    covered = 0
    with dask.config.set({"daskmeans.recall-sample": 120}):
        for seed in range(samples):
            # In few row blocks, which is faster.
            found = daskmeans.dedup(clusters, threshold, search="clusters", probes=probes, random_state=seed).recall
            covered += found["low"] <= truth <= found["high"]
    assert covered >= least
