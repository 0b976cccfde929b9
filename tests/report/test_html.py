"""The page about a run, and the pairs that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import open_decisions
from daskmeans.errors import NotFoundError
from daskmeans.kmeans.estimator import KMeans
from daskmeans.report.examples import Row, compare_texts, describe_place, find_examples
from daskmeans.report.html import read_run_facts, write_report
from daskmeans.steps.run import run as run_files
from daskmeans.vectors.options import ReadOptions
from helpers import blobs, outline, write_embeddings

EVIL = '<script>alert(1)</script> & "quotes"'


def text_of(number: int) -> str:
    return (
        f"The {number % 30}th text of all {EVIL}, " + "with words that many texts share " * 3 + f"and its own {number}."
    )


def make_run(folder: Path, **deciding: object) -> UPath:
    """A finished run of 600 rows: 30 exact copies and 30 near-copies, among others, from three packages."""
    X = blobs()
    texts = [text_of(i) for i in range(len(X))]
    packages = [f"package {i % 3} <b>" for i in range(len(X))]
    source = write_embeddings(folder / "rows.parquet", X, text=texts, package=packages)
    reading = ReadOptions(metadata_fields=("text", "package"))
    run_files(source, folder / "run", KMeans(n_clusters=6), 0.99, reading, **deciding)
    return UPath(folder / "run")


@pytest.fixture
def run(tmp_path: Path) -> UPath:
    return make_run(tmp_path)


def test_the_page_is_whole_and_needs_nothing_else(run: UPath, tmp_path: Path) -> None:
    page = write_report(run, tmp_path / "pages" / "report.html", title=EVIL).read_text(encoding="utf-8")
    parsed = outline(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "img", "iframe")]
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert EVIL not in page and "&lt;script&gt;" in page
    summary = read_run_facts(run)
    for name in ("kept", "exact copies removed", "near-duplicates removed"):
        assert f"<b>{summary[name].split()[0]}</b>" in page
    assert [tag for tag, _ in parsed.tags].count("article") == len(find_examples(run)) > 0


def test_the_charts_count_all_rows_and_clusters(tmp_path: Path) -> None:
    run = make_run(tmp_path, search="clusters")
    page = write_report(run, tmp_path / "report.html", shown=[]).read_text(encoding="utf-8")
    counted = {unit: 0 for unit in ("rows", "clusters")}
    for number, unit in re.findall(r": ([\d,]+) (rows|clusters)</title>", page):
        counted[unit] += int(number.replace(",", ""))
    assert counted == {"rows": 600, "clusters": 6}
    assert "<article" not in page
    assert "<h3>Threshold</h3>" not in page


def test_other_thresholds_are_drawn_where_pairs_are_stored(tmp_path: Path) -> None:
    run = make_run(tmp_path, floor=0.9)
    page = write_report(run, tmp_path / "report.html", shown=[]).read_text(encoding="utf-8")
    drawn = {
        float(t): int(n.replace(",", "")) for t, n in re.findall(r"<title>threshold ([\d.]+): ([\d,]+)</title>", page)
    }
    result = open_decisions(run / "dedup")
    assert sorted(drawn) == [round(0.9 + i / 100, 2) for i in range(11)]
    for threshold in (0.9, 0.95, 0.99, 1.0):
        summary = result.at(threshold).summary
        assert drawn[threshold] == sum(summary["removed"].values()) > 0
    assert "from 0.9 on" in page


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        write_report(tmp_path / "absent", tmp_path / "report.html")


def test_examples_are_what_the_decisions_say(run: UPath, tmp_path: Path) -> None:
    decisions = {row["id"]: row for row in pq.read_table(str(run / "dedup" / "decisions")).to_pylist()}
    rows = {f"row-{i:05d}": x / np.linalg.norm(x) for i, x in enumerate(blobs().astype(np.float64))}
    found = find_examples(run, 20)
    assert 1 < len(found) <= 20
    for example in found:
        decision = decisions[example.dropped.id]
        assert decision["kept_id"] == example.kept.id and decision["reason"] == "semantic"
        assert decisions[example.kept.id]["keep"]
        assert example.score == pytest.approx(rows[example.kept.id] @ rows[example.dropped.id], abs=1e-5)
        assert example.kept.text == text_of(int(example.kept.id[4:]))
        assert example.others == sum(d["kept_id"] == example.kept.id for d in decisions.values()) - 1
    assert len({example.kept.id for example in found}) == len(found)


def test_without_texts_scores_decide(tmp_path: Path) -> None:
    source = write_embeddings(tmp_path / "rows.parquet", blobs(), ids=list(range(600)))
    run_files(source, tmp_path / "run", KMeans(n_clusters=6), 0.99, ReadOptions())
    found = find_examples(UPath(tmp_path / "run"))
    assert found and [e.score for e in found] == sorted(e.score for e in found)
    assert all(e.kept.text == "" and e.kept.metadata == {} for e in found)
    outline(write_report(tmp_path / "run", tmp_path / "report.html").read_text(encoding="utf-8"))


def test_without_duplicates_and_iterations(tmp_path: Path) -> None:
    source = write_embeddings(tmp_path / "rows.parquet", np.eye(8, dtype=np.float32))
    run_files(source, tmp_path / "run", KMeans(n_clusters=2, max_iter=0, init="random"), 0.9, ReadOptions())
    assert find_examples(UPath(tmp_path / "run")) == []
    outline(write_report(tmp_path / "run", tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("kept", "dropped"),
    [("", ""), ("a b", ""), ("", "a b"), ("a b c d", "a x c d y"), ("a " * 100 + "x", "a " * 100 + "y z")],
)
def test_both_texts_can_be_read_out_of_a_comparison(kept: str, dropped: str) -> None:
    stretches = list(compare_texts(kept, dropped))
    for side, text in (("kept", kept), ("dropped", dropped)):
        shown = " ".join(s.text for s in stretches if s.side in ("both", side))
        parts = [re.escape(part) for part in shown.split(" … ")]
        assert re.fullmatch(r" (?:.* )?".join(parts), " ".join(text.split()))


def test_places() -> None:
    assert describe_place(Row(1, "", None, {})) == ""
    assert describe_place(Row(1, "", None, {"url": "a", "stars": 3})) == "url a, stars 3"
