"""The whole job has the same outputs, bit for bit, however and wherever it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import daskmeans as dkm
from daskmeans.reading import Reading
from helpers import blobs, write_embeddings

# Of summaries and models: what differs from one run to the next.
VOLATILE = {"seconds", "peak_bytes", "steps", "iterations", "versions", "input_fingerprint", "pairs"}
SCRIPT = "from daskmeans.cli import main; main()"
# Cores that OpenBLAS has kernels for, of which one that the machine lacks would end the process.
CORES = {"Haswell": "avx2", "SkylakeX": "avx512f"}
SMALL = {"DASK_DASKMEANS__PARTITION_BYTES": "6000", "DASK_DASKMEANS__TILE_BYTES": "20000"}
# A way to run: variables, flags, and the core that OpenBLAS takes this one for; they differ in all that may not matter.
JOBS = {
    "two workers": ({"PYTHONHASHSEED": "1"} | SMALL, ["--n-workers", "2"], "Haswell"),
    "three threads": ({"PYTHONHASHSEED": "2"}, ["--n-workers", "1", "--threads-per-worker", "3"], "SkylakeX"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("determinism")
    X = blobs(n=1500, d=24, k=20, copies=100)
    names = [f"row-{i:05d}" for i in range(len(X))]
    for number, places in enumerate(np.array_split(np.arange(len(X)), 3)):
        text = [f"text {i}" for i in places]
        write_embeddings(at / "in" / f"{number}.parquet", X[places], ids=[names[i] for i in places], text=text)
    return at


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, object]:
    """What a run in this process holds."""
    dkm.run(folder / "in", folder / "here", dkm.KMeans(30), 0.9, Reading(metadata_fields=("text",)))
    return content(folder / "here")


def job(folder: Path, name: str) -> dict[str, object]:
    """What a run in processes of its own holds."""
    variables, flags, core = JOBS[name]
    if has(core):
        variables = variables | {"OPENBLAS_CORETYPE": core}
    out = folder / name.replace(" ", "-")
    words = ["run", folder / "in", "--out", out, "--n-clusters", 30, "--threshold", 0.9, "--metadata-field", "text"]
    words += ["--dashboard-address", "127.0.0.1:0", "--quiet", *flags]
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | variables, timeout=120)
    return content(out)


def content(out: Path) -> dict[str, object]:
    """Rows in their order, arrays and facts, by file: those of clusters and decisions as one, however they are cut."""
    found: dict[str, object] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(file.relative_to(out))
        if file.suffix == ".parquet":
            rows = pq.ParquetFile(file).read().replace_schema_metadata(None)
            found.setdefault(str(file.parent.relative_to(out)), []).extend(rows.to_pylist())
        elif file.suffix == ".npy":
            found[name] = np.load(file).tobytes()
        elif file.name in ("summary.json", "model.json"):
            facts = json.loads(file.read_text())
            found[name] = {key: facts[key] for key in facts if key not in VOLATILE}
    return found


def has(core: str) -> bool:
    """Whether this machine runs the kernels of OpenBLAS for `core`."""
    file = Path("/proc/cpuinfo")
    return file.exists() and f" {CORES[core]} " in file.read_text()


@pytest.mark.parametrize("name", JOBS)
def test_the_whole_job_has_equal_bits(folder, expected, name):
    found = job(folder, name)
    assert len(expected["clusters"]) == len(expected["dedup/decisions"]) == 1500
    assert 0 < expected["summary.json"]["kept"] < 1500
    assert found.keys() == expected.keys()
    for file in expected:
        if file != "dedup/pairs":  # tasks differ, and with them the order
            assert found[file] == expected[file], file
    pairs = [sorted(map(repr, each.get("dedup/pairs", []))) for each in (expected, found)]
    assert pairs[0] == pairs[1]
