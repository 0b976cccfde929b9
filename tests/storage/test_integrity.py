"""Rows in are rows out, inputs are what they were, and every file says what wrote it."""

from __future__ import annotations

import ast
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import daskmeans as dkm
from daskmeans.duplicates import decisions, rewrite, within
from daskmeans.errors import DataError, NotFoundError, OutputError, RunError
from daskmeans.report.review import write_review
from daskmeans.steps import append
from daskmeans.steps import assign as assign_step
from daskmeans.steps.assign import assign_files
from daskmeans.steps.fit import fit
from daskmeans.steps.leak import leak
from daskmeans.storage import manifest, signature
from daskmeans.storage.manifest import FORMAT
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source
from helpers import blobs, parquet_below, write_embeddings

PACKAGE = Path(dkm.__path__[0])
SKIP = ReadOptions(on_bad_row="skip")


def test_every_parquet_file_says_what_wrote_it(tmp_path):
    X = blobs(n=200, d=8)
    X[7] = 0
    rows = write_embeddings(tmp_path / "in" / "rows.parquet", X)
    result = dkm.run(rows, tmp_path / "one", dkm.KMeans(3), 0.9, SKIP, layout="hive", search="clusters")
    write_review(result, 5)
    dkm.run(rows, tmp_path / "two", dkm.KMeans(3), 0.9, SKIP, search="exact")
    dkm.apply(result.path, rows, tmp_path / "kept", on_bad_row="skip")
    leak(rows, rows, tmp_path / "leaks", 0.9, SKIP)
    expected = {"model": "fit", "clusters": "assign", "dedup": "dedup", "kept": "apply", "leaks": "leak"}
    expected |= {"_pairs": "pairs", "_review": "review"}
    seen = set()
    for file in parquet_below(tmp_path):
        if file == rows:
            continue
        told = pq.read_schema(file).metadata
        names = [name for name in reversed(file.relative_to(tmp_path).parts) if name in expected]
        assert told[b"daskmeans.step"].decode() == expected[names[0]], file
        assert told[b"daskmeans.format"].decode() == str(FORMAT)
        assert told[b"daskmeans.version"].decode() == manifest.library_versions()["daskmeans"]
        seen.add(names[0])
    assert seen == set(expected)


def test_parquet_is_written_in_one_place():
    for module in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Attribute)]
        writes = {node.attr for node in calls if isinstance(node.value, ast.Name) and node.value.id == "pq"}
        # The trial writes rows for itself, and removes them.
        if module.name not in ("signature.py", "trial.py"):
            assert not writes & {"write_table", "ParquetWriter"}, module


@pytest.mark.parametrize("rows", [150, 250])
@pytest.mark.parametrize("format_", ["parquet", "jsonl", "npy"])
def test_rows_that_come_or_go_between_counting_and_reading_are_noticed(tmp_path, format_, rows):
    def write(count: int) -> str:
        X, path = blobs(n=200, d=4)[:1].repeat(count, 0), tmp_path / f"rows.{format_}"
        if format_ == "parquet":
            write_embeddings(path, X, ids=list(range(count)))
        elif format_ == "npy":
            np.save(path, X)
        else:
            path.write_text("".join(f'{{"id": {i}, "v": {x.tolist()}}}\n' for i, x in enumerate(X)))
        return str(path)

    source = open_source(write(200))
    write(rows)
    with pytest.raises(DataError):
        for partition in source.partitions:
            source.reader.table(partition)
        source.check_unchanged()  # of a NumPy file the rows are there, but there are more


@pytest.mark.parametrize("change", ["written", "removed"])
@pytest.mark.parametrize("step", ["fit", "assign", "leak"])
def test_an_input_that_changes_during_a_step_is_noticed(tmp_path, step, change, embeddings, monkeypatch):
    dkm.KMeans(3).fit(blobs()).save(tmp_path / "model")
    before = embeddings.read_bytes()

    def changing(*args):
        embeddings.unlink()
        if change == "written":
            embeddings.write_bytes(before[:-200] + before[-200:])
        return 0

    calls = {
        "fit": (dkm.KMeans, "fit", lambda: fit(embeddings, tmp_path / "out", dkm.KMeans(3))),
        "assign": (
            assign_step,
            "gather_rejects",
            lambda: assign_files(embeddings, tmp_path / "model", tmp_path / "out"),
        ),
        "leak": (
            import_module("daskmeans.steps.leak"),
            "gather_rejects",
            lambda: leak(embeddings, embeddings, tmp_path / "out", 0.9),
        ),
    }
    owner, name, call = calls[step]
    real = dkm.KMeans.fit
    changed = (lambda *args, **more: (real(*args, **more), changing())) if step == "fit" else changing
    monkeypatch.setattr(owner, name, changed)
    with pytest.raises((DataError, NotFoundError), match=r"rows\.parquet: (the file was written|no such file)"):
        call()
    assert not (tmp_path / "out").exists()


def test_an_input_that_has_changed_since_a_run_is_named(tmp_path):
    for name, X in zip("ab", np.split(blobs(n=200, d=8), 2), strict=True):
        write_embeddings(tmp_path / "in" / f"{name}.parquet", X, ids=[f"{name}{i}" for i in range(len(X))])
    dkm.run(tmp_path / "in", tmp_path / "out", dkm.KMeans(3), 0.9)
    with pytest.raises(OutputError, match=r"the file b\.parquet is gone"):
        dkm.run(tmp_path / "in" / "a.parquet", tmp_path / "out", dkm.KMeans(3), 0.9)
    shutil.copy(tmp_path / "in" / "a.parquet", tmp_path / "c.parquet")
    shutil.copyfile(tmp_path / "c.parquet", tmp_path / "in" / "a.parquet")  # the same bytes, written anew
    with pytest.raises(OutputError, match=r"the file a\.parquet was \d+ bytes"):
        dkm.run(tmp_path / "in", tmp_path / "out", dkm.KMeans(3), 0.9)


def clusters(tmp_path: Path, name: str = "clusters", first: int = 0) -> Path:
    """Clusters of 200 rows."""
    X = blobs(n=200, d=8)
    if not (tmp_path / "model").exists():
        dkm.KMeans(3).fit(X).save(tmp_path / "model")
    rows = write_embeddings(tmp_path / f"{name}.parquet", X, ids=list(range(first, first + len(X))))
    assign_files(rows, tmp_path / "model", tmp_path / name)
    return tmp_path / name


def test_dedup_counts_its_decisions(tmp_path, monkeypatch):
    made = clusters(tmp_path)
    real, write = within.decide_part, decisions._write_part
    monkeypatch.setattr(within, "decide_part", lambda *args: ([1, 0, 0], real(*args)[1]))
    monkeypatch.setattr(decisions, "_write_part", lambda *args: [write(*args)[0], 0, 0])
    for search in ("clusters", "exact"):
        with pytest.raises(RunError, match=r"dedup: 200 rows went in, but [\d,]+ were kept and 0 were removed"):
            dkm.dedup(made, 0.9, out=tmp_path / "out", search=search)
        assert not (tmp_path / "out" / "decisions").exists()


def test_apply_counts_what_it_writes(tmp_path, monkeypatch):
    result = dkm.dedup(clusters(tmp_path), 0.9, out=tmp_path / "out")
    real = rewrite.RowFilter.result
    monkeypatch.setattr(rewrite.RowFilter, "result", lambda judge: real(judge)._replace(kept=1))
    with pytest.raises(RunError, match="apply: 200 rows went in, but 1 were kept"):
        dkm.apply(result.path, tmp_path / "clusters.parquet", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_append_counts_what_it_writes(tmp_path, monkeypatch):
    old, new = clusters(tmp_path), clusters(tmp_path, "new", first=1000)
    before = (old / "_manifest.json").read_text()
    real = append._select_kept
    monkeypatch.setattr(append, "_select_kept", lambda *args: ((c, table[:0]) for c, table in real(*args)))
    monkeypatch.setattr(append, "_read_kept", lambda *args: np.ones(200, bool))
    with pytest.raises(RunError, match="append: 200 rows went in, but 0 were written"):
        dkm.dedup(new, 0.9, out=tmp_path / "out", against=[old], append=True)
    assert (old / "_manifest.json").read_text() == before


def test_the_metadata_of_others_stays():
    schema = signature.sign_schema(pa.schema({"id": pa.int64()}, metadata={"pandas": "{}"}), "apply")
    assert schema.metadata[b"pandas"] == b"{}"
    assert schema.metadata[b"daskmeans.step"] == b"apply"
