"""Clusters of another tool: the decisions are those on its rows, whatever its files lack."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import daskmeans as dkm
from daskmeans.cli.main import main
from daskmeans.errors import DataError, NotFoundError, OutputError, UsageError
from daskmeans.planner.describe import describe
from helpers import blobs, parquet_below, write_embeddings

K = 5
X = blobs(400, copies=20)
U = X / np.linalg.norm(X, axis=1, keepdims=True)
LABELS = np.random.default_rng(3).integers(0, K, len(X)) * 3  # numbers with gaps
LABELS[-40:] = np.tile(LABELS[:20], 2)  # copies and near-copies lie in the cluster of their originals
MEANS = {i: U[i == LABELS].astype(np.float64).mean(axis=0) for i in np.unique(LABELS)}
L2 = np.array([np.linalg.norm(u - MEANS[i]) for u, i in zip(U, LABELS, strict=True)])
COSINE = np.array([1 - u @ MEANS[i] / np.linalg.norm(MEANS[i]) for u, i in zip(U, LABELS, strict=True)])


def write_clusters(at: Path, folder: str = "centroid", rows: np.ndarray = U, **columns: np.ndarray) -> Path:
    """Directories as NeMo Curator's k-means stage writes them: several files, rows in any order, lists of floats."""
    for i in np.unique(LABELS):
        mine = np.random.default_rng(i).permutation(np.flatnonzero(i == LABELS))
        for part, some in enumerate(np.array_split(mine, 2)):
            table = {"id": some, "embeddings": pa.array(list(rows[some]), pa.list_(pa.float32()))}
            table |= {name: values[some] for name, values in columns.items()}
            file = at / f"{folder}={i}" / f"{part:03d}_0.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(table), file)
    (at / "_SUCCESS").touch()
    return at


def semdedup(order: np.ndarray, eps: float) -> set[int]:
    """Rows that are dropped inside clusters for any row before them in `order`."""
    dropped = set()
    for i in np.unique(LABELS):
        mine = [j for j in order if LABELS[j] == i]
        scores = np.triu(U[mine] @ U[mine].T, 1).max(axis=0)
        dropped |= {mine[j] for j in np.flatnonzero(scores >= 1 - eps)}
    return dropped


@pytest.mark.parametrize(
    "there", [{}, {"cosine_dist_to_cent"}, {"cosine_dist_to_cent", "l2_dist_to_cent", "centroid", "quality"}]
)
@pytest.mark.parametrize("scaled", [True, False])
def test_decisions_are_those_of_the_clusters(tmp_path, caplog, there: set, scaled: bool) -> None:
    columns = {"cosine_dist_to_cent": COSINE.astype(np.float32), "l2_dist_to_cent": L2.astype(np.float32)}
    columns |= {"centroid": LABELS, "quality": np.arange(len(X)) % 7}
    given = write_clusters(tmp_path / "kmeans", rows=U if scaled else X, **{n: columns[n] for n in there})
    before = {file: file.read_bytes() for file in given.rglob("*") if file.is_file()}
    with caplog.at_level(logging.INFO, "daskmeans"):
        result = dkm.dedup(given, eps=0.02, out=tmp_path / "out", search="clusters", rule="semdedup")
    order = np.lexsort((-np.arange(len(X)), -COSINE))  # the same order for ties, as there
    assert set(result.removed["id"].compute()) == semdedup(order, 0.02)
    assert before == {file: file.read_bytes() for file in given.rglob("*") if file.is_file()}
    lacking = [name for name in ("l2_dist_to_cent", "cosine_dist_to_cent") if name not in there]
    assert ("with what they lack" in caplog.text) == bool(lacking)
    assert all(name in caplog.text for name in lacking)
    buckets = dkm.open_buckets(tmp_path / "out-clusters")
    rows = pa.concat_tables(buckets.read(cluster) for cluster in buckets.clusters()).sort_by("id")
    assert rows["id"].to_pylist() == list(range(len(X)))
    np.testing.assert_array_equal(rows["centroid"], LABELS)
    np.testing.assert_allclose(rows["l2_dist_to_cent"], L2, atol=2e-6)
    np.testing.assert_allclose(rows["cosine_dist_to_cent"], COSINE, atol=2e-6)
    np.testing.assert_array_equal(np.stack(rows["embeddings"].to_numpy()), U if scaled else X)
    assert buckets.metadata_fields == (("quality",) if "quality" in there else ())


def test_the_command_and_again_and_the_files_without_duplicates(tmp_path) -> None:
    given = write_clusters(tmp_path / "kmeans", "nearest_cent")
    words = ["dedup", str(given), "--out", str(tmp_path / "out"), "--threshold", "0.98", "--json"]
    local = ["--n-workers", "2", "--dashboard-address", ":0"]
    done = CliRunner().invoke(main, [*words, *local])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    first = {file.name: file.read_bytes() for file in parquet_below(tmp_path / "out-clusters")}
    made = (tmp_path / "out-clusters" / "_manifest.json").stat().st_mtime_ns
    assert "exists already" in CliRunner().invoke(main, [*words, *local]).output
    result = dkm.dedup(given, 0.98, out=tmp_path / "out", overwrite=True)  # in this process, from what is there
    assert (tmp_path / "out-clusters" / "_manifest.json").stat().st_mtime_ns == made
    assert result.summary["kept"] == facts["kept"] < len(X)
    shutil.rmtree(tmp_path / "out-clusters")
    dkm.dedup(given, 0.98, out=tmp_path / "out", overwrite=True)  # one partition, one thread: the same bytes
    assert {file.name: file.read_bytes() for file in parquet_below(tmp_path / "out-clusters")} == first
    counts = dkm.apply(tmp_path / "out", given, tmp_path / "kept")
    assert counts["kept"] == facts["kept"]
    kept = pq.read_table(tmp_path / "kept")
    assert sorted(kept["id"].to_pylist()) == sorted(result.kept["id"].compute())
    assert set(kept.column_names) == {"id", "embeddings", "nearest_cent"}


def test_info_says_what_it_is(tmp_path) -> None:
    found = describe(write_clusters(tmp_path / "kmeans"))
    assert (found["kind"], found["clusters_with_rows"], found["rows"]) == ("clusters of another tool", K, len(X))
    assert found["embedding_field"] == "embeddings"


def test_ids_of_nemo_curator(tmp_path) -> None:
    given = write_clusters(tmp_path / "kmeans")
    for file in given.rglob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().rename_columns(["_curator_dedup_id", "embeddings"]), file)
    result = dkm.dedup(given, 0.98)
    assert 0 < result.summary["kept"] < len(X)
    assert dkm.apply(dkm.dedup(given, 0.98, out=tmp_path / "out"), given, tmp_path / "kept")["rows"] == len(X)


def test_what_cannot_be_clusters_is_named(tmp_path) -> None:
    given = write_clusters(tmp_path / "kmeans")
    with pytest.raises(OutputError, match="lies inside the input"):
        dkm.dedup(given, 0.9, out=given / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(OutputError, match="did not write"):
        dkm.dedup(given, 0.9, out=tmp_path / "mine")
    assert not (tmp_path / "mine-clusters").exists()
    distances = np.where(np.arange(len(X)) == 9, np.nan, COSINE).astype(np.float32)
    with pytest.raises(DataError, match="'cosine_dist_to_cent' has a value that is no distance"):
        dkm.dedup(write_clusters(tmp_path / "nan", cosine_dist_to_cent=distances), 0.9, out=tmp_path / "out")
    rows = U.copy()
    rows[7] = 0
    with pytest.raises(DataError, match="zero"):
        dkm.dedup(write_clusters(tmp_path / "zero", rows=rows), 0.9, out=tmp_path / "out")
    (tmp_path / "text" / "centroid=0").mkdir(parents=True)
    (tmp_path / "text" / "centroid=0" / "a.jsonl").write_text('{"id": 1, "v": [1.0]}\n')
    with pytest.raises(DataError, match="no Parquet"):
        dkm.dedup(tmp_path / "text", 0.9, out=tmp_path / "out")
    renamed = write_clusters(tmp_path / "renamed")
    for file in renamed.rglob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().rename_columns(["key", "embeddings"]), file)
    with pytest.raises(UsageError, match="no column 'id'"):
        dkm.dedup(renamed, 0.9, out=tmp_path / "out")
    with pytest.raises(NotFoundError, match=f"remedy: give .*{given.name}"):
        dkm.dedup(tmp_path, 0.9, out=tmp_path.parent / "out")
    assert not list(tmp_path.glob("out*"))


def test_rows_cannot_be_compared_with_them_but_with_what_is_made_of_them(tmp_path) -> None:
    given = write_clusters(tmp_path / "kmeans")
    batch = write_embeddings(tmp_path / "batch.parquet", X[:20], list(range(1000, 1020)))
    dkm.fit(batch, dkm.KMeans(2), tmp_path / "model")
    dkm.assign(batch, tmp_path / "model", tmp_path / "batch")
    with pytest.raises(UsageError, match=r"--against .*: these clusters are of another tool"):
        dkm.dedup(tmp_path / "batch", 0.98, against=given, out=tmp_path / "out")
    dkm.dedup(given, 0.98, out=tmp_path / "old")
    assert dkm.dedup(tmp_path / "batch", 0.98, against=tmp_path / "old").summary["kept"] == 0
