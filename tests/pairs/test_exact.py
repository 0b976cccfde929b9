"""The exact search on files, against all products in float64."""

from functools import partial
from types import SimpleNamespace

import dask
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from daskmeans import open_decisions
from daskmeans.buckets.buckets import open_buckets
from daskmeans.duplicates import decisions
from daskmeans.duplicates.greedy import greedy_select
from daskmeans.errors import MemoryForecastError, NotFoundError, OutputError, UsageError
from daskmeans.pairs import join, plan, row_blocks
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.storage import manifest
from daskmeans.tuning import Tuning
from helpers import decisions_of, make_rows, nightly, tuned_dedup, write_clusters

THRESHOLD = 0.95
# With many bands of few rows, which cut through clusters, and many tasks.
dedup = partial(tuned_dedup, Tuning(rows_per_block=17, task_pairs=600))


@pytest.fixture
def clusters(tmp_path):
    return write_clusters(tmp_path / "clusters", make_rows())


def scores_of(X):
    wide = X.astype(np.float64)
    wide = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    scores = np.minimum(wide @ wide.T, 1)
    scores[(wide[:, None] == wide[None]).all(axis=2)] = 1
    return scores


def expected_decisions(scores, order, threshold, rule):
    """(keep, kept, best, score) of each row, by the definitions; `order` lists the rows by rank."""
    found, stays = {}, []
    for r, i in enumerate(order):
        earlier = [j for j in order[:r] if scores[i, j] >= threshold]
        near = [j for j in earlier if rule == "semdedup" or j in stays]
        best = max(earlier, key=lambda j: (round(scores[i, j], 6), -order.index(j)), default=None)
        kept = max(
            (j for j in near if j in stays), key=lambda j: (round(scores[i, j], 6), -order.index(j)), default=None
        )
        if not near:
            stays.append(i)
        found[i] = (not near, kept, best, None if best is None else scores[i, best])
    return found


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
@pytest.mark.parametrize("keep", ["hard", "easy", "stars:desc"])
def test_decisions_are_those_of_all_pairs(tmp_path, layout, rule, keep):
    rows = make_rows()
    ids = [f"id{i:03d}" for i in range(len(rows[0]))]
    clusters = write_clusters(tmp_path / "clusters", rows, ids, layout)
    result = dedup(clusters, THRESHOLD, out=tmp_path / "out", rule=rule, keep=keep, search="exact")
    keys = {"hard": lambda i: (-rows[2][i], -i), "easy": lambda i: (rows[2][i], i)}
    order = sorted(range(len(ids)), key=keys.get(keep, lambda i: (-rows[3][i], i)))
    expected = expected_decisions(scores_of(rows[0]), order, THRESHOLD, rule)
    found = {row["id"]: row for row in decisions_of(tmp_path / "out")}
    assert sorted(found) == ids
    for i, (kept, stands, best, score) in expected.items():
        row = found[ids[i]]
        assert (row["keep"], row["max_id"]) == (kept, None if best is None else ids[best])
        assert row["cosine_sim_score"] == (None if score is None else pytest.approx(score, abs=1e-6))
        assert row["centroid"] == rows[1][i]
        if row["reason"] == "semantic":
            assert row["kept_id"] == (None if stands is None else ids[stands])
    reasons = [row["reason"] for row in found.values()]
    assert result.summary["kept"] == reasons.count(None) == sum(row[0] for row in expected.values())
    assert reasons.count("exact") > 10
    assert result.recall == {"recall": 1.0, "low": 1.0, "high": 1.0, "sampled": 300,
                             "with_twin": int(((scores_of(rows[0]) >= THRESHOLD).sum(axis=1) > 1).sum()),
                             "why": "all pairs of rows were compared"}  # fmt: skip
    assert "all rows were compared" in repr(result)


def test_it_finds_more_than_a_search_inside_clusters(clusters):
    inside, everywhere = dedup(clusters, THRESHOLD, search="clusters"), dedup(clusters, THRESHOLD, search="exact")
    assert inside.recall["recall"] < 1
    assert everywhere.summary["kept"] < inside.summary["kept"]


def all_edges(folder):
    files = sorted(folder.glob("part-*"))
    return sorted(tuple(row.values()) for file in files for row in pq.read_table(file).to_pylist())


def test_stored_pairs_are_all_pairs(tmp_path, clusters):
    X, *_ = make_rows()
    dedup(clusters, THRESHOLD, floor=0.8, out=tmp_path / "out", search="exact")
    found = {frozenset(edge[:2]): edge for edge in all_edges(tmp_path / "out" / "_pairs")}
    scores = scores_of(X)
    linked = {frozenset(edge[:2]) for edge in found.values() if edge[3]}
    head = np.array([int(np.flatnonzero(row == 1)[0]) for row in scores])
    for i, j in np.argwhere(np.triu(scores >= 0.8, 1)).tolist():
        if scores[i, j] == 1:
            continue  # of copies only some pairs are stored; those of decisions tell whether they suffice
        of_copies = [
            frozenset((a, b)) for a in np.flatnonzero(head == head[i]) for b in np.flatnonzero(head == head[j])
        ]
        assert any(pair in found for pair in of_copies), (i, j)
    assert all(scores[tuple(pair)] >= 0.8 - 1e-6 for pair in found)
    assert linked
    stored = [row["key"] for file in sorted(clusters.glob("bucket-*")) for row in pq.read_table(file).to_pylist()]
    for id_, twin_id, _, _, row, twin in found.values():
        assert (stored[row], stored[twin]) == (id_, twin_id)
        assert row > twin


def test_bands_cover_all_rows_once(clusters):
    buckets = open_buckets(UPath(clusters))
    made = row_blocks.cut_row_blocks(buckets, 17)
    assert [band.first for band in made] == list(range(0, 300, 17))
    assert sum(band.rows for band in made) == 300
    taken = [(piece[0].centroid, row) for band in made for piece in band.place for row in range(piece[1], piece[2])]
    assert taken == [(c.centroid, row) for c in buckets.clusters() for row in range(c.rows)]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.integers(1, 400), min_size=1, max_size=40), data=st.data())
def test_tasks_compare_all_bands_once(rows, data):
    own = data.draw(st.integers(1, len(rows)))
    tasks = plan.make_self_join_tasks(rows, own, 600)
    pairs = [(task.row, column) for task in tasks for column in task.columns]
    assert sorted(pairs) == [(i, j) for i in range(own) for j in (*range(i + 1), *range(own, len(rows)))]


@pytest.mark.parametrize("n_workers", [nightly(1), 3])
def test_decisions_are_the_same_on_workers(tmp_path, clusters, n_workers):
    dedup(clusters, THRESHOLD, out=tmp_path / "here", keep="random", search="exact")
    with open_cluster(ClusterSettings(n_workers=n_workers, dashboard_address=":0")) as client:
        result = dedup(clusters, THRESHOLD, out=tmp_path / "there", keep="random", search="exact", client=client)
        groups, again = result.groups(3), result.at(0.97, client=client)
    assert decisions_of(tmp_path / "here") == decisions_of(tmp_path / "there")
    assert groups == open_decisions(tmp_path / "here").groups(3)
    assert again.summary["kept"] == open_decisions(tmp_path / "here").at(0.97).summary["kept"]


def test_another_threshold_takes_no_search(tmp_path, clusters, monkeypatch):
    result = dedup(clusters, 0.9, floor=0.8, out=tmp_path / "out", search="exact")
    fresh = {t: dedup(clusters, t, floor=0.8, search="exact").decisions.compute() for t in (0.8, 0.97)}
    default = dedup(clusters, 0.97, search="exact").decisions.compute()
    monkeypatch.setattr(join, "compare_row_blocks", None)
    for threshold, expected in fresh.items():
        again = result.at(threshold)
        assert again.summary["threshold"] == threshold
        assert again.decisions.compute().equals(expected)
        assert again.at(0.97).decisions.compute().equals(fresh[0.97])
    replaced = dedup(clusters, 0.97, out=tmp_path / "out", search="exact", overwrite=True)
    assert replaced.decisions.compute().equals(default)
    assert replaced.at(0.8).decisions.compute().equals(fresh[0.8])
    with pytest.raises(UsageError, match=r"no pairs with scores down to 0.7 were stored\n.*\n.*floor=0.7"):
        result.at(0.7)
    with pytest.raises(UsageError, match="no pairs"):
        dedup(clusters, 0.9, search="clusters").at(0.95)
    with pytest.raises(TypeError):  # a lower floor takes a search, which this test has broken
        dedup(clusters, 0.7, out=tmp_path / "out", search="exact", overwrite=True)


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
def test_the_curve_tells_what_other_thresholds_remove(clusters, rule):
    result = dedup(clusters, 0.9, floor=0.8, search="exact", rule=rule)
    curve = result.curve()
    assert curve.threshold.tolist() == [round(0.8 + i / 100, 2) for i in range(21)]
    for row in result.curve([0.8, 0.875, 0.97]).to_dict("records"):
        summary = result.at(row["threshold"]).summary
        assert {**summary["removed"], "kept": summary["kept"]} == {k: row[k] for k in ("exact", "semantic", "kept")}
    with pytest.raises(UsageError, match=r"no pairs with scores down to 0\.7"):
        result.curve([0.9, 0.7])


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
def test_new_rows_are_held_against_old_ones(tmp_path, rule):
    rows = make_rows()
    X = rows[0]
    new = np.arange(300) % 5 == 1
    stores = []
    for name, mine in (("new", new), ("old", ~new & (np.arange(300) < 200)), ("older", ~new & (np.arange(300) >= 200))):
        part = [column[mine] for column in rows]
        stores.append(write_clusters(tmp_path / name, part, np.flatnonzero(mine)))
    before = [(file, file.read_bytes()) for store in stores for file in store.rglob("*") if file.is_file()]
    result = dedup(stores[0], THRESHOLD, search="exact", rule=rule, against=stores[1:], out=tmp_path / "out")
    old = np.flatnonzero(~new)
    order = [*old, *sorted(np.flatnonzero(new), key=lambda i: (-rows[2][i], -i))]
    scores = scores_of(X)
    scores[np.ix_(old, old)] = 0  # old rows stay, whatever they are to one another
    expected = expected_decisions(scores, order, THRESHOLD, rule)
    found = {row["id"]: row for row in decisions_of(tmp_path / "out")}
    assert sorted(found) == np.flatnonzero(new).tolist()
    for i, row in found.items():
        keep, _, best, score = expected[i]
        assert row["keep"] == keep
        assert row["cosine_sim_score"] == (None if score is None else pytest.approx(score, abs=1e-6))
        if best is not None:  # old rows are ranked as they lie, which decides between copies of one another
            assert scores[i, row["max_id"]] == pytest.approx(score, abs=1e-6)
        assert row["kept_id"] is None or not new[row["kept_id"]] or found[row["kept_id"]]["keep"]
    assert any(row["kept_id"] is not None and not new[row["kept_id"]] for row in found.values())
    assert result.summary["rows"] == new.sum()
    groups = result.groups(1000)
    assert {(g.id, d.id) for g in groups for d in g.duplicates} == {
        (row["kept_id"], i) for i, row in found.items() if row["kept_id"] is not None
    }
    assert all(g.metadata["text"] == f"text {g.id}" for g in groups)
    again = dedup(stores[0], 0.99, search="exact", rule=rule, against=stores[1:], floor=THRESHOLD)
    assert result.at(0.99).decisions.compute().equals(again.decisions.compute())
    assert before == [(file, file.read_bytes()) for file, _ in before]


def test_groups_reach_across_clusters(clusters):
    X, labels, *_ = make_rows()
    result = dedup(clusters, THRESHOLD, search="exact")
    groups = result.groups(1000)
    removed = result.removed.compute()
    assert {(g.id, d.id) for g in groups for d in g.duplicates} == set(zip(removed.kept_id, removed.id, strict=True))
    assert any(labels[d.id] != labels[g.id] for g in groups for d in g.duplicates)
    for group in groups:
        assert (group.centroid, group.metadata["text"]) == (labels[group.id], f"text {group.id}")
        for row in group.duplicates:
            assert row.score == pytest.approx(float(X[group.id] @ X[row.id]), abs=1e-6)


def test_without_any_pair(tmp_path):
    X = np.eye(40, dtype=np.float32)
    rows = X, (np.arange(40) % 3).astype(np.int32), np.full(40, 0.5, np.float32), np.zeros(40, int)
    result = dedup(write_clusters(tmp_path / "clusters", rows), 0.9, search="exact")
    assert (result.summary["kept"], result.summary["pairs"]["count"], result.recall["with_twin"]) == (40, 0, 0)
    assert result.groups() == []


def test_rows_of_zeros_are_copies(tmp_path):
    X = np.zeros((40, 4), np.float32)
    X[0, 0] = 1
    rows = X, np.zeros(40, np.int32), np.full(40, 0.5, np.float32), np.zeros(40, int)
    result = dedup(write_clusters(tmp_path / "clusters", rows), 0.9, search="exact")
    assert result.summary["removed"] == {"exact": 38, "semantic": 0}


def test_half_precision_and_float32_kernels(tmp_path):
    rows = make_rows()
    clusters = write_clusters(tmp_path / "clusters", rows, dtype="float16")
    half = rows[0].astype(np.float16).astype(np.float32)
    order = sorted(range(300), key=lambda i: (-rows[2][i], -i))
    expected = expected_decisions(scores_of(half), order, THRESHOLD, "survivors")
    for kernels in ("auto", "float32"):
        with dask.config.set({"daskmeans.kernels": kernels}):
            result = dedup(clusters, THRESHOLD, search="exact")
        assert set(result.kept.id.compute()) == {i for i, row in expected.items() if row[0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.9, "floor": 0.95}, "--floor: 0.95 is above the threshold"),
        ({"threshold": 0.9, "floor": 0.3}, "--threshold, --floor: with scores from 0.3 on, there would be more"),
        ({"threshold": 0.3}, "--threshold, --floor: with scores from 0.3 on, there would be more"),
        ({"threshold": 0.9, "floor": 2}, "--floor: 2 is out of range"),
        ({"threshold": 0.9, "floor": 0.8, "search": "clusters"}, "--floor: a search inside clusters stores no pairs"),
        ({"threshold": 0.9, "against": "SAME"}, "--against .*clusters: the same clusters are named twice"),
        ({"threshold": 0.9, "against": ["SAME"], "search": "clusters"}, "--against: .*\n.*--search exact"),
        ({"threshold": 0.9, "against": "TEXT"}, "its ids are string\n  expected: int64, as in"),
        ({"threshold": 0.9, "against": "BOTH"}, r"the id \d+ is in both\n.*\n  remedy: give the new rows other ids"),
        ({"threshold": 0.9, "against": "WIDE"}, "its vectors have 13 dimensions\n  expected: 12"),
    ],
)
def test_wrong_use(tmp_path, clusters, arguments, message):
    if "against" in arguments:
        write_clusters(tmp_path / "wide", make_rows(d=13))
        write_clusters(tmp_path / "text", make_rows(), [f"id{i}" for i in range(300)])
        write_clusters(tmp_path / "both", make_rows(), range(299, 599))
        stores = {"SAME": clusters, "BOTH": tmp_path / "both", "WIDE": tmp_path / "wide", "TEXT": tmp_path / "text"}
        given_ = arguments["against"]
        arguments = arguments | {"against": [stores[g] for g in given_] if isinstance(given_, list) else stores[given_]}
    with pytest.raises(UsageError, match=message):
        dedup(clusters, out=tmp_path / "out", **{"search": "exact"} | arguments)
    assert not (tmp_path / "out").exists()


def test_an_id_in_two_of_the_clusters_held_against(tmp_path, clusters):
    """The row that stays would be one or the other."""
    against = []
    for name, ids in (("old", range(1000, 1300)), ("older", range(1299, 1599)), ("oldest", range(1600, 1900))):
        against.append(write_clusters(tmp_path / name, make_rows(), ids))
    for given_ in (against, against[::-1]):
        with pytest.raises(UsageError, match=r"old.*, .*old.*: the id 1299 is in both\n.*\n.*remedy: .*--against"):
            dedup(clusters, THRESHOLD, against=given_, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = dedup(clusters, THRESHOLD, against=against[::2])
    against[0].rename(tmp_path / "aside")
    write_clusters(against[0], make_rows(seed=1), range(1000, 1300))
    for use in (result.groups, lambda: result.at(THRESHOLD)):
        with pytest.raises(NotFoundError, match="old: the clusters that the decisions were made from"):
            use()


def test_more_pairs_than_fit_are_kept_for_a_higher_threshold(tmp_path, clusters, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2000))
    with pytest.raises(MemoryForecastError, match=r"--threshold: deciding on .* pairs"):
        dedup(clusters, 0.8, out=tmp_path / "out", search="exact")
    with pytest.raises(OutputError, match="unfinished"):
        open_decisions(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(join, "compare_row_blocks", None)
    found = dedup(clusters, 0.95, floor=0.8, out=tmp_path / "out", search="exact")
    monkeypatch.undo()
    assert found.decisions.compute().equals(dedup(clusters, 0.95, floor=0.8, search="exact").decisions.compute())


def test_a_failure_leaves_finished_pairs_alone(tmp_path, clusters, monkeypatch):
    dedup(clusters, 0.8, out=tmp_path / "out", search="exact")
    before = all_edges(tmp_path / "out" / "_pairs")
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(decisions, "rank", interrupt)
        dedup(clusters, 0.9, out=tmp_path / "out", search="exact", overwrite=True)
    assert all_edges(tmp_path / "out" / "_pairs") == before
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):  # a first search leaves nothing half done
        broken.setattr(plan, "make_self_join_tasks", interrupt)
        dedup(clusters, 0.9, out=tmp_path / "other", search="exact")
    assert not (tmp_path / "other").exists()


def interrupt(*_):
    raise KeyboardInterrupt


def test_pairs_of_other_clusters_are_not_used(tmp_path):
    """The same number of rows, and other vectors."""
    clusters = write_clusters(tmp_path / "clusters", make_rows(seed=0))
    result = dedup(clusters, 0.9, out=tmp_path / "out", search="exact")
    manifest.remove_tree(UPath(clusters))
    write_clusters(clusters, make_rows(seed=1))
    for decide_again in (result.at, lambda threshold: result.curve([threshold])):
        with pytest.raises(NotFoundError, match="the clusters that the decisions were made from"):
            decide_again(0.95)
    again = dedup(clusters, 0.9, out=tmp_path / "out", search="exact", overwrite=True)
    assert again.decisions.compute().equals(dedup(clusters, 0.9, search="exact").decisions.compute())
    kept = (tmp_path / "out" / "_pairs" / "_manifest.json").read_text()
    (tmp_path / "out" / "_pairs" / "_manifest.json").write_text(kept.replace('"daskmeans": "', '"daskmeans": "0.'))
    with pytest.raises(NotFoundError):  # found by another version
        again.at(0.95)


def test_decisions_of_a_search_that_was_made_again(tmp_path, clusters):
    derived = dedup(clusters, 0.9, floor=0.8, out=tmp_path / "out", search="exact").at(0.95, out=tmp_path / "derived")
    dedup(clusters, 0.9, out=tmp_path / "out", search="exact", overwrite=True)
    assert derived.at(0.85).summary["threshold"] == 0.85  # the pairs from 0.8 on are still there
    manifest.remove_tree(UPath(tmp_path / "out"))
    dedup(clusters, 0.9, out=tmp_path / "out", search="exact")
    with pytest.raises(NotFoundError, match=r"at least 0\.8"):
        derived.at(0.85)
    with pytest.raises(OutputError, match="inside the input"):
        derived.at(0.95, out=clusters / "x")


def test_pairs_that_are_gone_are_missed(tmp_path, clusters):
    result = dedup(clusters, 0.8, out=tmp_path / "out", search="exact")
    sorted((tmp_path / "out" / "_pairs").glob("part-*"))[0].unlink()
    with pytest.raises(NotFoundError, match=r"pairs: the pairs of these clusters .*\n.*dedup"):
        result.at(0.9)
    manifest.remove_tree(UPath(tmp_path / "out" / "_pairs"))
    with pytest.raises(NotFoundError, match="no longer"):
        result.at(0.9)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 25),
    share=st.sampled_from([0.05, 0.3, 0.9]),
    threshold=st.sampled_from([0.5, 0.75, 1.0]),
    rule=st.sampled_from(["survivors", "semdedup"]),
    old=st.integers(0, 12),
)
def test_pairs_of_one_copy_stand_for_all(seed, n, share, threshold, rule, old):
    """Every row is a copy of one of a few; scores are tabled, so that ties are many; the first rows stay anyhow."""
    old = min(old, n)
    rng = np.random.default_rng(seed)
    kind = rng.integers(max(1, n // 2), size=n)
    table = rng.choice([0.5, 0.75, 0.875, 1.0], (n, n))
    table = np.where(rng.random((n, n)) < share, np.maximum(table, table.T), 0)
    table = np.maximum(table, table.T)
    scores = table[kind][:, kind]
    scores[kind[:, None] == kind[None]] = 1
    numbers = rng.permutation(n)  # in what order pairs name rows
    first = {k: min(np.flatnonzero(kind == k), key=lambda i: numbers[i]) for k in kind}
    pairs = [(i, first[kind[i]], np.float32(1), True) for i in range(n) if first[kind[i]] != i]
    heads = sorted(first.values())
    pairs += [(i, j, np.float32(scores[i, j]), False) for i in heads for j in heads if i > j and scores[i, j] >= 0.5]
    rows, twins, found, copies = map(np.array, zip(*pairs, strict=True)) if pairs else (np.empty(0, int),) * 4
    made = greedy_select(n, rows.astype(int), twins.astype(int), found.astype(np.float32), copies.astype(bool),
                   np.float32(threshold), rule, old)  # fmt: skip
    stays = list(range(old))
    for i in range(old, n):
        earlier = [j for j in range(i) if scores[i, j] >= 0.5]
        best = max(earlier, key=lambda j: (scores[i, j], -j), default=-1)
        near = [j for j in earlier if scores[i, j] >= threshold]
        copied = [j for j in range(i) if kind[j] == kind[i]]
        if copied and copied[0] < old:  # what else is like a row that stays is not looked at
            best = copied[0]
        if copied or [j for j in near if rule == "semdedup" or j in stays]:
            assert not made.keep[i]
        else:
            assert made.keep[i]
            stays.append(i)
        assert made.best[i] == best
        assert made.exact[i] == (bool(copied) and copied[0] in stays)
        kept = made.kept[i]
        assert kept < 0 if made.keep[i] else kept in stays or (kept < 0 and rule == "semdedup")
        assert (kept < 0) == np.isnan(made.kept_score[i])
        assert kept < 0 or made.kept_score[i] == scores[i, kept] >= threshold
        assert (made.score[i] == scores[i, best]) if best >= 0 else np.isnan(made.score[i])
        if not copied and not made.keep[i]:
            assert made.kept[i] == max((j for j in near if j in stays), key=lambda j: (scores[i, j], -j), default=-1)
        if copied:
            head = copied[0]
            assert made.kept[i] == (head if head in stays else made.kept[head])
