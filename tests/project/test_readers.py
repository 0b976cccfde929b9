"""Other readers of Parquet open outputs as they are, and outputs of earlier versions are still ours."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from upath import UPath

from daskmeans import KMeans, apply, dedup, open_buckets, open_decisions, run
from daskmeans.errors import DataError
from daskmeans.planner.describe import describe
from daskmeans.report.review import write_review
from daskmeans.steps.assign import assign_files
from daskmeans.steps.embed import embed
from daskmeans.steps.leak import leak
from daskmeans.steps.settings import Storing
from daskmeans.storage import manifest
from daskmeans.vectors.options import ReadOptions
from helpers import write_embeddings

SKIP = ReadOptions(on_bad_row="skip", metadata_fields=("rank",))
FIRST = {"keep": "rank:asc"}
# Rows that are all far from one another, copies of some of them, and a row that is rejected.
ROWS, COPIES = 120, 10
NEW, OLD = 30, 5


def by_polars(folder: Path) -> list[str]:
    """By a glob: of a directory it wants no other files, hidden or not."""
    polars = pytest.importorskip("polars", reason="no polars: pip install polars")
    return polars.read_parquet(f"{folder}/**/*.parquet")["id"].to_list()


def by_duckdb(folder: Path) -> list[str]:
    duckdb = pytest.importorskip("duckdb", reason="no duckdb: pip install duckdb")
    return [id_ for (id_,) in duckdb.sql(f"SELECT id FROM read_parquet('{folder}/**/*.parquet')").fetchall()]


def by_datasets(folder: Path) -> list[str]:
    datasets = pytest.importorskip("datasets", reason="no Hugging Face datasets: pip install datasets")
    tqdm = pytest.importorskip("tqdm").tqdm
    with mock.patch.object(tqdm, "monitor_interval", 0), tempfile.TemporaryDirectory() as cache:  # 0: without a thread
        return datasets.load_dataset(str(folder), split="train", cache_dir=cache)["id"][:]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "pandas": lambda folder: pd.read_parquet(folder)["id"].to_list(),
    "pyarrow": lambda folder: ds.dataset(folder, partitioning="hive").to_table()["id"].to_pylist(),
    "dask": lambda folder: dd.read_parquet(folder)["id"].compute().to_list(),
    "polars": by_polars,
    "duckdb": by_duckdb,
    "datasets": by_datasets,
}


def names(kind: str, count: int) -> list[str]:
    return [f"{kind}-{i:03d}" for i in range(count)]


@pytest.fixture(scope="module", params=["bucketed", "hive"])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of every step, each with all that it may hold besides its rows."""
    at, layout = tmp_path_factory.mktemp("work"), request.param
    X = np.random.default_rng(0).normal(size=(ROWS + NEW, 24))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert np.triu(unit @ unit.T, 1).max() < 0.9
    bad = np.full((1, 24), np.nan)
    for folder, ids, rows in (
        ("base", [*names("row", ROWS), *names("copy", COPIES), "bad"], [X[:ROWS], X[:COPIES], bad]),
        ("new", [*names("new", NEW), *names("old", OLD), "bad"], [X[ROWS:], X[:OLD], bad]),
    ):
        texts = [*ids[:-1], ""]
        each = np.concatenate(rows).astype(np.float32)
        for i, part in enumerate(np.array_split(np.arange(len(ids)), 2)):
            columns = {"rank": part.tolist(), "text": [texts[row] for row in part]}
            file = at / folder / f"{i}" / "rows.parquet"
            write_embeddings(file, each[part], [ids[row] for row in part], **columns)
    embed(at / "base", at / "embedded", on_bad_row="skip")
    result = run(at / "base", at / "work", KMeans(4), 0.9, SKIP, layout=layout, search="exact", **FIRST)
    apply(result.path, at / "base", at / "kept", on_bad_row="skip")
    dedup(at / "work" / "clusters", 0.9, out=at / "noted", search="clusters", **FIRST)
    leak(at / "base", at / "new", at / "leaks", 0.9, SKIP)
    assign_files(at / "new", at / "work" / "model", at / "new-clusters", SKIP, Storing(layout))
    held = {"against": at / "work" / "clusters", "append": True}
    dedup(at / "new-clusters", 0.9, out=at / "decided", search="exact", **held, **FIRST)
    for path in (result.path, at / "decided"):
        write_review(open_decisions(path), 5)
    return at


GOOD = [*names("row", ROWS), *names("copy", COPIES)]
ADDED = [*names("new", NEW), *names("old", OLD)]
TRUE = {
    "embedded": GOOD,
    "work/clusters": [*GOOD, *names("new", NEW)],  # extended
    "work/dedup": GOOD,
    "work/dedup/decisions": GOOD,
    "noted": GOOD,
    "noted/decisions": GOOD,
    "new-clusters": ADDED,
    "decided": ADDED,
    "decided/decisions": ADDED,
    "kept": names("row", ROWS),
    "leaks": names("old", OLD),
}


# It takes the format that most files have, hidden or not, and in these more are JSON: it reads `decisions` below them.
NOT_BY_DATASETS = ("work/dedup", "noted", "decided")


@pytest.mark.parametrize("output", TRUE)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_finds_the_rows_and_nothing_else(work: Path, reader: str, output: str) -> None:
    if reader == "datasets" and output in NOT_BY_DATASETS:
        output += "/decisions"
    assert sorted(READERS[reader](work / output)) == sorted(TRUE[output])


def test_there_is_all_that_readers_might_stumble_over(work: Path) -> None:
    found = {file.relative_to(work).as_posix() for file in work.rglob("*") if file.is_file()}
    for place in ("embedded", "work/clusters", "new-clusters", "kept", "leaks"):
        assert f"{place}/_rejects/rejects" in found
    assert {f"work/dedup/{name}" for name in ("_pairs/part-00000", "_review/review.html", "_summary.json")} <= found
    assert any((work / "work" / "clusters" / "_decisions").iterdir())


def test_what_is_no_data_is_called_so(work: Path) -> None:
    for output in TRUE:
        for file in (file.relative_to(work / output) for file in (work / output).rglob("*") if file.is_file()):
            assert (file.suffix != ".parquet") == any(part.startswith("_") for part in file.parts), file


def as_before(folder: Path) -> None:
    """Give the files of outputs below `folder` the names that earlier versions gave them."""
    for file in [*folder.rglob("_pairs/part-*"), *folder.rglob("_decisions/*")]:
        file.rename(file.with_suffix(".json" if file.parent.name == "_decisions" else ".parquet"))
    for pairs in list(folder.rglob("_pairs")):
        pairs.rename(pairs.with_name("pairs"))
    for file in list(folder.rglob("_summary.json")):
        file.with_name("summary.json").write_text(file.read_text().replace("/_pairs", "/pairs"))
        file.unlink()
    for file in list(folder.rglob("_manifest.json")):
        found = json.loads(file.read_text())
        if "_summary.json" in found.get("checksums", ()):
            found |= manifest.file_checksums(UPath(file.parent), "summary.json")
        manifest.write_manifest(UPath(file.parent), found)
        file.rename(file.with_name("manifest.json"))


def manifests(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*manifest.json")}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Outputs as an earlier version has left them."""
    X = np.random.default_rng(0).normal(size=(65, 8)).astype(np.float32)
    X[50:60] = X[:10]
    for name, rows in (("a", slice(0, 55)), ("b", slice(45, 65))):
        write_embeddings(tmp_path / f"{name}.parquet", X[rows], [f"{name}{i}" for i in range(len(X[rows]))])
    result = run(tmp_path / "a.parquet", tmp_path / "work", KMeans(3), 0.999, search="exact", floor=0.9)
    dedup(tmp_path / "work" / "clusters", 0.999, out=tmp_path / "noted", search="clusters")
    assign_files(tmp_path / "b.parquet", tmp_path / "work" / "model", tmp_path / "new")
    assert result.summary["kept"] == 50
    as_before(tmp_path)
    assert manifests(tmp_path) == {"manifest.json"}
    return tmp_path


def test_outputs_of_earlier_versions_are_read(older: Path) -> None:
    work = older / "work"
    result = open_decisions(work / "dedup")
    assert (result.summary["kept"], len(result.kept.compute())) == (50, 50)
    assert result.at(0.95).summary["kept"] == 50
    assert result.curve([0.999])["kept"].tolist() == [50]
    assert open_buckets(work / "clusters").rows == 55
    assert KMeans.load(work / "model").n_features_in_ == 8
    assert describe(work)["complete"]
    assert apply(work / "dedup", older / "a.parquet", older / "kept")["kept"] == 50
    again = run(older / "a.parquet", work, KMeans(3), 0.999, search="exact", floor=0.9)
    assert again.summary["kept"] == 50
    assert manifests(work) == {"manifest.json"}  # nothing was done again


def test_damage_of_an_earlier_summary_is_noticed(older: Path) -> None:
    file = older / "work" / "dedup" / "summary.json"
    file.write_text(file.read_text().replace("50", "51"))
    with pytest.raises(DataError, match=r"dedup/summary\.json"):
        open_decisions(older / "work" / "dedup")


def test_extending_or_replacing_leaves_neither_name(older: Path) -> None:
    clusters = older / "work" / "clusters"
    found = dedup(older / "new", 0.999, out=older / "decided", against=clusters, append=True)
    assert found.summary["kept"] == 5
    assert manifests(clusters) == {"_manifest.json"}
    assert len(pd.read_parquet(clusters, columns=["id"])) == open_buckets(clusters).rows == 60
    dedup(older / "new", 0.999, out=older / "noted", overwrite=True)
    names = {file.name for file in (older / "noted").iterdir()}
    assert names == {"_manifest.json", "_summary.json", "_pairs", "decisions"}
