"""New rows are held against what stays: the recipe of the README, and what clusters know of the decisions on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from upath import UPath

from daskmeans import KMeans, apply, dedup, open_buckets, open_decisions, run
from daskmeans.cli.main import main
from daskmeans.duplicates.against import find_decisions, open_reference
from daskmeans.duplicates.decisions import NOTES
from daskmeans.errors import DataError, NotFoundError, OutputError
from daskmeans.pairs.join import find_block_pairs
from daskmeans.pairs.row_blocks import RowBlock, load_row_block
from daskmeans.steps import assign as assign_step
from daskmeans.steps.assign import assign_files
from daskmeans.steps.settings import Storing
from daskmeans.storage import manifest
from helpers import decisions_of, write_embeddings

THRESHOLD, NEAR, DIMENSION = 0.9, 1e-6, 8
OLD, NEW = 400, 200


def make_vectors() -> np.ndarray:
    """Rows in chains: many are like a row that is dropped for a third one, to which they are not alike."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((60, DIMENSION))
    X = centres[rng.integers(60, size=OLD + NEW)] + 0.35 * rng.standard_normal((OLD + NEW, DIMENSION))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


X = make_vectors()
IDS = [f"old-{i:03d}" for i in range(OLD)] + [f"new-{i:03d}" for i in range(NEW)]
UNITS = dict(zip(IDS, X.astype(np.float64), strict=True))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A run on the old rows, and clusters of the new ones."""
    write_embeddings(tmp_path / "old.parquet", X[:OLD], IDS[:OLD])
    write_embeddings(tmp_path / "new.parquet", X[OLD:], IDS[OLD:])
    run(tmp_path / "old.parquet", tmp_path / "work", KMeans(4), threshold=THRESHOLD)
    assign_files(tmp_path / "new.parquet", tmp_path / "work/model", tmp_path / "new")
    return tmp_path


def kept_of(*paths: Path) -> set[str]:
    return {row["id"] for path in paths for row in decisions_of(path) if row["keep"]}


def check_twins(path: Path, living: set[str], least: float = THRESHOLD) -> int:
    """Each row that `path` drops has the twin that it names, one of the `living`; how many are dropped."""
    dropped = [row for row in decisions_of(path) if not row["keep"]]
    for row in dropped:
        assert row["kept_id"] in living
        assert UNITS[row["id"]] @ UNITS[row["kept_id"]] == pytest.approx(row["kept_score"], abs=NEAR)
        assert row["kept_score"] >= least - NEAR
    return len(dropped)


@pytest.mark.parametrize("append", [False, True])
def test_what_a_run_has_dropped_takes_no_part(work, append):
    dropped = {row["id"] for row in decisions_of(work / "work/dedup") if not row["keep"]}
    settings = {"against": work / "work/clusters", "out": work / "e", "append": append}
    assert len(dropped) > 100
    dedup(work / "new", THRESHOLD, **settings)
    living = kept_of(work / "work/dedup", work / "e")
    assert check_twins(work / "e", living) > 50
    kept = sorted(kept_of(work / "e"))
    others = sorted(living - set(kept))
    for i, one in enumerate(kept):  # and nothing that stays is like anything else that does
        assert max(UNITS[one] @ UNITS[other] for other in [*kept[:i], *others]) < THRESHOLD + NEAR
    # Some would have gone for a row that is dropped, and be without a twin.
    assert any(max(UNITS[one] @ UNITS[gone] for gone in dropped) > THRESHOLD + NEAR for one in kept)


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
def test_on_workers_and_in_clusters_that_were_extended(work, client, layout):
    parts = {"b": range(0, NEW, 2), "c": range(1, NEW, 2)}
    for name, rows in parts.items():
        places = [OLD + i for i in rows]
        write_embeddings(work / f"{name}.parquet", X[places], [IDS[i] for i in places])
        assign_files(work / f"{name}.parquet", work / "work/model", work / f"{name}-clusters", storing=Storing(layout))
        settings = {"against": work / "work/clusters", "append": True, "client": client}
        dedup(work / f"{name}-clusters", THRESHOLD, out=work / f"{name}-dedup", **settings)
    living = kept_of(work / "work/dedup", *(work / f"{name}-dedup" for name in parts))
    assert all(check_twins(work / f"{name}-dedup", living) > 20 for name in parts)
    found = {row["kept_id"] for row in decisions_of(work / "c-dedup")} - {None}
    assert found & kept_of(work / "b-dedup")
    assert open_buckets(work / "work/clusters").rows == OLD + len(kept_of(work / "b-dedup", work / "c-dedup"))


def test_a_run_goes_on_after_an_append(work, caplog):
    before = open_decisions(work / "work/dedup").summary
    dedup(work / "new", THRESHOLD, against=work / "work/clusters", out=work / "e", append=True)
    caplog.set_level("INFO", "daskmeans")
    for overwrite in (False, True):
        again = run(work / "old.parquet", work / "work", KMeans(4), threshold=THRESHOLD, overwrite=overwrite)
        assert (again.summary["rows"], again.summary["kept"]) == (before["rows"], before["kept"])
    rows = open_buckets(work / "work/clusters").rows - OLD
    assert f"{rows} rows were appended since the decisions were made; they stay as they are" in caplog.text
    assert dedup(work / "new", THRESHOLD, against=work / "work/clusters", out=work / "e", append=True)
    assert open_buckets(work / "work/clusters").rows == OLD + rows


def test_directories_of_before_are_recognised(work):
    """Their clusters have no notes; the decisions of a run lie beside them."""
    manifest.remove_tree(UPath(work / "work/clusters" / NOTES))
    assert find_decisions(open_buckets(work / "work/clusters")) == (UPath(work / "work/dedup"),)
    (work / "work").rename(work / "moved")
    dedup(work / "new", THRESHOLD, against=work / "moved/clusters", out=work / "e")
    check_twins(work / "e", kept_of(work / "moved/dedup", work / "e"))


def test_decisions_elsewhere_are_known_and_several_are_told(work, caplog):
    clusters = work / "work/clusters"
    dedup(clusters, 0.8, out=work / "lower")
    strict, loose = kept_of(work / "work/dedup"), kept_of(work / "lower")
    assert strict - loose and len(strict & loose) < len(loose)
    for name, against, counting in (
        ("both", clusters, strict & loose),
        ("one", work / "work/dedup", strict),
        ("other", work / "lower", loose),
    ):
        caplog.clear()
        dedup(work / "new", THRESHOLD, against=against, out=work / name)
        check_twins(work / name, counting | kept_of(work / name))
        told = f"lower keeps {len(loose)}" in caplog.text and f"work/dedup keeps {len(strict)}" in caplog.text
        assert told == (name == "both")
        # Of the rows that count, none that is like a new one was left out.
        for one in kept_of(work / name):
            assert max(UNITS[one] @ UNITS[other] for other in counting) < THRESHOLD + NEAR
    manifest.remove_tree(UPath(work / "lower"))
    assert find_decisions(open_buckets(clusters)) == (UPath(work / "work/dedup"),)


def test_decisions_that_are_not_to_stay_are_not_noted(work):
    result = dedup(work / "new", 0.8)
    assert open_reference(work / "new").decisions == ()
    kept = result.at(THRESHOLD, out=work / "kept")
    assert open_reference(work / "new").decisions == (kept.path,)


def test_clusters_that_cannot_be_written(work, caplog):
    """Whoever names them later is told what to name instead."""
    (work / "new" / NOTES).write_text("")
    dedup(work / "new", THRESHOLD, out=work / "d")
    assert "so give them and not the clusters to --against" in caplog.text
    dropped = {row["id"] for row in decisions_of(work / "d") if not row["keep"]}
    assert not dropped & {row["kept_id"] for row in decisions_of(work / "d")}
    (work / "new" / NOTES).unlink()
    assert open_reference(work / "d").decisions == (UPath(work / "d"),)


def test_rows_that_went_for_one_that_is_dropped_later(work):
    dedup(work / "new", THRESHOLD, against=work / "work/clusters", out=work / "e")
    assert apply(work / "e", work / "new.parquet", work / "kept")["kept"] == len(kept_of(work / "e"))
    run(work / "old.parquet", work / "work", KMeans(4), threshold=0.8, overwrite=True)
    found = r"\d+ rows were dropped as duplicates of rows of .*work/clusters that have been dropped there since"
    message = rf"e: {found}\n.*work/dedup\n.*--overwrite"
    with pytest.raises(DataError, match=message):
        apply(work / "e", work / "new.parquet", work / "other")
    assert not (work / "other").exists()
    dedup(work / "new", THRESHOLD, against=work / "work/clusters", out=work / "e", overwrite=True)
    check_twins(work / "e", kept_of(work / "work/dedup", work / "e"))
    apply(work / "e", work / "new.parquet", work / "other")


def test_decisions_are_taken_with_their_clusters(work):
    dedup(work / "new", THRESHOLD, out=work / "d")
    manifest.remove_tree(UPath(work / "new"))
    with pytest.raises(NotFoundError, match="new: no such path"):
        dedup(work / "work/clusters", THRESHOLD, against=work / "d", out=work / "e")
    write_embeddings(work / "more.parquet", X[:OLD], [f"more-{i}" for i in range(OLD)])
    assign_files(work / "more.parquet", work / "work/model", work / "new")
    with pytest.raises(NotFoundError, match=r"new: the clusters that the decisions were made from .*\n.*/d were made"):
        dedup(work / "work/clusters", THRESHOLD, against=work / "d", out=work / "e")


def test_the_command(work):
    settings = ["--threshold", "0.9", "--out", str(work / "e"), "--append", "--json"]
    found = CliRunner().invoke(
        main, ["dedup", str(work / "new"), "--against", str(work / "work/dedup"), *settings], catch_exceptions=False
    )
    assert f'"appended_to": "{work}/work/clusters"' in found.stdout
    check_twins(work / "e", kept_of(work / "work/dedup", work / "e"))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_of_a_band_that_do_not_count(share):
    """They are in no pair, whether as a copy, as zeros or otherwise; all of a band may be left out."""
    Y = np.concatenate([X[:80], X[:40], np.zeros((3, DIMENSION), np.float32)])
    ids, P = pa.array(range(1000, 1000 + len(Y))), np.empty((DIMENSION, 0), np.float32)
    staying = np.random.default_rng(1).random(len(Y)) < share
    one = load_row_block(lambda _: (Y.copy(), ids), RowBlock(0, 0, len(Y), None), P)
    other = load_row_block(lambda _: (Y.copy(), ids), RowBlock(1, 1000, len(Y), None, staying), P)
    edges = [
        edge for found in find_block_pairs(one, other, np.float32(THRESHOLD)) for edge in zip(*found[:3], strict=True)
    ]
    heads = {int(row): int(head) for row, head in one.copies}
    wide = Y.astype(np.float64)
    found = {(int(row), int(twin) - 1000) for row, twin, _ in edges}
    assert all(staying[twin] for _, twin in found)
    first = {int(row): int(head) for row, head in other.copies}
    for row, twin in np.argwhere((wide @ wide.T >= THRESHOLD + NEAR) & staying[None]).tolist():
        assert (heads.get(row, row), first.get(1000 + twin, 1000 + twin) - 1000) in found


def test_decisions_that_are_gone_by_are_not_written_over(work):
    """Neither those that were named, nor those that are known."""
    before = decisions_of(work / "work/dedup")
    for against in (work / "work/dedup", work / "work/clusters"):
        with pytest.raises(OutputError, match="dedup: the output"):
            dedup(work / "new", THRESHOLD, against=against, out=work / "work/dedup", overwrite=True)
    assert decisions_of(work / "work/dedup") == before


def test_decisions_that_moved_or_are_being_made(work, caplog):
    dedup(work / "new", THRESHOLD, out=work / "d")
    (work / "d").rename(work / "moved")
    assert open_reference(work / "new").decisions == ()
    assert f"were in {work}/d and are gone, so the rows that they dropped count" in caplog.text
    assert open_reference(work / "moved").decisions == (UPath(work / "moved"),)
    made = manifest.read_manifest(UPath(work / "work/dedup"), "dedup")
    manifest.write_manifest(UPath(work / "work/dedup"), made | {"finished": False})
    with pytest.raises(OutputError, match="work/dedup: these decisions on the clusters are unfinished"):
        dedup(work / "new", THRESHOLD, against=work / "work/clusters", out=work / "e")


def test_decisions_that_others_went_by_and_that_are_gone(work, caplog):
    dedup(work / "new", THRESHOLD, against=work / "work/dedup", out=work / "e")
    manifest.remove_tree(UPath(work / "work/dedup"))
    apply(work / "e", work / "new.parquet", work / "kept")
    assert "still stay is not known" in caplog.text


def test_clusters_that_are_assigned_once_more_know_their_decisions(work, monkeypatch):
    """Also if that fails in between."""
    dedup(work / "new", THRESHOLD, out=work / "d")
    given = work / "new.parquet", work / "work/model", work / "new"
    with monkeypatch.context() as broken:
        broken.setattr(assign_step, "regroup", None)
        with pytest.raises(TypeError):
            assign_files(*given, overwrite=True)
    assign_files(*given)
    assert open_reference(work / "new").decisions == (UPath(work / "d"),)
    assign_files(*given, overwrite=True)
    assert open_reference(work / "new").decisions == (UPath(work / "d"),)


def test_storage_that_is_only_read(work, monkeypatch, caplog):
    def refuse(*_):
        raise NotImplementedError

    write = manifest.write_json
    monkeypatch.setattr(
        manifest, "write_json", lambda path, value: (refuse if NOTES in str(path) else write)(path, value)
    )
    dedup(work / "new", THRESHOLD, out=work / "d")
    assert "cannot be noted here (this kind of storage is read-only)" in caplog.text


def test_a_run_goes_on_after_an_append_of_nothing(work):
    """Of a batch of copies no row is kept, but the clusters know that it was there."""
    kept = kept_of(work / "work/dedup")
    places = [i for i in range(OLD) if IDS[i] in kept][:30]
    write_embeddings(work / "copies.parquet", X[places], [f"copy-{i}" for i in places])
    assign_files(work / "copies.parquet", work / "work/model", work / "copies")
    added = dedup(work / "copies", THRESHOLD, against=work / "work/clusters", out=work / "e", append=True)
    assert added.summary["kept"] == 0
    again = run(work / "old.parquet", work / "work", KMeans(4), threshold=THRESHOLD)
    assert again.summary["kept"] == len(kept)
