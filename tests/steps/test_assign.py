"""Rows are assigned by an index only where somebody asks for it, and what that costs in labels is told."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import daskmeans as dkm
from daskmeans import errors
from daskmeans.cli.main import main
from daskmeans.kmeans import centroid_index
from daskmeans.planner.describe import describe
from daskmeans.steps.assign import assign_files
from daskmeans.steps.settings import Storing
from daskmeans.vectors.matrix import to_column
from daskmeans.vectors.options import ReadOptions
from helpers import write_embeddings

K, D = 400, 24
needs_faiss = pytest.mark.skipif(
    centroid_index.find_spec("faiss") is None, reason='no faiss: pip install "daskmeans[ann]"'
)


def spread(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, D)) * np.linspace(1.5, 0.1, D)).astype(np.float32)


@pytest.fixture
def km() -> dkm.KMeans:
    """A model of 400 clusters."""
    return dkm.KMeans(K, max_iter=0, init=spread(K, seed=1), normalize=False).fit(spread(K, seed=1))


def exact(X: np.ndarray, km: dkm.KMeans) -> np.ndarray:
    return ((X[:, None].astype(float) - km.cluster_centers_[None].astype(float)) ** 2).sum(2).argmin(1)


def holds(facts: dict, found: np.ndarray, X: np.ndarray, km: dkm.KMeans) -> bool:
    """Whether the share of exact labels is inside the interval that `facts` tell, and not all of them."""
    share = (found == exact(X, km)).mean()
    return facts["low"] <= share <= facts["high"] and share < 1


@needs_faiss
def test_labels_do_not_depend_on_partitions_or_workers(km, client, thread_client):
    X = spread(3000)
    labels = km.predict(X, assign=km.build_index(X, recall=0.9))
    assert holds(km.ann_, labels, X, km)
    assert labels.dtype == np.int32
    facts = km.ann_
    for at, chunks in ((client, 700), (thread_client(1), 3000), (thread_client(3), 1)):
        parts = da.from_array(X[:200] if chunks == 1 else X, chunks=(max(chunks, 20), D))
        index = km.build_index(X if chunks == 1 else parts, recall=0.9, client=at)
        assert index.facts == facts
        with at.as_current():
            assert km.predict(parts, assign=index).compute().tolist() == labels[: len(parts)].tolist()


@needs_faiss
def test_an_index_serves_rows_that_it_has_not_seen(km):
    X, new = spread(3000), spread(2000, seed=2)
    index = km.build_index(X)
    assert km.predict(new, assign=index).tolist() == index.nearest(new, km.cluster_centers_).tolist()
    assert (km.predict(new, assign=index) == exact(new, km)).mean() > 0.97
    assert "recall=" in repr(index)


@needs_faiss
def test_what_was_measured_is_saved_with_the_model(tmp_path, km):
    X = spread(3000)
    labels = km.predict(X, assign="ann")
    km.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model.json").read_text())["ann"] == km.ann_
    loaded = dkm.KMeans.load(tmp_path / "model")
    assert loaded.ann_ == km.ann_
    assert loaded.predict(X, assign="ann").tolist() == labels.tolist()
    assert km.ann_["target"] == 0.99
    assert holds(km.ann_, labels, X, km)


def test_nobody_gets_an_index_who_did_not_ask(tmp_path, km, monkeypatch):
    monkeypatch.setattr(centroid_index, "tune_index", None)
    X = spread(500)
    assert km.predict(X).tolist() == exact(X, km).tolist()
    assert not hasattr(km, "ann_")
    km.save(tmp_path / "model")
    assert not hasattr(dkm.KMeans.load(tmp_path / "model"), "ann_")


@needs_faiss
def test_distances_are_exact_distances_to_the_centroid_of_the_label(km):
    X = spread(3000)
    frame = dd.from_pandas(pd.DataFrame({"id": range(len(X)), "v": to_column(X)}), npartitions=4)
    rows = dkm.assign(frame, km, assign=km.build_index(X, recall=0.8)).compute()
    labels = rows["centroid"].to_numpy()
    assert holds(km.ann_, labels, X, km)
    C = km.cluster_centers_[labels].astype(float)
    np.testing.assert_allclose(rows["l2_dist_to_cent"], np.linalg.norm(X - C, axis=1), rtol=1e-6)
    cosine = 1 - (X * C).sum(1) / np.linalg.norm(X.astype(float), axis=1) / np.linalg.norm(C, axis=1)
    np.testing.assert_allclose(rows["cosine_dist_to_cent"], cosine, rtol=1e-5)


def test_paths_are_not_frames(km):
    with pytest.raises(errors.UsageError, match="a model on disk"):
        dkm.assign("vectors", km)
    with pytest.raises(errors.NotFoundError, match="model"):
        dkm.assign(dd.from_pandas(pd.DataFrame({"id": [1]}), npartitions=1), "model")


@needs_faiss
def test_few_clusters_are_said_to_be_few(km, caplog):
    km.build_index(spread(100))
    assert "400 clusters are few" in caplog.text


def test_a_way_to_assign_that_does_not_exist(km):
    with pytest.raises(errors.UsageError, match="assign='fast'"):
        km.predict(spread(10), assign="fast")


@needs_faiss
def test_a_recall_that_is_no_number(km):
    with pytest.raises(errors.UsageError, match=r"recall='0\.9'"):
        km.build_index(spread(10), recall="0.9")


def make_model(tmp_path: Path, km: dkm.KMeans) -> tuple[Path, str]:
    km.save(tmp_path / "model")
    return write_embeddings(tmp_path / "in" / "rows.parquet", spread(3000)), str(tmp_path / "model")


def labels_in(out: Path) -> dict[str, int]:
    table = pq.read_table(list(out.glob("*.parquet")), columns=["id", "centroid"]).to_pydict()
    return dict(zip(table["id"], table["centroid"], strict=True))


@needs_faiss
def test_the_manifest_and_the_screen_tell_the_recall(tmp_path, km, two_workers):
    rows, model = make_model(tmp_path, km)
    command = ["assign", str(rows), "--model", model, "--assign", "ann", "--assign-recall", "0.9"]
    command += ["--scheduler", two_workers.scheduler_address]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)["ann"]
    found = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert (found["ann"], found["settings"]["assign"], found["settings"]["assign_recall"]) == (facts, "ann", 0.9)
    labels = labels_in(tmp_path / "out")
    assert holds(facts, np.array([labels[f"row-{i:05d}"] for i in range(3000)]), spread(3000), km)
    assert describe(tmp_path / "out")["ann"] == facts
    with dask.config.set({"daskmeans.partition-bytes": "40kB"}):
        assign_files(rows, model, tmp_path / "again", storing=Storing(assign="ann", assign_recall=0.9))
    assert labels_in(tmp_path / "again") == labels
    shown = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "shown")])
    assert ["ann", "recall", f"{facts['recall']:.6g}"] in [line.split() for line in shown.stdout.splitlines()]


@needs_faiss
def test_rows_that_are_rejected_are_listed_once(tmp_path, km):
    X = spread(900)
    X[7] = np.nan
    rows = write_embeddings(tmp_path / "in" / "rows.parquet", X)
    km.save(tmp_path / "model")
    reading = ReadOptions(on_bad_row="skip")
    made = assign_files(rows, tmp_path / "model", tmp_path / "out", reading, Storing(assign="ann"))
    assert (made.rows, made.manifest["rejected"]) == (899, 1)


@needs_faiss
def test_a_run_tells_the_recall_and_another_way_to_assign_is_another_step(tmp_path):
    rows = write_embeddings(tmp_path / "in" / "rows.parquet", spread(600))

    def again(**how: object) -> dict:
        return dkm.run(rows, tmp_path / "out", dkm.KMeans(60, max_iter=2), threshold=0.9, **how).summary

    summary = again(assign="ann")
    assert summary["ann"]["sampled"] == 300
    assert again(assign="ann")["ann"] == summary["ann"]
    with pytest.raises(errors.OutputError, match="assign was 'ann', now 'exact'"):
        again()
    assert "ann" not in again(overwrite=True)


def test_without_faiss_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(centroid_index, "find_spec", lambda name: None)
    rows = write_embeddings(tmp_path / "in" / "rows.parquet", spread(600))
    with pytest.raises(errors.MissingExtraError, match=r'pip install "daskmeans\[ann\]"'):
        dkm.run(rows, tmp_path / "out", dkm.KMeans(60), threshold=0.9, assign="ann")
    assert not (tmp_path / "out").exists()
