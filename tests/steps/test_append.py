"""Clusters that were extended by the rows kept of new ones, against clusters of all these rows assigned in one go."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

import daskmeans as dkm
from daskmeans import KMeans, apply, dedup, open_buckets, open_decisions, write_buckets
from daskmeans import assign as assign_rows
from daskmeans.buckets.pieces import BucketFiles
from daskmeans.cli.main import main
from daskmeans.errors import NotFoundError, OutputError, UsageError
from daskmeans.pairs import join
from daskmeans.planner.describe import describe
from daskmeans.steps import append
from daskmeans.steps.assign import assign_files
from daskmeans.steps.settings import Storing
from daskmeans.storage import lock, manifest
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.embeddings import read_embeddings
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.options import ReadOptions
from helpers import decisions_of, make_rows, nightly, tuned_dedup, write_embeddings

THRESHOLD = 0.995
READING = ReadOptions(metadata_fields=("stars", "text"))
SMALL = {"daskmeans.bucket-bytes": 100 * 4 * 12}  # several buckets, and clusters larger than one
X, _, _, STARS = make_rows(n=600)
X[:, -1] = 0
X[3:5] = np.eye(12)[-1]  # two new rows, far from all others
X /= np.linalg.norm(X, axis=1, keepdims=True)
OLD, FIRST, SECOND = (np.flatnonzero(np.isin(np.arange(600) % 6, places)) for places in ((0, 1, 2), (3, 4), (5,)))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model on disk of 11 clusters; in one of them there are no old rows."""
    centroids = np.stack([*X[OLD[::30]], X[3]])
    KMeans(len(centroids), max_iter=0, init=centroids).fit(X).save(path := tmp_path_factory.mktemp("model") / "model")
    return path


def assigned(path: Path, rows, model, layout="bucketed", reading=READING, prefix="id", **settings) -> Path:
    """Clusters of some rows of `X` in the directory `path`."""
    ids = [f"{prefix}{i:03d}" for i in rows]
    columns = {"stars": STARS[rows].tolist(), "text": [f"text {i}" for i in rows]}
    file = write_embeddings(path.with_suffix(".parquet"), X[rows], ids, **columns)
    with dask.config.set(SMALL):
        assign_files(file, model, path, reading, Storing(layout, **settings))
    return path


@pytest.fixture
def stores(tmp_path, model):
    """Old clusters and two batches of new ones."""
    return [
        assigned(tmp_path / name, rows, model) for name, rows in (("old", OLD), ("first", FIRST), ("second", SECOND))
    ]


def extend(new: Path, old: Path, out: Path, tuning: Tuning = DEFAULT, **settings):
    with dask.config.set(SMALL):
        return tuned_dedup(tuning, new, THRESHOLD, search="exact", against=old, out=out, append=True, **settings)


def kept(*results) -> list[int]:
    """Numbers of the rows that were kept."""
    return sorted(int(id_[2:]) for result in results for id_ in result.kept["id"].compute())


def tables(path: Path) -> dict[int, pa.Table]:
    """Rows of the clusters, by centroid."""
    found = open_buckets(path)
    return {cluster.centroid: found.read(cluster) for cluster in found.clusters()}


def contents(path: Path, *, but: str = "") -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file() and file.name != but]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def by_id(path: Path) -> list[dict]:
    return sorted(decisions_of(path), key=lambda row: row["id"])


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
def test_extended_clusters_are_those_of_all_rows(tmp_path, model, layout):
    tuning = Tuning(rows_per_block=17, task_pairs=600)
    other = {"bucketed": "hive", "hive": "bucketed"}[layout]
    old = assigned(tmp_path / "old", OLD, model, layout)
    first, second = assigned(tmp_path / "first", FIRST, model, other), assigned(tmp_path / "second", SECOND, model)
    before = contents(old, but="_manifest.json")
    assert open_buckets(old).n_clusters == 10
    results = [extend(first, old, tmp_path / "d1", tuning), extend(second, old, tmp_path / "d2", tuning)]
    rows = [*OLD, *kept(*results)]
    assert len(OLD) < len(rows) < 600
    whole = assigned(tmp_path / "whole", sorted(rows), model, layout)
    with dask.config.set(SMALL):
        found, expected = open_buckets(old), open_buckets(whole)
        assert len(found.parts) > 3
    assert (found.rows, found.n_clusters) == (expected.rows, expected.n_clusters) == (len(rows), 11)
    assert [c.rows for c in found.clusters()] == [c.rows for c in expected.clusters()]
    assert {len(cluster.pieces) for cluster in found.clusters()} >= {1, 3}
    assert all(tables(old)[c].equals(table) for c, table in tables(whole).items())
    files = BucketFiles(UPath(old), most=1)
    for cluster in found.clusters():
        whole_pieces = [(piece, 0, piece.rows) for piece in cluster.pieces]
        assert sum(len(files.read([each], ["id"])) for each in whole_pieces) == cluster.rows
    listed = {file["path"] for file in found.manifest["outputs"]}
    assert listed == set(contents(old, but="_manifest.json"))
    assert before.items() <= contents(old, but="_manifest.json").items()
    third = assigned(tmp_path / "third", np.arange(0, 600, 5), model, prefix="new")
    with dask.config.set(SMALL):
        mine, theirs = (
            tuned_dedup(tuning, third, 0.9, against=path, out=tmp_path / f"against-{path.name}", keep="easy")
            for path in (old, whole)
        )
    assert by_id(mine.path) == by_id(theirs.path)
    assert {row["kept_id"][:2] for row in by_id(mine.path)} == {"id"}  # there is a row of each kind already


def test_each_batch_is_held_against_those_before(tmp_path, stores):
    old, first, second = stores
    results = [extend(first, old, tmp_path / "d1"), extend(second, old, tmp_path / "d2")]
    scores = X.astype(float) @ X.astype(float).T
    alive, added = [*OLD, *kept(results[0])], kept(results[1])
    for i in SECOND:
        assert (i in added) or (scores[i, [*alive, *added]] >= THRESHOLD - 1e-6).any()
        assert (i not in added) or (scores[i, alive] < THRESHOLD + 1e-6).all()
    assert set(results[1].removed["kept_id"].compute()) & {f"id{i:03d}" for i in FIRST}


def test_the_manifest_tells_what_was_appended(tmp_path, stores):
    old, first, _ = stores
    before, was = open_buckets(old).manifest, dedup(old, 0.9, search="exact", out=tmp_path / "was")
    assert "appended" not in describe(old)
    result = extend(first, old, tmp_path / "d1")
    after = open_buckets(old).manifest
    assert {name for name in after if before.get(name) != after[name]} == {
        "rows", "n_clusters", "outputs", "appended", "checksum",
    }  # fmt: skip
    (batch,) = after["appended"]
    assert batch == {
        "clusters": str(first),
        "made": manifest.identity_hash(open_buckets(first).manifest),
        "decisions": str(tmp_path / "d1"),
        "decided": manifest.identity_hash(json.loads((tmp_path / "d1" / "_manifest.json").read_text())),
        "rows": result.summary["kept"],
    }
    assert manifest.identity_hash(before) != manifest.identity_hash(after)
    assert describe(old)["appended"] == {"times": 1, "rows": batch["rows"], "last_from": str(first)}
    assert describe(old)["rows"] == len(OLD) + batch["rows"]
    for decided, threshold in ((was, 0.95), (result, THRESHOLD)):  # on what was extended, and against it
        for use in (decided.at, lambda threshold, decided=decided: decided.curve([threshold])):
            with pytest.raises(NotFoundError, match=r"old: rows were appended .*\n.*\n  remedy: .* before --append"):
                use(threshold)
    assert was.groups(5)
    with pytest.raises(
        UsageError, match=r"old: \d+ rows of other clusters were appended .*\n.*\n.*together, old and new"
    ):
        dedup(old, 0.9, search="exact", out=tmp_path / "was", overwrite=True)
    assert open_decisions(tmp_path / "d1").groups(5) == result.groups(5)
    assert len(result.groups(5)) == 5


def test_clusters_that_another_run_has_taken_are_not_extended(tmp_path, stores, monkeypatch):
    """This run was taken for dead while its workers wrote."""
    old, first, _ = stores
    before = (old / "_manifest.json").read_bytes()
    write = append._write_kept

    def late(*args):
        files = write(*args)
        told = {"token": "t", "pid": 1, "started": 0.0, "host": "elsewhere", "place": "", "seen": time.time()}
        (old / lock.LOCK_NAME).write_text(json.dumps(told))
        return files

    monkeypatch.setattr(append, "_write_kept", late)
    with pytest.raises(OutputError, match="another run has taken over the output"):
        extend(first, old, tmp_path / "d1")
    assert (old / "_manifest.json").read_bytes() == before


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
def test_the_same_command_again_appends_nothing(tmp_path, stores, model, layout, caplog):
    caplog.set_level("INFO", "daskmeans")
    old, first, second = assigned(tmp_path / layout, OLD, model, layout), *stores[1:]
    extend(first, old, tmp_path / "d1")
    once = contents(tmp_path)
    assert "appended already" not in caplog.text
    assert extend(first, old, tmp_path / "d1").summary["kept"] == len(kept(open_decisions(tmp_path / "d1")))
    assert extend(first, old, tmp_path / "d1", overwrite=True).path.name == "d1"
    assert f"{open_buckets(old).rows - len(OLD)} rows were appended already" in caplog.text
    assert contents(tmp_path) == once
    extend(second, old, tmp_path / "d2")
    twice = contents(tmp_path)
    for new, out in ((first, "d1"), (second, "d2")):
        extend(new, old, tmp_path / out)
    assert contents(tmp_path) == twice
    for settings in ({"out": tmp_path / "d3"}, {"out": tmp_path / "d1", "keep": "easy", "overwrite": True}):
        with pytest.raises(UsageError, match=r"rows of .*first were appended already\n.*/d1"):
            extend(first, old, **settings)
    assert contents(tmp_path) == twice


def test_finished_decisions_are_not_made_again(tmp_path, stores, monkeypatch):
    old, first, _ = stores
    with dask.config.set(SMALL):
        plain = dedup(first, THRESHOLD, search="exact", against=old, out=tmp_path / "d1")
    before = contents(plain.path)
    with monkeypatch.context() as broken:
        broken.setattr(append, "write_bucket_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extend(first, old, plain.path)
        broken.setattr(join, "compare_row_blocks", None)
        with pytest.raises(OutputError, match="exists already"):
            extend(first, old, plain.path, keep="easy")
    monkeypatch.setattr(join, "compare_row_blocks", None)
    extend(first, old, plain.path)
    assert contents(plain.path) == before
    assert open_buckets(old).rows == len(OLD) + plain.summary["kept"]


def test_decisions_of_another_version_are_not_taken_for_ours(tmp_path, stores):
    old, first, second = stores
    with dask.config.set(SMALL):
        made = dedup(first, THRESHOLD, search="exact", against=old, out=tmp_path / "d1").path
    before = age(made)
    with pytest.raises(OutputError, match="exists already"):
        extend(first, old, made)
    assert "appended" not in open_buckets(old).manifest
    extend(first, old, made, overwrite=True)
    assert manifest.read_manifest(made, "dedup")["versions"] == before
    age(made)
    grown = contents(old)
    with pytest.raises(UsageError, match=r"were appended already\n.*/d1 \(daskmeans was 0\.0\.9, now "):
        extend(first, old, made)
    assert contents(old) == grown
    extend(second, old, tmp_path / "d2")


def age(path: UPath) -> dict[str, str]:
    """Make an output that of an earlier version; the versions that it told."""
    found = manifest.read_manifest(path, "dedup")
    manifest.write_manifest(path, found | {"versions": found["versions"] | {"daskmeans": "0.0.9"}})
    return found["versions"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_clusters_that_change_meanwhile_are_left_alone(tmp_path, stores, monkeypatch):
    old, _, second = stores
    with dask.config.set(SMALL):
        dedup(second, THRESHOLD, search="exact", against=old, out=tmp_path / "d2")
    write = append.write_bucket_files

    def overtaken(*args):
        monkeypatch.setattr(append, "write_bucket_files", write)
        found = manifest.read_manifest(UPath(old), "assign")
        manifest.write_manifest(UPath(old), found | {"settings": found["settings"] | {"layered": True}})
        return write(*args)

    monkeypatch.setattr(append, "write_bucket_files", overtaken)
    with pytest.raises(OutputError, match="the clusters have changed"):
        extend(second, old, tmp_path / "d2")
    assert "appended" not in json.loads((old / "_manifest.json").read_text())


def test_one_append_at_a_time(tmp_path, stores):
    old, first, _ = stores
    with dask.config.set(SMALL):
        dedup(first, THRESHOLD, search="exact", against=old, out=tmp_path / "d1")
    before = contents(tmp_path)
    with lock.hold_lock(UPath(old)):
        with pytest.raises(OutputError, match="another run is writing"):
            extend(first, old, tmp_path / "d1")
        assert contents(tmp_path, but=lock.LOCK_NAME) == before
    extend(first, old, tmp_path / "d1")


def test_a_batch_of_copies_adds_no_file(tmp_path, stores, model):
    old = stores[0]
    before = contents(old, but="_manifest.json")
    copies = assigned(tmp_path / "copies", OLD, model, prefix="copy")
    result = extend(copies, old, tmp_path / "d")
    assert result.summary["kept"] == 0
    assert contents(old, but="_manifest.json") == before
    assert extend(copies, old, tmp_path / "d").summary["kept"] == 0
    assert describe(old)["appended"] == {"times": 1, "rows": 0, "last_from": str(copies)}


def test_decisions_made_before_can_be_applied(tmp_path, stores):
    old, first, _ = stores
    was = dedup(old, THRESHOLD, search="exact", out=tmp_path / "was")
    result = extend(first, old, tmp_path / "d1")
    for made, clusters in ((was, old), (result, first)):
        counts = apply(made.path, clusters.with_suffix(".parquet"), tmp_path / f"kept-{clusters.name}")
        assert (counts["rows"], counts["kept"]) == (made.summary["rows"], made.summary["kept"])


def test_other_file_systems(tmp_path, stores):
    root = UPath("memory://append")
    local = [open_buckets(path) for path in stores[:2]]
    for path in stores[:2]:
        root.fs.put(str(path), (root / path.name).path, recursive=True)
    result = extend(root / "first", root / "old", root / "d1")
    extend(root / "first", root / "old", root / "d1")
    found = open_buckets(root / "old")
    assert found.rows == local[0].rows + result.summary["kept"] == sum(map(len, tables(root / "old").values()))


# --- kill -9 ---

KILLED = """
import os, signal, sys
from pathlib import Path
import dask
from daskmeans import dedup
from daskmeans.buckets import writer
from daskmeans.duplicates import decisions
from daskmeans.steps import append
from daskmeans.storage import manifest

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(call, at):  # in the call with that number, after half of its work
    calls = []
    def called(*args):
        calls.append(args)
        return die() if len(calls) > at else call(*args)
    return called

new, old, out, moment = sys.argv[1:]
replaced = manifest.write_json
def write_json(path, value):
    if str(path) != f"{old}/_manifest.json":
        return replaced(path, value)
    if moment == "manifest aside":
        Path(f"{path}.tmp").write_text("{")
        die()
    replaced(path, value)
    die()

if moment == "decisions":
    decisions.rank = die
elif moment == "first files":
    writer._BucketWriter.write = dying(writer._BucketWriter.write, 5)
elif moment == "all files":
    append._refuse_changed = dying(append._refuse_changed, 1)
else:
    manifest.write_json = write_json
with dask.config.set(BYTES):
    dedup(new, THRESHOLD, search="exact", against=old, out=out, append=True)
"""
MOMENTS = "decisions", "first files", "all files", "manifest aside", "manifest replaced"


@pytest.mark.parametrize(
    ("layout", "moments"),
    [("bucketed", MOMENTS[1::2]), nightly("bucketed", MOMENTS[::2]), nightly("hive", MOMENTS[1:2])],
)
def test_kill_9_leaves_the_old_clusters_or_the_extended_ones(tmp_path, stores, model, layout, moments):
    script = KILLED.replace("BYTES", repr(SMALL)).replace("THRESHOLD", repr(THRESHOLD))
    old, first, out = assigned(tmp_path / "clusters", OLD, model, layout), stores[1], tmp_path / "out"
    shutil.copytree(old, tmp_path / "before")
    extend(first, old, out)
    whole, after = contents(old), open_buckets(old).rows
    for moment in moments:  # in the same directories, whose names the manifest tells
        shutil.rmtree(old)
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "before", old)
        words = [sys.executable, "-c", script, *map(str, (first, old, out)), moment]
        assert subprocess.run(words, capture_output=True, check=False).returncode == -9
        seen = after if moment == "manifest replaced" else len(OLD)
        assert open_buckets(old).rows == sum(map(len, tables(old).values())) == seen
        assert sum(pq.read_metadata(file).num_rows for file in find_files(old)) == seen
        if moment in ("first files", "all files"):
            assert len(contents(old)) > len(contents(tmp_path / "before"))
        extend(first, old, out)
        assert contents(old, but=lock.LOCK_NAME) == whole  # one that was killed is taken over by the next that writes


# --- wrong use ---


def refused(tmp_path, message, new, **settings):
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=message):
        dedup(new, THRESHOLD, **{"search": "exact", "append": True, "out": tmp_path / "out"} | settings)
    assert contents(tmp_path) == before


def test_one_old_store_and_decisions_that_stay(tmp_path, stores):
    old, first, second = stores
    refused(tmp_path, "--append, --against: 0 clusters are given", first)
    refused(tmp_path, "--append, --against: 2 clusters are given", first, against=[old, second])
    refused(tmp_path, "--append: no directory", first, against=old, out=None)


def test_other_models_and_columns_are_refused(tmp_path, stores, model):
    old, first = stores[:2]
    KMeans(3, max_iter=0, init=X[:3]).fit(X).save(tmp_path / "other")
    cases = {
        "model": (tmp_path / "other", READING, {}, r"another model\n  expected: the model of .*old\n  remedy: run"),
        "less": (model, ReadOptions(metadata_fields=("text",)), {}, "there is no 'stars'"),
        "half": (model, READING, {"embedding_dtype": "float16"}, r"'embedding' is .*halffloat.*, not .*float"),
    }
    for name, (used, reading, settings, message) in cases.items():
        refused(tmp_path, message, assigned(tmp_path / name, SECOND, used, reading=reading, **settings), against=old)
    refused(tmp_path, "'stars' is extra", first, against=tmp_path / "less")
    rows = assign_rows(read_embeddings(first.with_suffix(".parquet")), KMeans.load(model))
    write_buckets(rows, tmp_path / "unknown")
    refused(tmp_path, "the model that these rows were assigned with", tmp_path / "unknown", against=old)


def test_the_command(tmp_path, stores):
    old, first, _ = stores
    words = ["dedup", first, "--against", old, "--out", tmp_path / "d", "--threshold", THRESHOLD, "--append"]
    for _ in range(2):
        done = CliRunner().invoke(main, [*map(str, words), "--json", "--n-workers", "1"])
        assert done.exit_code == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["appended_to"] == str(old)
        assert open_buckets(old).rows == len(OLD) + facts["kept"]
    shown = CliRunner().invoke(main, ["info", str(old)]).stdout
    assert "appended times" in shown


def test_decisions_that_were_looked_at_are_appended_as_in_one_go(tmp_path, model, stores):
    old, first, second = stores
    other = assigned(tmp_path / "other", OLD, model)
    whole = extend(first, other, tmp_path / "whole")
    with dask.config.set(SMALL):
        found = dedup(first, THRESHOLD, search="exact", against=old, out=tmp_path / "looked-at")
        before = contents(old)
        assert open_buckets(old).rows == len(OLD)
        made = dkm.append(found)
        assert by_id(found.path) == by_id(whole.path)
        assert made == {"appended": len(kept(whole)), "rows": open_buckets(other).rows}
        assert made.path == open_buckets(old).path
        assert all(tables(old)[c].equals(table) for c, table in tables(other).items())
        after = contents(old)
        assert before != after
        assert dkm.append(str(found.path)) == made  # once more
        assert contents(old) == after
        extend(second, old, tmp_path / "next")
        assert dkm.append(found) == {**made, "rows": open_buckets(old).rows}


def test_decisions_that_do_not_fit_the_clusters_are_not_appended(tmp_path, model, stores):
    old, first, second = stores
    with dask.config.set(SMALL):
        late = dedup(second, THRESHOLD, against=old, out=tmp_path / "late")
        temporary = dedup(first, THRESHOLD, against=old)
        alone = dedup(first, THRESHOLD, out=tmp_path / "alone")
        before = contents(old)
        with pytest.raises(UsageError, match="temporary"):
            dkm.append(temporary)
        with pytest.raises(UsageError, match="0 clusters"):
            dkm.append(alone)
        assert contents(old) == before
        extend(first, old, tmp_path / "first-decisions")
        before = contents(old)
        with pytest.raises(OutputError, match="have changed since"):
            dkm.append(late)
        assert contents(old) == before


def test_clusters_that_were_named_by_decisions_are_appended_to(tmp_path, stores):
    old, first, _ = stores
    with dask.config.set(SMALL):
        own = dedup(old, 0.99, out=tmp_path / "own")
        dedup(old, 0.95, out=tmp_path / "others")
        found = dedup(first, THRESHOLD, against=own.path, out=tmp_path / "found")
        assert dkm.append(found)["appended"] == len(kept(found))
