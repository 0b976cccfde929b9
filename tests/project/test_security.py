"""What others have made is read and not obeyed; nothing listens beyond this machine; TLS is used where it is set."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import dask
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

import daskmeans as dkm
import hashes
from daskmeans.buckets.buckets import open_buckets
from daskmeans.cli.main import main
from daskmeans.errors import DataError
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.storage import manifest
from daskmeans.vectors.files import join_inside
from daskmeans.vectors.options import ReadOptions
from helpers import ROOT, blobs, write_embeddings

PACKAGE = Path(dkm.__path__[0])
ROLES = ("client", "scheduler", "worker")
REQUIRED = {"distributed.comm.require-encryption": True}


class Payload:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def spoil(path: Path, change) -> None:
    """Write the manifest in the directory `path` anew, as somebody would who knows how its checksum is made."""
    found = json.loads((path / "_manifest.json").read_text())
    change(found)
    manifest.write_manifest(UPath(path), found)


def test_no_pickle_is_loaded(tmp_path):
    mark = tmp_path / "mark"
    evil = tmp_path / "evil.npy"
    np.save(evil, np.array([[Payload(mark)] * 4] * 3), allow_pickle=True)
    np.load(evil, allow_pickle=True)
    assert mark.exists()  # that is what it does
    mark.unlink()
    with pytest.raises(DataError, match=r"evil\.npy"):
        dkm.read_embeddings(evil)
    X = blobs(n=60, d=4)
    with pytest.raises(DataError, match=r"evil\.npy"):
        dkm.KMeans(3, init=str(evil)).fit(X)
    dkm.KMeans(3).fit(X).save(tmp_path / "model")
    shutil.copy(evil, tmp_path / "model" / "centroids.npy")
    spoil(tmp_path / "model", lambda found: found.pop("checksums"))
    with pytest.raises(DataError, match=r"centroids\.npy"):
        dkm.KMeans.load(tmp_path / "model")
    evil.with_suffix(".jsonl").write_bytes(evil.read_bytes())
    evil.with_suffix(".parquet").write_bytes(evil.read_bytes())
    for suffix in (".jsonl", ".parquet"):
        with pytest.raises(DataError):
            dkm.read_embeddings(evil.with_suffix(suffix))
    assert not mark.exists()


def test_the_code_loads_no_pickle_and_no_unsafe_yaml():
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            assert name not in {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "pd.read_pickle"}
            if name == "np.load":
                assert ast.unparse(next(word.value for word in node.keywords if word.arg == "allow_pickle")) == "False"


def test_yaml_makes_no_objects_and_is_held_against_the_flags(tmp_path):
    file, mark = tmp_path / "job.yaml", tmp_path / "mark"
    file.write_text(f"input: !!python/object/apply:os.mkdir ['{mark}']\n")
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(tmp_path / "out")])
    assert (result.exit_code, mark.exists()) == (2, False)
    assert "not valid YAML" in result.stderr
    for line, words in {
        "n_clutsers: 3": ("'n_clutsers'", "did you mean 'n_clusters'?"),
        "n_clusters: true": ("'n_clusters'", "a number or a string"),
        "n_clusters: 3.7": ("3.7",),
        "n_clusters: [3]": ("'n_clusters'", "a number or a string"),
        "normalize: 1": ("'normalize'", "true or false"),
        "threshold: {a: 1}": ("'threshold'", "a number or a string"),
        "keep: [[hard]]": ("'keep'", "a number or a string"),
        "storage_options: [hunter2]": ("'storage_options'", "a list is not a valid value"),
    }.items():
        file.write_text(f"input: rows.parquet\nout: {tmp_path}/out\n{line}\n")
        result = CliRunner().invoke(main, ["run", str(file)])
        assert result.exit_code == 2, result.output
        for word in words:
            assert word in result.stderr
        assert "hunter2" not in result.output
        assert "Traceback" not in result.output
    nested = "".join(f"- &{i} [{', '.join([f'*{i - 1}'] * 9)}]\n" for i in range(1, 30))  # 9³⁰ elements, told in full
    file.write_text(f"input: rows.parquet\nthreshold:\n- &0 [1]\n{nested}")
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(tmp_path / "out")])
    assert (result.exit_code, len(result.stderr) < 1000) == (2, True)


def test_json_that_is_nested_too_deep(tmp_path):
    deep = "[" * 100_000
    result = CliRunner().invoke(main, ["info", str(tmp_path), "--storage-options", deep])
    assert result.exit_code == 2
    assert "not valid JSON" in result.stderr
    (tmp_path / "_manifest.json").write_text(deep)
    assert manifest.peek_manifest(UPath(tmp_path)) is None


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A job, and a file beside it that it has no business with."""
    at = tmp_path_factory.mktemp("made")
    rows = write_embeddings(at / "rows.parquet", blobs(n=100, d=8))
    dkm.run(rows, at / "job", dkm.KMeans(3), 0.9)
    shutil.copytree(at / "job" / "clusters", at / "elsewhere")
    return at


ELSEWHERE = ["../elsewhere/{}", "{root}/elsewhere/{}", "a/../../elsewhere/{}", "file://{root}/elsewhere/{}", ""]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_manifest_cannot_name_files_elsewhere(made, tmp_path, name):
    at = tmp_path / "at"
    shutil.copytree(made, at)

    def change(found: dict) -> None:
        found["outputs"][0]["path"] = name.format(found["outputs"][0]["path"], root=at)

    spoil(at / "job" / "clusters", change)
    with pytest.raises(DataError, match="which is not below it"):
        dkm.dedup(at / "job" / "clusters", 0.9, search="clusters")
    with pytest.raises(DataError, match="which is not below it"):
        dkm.read_embeddings(at / "job" / "clusters").compute()
    buckets = open_buckets(at / "job" / "clusters")
    with pytest.raises(DataError, match="which is not below it"):
        buckets.read(next(buckets.clusters()))


@pytest.mark.parametrize("name", ["a.parquet", "b/a..b.parquet", "..a/x", "centroid=3/part-0.parquet"])
def test_names_below_a_directory(name):
    assert join_inside(UPath("/data"), name).path == f"/data/{name}"


@pytest.mark.parametrize("file", ["model/model.json", "model/centroids.npy", "dedup/_summary.json"])
def test_what_was_changed_by_hand_is_not_read(made, tmp_path, file):
    shutil.copytree(made / "job", tmp_path / "job")
    target = tmp_path / "job" / file
    content = bytearray(target.read_bytes())
    content[-8] ^= 1
    target.write_bytes(content)
    with pytest.raises(DataError, match=f"{file}.*damaged"):
        dkm.KMeans.load(tmp_path / "job" / "model")
        dkm.open_decisions(tmp_path / "job" / "dedup")


@pytest.mark.parametrize("place", ["clusters", "dedup/decisions"])
def test_a_page_that_has_changed_is_not_read(made, tmp_path, place):
    shutil.copytree(made / "job", tmp_path / "job")
    target = min((tmp_path / "job" / place).glob("*.parquet"))
    column = pq.read_metadata(target).row_group(0).column(0)
    content = bytearray(target.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 4] ^= 1  # among the values of its last page
    target.write_bytes(content)
    with pytest.raises(DataError, match=target.name):
        dkm.dedup(tmp_path / "job" / "clusters", 0.9, search="clusters")
        dkm.open_decisions(tmp_path / "job" / "dedup").decisions.compute()


def test_secrets_of_the_storage_are_told_nowhere(tmp_path, caplog):
    write_embeddings(tmp_path / "rows.parquet", blobs(n=100, d=8))
    caplog.set_level("DEBUG", "daskmeans")
    UPath("memory://secrets/rows.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes())
    reading = ReadOptions(storage_options={"secret": "hunter2"})
    result = dkm.run("memory://secrets/rows.parquet", "memory://secrets/out", dkm.KMeans(3), 0.9, reading)
    assert result.path.storage_options["secret"] == "hunter2"  # it was passed on
    assert "hunter2" not in caplog.text + repr(result)
    for file in UPath("memory://secrets/out").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), file


def listening() -> set[tuple[str, int]]:
    """Addresses on which this process and those that it has started listen."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {tuple(c.laddr) for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"}


def test_a_cluster_of_ours_listens_on_loopback_only():
    before = listening()  # clusters of other tests
    with open_cluster(ClusterSettings(n_workers=1, dashboard_address="127.0.0.1:0")) as client:
        assert {address for address, _ in listening() - before} == {"127.0.0.1"}
        assert client.dashboard_link.startswith("http://127.0.0.1:")


def test_dashboards_are_on_loopback_unless_it_is_said_otherwise():
    for command in main.commands.values():
        for option in command.params:
            if option.name == "dashboard_address":
                assert option.default.startswith("127.0.0.1:")
    assert ClusterSettings().dashboard_address.startswith("127.0.0.1:")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """A key and a certificate that signs itself, from the system's OpenSSL."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command on this machine")
    at = tmp_path_factory.mktemp("tls")
    for name in ("ours", "theirs"):
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        made = ["-keyout", str(at / f"{name}.key"), "-out", str(at / f"{name}.pem")]
        subprocess.run([*words, *made], check=True, capture_output=True)
    return at


def tls(at: Path, name: str) -> dict[str, object]:
    """Settings of dask for TLS with a certificate."""
    own = {f"{who}.{what}": f"{at}/{name}.{end}" for who in ROLES for what, end in (("cert", "pem"), ("key", "key"))}
    own["ca-file"] = f"{at}/{name}.pem"
    return {f"distributed.comm.tls.{key}": path for key, path in own.items()} | REQUIRED


def test_tls_is_passed_through(certificates, tmp_path):
    write_embeddings(tmp_path / "rows.parquet", blobs(n=100, d=8))
    words = f"fit {tmp_path}/rows.parquet --n-clusters 3 --json --model".split()
    here = ClusterSettings(n_workers=1, dashboard_address="127.0.0.1:0")
    with dask.config.set(tls(certificates, "ours")), open_cluster(here) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert all(worker.startswith("tls://") for worker in client.nthreads())
        done = CliRunner().invoke(main, [*words, f"{tmp_path}/model", "--scheduler", address])
        assert done.exit_code == 0, done.output
        # Whoever has no certificate, or another one, is refused, and told so.
        for settings in (tls(certificates, "theirs"), dict.fromkeys(tls(certificates, "ours"))):
            with dask.config.set(settings | {"daskmeans.connect-timeout": 1}):
                refused = CliRunner().invoke(main, [*words, f"{tmp_path}/other", "--scheduler", address])
            assert refused.exit_code in (1, 2), refused.output
            assert address in refused.stderr
            assert isinstance(refused.exception, SystemExit)
            assert not (tmp_path / "other").exists()


def test_versions_in_ci_are_pinned_one_by_one():
    lines = (ROOT / "ci" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+!]*", pin) for pin in pins)
    pinned = {pin.partition("==")[0] for pin in pins}
    assert len(pinned) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in ("text", "dashboard", "demo", "ann", "test", "dev"))
    wanted = [each for group in (project["dependencies"], *extras) for each in group]
    names = {re.match(r"[A-Za-z0-9_-]+", each).group().lower().replace("_", "-") for each in wanted}
    assert names - {"daskmeans"} <= pinned


def test_the_lock_has_a_hash_for_each_of_these_versions():
    pins, lines = (
        [line for line in (ROOT / "ci" / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("constraints.txt", "lock.txt")
    )
    assert [line.partition(" ")[0] for line in lines] == sorted(pins)
    assert all(re.fullmatch(r"\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


def installed(name: str, version: str, digest: str) -> dict[str, object]:
    """What pip reports of a package that it has installed."""
    info = {"archive_info": {"hashes": {"sha256": digest}}, "url": f"https://example.org/{name}.whl"}
    return {"metadata": {"name": name, "version": version}, "download_info": info}


def test_packages_with_another_hash_are_named(tmp_path, monkeypatch, capsys):
    here = {"implementation_name": "cpython", "python_version": "3.11", "sys_platform": "linux"}
    here["platform_machine"] = "x86_64"
    lock = f"# cpython 3.11 linux x86_64\na-b==1.0 --hash=sha256:{'a' * 64}\nc==2 --hash=sha256:{'c' * 64}\n"
    (tmp_path / "lock.txt").write_text(lock)
    monkeypatch.setattr(hashes, "LOCK", tmp_path / "lock.txt")
    ours = {"metadata": {"name": "daskmeans", "version": "0"}, "download_info": {"dir_info": {}, "url": "file:///x"}}

    def check(*found: dict[str, object], **place: str) -> None:
        (tmp_path / "report.json").write_text(json.dumps({"install": found, "environment": here | place}))
        hashes.check([str(tmp_path / "report.json")])

    check(ours, installed("A_b", "1.0", "a" * 64))
    assert "1 packages were installed from the files whose hashes are in ci/lock.txt" in capsys.readouterr().out
    for wrong, words in (
        (installed("c", "2", "d" * 64), "c==2 was installed from a file with the sha256 dddd"),
        (installed("c", "3", "c" * 64), "c==3 was installed, and is not in"),
        (installed("d", "2", "c" * 64), "d==2 was installed, and is not in"),
    ):
        with pytest.raises(SystemExit, match=words):
            check(ours, installed("A_b", "1.0", "a" * 64), wrong)
    check(installed("c", "2", "d" * 64), python_version="3.12")
    assert "nothing was compared" in capsys.readouterr().out
