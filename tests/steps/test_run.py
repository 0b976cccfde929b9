"""The whole job over files: equal results however it is run, taken up where it stopped, larger than memory."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

import daskmeans as dkm
from daskmeans.cli.main import main
from daskmeans.errors import DataError, MemoryForecastError, OutputError, RunError, UsageError
from daskmeans.planner.describe import describe
from daskmeans.steps import assign as assign_step
from daskmeans.steps.assign import assign_files
from daskmeans.steps.fit import fit
from daskmeans.storage import manifest
from daskmeans.vectors.options import ReadOptions
from helpers import blobs, write_embeddings


def decisions(out: Path) -> dict[str, tuple]:
    table = pq.read_table(out / "dedup" / "decisions").to_pydict()
    rows = zip(
        *(table[c] for c in ("keep", "kept_id", "max_id", "cosine_sim_score", "reason", "centroid")), strict=True
    )
    return dict(zip(table["id"], rows, strict=True))


def expected(X: np.ndarray, names: list[str], centroids: np.ndarray, threshold: float) -> dict[str, bool]:
    """Which rows stay by `survivors` and `hard`, from the definitions, in float64."""
    U = X.astype(float) / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    every = np.linalg.norm(U[:, None] - centroids[None].astype(float), axis=2)
    label, distance = every.argmin(1), every.min(1).astype(np.float32)
    stays: dict[str, bool] = {}
    for cluster in np.unique(label):
        mine = sorted(np.flatnonzero(label == cluster), key=lambda i: (distance[i], names[i]), reverse=True)
        alive: list[int] = []
        for i in mine:
            stays[names[i]] = not any(U[i] @ U[j] >= threshold for j in alive)
            alive += [i] if stays[names[i]] else []
    return stays


def test_run_decides_as_brute_force_does(tmp_path, embeddings):
    result = dkm.run(embeddings, tmp_path / "out", dkm.KMeans(8), threshold=0.95)
    table = pq.read_table(embeddings)
    X = np.stack(table["embedding"].to_numpy())
    centroids = np.load(tmp_path / "out" / "model" / "centroids.npy")
    found = {row: kept for row, (kept, *_) in decisions(tmp_path / "out").items()}
    assert found == expected(X, table["id"].to_pylist(), centroids, 0.95)
    assert 0 < sum(found.values()) < 600
    assert result.summary["kept"] == sum(found.values())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["steps"]) == {"fit", "assign", "dedup"}
    assert summary["rows"] == 600 == summary["kept"] + sum(summary["removed"].values())


def test_a_run_that_was_killed_as_it_wrote_its_summary_goes_on(tmp_path, embeddings):
    out = tmp_path / "out"
    dkm.run(embeddings, out, dkm.KMeans(8), threshold=0.95)
    (out / "summary.json").rename(out / "summary.json.tmp")
    dkm.run(embeddings, out, dkm.KMeans(8), threshold=0.95)
    assert {file.name for file in out.iterdir()} == {"model", "clusters", "dedup", "summary.json"}


def test_every_dropped_row_names_one_that_stays(tmp_path, embeddings):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(8), threshold=0.9)
    rows = decisions(tmp_path / "out")
    for row, (keep, kept_id, *_) in rows.items():
        assert (kept_id is None) if keep else (rows[kept_id][0] and kept_id != row)


def test_the_same_decisions_on_any_workers_and_partitions(tmp_path, embeddings, client, thread_client):
    runs = {}
    for name, at, partition in [
        ("two processes", client, "64MiB"),
        ("one worker", thread_client(1), "4kB"),
        ("four workers", thread_client(4), "1kB"),
    ]:
        with dask.config.set({"daskmeans.partition-bytes": partition, "daskmeans.bucket-bytes": partition}):
            dkm.run(embeddings, tmp_path / name, dkm.KMeans(8, max_iter=5), threshold=0.9, client=at)
        runs[name] = decisions(tmp_path / name), (tmp_path / name / "model" / "centroids.npy").read_bytes()
    assert runs["two processes"] == runs["one worker"] == runs["four workers"]


def test_the_scheduler_hears_of_steps_and_iterations(tmp_path, embeddings, client):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(8), threshold=0.9, client=client)
    steps = [event for _, event in client.get_events("daskmeans")][-4:]
    assert [event["step"] for event in steps] == ["fit", "assign", "pairs", "dedup"]
    assert steps[-1]["kept"] + sum(steps[-1]["removed"].values()) == 600
    model = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    heard = [event for _, event in client.get_events("daskmeans-kmeans") if event["phase"] != "seed"]
    assert [event["inertia"] for event in heard][-model["n_iter"] :] == model["inertia_per_iteration"]


def made(out: Path) -> dict[str, float]:
    return {name: (out / name / "_manifest.json").stat().st_mtime_ns for name in ("model", "clusters", "dedup")}


def test_finished_steps_are_not_done_again(tmp_path, embeddings):
    out = tmp_path / "out"

    def again(threshold: float = 0.9, overwrite: bool = False, **km: int) -> set[str]:
        before = made(out)
        dkm.run(embeddings, out, dkm.KMeans(8, **km), threshold=threshold, overwrite=overwrite)
        return {name for name, at in made(out).items() if at != before[name]}

    dkm.run(embeddings, out, dkm.KMeans(8), threshold=0.9)
    first = decisions(out)
    assert again() == set()
    with pytest.raises(OutputError, match=r"threshold was 0\.9, now 0\.95"):
        again(0.95)
    assert decisions(out) == first
    assert again(0.95, overwrite=True) == {"dedup"}
    with pytest.raises(OutputError, match=r"max_iter was 300, now 2"):
        again(max_iter=2)
    assert again(max_iter=2, overwrite=True) == {"model", "clusters", "dedup"}
    before = decisions(out)
    # A step that was interrupted is done again, and what lies before it is not.
    file = out / "clusters" / "_manifest.json"
    file.write_text(file.read_text().replace('"finished": true', '"finished": false'))
    assert "model" not in again(max_iter=2)
    assert decisions(out) == before


def test_what_another_version_has_made_is_not_taken_for_ours(tmp_path, embeddings):
    out = tmp_path / "out"
    dkm.run(embeddings, out, dkm.KMeans(8), threshold=0.9)
    first, at = decisions(out), made(out)
    file = out / "clusters" / "_manifest.json"
    told = json.loads(file.read_text())
    ours = told["versions"]["daskmeans"]
    manifest.write_manifest(UPath(out / "clusters"), told | {"versions": told["versions"] | {"daskmeans": "0.0.9"}})
    with pytest.raises(
        OutputError, match=rf"'assign' is finished here, .*daskmeans was 0\.0\.9, now {ours}\n.*--overwrite"
    ):
        dkm.run(embeddings, out, dkm.KMeans(8), threshold=0.9)
    dkm.run(embeddings, out, dkm.KMeans(8), threshold=0.9, overwrite=True)
    assert made(out)["model"] == at["model"]
    assert json.loads(file.read_text())["versions"]["daskmeans"] == ours
    assert decisions(out) == first


def test_fit_and_run_skip_the_same_rows(tmp_path):
    X = blobs(n=300, d=8)
    rows = write_embeddings(tmp_path / "rows.parquet", X, ids=["a"] * 100 + [f"row {i}" for i in range(200)])
    reading = dkm.ReadOptions(on_bad_row="skip")
    fit(rows, tmp_path / "one" / "model", dkm.KMeans(5), reading)
    result = dkm.run(rows, tmp_path / "other", dkm.KMeans(5), 0.9, reading)
    assert result.summary["rejected"] == 99
    one, other = (dkm.KMeans.load(tmp_path / name / "model").cluster_centers_ for name in ("one", "other"))
    np.testing.assert_array_equal(one, other)


def test_a_changed_input_is_noticed(tmp_path, embeddings):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(8), threshold=0.9)
    write_embeddings(embeddings, blobs(seed=1), text=["t"] * 600)
    with pytest.raises(OutputError, match=r"the file rows\.parquet was"):
        dkm.run(embeddings, tmp_path / "out", dkm.KMeans(8), threshold=0.9)


def test_verbs_one_by_one_give_what_run_gives(tmp_path, embeddings, two_workers):
    def call(words: str) -> dict:
        words = words.replace("@", str(tmp_path)).replace("IN", str(embeddings))
        done = CliRunner().invoke(main, [*words.split(), "--json", "--scheduler", two_workers.scheduler_address])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    model = call("fit IN --model @/model --n-clusters 8 --max-iter 7")
    assert (model["n_clusters"], model["n_features"]) == (8, 16)
    assert call("assign IN --model @/model --out @/clusters --metadata-field text --layout hive")["rows"] == 600
    decided = call("dedup @/clusters --out @/dedup --eps 0.1")
    whole = call("run IN --out @/run --n-clusters 8 --max-iter 7 --threshold 0.9 --metadata-field text")
    assert decided["removed"] == whole["removed"]
    assert decisions(tmp_path) == decisions(tmp_path / "run")
    kept = call("apply @/dedup IN --out @/kept")
    assert kept["kept"] == decided["kept"]
    stay = {row for row, (keep, *_) in decisions(tmp_path).items() if keep}
    original = pq.read_table(embeddings)
    mask = pa.array([i in stay for i in original["id"].to_pylist()])
    assert pq.read_table(tmp_path / "kept" / embeddings.name).equals(original.filter(mask))


def test_a_configuration_file_fills_the_flags(tmp_path, embeddings, two_workers):
    config = tmp_path / "job.yaml"
    config.write_text(f"input: {embeddings}\nn-clusters: 8\nthreshold: 0.9\nmax_iter: 4\nmetadata_field: [text]\n")
    words = ["run", str(config), "--out", str(tmp_path / "out"), "--max-iter", "2", "--json"]
    done = CliRunner().invoke(main, [*words, "--scheduler", two_workers.scheduler_address])
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "out" / "model" / "_manifest.json").read_text())["settings"]
    assert (settings["n_clusters"], settings["max_iter"]) == (8, 2)  # the command line goes first
    clusters = json.loads((tmp_path / "out" / "clusters" / "_manifest.json").read_text())
    assert clusters["metadata_fields"] == ["text"]


@pytest.mark.parametrize("path", ["", "model", "clusters", "dedup"])
def test_info_says_what_a_directory_is(tmp_path, embeddings, path):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(8), threshold=0.9)
    done = CliRunner().invoke(main, ["info", str(tmp_path / "out" / path), "--json"])
    facts = json.loads(done.stdout)
    assert facts["complete"] is True
    step = {"": "run", "model": "fit", "clusters": "assign", "dedup": "dedup"}[path]
    assert step in facts["kind"]
    assert CliRunner().invoke(main, ["info", str(tmp_path / "out" / path)]).exit_code == 0


def test_info_about_embeddings(embeddings):
    facts = json.loads(CliRunner().invoke(main, ["info", str(embeddings), "--json"]).stdout)
    assert (facts["rows"], facts["dimension"], facts["dtype"]) == (600, 16, "float32")
    assert facts["nulls"] == {"id": 0, "embedding": 0}


def test_info_counts_nulls(tmp_path):
    vectors = pa.array([[1.0], None, [2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ["a", None, None], "embedding": vectors}), tmp_path / "in.parquet")
    assert describe(tmp_path / "in.parquet")["nulls"] == {"id": 2, "embedding": 1}


def test_what_init_stands_for_is_compared_not_its_path(tmp_path, embeddings):
    X = blobs()
    for turn, start in enumerate((X[:8], X[:8], X[8:16])):
        np.save(tmp_path / "start.npy", start)
        settings = (embeddings, tmp_path / "out", dkm.KMeans(8, init=str(tmp_path / "start.npy"), max_iter=1))
        if turn < 2:
            dkm.run(*settings, threshold=0.9)
        else:
            with pytest.raises(OutputError, match="init was 'centroids"):
                dkm.run(*settings, threshold=0.9)


def test_columns_that_assigning_adds_are_refused_before_the_fit(tmp_path):
    X = blobs(n=60, copies=5)
    path = write_embeddings(tmp_path / "in.parquet", X, centroid=list(range(60)))
    for words in ({"id_field": "centroid"}, {"metadata_fields": ("centroid",)}):
        with pytest.raises(UsageError, match="'centroid' already"):
            dkm.run(path, tmp_path / "out", dkm.KMeans(3), threshold=0.9, reading=ReadOptions(**words))
    assert not (tmp_path / "out").exists()


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path):
    for scale in (1e-9, 1e6):
        X = (blobs(n=60, copies=5) * scale).astype(np.float32)
        path = write_embeddings(tmp_path / f"{scale}.parquet", X)
        model = dkm.KMeans(3, normalize=False)
        with pytest.raises(DataError, match="float16"):
            dkm.run(path, tmp_path / f"out-{scale}", model, threshold=0.9, embedding_dtype="float16")


def test_overwriting_keeps_the_old_output_while_the_input_is_refused(tmp_path, embeddings):
    dkm.KMeans(3).fit(blobs()).save(tmp_path / "model")
    assign_files(embeddings, tmp_path / "model", tmp_path / "out")
    write_embeddings(embeddings, blobs(), ids=["same"] * 600)
    with pytest.raises(DataError, match="more than once"):
        assign_files(embeddings, tmp_path / "model", tmp_path / "out", overwrite=True)
    assert dkm.open_buckets(tmp_path / "out").rows == 600


def test_npy_files_are_applied_in_the_order_they_were_decided_in(tmp_path):
    for name, rows in (("a", blobs(n=50, copies=5)), ("b", blobs(n=70, copies=5, seed=1))):
        np.save(tmp_path / f"{name}.npy", rows)
    files = [tmp_path / "b.npy", tmp_path / "a.npy"]
    dkm.run(files, tmp_path / "out", dkm.KMeans(3), threshold=0.95)
    with pytest.raises(DataError, match="or their order"):
        dkm.apply(tmp_path / "out" / "dedup", files[::-1], tmp_path / "kept")
    kept = dkm.apply(tmp_path / "out" / "dedup", files, tmp_path / "kept")
    assert kept["kept"] == sum(len(np.load(tmp_path / "kept" / f.name)) for f in files) < 120


def test_an_encoded_seed_is_recorded_when_none_was_given(tmp_path, embeddings):
    dkm.run(embeddings, tmp_path / "out", dkm.KMeans(3, random_state=None), threshold=0.9)
    assert isinstance(json.loads((tmp_path / "out" / "model" / "model.json").read_text())["seed"], int)


def test_rows_that_vanish_between_steps_are_noticed(tmp_path, embeddings, monkeypatch):
    dkm.KMeans(3).fit(blobs()).save(tmp_path / "model")
    monkeypatch.setattr(assign_step, "gather_rejects", lambda path, step, rows: 1)
    with pytest.raises(RunError, match="600 rows went in, but 600 were written and 1 were rejected"):
        assign_files(embeddings, tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_workers_too_small_for_anything_are_refused_not_waited_for(tmp_path, embeddings, monkeypatch):
    monkeypatch.setattr("daskmeans.runtime.resources.memory_per_task", lambda client: 10 << 20)
    with pytest.raises(MemoryForecastError, match=r"--memory-limit(.|\n)*such as 1GiB"):
        fit(embeddings, tmp_path / "out", dkm.KMeans(3))


def test_object_stores_are_written_like_directories(embeddings):
    result = dkm.run(embeddings, "memory://runs/one", dkm.KMeans(8), threshold=0.9)
    assert result.summary["rows"] == 600
    assert dkm.open_decisions("memory://runs/one/dedup").summary.items() <= result.summary.items()


@pytest.mark.parametrize("way", ["fit", "run"])
def test_a_fit_changes_no_parameter(way, tmp_path, embeddings):
    np.save(tmp_path / "start.npy", blobs(k=8)[:8])
    km = dkm.KMeans(8, init=str(tmp_path / "start.npy"), random_state=None, max_iter=2, tol=1e9)
    km.ann_ = {"recall": 1.0}  # of an earlier fit
    before, out = km.get_params(), tmp_path / "out"

    def work():
        if way == "fit":
            assert fit(embeddings, out, km, overwrite=True) is km
        else:
            dkm.run(embeddings, out, km, threshold=0.9)

    work()
    assert km.get_params() == before
    assert not hasattr(km, "ann_")
    stored = json.loads((out / ("model" if way == "run" else "") / "model.json").read_text())
    assert km.seed_ == stored["seed"]
    loaded = dkm.KMeans.load(out / "model" if way == "run" else out)
    np.testing.assert_array_equal(km.cluster_centers_, loaded.cluster_centers_)
    assert (km.labels_.compute() == loaded.predict(blobs())).all()
    again = km
    if way == "run":  # finished: the seed that was drawn is found, and the model
        again = dkm.KMeans(**before)
        dkm.run(embeddings, out, again, threshold=0.9)
        assert again.get_params() == before
    assert again.seed_ == km.seed_
    np.testing.assert_array_equal(again.cluster_centers_, km.cluster_centers_)


def test_a_run_that_has_nothing_left_to_do_says_so(tmp_path, embeddings, caplog):
    caplog.set_level("INFO", "daskmeans")
    for _ in range(2):
        made = dkm.run(embeddings, tmp_path / "out", dkm.KMeans(4), 0.9)
        said = [message for message in caplog.messages if message.startswith("nothing was done")]
        assert made.summary["rows"] == 600
        caplog.clear()
    assert said == [f"nothing was done, as {tmp_path / 'out'} has all results already; --overwrite makes them again"]
