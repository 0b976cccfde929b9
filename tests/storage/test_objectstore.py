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
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import dask.system
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

import daskmeans as dkm
from daskmeans.cli.main import main
from daskmeans.errors import DataError, NotFoundError, OutputError, UsageError
from daskmeans.kmeans.engine.checkpoints import Checkpoints
from daskmeans.planner import advise
from daskmeans.planner.describe import describe
from daskmeans.steps.assign import assign_files
from daskmeans.steps.fit import fit as fit_files
from daskmeans.storage import lock, manifest
from daskmeans.storage.step import open_step
from daskmeans.vectors.files import open_path
from daskmeans.vectors.options import ReadOptions
from helpers import blobs, nightly
from objectstore import SECRET, ObjectStore, Request, no_fault

X = blobs(n=150, k=3, copies=15)
# What differs between two runs of the same work.
VOLATILE = {
    "checksum",
    "checksums",
    "seconds",
    "peak_bytes",
    "steps",
    "path",
    "inputs",
    "input_fingerprint",
    "resumed",
    "relabelled",
    "compared",
}
PROGRAM = """
import json, sys
import daskmeans as dkm
from daskmeans.vectors.options import ReadOptions
reading = ReadOptions(metadata_fields=("text",), storage_options=json.loads(sys.argv[3]))
dkm.run(sys.argv[1], sys.argv[2], dkm.KMeans(3, max_iter=4), 0.9, reading)
"""

Fault = Callable[[Request], str | None]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many partitions and buckets, and so requests, on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask.system, "CPU_COUNT", 1)
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_thread) -> UPath:
    """The job on a disk: ``in`` and ``out``."""
    root = UPath(tmp_path_factory.mktemp("whole"))
    do(write_input(root / "in"), root / "out")
    return root


def write_input(folder: UPath, kind: str = "parquet") -> UPath:
    """Two files of the rows of X below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate(np.array_split(np.arange(len(X)), 2)):
        with (folder / f"part-{i}.{kind}").open("wb") as file:
            if kind == "parquet":
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(X[rows].ravel()), X.shape[1])
                columns = {"id": [f"row-{i}" for i in rows], "embedding": vectors, "text": [f"text {i}" for i in rows]}
                pq.write_table(pa.table(columns), file)
            elif kind == "npy":
                np.save(file, X[rows])
            else:
                lines = [json.dumps({"id": int(i), "v": X[i].tolist(), "text": f"text {i}"}) + "\n" for i in rows]
                file.write(gzip.compress("".join(lines).encode(), mtime=0))
    return folder


def do(given: UPath, out: UPath) -> dkm.DedupResult:
    """The job from embeddings to decisions; again, it goes on."""
    fields = () if any(name.endswith(".npy") for name in given.fs.find(given.path)) else ("text",)
    reading = ReadOptions(metadata_fields=fields, storage_options={**given.storage_options, **out.storage_options})
    return dkm.run(given, out, dkm.KMeans(3, max_iter=4), 0.9, reading)


def content(folder: UPath) -> dict[str, Any]:
    """All files below `folder` by their names: bytes, but of JSON what stays the same when the work is done again."""
    prefix = folder.path.rstrip("/") + "/"
    files = {name.removeprefix(prefix): folder.fs.cat_file(name) for name in folder.fs.find(folder.path)}
    return {name: lasting(json.loads(data)) if name.endswith(".json") else data for name, data in files.items()}


def lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in VOLATILE}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def decided(folder: UPath) -> list[dict[str, Any]]:
    """The decisions in `folder`, however they are divided into files, by id."""
    files = {name: data for name, data in content(folder).items() if name.startswith("decisions/")}
    return pa.concat_tables(pq.read_table(pa.BufferReader(data)) for data in files.values()).sort_by("id").to_pylist()


def upload(folder: UPath, target: UPath) -> UPath:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def once(chosen: Fault) -> Fault:
    """Requests that `chosen` names fail the first time they are made."""
    seen: Counter[Request] = Counter()

    def fault(request: Request) -> str | None:
        seen[request] += 1
        return chosen(request) if seen[request] == 1 else None

    return fault


def on(method: str, end: str, how: str) -> Fault:
    """Requests to a path with this end fail."""
    return lambda request: how if request.method == method and request.path.endswith(end) else None


def refused_after(writes: int) -> Fault:
    """Nothing is answered any more after so many requests that write."""
    left = [writes]

    def fault(request: Request) -> str | None:
        left[0] -= request.writes
        return "refused" if left[0] < 0 else None

    return fault


# --- the job ---


def test_the_whole_job_makes_what_it_makes_on_a_disk(store, whole, tmp_path):
    given, out, reading = write_input(store.at("in")), store.at("out"), ReadOptions(storage_options=store.options)
    result = do(given, out)
    assert content(out) == content(whole / "out")
    counts = dkm.apply(result.path, given, store.at("kept"), storage_options=store.options)
    dkm.apply(whole / "out" / "dedup", whole / "in", tmp_path / "kept")
    assert content(store.at("kept")) == content(UPath(tmp_path / "kept"))
    assert counts["kept"] == result.summary["kept"] < len(X)
    assert len(result.groups(3)) == 3
    # A finished job is not done again.
    store.requests.clear()
    do(given, out)
    assert {request.path for request in store.requests if request.writes} == {"/bucket/out/summary.json"}
    with pytest.raises(OutputError, match=r"finished here, but with other settings.*n_clusters was 3, now 5"):
        dkm.run(given, out, dkm.KMeans(5), 0.9, reading)
    with pytest.raises(OutputError, match="exists already"):
        fit_files(given, out / "model", dkm.KMeans(5), reading)
    # To overwrite it is to replace all of it.
    (out / "model" / "leftover.bin").write_bytes(b"left by a run that was killed")
    dkm.run(given, out, dkm.KMeans(5, max_iter=1), 0.8, reading, layout="hive", overwrite=True)
    dkm.run(whole / "in", tmp_path / "out", dkm.KMeans(5, max_iter=1), 0.8, layout="hive")
    assert content(out) == content(UPath(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["jsonl.gz", "npy"])
def test_other_formats_and_a_store_beside_a_disk(store, tmp_path, kind):
    for root, name in ((store.at("job"), "from-store"), (UPath(tmp_path / "job"), "from-disk")):
        result = do(write_input(root / "in", kind), UPath(tmp_path / name))
        dkm.apply(result.path, root / "in", root / "kept", storage_options=store.options)
    assert content(UPath(tmp_path / "from-store")) == content(UPath(tmp_path / "from-disk"))
    assert content(store.at("job/kept")) == content(UPath(tmp_path / "job" / "kept"))


def test_decisions_on_a_disk_about_clusters_on_a_store(store, whole, tmp_path):
    upload(whole / "out" / "clusters", store.at("clusters"))
    dkm.dedup("s3://bucket/clusters", 0.9, out=tmp_path / "decided", storage_options=store.options)
    result = dkm.open_decisions(tmp_path / "decided", store.options)
    assert decided(result.path) == decided(whole / "out" / "dedup")
    assert len(result.groups(3)) == 3


def test_server_and_credentials_are_found_in_the_environment(store, monkeypatch):
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, option in names.items():
        monkeypatch.setenv(name, store.options[option])
    write_input(store.at("in"))
    try:
        assert describe("s3://bucket/in/*.parquet")["rows"] == len(X)
    finally:
        type(store.at("").fs).clear_instance_cache()  # of clients that will have no credentials


def test_refusals_touch_nothing(store):
    given, reading = write_input(store.at("in")), ReadOptions(storage_options=store.options)
    (store.at("theirs") / "notes.txt").write_text("not ours")
    store.at("").fs.touch("bucket/in/")  # what consoles make of "create folder"
    before = content(store.at(""))
    km = dkm.KMeans(3, max_iter=1)
    with pytest.raises(OutputError, match="lies inside the input"):
        fit_files(given, "s3://bucket/in/model", km, reading)
    with pytest.raises(OutputError, match="did not write"):
        fit_files(given, "s3://bucket/theirs", km, reading)
    with pytest.raises(OutputError, match="is a file"):
        fit_files(given, "s3://bucket/theirs/notes.txt", km, reading)
    with pytest.raises(OutputError, match="no such bucket"):
        fit_files(given, "s3://bucketeer/model", km, reading)
    for missing in ("s3://bucket/im", "s3://bucketeer/in", "s3://bucket/in/*.npy", "s3://bucket/in/part-2.parquet"):
        with pytest.raises(NotFoundError):
            fit_files(missing, "s3://bucket/model", km, reading)
    with pytest.raises(ZeroDivisionError), open_step(store.at("their"), "fit", {}, {}):
        1 / 0  # noqa: B018  what is removed then has a name with which theirs begins
    assert content(store.at("")) == before
    assert not store.at("").fs.exists("bucketeer")
    fit_files("s3://bucket/in/", "s3://bucket/model/", km, reading)
    assert manifest.read_manifest(store.at("model"), "fit")["rows"] == len(X)


def test_new_rows_are_held_against_clusters_and_appended(store, whole):
    old, model = (upload(whole / "out" / name, store.at(name)) for name in ("clusters", "model"))
    columns = {"id": ["new-0", "new-1"], "embedding": [X[0].tolist(), (-X[0]).tolist()], "text": ["a", "b"]}
    schema = pa.schema({"id": pa.string(), "embedding": pa.list_(pa.float32()), "text": pa.string()})
    with store.at("more.parquet").open("wb") as file:
        pq.write_table(pa.table(columns, schema), file)
    reading = ReadOptions(metadata_fields=("text",), storage_options=store.options)
    new = assign_files(store.at("more.parquet"), model, store.at("new"), reading).path
    result = dkm.dedup(new, 0.9, out=store.at("decided"), against=old, append=True, storage_options=store.options)
    assert result.kept.compute()["id"].tolist() == ["new-1"]
    told = describe(old)
    assert (told["rows"], told["appended"]["rows"]) == (len(X) + 1, 1)


# --- a store that fails ---


@pytest.mark.nightly
def test_errors_that_pass_change_nothing(store, whole):
    given, out = write_input(store.at("in", store.impatient)), store.at("out", store.impatient)
    late = [("GET", "/bucket/in/part-0.parquet"), ("PUT", "/bucket/out/model/centroids.npy")]
    hows = {"PUT": ("lost", 8), "GET": ("cut", 25), "HEAD": ("unavailable", 12), "POST": ("unavailable", 2)}
    asked: Counter[str] = Counter()
    made: Counter[str] = Counter()

    def chosen(request: Request) -> str | None:
        asked[request.method] += 1
        how, each = hows.get(request.method, ("unavailable", 1))
        if (request.method, request.path) in late:
            late.remove((request.method, request.path))
            how, each = "late", 1
        if asked[request.method] % each:
            return None
        made[how] += 1
        return how

    store.fault = once(chosen)
    result = do(given, out)
    dkm.apply(result.path, given, "s3://bucket/kept", storage_options=store.impatient)
    store.fault = no_fault
    assert content(out) == content(whole / "out")
    assert made["late"] == 2 and min(made["unavailable"], made["lost"], made["cut"]) >= 2, made


@pytest.mark.parametrize("writes", [12, *map(nightly, (2, 22, 32))])
def test_a_job_whose_store_goes_away_is_finished_by_the_next(store, whole, writes, monkeypatch):
    monkeypatch.setattr(manifest, "time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
    given, out = write_input(store.at("in")), store.at("out")
    store.fault = refused_after(writes)
    with pytest.raises((OSError, OutputError, DataError)):
        do(given, out)
    store.fault = no_fault
    do(given, out)
    assert content(out) == content(whole / "out")


@pytest.mark.nightly
def test_a_job_that_is_killed_is_finished_by_the_next(store, whole):
    given, out = write_input(store.at("in")), store.at("out")
    words = [sys.executable, "-c", PROGRAM, str(given), str(out), json.dumps(store.options)]
    running = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def fault(request: Request) -> None:
        if request.method == "PUT" and request.path.startswith("/bucket/out/clusters/bucket-"):
            running.kill()

    store.fault = fault
    assert running.wait() == -signal.SIGKILL
    store.fault = no_fault
    assert lock._read_owner(out / "clusters" / lock.LOCK_NAME)["pid"] == running.pid
    assert (out / "clusters" / "_runs").exists()
    do(given, out)
    assert content(out) == content(whole / "out")


def interrupted_fit(given: UPath, out: UPath, reading: ReadOptions) -> None:
    """A fit that is interrupted after its second update."""
    save, left = Checkpoints.save, [2]

    def saved(self, run, fit):
        save(self, run, fit)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", saved)
        fit_files(given, out, dkm.KMeans(3, max_iter=4), reading)


def test_an_interrupted_fit_goes_on_and_a_store_that_does_not_answer_is_no_reason_to_begin_anew(store, whole, caplog):
    given, out, reading = write_input(store.at("in")), store.at("out/model"), ReadOptions(storage_options=store.options)
    interrupted_fit(given, out, reading)
    left = set(content(out))
    assert any(name.startswith("checkpoints/") for name in left)
    store.fault = on("GET", "out/model/_manifest.json", "refused")
    with pytest.raises(PermissionError):
        fit_files(given, out, dkm.KMeans(3, max_iter=4), reading)
    store.fault = no_fault
    assert set(content(out)) == left
    with caplog.at_level("INFO", "daskmeans"):
        fit_files(given, out, dkm.KMeans(3, max_iter=4), reading)
    assert "goes on from a checkpoint" in caplog.text
    assert content(out)["centroids.npy"] == content(whole / "out")["model/centroids.npy"]
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("url", "how", "words"),
    [
        ("s3://bucket/in", "unavailable", "reduce your request rate"),
        ("s3://bucket/out", "refused", "denied"),
    ],
)
def test_a_store_that_goes_on_failing_is_a_message(store, url, how, words):
    manifest.write_json(store.at("out") / manifest.MANIFEST_NAME, {"step": "fit", "finished": False})
    store.fault = lambda request: how
    options = store.options | {"config_kwargs": {"retries": {"max_attempts": 0}}}  # s3fs still asks five times
    done = CliRunner().invoke(main, ["info", url, "--storage-options", json.dumps(options)])
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (1, True)
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
    (out / lock.LOCK_NAME).write_text(json.dumps(told))


def test_one_run_at_a_time_holds_the_lock(store):
    out = store.at("out")
    with lock.hold_lock(out), pytest.raises(OutputError, match="another run is writing"), lock.hold_lock(out):
        pass
    leave(out)
    with pytest.raises(OutputError, match="process 1 on elsewhere"), lock.hold_lock(out):
        pass
    leave(out, seen=time.time() - lock.STALE_SECONDS - 1)
    with lock.hold_lock(out) as mine:
        assert mine.held
    assert not out.exists()


def test_of_two_runs_that_begin_in_the_same_instant_one_is_refused(store):
    out, begun = store.at("out"), []

    def fault(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith(lock.LOCK_NAME) and not begun:
            begun.append(request)
            leave(out)  # between the look and the writing of the other

    store.fault = fault
    with pytest.raises(OutputError, match="just begun"), lock.hold_lock(out):
        pass
    assert json.loads((out / lock.LOCK_NAME).read_text())["host"] == "elsewhere"


def test_a_lock_whose_answer_was_lost_is_held(store):
    out = store.at("out")
    store.fault = once(on("PUT", lock.LOCK_NAME, "lost"))
    with lock.hold_lock(out) as mine:
        assert mine.held
    assert not out.exists()


def test_a_lock_that_could_not_be_removed_speaks_for_nobody(store):
    out = store.at("out")
    with lock.hold_lock(out):
        store.fault = lambda request: "refused"
    store.fault = no_fault
    assert (out / lock.LOCK_NAME).exists()
    with lock.hold_lock(out) as mine:
        assert mine.held


def test_signs_of_life_go_on_when_some_cannot_be_given(store):
    out = store.at("out")
    with lock.hold_lock(out, every=0.01):
        store.fault = lambda request: "refused" if request.writes else None
        while sum(request.writes for request in store.requests) < 4:
            time.sleep(0.01)
        store.fault = no_fault
        first = lock._read_owner(out / lock.LOCK_NAME)["seen"]
        while lock._read_owner(out / lock.LOCK_NAME)["seen"] == first:
            time.sleep(0.01)


# --- secrets ---


def test_steps_on_workers_make_the_same_and_tell_nobody_secrets(store, whole, client, two_workers, capfd, caplog):
    write_input(store.at("in"))
    bad = pa.array([[0.0] * X.shape[1]] * 3, pa.list_(pa.float32()))  # workers log what they were called with
    with store.at("bad.parquet").open("wb") as file:
        pq.write_table(pa.table({"id": [1, 2, 3], "embedding": bad}), file)
    out, shown = store.at("out"), []
    for name in ("model", "clusters", "dedup"):
        assert not (out / name).exists()  # a client that remembered listings would go on believing so

    def call(words: str, exit_code: int = 0) -> None:
        where = ["--verbose", "--scheduler", two_workers.scheduler_address]
        words = words.replace("@", "s3://bucket/")
        done = CliRunner().invoke(main, [*words.split(), "--storage-options", json.dumps(store.options), *where])
        shown.append(done.output)
        assert done.exit_code == exit_code, done.output

    caplog.set_level("DEBUG", "daskmeans")
    call("fit @in --model @out/model --n-clusters 3 --max-iter 4")
    call("assign @in --model @out/model --out @out/clusters --metadata-field text")
    call("dedup @out/clusters --out @out/dedup --threshold 0.9 --review 3")
    call("apply @out/dedup @in --out @kept")
    assert decided(out / "dedup") == decided(whole / "out" / "dedup")
    call("fit @bad.parquet --model @model --n-clusters 2", exit_code=1)
    assert "zero" in shown[-1]
    result = dkm.open_decisions("s3://bucket/out/dedup", store.options)
    shown += [repr(result), result._repr_html_(), repr(result.path), repr(ReadOptions(storage_options=store.options))]
    logs = [str(client.get_worker_logs()), str(client.get_scheduler_logs())]
    logs.append(client.run_on_scheduler(lambda dask_scheduler: str(dask_scheduler.get_events())))
    for page in ("kmeans", "status", "info/main/workers.html", "info/main/logs.html", "json/counts.json"):
        with urlopen(client.dashboard_link.replace("status", page)) as answer:
            logs.append(answer.read().decode())
    assert "bad.parquet" in logs[0]
    shown += [*logs, *capfd.readouterr(), caplog.text]
    assert not [text for text in shown if SECRET in text]
    files = {name: store.at("").fs.cat_file(name) for name in store.at("").fs.find("bucket/")}
    assert {"bucket/out/dedup/_review/review.html", "bucket/out/model/model.json"} <= set(files)
    assert not [name for name, data in files.items() if SECRET.encode() in data]


def test_the_command_that_is_advised_names_no_secrets():
    words = advise._make_command("s3://bucket/in", ReadOptions(storage_options={"secret": SECRET}), 7)
    assert words.endswith('--n-clusters 7 --threshold 0.9 --storage-options "$STORAGE_OPTIONS"')


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
