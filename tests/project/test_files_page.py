"""docs/reference/files.md names every column of every file and every key of the JSON files, and no other column."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import daskmeans as dkm
from daskmeans.report.review import write_review
from daskmeans.steps.assign import assign_files
from helpers import ROOT, blobs, parquet_below, write_embeddings

PAGE = (ROOT / "docs" / "reference" / "files.md").read_text()
SKIP = dkm.ReadOptions(metadata_fields=("text",), on_bad_row="skip")
# Directories and files, by the heading of the page under which their columns are.
SECTIONS = {
    "Clusters": "clusters", "Decisions": "decisions", "Pairs": "_pairs", "Review": "_review", "Leaks": "leaks",
    "Rejected rows": "_rejects",
}  # fmt: skip


def words_of(heading: str) -> set[str]:
    """Names in backticks in the first column of the tables below a heading."""
    section = re.split(r"(?m)^## ", PAGE)
    text = next(part for part in section if part.startswith(heading))
    return {word for line in re.findall(r"(?m)^\| ([^|]+) \|", text) for word in re.findall(r"`(\w+)`", line)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of outputs, of rows of which one is bad."""
    at = tmp_path_factory.mktemp("outputs")
    X = blobs(200)
    X[7] = 0
    for name, rows in (("in", X), ("new", blobs(60, seed=1))):
        ids = [f"{name}-{i}" for i in range(len(rows))]
        write_embeddings(at / name / "rows.parquet", rows, ids, text=["some text"] * len(rows))
    result = dkm.run(at / "in", at / "work", dkm.KMeans(4), 0.9, SKIP, floor=0.8)
    write_review(result, 5)
    dkm.dedup(at / "work" / "clusters", 0.9, search="clusters", probes=2, out=at / "probes")
    assign_files(at / "new", at / "work" / "model", at / "batch", SKIP)
    dkm.append(dkm.dedup(at / "batch", 0.9, against=at / "work" / "clusters", out=at / "batch-decisions"))
    dkm.leak(at / "in", at / "new", at / "leaks", 0.5, SKIP)
    dkm.apply(at / "work" / "dedup", at / "in", at / "kept", on_bad_row="skip")
    return at


@pytest.mark.parametrize("heading", SECTIONS)
def test_columns(made: Path, heading: str) -> None:
    found: set[str] = set()
    for folder in made.rglob(SECTIONS[heading]):
        files = [file for file in parquet_below(folder) if "_rejects" not in file.parts or heading == "Rejected rows"]
        found.update(name for file in files for name in pq.read_schema(file).names)
    assert found - {"text"} == words_of(heading) - {"text"}


@pytest.mark.parametrize("heading", SECTIONS)
def test_types(made: Path, heading: str) -> None:
    section = next(part for part in re.split(r"(?m)^## ", PAGE) if part.startswith(heading))
    rows = [
        (re.findall(r"`(\w+)`", names), kind) for names, kind in re.findall(r"(?m)^\| ([^|]+) \| (\w+) \|", section)
    ]
    named = {name: {"float32": "float", "id": "string"}.get(kind, kind) for names, kind in rows for name in names}
    found: dict[str, str] = {}
    for folder in made.rglob(SECTIONS[heading]):
        for file in parquet_below(folder):
            if "_rejects" not in file.parts or heading == "Rejected rows":
                found |= {field.name: str(field.type).removeprefix("large_") for field in pq.read_schema(file)}
    fixed = {name for name, kind in named.items() if kind in ("bool", "float", "int32", "int64", "string")}
    assert {name: found[name] for name in fixed} == {name: named[name] for name in fixed}
    assert "id" in fixed or heading == "Review"  # which refers to the pairs


@pytest.mark.parametrize(
    ("heading", "pattern"), [("Model", "model.json"), ("Summary", "*summary.json"), ("Manifest", "_manifest.json")]
)
def test_keys(made: Path, heading: str, pattern: str) -> None:
    found = {key for file in made.rglob(pattern) for key in json.loads(file.read_text())}
    named = words_of(heading)
    assert found <= named
    # Of `embed` and of an index over the centroids, which need extras, and of a fit that was interrupted.
    assert named - found <= {"dtype", "encoder", "files", "ann", "resumed"}
