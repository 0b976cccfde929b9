"""The whole job on an object store that speaks S3, also on one that fails; and secrets that are told nobody."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen
from zlib import crc32

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

import daskmeans as dkm
from daskmeans import lock, manifest, runtime, workflow
from daskmeans.cli import main
from daskmeans.errors import DataError, NotFoundError, OutputError, UsageError
from daskmeans.info import describe
from daskmeans.kmeans.checkpoint import Checkpoints
from daskmeans.reading import Reading
from daskmeans.vectors.files import open_path
from helpers import blobs
from objectstore import SECRET, ObjectStore, Request, no_fault

X = blobs(n=300, k=6)
PROGRAM = """
import json, sys
import daskmeans as dkm
from daskmeans.reading import Reading
reading = Reading(metadata_fields=("text",), storage_options=json.loads(sys.argv[3]))
dkm.run(sys.argv[1], sys.argv[2], dkm.KMeans(6, init="random"), 0.9, reading)
"""
# What differs between two runs of the same work.
VOLATILE = {
    "seconds",
    "peak_bytes",
    "inputs",
    "input_fingerprint",
    "path",
    "resumed",
    "steps",
    "relabelled",
    "compared",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many partitions and buckets, and so requests, on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "THREADS", 1)
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    running = ObjectStore()
    yield running
    running.close()


@pytest.fixture
def store(server: ObjectStore) -> Iterator[ObjectStore]:
    server.clear()
    yield server
    server.fault = no_fault


def write_input(folder: UPath, kind: str = "parquet") -> UPath:
    """Two files of the rows of X below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate(np.array_split(np.arange(len(X)), 2)):
        with (folder / f"part-{i}.{kind}").open("wb") as file:
            if kind == "parquet":
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(X[rows].ravel()), X.shape[1])
                columns = {"id": [f"row-{i}" for i in rows], "embedding": vectors, "text": [f"text {i}" for i in rows]}
                pq.write_table(pa.table(columns), file, row_group_size=50)
            elif kind == "npy":
                np.save(file, X[rows])
            else:
                lines = [json.dumps({"id": int(i), "v": X[i].tolist(), "text": f"text {i}"}) + "\n" for i in rows]
                file.write(gzip.compress("".join(lines).encode()))
    return folder


def do(given: UPath, out: UPath, client: distributed.Client | None = None) -> dkm.DedupResult:
    """The job from embeddings to decisions; again, it goes on."""
    fields = () if any(name.endswith(".npy") for name in given.fs.find(given.path)) else ("text",)
    reading = Reading(metadata_fields=fields, storage_options={**given.storage_options, **out.storage_options})
    return dkm.run(given, out, dkm.KMeans(6, init="random"), 0.9, reading, client=client)


def content(folder: UPath) -> dict[str, Any]:
    """All files below `folder` by their names: bytes, but of JSON what stays the same when the work is done again."""
    prefix = folder.path.rstrip("/") + "/"
    files = {name.removeprefix(prefix): folder.fs.cat_file(name) for name in folder.fs.find(folder.path)}
    return {name: lasting(json.loads(data)) if name.endswith(".json") else data for name, data in files.items()}


def lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in VOLATILE}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def decided(files: dict[str, Any]) -> list[dict[str, Any]]:
    """The decisions among the files of a job, however they are divided, by id."""
    tables = [
        pq.read_table(pa.BufferReader(data)) for name, data in files.items() if name.startswith("dedup/decisions")
    ]
    return pa.concat_tables(tables).sort_by("id").to_pylist()


def once(chosen: Callable[[Request], str | None]) -> Callable[[Request], str | None]:
    """Requests that `chosen` names fail the first time they are made."""
    seen: Counter[Request] = Counter()

    def fault(request: Request) -> str | None:
        seen[request] += 1
        return chosen(request) if seen[request] == 1 else None

    return fault


def refused_after(writes: int) -> Callable[[Request], str | None]:
    """Nothing is answered any more after so many requests that write."""
    left = [writes]

    def fault(request: Request) -> str | None:
        left[0] -= request.writes
        return "refused" if left[0] < 0 else None

    return fault


def on(method: str, end: str, how: str) -> Callable[[Request], str | None]:
    """Requests to a path with this end fail."""
    return lambda request: how if request.method == method and request.path.endswith(end) else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_thread) -> dict[str, Any]:
    """What the job makes on a disk."""
    root = UPath(tmp_path_factory.mktemp("whole"))
    do(write_input(root / "in"), root / "out")
    return content(root / "out")


# --- the job ---


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "npy"])
def test_the_whole_job_makes_what_it_makes_on_a_disk(store, tmp_path, kind):
    found = []
    for root in (UPath(tmp_path), store.at("job")):
        given, out = write_input(root / "in", kind), root / "out"
        result = do(given, out)
        counts = dkm.apply(result.path, given, root / "kept", storage_options=out.storage_options)
        assert counts["kept"] == result.summary["kept"] < counts["rows"] == len(X)
        groups = [(group.id, [each.id for each in group.duplicates]) for group in result.groups()]
        found.append((content(out), content(root / "kept"), groups, result.removed.compute()["id"].tolist()))
    disk, remote = found
    assert disk == remote
    assert {name.split("/")[0] for name in remote[0]} == {"model", "clusters", "dedup", "summary.json"}
    assert not [name for name in remote[0] if "lock" in name or "runs" in name]


def test_steps_one_by_one_on_workers_whose_files_the_client_sees_at_once(store, client, whole):
    given, out, reading = write_input(store.at("in")), store.at("out"), Reading("id", None, ("text",), store.options)
    for name in ("model", "clusters", "dedup"):
        assert not (out / name).exists()  # a client that remembered listings would go on believing so
    workflow.fit(given, out / "model", dkm.KMeans(6, init="random"), reading, client=client)
    km = dkm.KMeans.load("s3://bucket/out/model", storage_options=store.options)
    assert km.inertia_ == whole["model/model.json"]["inertia"]
    workflow.assign_files(given, out / "model", out / "clusters", reading, client=client)
    dkm.dedup("s3://bucket/out/clusters", 0.9, out=out / "dedup", storage_options=store.options, client=client)
    assert decided(content(out)) == decided(whole)
    for name, facts in {"model": "n_clusters", "clusters": "rows", "dedup": "kept"}.items():
        told = describe(f"s3://bucket/out/{name}", storage_options=store.options)
        assert told["complete"] and facts in told
    assert describe("s3://bucket/in/*.parquet", storage_options=store.options)["rows"] == len(X)


def test_a_store_and_a_disk_work_together(store, tmp_path, whole):
    given, out = write_input(store.at("in")), UPath(tmp_path / "out")
    do(given, out)
    assert content(out) == whole
    do(given, store.at("out"))
    dkm.dedup("s3://bucket/out/clusters", 0.9, out=tmp_path / "decided", storage_options=store.options)
    result = dkm.open_decisions(tmp_path / "decided", store.options)
    assert len(result.groups(3)) == 3
    counts = dkm.apply(tmp_path / "decided", given, tmp_path / "kept", storage_options=store.options)
    assert counts["kept"] == whole["summary.json"]["kept"]


def test_server_and_credentials_are_found_in_the_environment(store, monkeypatch):
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, option in names.items():
        monkeypatch.setenv(name, store.options[option])
    write_input(store.at("in"))
    try:
        assert describe("s3://bucket/in")["rows"] == len(X)
    finally:
        type(store.at("").fs).clear_instance_cache()  # clients that will have no credentials


def test_a_finished_job_is_not_done_again_and_overwrite_replaces_all_of_it(store, tmp_path):
    given, out, reading = write_input(store.at("in")), store.at("out"), Reading(storage_options=store.options)
    do(given, out)
    store.requests.clear()
    do(given, out)
    assert {request.path for request in store.requests if request.writes} == {"/bucket/out/summary.json"}
    with pytest.raises(OutputError, match=r"finished here, with other settings.*n_clusters was 6, now 3"):
        dkm.run(given, out, dkm.KMeans(3), 0.9, reading)
    with pytest.raises(OutputError, match="exists already"):
        workflow.fit(given, out / "model", dkm.KMeans(3), reading)
    (out / "model" / "leftover.bin").write_bytes(b"left by a run that was killed")
    dkm.run(given, out, dkm.KMeans(3), 0.8, reading, layout="hive", overwrite=True)
    dkm.run(write_input(UPath(tmp_path / "in")), tmp_path / "out", dkm.KMeans(3), 0.8, layout="hive")
    assert content(out) == content(UPath(tmp_path / "out"))


def test_refusals_touch_nothing(store):
    given, reading = write_input(store.at("in")), Reading(storage_options=store.options)
    (store.at("theirs") / "notes.txt").write_text("not ours")
    store.at("").fs.touch("bucket/in/")  # what consoles make of "create folder"
    before = content(store.at(""))
    km = dkm.KMeans(3, max_iter=1)
    with pytest.raises(OutputError, match="lies inside the input"):
        workflow.fit(given, "s3://bucket/in/model", km, reading)
    with pytest.raises(OutputError, match="did not write"):
        workflow.fit(given, "s3://bucket/theirs", km, reading)
    with pytest.raises(OutputError, match="is a file"):
        workflow.fit(given, "s3://bucket/theirs/notes.txt", km, reading)
    with pytest.raises(OutputError, match="no such bucket"):
        workflow.fit(given, "s3://bucketeer/model", km, reading)
    for missing in ("s3://bucket/im", "s3://bucketeer/in", "s3://bucket/in/*.npy", "s3://bucket/in/part-2.parquet"):
        with pytest.raises(NotFoundError):
            workflow.fit(missing, "s3://bucket/model", km, reading)
    with pytest.raises(ZeroDivisionError), manifest.step(store.at("their"), "fit", {}, {}):
        1 / 0  # noqa: B018  what is removed then has a name with which theirs begins
    assert content(store.at("")) == before
    assert not store.at("").fs.exists("bucketeer")
    workflow.fit("s3://bucket/in/", "s3://bucket/model/", km, reading)
    assert manifest.read(store.at("model"), "fit")["rows"] == len(X)


def test_new_rows_are_held_against_clusters_and_appended(store):
    reading = Reading(metadata_fields=("text",), storage_options=store.options)
    do(write_input(store.at("in")), store.at("out"))
    columns = {"id": ["new-0", "new-1"], "embedding": [X[0].tolist(), (-X[0]).tolist()], "text": ["a", "b"]}
    schema = pa.schema({"id": pa.string(), "embedding": pa.list_(pa.float32()), "text": pa.string()})
    with store.at("more.parquet").open("wb") as file:
        pq.write_table(pa.table(columns, schema), file)
    old, new = store.at("out") / "clusters", store.at("new")
    workflow.assign_files(store.at("more.parquet"), store.at("out") / "model", new, reading)
    result = dkm.dedup(new, 0.9, out=store.at("decided"), against=old, append=True, storage_options=store.options)
    assert result.kept.compute()["id"].tolist() == ["new-1"]
    assert describe(old)["appended"]["rows"] == 1
    assert describe(old)["rows"] == len(X) + 1


# --- a store that fails ---


def test_errors_that_pass_change_nothing(store, whole):
    given, out = write_input(store.at("in")), store.at("out")
    hows = ["unavailable", "lost", "cut", *[None] * 12]
    late = [("GET", "/bucket/in/part-0.parquet"), ("PUT", "/bucket/out/model/centroids.npy")]
    made: Counter[str] = Counter()

    def chosen(request: Request) -> str | None:
        how = hows[crc32("".join(request).encode()) % len(hows)]
        if (request.method, request.path) in late:
            late.remove((request.method, request.path))
            how = "late"
        elif how == "cut" and request.method != "GET":
            how = None
        made[str(how)] += 1
        return how

    store.fault = once(chosen)
    result = do(given, out)
    dkm.apply(result.path, given, store.at("kept"), storage_options=store.options)
    store.fault = no_fault
    assert content(out) == whole
    assert made["late"] == 2 and min(made["unavailable"], made["lost"], made["cut"]) > 1


@pytest.mark.parametrize("writes", [0, 1, 3, 7, 13, 19, 25])
def test_a_job_whose_store_goes_away_is_finished_by_the_next(store, whole, writes):
    given, out = write_input(store.at("in")), store.at("out")
    store.fault = refused_after(writes)
    with pytest.raises((OSError, OutputError, DataError)):
        do(given, out)
    store.fault = no_fault
    do(given, out)
    assert content(out) == whole


def test_a_job_that_is_killed_is_finished_by_the_next(store, whole):
    given, out = write_input(store.at("in")), store.at("out")
    words = [sys.executable, "-c", PROGRAM, str(given), str(out), json.dumps(store.options)]
    running = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})
    writes: list[Request] = []

    def fault(request: Request) -> None:
        writes.extend([request] if request.writes else [])
        if len(writes) >= 16:
            running.kill()

    store.fault = fault
    assert running.wait() == -signal.SIGKILL
    store.fault = no_fault
    assert lock._read(out / "clusters" / lock.NAME)["pid"] == running.pid
    do(given, out)
    assert content(out) == whole


def interrupted_fit(given: UPath, out: UPath, reading: Reading) -> None:
    """A fit that is interrupted after its third update."""
    save, left = Checkpoints.save, [3]

    def saved(self, run, fit):
        save(self, run, fit)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", saved)
        patch.setattr(Checkpoints, "_due", 0.0, raising=False)
        workflow.fit(given, out, dkm.KMeans(6, init="random"), reading)


def test_an_interrupted_fit_goes_on_and_a_store_that_does_not_answer_is_no_reason_to_begin_anew(store, whole, caplog):
    given, out, reading = write_input(store.at("in")), store.at("out/model"), Reading(storage_options=store.options)
    interrupted_fit(given, out, reading)
    left = set(content(out))
    assert any(name.startswith("checkpoints/") for name in left)
    store.fault = on("GET", "out/model/manifest.json", "refused")
    with pytest.raises(PermissionError):
        workflow.fit(given, out, dkm.KMeans(6, init="random"), reading)
    store.fault = no_fault
    assert set(content(out)) == left
    with caplog.at_level("INFO", "daskmeans"):
        workflow.fit(given, out, dkm.KMeans(6, init="random"), reading)
    assert "goes on from a checkpoint" in caplog.text
    assert content(out)["centroids.npy"] == whole["model/centroids.npy"]
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("url", "how", "words"),
    [
        ("s3://bucket/in", "unavailable", "reduce your request rate"),
        ("s3://bucket/in", "refused", "denied"),
        ("s3://bucket/out", "unavailable", "reduce your request rate"),
    ],
)
def test_a_store_that_goes_on_failing_is_a_message(store, url, how, words):
    write_input(store.at("in"))
    manifest.write_json(store.at("out") / manifest.NAME, {"step": "fit", "finished": False})
    store.fault = lambda request: how
    done = CliRunner().invoke(main, ["info", url, "--storage-options", json.dumps(store.options)])
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert words in done.output.lower()
    assert SECRET not in done.output


def test_a_server_that_is_not_there_is_a_message(store):
    options = store.options | {"endpoint_url": "http://127.0.0.1:9"}
    done = CliRunner().invoke(main, ["info", "s3://bucket/in", "--storage-options", json.dumps(options)])
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (1, True)
    assert "127.0.0.1:9" in done.output
    assert SECRET not in done.output


# --- the lock ---


def leave(out: UPath, **facts: object) -> None:
    """The lock of a run on another machine, which was seen a moment ago."""
    told = {"token": "t", "pid": 1, "started": 0.0, "host": "elsewhere", "place": "", "seen": time.time()} | facts
    (out / lock.NAME).write_text(json.dumps(told))


def test_one_run_at_a_time_holds_the_lock(store):
    out = store.at("out")
    with lock.hold(out), pytest.raises(OutputError, match="another run is writing"), lock.hold(out):
        pass
    leave(out)
    with pytest.raises(OutputError, match="process 1 on elsewhere"), lock.hold(out):
        pass
    leave(out, seen=time.time() - lock.DEAD - 1)
    with lock.hold(out) as mine:
        assert mine.held
    assert not out.exists()


def test_of_two_runs_that_begin_in_the_same_instant_one_is_refused(store):
    out, begun = store.at("out"), []

    def fault(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith(lock.NAME) and not begun:
            begun.append(request)
            leave(out)  # between the look and the writing of the other

    store.fault = fault
    with pytest.raises(OutputError, match="just begun"), lock.hold(out):
        pass
    assert json.loads((out / lock.NAME).read_text())["host"] == "elsewhere"


def test_a_lock_whose_answer_was_lost_is_held(store):
    out = store.at("out")
    store.fault = once(on("PUT", lock.NAME, "lost"))
    with lock.hold(out) as mine:
        assert mine.held
    assert not out.exists()


def test_a_lock_that_could_not_be_removed_speaks_for_nobody(store):
    out = store.at("out")
    with lock.hold(out):
        store.fault = lambda request: "refused"
    store.fault = no_fault
    assert (out / lock.NAME).exists()
    with lock.hold(out) as mine:
        assert mine.held


def test_signs_of_life_go_on_when_some_cannot_be_given(store, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    out = store.at("out")
    store.fault = refused_after(1)
    with lock.hold(out):
        while sum(request.writes for request in store.requests) < 4:
            time.sleep(0.01)
        store.fault = no_fault
        first = lock._read(out / lock.NAME)["seen"]
        while lock._read(out / lock.NAME)["seen"] == first:
            time.sleep(0.01)


# --- secrets ---


def test_secrets_are_told_nobody(store, client, two_workers, capfd, caplog):
    options = json.dumps(store.options)
    given = write_input(store.at("in"))
    bad = [[0.0] * X.shape[1]] * 3  # on workers, which log what they were called with
    with store.at("bad.parquet").open("wb") as file:
        pq.write_table(pa.table({"id": [1, 2, 3], "embedding": pa.array(bad, pa.list_(pa.float32()))}), file)
    caplog.set_level("DEBUG", "daskmeans")
    shown = []

    def call(*words: str) -> int:
        where = ["--verbose", "--scheduler", two_workers.scheduler_address]
        done = CliRunner().invoke(main, [*words, "--storage-options", options, *where])
        shown.append(done.output)
        return done.exit_code

    k, at = "--n-clusters", "s3://bucket"
    assert call("run", f"{at}/in", "--out", f"{at}/out", k, "6", "--threshold", "0.9", "--metadata-field", "text") == 0
    assert call("dedup", f"{at}/out/clusters", "--out", f"{at}/seen", "--threshold", "0.9", "--review", "3") == 0
    assert call("apply", f"{at}/out/dedup", f"{at}/in", "--out", f"{at}/kept") == 0
    assert call("info", f"{at}/in", "--advise") == 0
    assert call("fit", f"{at}/bad.parquet", "--model", f"{at}/model", k, "2") == 1
    assert "zero" in shown[-1]
    result = dkm.open_decisions(f"{at}/out/dedup", store.options)
    reading = Reading(storage_options=store.options)
    shown += [repr(result), result._repr_html_(), repr(result.path), repr(reading), repr(given), str(given)]
    shown += [str(client.get_worker_logs()), str(client.get_scheduler_logs()), str(client.get_events())]
    address = client.dashboard_link.removesuffix("/status")
    pages = ["kmeans", "status", "info/main/workers.html", "info/logs.html", "json/counts.json", "metrics", "graph"]
    workers = [info["id"] for info in client.scheduler_info(n_workers=-1)["workers"].values()]
    for page in pages:
        with urlopen(f"{address}/{page}") as answer:
            shown.append(answer.read().decode())
    shown += [*capfd.readouterr(), caplog.text]
    assert workers and not [text for text in shown if SECRET in text]
    files = {name: store.at("").fs.cat_file(name) for name in store.at("").fs.find("bucket/")}
    assert len(files) > 20 and not [name for name, data in files.items() if SECRET.encode() in data]
    assert '--storage-options "$STORAGE_OPTIONS"' in shown[3]


@pytest.mark.parametrize(
    "given",
    [SECRET, f'{{"secret": "{SECRET}"', f'["{SECRET}"]', json.dumps({"secret": SECRET, "nonsense": {"a": 1}})],
)
def test_storage_options_that_are_wrong_are_not_shown(given):
    done = CliRunner().invoke(main, ["info", "s3://bucket/in", "--storage-options", given])
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit)
    assert SECRET not in done.output


def test_errors_about_options_leave_their_values_out():
    with pytest.raises(UsageError, match=r"cannot be opened.*\*\*\*") as error:
        open_path("memory://a", {"protocol": SECRET})
    assert SECRET not in str(error.value)


def test_a_broken_line_of_a_configuration_file_is_not_shown(tmp_path):
    (tmp_path / "job.yaml").write_text(f"input: x\nstorage_options: {{secret: {SECRET}\nn_clusters: 3\n")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "not valid YAML" in done.output and "line" in done.output
    assert SECRET not in done.output
