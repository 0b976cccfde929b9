"""A disk that is too small is told of before the work, a full one when it is met; nothing half-written is read."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from upath import UPath

import daskmeans as dkm
from daskmeans.cli.main import main
from daskmeans.errors import DiskError
from daskmeans.steps.assign import assign_files
from daskmeans.steps.fit import fit
from daskmeans.storage import diskspace, lock, manifest
from daskmeans.vectors.options import ReadOptions
from helpers import blobs, parquet_below, write_embeddings

Usage = namedtuple("Usage", "total used free")


@contextlib.contextmanager
def limited(size: int):
    """Let no file of this process grow beyond `size` bytes in the ``with`` block, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What a job makes of rows with metadata, two of which are left out; the rows lie beside it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    X = blobs(n=600, d=16)
    X[[3, 500]] = 0
    write_embeddings(out.parent / "rows.parquet", X, text=[f"text {i}" * 20 for i in range(len(X))])
    step("run", out, out)
    dkm.apply(out / "dedup", out.parent / "rows.parquet", out / "kept", on_bad_row="skip")
    return out


def step(name: str, whole: Path, out: Path) -> None:
    """A step on the rows beside `whole` and what is in it, which writes below `out`."""
    rows, reading = whole.parent / "rows.parquet", ReadOptions(metadata_fields=("text",), on_bad_row="skip")
    if name == "fit":
        fit(rows, out / "model", dkm.KMeans(40), reading)
    elif name == "assign":
        assign_files(rows, whole / "model", out / "clusters", reading)
    elif name in ("exact", "clusters"):
        dkm.dedup(whole / "clusters", 0.9, out=out / "dedup", search=name)
    elif name == "apply":
        dkm.apply(whole / "dedup", rows, out / "kept", on_bad_row="skip")
    else:
        dkm.run(rows, out, dkm.KMeans(40), 0.9, reading)


def content(out: Path) -> dict[str, list]:
    return {str(file.relative_to(out)): pq.ParquetFile(file).read().to_pylist() for file in parquet_below(out)}


@pytest.mark.parametrize("size", [0, 300, 2500])
@pytest.mark.parametrize("name", ["fit", "assign", "exact", "clusters", "apply", "run"])
def test_a_disk_that_becomes_full(name, size, whole, tmp_path):
    out = tmp_path / "out"
    with limited(size), pytest.raises(DiskError, match=r"nothing more can be written(.|\n)*free some space"):
        step(name, whole, out)
    for place in ("model", "clusters", "dedup", "kept"):
        found = manifest.peek_manifest(UPath(out / place))
        assert found is None or not found["finished"]
    step(name, whole, out)  # the same call, now that there is room
    made = content(out)
    expected = {file: rows for file, rows in content(whole).items() if file in made}
    assert made.keys() == expected.keys()
    if name != "clusters":  # the job has searched all rows
        assert made == expected


def test_the_command_line_says_that_the_disk_is_full(whole, tmp_path, two_workers):
    words = f"assign {whole.parent}/rows.parquet --model {whole}/model --out {tmp_path}/out --on-bad-row skip"
    with limited(300):
        result = CliRunner().invoke(main, [*words.split(), "--scheduler", two_workers.scheduler_address])
    assert result.exit_code == 1
    for word in (f"{tmp_path}/out", "nothing more can be written", "free some space"):
        assert word in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / manifest.MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("fit", 7 * 40 * 16 * 4),
        ("assign", 2 * 600 * 16 * 4),
        ("clusters", 598 * 16),
        ("apply", 5_000),
        ("run", 76_800),
    ],
)
def test_an_output_that_cannot_fit_is_refused_before_the_work(name, free, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - free, free - 1))
    monkeypatch.setattr(lock, "hold_lock", None)  # nothing is begun
    with pytest.raises(
        DiskError, match=r"the output takes about .*iB, and its disk has .*B free\n  remedy: free some space"
    ):
        step(name, whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_room_is_what_is_free_and_what_will_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(bytes(500))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2000, 1000, 1000))
    diskspace.check_space(UPath(tmp_path / "out"), 1500)
    diskspace.check_space(UPath(tmp_path / "new" / "deep"), 1000)
    diskspace.check_space(UPath("memory://room"), 10**18)  # who knows
    for out, need in (("out", 1501), ("new/deep", 1001)):
        with pytest.raises(DiskError, match="its disk has"):
            diskspace.check_space(UPath(tmp_path / out), need)
