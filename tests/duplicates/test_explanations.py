"""Every column of every decision, worked out again from the vectors in float64."""

import numpy as np
import pyarrow as pa
import pytest

from daskmeans import dedup
from daskmeans.duplicates.ranking import rank
from helpers import decisions_of, make_rows, write_clusters

THRESHOLD, NEAR = 0.95, 1e-6
ROWS = make_rows(n=300)
SEARCHES = {
    "exact": {"search": "exact"},
    "exact from a floor": {"search": "exact", "floor": 0.8},
    "clusters": {"search": "clusters"},
    "probes": {"search": "clusters", "probes": 3},
}
KEEPS = ["hard", "easy", "random", ["stars:desc", "text:asc"]]


def scores_of(X):
    """Scores of all pairs, and which rows are copies of each other."""
    unit = X.astype(np.float64)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    same = (unit[:, None] == unit[None]).all(axis=2)
    wide = unit.astype(np.float64)
    return np.where(same, 1, np.minimum(wide @ wide.T, 1)), same


def ranks_of(keep):
    """The rank of each row, from its definition; that of random is a hash, which other tests look at."""
    _, _, distances, stars = ROWS
    if keep == "random":
        order = rank(pa.table({"key": np.arange(len(stars))}), ("random",), "key", 42)
    else:
        keys = {"hard": lambda i: (-distances[i], -i), "easy": lambda i: (distances[i], i)}
        order = sorted(range(len(stars)), key=keys.get(str(keep), lambda i: (-stars[i], f"text {i}")))
    return np.argsort(order)


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("search", SEARCHES)
def test_every_column(tmp_path, search, keep, rule):
    settings = SEARCHES[search]
    clusters = write_clusters(tmp_path / "clusters", ROWS)
    dedup(clusters, THRESHOLD, keep=keep, rule=rule, out=tmp_path / "out", **settings)
    (scores, same), ranks, labels = scores_of(ROWS[0]), ranks_of(keep), ROWS[1]
    found = {row["id"]: row for row in decisions_of(tmp_path / "out")}
    assert sorted(found) == list(range(len(labels)))
    stays = np.array([found[i]["keep"] for i in range(len(labels))])
    inside = labels[:, None] == labels[None]
    surely = inside if search in ("clusters", "probes") else np.ones_like(inside)  # compared, whatever else is
    maybe = inside if search == "clusters" else np.ones_like(inside)
    least = -2.0 if search == "clusters" else settings.get("floor", THRESHOLD)
    for i, row in found.items():
        earlier = ranks < ranks[i]
        near = earlier & (scores[i] >= THRESHOLD) & (stays if rule == "survivors" else True)
        assert row["centroid"] == labels[i]
        assert not (row["keep"] and (near & surely[i]).any())
        assert row["keep"] or (near & maybe[i]).any()
        check_kept(row, i, scores, same, earlier & stays, surely[i], rule)
        check_nearest(row, i, scores, earlier, surely[i], maybe[i], least)
    reasons = [row["reason"] for row in found.values()]
    assert min(reasons.count(reason) for reason in (None, "exact", "semantic")) > 10


def check_kept(row, i, scores, same, staying, surely, rule):
    """``kept_id``, ``kept_score`` and ``reason``, of row `i`; `staying` are the rows before it that stay."""
    kept = row["kept_id"]
    if row["keep"] or kept is None:
        assert (kept, row["kept_score"]) == (None, None)
        assert row["reason"] == (None if row["keep"] else "semantic")
        assert row["keep"] or rule == "semdedup"
        return
    assert staying[kept]
    assert row["kept_score"] == pytest.approx(scores[i, kept], abs=NEAR)
    assert row["kept_score"] >= np.float32(THRESHOLD)
    assert row["reason"] == ("exact" if same[i, kept] else "semantic")
    if not (same[i] & surely).sum() > 1:  # a copy goes where the first of its kind goes, which may know fewer rows
        assert scores[i, kept] >= scores[i, staying & surely].max(initial=-2) - NEAR


def check_nearest(row, i, scores, earlier, surely, maybe, least):
    """``max_id`` and ``cosine_sim_score``: of all rows before, also those that were dropped."""
    best = scores[i, earlier & surely].max(initial=-2)
    if row["max_id"] is None:
        assert best < least + NEAR
        assert row["cosine_sim_score"] is None
    elif row["max_id"] == i:  # the first of a cluster has none before it
        assert not earlier[maybe].any()
        assert row["cosine_sim_score"] == 0
    else:
        assert earlier[row["max_id"]] and maybe[row["max_id"]]
        assert scores[i, row["max_id"]] >= best - NEAR
        assert row["cosine_sim_score"] == pytest.approx(scores[i, row["max_id"]], abs=NEAR)
