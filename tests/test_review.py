"""Pairs for a person to look at."""

import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import dedup
from daskmeans.errors import UsageError
from daskmeans.review import write_review
from helpers import make_rows, write_clusters
from test_report import outline


@pytest.mark.parametrize("search", ["clusters", "exact"])
def test_pairs_around_the_threshold(tmp_path, search):
    clusters = write_clusters(tmp_path / "clusters", make_rows())
    floor = {"floor": 0.85} if search == "exact" else {}
    result = dedup(clusters, 0.95, out=tmp_path / "out", search=search, **floor)
    page = write_review(result, 20)
    assert page == UPath(tmp_path / "out" / "review.html")
    pairs = pq.read_table(tmp_path / "out" / "review.parquet").to_pylist()
    known = {row["id"]: row for row in result.decisions.compute().to_dict("records")}
    scores = [pair["score"] for pair in pairs]
    assert len(pairs) == 20
    assert scores == sorted(scores)
    assert min(scores) < 0.95 < max(scores) <= 1
    assert min(scores) >= 0.85
    for pair in pairs:
        decision = known[pair["id"]]
        assert (pair["twin_id"], pair["score"]) == (decision["max_id"], decision["cosine_sim_score"])
        assert (pair["text"], pair["twin_text"]) == (f"text {pair['id']}", f"text {pair['twin_id']}")
        assert pair["duplicate"] == (pair["score"] >= 0.95)
    text = page.read_text()
    assert [tag for tag, _ in outline(text).tags].count("article") == 20
    assert text.count("From 0.95 on: duplicates") == 1
    assert pq.read_table(str(write_review(result, 10_000, tmp_path / "all").with_suffix(".parquet"))).num_rows > 20


def test_nothing_to_look_at(tmp_path):
    clusters = write_clusters(tmp_path / "clusters", [column[::4] for column in make_rows()])
    result = dedup(clusters, 1.0, search="exact", out=tmp_path / "out")
    write_review(result, 5)
    assert pq.read_table(tmp_path / "out" / "review.parquet").num_rows == 0
    with pytest.raises(UsageError, match="--review: 0 pairs"):
        write_review(result, 0)
