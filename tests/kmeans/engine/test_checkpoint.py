"""A fit that was killed goes on from its last checkpoint and ends in the bits of one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

import daskmeans as dkm
from daskmeans.errors import OutputError, UsageError
from daskmeans.kmeans.engine.checkpoints import Checkpoints
from daskmeans.kmeans.engine.state import FitState
from daskmeans.steps import run as steps_run
from daskmeans.steps.fit import fit as fit_files
from daskmeans.storage import manifest
from daskmeans.tuning import Tuning
from daskmeans.vectors.options import ReadOptions
from helpers import NIGHTLY, blobs, write_embeddings

X = blobs(n=300, d=8, k=6)


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path) -> UPath:
    return UPath(tmp_path / "at") if request.param == "local" else UPath(f"memory://{tmp_path.name}/at")


@pytest.fixture(autouse=True)
def every_update():
    """Keep every update, whatever the clock says."""
    with dask.config.set({"daskmeans.checkpoint-seconds": 0}):
        yield


def at(update: int, run: int = 0, **facts) -> FitState:
    """A fit after `update` updates, unlike that of any other update or run."""
    rng = np.random.default_rng([update, run])
    history = rng.random(update).tolist()
    return FitState(
        *rng.normal(size=(3, 3, 4)).astype(np.float32),
        n_iter=update,
        history=history,
        iterations=[{"iteration": i + 1, "inertia": x} for i, x in enumerate(history)],
        **facts,
    )


def same(a: FitState | None, b: FitState) -> bool:
    arrays = "centroids", "before", "origin"
    state = [{**vars(fit), **{name: getattr(fit, name).tobytes() for name in arrays}} for fit in (a, b) if fit]
    return len(state) == 2 and state[0] == state[1]


def kept(path: UPath, identity: str = "mine", every: float = 0) -> Checkpoints:
    return Checkpoints(path, {"of": identity}, max_iter=9, every=every)


# --- one fit's checkpoints ---


def test_all_that_was_saved_comes_back(place):
    assert kept(place).last(0) is None
    for update in (1, 2, 3):
        kept(place).save(0, at(update, phase=update - 1, phases=3))
        assert same(kept(place).last(0), at(update, phase=update - 1, phases=3))


def test_a_run_that_has_ended_stays_while_others_go_on(place):
    one = kept(place)
    for run in range(3):
        for update in range(1, 10):
            one.save(run, at(update, run))
    again = kept(place)
    assert [same(again.last(run), at(9, run)) for run in range(3)] == [True] * 3
    assert again.last(3) is None


def test_the_last_two_of_a_run_are_kept(place):
    one = kept(place)
    for update in range(1, 6):
        one.save(0, at(update))
    one.save(1, at(1, 1))
    names = sorted(path.name for path in place.iterdir())
    files = "before", "json", "npy", "origin"
    assert names == [f"run-{n}.{s}" for n in ("000-000004", "000-000005", "001-000001") for s in files]


def test_the_first_and_the_last_update_and_whatever_is_due_are_kept(place, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    one, seen = kept(place, every=10), []
    for run, last in ((0, {"converged": True}), (1, {})):
        for update in range(1, 10):
            clock[0] += 4
            one.save(run, at(update, run, **(last if update == 9 else {})))
            seen.append(kept(place).last(run).n_iter)
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7, 9] * 2


def test_slow_storage_is_written_to_less_often(place, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    write = Checkpoints._write_checkpoint

    def slow(self, run, fit):
        write(self, run, fit)
        clock[0] += 2

    monkeypatch.setattr(Checkpoints, "_write_checkpoint", slow)
    one, seen = kept(place, every=10), []
    for update in range(1, 8):
        one.save(0, at(update))
        seen.append(kept(place).last(0).n_iter)
        clock[0] += 15
    assert seen == [1, 1, 1, 4, 4, 4, 7]


@pytest.mark.parametrize("suffix", ["json", "npy"])
def test_a_checkpoint_cut_off_anywhere_gives_way_to_the_one_before(tmp_path, caplog, suffix):
    one = kept(UPath(tmp_path))
    for update in (1, 2):
        one.save(0, at(update))
    newest = tmp_path / f"run-000-000002.{suffix}"
    whole = newest.read_bytes()
    for size in range(len(whole.rstrip(b"\n"))):
        newest.write_bytes(whole[:size])
        caplog.clear()
        assert same(kept(UPath(tmp_path)).last(0), at(1)), size
        assert "run-000-000002.json: the checkpoint is damaged" in caplog.text
    newest.unlink()
    assert same(kept(UPath(tmp_path)).last(0), at(1))


@given(data=st.data())
def test_a_checkpoint_with_damage_anywhere_is_not_believed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged")
    one = kept(UPath(path))
    for update in (1, 2):
        one.save(0, at(update))
    newest = path / f"run-000-000002.{data.draw(st.sampled_from(['json', 'npy', 'before', 'origin']))}"
    content = bytearray(newest.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=20)):
        content[position] ^= data.draw(st.integers(1, 255))
    newest.write_bytes(content)
    again = kept(UPath(path))
    found = again.last(0)
    assert same(found, at(1)) or same(found, at(2))  # spaces in JSON mean nothing
    again.save(0, at(3))
    assert same(kept(UPath(path)).last(0), at(3))
    assert len(list(path.iterdir())) == 8


class Crash(BaseException):
    """The process ends here."""


def test_a_kill_between_any_two_writes_leaves_the_old_checkpoint_or_the_new(monkeypatch):
    left: list[float] = [float("inf")]

    def until(method):
        def call(self, *args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return method(self, *args, **kwargs)

        return call

    for name in ("_open", "cp_file", "rm_file", "makedirs"):
        monkeypatch.setattr(MemoryFileSystem, name, until(getattr(MemoryFileSystem, name)))
    outcomes = []
    for operations in range(40):
        path = UPath(f"memory://crash/{operations}")
        one = kept(path)
        for update in (1, 2):
            one.save(0, at(update))
        left[0] = operations
        try:
            one.save(0, at(3))
        except Crash:
            left[0] = float("inf")
            found = kept(path).last(0)
            assert same(found, at(2)) or same(found, at(3)), operations
            outcomes.append(found.n_iter)
            again = kept(path)
            again.last(0)
            again.save(0, at(4))
            assert same(kept(path).last(0), at(4))
            assert len(list(path.iterdir())) == 8
        else:
            break
    assert outcomes == sorted(outcomes)
    assert {*outcomes} == {2, 3}
    assert left[0] >= 0


def test_a_fit_begins_anew_when_no_checkpoint_can_be_used_and_says_so(place, caplog):
    kept(place).save(0, at(1))
    assert kept(place, "another").last(0) is None
    assert "of another fit" in caplog.text
    (place / "run-000-000001.json").write_text("[]")
    caplog.clear()
    assert kept(place).last(0) is None
    assert "damaged" in caplog.text
    assert "begins anew" in caplog.text


@pytest.mark.parametrize(
    "run, fit, words",
    [
        (0, at(7), "goes on from a checkpoint: update 7 of at most 9"),
        (0, at(7, phase=2, phases=3), "goes on from a checkpoint: update 7 of at most 9 (phase 3 of 3)"),
        (1, at(4, phase=1, phases=3), "run 2 goes on from a checkpoint: 4 updates on samples (phase 2 of 3)"),
        (0, at(9), "goes on from a checkpoint: all 9 updates are done"),
    ],
)
def test_where_it_goes_on_is_said(place, caplog, run, fit, words):
    kept(place).save(run, fit)
    with caplog.at_level("INFO", "daskmeans"):
        kept(place).last(run)
    assert caplog.messages == [words]


# --- a fit over files ---


def interrupted_after(updates: int) -> pytest.MonkeyPatch:
    """Interrupt a fit once so many updates have been saved, as Ctrl-C does."""
    patch, save, left = pytest.MonkeyPatch(), Checkpoints.save, [updates]

    def saved(self, run, fit):
        save(self, run, fit)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    patch.setattr(Checkpoints, "save", saved)
    return patch


def interrupt(updates: int, work, *args, **kwargs) -> None:
    patch = interrupted_after(updates)
    with pytest.raises(KeyboardInterrupt):
        work(*args, **kwargs)
    patch.undo()


def km(**settings) -> dkm.KMeans:
    return dkm.KMeans(**{"n_clusters": 20, "init": "random", "tol": 0, "max_iter": 30} | settings)


def whole(path: UPath) -> tuple[bytes, dict]:
    """What a finished model is, but for how much work it was."""
    assert manifest.read_manifest(path, "fit")["finished"]
    assert not (path / "checkpoints").exists()
    facts = json.loads((path / "model.json").read_text())
    for iteration in facts["iterations"]:  # the first after a break looks at all rows anew
        del iteration["seconds"], iteration["relabelled"], iteration["compared"]
    return (path / "centroids.npy").read_bytes(), facts


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_embeddings(tmp_path / "in" / "rows.parquet", X)


@pytest.fixture
def saved(monkeypatch) -> list[tuple[int, int]]:
    """Run and update of all that is saved."""
    found: list[tuple[int, int]] = []
    save = Checkpoints.save

    def listed(self, run, fit):
        found.append((run, fit.n_iter))
        save(self, run, fit)

    monkeypatch.setattr(Checkpoints, "save", listed)
    return found


def test_a_fit_goes_on_to_the_same_bits_and_does_nothing_twice(place, rows, tmp_path, saved, caplog):
    fit_files(rows, tmp_path / "whole", km(n_init=3))
    once, saved[:] = list(saved), []
    for updates in (1, 2, len(once) // 2, len(once) // 4):
        interrupt(updates, fit_files, rows, place, km(n_init=3))
        with pytest.raises(OutputError, match="unfinished"):
            manifest.read_manifest(place, "fit")
    with caplog.at_level("INFO", "daskmeans"):
        fit_files(rows, place, km(n_init=3))
    assert whole(place) == whole(UPath(tmp_path / "whole"))
    assert "run 3 goes on from a checkpoint: update" in caplog.text
    assert saved == once
    assert {run for run, _ in once} == {0, 1, 2}
    assert manifest.read_manifest(place, "fit")["resumed"]


def test_a_fit_that_was_killed_for_its_memory_goes_on_with_less(rows, tmp_path, caplog):
    interrupt(3, fit_files, rows, tmp_path / "model", km())
    with caplog.at_level("INFO", "daskmeans"):
        model = fit_files(rows, tmp_path / "model", km(max_samples_per_batch=16))
    assert "goes on from a checkpoint: update 3 of at most 30" in caplog.text
    assert (model.cluster_centers_ == fit_files(rows, tmp_path / "whole", km()).cluster_centers_).all()


def test_an_error_keeps_what_is_done_and_a_fit_that_has_nothing_leaves_nothing(rows, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dkm.KMeans, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit_files(rows, tmp_path / "model", km())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dkm.KMeans, "fit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit_files(rows, tmp_path / "nothing", km())
    assert not (tmp_path / "nothing").exists()
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["_manifest.json", "checkpoints"]
    fit_files(rows, tmp_path / "model", km())
    fit_files(rows, tmp_path / "whole", km())
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"max_iter": 29}, ["max_iter was 30, now 29"]),
        ({"n_clusters": 19, "random_state": 7}, ["n_clusters was 20, now 19", "random_state was 42, now 7"]),
        ({"init": X[:20]}, ["init was 'random', now 'centroids "]),
    ],
)
def test_other_settings_are_named_and_never_mixed(rows, tmp_path, change, words):
    interrupt(3, fit_files, rows, tmp_path / "model", km())
    before = sorted(p.read_bytes() for p in (tmp_path / "model").rglob("*") if p.is_file())
    with pytest.raises(OutputError) as caught:
        fit_files(rows, tmp_path / "model", km(**change))
    for word in [*words, "unfinished", "--overwrite"]:
        assert word in str(caught.value)
    assert sorted(p.read_bytes() for p in (tmp_path / "model").rglob("*") if p.is_file()) == before
    fit_files(rows, tmp_path / "model", km(**change), overwrite=True)
    fit_files(rows, tmp_path / "whole", km(**change))
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


def test_a_changed_input_is_named_by_its_files(tmp_path):
    files = tmp_path / "in"
    for name in ("a", "b", "c"):
        write_embeddings(files / f"{name}.parquet", X, ids=[f"{name}{i}" for i in range(len(X))])
    interrupt(3, fit_files, files, tmp_path / "model", km())
    (files / "a.parquet").rename(files / "d.parquet")
    write_embeddings(files / "b.parquet", X[:200])
    with pytest.raises(OutputError) as caught:
        fit_files(files, tmp_path / "model", km())
    for word in ("the file a.parquet is gone", "the file b.parquet was ", "the file d.parquet is new", "--overwrite"):
        assert word in str(caught.value)
    assert "c.parquet" not in str(caught.value)
    assert "fingerprint" not in str(caught.value)
    fit_files(files, tmp_path / "model", km(), overwrite=True)
    fit_files(files, tmp_path / "whole", km())
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


def test_another_version_of_daskmeans_is_another_fit(rows, tmp_path, monkeypatch):
    interrupt(3, fit_files, rows, tmp_path / "model", km())
    monkeypatch.setattr(manifest, "version", lambda name: "99.0")
    with pytest.raises(OutputError, match=r"daskmeans was \S+, now 99\.0"):
        fit_files(rows, tmp_path / "model", km())


def test_the_command_that_overwrites_goes_on_too(rows, tmp_path, caplog):
    fit_files(rows, tmp_path / "model", km(max_iter=2))
    interrupt(3, fit_files, rows, tmp_path / "model", km(), overwrite=True)
    with caplog.at_level("INFO", "daskmeans"):
        fit_files(rows, tmp_path / "model", km(), overwrite=True)
    assert "goes on from a checkpoint: update 3 of at most 30" in caplog.text
    fit_files(rows, tmp_path / "whole", km())
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


def test_a_kill_while_another_fit_is_replaced_mixes_nothing(rows, tmp_path, monkeypatch, caplog):
    interrupt(3, fit_files, rows, tmp_path / "model", km(random_state=1))
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "remove_tree", lambda path: sys.exit("killed"))
        with pytest.raises(SystemExit):
            fit_files(rows, tmp_path / "model", km(), overwrite=True)
    fit_files(rows, tmp_path / "model", km(), overwrite=True)
    assert "of another fit" in caplog.text
    fit_files(rows, tmp_path / "whole", km())
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


def test_a_seed_from_the_system_is_drawn_once(rows, tmp_path):
    interrupt(3, fit_files, rows, tmp_path / "model", km(random_state=None))
    interrupt(3, fit_files, rows, tmp_path / "model", km(random_state=None))
    model = fit_files(rows, tmp_path / "model", km(random_state=None))
    fit_files(rows, tmp_path / "whole", km(random_state=model.seed_))
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))
    again = fit_files(rows, tmp_path / "model", km(random_state=None), overwrite=True)
    assert again.seed_ != model.seed_


def test_run_goes_on_within_its_fit(place, rows, tmp_path, monkeypatch, caplog):
    interrupt(3, dkm.run, rows, place, km(random_state=None), threshold=0.9)
    with pytest.raises(OutputError, match="max_iter was 30, now 31"), monkeypatch.context() as patch:
        patch.setattr(steps_run, "check_ids", lambda *_: pytest.fail("refused too late"))
        dkm.run(rows, place, km(random_state=None, max_iter=31), threshold=0.9)
    with caplog.at_level("INFO", "daskmeans"):
        result = dkm.run(rows, place, km(random_state=None), threshold=0.9)
    assert "goes on from a checkpoint: update 3 of at most 30" in caplog.text
    seed = json.loads((place / "model" / "model.json").read_text())["seed"]
    dkm.run(rows, tmp_path / "whole", km(random_state=seed), threshold=0.9)
    assert whole(place / "model") == whole(UPath(tmp_path / "whole" / "model"))
    again = dkm.run(rows, place, km(random_state=None), threshold=0.9)  # finished: the seed is that of the fit
    assert again.summary["rows"] == result.summary["rows"] == len(X)


def test_rows_that_were_skipped_are_listed_once(tmp_path):
    spoilt = X.copy()
    spoilt[[3, 170]] = np.nan
    rows = write_embeddings(tmp_path / "rows.parquet", spoilt)
    skipping = ReadOptions(on_bad_row="skip")
    interrupt(3, fit_files, rows, tmp_path / "model", km(), skipping)
    fit_files(rows, tmp_path / "model", km(), skipping)
    assert pq.read_table(tmp_path / "model" / "_rejects/rejects")["row"].to_pylist() == [3, 170]
    assert manifest.read_manifest(UPath(tmp_path / "model"), "fit")["rejected"] == 2


# --- kill -9 ---


def command(*words: object) -> subprocess.Popen:
    """The command line in a process of its own, which saves as often as it may."""
    script = "from daskmeans.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        env=os.environ | {"DASK_DASKMEANS__CHECKPOINT_SECONDS": "0"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_after(checkpoints: int, process: subprocess.Popen, model: Path) -> None:
    """SIGKILL `process` as soon as the newest checkpoint below `model` has that number."""
    newest = 0
    while newest < checkpoints:
        assert process.poll() is None, process.communicate()[1]
        found = [path.stem for path in model.glob("checkpoints/*.json")]
        newest = max((int(name.rpartition("-")[2]) for name in found), default=0)
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -9


def test_kill_9_at_several_updates_costs_no_bit(tmp_path, two_workers):
    noise = np.random.default_rng(0).normal(size=(6000, 16)).astype(np.float32)
    rows = write_embeddings(tmp_path / "rows.parquet", noise, row_group_size=2000)
    settings = ["--n-clusters", 150, "--init", "random", "--tol", 0, "--max-iter", 60, "--n-init", 2]
    words = ["fit", rows, *settings, "--scheduler", two_workers.scheduler_address, "--model"]
    for checkpoints in (1, 4) if NIGHTLY else (2,):
        kill_after(checkpoints, command(*words, tmp_path / "model"), tmp_path / "model")
    outcome = command(*words, tmp_path / "model").communicate()
    assert "goes on from a checkpoint: update" in outcome[1]
    assert "of at most 60" in outcome[1]
    fit_files(rows, tmp_path / "whole", km(n_clusters=150, max_iter=60, n_init=2))
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


# --- where the engine stands ---


def interrupted_everywhere(X, tuning, **settings) -> None:
    """Stop a fit after each of its updates, one by one, and compare what comes of it with one that was not stopped."""
    whole = km(**settings)._fit(X, tuning=tuning)
    path = UPath(f"memory://everywhere/{time.monotonic_ns()}")
    updates = 0
    while True:
        patch = interrupted_after(1)
        try:
            checkpoints = Checkpoints(path, {}, max_iter=whole.max_iter, every=0)
            parts = km(**settings)._fit(X, checkpoints=checkpoints, tuning=tuning)
            break
        except KeyboardInterrupt:
            updates += 1
        finally:
            patch.undo()
    assert updates >= len(whole.iterations_) > 1
    for name in ("cluster_centers_", "labels_", "inertia_", "inertia_history_", "n_iter_", "converged_"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name


def test_a_fit_that_grows_through_samples_goes_on_in_each():
    rows, tuning = blobs(n=4000, d=8, k=9), Tuning(least_sample=0)
    assert km(init="auto", n_clusters=4)._fit(rows, tuning=tuning).iterations_[-1]["phases"] > 2
    interrupted_everywhere(rows, tuning, init="auto", n_clusters=4, tol=1e-4)


def test_a_fit_that_begins_with_near_groups_goes_on_in_each_update():
    rows, tuning = blobs(n=12_000, d=8, k=40), Tuning(least_sample=0, near_groups=1)
    assert km(init="auto", n_clusters=120, max_iter=4)._fit(rows, tuning=tuning).iterations_[-1]["phases"] == 2
    interrupted_everywhere(rows, tuning, init="auto", n_clusters=120, tol=1e-4, max_iter=4)


# --- warm starts ---


def test_a_warm_start_on_changed_and_on_more_rows(tmp_path, rows):
    fit_files(rows, tmp_path / "model", km())
    start = np.load(tmp_path / "model" / "centroids.npy")
    changed = X + np.random.default_rng(1).normal(scale=0.05, size=X.shape).astype(np.float32)
    for name, now in (("changed", changed), ("more", np.concatenate([X, changed])), ("fewer", X[:100])):
        other = write_embeddings(tmp_path / f"{name}.parquet", now)
        warm = fit_files(other, tmp_path / name, km(init=str(tmp_path / "model")))
        # From the same centroids in memory, and never worse than where it began.
        assert (warm.cluster_centers_ == km(init=start).fit(now).cluster_centers_).all()
        assert warm.inertia_ <= km(init=start, max_iter=0).fit(now).inertia_


def test_a_warm_start_that_was_interrupted_goes_on(tmp_path, rows):
    fit_files(rows, tmp_path / "first", km(max_iter=1))
    interrupt(2, fit_files, rows, tmp_path / "model", km(init=str(tmp_path / "first")))
    fit_files(rows, tmp_path / "model", km(init=str(tmp_path / "first")))
    fit_files(rows, tmp_path / "whole", km(init=str(tmp_path / "first")))
    assert whole(UPath(tmp_path / "model")) == whole(UPath(tmp_path / "whole"))


def test_the_centroids_of_a_checkpoint_start_another_fit(tmp_path, rows):
    interrupt(3, fit_files, rows, tmp_path / "model", km())
    newest = max((tmp_path / "model" / "checkpoints").glob("*.npy"))
    warm = fit_files(rows, tmp_path / "warm", km(init=str(newest), max_iter=0))
    three = fit_files(rows, tmp_path / "three", km(max_iter=3))
    assert (warm.cluster_centers_ == three.cluster_centers_).all()


def test_a_start_that_does_not_fit_is_refused_before_rows_are_read(tmp_path, rows, monkeypatch):
    fit_files(rows, tmp_path / "model", km())
    wide = write_embeddings(tmp_path / "wide.parquet", blobs(n=100, d=12))
    monkeypatch.setattr(dkm.KMeans, "fit", lambda *_, **__: pytest.fail("too late"))
    monkeypatch.setattr(steps_run, "check_ids", lambda *_: pytest.fail("too late"))
    with pytest.raises(UsageError, match=r"initial centroids have 8 dimensions\n.*12, as the vectors in .*wide"):
        fit_files(wide, tmp_path / "out", km(init=str(tmp_path / "model")))
    with pytest.raises(UsageError, match=r"initial centroids have 8 dimensions\n.*12, as the vectors in .*wide"):
        dkm.run(wide, tmp_path / "out", km(init=str(tmp_path / "model")), threshold=0.9)
    with pytest.raises(UsageError, match=r"shape \(20, 8\)\n.*\(21, number of features\)"):
        fit_files(rows, tmp_path / "out", km(n_clusters=21, init=str(tmp_path / "model")))
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_replaced_by_the_fit_that_starts_from_it(tmp_path, rows):
    dkm.run(rows, tmp_path / "work", km(), threshold=0.9)
    model = tmp_path / "work" / "model"
    for init in (model, model / "centroids.npy"):
        with pytest.raises(OutputError, match="a directory outside"):
            fit_files(rows, model, km(init=str(init)), overwrite=True)
        with pytest.raises(OutputError, match="a directory outside"):
            dkm.run(rows, tmp_path / "work", km(init=str(init)), threshold=0.9, overwrite=True)
    assert json.loads((model / "_manifest.json").read_text())["finished"]
