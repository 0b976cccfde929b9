"""Decisions as NeMo Curator stores its own: its steps on them, written here with pandas and numpy, agree with ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import daskmeans as dkm
from daskmeans.buckets.buckets import Buckets
from daskmeans.cli.main import main
from daskmeans.errors import OutputError, UsageError
from helpers import blobs, write_embeddings

X = blobs(300, copies=20)


@pytest.fixture(params=[True, False], ids=["numbers", "texts"])
def clusters(tmp_path, request: pytest.FixtureRequest) -> Buckets:
    ids = list(range(300)) if request.param else [f"é{i}" for i in range(300)]
    given = write_embeddings(tmp_path / "in.parquet", X, ids)
    dkm.fit(given, dkm.KMeans(6), tmp_path / "model")
    return dkm.assign(given, tmp_path / "model", tmp_path / "clusters")


def pairwise(buckets: Buckets, folder: Path) -> None:
    """What the tool's pairwise stage makes of the clusters, ranked as it does with which_to_keep="hard"."""
    for cluster in buckets.clusters():
        table = buckets.read(cluster).to_pandas()
        table = table.sort_values(["cosine_dist_to_cent", "id"], ascending=[False, False])
        E = np.stack(table["embedding"])
        E /= np.linalg.norm(E, axis=1, keepdims=True)
        scores = np.triu(E @ E.T, 1)
        best = scores.argmax(axis=0)
        made = {"id": table["id"], "max_id": table["id"].to_numpy()[best], "cosine_sim_score": scores.max(axis=0)}
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(made).to_parquet(folder / f"cluster_{cluster.centroid}.parquet", index=False)


def identify(folder: Path, eps: float) -> list:
    """What the tool's stage for duplicates makes of the results of the pairwise stage."""
    where = [("cosine_sim_score", ">=", 1.0 - eps)]
    found = [pd.read_parquet(file, filters=where, columns=["id"]) for file in sorted(folder.glob("*.parquet"))]
    return sorted(pd.concat(found)["id"])


def test_the_files_are_those_of_the_tool(tmp_path, clusters) -> None:
    pairwise(clusters, tmp_path / "theirs")
    dkm.dedup(clusters, eps=0.01, out=tmp_path / "out", rule="semdedup", search="clusters", export="nemo")
    ours = tmp_path / "out-nemo" / "pairwise_results"
    assert {f.name for f in ours.iterdir()} == {f.name for f in (tmp_path / "theirs").iterdir()}
    for file in ours.iterdir():
        found, expected = (pd.read_parquet(path).sort_values("id") for path in (file, tmp_path / "theirs" / file.name))
        assert list(found.columns) == ["id", "max_id", "cosine_sim_score"]
        assert found["cosine_sim_score"].dtype == np.float32
        assert found["id"].tolist() == expected["id"].tolist()
        np.testing.assert_allclose(found["cosine_sim_score"], expected["cosine_sim_score"], atol=1e-6)
        near = expected["cosine_sim_score"].between(0.5, 0.9999).to_numpy()  # among copies any may be the best
        assert found["max_id"][near].tolist() == expected["max_id"][near].tolist()
    dropped = ds.dataset(tmp_path / "out-nemo" / "duplicates").to_table()["id"].to_pylist()
    assert sorted(dropped) == identify(tmp_path / "theirs", 0.01) == identify(ours, 0.01)


def test_the_ids_to_remove_are_those_that_are_dropped(tmp_path, clusters) -> None:
    words = ["dedup", str(clusters.path), "--out", str(tmp_path / "out"), "--threshold", "0.98", "--export", "nemo"]
    local = ["--json", "--n-workers", "1", "--dashboard-address", ":0"]
    done = CliRunner().invoke(main, [*words, *local])
    assert done.exit_code == 0, done.output
    removed = dkm.open_decisions(tmp_path / "out").removed["id"].compute()
    files = list((tmp_path / "out-nemo" / "duplicates").glob("*.parquet"))
    tables = [pq.read_table(file) for file in files]
    assert all(table["id"].to_pylist() == sorted(table["id"].to_pylist()) for table in tables)
    assert sorted(pa.concat_tables(tables)["id"].to_pylist()) == sorted(removed)
    assert json.loads(done.stdout)["kept"] == 300 - len(removed)
    pairs = ds.dataset(tmp_path / "out-nemo" / "pairwise_results").to_table()
    assert len(pairs) == 300
    assert not any(pairs[name].null_count for name in pairs.column_names)


def test_nothing_is_decided_where_nothing_can_be_exported(tmp_path, clusters) -> None:
    (tmp_path / "out-nemo").mkdir()
    (tmp_path / "out-nemo" / "notes").touch()
    with pytest.raises(OutputError, match="did not write"):
        dkm.dedup(clusters, 0.9, out=tmp_path / "out", export="nemo")
    with pytest.raises(UsageError, match="unknown tool 'spark'"):
        dkm.dedup(clusters, 0.9, out=tmp_path / "out", export="spark")
    with pytest.raises(UsageError, match="a directory"):
        dkm.dedup(clusters, 0.9, export="nemo")
    assert not (tmp_path / "out").exists()


def test_decisions_that_are_made_again_are_exported_again(tmp_path, clusters) -> None:
    counts = []
    for threshold in (0.98, 1.0):
        dkm.dedup(clusters, threshold, out=tmp_path / "out", export="nemo", overwrite=True)
        counts.append(len(ds.dataset(tmp_path / "out-nemo" / "duplicates").to_table()))
    assert counts[0] > counts[1] > 0
