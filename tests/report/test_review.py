"""Pairs for a person to look at."""

import base64
import re

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

import daskmeans as dkm
from daskmeans import dedup
from daskmeans.buckets.external_sort import write_buckets
from daskmeans.errors import UsageError
from daskmeans.report.review import write_review
from daskmeans.vectors.matrix import to_column
from helpers import blobs, make_rows, outline, write_clusters, write_embeddings


@pytest.mark.parametrize("search", ["clusters", "exact"])
def test_pairs_around_the_threshold(tmp_path, search):
    clusters = write_clusters(tmp_path / "clusters", make_rows())
    floor = {"floor": 0.85} if search == "exact" else {}
    result = dedup(clusters, 0.95, out=tmp_path / "out", search=search, **floor)
    page = write_review(result, 20)
    assert page == UPath(tmp_path / "out" / "_review" / "review.html")
    pairs = pq.read_table(tmp_path / "out" / "_review" / "review").to_pylist()
    known = {row["id"]: row for row in result.decisions.compute().to_dict("records")}
    scores = [pair["score"] for pair in pairs]
    assert len(pairs) == 20
    assert scores == sorted(scores)
    assert min(scores) < 0.95 < max(scores) <= 1
    assert min(scores) >= 0.85
    for pair in pairs:
        decision = known[pair["id"]]
        twin, score = ("max_id", "cosine_sim_score") if decision["keep"] else ("kept_id", "kept_score")
        assert (pair["twin_id"], pair["score"]) == (decision[twin], decision[score])
        assert decision["keep"] == (pair["score"] < 0.95)
        assert (pair["text"], pair["twin_text"]) == (f"text {pair['id']}", f"text {pair['twin_id']}")
        assert pair["duplicate"] == (pair["score"] >= 0.95)
    text = page.read_text()
    assert [tag for tag, _ in outline(text).tags].count("article") == 20
    assert text.count("From 0.95 on: duplicates") == 1
    assert pq.read_table(str(write_review(result, 10_000, tmp_path / "all").with_suffix(".parquet"))).num_rows > 20


def test_twins_with_other_metadata(tmp_path):
    """Those of the clusters that rows were held against; some columns have names that the table has too."""
    X, labels, distances, _ = make_rows()
    for name, rows, columns in (
        ("new", slice(0, 150), {"score": "new"}),
        ("old", slice(150, 300), {"score": 1.5, "place": 7}),
    ):
        facts = {"centroid": labels[rows], "l2_dist_to_cent": distances[rows], "cosine_dist_to_cent": distances[rows]}
        ids = [f"{name}-{i}" for i in range(150)]
        # Each new row has a copy and an old one that is nearly the same.
        frame = pd.DataFrame({"id": ids, "vector": to_column(X[:150] + (0.01 * (name == "old")))} | facts | columns)
        write_buckets(dd.from_pandas(frame, npartitions=2), tmp_path / name)
    result = dedup(tmp_path / "new", 0.9, against=tmp_path / "old", out=tmp_path / "out")
    write_review(result, 20)
    table = pq.read_table(tmp_path / "out" / "_review" / "review")
    rows = table.to_pylist()
    assert {"score", "score_", "twin_score", "twin_place"} <= set(table.column_names)
    held = [row for row in rows if row["twin_id"].startswith("old")]
    assert held
    assert all((row["score_"], row["twin_score"], row["twin_place"]) == ("new", 1.5, 7) for row in held)


def test_the_page_says_what_was_not_stored(tmp_path):
    clusters = write_clusters(tmp_path / "clusters", make_rows())
    for floor, told in ((None, True), (0.85, False)):
        result = dedup(clusters, 0.95, out=tmp_path / f"{floor}", search="exact", floor=floor)
        assert ("--floor 0.85" in write_review(result, 20).read_text()) == told


def test_nothing_to_look_at(tmp_path):
    clusters = write_clusters(tmp_path / "clusters", [column[::4] for column in make_rows()])
    result = dedup(clusters, 1.0, search="exact", out=tmp_path / "out")
    write_review(result, 5)
    assert pq.read_table(tmp_path / "out" / "_review" / "review").num_rows == 0
    with pytest.raises(UsageError, match="--review: 0 pairs"):
        write_review(result, 0)


def picture(kind: str, size: int = 40) -> bytes:
    starts = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a", "webp": b"RIFF0000WEBP"}
    return starts[kind].ljust(size, b"\x01")


def write_with_column(folder, column: list) -> dict[str, float]:
    """Clusters of 40 rows and their near-copies, with a further column."""
    X, labels, distances, _ = make_rows()
    taken = [*range(40), *range(40)]
    facts = {"centroid": labels[taken], "l2_dist_to_cent": distances[taken], "cosine_dist_to_cent": distances[taken]}
    vectors = np.concatenate([X[:40], X[:40] + 0.01])
    frame = pd.DataFrame({"id": np.arange(80), "vector": to_column(vectors)} | facts)
    extra = pa.array([column[i % len(column)] for i in range(80)])
    frame["extra"] = pd.arrays.ArrowExtensionArray(pa.chunked_array([extra]))
    write_buckets(dd.from_pandas(frame, npartitions=1), folder)
    return {"threshold": 0.9, "search": "exact"}


def test_pictures_are_shown_and_other_bytes_counted(tmp_path):
    kinds = ["png", "jpeg", "gif", "webp"]
    column = [*map(picture, kinds), b"\x00" * 77, picture("png", 2 << 20), None]
    settings = write_with_column(tmp_path / "clusters", column)
    page = write_review(dedup(tmp_path / "clusters", out=tmp_path / "out", **settings), 80).read_text()
    images = [facts for tag, facts in outline(page).tags if tag == "img"]
    assert images
    found = {re.match(r"data:image/(\w+);base64,(.*)$", dict(facts)["src"]).groups() for facts in images}
    assert found == {(kind, base64.b64encode(picture(kind)).decode()) for kind in kinds}
    assert "binary data of 77 B" in page
    assert "picture of 2.00 MiB" in page
    assert "\\x" not in page


def test_pictures_of_structs_are_shown(tmp_path):
    """As Hugging Face's data sets hold them."""
    settings = write_with_column(tmp_path / "clusters", [{"bytes": picture("gif"), "path": "cat<b>.gif"}])
    page = write_review(dedup(tmp_path / "clusters", out=tmp_path / "out", **settings), 5).read_text()
    assert [tag for tag, _ in outline(page).tags].count("img") == 10
    assert "cat&lt;b&gt;.gif, picture of 40 B" in page


def test_a_page_without_columns_says_how_to_get_some(tmp_path):
    X = blobs(300)
    path = write_embeddings(tmp_path / "in.parquet", X)
    page = write_review(dkm.run(path, tmp_path / "out", dkm.KMeans(2)), 5)
    assert "--metadata-field text" in page.read_text()
