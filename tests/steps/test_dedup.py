"""The step from clusters to decisions, on files; rows are compared inside their clusters."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import dask
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

import daskmeans
from daskmeans import open_decisions
from daskmeans.duplicates import within
from daskmeans.duplicates.lookup import read_decision_index
from daskmeans.errors import DataError, MemoryForecastError, NotFoundError, OutputError, UsageError
from daskmeans.pairs import recall
from daskmeans.runtime import resources
from daskmeans.runtime.client import n_threads
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.storage import manifest
from daskmeans.tuning import Tuning
from helpers import decisions_of, make_rows, tuned_dedup, write_clusters

THRESHOLD = 0.95
dedup = partial(daskmeans.dedup, search="clusters")


@pytest.fixture
def clusters(tmp_path):
    return write_clusters(tmp_path / "clusters", make_rows())


def expected_decisions(rows, ids, order, threshold, rule):
    """{id: (keep, kept_id, max_id, score)} by the definitions, in float64; `order` sorts the rows of a cluster."""
    X, labels = rows[0].astype(np.float64), rows[1]
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    found = {}
    for label in np.unique(labels):
        ranked = sorted(np.flatnonzero(labels == label), key=order)
        scores = np.minimum(X[ranked] @ X[ranked].T, 1)
        scores[(X[ranked][:, None] == X[ranked][None]).all(axis=2)] = 1
        stays = []
        for r, i in enumerate(ranked):
            best = max(range(r), key=lambda j: (round(scores[r, j], 6), -j), default=0)
            near = [j for j in range(r) if scores[r, j] >= threshold and (rule == "semdedup" or j in stays)]
            kept = max((j for j in near if j in stays), key=lambda j: (round(scores[r, j], 6), -j), default=None)
            if not near:
                stays.append(r)
            found[ids[i]] = (
                not near,
                ids[ranked[kept]] if near and kept is not None else None,
                ids[ranked[best]],
                scores[r, best] * (r > 0),
            )
    return found


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
@pytest.mark.parametrize("keep", ["hard", "easy", ["stars:desc"]])
def test_decisions_on_files(tmp_path, layout, rule, keep):
    rows = make_rows()
    ids = [f"id{i:03d}" for i in range(len(rows[0]))]
    clusters = write_clusters(tmp_path / "clusters", rows, ids, layout)
    result = dedup(clusters, THRESHOLD, out=tmp_path / "out", rule=rule, keep=keep)
    order = {
        "hard": lambda i: (-rows[2][i], -i),
        "easy": lambda i: (rows[2][i], i),
    }.get(str(keep), lambda i: (-rows[3][i], i))
    expected = expected_decisions(rows, ids, order, THRESHOLD, rule)
    found = decisions_of(tmp_path / "out")
    assert sorted(row["id"] for row in found) == sorted(ids)
    for row in found:
        keep_, _, max_id, score = expected[row["id"]]
        assert (row["keep"], row["max_id"]) == (keep_, max_id)
        assert row["cosine_sim_score"] == pytest.approx(score, abs=1e-6)
        assert (row["reason"] is None) == row["keep"]
        if row["reason"] == "semantic":
            assert row["kept_id"] == expected[row["id"]][1]
    kept = {row["id"] for row in found if row["keep"]}
    assert all(
        row["kept_id"] in kept or (rule == "semdedup" and row["kept_id"] is None) for row in found if not row["keep"]
    )
    reasons = [row["reason"] for row in found]
    assert reasons.count("exact") > 10
    assert reasons.count("semantic") > 10
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary == result.summary
    assert summary["rows"] == len(ids)
    assert summary["kept"] == reasons.count(None)
    assert summary["removed"] == {"exact": reasons.count("exact"), "semantic": reasons.count("semantic")}
    assert manifest.read_manifest(UPath(tmp_path / "out"), "dedup")["settings"]["threshold"] == THRESHOLD


def test_rows_of_decisions_lie_as_in_the_clusters(tmp_path, clusters):
    dedup(clusters, THRESHOLD, out=tmp_path / "out")
    decided = decisions_of(tmp_path / "out")
    stored = pa.concat_tables(
        [pq.read_table(f, columns=["key", "centroid"]) for f in sorted(clusters.glob("bucket-*"))]
    )
    assert [row["id"] for row in decided] == stored["key"].to_pylist()
    assert [row["centroid"] for row in decided] == stored["centroid"].to_pylist()
    assert len(list((tmp_path / "out" / "decisions").iterdir())) > 1


def test_decisions_are_the_same_on_workers_and_for_any_tile(tmp_path, clusters):
    dedup(clusters, THRESHOLD, out=tmp_path / "here", keep="random")
    settings = ClusterSettings(n_workers=1, dashboard_address=":0")
    with open_cluster(settings) as client, dask.config.set({"daskmeans.tile-bytes": 100}):
        result = dedup(clusters, THRESHOLD, out=tmp_path / "there", keep="random", client=client)
        groups = result.groups(3)
    assert decisions_of(tmp_path / "here") == decisions_of(tmp_path / "there")
    assert open_decisions(tmp_path / "here").recall == result.recall
    assert groups == open_decisions(tmp_path / "here").groups(3)


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
def test_the_work_on_a_large_cluster_is_shared_out(tmp_path, layout, rule, thread_client, monkeypatch):
    X, labels, *others = make_rows(n=400)
    clusters = write_clusters(
        tmp_path / "clusters", (X, np.where(np.arange(400) % 3, 0, labels), *others), layout=layout
    )
    daskmeans.dedup(clusters, 0.9, search="clusters", rule=rule, out=tmp_path / "one")
    dedup = partial(tuned_dedup, Tuning(task_rows=50), search="clusters")
    runs, slices = [], []
    nearest_in_run, mark_twins = within.find_nearest_in_run, recall.mark_neighbors
    monkeypatch.setattr(within, "find_nearest_in_run", lambda *args: [runs.append(args[1:3]), nearest_in_run(*args)][1])
    monkeypatch.setattr(recall, "mark_neighbors", lambda *args: [slices.append(args[2:4]), mark_twins(*args)][1])
    # In this process, as many at a time as there is memory for.
    monkeypatch.setattr(dask.system, "CPU_COUNT", 3)
    for memory, expected in ((1 << 40, 6), (0, 0)):
        runs.clear()
        free = SimpleNamespace(available=memory)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        dedup(clusters, 0.9, rule=rule, out=tmp_path / f"{memory}")
        assert len(runs) == expected
        assert decisions_of(tmp_path / f"{memory}") == decisions_of(tmp_path / "one")
    client = thread_client(2)
    runs.clear()
    slices.clear()
    dedup(clusters, 0.9, rule=rule, out=tmp_path / "many", client=client)
    many = {(i, 2 * n_threads(client)) for i in range(2 * n_threads(client))}
    assert set(runs) == many  # all but all work is that of this cluster
    assert len({first for centroid, first in slices if centroid == 0}) > 1
    assert decisions_of(tmp_path / "many") == decisions_of(tmp_path / "one")
    one, many = (open_decisions(tmp_path / name).recall for name in ("one", "many"))
    assert one == many and one["recall"] < 1


def test_random_order_depends_on_the_seed_alone(tmp_path):
    rows = make_rows()
    one = write_clusters(tmp_path / "one", rows, partitions=1)
    two = write_clusters(tmp_path / "two", rows, partitions=5)
    kept = [
        set(dedup(c, THRESHOLD, keep="random", random_state=s).kept.id.compute())
        for c, s in [(one, 1), (two, 1), (two, 2)]
    ]
    assert kept[0] == kept[1] != kept[2]
    for seed in (-1, 1 - 2**62, 2**62 - 1, np.int64(3)):
        assert dedup(one, THRESHOLD, keep="random", random_state=seed, search="clusters").summary["kept"]


def test_eps_is_one_minus_the_threshold(clusters):
    one, other = dedup(clusters, eps=0.07), dedup(clusters, 0.93)
    assert one.summary["threshold"] == other.summary["threshold"] == 0.93
    assert one.summary["kept"] == other.summary["kept"]


def test_half_precision_vectors_are_normalised_again(tmp_path):
    rows = make_rows()
    result = dedup(write_clusters(tmp_path / "clusters", rows, dtype="float16"), THRESHOLD)
    half = (rows[0].astype(np.float16).astype(np.float32), *rows[1:])
    expected = expected_decisions(half, range(len(half[0])), lambda i: (-rows[2][i], -i), THRESHOLD, "survivors")
    assert set(result.kept.id.compute()) == {i for i, row in expected.items() if row[0]}


def test_recall_is_measured(clusters):
    X, labels, *_ = make_rows()
    near = X.astype(np.float64) @ X.T.astype(np.float64) >= THRESHOLD
    np.fill_diagonal(near, False)
    with_twin = near.any(axis=1)
    here = (near & (labels[:, None] == labels)).any(axis=1)
    found = dedup(clusters, THRESHOLD).recall
    assert (found["sampled"], found["with_twin"]) == (len(X), with_twin.sum())
    assert found["recall"] == here.sum() / with_twin.sum() < 1
    assert found["low"] < found["recall"] < found["high"]
    with dask.config.set({"daskmeans.recall-sample": 40}):
        assert dedup(clusters, THRESHOLD).recall["sampled"] == 40
    with dask.config.set({"daskmeans.recall-sample": 0}):
        result = dedup(clusters, THRESHOLD)
    assert result.recall["recall"] is None
    assert "not measured" in result._repr_html_()


def test_the_result(tmp_path, clusters):
    result = dedup(clusters, THRESHOLD, out=tmp_path / "out")
    again = open_decisions(tmp_path / "out")
    assert again.summary == result.summary
    kept, removed, everything = result.kept.compute(), result.removed.compute(), result.decisions.compute()
    assert len(kept) == result.summary["kept"]
    assert kept["keep"].all()
    assert not removed["keep"].any()
    assert len(kept) + len(removed) == len(everything) == result.summary["rows"]
    assert list(kept.columns) == [
        "id",
        "keep",
        "kept_id",
        "kept_score",
        "max_id",
        "cosine_sim_score",
        "reason",
        "centroid",
    ]
    assert result.kept.dtypes.astype(str).to_dict() == kept.dtypes.astype(str).to_dict()
    assert "recall" in repr(result)
    assert f"<td>{result.summary['rows']}</td>" in result._repr_html_()


@pytest.mark.parametrize("search", ["clusters", "exact"])
@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
def test_groups(clusters, rule, search):
    rows = make_rows()
    result = dedup(clusters, THRESHOLD, rule=rule, search=search)
    removed = result.removed.compute().to_dict("records")
    groups = result.groups(1000)
    assert {(g.id, d.id) for g in groups for d in g.duplicates} == {
        (row["kept_id"], row["id"]) for row in removed if not pd.isna(row["kept_id"])
    }
    by_id = {row["id"]: row for row in removed}
    closest = []
    for group in groups:
        assert group.metadata == {"stars": rows[3][group.id], "text": f"text {group.id}"}
        assert [d.score for d in group.duplicates] == sorted(d.score for d in group.duplicates)
        for row in group.duplicates:
            assert row.score == pytest.approx(float(rows[0][group.id] @ rows[0][row.id]), abs=1e-6)
            assert row.metadata["text"] == f"text {row.id}"
            assert row.reason == by_id[row.id]["reason"]
            assert np.float32(row.score) == by_id[row.id]["kept_score"]
        closest.append(min((by_id[d.id]["kept_score"] for d in group.duplicates if d.reason == "semantic"), default=2))
    assert closest == sorted(closest)
    assert closest[-1] == 2 or search == "exact"  # groups of copies alone, which those across clusters join
    for limit in (1, 2, 4, 9):  # a group of an exact search may lie in several files
        assert result.groups(limit) == groups[:limit]


def test_a_temporary_directory_stays_until_python_ends(clusters, monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", lambda function, *args, **kwargs: at_exit.append((function, args, kwargs)))
    result = dedup(clusters, THRESHOLD)
    path, kept = result.path, result.kept
    del result
    assert len(kept) > 0
    for function, args, kwargs in at_exit:
        if function is shutil.rmtree:  # and not the end of dask's threads, which other tests need
            function(*args, **kwargs)
    assert not path.exists()


def test_decisions_are_those_that_the_manifest_lists(tmp_path, clusters):
    result = dedup(clusters, THRESHOLD, out=tmp_path / "out")
    files = sorted((tmp_path / "out" / "decisions").iterdir())
    assert len(files) > 1
    before = len(result.decisions)
    shutil.copy(files[0], files[0].with_name("part-99999.parquet"))
    assert len(result.decisions) == before
    files[1].unlink()
    for use in (lambda: result.kept, result.groups, lambda: read_decision_index(UPath(tmp_path / "out"))):
        with pytest.raises(NotFoundError, match=f"{files[1].name}: the decisions are gone"):
            use()


def test_groups_of_clusters_that_have_changed(tmp_path, clusters):
    result = dedup(clusters, THRESHOLD, out=tmp_path / "out")
    manifest.remove_tree(UPath(clusters))
    with pytest.raises(NotFoundError):
        result.groups()
    write_clusters(clusters, make_rows(), ids=np.arange(1000, 1300))
    with pytest.raises(NotFoundError, match=r"clusters: the clusters that the decisions were made from .*\n.*out"):
        result.groups()


@pytest.mark.parametrize("search", ["clusters", "exact"])
def test_groups_of_other_vectors_with_the_same_ids(clusters, search):
    result = dedup(clusters, THRESHOLD, search=search)
    before, aside = result.groups(), clusters.rename(clusters.with_name("aside"))
    X, *others = make_rows()
    write_clusters(clusters, (X[::-1].copy(), *others))
    for use in (result.groups, lambda: result.look_up(pa.array([0]))):
        with pytest.raises(NotFoundError, match="the clusters that the decisions were made from"):
            use()
    manifest.remove_tree(UPath(clusters))
    aside.rename(clusters)
    assert result.groups() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.9, "eps": 0.1}, "both threshold and eps"),
        ({"threshold": 1.01}, r"--threshold: 1.01 is out of range\n  expected: a number in \[0, 1\]"),
        ({"eps": -0.1}, "--eps: -0.1 is out of range"),
        ({"threshold": float("nan")}, "out of range"),
        ({"threshold": "high"}, "out of range"),
        ({"threshold": 0.9, "random_state": 2**63}, r"--random-state: 9.* is out of range\n.*an integer in \(-2\^62"),
        ({"threshold": 0.9, "random_state": -(2**62)}, "--random-state: -4.* is out of range"),
        ({"threshold": 0.9, "random_state": 1.5}, "--random-state: 1.5 is out of range"),
        ({"threshold": 0.9, "rule": "paper"}, r"unknown rule 'paper'\n  expected: survivors or semdedup"),
        ({"threshold": 0.9, "search": "ann"}, r"unknown search 'ann'\n  expected: auto or exact or clusters"),
        ({"threshold": 0.9, "keep": "best"}, "hard, easy, random, or columns"),
        ({"threshold": 0.9, "keep": "likes:desc"}, r"expected: one of key, stars, text, .*\n.*--metadata-field likes"),
    ],
)
def test_wrong_use(tmp_path, clusters, arguments, message):
    with pytest.raises(UsageError, match=message):
        dedup(clusters, **arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_threshold_has_a_default(tmp_path, clusters):
    found = dedup(clusters, out=tmp_path / "out")
    assert found.summary["threshold"] == 0.9
    assert found.figures()["threshold"] == "0.9"
    assert dedup(clusters, eps=0.25, out=tmp_path / "other").summary["threshold"] == 0.75


def test_outputs_in_the_way(tmp_path, clusters):
    for out in (clusters, clusters / "out"):
        with pytest.raises(OutputError, match="inside the input"):
            dedup(clusters, THRESHOLD, out=out)
    assert not (clusters / "out").exists()
    dedup(clusters, THRESHOLD, out=tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        dedup(clusters, 0.5, out=tmp_path / "out")
    dedup(clusters, 0.5, out=tmp_path / "out", overwrite=True)
    assert open_decisions(tmp_path / "out").summary["threshold"] == 0.5
    with pytest.raises(NotFoundError):
        dedup(tmp_path / "out", THRESHOLD)
    with pytest.raises(NotFoundError):
        open_decisions(clusters)


def test_a_cluster_that_does_not_fit_is_named_before_anything_is_written(tmp_path, clusters, monkeypatch):
    monkeypatch.setattr(resources, "memory_per_task", lambda client: 1000)
    with pytest.raises(
        MemoryForecastError,
        match=r"cluster \d+ with \d+ rows needs .*B, and a task has .*\n.*--n-clusters.*--memory-limit",
    ):
        dedup(clusters, THRESHOLD, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_bucket_leaves_nothing_behind(tmp_path, clusters):
    file = sorted(clusters.glob("bucket-*"))[1]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=file.name):
        dedup(clusters, THRESHOLD, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
